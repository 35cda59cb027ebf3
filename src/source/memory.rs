//! A small event log in memory, for the tests of this room. It keeps the parts of the store's contract that sources use
//! (P1, P2, ownership of refs, leases with epochs, positions by compare-and-set), and refuses everything else.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use catalog_bridge_api::{Cause, EntityRef, Event, EventType, JsonText, Offset, SourceName};
use chrono::{DateTime, Utc};
use tokio::sync::watch;
use uuid::Uuid;

use crate::store::*;

#[derive(Default)]
pub(super) struct MemoryStore {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    events: Vec<Event>,
    held: BTreeMap<EntityRef, (HeldEntity, SourceName, JsonText, Offset)>,
    rejected: BTreeMap<(String, String), Rejected>,
    leases: BTreeMap<String, Checkpoint>,
}

impl MemoryStore {
    pub(super) fn events(&self) -> Vec<Event> {
        self.lock().events.clone()
    }

    /// Ends a lease and bumps its epoch, as a taker would.
    pub(super) fn take_over(&self, source: &SourceName) {
        if let Some(row) = self.lock().leases.get_mut(source.as_str()) {
            row.epoch += 1;
            row.lease_expires_at = None;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn refused<T>() -> Result<T, StoreError> {
    Err(StoreError::Refused("not in this test's store".to_owned()))
}

impl State {
    fn check(&self, source: &SourceName, position: &PositionMove) -> Result<(), StoreError> {
        let row = self.leases.get(source.as_str()).ok_or_else(|| StoreError::Fenced("no claim".to_owned()))?;
        if row.epoch != position.epoch || row.source_position != position.expected {
            return Err(StoreError::Fenced("epoch or position moved on".to_owned()));
        }
        Ok(())
    }

    fn set_position(&mut self, source: &SourceName, position: PositionMove) {
        if let Some(row) = self.leases.get_mut(source.as_str()) {
            row.source_position = Some(position.new);
        }
    }

    fn push(&mut self, event_type: EventType, of: &HeldEntity, entity: Option<JsonText>, cause: Cause) -> Offset {
        let offset = Offset::new(self.events.len() as u64 + 1);
        self.events.push(Event {
            offset,
            event_type,
            entity_ref: of.entity_ref.clone(),
            uid: of.uid.clone(),
            entity,
            changed: None,
            reason: None,
            occurred_at: Utc::now(),
            recorded_at: Utc::now(),
            cause,
            previous_offset: None,
        });
        offset
    }

    fn upsert(&mut self, source: &SourceName, upsert: &Upsert) -> bool {
        let now = HeldEntity {
            entity_ref: upsert.entity_ref.clone(),
            uid: upsert.uid.clone(),
            source_version: upsert.source_version.clone(),
            source_position: upsert.source_position,
        };
        self.rejected.remove(&(source.as_str().to_owned(), upsert.entity_ref.as_str().to_owned()));
        let before = self.held.get(&upsert.entity_ref).cloned();
        let offset = match before {
            Some((held, _, _, _)) if held.uid != now.uid => {
                self.push(EventType::Removed, &held, None, upsert.cause);
                self.push(EventType::Added, &now, Some(upsert.entity.clone()), upsert.cause)
            }
            Some((_, _, entity, last)) if entity == upsert.entity => {
                self.held.insert(upsert.entity_ref.clone(), (now, source.clone(), entity, last));
                return false;
            }
            Some(_) => self.push(EventType::Updated, &now, Some(upsert.entity.clone()), upsert.cause),
            None => self.push(EventType::Added, &now, Some(upsert.entity.clone()), upsert.cause),
        };
        self.held.insert(upsert.entity_ref.clone(), (now, source.clone(), upsert.entity.clone(), offset));
        true
    }

    fn remove(&mut self, source: &SourceName, removal: &Removal) -> bool {
        self.rejected.remove(&(source.as_str().to_owned(), removal.entity_ref.as_str().to_owned()));
        let Some((held, _, _, _)) = self.held.remove(&removal.entity_ref) else { return false };
        self.push(EventType::Removed, &held, None, removal.cause);
        true
    }
}

#[async_trait]
impl EventLog for MemoryStore {
    async fn append(&self, append: Append) -> Result<Appended, StoreError> {
        let mut state = self.lock();
        if let Some(position) = &append.position {
            state.check(&append.source, position)?;
        }
        let before = state.events.len();
        let (mut unchanged, mut refused) = (0, 0);
        for change in &append.changes {
            let owner = state.held.get(change.entity_ref()).map(|held| held.1.clone());
            let key = (append.source.as_str().to_owned(), change.entity_ref().as_str().to_owned());
            match (change, owner.filter(|owner| *owner != append.source)) {
                (Change::Upsert(upsert), Some(owner)) => {
                    refused += 1;
                    let rejected = Rejected {
                        entity_ref: key.1.clone(),
                        reason: format!("owned by source \"{owner}\""),
                        source_version: upsert.source_version.clone(),
                        source_position: upsert.source_position,
                    };
                    state.rejected.insert(key, rejected);
                }
                (Change::Remove(_), Some(_)) => drop(state.rejected.remove(&key)),
                (Change::Upsert(upsert), None) => unchanged += u64::from(!state.upsert(&append.source, upsert)),
                (Change::Remove(removal), None) => unchanged += u64::from(!state.remove(&append.source, removal)),
            }
        }
        for rejected in append.rejected {
            state.rejected.insert((append.source.as_str().to_owned(), rejected.entity_ref.clone()), rejected);
        }
        if let Some(position) = append.position {
            state.set_position(&append.source, position);
        }
        let appended = (state.events.len() - before) as u64;
        let last_event_offset = Offset::new(state.events.len() as u64);
        Ok(Appended { appended, unchanged, refused, last_event_offset, repeated: false })
    }

    async fn read(&self, _: Offset, _: ReadLimits) -> Result<Page, StoreError> {
        refused()
    }

    async fn state_at(&self, _: Offset, _: Option<&EntityRef>, _: ReadLimits) -> Result<StatePage, StoreError> {
        refused()
    }

    async fn walk(&self, _: Offset, _: Offset, _: Option<Offset>, _: ReadLimits) -> Result<StatePage, StoreError> {
        refused()
    }

    async fn state(&self) -> Result<LogState, StoreError> {
        refused()
    }

    fn watch(&self) -> watch::Receiver<LogState> {
        let state = LogState { log_id: Uuid::nil(), head: Offset::ZERO, oldest: Offset::ZERO, redactions: 0 };
        watch::channel(state).1
    }

    async fn event(&self, _: Offset) -> Result<Option<LogEntry>, StoreError> {
        refused()
    }

    async fn latest(&self, entity_ref: &EntityRef) -> Result<Option<LogEntry>, StoreError> {
        let state = self.lock();
        let event = state.events.iter().rev().find(|event| event.entity_ref == *entity_ref).cloned();
        Ok(event.map(|event| LogEntry { event, previous_entity: None }))
    }

    async fn history(
        &self,
        _: &EntityRef,
        _: Option<Offset>,
        _: ReadLimits,
    ) -> Result<Vec<std::sync::Arc<LogEntry>>, StoreError> {
        refused()
    }

    async fn held(
        &self,
        source: &SourceName,
        after_ref: Option<&EntityRef>,
        limit: usize,
    ) -> Result<Vec<HeldEntity>, StoreError> {
        let state = self.lock();
        let ours = state.held.values().filter(|held| held.1 == *source).map(|held| held.0.clone());
        Ok(ours.filter(|held| after_ref.is_none_or(|after| held.entity_ref > *after)).take(limit).collect())
    }

    async fn held_by_ref(&self, entity_refs: &[EntityRef]) -> Result<Vec<(HeldEntity, SourceName)>, StoreError> {
        let state = self.lock();
        let held = entity_refs.iter().filter_map(|entity_ref| state.held.get(entity_ref));
        Ok(held.map(|held| (held.0.clone(), held.1.clone())).collect())
    }

    async fn held_count(&self, source: &SourceName) -> Result<u64, StoreError> {
        Ok(self.lock().held.values().filter(|held| held.1 == *source).count() as u64)
    }

    async fn rejected(
        &self,
        source: &SourceName,
        after_ref: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Rejected>, StoreError> {
        let state = self.lock();
        let ours = state.rejected.iter().filter(|((owner, _), _)| owner == source.as_str());
        let after = ours.filter(|((_, entity_ref), _)| after_ref.is_none_or(|after| entity_ref.as_str() > after));
        Ok(after.map(|(_, rejected)| rejected.clone()).take(limit).collect())
    }

    async fn rejected_count(&self, source: &SourceName) -> Result<u64, StoreError> {
        Ok(self.lock().rejected.keys().filter(|(owner, _)| owner == source.as_str()).count() as u64)
    }

    async fn redact(&self, _: &EntityRef) -> Result<u64, StoreError> {
        refused()
    }

    async fn new_log_id(&self, _: &str) -> Result<Uuid, StoreError> {
        refused()
    }

    async fn retain(&self, _: &RetentionPolicy) -> Result<RetentionReport, StoreError> {
        refused()
    }
}

#[async_trait]
impl Checkpoints for MemoryStore {
    async fn checkpoints(&self) -> Result<Vec<Checkpoint>, StoreError> {
        refused()
    }

    async fn checkpoint(&self, _: ConsumerKind, name: &str) -> Result<Option<Checkpoint>, StoreError> {
        Ok(self.lock().leases.get(name).cloned())
    }

    async fn claim(&self, request: &ClaimRequest) -> Result<Claimed, StoreError> {
        let mut state = self.lock();
        let now = Utc::now();
        let row = state.leases.entry(request.name.clone()).or_insert_with(|| new_row(request, now));
        let is_free = row.lease_expires_at.is_none_or(|until| until <= now);
        if !is_free && row.owner.as_deref() != Some(&request.owner) {
            let until = row.lease_expires_at.unwrap_or(now);
            return Ok(Claimed::HeldBy { owner: row.owner.clone().unwrap_or_default(), until });
        }
        row.owner = Some(request.owner.clone());
        row.epoch += 1;
        row.lease_expires_at = Some(now + request.time_to_live);
        Ok(Claimed::Ours(Box::new(row.clone())))
    }

    async fn renew(
        &self,
        _: ConsumerKind,
        name: &str,
        epoch: u64,
        time_to_live: Duration,
    ) -> Result<Checkpoint, StoreError> {
        let mut state = self.lock();
        match state.leases.get_mut(name).filter(|row| row.epoch == epoch) {
            Some(row) => {
                row.lease_expires_at = Some(Utc::now() + time_to_live);
                Ok(row.clone())
            }
            None => Err(StoreError::Fenced("another epoch".to_owned())),
        }
    }

    async fn release(&self, _: ConsumerKind, name: &str, epoch: u64) -> Result<(), StoreError> {
        if let Some(row) = self.lock().leases.get_mut(name).filter(|row| row.epoch == epoch) {
            row.lease_expires_at = None;
        }
        Ok(())
    }

    async fn save(&self, _: &str, _: &CheckpointMove) -> Result<(), StoreError> {
        refused()
    }

    async fn save_status(&self, _: ConsumerKind, name: &str, epoch: u64, status: &JsonText) -> Result<(), StoreError> {
        if let Some(row) = self.lock().leases.get_mut(name).filter(|row| row.epoch == epoch) {
            row.status = Some(status.clone());
        }
        Ok(())
    }

    async fn save_position(&self, source: &SourceName, to: &PositionMove) -> Result<(), StoreError> {
        let mut state = self.lock();
        state.check(source, to)?;
        state.set_position(source, to.clone());
        Ok(())
    }

    async fn command(&self, _: &str, _: &SinkCommand) -> Result<Checkpoint, StoreError> {
        refused()
    }

    async fn record_skipped(&self, _: &Skipped) -> Result<(), StoreError> {
        refused()
    }

    async fn skipped(&self, _: &str, _: Offset, _: usize) -> Result<Vec<Skipped>, StoreError> {
        refused()
    }
}

fn new_row(request: &ClaimRequest, now: DateTime<Utc>) -> Checkpoint {
    Checkpoint {
        kind: request.kind,
        name: request.name.clone(),
        offset: Offset::ZERO,
        source_position: None,
        walk: None,
        walk_removals_above: None,
        connector_state: None,
        owner: None,
        epoch: 0,
        lease_expires_at: None,
        generation: 0,
        fingerprint: None,
        paused: false,
        expired: false,
        commands: 0,
        status: None,
        updated_at: now,
    }
}
