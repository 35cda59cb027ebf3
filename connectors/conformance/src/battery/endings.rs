//! Sessions that end: dropped anywhere, stopped in mid-window, without their lease.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use catalog_bridge_api::{ConnectorError, Lease, Offset, Ordering};
use rand::Rng;

use super::{Bench, offsets};
use crate::Verdict;
use crate::driver::{Ending, Sink, of_generation};
use crate::events::updates;

pub(super) async fn acknowledged_is_stored(bench: Bench) -> Result<Verdict> {
    let events = updates(1_200, 25);
    let mut sink = Sink::new(Ordering::Entity);
    for _ in 0..8 {
        let connector = bench.connector()?;
        let messages = sink.encode(&*connector, &events);
        let acknowledged = rand::rng().random_range(1..120);
        let ending = Ending::DropAfter { acknowledged, at_most: Duration::from_secs(5) };
        let outcome = sink.session(&*connector, &messages, ending).await?;
        let stored = offsets(&of_generation(&bench.destination, sink.generation).await?);
        let missing: Vec<_> = outcome.acknowledged.difference(&stored).take(3).collect();
        ensure!(missing.is_empty(), "{missing:?} were acknowledged and are not there");
        if sink.checkpoint == Offset::new(1_200) {
            break;
        }
    }
    sink.deliver(&bench.destination, &events).await?;
    bench.check(&sink, &events, bench.window()?).await?;
    Ok(Verdict::Held)
}

pub(super) async fn dropped_is_silent(bench: Bench) -> Result<Verdict> {
    let events = updates(2_000, 500);
    let mut sink = Sink::new(Ordering::Entity);
    let connector = bench.connector()?;
    let messages = sink.encode(&*connector, &events);
    let ending = Ending::DropAfter { acknowledged: 3, at_most: Duration::from_secs(5) };
    let outcome = sink.session(&*connector, &messages, ending).await?;
    let flight = connector.limits().flight.min(Duration::from_secs(5));
    tokio::time::sleep(flight + Duration::from_millis(300)).await;
    let before = bench.destination.read_back().await?.len();
    tokio::time::sleep(Duration::from_millis(700)).await;
    let after = bench.destination.read_back().await?;
    ensure!(after.len() == before, "{} messages came after the future was dropped", after.len() - before);
    let unoffered: Vec<_> = offsets(&after).difference(&outcome.offered).take(3).copied().collect();
    ensure!(unoffered.is_empty(), "{unoffered:?} were never offered");
    Ok(Verdict::Held)
}

pub(super) async fn feed_end(bench: Bench) -> Result<Verdict> {
    bench.destination.slow().await?;
    let events = updates(600, 200);
    let mut sink = Sink::new(Ordering::Entity);
    for _ in 0..4 {
        let connector = bench.connector()?;
        let count = rand::rng().random_range(1..100).min(connector.limits().window_events);
        let messages = sink.encode(&*connector, &events);
        let outcome = sink.session(&*connector, &messages, Ending::FeedAfter(count)).await?;
        match outcome.result {
            Some(Ok(())) => {}
            other => bail!("expected a clean end after the feed's: {other:?}"),
        }
        let left: Vec<_> = outcome.offered.difference(&outcome.acknowledged).take(3).collect();
        ensure!(left.is_empty(), "{left:?} were offered and not flushed");
    }
    sink.deliver(&bench.destination, &events).await?;
    bench.check(&sink, &events, 0).await.context("after stops in mid-window")?;
    Ok(Verdict::Held)
}

pub(super) async fn no_lease(bench: Bench) -> Result<Verdict> {
    let events = updates(50, 10);
    let mut sink = Sink::new(Ordering::Entity);
    sink.lease = Lease::unlimited();
    sink.lease.end();
    let connector = bench.connector()?;
    let messages = sink.encode(&*connector, &events);
    // It may not open at all, or end at once; only sending is wrong.
    let ending = Ending::DropAfter { acknowledged: 1, at_most: Duration::from_secs(2) };
    let _ = sink.session(&*connector, &messages, ending).await;
    let stored = bench.destination.read_back().await?.len();
    ensure!(stored == 0, "{stored} messages were sent without the lease");
    Ok(Verdict::Held)
}

pub(super) async fn lost_lease(bench: Bench) -> Result<Verdict> {
    // So that much is under way when the lease ends, where that can be had.
    bench.destination.slow().await?;
    let events = updates(1_000, 1_000);
    let mut sink = Sink::new(Ordering::Entity);
    let connector = bench.connector()?;
    let messages = sink.encode(&*connector, &events);
    let (lease, destination) = (sink.lease.clone(), bench.destination.clone());
    let counting = tokio::spawn(async move {
        while lease.is_held() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        // What was sent before may land still.
        tokio::time::sleep(Duration::from_secs(2)).await;
        anyhow::Ok(destination.read_back().await?.len())
    });
    let outcome = sink.session(&*connector, &messages, Ending::LeaseAfter(1)).await;
    sink.lease.end();
    let soon = counting.await.context("counting")??;
    let outcome = outcome?;
    match outcome.result {
        Some(Ok(()) | Err(ConnectorError::Transient { .. } | ConnectorError::Fenced { .. })) => {}
        None => bail!("the session goes on without its lease"),
        Some(Err(error)) => bail!("expected an end of the session: {error}"),
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    let stored = bench.destination.read_back().await?;
    ensure!(stored.len() == soon, "{} messages were sent after the lease had ended", stored.len() - soon);
    let stored = offsets(&stored);
    let missing: Vec<_> = outcome.acknowledged.difference(&stored).take(3).collect();
    ensure!(missing.is_empty(), "{missing:?} were acknowledged and are not there");
    sink.lease = Lease::unlimited();
    sink.deliver(&bench.destination, &events).await.context("the next owner")?;
    bench.check(&sink, &events, bench.window()?).await?;
    Ok(Verdict::Held)
}
