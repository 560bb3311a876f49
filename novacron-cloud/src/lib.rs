//! Cloud providers for NovaCron
