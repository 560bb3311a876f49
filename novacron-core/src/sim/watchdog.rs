//! A simulated watchdog: it belongs to the host, and lasts when its process is dropped.

use std::time::Duration;

use async_trait::async_trait;
use tokio::time::Instant;

use super::world::SimWorld;
use crate::driver::{Call, Watchdog};
use crate::error::{Error, ErrorKind, Result};
use crate::model::HostId;

/// The watchdog of one host of a [`SimWorld`].
#[derive(Clone, Debug)]
pub struct SimWatchdog {
    world: SimWorld,
    host: HostId,
    timeout: Duration,
}

impl SimWatchdog {
    /// A host's watchdog, which waits this long to be fed.
    pub fn new(world: &SimWorld, host: HostId, timeout: Duration) -> Self {
        Self {
            world: world.clone(),
            host,
            timeout,
        }
    }

    /// Sets when it goes off, if it is armed or is to be; whether it was armed.
    fn set(&self, arm: bool, until: Option<Instant>) -> Result<bool> {
        let mut state = self.world.lock();
        let host = state.hosts.get_mut(&self.host).ok_or_else(|| {
            let message = "the world has no such host";
            Error::new(ErrorKind::NotFound, "sim.watchdog", message)
        })?;
        let was = host.goes_off.is_some();
        if was || arm {
            host.goes_off = until;
        }
        Ok(was)
    }
}

#[async_trait]
impl Watchdog for SimWatchdog {
    async fn arm(&self, _: Call) -> Result<Duration> {
        let until = Instant::now() + self.timeout;
        if !self.set(true, Some(until))? {
            tokio::spawn(go_off(self.world.clone(), self.host, until));
        }
        Ok(self.timeout)
    }

    async fn feed(&self) -> Result<()> {
        self.set(false, Some(Instant::now() + self.timeout))
            .map(drop)
    }

    async fn disarm(&self, _: Call) -> Result<()> {
        self.set(false, None).map(drop)
    }
}

/// Waits until it goes off, or is stopped.
async fn go_off(world: SimWorld, host: HostId, mut until: Instant) {
    loop {
        tokio::time::sleep_until(until).await;
        let mut state = world.lock();
        let Some(next) = state.hosts.get(&host).and_then(|h| h.goes_off) else {
            return;
        };
        if next > until {
            until = next;
            continue;
        }
        // From here on it is armed anew, or not at all.
        if let Some(host) = state.hosts.get_mut(&host) {
            host.goes_off = None;
        }
        state.note(|| format!("host {host}'s watchdog goes off"));
        state.reboot(host);
        return;
    }
}
