//! What must hold, one file each: during the faults, or after healing.

pub mod converges;
pub mod no_overcommit;
pub mod nothing_left;
pub mod nothing_lost;
pub mod one_writer;
pub mod operations_end;
pub mod runs_once;
