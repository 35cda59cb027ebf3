//! Destinations that refuse, and that are harmed while messages are in flight.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use catalog_bridge_api::{ConnectorError, Offset, Ordering};
use rand::Rng;

use super::{Bench, offsets};
use crate::driver::{Ending, Sink, of_generation};
use crate::events::{event, updates};
use crate::{Harm, REFUSED_BYTES, Verdict};

/// As the driver does with `on_refused: block`: what comes before is delivered, and the event is refused whenever it comes again.
pub(super) async fn refused(bench: Bench) -> Result<Verdict> {
    if !bench.destination.refuse().await? {
        return Ok(Verdict::NotApplicable("refuses nothing"));
    }
    let mut events = updates(20, 20);
    events[9] = event(10, "refused-one", REFUSED_BYTES);
    let mut sink = Sink::new(Ordering::Entity);
    is_refused(sink.deliver_or_fail(&bench.destination, &events).await?, 10)?;
    sink.deliver(&bench.destination, &events[..9]).await?;
    is_refused(sink.deliver_or_fail(&bench.destination, &events).await?, 10)?;
    events.remove(9);
    sink.deliver(&bench.destination, &events).await?;
    let stored = offsets(&of_generation(&bench.destination, 1).await?);
    ensure!(!stored.contains(&Offset::new(10)), "the refused event is stored");
    bench.check(&sink, &events, bench.window()?).await?;
    Ok(Verdict::Held)
}

fn is_refused(outcome: Result<(), ConnectorError>, offset: u64) -> Result<()> {
    match outcome {
        Err(ConnectorError::Refused { offset: found, .. }) if found == Offset::new(offset) => Ok(()),
        other => bail!("expected Refused for offset {offset}: {other:?}"),
    }
}

/// As the driver does with `on_refused: skip`: the first, the last, neighbours, and two of one entity.
pub(super) async fn refused_and_skipped(bench: Bench) -> Result<Verdict> {
    if !bench.destination.refuse().await? {
        return Ok(Verdict::NotApplicable("refuses nothing"));
    }
    let refused = [1, 10, 11, 150, 200];
    let mut events = updates(200, 10);
    for offset in refused {
        events[offset - 1] = event(offset as u64, &format!("refused-{}", offset % 2), REFUSED_BYTES);
    }
    let mut sink = Sink::new(Ordering::Entity);
    let mut skipped = BTreeSet::new();
    while let Err(error) = sink.deliver_or_fail(&bench.destination, &events).await? {
        let ConnectorError::Refused { offset, .. } = error else { bail!("expected Refused: {error}") };
        events.retain(|event| event.offset != offset);
        ensure!(skipped.insert(offset.get() as usize), "offset {offset} was skipped and is refused again");
    }
    ensure!(skipped == BTreeSet::from(refused), "refused were {refused:?}, and skipped are {skipped:?}");
    bench.check(&sink, &events, bench.window()?).await?;
    Ok(Verdict::Held)
}

pub(super) async fn slowed(bench: Bench) -> Result<Verdict> {
    if !bench.destination.slow().await? {
        return Ok(Verdict::NotApplicable("cannot be slowed"));
    }
    let events = updates(600, 60);
    let mut sink = Sink::new(Ordering::Entity);
    let connector = bench.connector()?;
    let messages = sink.encode(&*connector, &events);
    match sink.session(&*connector, &messages, Ending::Whole).await?.result {
        Some(Ok(())) => {}
        other => bail!("expected one session without an error: {other:?}"),
    }
    bench.check(&sink, &events, 0).await?;
    Ok(Verdict::Held)
}

pub(super) async fn harmed(bench: Bench, harm: Harm) -> Result<Verdict> {
    let window = bench.window()?;
    let mut is_possible = false;
    for (ordering, generation) in [(Ordering::Entity, 1), (Ordering::Stream, 2)] {
        if ordering == Ordering::Stream && !bench.stream {
            continue;
        }
        // Whoever may not pipeline a stream sends one message at a time.
        let is_slow = ordering == Ordering::Stream && !bench.connector()?.limits().prefix_safe;
        let events = updates(if is_slow { 600 } else { 3_000 }, 12);
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
