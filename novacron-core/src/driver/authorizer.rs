//! Who may do what.

use std::fmt;

use crate::error::Result;
use crate::model::Name;

/// Decides whether a principal may do something. Asked at the one door, before anything is read for the principal.
pub trait Authorizer: fmt::Debug + Send + Sync + 'static {
    /// Allows `principal` to do `verb` (as `vm.create`) in `project`.
    ///
    /// # Errors
    /// [`ErrorKind::PermissionDenied`](crate::ErrorKind::PermissionDenied) to refuse.
    fn authorize(&self, principal: &str, verb: &str, project: &Name) -> Result<()>;
}

/// Allows the host application everything: it is its own gatekeeper.
#[derive(Clone, Copy, Debug, Default)]
pub struct AllowAll;

impl Authorizer for AllowAll {
    fn authorize(&self, _principal: &str, _verb: &str, _project: &Name) -> Result<()> {
        Ok(())
    }
}
