//! The benches of NovaCron.
