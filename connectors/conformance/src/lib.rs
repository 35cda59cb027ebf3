//! The kit that judges a connector: give it a destination and a way to read back what that holds, and it runs the battery.
//!
//! Judged is the contract of `connectors/api`: order per lane, truth of acknowledgements, resumption after the acknowledged
//! prefix, *stored but the answer was lost*, replays under a new generation, foreign tails, refusals that block or are skipped,
//! sizes, hostile names, slow destinations, stops in mid-window, that every message names its origin, and that a session which was
//! dropped or lost its lease writes nothing more. A connector's `tests/conformance.rs` is a [`Patient`] and one call of
//! [`judge`]; what only its protocol can suffer is driven [`by_hand`]. Knows no protocol; never part of the binary.

mod battery;
pub mod by_hand;
mod driver;
mod events;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use anyhow::Result;
use async_trait::async_trait;
use catalog_bridge_api::{Connector, Ordering};
pub use catalog_bridge_history::Delivered;

/// A connector under test.
#[async_trait]
pub trait Patient: Send + Sync {
    /// What it promises beyond the contract that holds for all.
    fn promises(&self) -> Promises;

    /// An empty destination of its own; every check asks for one.
    async fn fresh(&self) -> Result<Arc<dyn Destination>>;
}

/// What a connector promises beyond order and at-least-once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Promises {
    /// It finds its own tail: nothing is repeated, whatever was lost, and a tail above head is `AheadOfLog`.
    pub exactly_once: bool,
    /// It can keep `ordering: stream`.
    pub stream: bool,
}

/// Where a connector delivers to, with the hands to look and to harm.
#[async_trait]
pub trait Destination: Send + Sync {
    /// A connector to it, as a starting process builds one.
    fn connector(&self, ordering: Ordering) -> Result<Box<dyn Connector>>;

    /// Everything that it holds, in its own order within each lane; `bytes` is all that a repetition must carry alike.
    async fn read_back(&self) -> Result<Vec<Delivered>>;

    /// Harms it once, now or at the next message, while messages are in flight. `false`: it cannot be harmed so.
    async fn harm(&self, _: Harm) -> Result<bool> {
        Ok(false)
    }

    /// Makes it refuse for good every message of the entities whose name begins with `refused-`. `false`: it refuses nothing.
    /// Their messages have more than [`REFUSED_BYTES`], all others less than a tenth of it, so a limit of size will do.
    async fn refuse(&self) -> Result<bool> {
        Ok(false)
    }

    /// Makes it slow from now on: each answer comes late, by a tenth of a second or so, and nothing fails. `false`: it cannot
    /// be slowed.
    async fn slow(&self) -> Result<bool> {
        Ok(false)
    }

    /// The headers of every message that it holds, in any order; of structured messages the body's attributes. Empty: there are
    /// none to see.
    async fn read_headers(&self) -> Result<Vec<BTreeMap<String, String>>> {
        Ok(Vec::new())
    }
}

/// What a message has at least that a destination is to refuse ([`Destination::refuse`]).
pub const REFUSED_BYTES: usize = 60_000;

/// One fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Harm {
    /// The next message is not stored, and the connector is told so (a nack, a failed entry, a throttled request).
    Nack,
    /// The connection breaks in mid-window.
    Cut,
    /// The next messages are stored, and the answers are lost with the connection.
    LoseAnswers,
}

/// One check's outcome.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It holds.
    Held,
    /// It does not: how that was seen.
    Broken(String),
    /// This destination or connector cannot be put to it.
    NotApplicable(&'static str),
}

/// What the battery found.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// Each check's name and outcome.
    pub verdicts: Vec<(&'static str, Verdict)>,
}

impl Report {
    /// The checks that are broken.
    pub fn broken(&self) -> Vec<&'static str> {
        let is_broken = |verdict: &Verdict| matches!(verdict, Verdict::Broken(_));
        self.verdicts.iter().filter(|(_, verdict)| is_broken(verdict)).map(|(name, _)| *name).collect()
    }

    /// Panics with the whole report unless everything held.
    #[track_caller]
    pub fn assert_all_held(&self) {
        assert!(self.broken().is_empty(), "the connector breaks its contract:\n{self}");
    }
}

impl fmt::Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, verdict) in &self.verdicts {
            match verdict {
                Verdict::Held => writeln!(formatter, "held    {name}")?,
                Verdict::Broken(how) => writeln!(formatter, "BROKEN  {name}: {how}")?,
                Verdict::NotApplicable(why) => writeln!(formatter, "-       {name} ({why})")?,
            }
        }
        Ok(())
    }
}

/// Runs the whole battery, check by check.
pub async fn judge(patient: &dyn Patient) -> Report {
    battery::run(patient, |_| true).await
}

/// Runs the checks with these names only.
pub async fn judge_by(patient: &dyn Patient, names: &[&str]) -> Report {
    battery::run(patient, |name| names.contains(&name)).await
}
