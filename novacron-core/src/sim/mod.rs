//! Simulated drivers and the simulation of the runtime.
