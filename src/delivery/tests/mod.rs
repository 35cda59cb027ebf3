//! The driver against a real store (SQLite) and a scripted destination in memory.

mod broker;

use std::sync::Arc;
use std::time::Duration;

use catalog_bridge_api::{Cause, EntityRef, Event, JsonText, Offset, SinkName};
use catalog_bridge_history::{DeliveryRules, Lane, check_delivery};
use tokio::task::JoinHandle;

use self::broker::{Behaviour, Broker, Fault};
use super::*;
use crate::filter::{Filter, View};
use crate::store::{
    Append, Change, Checkpoint, ConsumerKind, OnOwned, ReadLimits, Removal, SinkCommand, Store, Upsert,
};
use crate::telemetry::ConsumerState;

const LIMITS: ReadLimits = ReadLimits { events_max: 5_000, bytes_max: 16 * 1024 * 1024 };

/// A log with its sinks' surroundings.
struct Bench {
    _directory: tempfile::TempDir,
    store: Arc<dyn Store>,
    tail: Tail,
    board: StatusBoard,
    nudge: Nudge,
}

/// A running `delivery::run`.
struct Delivery {
    shutdown: CancellationToken,
    task: JoinHandle<()>,
}

impl Delivery {
    async fn stop(self) {
        self.shutdown.cancel();
        tokio::time::timeout(Duration::from_secs(30), self.task).await.expect("drained in time").expect("no panic");
    }

    /// As a kill does: nothing is saved, nothing is given up.
    async fn kill(self) {
        self.task.abort();
        let _ = self.task.await;
    }
}

impl Bench {
    async fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let settings = crate::store::Settings::sqlite(directory.path().join("log.db"));
        let store = crate::store::open(&settings, crate::store::Metrics::default()).await.expect("a store");
        let tail = Tail::new(store.clone(), 1024 * 1024);
        Bench { _directory: directory, store, tail, board: StatusBoard::default(), nudge: Nudge::new() }
    }

    fn start(&self, sinks: Vec<Sink>) -> Delivery {
        self.start_as("here", sinks)
    }

    fn start_as(&self, owner: &str, sinks: Vec<Sink>) -> Delivery {
        let shutdown = CancellationToken::new();
        let settings =
            Settings { lease: Duration::from_secs(3), drain: Duration::from_secs(5), ..Settings::new(owner) };
        let running = run(
            sinks,
            self.tail.clone(),
            self.board.clone(),
            Metrics::new(),
            self.nudge.clone(),
            settings,
            shutdown.clone(),
        );
        Delivery { shutdown, task: tokio::spawn(running) }
    }

    /// Makes or changes entities, one event each.
    async fn upsert(&self, names: impl IntoIterator<Item = impl Into<String>>, owner: &str) {
        let changes = names
            .into_iter()
            .map(|name| {
                let name = name.into();
                let text = format!(
                    "{{\"kind\":\"Component\",\"metadata\":{{\"name\":\"{name}\",\"salt\":{}}},\"spec\":{{\"owner\":\"{owner}\"}}}}",
                    rand::random::<u32>()
                );
                Change::Upsert(Upsert {
                    entity_ref: entity(&name),
                    uid: None,
                    entity: JsonText::parse(text).expect("JSON"),
                    source_version: None,
                    source_position: None,
                    occurred_at: None,
                    cause: Cause::Ingest,
                })
            })
            .collect();
        self.append(changes).await;
    }

    async fn remove(&self, name: &str) {
        let removal = Removal { entity_ref: entity(name), occurred_at: None, cause: Cause::Ingest };
        self.append(vec![Change::Remove(removal)]).await;
    }

    async fn append(&self, changes: Vec<Change>) {
        let append = Append {
            source: "push".parse_name(),
            changes,
            position: None,
            idempotency: None,
            rejected: Vec::new(),
            on_owned: OnOwned::RefuseAll,
        };
        self.store.append(append).await.expect("appended");
    }

    /// What a view shows of the whole log.
    async fn seen_by(&self, view: &View) -> Vec<Event> {
        let (mut after, mut seen) = (Offset::ZERO, Vec::new());
        loop {
            let page = self.store.read(after, LIMITS).await.expect("read");
            let Some(last) = page.entries.last() else { return seen };
            after = last.event.offset;
            seen.extend(page.entries.iter().filter_map(|entry| view.see(entry)));
        }
    }

    async fn row(&self, sink: &str) -> Checkpoint {
        self.store.checkpoint(ConsumerKind::Sink, sink).await.expect("read").expect("a row")
    }

    async fn command(&self, command: SinkCommand) {
        self.store.command("orders", &command).await.expect("commanded");
        self.nudge.ring();
    }

    async fn wait_for_checkpoint(&self, sink: &str, offset: u64) {
        wait_until(&format!("sink {sink} reaches {offset}"), async || {
            let row = self.store.checkpoint(ConsumerKind::Sink, sink).await.expect("read");
            row.is_some_and(|row| row.offset.get() >= offset)
        })
        .await;
    }

    async fn wait_for_state(&self, sink: &str, what: &str, is_it: impl Fn(&ConsumerState) -> bool) {
        wait_until(&format!("sink {sink} is {what}"), async || {
            self.board.get(ConsumerKind::Sink, sink).is_some_and(|status| is_it(&status.state))
        })
        .await;
    }
}

trait ParseName {
    fn parse_name(&self) -> catalog_bridge_api::SourceName;
}

impl ParseName for str {
    fn parse_name(&self) -> catalog_bridge_api::SourceName {
        catalog_bridge_api::SourceName::parse(self).expect("a name")
    }
}

fn entity(name: &str) -> EntityRef {
    EntityRef::from_parts("component", "default", name).expect("a ref")
}

fn sink(broker: &Broker) -> Sink {
    Sink {
        name: SinkName::parse("orders").expect("a name"),
        protocol: "memory",
        connector: Arc::new(broker.clone()),
        view: View::default(),
        omit: Vec::new(),
        start: Start::Earliest,
        encoding: Encoding::Cloudevents,
        ordering: Ordering::Entity,
        on_refused: OnRefused::Block,
        on_oversize: OnOversize::Reference,
        on_expired: OnExpired::Wait,
        public_url: None,
        base_path: "/api/catalog".to_owned(),
    }
}

fn owned_by(team: &str) -> View {
    let filter = Filter::parse(&[format!("spec.owner={team}")]).expect("a filter");
    View { filter: Some(filter), ..View::default() }
}

async fn wait_until(what: &str, condition: impl AsyncFn() -> bool) {
    let begun = std::time::Instant::now();
    while !condition().await {
        assert!(begun.elapsed() < Duration::from_secs(30), "never came: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn numbered(count: usize, keys: usize) -> impl Iterator<Item = String> {
    (0..count).map(move |number| format!("e{}", number % keys))
}

fn expected(events: &[Event]) -> Vec<(Offset, String)> {
    events.iter().map(|event| (event.offset, event.entity_ref.to_string())).collect()
}

/// Promise P5, and the checkpoint also passes what the view left out.
#[tokio::test]
async fn everything_is_delivered_in_order_and_the_checkpoint_reaches_head() {
    let bench = Bench::new().await;
    let broker = Broker::new(|_| Behaviour::Works);
    bench.upsert(numbered(50, 7), "a").await;
    let delivery = bench.start(vec![Sink { view: owned_by("a"), ..sink(&broker) }]);
    bench.upsert(numbered(50, 7), "b").await;

    bench.wait_for_checkpoint("orders", 100).await;
    delivery.stop().await;

    let events = bench.seen_by(&owned_by("a")).await;
    assert_eq!(events.len(), 57, "seven left the filter");
    let rules = DeliveryRules { lane: Lane::Stream, repeated_per_session_max: 0, sessions_max: 0 };
    check_delivery(&expected(&events), &broker.stored().messages, rules).expect("in order, no repetition");
}

/// Promises P5 and P6 (I1, I2, I3, I4 of the invariants): whatever the order of acknowledgements and failures.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_failures_lose_nothing_and_reorder_nothing() {
    for (round, (prefix_safe, ordering)) in
        [(true, Ordering::Stream), (true, Ordering::Entity), (false, Ordering::Entity), (false, Ordering::Stream)]
            .into_iter()
            .cycle()
            .take(if std::env::var("CATALOG_BRIDGE_TEST").is_ok() { 80 } else { 8 })
            .enumerate()
    {
        let seed: u64 = rand::random();
        let place = format!("round {round}, seed {seed}, prefix_safe {prefix_safe}, {ordering:?}");
        let bench = Bench::new().await;
        let mut broker = Broker::new(move |session| match session {
            0..40 => Behaviour::Random { seed: seed ^ session as u64 },
            _ => Behaviour::Works,
        });
        broker.limits.prefix_safe = prefix_safe;
        bench.upsert(numbered(150, 5), "a").await;
        let view = owned_by("a");
        let delivery = bench.start(vec![Sink { view: view.clone(), ordering, ..sink(&broker) }]);
        for step in 0..10 {
            bench.upsert(numbered(15, 5), if step % 2 == 0 { "b" } else { "a" }).await;
            // I1: what a stored checkpoint claims is in the destination already.
            let row = bench.store.checkpoint(ConsumerKind::Sink, "orders").await.expect("read");
            let claimed = row.map_or(Offset::ZERO, |row| row.offset);
            let stored: std::collections::BTreeSet<_> =
                broker.stored().messages.iter().map(|message| message.offset).collect();
            for event in bench.seen_by(&view).await.iter().filter(|event| event.offset <= claimed) {
                assert!(stored.contains(&event.offset), "{place}: {} is below {claimed} and not stored", event.offset);
            }
        }
        bench.wait_for_checkpoint("orders", 300).await;
        delivery.stop().await;

        let events = bench.seen_by(&view).await;
        let sessions = broker.stored().claims.len();
        let lane = if prefix_safe || ordering == Ordering::Stream { Lane::Stream } else { Lane::Entity };
        let rules = DeliveryRules { lane, repeated_per_session_max: 16, sessions_max: sessions };
        check_delivery(&expected(&events), &broker.stored().messages, rules).expect(&place);
        assert_eq!(broker.stored().running_max, 1, "{place}: two sessions at once");
        let checkpoints: Vec<Offset> = broker.stored().claims.iter().map(|claim| claim.checkpoint).collect();
        assert!(checkpoints.is_sorted(), "{place}: a checkpoint went back");
    }
}

/// Promise P6: after a kill at most the window and what was acknowledged since the last checkpoint is repeated.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kills_repeat_only_a_suffix_with_identical_bytes() {
    let bench = Bench::new().await;
    let broker = Broker::new(|_| Behaviour::Works);
    let mut kills = 0;
    for _ in 0..10 {
        bench.upsert(numbered(2_000, 50), "a").await;
        let delivery = bench.start(vec![sink(&broker)]);
        tokio::time::sleep(Duration::from_millis(rand::random_range(1..60))).await;
        delivery.kill().await;
        kills += 1;
    }
    let delivery = bench.start(vec![sink(&broker)]);
    bench.wait_for_checkpoint("orders", 20_000).await;
    delivery.stop().await;

    let events = bench.seen_by(&View::default()).await;
    // A checkpoint is due after 1,000 events or 250 ms; while one is being written as many again may be acknowledged.
    let rules = DeliveryRules { lane: Lane::Stream, repeated_per_session_max: 16 + 2_000, sessions_max: kills };
    check_delivery(&expected(&events), &broker.stored().messages, rules).expect("a suffix at most");
}

/// Promise P8: a refused event blocks, what comes before it is delivered, and the command that helps helps.
#[tokio::test]
async fn a_refused_event_blocks_until_it_is_skipped() {
    let bench = Bench::new().await;
    let broker = Broker::new(|_| Behaviour::Works);
    broker.refused.lock().expect("unpoisoned").insert(7);
    bench.upsert(numbered(10, 10), "a").await;
    let delivery = bench.start(vec![sink(&broker)]);

    bench.wait_for_state("orders", "blocked", |state| matches!(state, ConsumerState::Blocked { .. })).await;
    bench.wait_for_checkpoint("orders", 6).await;
    let status = bench.board.get(ConsumerKind::Sink, "orders").expect("shown");
    assert!(matches!(&status.state, ConsumerState::Blocked { offset, .. } if offset.get() == 7));
    assert_eq!(status.help[0], "catalog-bridge sinks skip orders 7");
    assert_eq!(broker.offsets(), [1, 2, 3, 4, 5, 6]);

    bench.command(SinkCommand::Skip(7.into())).await;
    bench.wait_for_checkpoint("orders", 10).await;
    delivery.stop().await;

    assert_eq!(broker.offsets(), [1, 2, 3, 4, 5, 6, 8, 9, 10]);
    let skipped = bench.store.skipped("orders", Offset::ZERO, 10).await.expect("read");
    assert_eq!(skipped.iter().map(|skip| skip.offset.get()).collect::<Vec<_>>(), [7]);
}

/// Promise P8: the record is there before the checkpoint passes.
#[tokio::test]
async fn refused_events_are_skipped_with_a_record() {
    let bench = Bench::new().await;
    let broker = Broker::new(|_| Behaviour::Works);
    broker.refused.lock().expect("unpoisoned").extend([2, 3, 9]);
    bench.upsert(numbered(10, 10), "a").await;
    let delivery = bench.start(vec![Sink { on_refused: OnRefused::Skip, ..sink(&broker) }]);

    bench.wait_for_checkpoint("orders", 10).await;
    delivery.stop().await;

    let skipped = bench.store.skipped("orders", Offset::ZERO, 10).await.expect("read");
    assert_eq!(skipped.iter().map(|skip| skip.offset.get()).collect::<Vec<_>>(), [2, 3, 9]);
    assert_eq!(skipped[0].entity_ref, Some(entity("e1")));
    let delivered: std::collections::BTreeSet<_> = broker.offsets().into_iter().collect();
    assert_eq!(delivered.into_iter().collect::<Vec<_>>(), [1, 4, 5, 6, 7, 8, 10]);
}

/// What a failed session sent may land for an hour here: only one that says it cannot is followed by the next at once.
#[tokio::test]
async fn the_session_after_a_skipped_event_waits_for_what_may_still_land_and_for_nothing_else() {
    let (settling, silent) = (|_| Behaviour::Settles, |_| Behaviour::Works);
    for (mut broker, is_at_once) in [(Broker::new(settling), true), (Broker::new(silent), false)] {
        let bench = Bench::new().await;
        broker.limits.flight = Duration::from_secs(60 * 60);
        broker.refused.lock().expect("unpoisoned").extend([2, 3, 9]);
        bench.upsert(numbered(10, 10), "a").await;
        let delivery = bench.start(vec![Sink { on_refused: OnRefused::Skip, ..sink(&broker) }]);

        if is_at_once {
            bench.wait_for_checkpoint("orders", 10).await;
            assert_eq!(broker.stored().claims.len(), 4, "a session for each skipped event, and the last");
        } else {
            wait_until("the skip is on record", async || {
                !bench.store.skipped("orders", Offset::ZERO, 10).await.expect("read").is_empty()
            })
            .await;
            tokio::time::sleep(Duration::from_millis(500)).await;
            assert_eq!(broker.stored().claims.len(), 1);
        }
        delivery.stop().await;
    }
}

#[tokio::test]
async fn an_oversize_event_goes_as_a_reference_or_is_refused() {
    let bench = Bench::new().await;
    let mut broker = Broker::new(|_| Behaviour::Works);
    broker.limits.message_bytes_max = Some(2_000);
    bench.upsert(["a"], "a").await;
    bench.upsert(["b"], &"x".repeat(4_000)).await;
    bench.upsert(["c"], "a").await;
    let delivery = bench.start(vec![sink(&broker)]);
    bench.wait_for_checkpoint("orders", 3).await;
    delivery.stop().await;
    let body = String::from_utf8(broker.stored().messages[1].bytes.clone()).expect("text");
    assert!(body.contains("\"isReference\":true") && body.contains("/api/catalog/events/2?logId="), "{body}");

    let mut refusing = Broker::new(|_| Behaviour::Works);
    refusing.limits.message_bytes_max = Some(2_000);
    let name = SinkName::parse("strict").expect("a name");
    let delivery = bench.start(vec![Sink { name, on_oversize: OnOversize::Refuse, ..sink(&refusing) }]);
    bench.wait_for_state("strict", "blocked", |state| matches!(state, ConsumerState::Blocked { .. })).await;
    bench.wait_for_checkpoint("strict", 1).await;
    delivery.stop().await;
    assert_eq!(refusing.offsets(), [1]);
}

/// Promise P7.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sinks_trouble_stays_its_own() {
    let bench = Bench::new().await;
    let good = Broker::new(|_| Behaviour::Works);
    let named = |name: &str, broker: &Broker| Sink { name: SinkName::parse(name).expect("a name"), ..sink(broker) };
    let panicking = Broker::new(|session| if session < 3 { Behaviour::Panics } else { Behaviour::Works });
    let hanging = Broker::new(|_| Behaviour::Hangs);
    let misconfigured = Broker::new(|_| Behaviour::Unopened(Fault::Misconfigured));
    let flapping = Broker::new(|session| match session {
        0..4 => Behaviour::Unopened(Fault::Transient),
        4 => Behaviour::FailsAfter { stored: 5, acknowledged: 3, fault: Fault::Transient },
        _ => Behaviour::Works,
    });
    bench.upsert(numbered(100, 10), "a").await;

    let delivery = bench.start(vec![
        named("good", &good),
        named("panicking", &panicking),
        named("hanging", &hanging),
        named("misconfigured", &misconfigured),
        named("flapping", &flapping),
    ]);
    bench.wait_for_checkpoint("good", 100).await;
    bench.wait_for_checkpoint("panicking", 100).await;
    bench.wait_for_checkpoint("flapping", 100).await;
    bench
        .wait_for_state(
            "misconfigured",
            "misconfigured",
            |state| matches!(state, ConsumerState::Misconfigured { reason } if reason.contains("no such topic")),
        )
        .await;
    assert_eq!(bench.row("hanging").await.offset, Offset::ZERO);
    // The hanging session is dropped after the drain time.
    delivery.stop().await;
    assert_eq!(hanging.stored().running, 0);
}

#[tokio::test]
async fn operators_commands_are_obeyed() {
    let bench = Bench::new().await;
    let broker = Broker::new(|_| Behaviour::Works);
    bench.upsert(numbered(10, 10), "a").await;
    let delivery = bench.start(vec![sink(&broker)]);
    bench.wait_for_checkpoint("orders", 10).await;

    bench.command(SinkCommand::Pause).await;
    bench.wait_for_state("orders", "paused", |state| *state == ConsumerState::Paused).await;
    bench.upsert(numbered(5, 10), "b").await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(broker.offsets().len(), 10, "paused");

    bench.command(SinkCommand::Resume).await;
    bench.wait_for_checkpoint("orders", 15).await;
    bench.wait_for_state("orders", "running", |state| *state == ConsumerState::Running).await;

    bench.command(SinkCommand::RewindTo(12.into())).await;
    wait_until("three are repeated", async || broker.stored().messages.len() == 18).await;
    assert_eq!(broker.offsets()[15..], [13, 14, 15]);
    let generations: Vec<u64> = broker.stored().messages.iter().map(|message| message.generation).collect();
    assert_eq!((generations[14], generations[15]), (1, 2), "a replay has ids of its own");

    bench.wait_for_checkpoint("orders", 15).await;
    delivery.stop().await;
}

/// Promise P7: what only a message brings to light is not called well because a session could be opened.
#[tokio::test]
async fn a_misconfigured_sink_stays_so_until_something_went_through() {
    let bench = Bench::new().await;
    let broker = Broker::new(|session| match session {
        0 => Behaviour::FailsAfter { stored: 0, acknowledged: 0, fault: Fault::Misconfigured },
        1 => Behaviour::Hangs,
        _ => Behaviour::Works,
    });
    bench.upsert(numbered(5, 5), "a").await;
    let delivery = bench.start(vec![sink(&broker)]);
    let is_misconfigured = |state: &ConsumerState| matches!(state, ConsumerState::Misconfigured { .. });
    bench.wait_for_state("orders", "misconfigured", is_misconfigured).await;

    bench.command(SinkCommand::Resume).await;
    wait_until("the next session runs", async || broker.stored().running == 1 && broker.stored().claims.len() == 2)
        .await;
    bench.upsert(numbered(5, 5), "b").await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    bench.wait_for_state("orders", "still misconfigured", is_misconfigured).await;

    bench.command(SinkCommand::Resume).await;
    bench.wait_for_checkpoint("orders", 10).await;
    bench.wait_for_state("orders", "running", |state| *state == ConsumerState::Running).await;
    delivery.stop().await;
}

#[tokio::test]
async fn a_diverged_destination_waits_for_an_operator() {
    let bench = Bench::new().await;
    let broker = Broker::new(|session| match session {
        0 => Behaviour::FailsAfter { stored: 2, acknowledged: 2, fault: Fault::Diverged },
        _ => Behaviour::Works,
    });
    bench.upsert(numbered(5, 5), "a").await;
    let delivery = bench.start(vec![sink(&broker)]);

    bench.wait_for_state("orders", "diverged", |state| matches!(state, ConsumerState::Diverged { .. })).await;
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    assert_eq!(broker.stored().claims.len(), 1, "renewals change nothing");

    bench.command(SinkCommand::Resume).await;
    bench.wait_for_checkpoint("orders", 5).await;
    delivery.stop().await;
    assert_eq!(broker.offsets(), [1, 2, 3, 4, 5]);
}

/// Promise P8: what a destination lost is delivered again by itself, under the ids that consumers may have seen, and told.
#[tokio::test]
async fn a_lost_tail_is_delivered_again_from_what_is_left() {
    let bench = Bench::new().await;
    let broker = Broker::new(|session| match session {
        1 => Behaviour::Unopened(Fault::TailLost(6)),
        _ => Behaviour::Works,
    });
    bench.upsert(numbered(10, 10), "a").await;
    let delivery = bench.start(vec![sink(&broker)]);
    bench.wait_for_checkpoint("orders", 10).await;
    delivery.stop().await;
    broker.stored().messages.truncate(6);

    let delivery = bench.start(vec![sink(&broker)]);
    wait_until("the checkpoint went back and came again", async || broker.offsets().len() == 10).await;
    bench.wait_for_checkpoint("orders", 10).await;
    let status = bench.board.get(ConsumerKind::Sink, "orders").expect("shown");
    delivery.stop().await;

    assert_eq!(broker.offsets(), (1..=10).collect::<Vec<_>>());
    assert!(broker.stored().messages.iter().all(|message| message.generation == 1), "the ids are the same");
    assert_eq!((&status.detail["tailLost"]["checkpoint"], &status.detail["tailLost"]["kept"]), (&10.into(), &6.into()));
    let checkpoints: Vec<u64> = broker.stored().claims.iter().map(|claim| claim.checkpoint.get()).collect();
    assert_eq!(checkpoints, [0, 10, 6]);
}

/// DESIGN section 4: retention took what would have to be delivered again, so only a walk can.
#[tokio::test]
async fn a_tail_lost_below_oldest_waits_for_a_snapshot() {
    let bench = Bench::new().await;
    let broker = Broker::new(|session| match session {
        1 => Behaviour::Unopened(Fault::TailLost(2)),
        _ => Behaviour::Works,
    });
    bench.upsert(numbered(10, 2), "a").await;
    bench.remove("e1").await;
    let delivery = bench.start(vec![sink(&broker)]);
    bench.wait_for_checkpoint("orders", 11).await;
    delivery.stop().await;
    broker.stored().messages.truncate(2);
    let policy = crate::store::RetentionPolicy {
        age: Duration::ZERO,
        bytes: u64::MAX,
        events: None,
        removals: Duration::from_secs(3_600),
    };
    let kept = bench.store.retain(&policy).await.expect("retained");
    assert!(kept.oldest > 2.into(), "{kept:?}");

    let delivery = bench.start(vec![sink(&broker)]);
    bench.wait_for_state("orders", "expired", |state| *state == ConsumerState::Expired).await;
    let help = bench.board.get(ConsumerKind::Sink, "orders").expect("shown").help;
    assert_eq!(help, ["catalog-bridge sinks rewind orders --to snapshot"]);
    assert_eq!(broker.offsets(), [1, 2], "nothing is sent over a hole");
    bench.command(SinkCommand::RewindToSnapshot).await;
    bench.wait_for_checkpoint("orders", 11).await;
    delivery.stop().await;

    // The last of `e0`, and the removal that was lost.
    assert_eq!(broker.offsets()[2..], [9, 11]);
}

/// DESIGN section 4, restores: a destination that is ahead of the log proves that the log was restored.
#[tokio::test]
async fn a_destination_ahead_of_the_log_gives_the_log_a_new_id() {
    let bench = Bench::new().await;
    let broker = Broker::new(|session| match session {
        0 => Behaviour::Unopened(Fault::AheadOfLog(99)),
        _ => Behaviour::Works,
    });
    bench.upsert(numbered(5, 5), "a").await;
    let before = bench.store.state().await.expect("state").log_id;
    let delivery = bench.start(vec![sink(&broker)]);

    bench.wait_for_checkpoint("orders", 5).await;
    delivery.stop().await;

    assert_ne!(bench.store.state().await.expect("state").log_id, before);
    let claims = &broker.stored().claims;
    let last = claims.last().expect("a claim");
    assert_eq!((claims[0].log_id, claims[0].generation), (before, 1));
    assert_ne!(last.log_id, before);
    assert_eq!(last.generation, 2);
}

/// Promise P4 for sinks: a walk and what follows it give the live state, also when the first half dies.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_then_the_log_give_the_live_state() {
    let bench = Bench::new().await;
    bench.upsert(numbered(3_000, 2_500), "a").await;
    for name in ["e1", "e2", "e3"] {
        bench.remove(name).await;
    }
    let broker = Broker::new(|session| match session {
        0 => Behaviour::FailsAfter { stored: 1_300, acknowledged: 1_290, fault: Fault::Transient },
        _ => Behaviour::Works,
    });
    let walking = Sink { start: Start::Snapshot, ..sink(&broker) };
    let delivery = bench.start(vec![walking.clone()]);
    bench.upsert(numbered(20, 10), "b").await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    delivery.kill().await;
    let delivery = bench.start(vec![walking]);
    let head = bench.store.state().await.expect("state").head;
    bench.wait_for_checkpoint("orders", head.get()).await;
    delivery.stop().await;

    let mut live = std::collections::BTreeMap::new();
    let mut last = std::collections::BTreeMap::new();
    for event in bench.seen_by(&View::default()).await {
        last.insert(event.entity_ref.to_string(), event.offset);
        match event.entity {
            Some(_) => live.insert(event.entity_ref.to_string(), event.offset),
            None => live.remove(&event.entity_ref.to_string()),
        };
    }
    let mut delivered = std::collections::BTreeMap::new();
    for message in &broker.stored().messages {
        delivered.insert(message.key.clone(), message.offset);
    }
    for key in ["e1", "e2", "e3"].map(|name| entity(name).to_string()) {
        if !live.contains_key(&key) {
            delivered.remove(&key);
        }
    }
    assert_eq!(delivered, live);
    assert_eq!(bench.row("orders").await.walk, None);
}

/// DESIGN section 4: a sink that retention passed starts again by a walk and ends with the live state, ghosts none.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_expired_sink_starts_again_by_a_walk() {
    let bench = Bench::new().await;
    let broker = Broker::new(|session| match session {
        0 => Behaviour::FailsAfter { stored: 40, acknowledged: 40, fault: Fault::Diverged },
        _ => Behaviour::Works,
    });
    let filtered = Sink { view: owned_by("a"), ..sink(&broker) };
    bench.upsert(numbered(60, 60), "a").await;
    let delivery = bench.start(vec![filtered.clone()]);
    bench.wait_for_checkpoint("orders", 40).await;
    bench.wait_for_state("orders", "diverged", |state| matches!(state, ConsumerState::Diverged { .. })).await;
    delivery.stop().await;
    bench.upsert(["e1", "e2"], "b").await;
    bench.remove("e3").await;
    bench.upsert(numbered(200, 20).map(|name| format!("more-{name}")), "a").await;
    let policy = crate::store::RetentionPolicy {
        age: Duration::ZERO,
        bytes: 1,
        events: Some(1),
        removals: Duration::from_secs(3_600),
    };
    let report = bench.store.retain(&policy).await.expect("retained");
    assert_eq!(report.expired_sinks, ["orders"]);

    let delivery = bench.start(vec![filtered.clone()]);
    bench.wait_for_state("orders", "expired", |state| *state == ConsumerState::Expired).await;
    delivery.stop().await;
    let delivery = bench.start(vec![Sink { on_expired: OnExpired::Snapshot, ..filtered }]);
    let head = bench.store.state().await.expect("state").head;
    bench.wait_for_checkpoint("orders", head.get()).await;
    delivery.stop().await;

    let mut folded = std::collections::BTreeSet::new();
    for message in &broker.stored().messages {
        if String::from_utf8_lossy(&message.bytes).contains(".removed.v1") {
            folded.remove(&message.key);
        } else {
            folded.insert(message.key.clone());
        }
    }
    let live: std::collections::BTreeSet<String> = (0..60)
        .filter(|number| ![1, 2, 3].contains(number))
        .map(|number| entity(&format!("e{number}")).to_string())
        .chain((0..20).map(|number| entity(&format!("more-e{number}")).to_string()))
        .collect();
    assert_eq!(folded, live);
}

/// Promise P9: a clean stop hands over at once, a dead owner after its lease.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_replica_takes_over() {
    let bench = Bench::new().await;
    let broker = Broker::new(|_| Behaviour::Works);
    bench.upsert(numbered(10, 10), "a").await;
    let first = bench.start_as("first", vec![sink(&broker)]);
    bench.wait_for_checkpoint("orders", 10).await;
    let second = bench.start_as("second", vec![sink(&broker)]);
    tokio::time::sleep(Duration::from_millis(600)).await;
    assert_eq!(bench.row("orders").await.owner.as_deref(), Some("first"));

    first.stop().await;
    bench.upsert(numbered(10, 10), "b").await;
    bench.wait_for_checkpoint("orders", 20).await;
    assert_eq!(bench.row("orders").await.owner.as_deref(), Some("second"));

    second.kill().await;
    let third = bench.start_as("third", vec![sink(&broker)]);
    bench.upsert(numbered(10, 10), "c").await;
    bench.wait_for_checkpoint("orders", 30).await;
    third.stop().await;
    let epochs: Vec<u64> = broker.stored().claims.iter().map(|claim| claim.epoch).collect();
    assert!(epochs.is_sorted() && epochs.first() < epochs.last());
    assert_eq!(broker.offsets(), (1..=30).collect::<Vec<_>>());
}

/// A fenced session gives the lease up and comes back later.
#[tokio::test]
async fn a_fenced_sink_gives_its_lease_up() {
    let bench = Bench::new().await;
    let broker = Broker::new(|session| match session {
        0 => Behaviour::FailsAfter { stored: 1, acknowledged: 1, fault: Fault::Fenced },
        _ => Behaviour::Works,
    });
    bench.upsert(numbered(3, 3), "a").await;
    let delivery = bench.start(vec![sink(&broker)]);

    bench.wait_for_checkpoint("orders", 3).await;
    delivery.stop().await;

    let claims: Vec<u64> = broker.stored().claims.iter().map(|claim| claim.epoch).collect();
    assert_eq!(claims, [1, 2]);
    assert_eq!(broker.offsets(), [1, 2, 3]);
}
