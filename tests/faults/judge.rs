//! What is known of a cell when it is over, and the verdict.

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use catalog_bridge_api::Offset;
use catalog_bridge_history::{
    Delivered, DeliveryRules, Lane, Seen, check_acknowledged, check_checkpoints, check_delivery, check_dense,
    check_last_writer, check_suffix, check_well_formed, repeats,
};

use crate::fault::Fault;
use crate::matrix::{Cell, StoreKind};
use crate::scene::{SINK, Scene};

/// What a destination promises.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Promises {
    pub(crate) lane: Lane,
    /// What one session border may repeat; 0 where the destination can tell.
    pub(crate) window: usize,
    /// Whether a former owner is kept out, so that two suffixes never mix (P9).
    pub(crate) is_fenced: bool,
}

/// How many events may be acknowledged and not yet written to the checkpoint.
const UNWRITTEN_EVENTS: usize = 2_000;
/// Session borders that one fault makes at most with something delivered in between.
const SESSIONS: usize = 4;

/// What was seen while the cell ran.
#[derive(Debug)]
pub(crate) struct Evidence {
    /// The checkpoint that was stored when the fault began.
    pub(crate) before_fault: Offset,
    /// What the destination held when the daemon was dead, and the checkpoint that was stored by then.
    pub(crate) held_at_kill: Option<(Vec<Delivered>, Offset)>,
    /// Whether an operator emptied the destination.
    pub(crate) was_emptied: bool,
    /// All checkpoints.
    pub(crate) seen: Vec<Seen>,
}

/// The destination lost what it held, which the sink must say; then the operator fills it anew.
///
/// Twice at most: a sink that told of a topic that is gone tells once more when it finds the new one.
pub(crate) async fn refill(scene: &Scene) -> Result<()> {
    let daemon = scene.daemon();
    for _ in 0..2 {
        daemon
            .wait_until("the loss is told", async || {
                let sink = daemon.sink(SINK).await?;
                let is_told = matches!(sink["state"].as_str(), Some("misconfigured" | "diverged"));
                Ok(is_told && sink.to_string().contains("rewind"))
            })
            .await?;
        scene.rewind_to_snapshot().await?;
        daemon
            .wait_until("the sink looks at its destination again", async || {
                let sink = daemon.sink(SINK).await?;
                let is_adopted = sink["detail"]["generation"] == sink["generation"];
                Ok(is_adopted && matches!(sink["state"].as_str(), Some("running" | "snapshot" | "diverged")))
            })
            .await?;
        if daemon.sink(SINK).await?["state"] != "diverged" {
            break;
        }
    }
    Ok(())
}

/// The verdict; how many messages were repeated.
pub(crate) async fn judge(
    cell: &Cell,
    scene: &Scene,
    promises: &Promises,
    delivered: &[Delivered],
    evidence: &Evidence,
) -> Result<usize> {
    let daemon = scene.daemon();
    let events = daemon.events(Offset::ZERO).await?;
    check_dense(Offset::ZERO, &events)?;
    check_well_formed(&events)?;
    let head = events.last().context("events")?.offset;
    check_checkpoints(&evidence.seen, head)?;
    // Only a rewind may repeat with another generation, and only there is anything in between left out.
    if evidence.was_emptied {
        check_last_writer(&events, delivered)?;
        return Ok(repeats(delivered));
    }
    let expected: Vec<(Offset, String)> =
        events.iter().map(|event| (event.offset, event.entity_ref.to_string())).collect();
    if let Some((held, checkpoint)) = &evidence.held_at_kill {
        check_acknowledged(&expected, held, *checkpoint, &BTreeSet::new()).context("when the daemon was killed")?;
    }
    let window = if promises.window == 0 { 0 } else { promises.window + UNWRITTEN_EVENTS };
    let rules = DeliveryRules { lane: promises.lane, repeated_per_session_max: window, sessions_max: SESSIONS };
    check_delivery(&expected, delivered, rules)?;
    // P9: what woke up may repeat old events after newer ones where the destination cannot keep it out.
    let is_mixed = cell.fault == Fault::DaemonFrozen && cell.store == StoreKind::Postgres && !promises.is_fenced;
    if !is_mixed {
        check_suffix(delivered, promises.lane, evidence.before_fault)?;
        check_last_writer(&events, delivered)?;
    }
    Ok(repeats(delivered))
}
