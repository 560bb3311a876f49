//! Placement for NovaCron
