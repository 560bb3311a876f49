//! The plain scheduler against the suite.
#![cfg(feature = "conformance")]
#![allow(missing_docs, clippy::unwrap_used)]

use std::sync::Arc;

use novacron_core::conformance::scheduler::SchedulerFixture;
use novacron_core::driver::{FirstFit, Scheduler};

struct Fixture {
    cpu_overcommit: u32,
}

impl SchedulerFixture for Fixture {
    fn scheduler(&self) -> Arc<dyn Scheduler> {
        let cpu_overcommit = self.cpu_overcommit;
        Arc::new(FirstFit {
            cpu_overcommit,
            ..FirstFit::default()
        })
    }

    fn cpu_overcommit(&self) -> u32 {
        self.cpu_overcommit
    }
}

mod first_fit {
    novacron_core::scheduler_conformance!(super::Fixture { cpu_overcommit: 4 });
}

mod first_fit_without_overcommit {
    novacron_core::scheduler_conformance!(super::Fixture { cpu_overcommit: 1 });
}
