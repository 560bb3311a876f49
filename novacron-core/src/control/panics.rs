//! A panic in a part that somebody else wrote is that call's failure, not the control loop's end.
//!
//! What the call had begun when it panicked may or may not have happened, so its outcome is unknown, and the world is
//! looked at before anything is repeated. The panic itself goes to the process's panic hook as any other.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use futures::FutureExt;

use crate::error::{Error, ErrorKind, Result};

/// The work's answer; a panic in it is an [`ErrorKind::OutcomeUnknown`].
pub(super) async fn caught<T>(
    operation: &'static str,
    work: impl Future<Output = Result<T>>,
) -> Result<T> {
    match AssertUnwindSafe(work).catch_unwind().await {
        Ok(result) => result,
        Err(panic) => Err(Error::new(
            ErrorKind::OutcomeUnknown,
            operation,
            format!("it panicked: {}", words(&*panic)),
        )),
    }
}

/// As [`caught`], for a call that does not wait; its words are returned.
pub(super) fn caught_now<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| words(&*panic))
}

/// What the panic said.
fn words(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("no message").to_owned()
}
