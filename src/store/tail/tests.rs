use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use catalog_bridge_api::{Cause, EntityRef, Event, EventType, JsonText, SourceName};
use chrono::DateTime;
use proptest::prelude::*;
use tokio::sync::Semaphore;

use super::*;
use crate::store::{
    Append, Appended, Checkpoint, CheckpointMove, Checkpoints, ClaimRequest, Claimed, ConsumerKind, EventLog,
    HeldEntity, PositionMove, Rejected, RetentionPolicy, RetentionReport, SinkCommand, Skipped, StatePage,
};

/// A log in memory that counts its reads and can hold them back.
struct Fake {
    sender: watch::Sender<LogState>,
    bodies: Mutex<Vec<String>>,
    reads: AtomicUsize,
    /// A read takes its page, then waits for a permit to answer with it.
    permits: Semaphore,
    is_away: AtomicBool,
}

impl Fake {
    fn with_events(count: usize) -> Arc<Fake> {
        let state = LogState { log_id: Uuid::from_u128(1), head: Offset::ZERO, oldest: Offset::ZERO, redactions: 0 };
        let fake = Fake {
            sender: watch::Sender::new(state),
            bodies: Mutex::default(),
            reads: AtomicUsize::new(0),
            permits: Semaphore::new(Semaphore::MAX_PERMITS),
            is_away: AtomicBool::new(false),
        };
        fake.append(count);
        Arc::new(fake)
    }

    fn append(&self, count: usize) {
        let mut bodies = self.bodies.lock().expect("no panic");
        bodies.extend((0..count).map(|_| "\"body\"".to_owned()));
        let head = Offset::new(bodies.len() as u64);
        self.sender.send_modify(|state| state.head = head);
    }

    fn redact(&self) {
        self.bodies.lock().expect("no panic").iter_mut().for_each(|body| "\"gone\"".clone_into(body));
        self.sender.send_modify(|state| state.redactions += 1);
    }

    fn hold(&self) {
        self.permits.forget_permits(Semaphore::MAX_PERMITS);
    }

    fn let_go(&self) {
        self.permits.add_permits(1_000);
    }

    fn reads(&self) -> usize {
        self.reads.load(Ordering::SeqCst)
    }

    fn page(&self, after: Offset, limits: ReadLimits) -> Page {
        let state = self.sender.borrow().clone();
        let bodies = self.bodies.lock().expect("no panic");
        let from = usize::try_from(after.get()).expect("small");
        let entries = bodies.iter().enumerate().skip(from).map(|(index, body)| entry(index as u64 + 1, body));
        let entries: Vec<_> = entries.collect();
        Page { state, entries: take_within(entries.iter(), limits) }
    }
}

fn entry(offset: u64, body: &str) -> Arc<LogEntry> {
    let event = Event {
        offset: offset.into(),
        event_type: EventType::Added,
        entity_ref: EntityRef::parse("component:default/a").expect("a ref"),
        uid: None,
        entity: Some(JsonText::from_trusted(body)),
        changed: None,
        reason: None,
        occurred_at: DateTime::UNIX_EPOCH,
        recorded_at: DateTime::UNIX_EPOCH,
        cause: Cause::Capture,
        previous_offset: None,
    };
    Arc::new(LogEntry { event, previous_entity: None })
}

fn limits(events_max: usize) -> ReadLimits {
    ReadLimits { events_max, bytes_max: 1024 * 1024 }
}

fn tail(fake: &Arc<Fake>) -> Tail {
    Tail::new(fake.clone(), 1024 * 1024)
}

fn offsets(page: &Page) -> Vec<u64> {
    page.entries.iter().map(|entry| entry.event.offset.get()).collect()
}

fn body(page: &Page) -> &str {
    page.entries[0].event.entity.as_ref().expect("a body").as_str()
}

async fn until(condition: impl Fn() -> bool) {
    let looking = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), looking).await.expect("the condition comes true");
}

#[tokio::test]
async fn a_hundred_readers_at_one_place_cost_one_query() {
    let fake = Fake::with_events(3);
    let tail = tail(&fake);
    fake.hold();

    let readers: Vec<_> = (0..100)
        .map(|_| {
            let tail = tail.clone();
            tokio::spawn(async move { tail.read(Offset::ZERO, limits(2)).await.expect("read") })
        })
        .collect();
    until(|| fake.reads() == 1).await;
    fake.let_go();

    for reader in readers {
        assert_eq!(offsets(&reader.await.expect("no panic")), [1, 2]);
    }
    assert_eq!(fake.reads(), 1);
}

#[tokio::test]
async fn waiting_costs_no_query() {
    let fake = Fake::with_events(1);
    let tail = tail(&fake);
    let waiter = tokio::spawn({
        let tail = tail.clone();
        async move { tail.wait_beyond(1.into()).await }
    });
    tail.wait_beyond(Offset::ZERO).await;

    fake.append(1);

    tokio::time::timeout(Duration::from_secs(30), waiter).await.expect("it returns").expect("no panic");
    assert!(tail.read(2.into(), limits(9)).await.expect("read").entries.is_empty());
    assert_eq!(fake.reads(), 0);
}

#[tokio::test]
async fn a_waiter_learns_of_a_new_log_id() {
    let fake = Fake::with_events(1);
    let tail = tail(&fake);
    let waiter = tokio::spawn(async move { tail.wait_beyond(5.into()).await });
    tokio::task::yield_now().await;

    fake.sender.send_modify(|state| state.log_id = Uuid::from_u128(2));

    tokio::time::timeout(Duration::from_secs(30), waiter).await.expect("it returns").expect("no panic");
}

#[tokio::test]
async fn live_readers_share_what_one_of_them_read_and_laggards_read_the_store() {
    let fake = Fake::with_events(10);
    let tail = tail(&fake);

    assert_eq!(offsets(&tail.read(4.into(), limits(3)).await.expect("read")), [5, 6, 7]);
    assert_eq!(offsets(&tail.read(7.into(), limits(9)).await.expect("read")), [8, 9, 10]);
    assert_eq!(fake.reads(), 1);
    assert_eq!(offsets(&tail.read(2.into(), limits(2)).await.expect("read")), [3, 4]);
    assert_eq!(fake.reads(), 2);
    fake.append(1);
    assert_eq!(offsets(&tail.read(10.into(), limits(2)).await.expect("read")), [11]);
    assert_eq!(offsets(&tail.read(4.into(), limits(2)).await.expect("read")), [5, 6]);
    assert_eq!(fake.reads(), 3);
}

#[tokio::test]
async fn what_is_kept_is_bounded() {
    let fake = Fake::with_events(500);
    let size = entry(1, "\"body\"").size_bytes();
    let tail = Tail::new(fake.clone(), 10 * size);

    for after in (0..500).step_by(100) {
        tail.read(after.into(), limits(100)).await.expect("read");
        let cache = tail.inner.cache();
        assert_eq!((cache.bytes, cache.entries.len()), (10 * size, 10));
    }

    let smallest = Tail::new(fake.clone(), 1);
    assert_eq!(offsets(&smallest.read(499.into(), limits(1)).await.expect("read")), [500]);
    assert_eq!(smallest.inner.cache().entries.len(), 1);
}

#[tokio::test]
async fn a_redaction_empties_the_cache() {
    let fake = Fake::with_events(1);
    let tail = tail(&fake);
    assert_eq!(body(&tail.read(Offset::ZERO, limits(1)).await.expect("read")), "\"body\"");

    fake.redact();

    let page = tail.read(Offset::ZERO, limits(1)).await.expect("read");
    assert_eq!((body(&page), page.state.redactions), ("\"gone\"", 1));
}

#[tokio::test]
async fn a_page_from_before_a_redaction_is_not_kept() {
    let fake = Fake::with_events(1);
    let tail = tail(&fake);
    fake.hold();
    let early = tokio::spawn({
        let tail = tail.clone();
        async move { tail.read(Offset::ZERO, limits(1)).await.expect("read") }
    });
    until(|| fake.reads() == 1).await;

    fake.redact();
    fake.let_go();
    early.await.expect("no panic");

    assert_eq!(body(&tail.read(Offset::ZERO, limits(1)).await.expect("read")), "\"gone\"");
}

#[tokio::test]
async fn a_failure_is_shared_and_then_tried_again() {
    let fake = Fake::with_events(1);
    let tail = tail(&fake);
    fake.hold();
    fake.is_away.store(true, Ordering::SeqCst);
    let readers: Vec<_> = (0..10)
        .map(|_| {
            let tail = tail.clone();
            tokio::spawn(async move { tail.read(Offset::ZERO, limits(1)).await })
        })
        .collect();
    until(|| fake.reads() == 1).await;
    fake.let_go();

    for reader in readers {
        let result = reader.await.expect("no panic");
        assert!(matches!(result, Err(StoreError::Unavailable { .. })), "{result:?}");
    }
    assert_eq!(fake.reads(), 1);
    fake.is_away.store(false, Ordering::SeqCst);
    assert_eq!(offsets(&tail.read(Offset::ZERO, limits(1)).await.expect("read")), [1]);
}

#[tokio::test]
async fn a_reader_that_goes_away_does_not_take_the_others_with_it() {
    let fake = Fake::with_events(1);
    let tail = tail(&fake);
    fake.hold();
    let reading = || {
        let tail = tail.clone();
        tokio::spawn(async move { tail.read(Offset::ZERO, limits(1)).await.expect("read") })
    };
    let first = reading();
    until(|| fake.reads() == 1).await;
    let second = reading();

    first.abort();
    fake.let_go();

    assert_eq!(offsets(&second.await.expect("no panic")), [1]);
    assert_eq!(fake.reads(), 1);
}

#[tokio::test]
async fn below_oldest_is_expired_also_when_it_is_cached() {
    let fake = Fake::with_events(3);
    let tail = tail(&fake);
    tail.read(Offset::ZERO, limits(3)).await.expect("read");

    fake.sender.send_modify(|state| state.oldest = 2.into());

    let expired = tail.read(1.into(), limits(3)).await;
    assert!(matches!(expired, Err(StoreError::Expired { .. })), "{expired:?}");
    assert_eq!(offsets(&tail.read(2.into(), limits(3)).await.expect("read")), [3]);
}

proptest! {
    /// P1: whoever reads whatever in whichever order sees the log as it is.
    #[test]
    fn every_read_is_a_contiguous_piece_of_the_log(
        steps in proptest::collection::vec((0_usize..8, 0_u64..60, 1_usize..9), 1..60),
        bytes_max in 1_usize..6_000,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(async {
            let fake = Fake::with_events(2);
            let tail = Tail::new(fake.clone(), bytes_max);
            for (kind, after, events_max) in steps {
                match kind {
                    0 => fake.append(events_max),
                    1 => fake.redact(),
                    _ => {
                        let head = fake.sender.borrow().head;
                        let page = tail.read(after.into(), limits(events_max)).await.expect("read");
                        let there = head.get().saturating_sub(after).min(events_max as u64);
                        let expected: Vec<u64> = (after + 1..).take(offsets(&page).len()).collect();
                        assert_eq!(offsets(&page), expected);
                        assert!(page.entries.len() as u64 <= there && page.entries.is_empty() == (there == 0));
                        let current = fake.page(after.into(), limits(events_max));
                        assert!(page.entries.is_empty() || body(&page) == body(&current));
                    }
                }
            }
        });
    }
}

#[async_trait]
impl EventLog for Fake {
    async fn read(&self, after: Offset, limits: ReadLimits) -> Result<Page, StoreError> {
        let page = self.page(after, limits);
        self.reads.fetch_add(1, Ordering::SeqCst);
        self.permits.acquire().await.expect("open").forget();
        if self.is_away.load(Ordering::SeqCst) {
            return Err(StoreError::Unavailable { action: "read", source: "away".into() });
        }
        Ok(page)
    }

    fn watch(&self) -> watch::Receiver<LogState> {
        self.sender.subscribe()
    }

    async fn append(&self, _: Append) -> Result<Appended, StoreError> {
        unreachable!("the tail only reads")
    }

    async fn state_at(&self, _: Offset, _: Option<&EntityRef>, _: ReadLimits) -> Result<StatePage, StoreError> {
        unreachable!("the tail only reads")
    }

    async fn walk(&self, _: Offset, _: Offset, _: Option<Offset>, _: ReadLimits) -> Result<StatePage, StoreError> {
        unreachable!("the tail only reads")
    }

    async fn state(&self) -> Result<LogState, StoreError> {
        unreachable!("the tail only reads")
    }

    async fn event(&self, _: Offset) -> Result<Option<LogEntry>, StoreError> {
        unreachable!("the tail only reads")
    }

    async fn latest(&self, _: &EntityRef) -> Result<Option<LogEntry>, StoreError> {
        unreachable!("the tail only reads")
    }

    async fn history(&self, _: &EntityRef, _: Option<Offset>, _: ReadLimits) -> Result<Vec<Arc<LogEntry>>, StoreError> {
        unreachable!("the tail only reads")
    }

    async fn held(&self, _: &SourceName, _: Option<&EntityRef>, _: usize) -> Result<Vec<HeldEntity>, StoreError> {
        unreachable!("the tail only reads")
    }

    async fn held_by_ref(&self, _: &[EntityRef]) -> Result<Vec<(HeldEntity, SourceName)>, StoreError> {
        unreachable!("the tail only reads")
    }

    async fn held_count(&self, _: &SourceName) -> Result<u64, StoreError> {
        unreachable!("the tail only reads")
    }

    async fn rejected(&self, _: &SourceName, _: Option<&str>, _: usize) -> Result<Vec<Rejected>, StoreError> {
        unreachable!("the tail only reads")
    }

    async fn rejected_count(&self, _: &SourceName) -> Result<u64, StoreError> {
        unreachable!("the tail only reads")
    }

    async fn redact(&self, _: &EntityRef) -> Result<u64, StoreError> {
        unreachable!("the tail only reads")
    }

    async fn new_log_id(&self, _: &str) -> Result<Uuid, StoreError> {
        unreachable!("the tail only reads")
    }

    async fn retain(&self, _: &RetentionPolicy) -> Result<RetentionReport, StoreError> {
        unreachable!("the tail only reads")
    }
}

#[async_trait]
impl Checkpoints for Fake {
    async fn checkpoints(&self) -> Result<Vec<Checkpoint>, StoreError> {
        unreachable!("the tail only reads")
    }

    async fn checkpoint(&self, _: ConsumerKind, _: &str) -> Result<Option<Checkpoint>, StoreError> {
        unreachable!("the tail only reads")
    }

    async fn claim(&self, _: &ClaimRequest) -> Result<Claimed, StoreError> {
        unreachable!("the tail only reads")
    }

    async fn renew(&self, _: ConsumerKind, _: &str, _: u64, _: Duration) -> Result<Checkpoint, StoreError> {
        unreachable!("the tail only reads")
    }

    async fn release(&self, _: ConsumerKind, _: &str, _: u64) -> Result<(), StoreError> {
        unreachable!("the tail only reads")
    }

    async fn save(&self, _: &str, _: &CheckpointMove) -> Result<(), StoreError> {
        unreachable!("the tail only reads")
    }

    async fn set_back(&self, _: &str, _: &CheckpointMove) -> Result<(), StoreError> {
        unreachable!("the tail only reads")
    }

    async fn save_status(&self, _: ConsumerKind, _: &str, _: u64, _: &JsonText) -> Result<(), StoreError> {
        unreachable!("the tail only reads")
    }

    async fn save_position(&self, _: &SourceName, _: &PositionMove) -> Result<(), StoreError> {
        unreachable!("the tail only reads")
    }

    async fn command(&self, _: &str, _: &SinkCommand) -> Result<Checkpoint, StoreError> {
        unreachable!("the tail only reads")
    }

    async fn record_skipped(&self, _: &Skipped) -> Result<(), StoreError> {
        unreachable!("the tail only reads")
    }

    async fn skipped(&self, _: &str, _: Offset, _: usize) -> Result<Vec<Skipped>, StoreError> {
        unreachable!("the tail only reads")
    }
}
