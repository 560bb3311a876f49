//! The virtual machine cluster in a library: model, traits, store, control loop
