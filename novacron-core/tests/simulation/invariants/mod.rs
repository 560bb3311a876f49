//! What must hold, one file each: during the faults, or after healing.

pub(crate) mod converges;
pub(crate) mod made_once;
pub(crate) mod no_overcommit;
pub(crate) mod nothing_left;
pub(crate) mod nothing_lost;
pub(crate) mod one_writer;
pub(crate) mod operations_end;
pub(crate) mod runs_once;
