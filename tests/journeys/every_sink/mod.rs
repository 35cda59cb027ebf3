//! One daemon with a sink of every kind: all hold the same history, and one that is stuck harms no other (P5, P7).

mod destination;
mod refusals;
#[allow(dead_code, reason = "the connector's own tests use all of it")]
#[path = "../../../connectors/sqs/tests/conformance/stub.rs"]
mod stub;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use catalog_bridge_api::Offset;
use catalog_bridge_history::{DeliveryRules, check_delivery};
use destination::Destination;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::Value;
use tokio::task::JoinHandle;

use crate::support::{Daemon, Place, remove, rounds, seed, upsert};

/// How many changes one at a time make a span, and how far they are apart.
const SPAN: usize = 50;
const PACE: Duration = Duration::from_millis(10);
const ENTITIES: u64 = 60;

/// When each offset was handed in.
type Written = Vec<(u64, Instant)>;

/// Each destination is the stuck one in its turn, between spans in which none is. What the others and a reader wait for a
/// change is compared between the two within one run.
#[tokio::test(flavor = "multi_thread")]
async fn every_destination_holds_the_same_and_a_stuck_one_harms_no_other() -> Result<()> {
    let mut random = StdRng::seed_from_u64(seed());
    let (queue, subjects, fifo) = tokio::try_join!(destination::rabbitmq(), destination::nats(), destination::sqs())?;
    let destinations = [queue, subjects, fifo, destination::webhook()?];
    let place = Place::new()?;
    let sinks: String = destinations
        .iter()
        .map(|destination| format!("  {}: {{ {}, start: earliest }}\n", destination.sink, destination.section))
        .collect();
    let config = format!(
        "log: sqlite://{}/log.db\nsources: {{ push: {{ ingest: {{}} }} }}\nsinks:\n{sinks}",
        place.path().display()
    );
    let daemon = place.start(&config).await?;
    let reader = Reader::start(&daemon);
    for _ in 0..20 {
        let changes: Vec<Value> = (0..100).map(|_| change(&mut random)).collect();
        daemon.ingest("push", &changes).await?;
    }
    all_reach_head(&daemon, &destinations, None).await?;
    judge(&daemon, &destinations, 1).await?;

    let (mut calm, mut stuck): (Written, BTreeMap<&str, Written>) = Default::default();
    let turns = rounds(2, 10);
    for _ in 0..turns {
        for victim in &destinations {
            calm.extend(write(&daemon, &mut random).await?);
            all_reach_head(&daemon, &destinations, None).await?;
            victim.proxy.freeze()?;
            stuck.entry(victim.sink).or_default().extend(write(&daemon, &mut random).await?);
            all_reach_head(&daemon, &destinations, Some(victim.sink)).await?;
            let row = daemon.sink(victim.sink).await?;
            ensure!(row["lagEvents"].as_u64().context("a lag")? > 0, "the stuck sink is behind, and says so: {row}");
            victim.proxy.thaw()?;
            all_reach_head(&daemon, &destinations, None).await?;
        }
    }

    let head = daemon.head().await?.get();
    daemon.wait_until("the reader is at head", async || Ok(reader.times().contains_key(&head))).await?;
    let seen = destinations.iter().map(|destination| (destination.sink, destination.times()));
    for (who, times) in seen.chain([("reader", reader.times())]) {
        let beside_stuck = stuck.iter().filter(|(victim, _)| **victim != who).flat_map(|(_, written)| written);
        compare(who, &Waits::of(&times, calm.iter())?, &Waits::of(&times, beside_stuck)?)?;
    }
    judge(&daemon, &destinations, 2 * turns + 1).await?;
    ensure!(daemon.stop().await? == 0, "it stops in good order");
    Ok(())
}

fn change(random: &mut StdRng) -> Value {
    let name = format!("e{}", random.random_range(0..ENTITIES));
    if random.random_bool(0.15) { remove(&name) } else { upsert(&name, random.random()) }
}

/// Writes a span, change by change. What changes nothing is no event.
async fn write(daemon: &Daemon, random: &mut StdRng) -> Result<Written> {
    let mut written = Written::new();
    let mut last = daemon.head().await?.get();
    while written.len() < SPAN {
        let begun = Instant::now();
        let reply = daemon.ingest("push", &[change(random)]).await?;
        let offset = reply["lastEventOffset"].as_u64().context("an offset")?;
        if offset > last {
            written.push((offset, begun));
            last = offset;
        }
        tokio::time::sleep(PACE).await;
    }
    Ok(written)
}

/// Everything has arrived everywhere, but where it is stuck.
async fn all_reach_head(daemon: &Daemon, destinations: &[Destination], victim: Option<&str>) -> Result<()> {
    let head = daemon.head().await?.get();
    for destination in destinations.iter().filter(|destination| Some(destination.sink) != victim) {
        let what = format!("{} holds offset {head} while {victim:?} is stuck", destination.sink);
        daemon.wait_until(&what, async || Ok(destination.times().len() as u64 == head)).await?;
    }
    Ok(())
}

/// The log's events, in their order, the same everywhere.
async fn judge(daemon: &Daemon, destinations: &[Destination], sessions_max: usize) -> Result<()> {
    let events = daemon.events(Offset::ZERO).await?;
    let expected: Vec<_> = events.iter().map(|event| (event.offset, event.entity_ref.to_string())).collect();
    let mut same: Option<BTreeMap<_, _>> = None;
    for destination in destinations {
        let arrived = destination.arrived();
        let rules =
            DeliveryRules { lane: destination.lane, repeated_per_session_max: destination.window, sessions_max };
        check_delivery(&expected, &arrived, rules).context(destination.sink)?;
        let holds: BTreeMap<_, _> = arrived.into_iter().map(|message| (message.offset, message.bytes)).collect();
        for (event, bytes) in events.iter().zip(holds.values()) {
            let text = std::str::from_utf8(bytes)?;
            let (kind, data) = text.split_once(' ').context("type and data")?;
            let data: Value = serde_json::from_str(data)?;
            ensure!(kind.ends_with(&format!(".{}.v1", event.event_type.as_str())), "{}: {text}", destination.sink);
            let entity =
                event.entity.as_ref().map(|entity| serde_json::from_str::<Value>(entity.as_str())).transpose()?;
            ensure!(data.get("entity") == entity.as_ref(), "{}: offset {}: {text}", destination.sink, event.offset);
        }
        match &same {
            None => same = Some(holds),
            Some(first) => ensure!(*first == holds, "{} holds something else", destination.sink),
        }
    }
    Ok(())
}

/// Milliseconds from handing a change in to its arrival.
struct Waits {
    median: f64,
    p99: f64,
    count: usize,
}

impl Waits {
    fn of<'a>(times: &BTreeMap<u64, Instant>, written: impl Iterator<Item = &'a (u64, Instant)>) -> Result<Self> {
        let mut waits = Vec::new();
        for (offset, begun) in written {
            let at = times.get(offset).with_context(|| format!("offset {offset}"))?;
            waits.push(at.saturating_duration_since(*begun).as_secs_f64() * 1000.0);
        }
        waits.sort_by(f64::total_cmp);
        let at =
            |share: f64| waits.get((waits.len() as f64 * share) as usize).copied().context("something was written");
        Ok(Waits { median: at(0.5)?, p99: at(0.99)?, count: waits.len() })
    }
}

/// Bounds are wide, as the machine may be slow; what waited for the stuck one would wait for as long as that is stuck.
fn compare(who: &str, calm: &Waits, stuck: &Waits) -> Result<()> {
    println!(
        "{who:9} alone: p50 {:6.1} ms, p99 {:6.1} ms ({}); beside a stuck sink: p50 {:6.1} ms, p99 {:6.1} ms ({}); ratios {:.2}, {:.2}",
        calm.median,
        calm.p99,
        calm.count,
        stuck.median,
        stuck.p99,
        stuck.count,
        stuck.median / calm.median,
        stuck.p99 / calm.p99,
    );
    ensure!(stuck.median <= 4.0 * calm.median, "{who}: the median grows beside a stuck sink");
    ensure!(stuck.p99 <= 20.0 * calm.p99.max(5.0 * calm.median), "{who}: the tail grows beside a stuck sink");
    Ok(())
}

/// Follows the log by long poll.
struct Reader {
    times: Arc<Mutex<BTreeMap<u64, Instant>>>,
    following: JoinHandle<Result<()>>,
}

impl Reader {
    fn start(daemon: &Daemon) -> Self {
        let times = Arc::new(Mutex::new(BTreeMap::new()));
        let noted = Arc::clone(&times);
        let (client, base) = (daemon.client().clone(), format!("{}/api/catalog/events", daemon.http));
        let following = tokio::spawn(async move {
            let mut at = 0;
            loop {
                let url = format!("{base}?offset={at}&wait=30&limit=500");
                let page: Value = client.get(url).send().await?.error_for_status()?.json().await?;
                let arrived = Instant::now();
                let mut noted = noted.lock().unwrap_or_else(PoisonError::into_inner);
                for event in page["events"].as_array().into_iter().flatten() {
                    noted.insert(event["offset"].as_u64().context("an offset")?, arrived);
                }
                at = page["lastEventOffset"].as_u64().context("lastEventOffset")?;
            }
        });
        Reader { times, following }
    }

    fn times(&self) -> BTreeMap<u64, Instant> {
        self.times.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.following.abort();
    }
}
