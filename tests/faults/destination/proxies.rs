//! The faults of connections, which are the same for every protocol: one proxy before each node.

use std::time::Duration;

use anyhow::{Context, Result};
use catalog_bridge_services::{Direction, FaultProxy};
use rand::Rng;
use rand::rngs::StdRng;

use crate::fault::Fault;
use crate::support::wait_until;

/// How often a connection is cut.
const CUTS: usize = 3;

/// One proxy before each node of a broker.
pub(crate) struct Proxies(Vec<FaultProxy>);

impl Proxies {
    /// Proxies whose targets are told later.
    pub(crate) fn reserve(count: usize) -> Result<Self> {
        Ok(Proxies((0..count).map(|_| FaultProxy::reserve()).collect::<Result<_>>()?))
    }

    pub(crate) fn forward_to(&self, targets: &[String]) -> Result<()> {
        self.0.iter().zip(targets).try_for_each(|(proxy, target)| proxy.forward_to(target))
    }

    pub(crate) fn addresses(&self) -> Vec<String> {
        self.0.iter().map(FaultProxy::address).collect()
    }

    /// As a network is, so that there is always something under way.
    pub(crate) fn slow_down(&self) -> Result<()> {
        self.0.iter().try_for_each(|proxy| proxy.set_latency(Duration::from_millis(4)))
    }

    /// Begins a fault of the connections; `false` when it is none of these.
    pub(crate) async fn harm(&self, fault: Fault, random: &mut StdRng) -> Result<bool> {
        match fault {
            Fault::Absent => self.0.iter().try_for_each(FaultProxy::cut)?,
            Fault::AnswersLost => self.0.iter().try_for_each(|proxy| proxy.drop_data(Direction::ToClient))?,
            Fault::Cut => {
                for _ in 0..CUTS {
                    self.cut_after(random.random_range(1..60_000)).await.context("cutting a connection")?;
                }
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Holds everything back, as a server that stands still.
    pub(crate) fn freeze(&self) -> Result<()> {
        self.0.iter().try_for_each(FaultProxy::freeze)
    }

    /// Ends every fault of the connections.
    pub(crate) fn heal(&self) -> Result<()> {
        self.0.iter().try_for_each(FaultProxy::heal)
    }

    /// Lets so many bytes of what is sent pass, and waits until the connection that this cut has been made anew.
    async fn cut_after(&self, bytes: u32) -> Result<()> {
        let before = self.accepted();
        self.0.iter().for_each(|proxy| proxy.reset_after_bytes(Direction::ToServer, bytes));
        wait_until("the sink connects again", async || Ok(self.accepted() > before)).await
    }

    fn accepted(&self) -> u64 {
        self.0.iter().map(FaultProxy::accepted_count).sum()
    }
}
