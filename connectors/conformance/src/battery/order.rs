//! What arrives, in which order, and whole.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use catalog_bridge_api::{BRIDGE_GENERATION, BRIDGE_LOG_ID, BRIDGE_OFFSET, Event, Ordering};

use super::Bench;
use crate::Verdict;
use crate::driver::Sink;
use crate::events::{event, hostile_names, removal, updates};

/// The largest message where the connector names no limit.
const LARGE_BYTES: usize = 5 * 1024 * 1024;

pub(super) async fn check_writes_nothing(bench: Bench) -> Result<Verdict> {
    bench.connector()?.check().await.context("check failed on a good destination")?;
    ensure!(bench.destination.read_back().await?.is_empty(), "something was written");
    Ok(Verdict::Held)
}

pub(super) async fn order(bench: Bench, ordering: Ordering) -> Result<Verdict> {
    if ordering == Ordering::Stream && !bench.stream {
        return Ok(Verdict::NotApplicable("promises no stream order"));
    }
    let events = updates(1_500, 40);
    let mut sink = Sink::new(ordering);
    sink.deliver(&bench.destination, &events).await?;
    bench.check(&sink, &events, 0).await?;
    Ok(Verdict::Held)
}

pub(super) async fn hot_entity(bench: Bench) -> Result<Verdict> {
    let events = updates(400, 1);
    let mut sink = Sink::new(Ordering::Entity);
    sink.deliver(&bench.destination, &events).await?;
    bench.check(&sink, &events, 0).await?;
    Ok(Verdict::Held)
}

pub(super) async fn many_entities(bench: Bench) -> Result<Verdict> {
    let events = updates(10_000, 10_000);
    let mut sink = Sink::new(Ordering::Entity);
    sink.deliver(&bench.destination, &events).await?;
    bench.check(&sink, &events, 0).await?;
    Ok(Verdict::Held)
}

pub(super) async fn hostile(bench: Bench) -> Result<Verdict> {
    let names = hostile_names();
    let events: Vec<Event> =
        (1..).zip(names.iter().chain(&names)).map(|(number, name)| event(number, name, 10)).collect();
    let mut sink = Sink::new(Ordering::Entity);
    sink.deliver(&bench.destination, &events).await?;
    bench.check(&sink, &events, 0).await?;
    Ok(Verdict::Held)
}

pub(super) async fn sizes(bench: Bench) -> Result<Verdict> {
    let limit = bench.connector()?.limits().message_bytes_max;
    let largest = limit.unwrap_or(LARGE_BYTES).min(LARGE_BYTES).saturating_sub(4_096);
    let mut events = vec![removal(1, "a"), event(2, "a", largest), removal(3, "b"), event(4, "a", 10)];
    if let Some(limit) = limit {
        events.push(event(5, "a", limit + 1_000));
    }
    let mut sink = Sink::new(Ordering::Entity);
    let messages = sink.encode(&*bench.connector()?, &events);
    ensure!(messages[1].body.len() > largest && !messages[1].is_reference, "the largest message is whole");
    ensure!(messages.get(4).is_none_or(|message| message.is_reference), "one larger goes as a reference");
    sink.deliver(&bench.destination, &events).await?;
    bench.check(&sink, &events, 0).await?;
    Ok(Verdict::Held)
}

pub(super) async fn names_its_origin(bench: Bench) -> Result<Verdict> {
    let events = updates(60, 7);
    let mut sink = Sink::new(Ordering::Entity);
    sink.generation = 3;
    sink.deliver(&bench.destination, &events).await?;
    let messages = bench.destination.read_headers().await?;
    if messages.is_empty() {
        return Ok(Verdict::NotApplicable("shows no headers"));
    }
    let mut offsets = BTreeSet::new();
    for headers in &messages {
        // Structured messages carry the same by CloudEvents' rules for names: `bridgelogid`.
        let named =
            |name: &str| headers.get(name).or_else(|| headers.get(&name.replacen("catalog-", "", 1).replace('-', "")));
        let text = |name: &str| named(name).with_context(|| format!("no {name} in {headers:?}"));
        ensure!(*text(BRIDGE_LOG_ID)? == sink.log_id.to_string(), "another log: {headers:?}");
        ensure!(text(BRIDGE_GENERATION)? == "3", "another generation: {headers:?}");
        offsets.insert(text(BRIDGE_OFFSET)?.parse::<u64>()?);
    }
    ensure!(messages.len() == 60 && offsets == (1..=60).collect(), "the offsets are {offsets:?}");
    Ok(Verdict::Held)
}
