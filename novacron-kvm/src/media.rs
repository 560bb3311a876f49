//! What both drivers say of media in CD-ROM drives.

/// A medium more than there are drives.
pub(crate) const NO_DRIVE: &str =
    "every CD-ROM drive of the machine has a medium, or it has no drive";
/// A drive whose door the guest does not open.
pub(crate) const LOCKED: &str = "the guest keeps the drive's door locked; what is in it stays";
/// A live snapshot of a medium.
pub(crate) const NO_SNAPSHOT: &str =
    "there is no snapshot of a medium while it is in its drive: take it out first";
