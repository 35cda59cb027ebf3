//! What a session finds in the destination: its own tail, an earlier generation's, another log's.

use anyhow::{Context, Result, bail, ensure};
use catalog_bridge_api::{ConnectorError, Event, Offset, Ordering};
use catalog_bridge_history::Delivered;

use super::{Bench, check_all};
use crate::Verdict;
use crate::driver::{Ending, Sink, of_generation};
use crate::events::{event, updates};

pub(super) async fn lost_checkpoint(bench: Bench) -> Result<Verdict> {
    let events = updates(400, 20);
    let mut sink = Sink::new(Ordering::Entity);
    sink.deliver(&bench.destination, &events[..300]).await?;
    let written = sink.checkpoint;
    // The answers for the last 200 never reached the store.
    sink.checkpoint = Offset::new(100);
    sink.deliver(&bench.destination, &events).await?;
    ensure!(written == Offset::new(300), "300 events end at {written}");
    let repeated_max = if bench.exactly_once { 0 } else { 200 };
    let delivered = of_generation(&bench.destination, sink.generation).await?;
    let repeated = catalog_bridge_history::repeats(&delivered);
    ensure!(repeated <= repeated_max, "{repeated} repetitions, at most {repeated_max} are allowed");
    check_all(&sink, &events, &delivered, 200)?;
    Ok(Verdict::Held)
}

pub(super) async fn replay(bench: Bench) -> Result<Verdict> {
    let events = updates(200, 20);
    let mut sink = Sink::new(Ordering::Entity);
    sink.deliver(&bench.destination, &events).await?;
    sink.generation = 2;
    sink.checkpoint = Offset::ZERO;
    sink.deliver(&bench.destination, &events).await?;
    let again = of_generation(&bench.destination, 2).await?;
    check_all(&sink, &events, &again, 0).context("the replay")?;
    Ok(Verdict::Held)
}

pub(super) async fn foreign_tail(bench: Bench) -> Result<Verdict> {
    let foreign: Vec<Event> = (1..=300).map(|number| event(number, &format!("f{number}"), 10)).collect();
    let mut other = Sink::new(Ordering::Entity);
    other.deliver(&bench.destination, &foreign).await?;
    let events = updates(100, 10);
    let mut sink = Sink::new(Ordering::Entity);
    sink.deliver(&bench.destination, &events).await?;
    let delivered = of_generation(&bench.destination, 1).await?;
    let ours: Vec<Delivered> = delivered.into_iter().filter(|message| !message.key.contains("/f")).collect();
    check_all(&sink, &events, &ours, 0)?;
    Ok(Verdict::Held)
}

pub(super) async fn foreign_generation(bench: Bench) -> Result<Verdict> {
    let events = updates(200, 10);
    let mut sink = Sink::new(Ordering::Entity);
    sink.deliver(&bench.destination, &events).await?;
    sink.generation = 7;
    sink.checkpoint = Offset::new(50);
    sink.deliver(&bench.destination, &events).await?;
    let again = of_generation(&bench.destination, 7).await?;
    check_all(&sink, &events[50..], &again, 0)?;
    Ok(Verdict::Held)
}

pub(super) async fn ahead_of_log(bench: Bench) -> Result<Verdict> {
    if !bench.exactly_once {
        return Ok(Verdict::NotApplicable("finds no tail"));
    }
    let events = updates(50, 10);
    let mut sink = Sink::new(Ordering::Entity);
    sink.deliver(&bench.destination, &events).await?;
    sink.checkpoint = Offset::new(20);
    sink.head = Offset::new(20);
    let connector = bench.connector()?;
    match sink.session(&*connector, &[], Ending::Whole).await {
        Err(ConnectorError::AheadOfLog { tail, .. }) if tail == Offset::new(50) => Ok(Verdict::Held),
        Err(error) => bail!("expected AheadOfLog with tail 50: {error}"),
        Ok(outcome) => bail!("a session was opened over a tail above head: {:?}", outcome.result),
    }
}
