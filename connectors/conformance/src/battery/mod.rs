//! The checks. Each works on a destination of its own and claims one thing.

mod endings;
mod faults;
mod order;
mod tail;

use std::collections::BTreeSet;
use std::sync::Arc;

use anyhow::Result;
use catalog_bridge_api::{Connector, Event, Offset, Ordering};
use catalog_bridge_history::{Delivered, DeliveryRules, Lane, check_delivery};

use crate::driver::{Sink, of_generation};
use crate::{Destination, Harm, Patient, Report, Verdict};

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
                let started = std::time::Instant::now();
                let verdict = match bench(patient).await {
                    Ok(bench) => $check(bench).await,
                    Err(error) => Err(error.context("no fresh destination")),
                };
                let verdict = verdict.unwrap_or_else(|error| Verdict::Broken(format!("{error:#}")));
                // Seen when the test runs with --nocapture, or failed.
                println!("{:5.1} s  {}", started.elapsed().as_secs_f64(), $name);
                report.verdicts.push(($name, verdict));
            }
        };
    }
    check!("check writes nothing", order::check_writes_nothing);
    check!("everything arrives in order", |bench| order::order(bench, Ordering::Entity));
    check!("a stream arrives in order", |bench| order::order(bench, Ordering::Stream));
    check!("what is acknowledged is stored", endings::acknowledged_is_stored);
    check!("a dropped session writes nothing more", endings::dropped_is_silent);
    check!("a lost checkpoint repeats at most what it must", tail::lost_checkpoint);
    check!("a new generation is delivered again", tail::replay);
    check!("another log's messages are no tail of ours", tail::foreign_tail);
    check!("another generation's messages are no tail of ours", tail::foreign_generation);
    check!("a tail above head is told", tail::ahead_of_log);
    check!("a hot entity stays in order", order::hot_entity);
    check!("ten thousand entities arrive", order::many_entities);
    check!("hostile names arrive", order::hostile);
    check!("the smallest and the largest arrive", order::sizes);
    check!("every message names its log, generation and offset", order::names_its_origin);
    check!("a refused event is named and not stored", faults::refused);
    check!("refused events are skipped and cost no other", faults::refused_and_skipped);
    check!("the feed's end flushes what is in flight", endings::feed_end);
    check!("nothing is sent without the lease", endings::no_lease);
    check!("nothing is sent after the lease ended in mid-window", endings::lost_lease);
    check!("a slow destination only takes time", faults::slowed);
    check!("a nack loses and reorders nothing", |bench| faults::harmed(bench, Harm::Nack));
    check!("a cut connection loses and reorders nothing", |bench| faults::harmed(bench, Harm::Cut));
    check!("lost answers lose and reorder nothing", |bench| faults::harmed(bench, Harm::LoseAnswers));
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
