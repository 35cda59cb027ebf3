//! Decides what changes mean: added, updated, removed, or no event at all.
//!
//! Keeps P2: each ref goes added (updated)* removed (added …)*, and an update that changes nothing is no event. A ref belongs
//! to the source that brought it. Knows nothing of SQL or time. Everything costly that needs no held state (parsing,
//! hashing) is in [`Prepared::new`], which runs before the head lock is taken.

use std::collections::{BTreeMap, HashMap};

use catalog_bridge_api::{Cause, Changed, EntityRef, EventType, JsonText, Offset, SourceName};
use chrono::{DateTime, Utc};

use super::canonical::{Canonical, NotCanonical};
use super::{
    APPEND_BYTES_MAX, APPEND_CHANGES_MAX, Append, Appended, Change, Idempotency, OnOwned, PositionMove, Rejected,
    Removal, StoreError, Upsert, changed,
};

/// Longest uid or source version, in bytes.
const LABEL_BYTES_MAX: usize = 1024;

/// What the log holds of an entity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) source: SourceName,
    pub(super) uid: Option<String>,
    pub(super) content_hash: [u8; 32],
    pub(super) source_version: Option<String>,
    pub(super) source_position: Option<i64>,
    pub(super) last_offset: Offset,
}

/// An append whose changes are parsed and hashed.
#[derive(Debug)]
pub(super) struct Prepared {
    pub(super) source: SourceName,
    pub(super) position: Option<PositionMove>,
    pub(super) idempotency: Option<Idempotency>,
    changes: Vec<PreparedChange>,
    rejected: Vec<Rejected>,
    on_owned: OnOwned,
}

#[derive(Debug)]
struct PreparedChange {
    change: Change,
    content: Content,
}

#[derive(Debug)]
enum Content {
    /// Of a removal.
    None,
    Entity {
        canonical: Canonical,
        hash: [u8; 32],
    },
    /// The log cannot take it.
    Refused(String),
}

impl Prepared {
    /// Checks the limits and hashes every entity.
    pub(super) fn new(append: Append) -> Result<Self, StoreError> {
        check_size(&append)?;
        let changes =
            append.changes.into_iter().map(|change| PreparedChange { content: content_of(&change), change }).collect();
        let rejected = append.rejected.into_iter().map(storable).collect();
        let Append { source, position, idempotency, on_owned, .. } = append;
        Ok(Prepared { source, position, idempotency, changes, rejected, on_owned })
    }

    /// The same away from the runtime's threads when there is much to hash.
    pub(super) async fn aside(append: Append) -> Result<Self, StoreError> {
        const INLINE_CHANGES_MAX: usize = 20;
        if append.changes.len() <= INLINE_CHANGES_MAX && entity_bytes(&append) <= 256 * 1024 {
            return Prepared::new(append);
        }
        let hashing = tokio::task::spawn_blocking(|| Prepared::new(append));
        hashing.await.map_err(|error| StoreError::Unavailable { action: "hash entities", source: error.into() })?
    }

    /// The refs that it is about, each once.
    pub(super) fn entity_refs(&self) -> Vec<&str> {
        let mut refs: Vec<&str> = self.changes.iter().map(|prepared| prepared.change.entity_ref().as_str()).collect();
        refs.sort_unstable();
        refs.dedup();
        refs
    }
}

fn check_size(append: &Append) -> Result<(), StoreError> {
    let count = append.changes.len().max(append.rejected.len());
    if count > APPEND_CHANGES_MAX {
        return Err(StoreError::TooLarge(format!("{count} changes at once: send at most {APPEND_CHANGES_MAX}")));
    }
    let bytes = entity_bytes(append);
    if bytes > APPEND_BYTES_MAX {
        return Err(StoreError::TooLarge(format!(
            "{bytes} bytes of entities at once: send at most {APPEND_BYTES_MAX}"
        )));
    }
    if append.idempotency.as_ref().is_some_and(|idempotency| idempotency.key.len() > LABEL_BYTES_MAX) {
        return Err(StoreError::TooLarge(format!("the Idempotency-Key is longer than {LABEL_BYTES_MAX} bytes")));
    }
    Ok(())
}

fn entity_bytes(append: &Append) -> usize {
    let bytes = |change: &Change| match change {
        Change::Upsert(upsert) => upsert.entity.len(),
        Change::Remove(_) => 0,
    };
    append.changes.iter().map(bytes).sum()
}

fn content_of(change: &Change) -> Content {
    let Change::Upsert(upsert) = change else { return Content::None };
    let is_label =
        |text: &Option<String>| text.as_ref().is_none_or(|text| text.len() <= LABEL_BYTES_MAX && !text.contains('\0'));
    if !is_label(&upsert.uid) || !is_label(&upsert.source_version) {
        return Content::Refused(format!("its uid or version is longer than {LABEL_BYTES_MAX} bytes or holds a NUL"));
    }
    match Canonical::of(upsert.entity.as_str()) {
        Ok(canonical) => Content::Entity { hash: canonical.hash(), canonical },
        Err(error @ (NotCanonical::TooDeep | NotCanonical::Malformed(_))) => Content::Refused(error.to_string()),
    }
}

/// Text as both stores take it: no NUL, and no longer than an index takes.
fn storable(mut rejected: Rejected) -> Rejected {
    let clean = |text: &mut String| {
        text.retain(|character| character != '\0');
        if text.len() > LABEL_BYTES_MAX {
            text.truncate(text.floor_char_boundary(LABEL_BYTES_MAX));
        }
    };
    clean(&mut rejected.entity_ref);
    clean(&mut rejected.reason);
    if let Some(version) = &mut rejected.source_version {
        clean(version);
    }
    rejected
}

/// An event to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct NewEvent {
    pub(super) offset: Offset,
    pub(super) event_type: EventType,
    pub(super) entity_ref: EntityRef,
    pub(super) uid: Option<String>,
    pub(super) entity: Option<JsonText>,
    pub(super) changed: Option<Changed>,
    pub(super) occurred_at: Option<DateTime<Utc>>,
    pub(super) cause: Cause,
    pub(super) previous_offset: Option<Offset>,
}

impl NewEvent {
    /// `changed` as the stores keep it.
    pub(super) fn changed_text(&self) -> Option<String> {
        self.changed.as_ref().map(|changed| serde_json::to_string(changed).expect("strings and a bool serialize"))
    }
}

/// A refused state to be remembered, with the owner of the ref where that is the reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct NewRejected {
    pub(super) rejected: Rejected,
    pub(super) owner: Option<SourceName>,
}

/// What an append comes to.
#[derive(Debug)]
pub(super) struct Decision {
    /// In offset order, dense from head + 1.
    pub(super) events: Vec<NewEvent>,
    /// The entities whose rows change: what is held from now on, or `None` for those that are gone.
    pub(super) entities: BTreeMap<EntityRef, Option<Held>>,
    /// By ref: what to remember as rejected, or `None` where an earlier record is to be forgotten.
    pub(super) rejected: BTreeMap<String, Option<NewRejected>>,
    pub(super) unchanged: u64,
    pub(super) refused: u64,
    /// The content of each event, by its index.
    contents: Vec<Option<Canonical>>,
}

impl Decision {
    /// The offsets of the stored events whose bodies [`Decision::compare`] needs, ascending.
    pub(super) fn predecessors(&self) -> Vec<Offset> {
        let mut offsets: Vec<Offset> = self.awaiting().filter_map(|index| self.events[index].previous_offset).collect();
        offsets.sort_unstable();
        offsets
    }

    /// Fills in the `changed` paths of the updates whose predecessors these are.
    pub(super) fn compare(&mut self, bodies: &HashMap<Offset, Option<String>>) {
        let waiting: Vec<usize> = self.awaiting().collect();
        for index in waiting {
            let Some(body) = self.events[index].previous_offset.and_then(|offset| bodies.get(&offset)) else {
                continue;
            };
            let before = body.as_deref().and_then(|body| Canonical::of(body).ok());
            let changed = match (&before, &self.contents[index]) {
                (Some(before), Some(after)) => changed::changed(before, after),
                _ => changed::unknown(),
            };
            self.events[index].changed = Some(changed);
            self.contents[index] = None;
        }
    }

    /// Of the updates whose predecessors were not compared: anything may have changed.
    pub(super) fn give_up_comparing(&mut self) {
        let waiting: Vec<usize> = self.awaiting().collect();
        for index in waiting {
            self.events[index].changed = Some(changed::unknown());
        }
    }

    /// The answer to the append.
    pub(super) fn appended(&self, head_before: Offset) -> Appended {
        Appended {
            appended: self.events.len() as u64,
            unchanged: self.unchanged,
            refused: self.refused,
            last_event_offset: self.events.last().map_or(head_before, |event| event.offset),
            repeated: false,
        }
    }

    /// The entities that are held from now on.
    pub(super) fn held(&self) -> impl Iterator<Item = (&EntityRef, &Held)> {
        self.entities.iter().filter_map(|(entity_ref, held)| Some((entity_ref, held.as_ref()?)))
    }

    /// The entities that are gone.
    pub(super) fn gone(&self) -> impl Iterator<Item = &EntityRef> {
        self.entities.iter().filter(|(_, held)| held.is_none()).map(|(entity_ref, _)| entity_ref)
    }

    /// What is to be remembered as rejected.
    pub(super) fn remembered(&self) -> impl Iterator<Item = &NewRejected> {
        self.rejected.values().flatten()
    }

    /// The refs whose records as rejected are to be forgotten.
    pub(super) fn forgotten(&self) -> impl Iterator<Item = &str> {
        self.rejected.iter().filter(|(_, new)| new.is_none()).map(|(entity_ref, _)| entity_ref.as_str())
    }

    /// How many events of a type.
    pub(super) fn count(&self, event_type: EventType) -> u64 {
        self.events.iter().filter(|event| event.event_type == event_type).count() as u64
    }

    /// The updates whose `changed` paths are not known yet.
    fn awaiting(&self) -> impl Iterator<Item = usize> {
        let waits = |event: &NewEvent| event.event_type == EventType::Updated && event.changed.is_none();
        self.events.iter().enumerate().filter(move |(_, event)| waits(event)).map(|(index, _)| index)
    }
}

impl PositionMove {
    /// The refusal, with what is stored instead (epoch and position).
    pub(super) fn fenced(&self, source: &SourceName, stored: Option<&(u64, Option<String>)>) -> StoreError {
        StoreError::Fenced(match stored {
            None => format!("source \"{source}\" has no lease"),
            Some((epoch, _)) if *epoch != self.epoch => {
                format!("source \"{source}\" has epoch {epoch}, this owner {}", self.epoch)
            }
            Some(_) => format!("source \"{source}\" is at another position than its owner expects"),
        })
    }
}

impl Idempotency {
    /// The first answer again, if it was to the same body.
    pub(super) fn repeat(&self, body_hash: &str, answer: &str) -> Result<Appended, StoreError> {
        if body_hash != self.body_hash {
            return Err(StoreError::IdempotencyMismatch);
        }
        let answer: Appended = serde_json::from_str(answer)
            .map_err(|error| StoreError::Unavailable { action: "read an earlier answer", source: error.into() })?;
        Ok(Appended { repeated: true, ..answer })
    }
}

impl Appended {
    /// As the stores keep it for a repetition.
    pub(super) fn to_text(self) -> String {
        serde_json::to_string(&self).expect("numbers serialize")
    }
}

/// Decides each change in order against what the log holds (`held`, of all refs of the append) at `head`.
pub(super) fn decide(prepared: Prepared, held: HashMap<EntityRef, Held>, head: Offset) -> Result<Decision, StoreError> {
    let capacity = prepared.changes.len();
    let mut deciding = Deciding {
        source: prepared.source,
        on_owned: prepared.on_owned,
        held,
        head,
        decision: Decision {
            events: Vec::with_capacity(capacity),
            entities: BTreeMap::new(),
            rejected: BTreeMap::new(),
            unchanged: 0,
            refused: 0,
            contents: Vec::with_capacity(capacity),
        },
    };
    for (index, PreparedChange { change, content }) in prepared.changes.into_iter().enumerate() {
        deciding.decide(index, change, content)?;
    }
    let mut decision = deciding.decision;
    for rejected in prepared.rejected {
        decision.rejected.insert(rejected.entity_ref.clone(), Some(NewRejected { rejected, owner: None }));
    }
    Ok(decision)
}

struct Deciding {
    source: SourceName,
    on_owned: OnOwned,
    /// As the changes before this one leave it.
    held: HashMap<EntityRef, Held>,
    /// Before the append.
    head: Offset,
    decision: Decision,
}

impl Deciding {
    fn decide(&mut self, index: usize, change: Change, content: Content) -> Result<(), StoreError> {
        let entity_ref = change.entity_ref();
        if let Some(owner) = self.held.get(entity_ref).map(|held| &held.source).filter(|owner| **owner != self.source) {
            let owner = owner.clone();
            return self.owned(index, change, owner);
        }
        match (change, content) {
            (Change::Upsert(upsert), Content::Entity { canonical, hash }) => {
                self.decision.rejected.insert(upsert.entity_ref.as_str().to_owned(), None);
                self.upsert(upsert, canonical, hash);
            }
            (Change::Upsert(upsert), Content::Refused(reason)) => return self.refused(index, &upsert, reason),
            (Change::Upsert(_), Content::None) => {}
            (Change::Remove(removal), _) => {
                self.decision.rejected.insert(removal.entity_ref.as_str().to_owned(), None);
                self.remove(&removal);
            }
        }
        Ok(())
    }

    fn upsert(&mut self, upsert: Upsert, canonical: Canonical, hash: [u8; 32]) {
        let held = self.held.get(&upsert.entity_ref);
        let is_another = held.is_some_and(|held| match (&held.uid, &upsert.uid) {
            (Some(held), Some(uid)) => held != uid,
            _ => false,
        });
        let Some(held) = held.filter(|_| !is_another).cloned() else {
            if is_another {
                let Upsert { entity_ref, occurred_at, cause, .. } = &upsert;
                self.remove(&Removal { entity_ref: entity_ref.clone(), occurred_at: *occurred_at, cause: *cause });
            }
            let last_offset = self.push(EventType::Added, &upsert, canonical, None);
            self.hold(upsert, hash, last_offset);
            return;
        };
        if held.content_hash != hash {
            let last_offset = self.push(EventType::Updated, &upsert, canonical, Some(held.last_offset));
            self.hold(upsert, hash, last_offset);
            return;
        }
        self.decision.unchanged += 1;
        let is_known = held.uid == upsert.uid
            && held.source_version == upsert.source_version
            && held.source_position == upsert.source_position;
        if !is_known {
            self.hold(upsert, hash, held.last_offset);
        }
    }

    fn remove(&mut self, removal: &Removal) {
        let Some(held) = self.held.remove(&removal.entity_ref) else {
            self.decision.unchanged += 1;
            return;
        };
        self.decision.events.push(NewEvent {
            offset: self.next(),
            event_type: EventType::Removed,
            entity_ref: removal.entity_ref.clone(),
            uid: held.uid,
            entity: None,
            changed: None,
            occurred_at: removal.occurred_at,
            cause: removal.cause,
            previous_offset: Some(held.last_offset),
        });
        self.decision.contents.push(None);
        self.decision.entities.insert(removal.entity_ref.clone(), None);
    }

    /// Writes an event that carries the entity; of an update whose predecessor is in this append also what changed.
    fn push(
        &mut self,
        event_type: EventType,
        upsert: &Upsert,
        canonical: Canonical,
        previous_offset: Option<Offset>,
    ) -> Offset {
        let offset = self.next();
        let before = previous_offset
            .and_then(|previous| previous.get().checked_sub(self.head.get() + 1))
            .and_then(|index| self.decision.contents.get(usize::try_from(index).ok()?)?.as_ref());
        let changed = before.map(|before| changed::changed(before, &canonical));
        self.decision.events.push(NewEvent {
            offset,
            event_type,
            entity_ref: upsert.entity_ref.clone(),
            uid: upsert.uid.clone(),
            entity: Some(upsert.entity.clone()),
            changed,
            occurred_at: upsert.occurred_at,
            cause: upsert.cause,
            previous_offset,
        });
        self.decision.contents.push(Some(canonical));
        offset
    }

    fn hold(&mut self, upsert: Upsert, content_hash: [u8; 32], last_offset: Offset) {
        let held = Held {
            source: self.source.clone(),
            uid: upsert.uid,
            content_hash,
            source_version: upsert.source_version,
            source_position: upsert.source_position,
            last_offset,
        };
        self.held.insert(upsert.entity_ref.clone(), held.clone());
        self.decision.entities.insert(upsert.entity_ref, Some(held));
    }

    /// The ref belongs to another source.
    fn owned(&mut self, index: usize, change: Change, owner: SourceName) -> Result<(), StoreError> {
        if self.on_owned == OnOwned::RefuseAll {
            return Err(StoreError::RefOwned { index, entity_ref: change.entity_ref().clone(), owner });
        }
        match change {
            Change::Upsert(upsert) => {
                self.decision.refused += 1;
                self.remember(&upsert, format!("owned by source \"{owner}\""), Some(owner));
            }
            // The source claims it no longer.
            Change::Remove(removal) => {
                self.decision.unchanged += 1;
                self.decision.rejected.insert(removal.entity_ref.as_str().to_owned(), None);
            }
        }
        Ok(())
    }

    /// The log cannot take this state.
    fn refused(&mut self, index: usize, upsert: &Upsert, reason: String) -> Result<(), StoreError> {
        if self.on_owned == OnOwned::RefuseAll {
            return Err(StoreError::TooLarge(format!("change {index}: {}: {reason}", upsert.entity_ref)));
        }
        self.decision.refused += 1;
        self.remember(upsert, reason, None);
        Ok(())
    }

    fn remember(&mut self, upsert: &Upsert, reason: String, owner: Option<SourceName>) {
        let entity_ref = upsert.entity_ref.as_str().to_owned();
        let rejected = storable(Rejected {
            entity_ref: entity_ref.clone(),
            reason,
            source_version: upsert.source_version.clone(),
            source_position: upsert.source_position,
        });
        self.decision.rejected.insert(entity_ref, Some(NewRejected { rejected, owner }));
    }

    fn next(&self) -> Offset {
        Offset::new(self.head.get() + 1 + self.decision.events.len() as u64)
    }
}

#[cfg(test)]
mod tests {
    use catalog_bridge_api::Event;
    use catalog_bridge_history::{Truth, check_dense, check_well_formed, live_state};
    use proptest::prelude::*;

    use super::*;

    fn source(name: &str) -> SourceName {
        SourceName::parse(name).expect("a name")
    }

    fn entity_ref(name: &str) -> EntityRef {
        EntityRef::parse(&format!("component:default/{name}")).expect("a ref")
    }

    fn upsert(name: &str, uid: &str, entity: &str) -> Change {
        Change::Upsert(Upsert {
            entity_ref: entity_ref(name),
            uid: Some(uid.to_owned()),
            entity: JsonText::parse(entity).expect("JSON"),
            source_version: None,
            source_position: None,
            occurred_at: None,
            cause: Cause::Capture,
        })
    }

    fn remove(name: &str) -> Change {
        Change::Remove(Removal { entity_ref: entity_ref(name), occurred_at: None, cause: Cause::Capture })
    }

    fn append(changes: Vec<Change>) -> Append {
        Append {
            source: source("catalog"),
            changes,
            position: None,
            idempotency: None,
            rejected: Vec::new(),
            on_owned: OnOwned::Record,
        }
    }

    /// A log in memory: what both stores do with a decision.
    #[derive(Default)]
    struct Memory {
        events: Vec<Event>,
        held: HashMap<EntityRef, Held>,
    }

    impl Memory {
        fn append(&mut self, append: Append) -> Decision {
            let prepared = Prepared::new(append).expect("within the limits");
            let head = Offset::new(self.events.len() as u64);
            let mut decision = decide(prepared, self.held.clone(), head).expect("decided");
            let body = |offset: &Offset| {
                let index = usize::try_from(offset.get()).expect("small") - 1;
                (*offset, self.events[index].entity.as_ref().map(|entity| entity.as_str().to_owned()))
            };
            let bodies = decision.predecessors().iter().map(body).collect();
            decision.compare(&bodies);
            for event in decision.events.clone() {
                let recorded_at = DateTime::UNIX_EPOCH;
                self.events.push(Event {
                    offset: event.offset,
                    event_type: event.event_type,
                    entity_ref: event.entity_ref,
                    uid: event.uid,
                    entity: event.entity,
                    changed: event.changed,
                    reason: None,
                    occurred_at: recorded_at,
                    recorded_at,
                    cause: event.cause,
                    previous_offset: event.previous_offset,
                });
            }
            for (entity_ref, held) in decision.entities.clone() {
                match held {
                    Some(held) => self.held.insert(entity_ref, held),
                    None => self.held.remove(&entity_ref),
                };
            }
            decision
        }

        fn types(&self) -> Vec<&'static str> {
            self.events.iter().map(|event| event.event_type.as_str()).collect()
        }
    }

    /// P2.
    #[test]
    fn key_order_and_white_space_are_no_change() {
        let mut log = Memory::default();
        log.append(append(vec![upsert("a", "1", r#"{"x":1,"y":2}"#)]));

        let decision = log.append(append(vec![upsert("a", "1", r#"{ "y": 2, "x": 1 }"#)]));

        assert_eq!((decision.events.len(), decision.unchanged), (0, 1));
    }

    #[test]
    fn another_uid_is_a_removal_and_an_addition() {
        let mut log = Memory::default();
        log.append(append(vec![upsert("a", "1", "{}")]));

        log.append(append(vec![upsert("a", "2", "{}")]));

        assert_eq!(log.types(), ["added", "removed", "added"]);
        assert_eq!(log.events[1].uid.as_deref(), Some("1"));
        assert_eq!(log.events[1].previous_offset, Some(Offset::new(1)));
        assert_eq!(log.events[2].previous_offset, None);
    }

    #[test]
    fn an_update_of_a_redacted_entity_may_have_changed_anything() {
        let mut log = Memory::default();
        log.append(append(vec![upsert("a", "1", "{}")]));
        log.events[0].entity = None;

        log.append(append(vec![upsert("a", "1", "[]")]));

        assert_eq!(log.events[1].changed, Some(changed::unknown()));
    }

    #[test]
    fn a_foreign_ref_is_remembered_until_the_claim_ends() {
        let mut log = Memory::default();
        log.append(Append { source: source("files"), ..append(vec![upsert("a", "1", "{}")]) });

        let claimed = log.append(append(vec![upsert("a", "1", "[]"), upsert("b", "1", "[]")]));
        let ended = log.append(append(vec![remove("a")]));

        let owner = claimed.rejected[entity_ref("a").as_str()].as_ref().and_then(|rejected| rejected.owner.clone());
        assert_eq!(owner, Some(source("files")));
        assert_eq!((claimed.refused, claimed.events.len()), (1, 1));
        assert_eq!(ended.rejected[entity_ref("a").as_str()], None);
        assert_eq!(log.types(), ["added", "added"]);
    }

    #[test]
    fn ingest_refuses_everything_for_one_foreign_ref() {
        let mut log = Memory::default();
        log.append(Append { source: source("files"), ..append(vec![upsert("b", "1", "{}")]) });
        let refusing = Append { on_owned: OnOwned::RefuseAll, ..append(vec![upsert("a", "1", "{}"), remove("b")]) };

        let answer = decide(Prepared::new(refusing).expect("prepared"), log.held, Offset::new(1));

        assert!(matches!(answer, Err(StoreError::RefOwned { index: 1, owner, .. }) if owner == source("files")));
    }

    #[test]
    fn too_deep_an_entity_is_remembered_and_the_rest_appended() {
        let deep = "[".repeat(200_000) + &"]".repeat(200_000);
        let mut log = Memory::default();

        let decision = log.append(append(vec![upsert("a", "1", &deep), upsert("b", "1", "{}")]));

        assert_eq!((decision.refused, decision.events.len()), (1, 1));
        assert!(decision.rejected[entity_ref("a").as_str()].is_some());
        let refusing = Append { on_owned: OnOwned::RefuseAll, ..append(vec![upsert("a", "1", &deep)]) };
        let answer = decide(Prepared::new(refusing).expect("prepared"), HashMap::new(), Offset::ZERO);
        assert!(matches!(answer, Err(StoreError::TooLarge(_))));
    }

    #[test]
    fn more_than_an_append_may_hold_is_refused() {
        let many = append((0..=APPEND_CHANGES_MAX).map(|_| remove("a")).collect());
        let half = format!("\"{}\"", "x".repeat(APPEND_BYTES_MAX / 2));
        let large = append(vec![upsert("a", "1", &half), upsert("b", "1", &half)]);

        assert!(matches!(Prepared::new(many), Err(StoreError::TooLarge(_))));
        assert!(matches!(Prepared::new(large), Err(StoreError::TooLarge(_))));
    }

    fn changes() -> impl Strategy<Value = Vec<Change>> {
        let name = prop::sample::select(vec!["a", "b", "c"]);
        let uid = prop::sample::select(vec!["1", "2"]);
        let entity = (0..3_u8, 0..3_u8).prop_map(|(one, other)| format!(r#"{{"x":{one},"y":{{"z":{other}}}}}"#));
        let change = prop_oneof![
            4 => (name.clone(), uid, entity).prop_map(|(name, uid, entity)| upsert(name, uid, &entity)),
            1 => name.prop_map(remove),
        ];
        prop::collection::vec(change, 0..12)
    }

    proptest! {
        /// P1 and P2: whatever the sources say, in whatever batches, the log is well formed and its fold is the truth.
        #[test]
        fn any_changes_make_a_well_formed_log(batches in prop::collection::vec(changes(), 0..12)) {
            let mut log = Memory::default();
            let mut truth = Truth::new();
            for batch in batches {
                for change in &batch {
                    match change {
                        Change::Upsert(upsert) => {
                            let value = serde_json::from_str(upsert.entity.as_str()).expect("JSON");
                            truth.insert(upsert.entity_ref.clone(), value);
                        }
                        Change::Remove(removal) => {
                            truth.remove(&removal.entity_ref);
                        }
                    }
                }
                log.append(append(batch));
            }

            check_dense(Offset::ZERO, &log.events).map_err(|error| TestCaseError::fail(error.to_string()))?;
            check_well_formed(&log.events).map_err(|error| TestCaseError::fail(error.to_string()))?;
            prop_assert_eq!(live_state(Truth::new(), &log.events).expect("state"), truth);
            for event in &log.events {
                let is_update = event.event_type == EventType::Updated;
                prop_assert_eq!(event.changed.as_ref().is_some_and(|changed| !changed.paths.is_empty()), is_update);
            }
        }
    }
}
