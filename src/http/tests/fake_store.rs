//! A store in memory whose tests decide what it answers: how far retention went, another log id, or nothing at all.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use catalog_bridge_api::{EntityRef, Event, EventType, Offset, SourceName};
use chrono::{DateTime, Utc};
use tokio::sync::watch;
use uuid::Uuid;

use crate::store::*;
use std::sync::Arc;

pub(super) struct FakeStore {
    log: Mutex<Log>,
    watch: watch::Sender<LogState>,
    /// Reads of events, however they were asked for.
    pub(super) reads: AtomicUsize,
    pub(super) is_away: AtomicBool,
    /// Appends wait while this is set.
    pub(super) is_slow: AtomicBool,
    /// What was commanded.
    pub(super) commands: Mutex<Vec<(String, SinkCommand)>>,
}

#[derive(Default)]
struct Log {
    entries: Vec<Arc<LogEntry>>,
    /// What retention took of them.
    gone: BTreeSet<Offset>,
    live: BTreeMap<EntityRef, (usize, SourceName)>,
    answers: BTreeMap<String, (String, Appended)>,
}

impl FakeStore {
    pub(super) fn new() -> FakeStore {
        let state = LogState {
            log_id: Uuid::from_u128(0x1111_2222_3333_4444_5555_6666_7777_8888),
            head: Offset::ZERO,
            oldest: Offset::ZERO,
            redactions: 0,
        };
        FakeStore {
            log: Mutex::default(),
            watch: watch::Sender::new(state),
            reads: AtomicUsize::new(0),
            is_away: AtomicBool::new(false),
            is_slow: AtomicBool::new(false),
            commands: Mutex::default(),
        }
    }

    /// Retention passed everything up to here: events whose entity has a later one by then are gone.
    pub(super) fn forget(&self, oldest: u64) {
        let mut log = self.log();
        let passed = usize::try_from(oldest).expect("small").min(log.entries.len());
        for index in 0..passed {
            let entry = log.entries[index].clone();
            log.gone.extend(entry.event.previous_offset);
            log.entries[index] = Arc::new(LogEntry { previous_entity: None, ..(*entry).clone() });
        }
        drop(log);
        self.watch.send_modify(|state| state.oldest = Offset::new(oldest));
    }

    /// The log was restored.
    pub(super) fn change_log_id(&self, id: u128) {
        self.watch.send_modify(|state| state.log_id = Uuid::from_u128(id));
    }

    fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn known(&self) -> Result<LogState, StoreError> {
        if self.is_away.load(Ordering::Relaxed) {
            let source = "connection refused (password=secret)".into();
            return Err(StoreError::Unavailable { action: "ask the store", source });
        }
        Ok(self.watch.borrow().clone())
    }
}

impl Log {
    fn kept(&self) -> impl DoubleEndedIterator<Item = &Arc<LogEntry>> {
        self.entries.iter().filter(|entry| !self.gone.contains(&entry.event.offset))
    }

    fn write(&mut self, source: &SourceName, change: &Change) -> bool {
        let previous = self.live.get(change.entity_ref()).map(|(index, _)| self.entries[*index].clone());
        let body = match change {
            Change::Upsert(upsert) => Some(upsert.entity.clone()),
            Change::Remove(_) if previous.is_none() => return false,
            Change::Remove(_) => None,
        };
        let before = previous.as_ref().and_then(|entry| entry.event.entity.clone());
        if body.is_some() && body == before {
            return false;
        }
        let event_type = match (&previous, &body) {
            (None, _) => EventType::Added,
            (Some(_), Some(_)) => EventType::Updated,
            (Some(_), None) => EventType::Removed,
        };
        let offset = Offset::new(self.entries.len() as u64 + 1);
        let event = Event {
            offset,
            event_type,
            entity_ref: change.entity_ref().clone(),
            uid: None,
            changed: None,
            reason: None,
            occurred_at: DateTime::<Utc>::UNIX_EPOCH,
            recorded_at: DateTime::<Utc>::UNIX_EPOCH,
            cause: catalog_bridge_api::Cause::Ingest,
            previous_offset: previous.map(|entry| entry.event.offset),
            entity: body.clone(),
        };
        match body {
            Some(_) => self.live.insert(event.entity_ref.clone(), (self.entries.len(), source.clone())),
            None => self.live.remove(&event.entity_ref),
        };
        self.entries.push(Arc::new(LogEntry { event, previous_entity: before }));
        true
    }
}

fn within<'a>(entries: impl Iterator<Item = &'a Arc<LogEntry>>, limits: ReadLimits) -> Vec<Arc<LogEntry>> {
    let mut bytes = 0;
    let mut taken: Vec<Arc<LogEntry>> = Vec::new();
    for entry in entries.take(limits.events_max) {
        bytes += entry.size_bytes();
        if bytes > limits.bytes_max && !taken.is_empty() {
            break;
        }
        taken.push(entry.clone());
    }
    taken
}

#[async_trait]
impl EventLog for FakeStore {
    async fn append(&self, append: Append) -> Result<Appended, StoreError> {
        while self.is_slow.load(Ordering::Relaxed) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        self.known()?;
        let mut log = self.log();
        let key = append.idempotency.as_ref().map(|known| format!("{} {}", append.source, known.key));
        let body_hash = append.idempotency.map(|known| known.body_hash);
        if let (Some(key), Some(body_hash)) = (&key, &body_hash)
            && let Some((known, answer)) = log.answers.get(key)
        {
            let same = known == body_hash;
            return if same {
                Ok(Appended { repeated: true, ..*answer })
            } else {
                Err(StoreError::IdempotencyMismatch)
            };
        }
        for (index, change) in append.changes.iter().enumerate() {
            if let Some((_, owner)) = log.live.get(change.entity_ref())
                && *owner != append.source
            {
                let entity_ref = change.entity_ref().clone();
                return Err(StoreError::RefOwned { index, entity_ref, owner: owner.clone() });
            }
        }
        let mut appended =
            Appended { appended: 0, unchanged: 0, refused: 0, last_event_offset: Offset::ZERO, repeated: false };
        for change in &append.changes {
            if log.write(&append.source, change) { appended.appended += 1 } else { appended.unchanged += 1 }
        }
        appended.last_event_offset = Offset::new(log.entries.len() as u64);
        if let (Some(key), Some(body_hash)) = (key, body_hash) {
            log.answers.insert(key, (body_hash, appended));
        }
        self.watch.send_modify(|state| state.head = appended.last_event_offset);
        Ok(appended)
    }

    async fn read(&self, after: Offset, limits: ReadLimits) -> Result<Page, StoreError> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        let state = self.known()?;
        if after < state.oldest {
            return Err(StoreError::Expired { asked: after, oldest: state.oldest, head: state.head });
        }
        let log = self.log();
        let entries = within(log.entries.iter().skip(usize::try_from(after.get()).expect("small")), limits);
        Ok(Page { state, entries })
    }

    async fn state_at(
        &self,
        at: Offset,
        after_ref: Option<&EntityRef>,
        limits: ReadLimits,
    ) -> Result<StatePage, StoreError> {
        let state = self.known()?;
        if at < state.oldest {
            return Err(StoreError::Expired { asked: at, oldest: state.oldest, head: state.head });
        }
        let log = self.log();
        let mut last = BTreeMap::new();
        for entry in log.entries.iter().filter(|entry| entry.event.offset <= at) {
            last.insert(&entry.event.entity_ref, entry);
        }
        last.retain(|entity_ref, entry| {
            entry.event.event_type != EventType::Removed && after_ref.is_none_or(|after| *entity_ref > after)
        });
        let entries = within(last.values().copied(), limits);
        Ok(StatePage { more: entries.len() < last.len(), entries })
    }

    async fn walk(&self, _: Offset, _: Offset, _: Option<Offset>, _: ReadLimits) -> Result<StatePage, StoreError> {
        unreachable!("no route walks")
    }

    async fn state(&self) -> Result<LogState, StoreError> {
        self.known()
    }

    fn watch(&self) -> watch::Receiver<LogState> {
        self.watch.subscribe()
    }

    async fn event(&self, offset: Offset) -> Result<Option<LogEntry>, StoreError> {
        self.known()?;
        let log = self.log();
        let found = log.kept().find(|entry| entry.event.offset == offset);
        Ok(found.map(|entry| (**entry).clone()))
    }

    async fn latest(&self, entity_ref: &EntityRef) -> Result<Option<LogEntry>, StoreError> {
        self.known()?;
        let log = self.log();
        Ok(log.kept().rev().find(|entry| entry.event.entity_ref == *entity_ref).map(|entry| (**entry).clone()))
    }

    async fn history(
        &self,
        entity_ref: &EntityRef,
        before: Option<Offset>,
        limits: ReadLimits,
    ) -> Result<Vec<Arc<LogEntry>>, StoreError> {
        self.known()?;
        let log = self.log();
        let newest_first = log.kept().rev().filter(|entry| {
            entry.event.entity_ref == *entity_ref && before.is_none_or(|before| entry.event.offset < before)
        });
        Ok(within(newest_first, limits))
    }

    async fn held(&self, _: &SourceName, _: Option<&EntityRef>, _: usize) -> Result<Vec<HeldEntity>, StoreError> {
        Ok(Vec::new())
    }

    async fn held_by_ref(&self, _: &[EntityRef]) -> Result<Vec<(HeldEntity, SourceName)>, StoreError> {
        Ok(Vec::new())
    }

    async fn held_count(&self, _: &SourceName) -> Result<u64, StoreError> {
        Ok(0)
    }

    async fn rejected(&self, _: &SourceName, _: Option<&str>, _: usize) -> Result<Vec<Rejected>, StoreError> {
        Ok(Vec::new())
    }

    async fn rejected_count(&self, _: &SourceName) -> Result<u64, StoreError> {
        Ok(0)
    }

    async fn redact(&self, entity_ref: &EntityRef) -> Result<u64, StoreError> {
        let mut log = self.log();
        let mut count = 0;
        for entry in log.entries.iter_mut().filter(|entry| entry.event.entity_ref == *entity_ref) {
            let event = Event { entity: None, changed: None, ..entry.event.clone() };
            *entry = Arc::new(LogEntry { event, previous_entity: None });
            count += 1;
        }
        self.watch.send_modify(|state| state.redactions += 1);
        Ok(count)
    }

    async fn new_log_id(&self, _: &str) -> Result<Uuid, StoreError> {
        self.change_log_id(9);
        Ok(Uuid::from_u128(9))
    }

    async fn retain(&self, _: &RetentionPolicy) -> Result<RetentionReport, StoreError> {
        Ok(RetentionReport::default())
    }
}

fn row(name: &str) -> Checkpoint {
    Checkpoint {
        kind: ConsumerKind::Sink,
        name: name.to_owned(),
        offset: Offset::new(3),
        source_position: None,
        walk: None,
        walk_removals_above: None,
        connector_state: None,
        owner: Some("other".to_owned()),
        epoch: 1,
        lease_expires_at: None,
        generation: 1,
        fingerprint: None,
        paused: false,
        expired: false,
        status: Some(catalog_bridge_api::JsonText::from_trusted(
            r#"{"state":"running","protocol":"file","checkpoint":2,"lagEvents":1}"#,
        )),
        updated_at: DateTime::<Utc>::UNIX_EPOCH,
        commands: 0,
    }
}

#[async_trait]
impl Checkpoints for FakeStore {
    async fn checkpoints(&self) -> Result<Vec<Checkpoint>, StoreError> {
        self.known()?;
        Ok(vec![row("audit")])
    }

    async fn checkpoint(&self, _: ConsumerKind, name: &str) -> Result<Option<Checkpoint>, StoreError> {
        self.known()?;
        Ok((name == "audit").then(|| row(name)))
    }

    async fn claim(&self, _: &ClaimRequest) -> Result<Claimed, StoreError> {
        unreachable!("no route claims")
    }

    async fn renew(&self, _: ConsumerKind, _: &str, _: u64, _: Duration) -> Result<Checkpoint, StoreError> {
        unreachable!("no route renews")
    }

    async fn release(&self, _: ConsumerKind, _: &str, _: u64) -> Result<(), StoreError> {
        unreachable!("no route releases")
    }

    async fn save(&self, _: &str, _: &CheckpointMove) -> Result<(), StoreError> {
        unreachable!("no route saves")
    }

    async fn set_back(&self, _: &str, _: &CheckpointMove) -> Result<(), StoreError> {
        unreachable!("no route saves")
    }

    async fn save_status(
        &self,
        _: ConsumerKind,
        _: &str,
        _: u64,
        _: &catalog_bridge_api::JsonText,
    ) -> Result<(), StoreError> {
        unreachable!("no route saves")
    }

    async fn save_position(&self, _: &SourceName, _: &PositionMove) -> Result<(), StoreError> {
        unreachable!("no route saves")
    }

    async fn command(&self, sink: &str, command: &SinkCommand) -> Result<Checkpoint, StoreError> {
        self.commands.lock().unwrap_or_else(PoisonError::into_inner).push((sink.to_owned(), command.clone()));
        Ok(row(sink))
    }

    async fn record_skipped(&self, _: &Skipped) -> Result<(), StoreError> {
        unreachable!("no route skips")
    }

    async fn skipped(&self, _: &str, _: Offset, _: usize) -> Result<Vec<Skipped>, StoreError> {
        Ok(Vec::new())
    }
}
