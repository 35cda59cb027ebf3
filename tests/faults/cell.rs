//! One cell: the bridge runs, the fault comes and goes, the bridge catches up, the judge looks.

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use catalog_bridge_api::Offset;
use catalog_bridge_history::Delivered;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::destination::Destination;
use crate::fault::{Fault, Victim};
use crate::judge::{self, Evidence};
use crate::load::{Follower, Latency, Load};
use crate::matrix::{self, Cell, StoreKind};
use crate::scene::{SINK, Scene};

/// How many events are written before the fault.
const CALM_EVENTS: u64 = 600;

/// How a cell that holds did.
#[derive(Debug, Clone)]
pub(crate) struct Outcome {
    /// What was delivered.
    pub(crate) deliveries: usize,
    /// How many of these were repetitions.
    pub(crate) repeats: usize,
    /// From the end of the fault until everything of that moment was delivered.
    pub(crate) recovery: Duration,
    /// Where P7 was looked at.
    pub(crate) beside: Option<Beside>,
}

/// What others in the same daemon felt: before the fault, and while it was on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Beside {
    pub(crate) reader: [Latency; 2],
    pub(crate) healthy: [Latency; 2],
}

impl fmt::Display for Outcome {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Outcome { deliveries, repeats, recovery, .. } = self;
        write!(formatter, "{deliveries} delivered, {repeats} repeated, recovered in {:.1} s", recovery.as_secs_f64())
    }
}

/// Runs one.
pub(crate) async fn run(cell: &Cell, destination: &mut dyn Destination, seed: u64) -> Result<Outcome> {
    let index = matrix::all().iter().position(|other| other == cell).context("a cell of the table")? as u64;
    let mut random = StdRng::seed_from_u64(seed.wrapping_mul(1_000_003).wrapping_add(index));
    destination.prepare(cell).await.context("preparing the destination")?;
    if cell.fault == Fault::Absent {
        destination.harm(cell.fault, &mut random).await.context("harming")?;
    }
    let mut scene = Scene::start(cell, &destination.section()).await?;
    let mut load = Load::start(&scene.target, scene.healthy_file())?;
    load.writes(CALM_EVENTS).await?;
    let calm = Instant::now();
    if cell.fault != Fault::Absent {
        // The first checkpoint: from now on there is something that must not be repeated.
        scene.reaches(SINK, 1).await?;
    }
    tokio::time::sleep(Duration::from_millis(random.random_range(500..1_200))).await;

    let on = Instant::now();
    let mut evidence =
        Evidence { before_fault: load.checkpoint(), held_at_kill: None, was_emptied: false, seen: Vec::new() };
    let until = match cell.fault.victim() {
        Victim::Destination => {
            if cell.fault != Fault::Absent {
                destination.harm(cell.fault, &mut random).await.context("harming")?;
            }
            let hold = hold(cell.fault, &mut random);
            let until = others_go_on(cell, &scene, &load, hold, destination).await?;
            destination.heal(cell.fault).await.context("healing")?;
            Some(until)
        }
        Victim::Daemon => {
            evidence.held_at_kill = harm_daemon(cell, &mut scene, &load, destination).await?;
            None
        }
        Victim::Store => {
            harm_store(&mut scene, &load, &mut random).await?;
            None
        }
    };
    let off = Instant::now();

    if cell.fault == Fault::Removed && destination.is_emptied_when_removed() {
        judge::refill(&scene).await?;
        evidence.was_emptied = true;
    }
    let at_heal = load.written();
    scene.reaches(SINK, at_heal).await?;
    let recovery = off.elapsed();
    load.stop_writing().await?;
    let head = scene.daemon().head().await?;
    scene.reaches(SINK, head.get()).await?;
    load.follows(Follower::Reader, head.get()).await?;
    load.follows(Follower::HealthySink, head.get()).await?;
    let beside = match until {
        Some(until) if cell.fault != Fault::Absent => latencies(&load, [calm, on], [on, until]),
        _ => None,
    };
    let delivered = destination.read().await.context("reading the destination")?;
    evidence.seen = load.seen();
    let repeats = judge::judge(cell, &scene, &destination.promises(), &delivered, &evidence).await?;
    Ok(Outcome { deliveries: delivered.len(), repeats, recovery, beside })
}

/// How long a fault stays at least.
fn hold(fault: Fault, random: &mut StdRng) -> Duration {
    match fault {
        Fault::BrokerFrozen | Fault::AnswersLost => Duration::from_millis(random.random_range(2_000..12_000)),
        _ => Duration::from_millis(random.random_range(1_500..4_000)),
    }
}

/// P7: while the destination is harmed, a reader and another sink of the same daemon go on.
async fn others_go_on(
    cell: &Cell,
    scene: &Scene,
    load: &Load,
    hold: Duration,
    destination: &dyn Destination,
) -> Result<Instant> {
    tokio::time::sleep(hold).await;
    if cell.fault == Fault::Removed {
        scene.tells_trouble().await?;
    }
    let head = load.written();
    let failures = load.failures();
    load.follows(Follower::Reader, head).await.context("while the fault was on")?;
    load.follows(Follower::HealthySink, head).await.context("while the fault was on")?;
    let until = Instant::now();
    ensure!(load.failures() == failures, "requests of others failed while the destination was harmed");
    if cell.fault.stops_delivery() && destination.is_stopped_by(cell.fault) {
        let sink = scene.daemon().sink(SINK).await?;
        let checkpoint = sink["checkpoint"].as_u64().unwrap_or(0);
        ensure!(checkpoint < head, "the fault did not bite: the sink is at {checkpoint} of {head}: {sink}");
    }
    Ok(until)
}

/// What the destination held while the daemon was dead, with the checkpoint that was seen last.
async fn harm_daemon(
    cell: &Cell,
    scene: &mut Scene,
    load: &Load,
    destination: &mut dyn Destination,
) -> Result<Option<(Vec<Delivered>, Offset)>> {
    if cell.fault == Fault::DaemonKilled {
        scene.kill_daemon().await?;
        let checkpoint = load.checkpoint();
        // Nobody writes to it now: what lies at or below a stored checkpoint must be there.
        let held = destination.read().await?;
        scene.revive_daemon().await?;
        return Ok(Some((held, checkpoint)));
    }
    scene.freeze_owner().await?;
    if cell.store == StoreKind::Postgres {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    scene.thaw_owner()?;
    Ok(None)
}

async fn harm_store(scene: &mut Scene, load: &Load, random: &mut StdRng) -> Result<()> {
    scene.take_store_away(random).await?;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let before = load.written();
    tokio::time::sleep(Duration::from_millis(random.random_range(1_500..6_000))).await;
    ensure!(load.written() == before, "the fault did not bite: the log took events without its store");
    scene.bring_store_back().await
}

/// Nothing on a machine so busy that nothing was written in one of the spans.
fn latencies(load: &Load, calm: [Instant; 2], harmed: [Instant; 2]) -> Option<Beside> {
    let of = |follower| {
        let [before, during] = [calm, harmed].map(|[from, to]| load.latency(follower, from, to));
        Some([before?, during?])
    };
    Some(Beside { reader: of(Follower::Reader)?, healthy: of(Follower::HealthySink)? })
}
