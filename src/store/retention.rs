//! Keeps the log bounded: moves `oldest` up and deletes what nothing needs any more.
//!
//! Invariants (P4, P7): up to `oldest` the log is compacted, above it complete. An event goes only when the same entity's
//! next event is at or below `oldest`, so a live entity's last event and every readable event's predecessor stay; a removal
//! goes when it is its entity's last event and its own time is over. `oldest` moves and what it frees goes in one short
//! transaction, in small steps, so a crash leaves nothing behind and appends pass between. Events past their age wait for
//! enabled sinks; the limits of bytes and events wait for nobody: a sink below them becomes expired, never a full disk. A walk
//! may hold as much again, so that a restart by a walk comes to its end. Knows nothing of SQL: each store brings
//! [`Tables`].

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use catalog_bridge_api::Offset;
use tokio::sync::Mutex;
use uuid::Uuid;

use super::{LogState, RetentionPolicy, RetentionReport, Store, StoreError};

/// What a row costs besides its body.
pub(super) const ROW_BYTES: i64 = 256;

/// How far `oldest` moves in one transaction.
const STEP: u64 = 500;

/// Events of one sum of the ledger.
const CHUNK: u64 = 1_000;

/// A walk may hold at least so much beyond the limits, however small they are.
const WALK_BYTES_MIN: u64 = 256 * 1024 * 1024;
/// The same in events.
const WALK_EVENTS_MIN: u64 = 100_000;

/// A sink whose lease ended so long ago is no longer configured anywhere: nothing waits for it.
pub(super) const ENABLED_WITHIN: Duration = Duration::from_secs(24 * 60 * 60);

/// A sink that is not expired.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Reader {
    pub(super) name: String,
    /// `oldest` may not pass this while the sink is to go on: its checkpoint, or the S of its walk.
    pub(super) needs: Offset,
    pub(super) is_walking: bool,
    pub(super) is_enabled: bool,
}

/// What one look at the store finds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Facts {
    pub(super) state: LogState,
    /// Everything up to here is past its age.
    pub(super) aged: Offset,
    pub(super) readers: Vec<Reader>,
}

/// How much becomes deletable when `oldest` passes a range.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Weight {
    pub(super) events: u64,
    pub(super) bytes: u64,
}

/// What a step did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// It is committed.
    Done { deleted: u64, expired_sinks: Vec<String> },
    /// The log or a sink moved since the plan was made; nothing was written.
    Overtaken,
}

/// A store's side of retention.
#[async_trait]
pub(super) trait Tables: Sync {
    /// Where everything stands.
    async fn facts(&self, age: Duration) -> Result<Facts, StoreError>;

    /// The weight of (`after`, `to`]: of the events that have their next event in there.
    async fn weigh(&self, after: Offset, to: Offset) -> Result<Weight, StoreError>;

    /// The first offset in (`after`, `to`] up to which the weight reaches `least` in events and in bytes; else `to`.
    async fn reach(&self, after: Offset, to: Offset, least: Weight) -> Result<Offset, StoreError>;

    /// Moves `oldest` from `from.oldest` to `to`, deletes what is free then, and expires those of `expire` that are below
    /// it; `Overtaken` when the log is not as in `from`, or when another sink is below it.
    async fn step(&self, from: &LogState, to: Offset, expire: &[String]) -> Result<Step, StoreError>;

    /// Deletes removals up to `oldest`, older than `removals`, that are their entity's last event.
    async fn delete_old_removals(&self, oldest: Offset, removals: Duration) -> Result<u64, StoreError>;
}

/// Where `oldest` is to go.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Plan {
    oldest: Offset,
    expire: Vec<String>,
}

/// Everything up to `over_limit` is beyond the limits of bytes and events, up to `over_walk_limit` also beyond what a walk
/// may hold.
fn plan(facts: &Facts, over_limit: Offset, over_walk_limit: Offset) -> Plan {
    let enabled = || facts.readers.iter().filter(|reader| reader.is_enabled);
    let patient = enabled().map(|reader| reader.needs).fold(facts.aged, Offset::min);
    let held_by_walks = enabled().filter(|reader| reader.is_walking && reader.needs >= over_walk_limit);
    let strict = held_by_walks.map(|reader| reader.needs).fold(over_limit, Offset::min);
    let oldest = patient.max(strict).min(facts.state.head).max(facts.state.oldest);
    let left_behind = facts.readers.iter().filter(|reader| reader.needs < oldest);
    Plan { oldest, expire: left_behind.map(|reader| reader.name.clone()).collect() }
}

/// Sums of whole chunks, kept between passes: they never change but by a redaction.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    log_id: Uuid,
    redactions: u64,
    chunks: BTreeMap<u64, Weight>,
}

impl Ledger {
    /// The weights of the pieces of (`oldest`, head], each with its end.
    async fn weigh(&mut self, tables: &dyn Tables, state: &LogState) -> Result<Vec<(Offset, Weight)>, StoreError> {
        if (self.log_id, self.redactions) != (state.log_id, state.redactions) {
            *self = Ledger { log_id: state.log_id, redactions: state.redactions, chunks: BTreeMap::new() };
        }
        self.chunks = self.chunks.split_off(&(state.oldest.get() / CHUNK));
        let mut pieces = Vec::new();
        let mut after = state.oldest;
        while after < state.head {
            let number = after.get() / CHUNK;
            let end = Offset::new(((number + 1) * CHUNK).min(state.head.get()));
            let is_whole = after.get().is_multiple_of(CHUNK) && end.get().is_multiple_of(CHUNK);
            let weight = match self.chunks.get(&number).filter(|_| is_whole) {
                Some(weight) => *weight,
                None => tables.weigh(after, end).await?,
            };
            if is_whole {
                self.chunks.insert(number, weight);
            }
            pieces.push((end, weight));
            after = end;
        }
        Ok(pieces)
    }
}

impl Weight {
    fn plus(self, other: Weight) -> Weight {
        Weight { events: self.events + other.events, bytes: self.bytes + other.bytes }
    }

    fn minus(self, other: Weight) -> Weight {
        Weight { events: self.events.saturating_sub(other.events), bytes: self.bytes.saturating_sub(other.bytes) }
    }

    fn is_nothing(self) -> bool {
        self == Weight::default()
    }

    fn limit(policy: &RetentionPolicy) -> Weight {
        Weight { events: policy.events.unwrap_or(u64::MAX), bytes: policy.bytes }
    }

    fn walk_limit(policy: &RetentionPolicy) -> Weight {
        let limit = Weight::limit(policy);
        Weight {
            events: limit.events.saturating_add(limit.events.max(WALK_EVENTS_MIN)),
            bytes: limit.bytes.saturating_add(limit.bytes.max(WALK_BYTES_MIN)),
        }
    }
}

/// One pass.
pub(super) async fn retain(
    tables: &dyn Tables,
    ledger: &Mutex<Ledger>,
    policy: &RetentionPolicy,
) -> Result<RetentionReport, StoreError> {
    // One pass at a time in this process; passes of other replicas are told apart step by step.
    let mut ledger = ledger.lock().await;
    let facts = tables.facts(policy.age).await?;
    let pieces = ledger.weigh(tables, &facts.state).await?;
    let over_limit = over(tables, &facts.state, &pieces, Weight::limit(policy)).await?;
    let over_walk_limit = over(tables, &facts.state, &pieces, Weight::walk_limit(policy)).await?;
    let plan = plan(&facts, over_limit, over_walk_limit);
    let mut report = RetentionReport::default();
    let mut state = facts.state;
    while state.oldest < plan.oldest {
        let to = Offset::new(state.oldest.get() + STEP).min(plan.oldest);
        match tables.step(&state, to, &plan.expire).await? {
            Step::Overtaken => break,
            Step::Done { deleted, expired_sinks } => {
                report.deleted += deleted;
                report.expired_sinks.extend(expired_sinks);
                state.oldest = to;
            }
        }
    }
    report.deleted += tables.delete_old_removals(state.oldest, policy.removals).await?;
    report.oldest = state.oldest;
    let left = ledger.weigh(tables, &state).await?;
    report.deletable_bytes = left.iter().map(|(_, weight)| weight.bytes).sum();
    report.sink_percent = sink_percent(&facts.readers, &state, &left, Weight::limit(policy));
    Ok(report)
}

/// How much of the limit lies before each enabled sink; a piece in which it stands counts whole.
fn sink_percent(
    readers: &[Reader],
    state: &LogState,
    pieces: &[(Offset, Weight)],
    limit: Weight,
) -> BTreeMap<String, u64> {
    let before = |reader: &Reader| {
        let unread = pieces
            .iter()
            .filter(|(end, _)| *end > reader.needs)
            .fold(Weight::default(), |sum, piece| sum.plus(piece.1));
        let percent = |part: u64, whole: u64| {
            u64::try_from(u128::from(part) * 100 / u128::from(whole.max(1))).unwrap_or(u64::MAX)
        };
        percent(unread.bytes, limit.bytes).max(percent(unread.events, limit.events))
    };
    let waiting = readers.iter().filter(|reader| reader.is_enabled && reader.needs >= state.oldest);
    waiting.map(|reader| (reader.name.clone(), before(reader))).filter(|(_, percent)| *percent > 0).collect()
}

/// Where `oldest` must be so that what is deletable above it is within the limit.
async fn over(
    tables: &dyn Tables,
    state: &LogState,
    pieces: &[(Offset, Weight)],
    limit: Weight,
) -> Result<Offset, StoreError> {
    let total = pieces.iter().fold(Weight::default(), |sum, (_, weight)| sum.plus(*weight));
    let mut excess = total.minus(limit);
    let mut after = state.oldest;
    for (end, weight) in pieces {
        if excess.is_nothing() {
            break;
        }
        if excess.minus(*weight).is_nothing() {
            return tables.reach(after, *end, excess).await;
        }
        excess = excess.minus(*weight);
        after = *end;
    }
    Ok(after)
}

/// Runs retention for ever: first after one interval, so that the sinks of a daemon that was away have claimed by then.
/// Ends when it is dropped; a pass that is cut off leaves whole steps.
pub async fn run(store: &dyn Store, policy: &RetentionPolicy, interval: Duration) {
    let mut was_near = false;
    loop {
        tokio::time::sleep(interval).await;
        let report = match store.retain(policy).await {
            Ok(report) => report,
            Err(error) => {
                tracing::warn!(error = %error, "retention failed; it is tried again");
                continue;
            }
        };
        for sink in &report.expired_sinks {
            tracing::error!(
                sink,
                oldest = %report.oldest,
                "the sink fell behind the log's retention and is expired; run `catalog-bridge sinks rewind {sink} --to snapshot`"
            );
        }
        if report.deleted > 0 {
            tracing::info!(deleted = report.deleted, oldest = %report.oldest, "retention deleted events");
        }
        let is_near = report.deletable_bytes > policy.bytes / 10 * 7;
        if is_near && !was_near {
            tracing::warn!(
                bytes = report.deletable_bytes,
                limit = policy.bytes,
                "what retention may delete is above 70 % of its limit; sinks that lag behind expire at the limit"
            );
        }
        was_near = is_near;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// P7: the warning grows with what lies before a sink, and reaches all of the limit when the sink expires.
    #[test]
    fn what_lies_before_a_sink_is_told_as_a_part_of_the_limit() {
        let at = |name: &str, needs: u64, is_enabled: bool| Reader {
            name: name.to_owned(),
            needs: needs.into(),
            is_walking: false,
            is_enabled,
        };
        let readers = [at("far", 0, true), at("near", 10, true), at("done", 20, true), at("gone", 0, false)];
        let state = LogState { log_id: Uuid::nil(), head: 20.into(), oldest: Offset::ZERO, redactions: 0 };
        let pieces = [(10.into(), Weight { events: 9, bytes: 900 }), (20.into(), Weight { events: 3, bytes: 300 })];

        let by_bytes = sink_percent(&readers, &state, &pieces, Weight { events: u64::MAX, bytes: 1_200 });
        let by_events = sink_percent(&readers, &state, &pieces, Weight { events: 4, bytes: u64::MAX });

        assert_eq!(by_bytes, BTreeMap::from([("far".to_owned(), 100), ("near".to_owned(), 25)]));
        assert_eq!(by_events, BTreeMap::from([("far".to_owned(), 300), ("near".to_owned(), 75)]));
    }

    prop_compose! {
        fn readers()(
            readers in proptest::collection::vec((0_u64..120, any::<bool>(), any::<bool>()), 0..5)
        ) -> Vec<Reader> {
            let reader = |(number, (needs, is_walking, is_enabled)): (usize, (u64, bool, bool))| {
                Reader { name: format!("sink-{number}"), needs: needs.into(), is_walking, is_enabled }
            };
            readers.into_iter().enumerate().map(reader).collect()
        }
    }

    proptest! {
        /// P7, P4: nobody inside the limits is passed, nobody beyond them holds the log, and who is passed is told.
        #[test]
        fn a_plan_waits_inside_the_limits_and_for_nobody_beyond(
            readers in readers(),
            oldest in 0_u64..100,
            length in 0_u64..100,
            aged in 0_u64..100,
            over in (0_u64..100, 0_u64..100),
        ) {
            let head = Offset::new(oldest + length);
            let oldest = Offset::new(oldest);
            let inside = |number: u64| Offset::new(number).clamp(oldest, head);
            let (over_limit, over_walk_limit) = (inside(over.0.max(over.1)), inside(over.0.min(over.1)));
            let state = LogState { log_id: Uuid::nil(), head, oldest, redactions: 0 };
            let facts = Facts { state, aged: inside(aged), readers };

            let plan = plan(&facts, over_limit, over_walk_limit);

            prop_assert!(plan.oldest >= oldest && plan.oldest <= head);
            prop_assert!(plan.oldest <= facts.aged.max(over_limit).max(oldest), "nothing young and within the limits goes");
            prop_assert!(plan.oldest >= over_walk_limit, "the last limit holds whatever happens");
            let mut passed = Vec::new();
            for reader in &facts.readers {
                if reader.needs < plan.oldest {
                    passed.push(reader.name.clone());
                    let is_beyond = if reader.is_walking { reader.needs < over_walk_limit } else { reader.needs < over_limit };
                    prop_assert!(!reader.is_enabled || is_beyond || reader.needs < oldest, "{} is passed: {plan:?}", reader.name);
                }
            }
            prop_assert_eq!(&plan.expire, &passed);
            if facts.readers.iter().all(|reader| !reader.is_enabled) {
                prop_assert_eq!(plan.oldest, facts.aged.max(over_limit));
            }
        }
    }
}
