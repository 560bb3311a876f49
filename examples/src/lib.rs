//! The examples of NovaCron.
