//! Destinations that refuse, and that are harmed while messages are in flight.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use catalog_bridge_api::{ConnectorError, Offset, Ordering};
use rand::Rng;

use super::{Bench, offsets};
use crate::driver::{Ending, Sink, of_generation};
use crate::events::{event, updates};
use crate::{Harm, Verdict};

pub(super) async fn refused(bench: Bench) -> Result<Verdict> {
    if !bench.destination.refuse().await? {
        return Ok(Verdict::NotApplicable("refuses nothing"));
    }
    let mut events = updates(20, 20);
    events[9] = event(10, "refused-one", 10);
    let mut sink = Sink::new(Ordering::Entity);
    let connector = bench.connector()?;
    let messages = sink.encode(&*connector, &events);
    let outcome = sink.session(&*connector, &messages, Ending::Whole).await?;
    match outcome.result {
        Some(Err(ConnectorError::Refused { offset, .. })) if offset == Offset::new(10) => {}
        other => bail!("expected Refused for offset 10: {other:?}"),
    }
    events.remove(9);
    sink.deliver(&bench.destination, &events).await?;
    let stored = offsets(&of_generation(&bench.destination, 1).await?);
    ensure!(!stored.contains(&Offset::new(10)), "the refused event is stored");
    bench.check(&sink, &events, bench.window()?).await?;
    Ok(Verdict::Held)
}

pub(super) async fn harmed(bench: Bench, harm: Harm) -> Result<Verdict> {
    let window = bench.window()?;
    let mut is_possible = false;
    for (ordering, generation) in [(Ordering::Entity, 1), (Ordering::Stream, 2)] {
        if ordering == Ordering::Stream && !bench.stream {
            continue;
        }
        let events = updates(3_000, 12);
        let mut sink = Sink::new(ordering);
        sink.generation = generation;
        let destination = bench.destination.clone();
        let harming = tokio::spawn(async move {
            let mut is_possible = false;
            for _ in 0..5 {
                is_possible |= destination.harm(harm).await?;
                let pause = rand::rng().random_range(1..60);
                tokio::time::sleep(Duration::from_millis(pause)).await;
            }
            anyhow::Ok(is_possible)
        });
        sink.deliver(&bench.destination, &events).await?;
        is_possible |= harming.await.context("harming")??;
        bench.check(&sink, &events, window).await.with_context(|| format!("ordering {ordering:?}"))?;
    }
    if is_possible { Ok(Verdict::Held) } else { Ok(Verdict::NotApplicable("cannot be harmed so")) }
}
