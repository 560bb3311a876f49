//! The connections that read: a few, each used by one blocking call at a time.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use rusqlite::Connection;
use tokio::sync::Semaphore;

use super::open::open_reader;
use super::reads;
use crate::error::{Error, ErrorKind, Result};
use crate::store::Revision;
use crate::store::watch::{Backlog, Committed};

/// A bounded pool of read connections, opened when first needed.
#[derive(Debug)]
pub(super) struct Pool {
    path: PathBuf,
    size: u32,
    free: Arc<Semaphore>,
    idle: Arc<Mutex<Vec<Connection>>>,
}

impl Pool {
    pub(super) fn new(path: PathBuf, size: usize) -> Self {
        let size = u32::try_from(size.clamp(1, 64)).unwrap_or(64);
        Self {
            path,
            size,
            free: Arc::new(Semaphore::new(size as usize)),
            idle: Arc::default(),
        }
    }

    /// Runs `read` on a blocking thread, on a connection of its own.
    pub(super) async fn read<T: Send + 'static>(
        &self,
        operation: &'static str,
        read: impl FnOnce(&mut Connection) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let closed = |_| Error::new(ErrorKind::Unavailable, operation, "the store was closed");
        let permit = Arc::clone(&self.free)
            .acquire_owned()
            .await
            .map_err(closed)?;
        let (path, idle) = (self.path.clone(), Arc::clone(&self.idle));
        let task = tokio::task::spawn_blocking(move || {
            let taken = idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let mut connection = match taken {
                Some(connection) => connection,
                None => open_reader(&path)?,
            };
            let result = read(&mut connection);
            idle.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(connection);
            drop(permit);
            result
        });
        task.await.unwrap_or_else(|e| {
            Err(Error::new(
                ErrorKind::Unavailable,
                operation,
                "the runtime ended during a read",
            )
            .caused_by(e))
        })
    }

    /// Waits for the reads under way, refuses new ones and closes the connections.
    pub(super) async fn close(&self) {
        let all = self.free.acquire_many(self.size).await;
        self.free.close();
        drop(all);
        let idle = std::mem::take(&mut *self.idle.lock().unwrap_or_else(PoisonError::into_inner));
        // Closing unmaps files: not on an async worker. Should the runtime be going down, they are closed there.
        let _ = tokio::task::spawn_blocking(move || drop(idle)).await;
    }
}

#[async_trait]
impl Backlog for Pool {
    async fn read_after(&self, after: Revision) -> Result<(Vec<Committed>, Revision)> {
        self.read("store.watch", move |connection| {
            reads::commits_after(connection, after)
        })
        .await
    }
}
