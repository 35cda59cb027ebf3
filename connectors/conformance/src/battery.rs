//! The checks. Each works on a destination of its own and claims one thing.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use catalog_bridge_api::{Connector, ConnectorError, Event, Lease, Offset, Ordering};
use catalog_bridge_history::{Delivered, DeliveryRules, Lane, check_delivery};
use rand::Rng;

use crate::driver::{Ending, Sink, of_generation};
use crate::events::{event, hostile_names, removal, updates};
use crate::{Destination, Harm, Patient, Report, Verdict};

/// The largest message where the connector names no limit.
const LARGE_BYTES: usize = 5 * 1024 * 1024;

/// What one check works with.
struct Bench {
    destination: Arc<dyn Destination>,
    exactly_once: bool,
    stream: bool,
}

pub(crate) async fn run(patient: &dyn Patient, is_wanted: impl Fn(&str) -> bool) -> Report {
    let mut report = Report::default();
    macro_rules! check {
        ($name:literal, $check:expr) => {
            if is_wanted($name) {
                let verdict = match bench(patient).await {
                    Ok(bench) => $check(bench).await,
                    Err(error) => Err(error.context("no fresh destination")),
                };
                let verdict = verdict.unwrap_or_else(|error| Verdict::Broken(format!("{error:#}")));
                report.verdicts.push(($name, verdict));
            }
        };
    }
    check!("check writes nothing", check_writes_nothing);
    check!("everything arrives in order", |bench| order(bench, Ordering::Entity));
    check!("a stream arrives in order", |bench| order(bench, Ordering::Stream));
    check!("what is acknowledged is stored", acknowledged_is_stored);
    check!("a dropped session writes nothing more", dropped_is_silent);
    check!("a lost checkpoint repeats at most what it must", lost_checkpoint);
    check!("a new generation is delivered again", replay);
    check!("another log's messages are no tail of ours", foreign_tail);
    check!("another generation's messages are no tail of ours", foreign_generation);
    check!("a tail above head is told", ahead_of_log);
    check!("a hot entity stays in order", hot_entity);
    check!("ten thousand entities arrive", many_entities);
    check!("hostile names arrive", hostile);
    check!("the smallest and the largest arrive", sizes);
    check!("a refused event is named and not stored", refused);
    check!("the feed's end flushes what is in flight", feed_end);
    check!("nothing is sent without the lease", no_lease);
    check!("a nack loses and reorders nothing", |bench| harmed(bench, Harm::Nack));
    check!("a cut connection loses and reorders nothing", |bench| harmed(bench, Harm::Cut));
    check!("lost answers lose and reorder nothing", |bench| harmed(bench, Harm::LoseAnswers));
    report
}

async fn bench(patient: &dyn Patient) -> Result<Bench> {
    let promises = patient.promises();
    let destination = patient.fresh().await?;
    Ok(Bench { destination, exactly_once: promises.exactly_once, stream: promises.stream })
}

impl Bench {
    fn connector(&self) -> Result<Box<dyn Connector>> {
        self.destination.connector(Ordering::Entity)
    }

    fn window(&self) -> Result<usize> {
        Ok(self.connector()?.limits().window_events)
    }

    /// Judges all that is there against the events.
    async fn check(&self, sink: &Sink, events: &[Event], repeated_per_session_max: usize) -> Result<()> {
        let delivered = of_generation(&self.destination, sink.generation).await?;
        check_all(sink, events, &delivered, if self.exactly_once { 0 } else { repeated_per_session_max })
    }
}

fn check_all(sink: &Sink, events: &[Event], delivered: &[Delivered], repeated_per_session_max: usize) -> Result<()> {
    let expected: Vec<_> = events.iter().map(|event| (event.offset, event.entity_ref.to_string())).collect();
    let lane = if sink.ordering == Ordering::Stream { Lane::Stream } else { Lane::Entity };
    check_delivery(&expected, delivered, DeliveryRules { lane, repeated_per_session_max, sessions_max: sink.sessions })
}

fn offsets(delivered: &[Delivered]) -> BTreeSet<Offset> {
    delivered.iter().map(|message| message.offset).collect()
}

async fn check_writes_nothing(bench: Bench) -> Result<Verdict> {
    bench.connector()?.check().await.context("check failed on a good destination")?;
    ensure!(bench.destination.read_back().await?.is_empty(), "something was written");
    Ok(Verdict::Held)
}

async fn order(bench: Bench, ordering: Ordering) -> Result<Verdict> {
    if ordering == Ordering::Stream && !bench.stream {
        return Ok(Verdict::NotApplicable("promises no stream order"));
    }
    let events = updates(1_500, 40);
    let mut sink = Sink::new(ordering);
    sink.deliver(&bench.destination, &events).await?;
    bench.check(&sink, &events, 0).await?;
    Ok(Verdict::Held)
}

async fn acknowledged_is_stored(bench: Bench) -> Result<Verdict> {
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

async fn dropped_is_silent(bench: Bench) -> Result<Verdict> {
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

async fn lost_checkpoint(bench: Bench) -> Result<Verdict> {
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

async fn replay(bench: Bench) -> Result<Verdict> {
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

async fn foreign_tail(bench: Bench) -> Result<Verdict> {
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

async fn foreign_generation(bench: Bench) -> Result<Verdict> {
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

async fn ahead_of_log(bench: Bench) -> Result<Verdict> {
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

async fn hot_entity(bench: Bench) -> Result<Verdict> {
    let events = updates(400, 1);
    let mut sink = Sink::new(Ordering::Entity);
    sink.deliver(&bench.destination, &events).await?;
    bench.check(&sink, &events, 0).await?;
    Ok(Verdict::Held)
}

async fn many_entities(bench: Bench) -> Result<Verdict> {
    let events = updates(10_000, 10_000);
    let mut sink = Sink::new(Ordering::Entity);
    sink.deliver(&bench.destination, &events).await?;
    bench.check(&sink, &events, 0).await?;
    Ok(Verdict::Held)
}

async fn hostile(bench: Bench) -> Result<Verdict> {
    let names = hostile_names();
    let events: Vec<Event> =
        (1..).zip(names.iter().chain(&names)).map(|(number, name)| event(number, name, 10)).collect();
    let mut sink = Sink::new(Ordering::Entity);
    sink.deliver(&bench.destination, &events).await?;
    bench.check(&sink, &events, 0).await?;
    Ok(Verdict::Held)
}

async fn sizes(bench: Bench) -> Result<Verdict> {
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

async fn refused(bench: Bench) -> Result<Verdict> {
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

async fn feed_end(bench: Bench) -> Result<Verdict> {
    let events = updates(200, 200);
    let mut sink = Sink::new(Ordering::Entity);
    let connector = bench.connector()?;
    let count = connector.limits().window_events.clamp(1, 37);
    let messages = sink.encode(&*connector, &events);
    let outcome = sink.session(&*connector, &messages, Ending::FeedAfter(count)).await?;
    match outcome.result {
        Some(Ok(())) => {}
        other => bail!("expected a clean end after the feed's: {other:?}"),
    }
    let left: Vec<_> = outcome.offered.difference(&outcome.acknowledged).take(3).collect();
    ensure!(left.is_empty(), "{left:?} were offered and not flushed");
    Ok(Verdict::Held)
}

async fn no_lease(bench: Bench) -> Result<Verdict> {
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

async fn harmed(bench: Bench, harm: Harm) -> Result<Verdict> {
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
