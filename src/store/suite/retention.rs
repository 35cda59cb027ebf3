use std::collections::BTreeSet;
use std::time::Duration;

use super::*;
use crate::store::{
    CheckpointMove, ClaimRequest, Claimed, ConsumerKind, RetentionPolicy, RetentionReport, SinkCommand, Start, Store,
};

on_both_stores! {
    /// P4.
    retention_leaves_every_readable_state_exact,
    /// P7.
    old_events_wait_for_an_enabled_sink,
    /// P7.
    nothing_waits_for_a_sink_that_nobody_runs,
    /// P7.
    a_sink_beyond_the_limit_expires,
    /// P4.
    a_walk_keeps_its_state_also_beyond_the_limit,
    the_limit_counts_only_what_may_go,
    retention_in_many_steps_ends_where_it_should,
}

const YEAR: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// Nothing goes.
fn keep() -> RetentionPolicy {
    RetentionPolicy { age: YEAR, bytes: u64::MAX, events: None, removals: YEAR }
}

/// Everything is past its age.
fn aged() -> RetentionPolicy {
    RetentionPolicy { age: Duration::ZERO, ..keep() }
}

fn at_most(events: u64) -> RetentionPolicy {
    RetentionPolicy { events: Some(events), ..keep() }
}

impl Subject {
    fn positions(&self) -> Arc<dyn Store> {
        match self.raw.clone() {
            Raw::Postgres(store) => Arc::new(store),
            Raw::Sqlite(store) => Arc::new(store),
        }
    }

    async fn retain(&self, policy: &RetentionPolicy) -> RetentionReport {
        self.log.retain(policy).await.expect("retained")
    }

    async fn sink(&self, start: Start, time_to_live: Duration) {
        let request = ClaimRequest {
            kind: ConsumerKind::Sink,
            name: "sink".to_owned(),
            owner: "owner".to_owned(),
            time_to_live,
            flight: Duration::ZERO,
            fingerprint: None,
            start,
        };
        let claimed = self.positions().claim(&request).await.expect("claimed");
        assert!(matches!(claimed, Claimed::Ours(_)));
    }

    async fn save_at(&self, offset: u64) {
        let row = self.positions().checkpoint(ConsumerKind::Sink, "sink").await.expect("read").expect("a row");
        let to = CheckpointMove {
            epoch: row.epoch,
            generation: row.generation,
            offset: offset.into(),
            walk: None,
            walk_removals_above: None,
            connector_state: None,
        };
        self.positions().save("sink", &to).await.expect("saved");
    }

    async fn is_expired(&self) -> bool {
        self.positions().checkpoint(ConsumerKind::Sink, "sink").await.expect("read").expect("a row").expired
    }

    async fn state_at(&self, at: Offset) -> BTreeMap<EntityRef, JsonText> {
        let (mut state, mut after) = (BTreeMap::new(), None);
        loop {
            let page = self.log.state_at(at, after.as_ref(), limits(3)).await.expect("state_at");
            for entry in &page.entries {
                after = Some(entry.event.entity_ref.clone());
                state.insert(entry.event.entity_ref.clone(), entry.event.entity.clone().expect("a body"));
            }
            if !page.more {
                return state;
            }
        }
    }
}

/// A log in memory that keeps everything, and what of it the store must still have.
#[derive(Default)]
struct Model {
    events: Vec<Event>,
    kept: BTreeSet<u64>,
}

impl Model {
    fn next_of(&self, event: &Event) -> Option<Offset> {
        let is_next = |other: &&Event| other.entity_ref == event.entity_ref && other.offset > event.offset;
        self.events.iter().find(is_next).map(|next| next.offset)
    }

    fn retained(&mut self, oldest: Offset, removals_are_over: bool) {
        for event in &self.events {
            let goes = match self.next_of(event) {
                Some(next) => next <= oldest,
                None => removals_are_over && event.entity.is_none() && event.offset <= oldest,
            };
            if goes {
                self.kept.remove(&event.offset.get());
            }
        }
    }
}

/// Numbers that look random and are the same each time.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

async fn retention_leaves_every_readable_state_exact(store: Subject) {
    for seed in 1..4 {
        exact_under(&store, Numbers(seed)).await;
        store.execute("delete from events").await;
        store.execute("delete from entities").await;
        store.execute("update log_state set head = 0, oldest = 0").await;
        // The store went back: a new log.
        store.log.state().await.expect("state");
    }
}

async fn exact_under(store: &Subject, mut numbers: Numbers) {
    let mut model = Model::default();
    for _ in 0..25 {
        let changes = (0..=numbers.below(6)).map(|_| {
            let name = format!("e{}", numbers.below(7));
            if numbers.below(3) == 0 { remove(&name) } else { upsert(&name, &numbers.below(9).to_string()) }
        });
        store.append(changes.collect()).await;
        let after = model.events.last().map_or(Offset::ZERO, |event| event.offset);
        let new = store.log.read(after, limits(100)).await.expect("read");
        model.kept.extend(new.entries.iter().map(|entry| entry.event.offset.get()));
        model.events.extend(new.entries.iter().map(|entry| entry.event.clone()));

        let removals_are_over = numbers.below(4) == 0;
        let removals = if removals_are_over { Duration::ZERO } else { YEAR };
        let policy = match numbers.below(3) {
            0 => RetentionPolicy { removals, ..aged() },
            1 => RetentionPolicy { removals, ..keep() },
            _ => RetentionPolicy { removals, ..at_most(numbers.below(12)) },
        };
        let report = store.retain(&policy).await;

        model.retained(report.oldest, removals_are_over);
        check_against(store, &model, report.oldest).await;
    }
}

async fn check_against(store: &Subject, model: &Model, oldest: Offset) {
    let head = model.events.last().map_or(Offset::ZERO, |event| event.offset);
    let stored = store.numbers("select event_offset from events order by event_offset").await;
    let stored: BTreeSet<u64> = stored.into_iter().map(i64::unsigned_abs).collect();
    assert_eq!(stored, model.kept, "oldest {oldest}");

    let page = store.log.read(oldest, limits(1_000)).await.expect("read");
    let readable: Vec<&Event> = model.events.iter().filter(|event| event.offset > oldest).collect();
    assert_eq!(page.entries.iter().map(|entry| &entry.event).collect::<Vec<_>>(), readable);
    for entry in &page.entries {
        let before =
            entry.event.previous_offset.and_then(|offset| model.events[offset.get() as usize - 1].entity.clone());
        assert_eq!(entry.previous_entity, before, "before {}", entry.event.offset);
    }

    let middle = Offset::new(oldest.get().midpoint(head.get()));
    for at in [oldest, middle, head] {
        let events = &model.events[..at.get() as usize];
        assert_eq!(store.state_at(at).await, fold(events), "state at {at}, oldest {oldest}");
    }
}

async fn old_events_wait_for_an_enabled_sink(store: Subject) {
    store.append(vec![upsert("a", "1"), upsert("a", "2"), upsert("a", "3"), upsert("a", "4")]).await;
    store.sink(Start::Earliest, YEAR).await;
    store.save_at(2).await;

    let report = store.retain(&aged()).await;
    assert_eq!((report.oldest, report.deleted), (2.into(), 1));
    assert_eq!(store.retain(&aged()).await.deleted, 0);
    store.save_at(4).await;
    let report = store.retain(&aged()).await;

    assert_eq!((report.oldest, report.deleted, report.deletable_bytes), (4.into(), 2, 0));
    assert!(!store.is_expired().await);
    assert_eq!(store.numbers("select event_offset from events").await, [4]);
}

async fn nothing_waits_for_a_sink_that_nobody_runs(store: Subject) {
    store.append(vec![upsert("a", "1"), upsert("a", "2")]).await;
    store.sink(Start::Earliest, YEAR).await;
    store.execute("update checkpoints set lease_expires_at = null").await;

    let report = store.retain(&aged()).await;

    assert_eq!(report.oldest, 2.into());
    assert_eq!(report.expired_sinks, ["sink"]);
}

async fn a_sink_beyond_the_limit_expires(store: Subject) {
    store.append((0..10).map(|number| upsert("a", &number.to_string())).collect()).await;
    store.sink(Start::Earliest, YEAR).await;
    store.save_at(3).await;

    let inside = store.retain(&at_most(6)).await;
    assert_eq!((inside.oldest, inside.expired_sinks.len()), (4.into(), 1), "9 are superseded, 3 too many go");
    let again = store.retain(&at_most(6)).await;
    assert_eq!(again, RetentionReport { deleted: 0, expired_sinks: Vec::new(), ..inside });

    assert!(store.is_expired().await);
    let row = store.positions().command("sink", &SinkCommand::RewindToSnapshot).await.expect("rewound");
    assert_eq!((row.expired, row.walk, row.walk_removals_above), (false, Some(10.into()), Some(3.into())));
}

async fn a_walk_keeps_its_state_also_beyond_the_limit(store: Subject) {
    store.append(vec![upsert("a", "1"), upsert("b", "1"), upsert("b", "2")]).await;
    store.sink(Start::Snapshot, YEAR).await;
    store.append((0..20).map(|number| upsert("a", &format!("[{number}]"))).collect()).await;

    let report = store.retain(&RetentionPolicy { age: Duration::ZERO, ..at_most(0) }).await;

    assert_eq!((report.oldest, report.expired_sinks.len()), (3.into(), 0));
    let page = store.log.walk(3.into(), Offset::ZERO, None, limits(10)).await.expect("the walk goes on");
    assert_eq!(page.entries.iter().map(|entry| entry.event.offset.get()).collect::<Vec<_>>(), [1, 3]);
    store.save_at(23).await;
    assert_eq!(store.retain(&aged()).await.oldest, 23.into());
}

async fn the_limit_counts_only_what_may_go(store: Subject) {
    store.append((0..30).map(|number| upsert(&format!("e{number}"), "1")).collect()).await;

    let live_only = store.retain(&RetentionPolicy { bytes: 0, ..at_most(0) }).await;
    assert_eq!(live_only, RetentionReport::default(), "live state expires nobody");

    store.append(vec![upsert("e0", "2"), remove("e1"), upsert("e1", "3")]).await;
    let report = store.retain(&at_most(1)).await;
    assert_eq!((report.oldest, report.deleted), (32.into(), 2), "of 3 superseded events one may stay");
    let report = store.retain(&RetentionPolicy { bytes: 1, ..keep() }).await;
    assert_eq!((report.oldest, report.deletable_bytes), (33.into(), 0));
}

async fn retention_in_many_steps_ends_where_it_should(store: Subject) {
    for round in 0..3 {
        let changes = (0..1_000).map(|number| upsert(&format!("e{}", number % 400), &format!("[{round},{number}]")));
        store.append(changes.collect()).await;
    }

    let report = store.retain(&at_most(700)).await;
    assert_eq!((report.oldest, report.deleted), (2_300.into(), 1_900), "2,600 were superseded");
    assert_eq!(store.numbers("select count(*) from events").await, [1_100]);
    let report = store.retain(&aged()).await;
    assert_eq!((report.oldest, report.deleted), (3_000.into(), 700));
}
