//! Capture of a catalog in every way there is, through the front door: what it costs the catalog and what it may miss.

#[allow(dead_code, unreachable_pub, reason = "each test binary uses a part of what they share")]
#[path = "../support/mod.rs"]
mod support;

mod broken_on_purpose;
mod gaps;
mod history;
mod installations;
mod real_backstage;
mod reconcile;
mod servers;
mod status;
mod switches;
mod triggers;
mod watched;
