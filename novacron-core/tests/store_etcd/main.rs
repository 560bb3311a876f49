//! EtcdStore against real etcd servers, each started by its test on loopback: the suite, faults, refusals.
#![allow(
    missing_docs,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "tests"
)]

mod cluster;
mod conformance;
mod disturbed;
mod faults;
mod history;
mod members;
mod model;
mod moving;
mod refusals;
mod shared;

#[path = "../support"]
mod support {
    pub(crate) mod etcd;
    pub(crate) mod history;
    pub(crate) mod process;
    pub(crate) mod proxy;
}
