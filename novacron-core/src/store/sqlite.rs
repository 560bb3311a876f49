//! SQLite.
/// The default store.
#[derive(Debug)]
pub struct SqliteStore;
