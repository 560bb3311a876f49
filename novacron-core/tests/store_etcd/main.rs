//! EtcdStore against real etcd servers, each started by its test on loopback: the suite, faults, refusals.
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

mod cluster;
mod conformance;
mod faults;
mod members;
mod model;
mod proxy;
mod refusals;
mod server;
mod shared;
