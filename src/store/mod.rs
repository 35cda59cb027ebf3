//! Everything durable: the event log, what is known of each entity, and the positions of sources and sinks.
//!
//! Invariants: P1 (dense, final offsets), P2 (well formed per entity), P4 (exact state at an offset), P9 (appends and
//! checkpoints compare the lease's epoch). Two stores keep them, PostgreSQL and SQLite; one suite runs against both.
//! Knows nothing of HTTP, of sources or of brokers. DESIGN section 4 is the contract that the traits here spell out.

mod canonical;
mod changed;
mod checkpoint;
mod decide;
mod decode;
mod head;
mod inspect;
mod metrics;
mod page;
mod postgres;
mod queries;
pub mod retention;
mod settings;
mod sqlite;
#[cfg(test)]
mod suite;
mod tail;
mod walk;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use catalog_bridge_api::{BoxError, Cause, EntityRef, Event, JsonText, Offset, SourceName};
use chrono::{DateTime, Utc};
use serde::Serialize;
use tokio::sync::watch;
use uuid::Uuid;

pub use self::inspect::{Inspection, LARGE_MAX, inspect};
pub use self::metrics::Metrics;
pub use self::settings::{Backend, PostgresSettings, Settings};
pub use self::tail::Tail;

/// What this binary can read; a store whose `min_reader_version` is above it is refused ([`StoreError::TooNew`]).
pub const READER_VERSION: i64 = 1;

/// Opens the store that the settings name: connects (or waits for the file's lock), migrates, and reads where the log stands.
pub async fn open(settings: &Settings, metrics: Metrics) -> Result<Arc<dyn Store>, StoreError> {
    Ok(match &settings.backend {
        Backend::Postgres(postgres) => Arc::new(postgres::PostgresStore::open(settings, postgres, metrics).await?),
        Backend::Sqlite { path } => Arc::new(sqlite::SqliteStore::open(path, metrics).await?),
    })
}

/// What a source states; the log decides what it means (added, updated, removed, or no event at all).
#[derive(Debug, Clone)]
pub enum Change {
    /// The entity is now so.
    Upsert(Upsert),
    /// The ref is gone. Of a ref that the log does not hold it is no event.
    Remove(Removal),
}

/// An entity as it is now.
#[derive(Debug, Clone)]
pub struct Upsert {
    /// Its ref.
    pub entity_ref: EntityRef,
    /// Its `metadata.uid`. A different uid than the one held gives `removed` and `added`.
    pub uid: Option<String>,
    /// Its JSON, kept byte for byte.
    pub entity: JsonText,
    /// What the source compares by (Backstage's `hash`); opaque.
    pub source_version: Option<String>,
    /// The source's generation or drain position of this state; opaque, compared as a number by the source itself.
    pub source_position: Option<i64>,
    /// When it happened, where the source knows.
    pub occurred_at: Option<DateTime<Utc>>,
    /// How the source learned of it.
    pub cause: Cause,
}

/// An entity that is gone.
#[derive(Debug, Clone)]
pub struct Removal {
    /// Its ref.
    pub entity_ref: EntityRef,
    /// When it happened, where the source knows.
    pub occurred_at: Option<DateTime<Utc>>,
    /// How the source learned of it.
    pub cause: Cause,
}

impl Change {
    /// The entity that it is about.
    pub fn entity_ref(&self) -> &EntityRef {
        match self {
            Change::Upsert(upsert) => &upsert.entity_ref,
            Change::Remove(removal) => &removal.entity_ref,
        }
    }
}

/// Most changes of one append.
pub const APPEND_CHANGES_MAX: usize = 10_000;
/// Most bytes of entities of one append, and the largest entity.
pub const APPEND_BYTES_MAX: usize = 16 * 1024 * 1024;

/// One transaction's worth of changes.
#[derive(Debug, Clone)]
pub struct Append {
    /// Whose changes these are: a ref belongs to the source that brought it.
    pub source: SourceName,
    /// In the order in which they happened.
    pub changes: Vec<Change>,
    /// Moves the source's checkpoint in the same transaction; `None` for ingest, which has no position.
    pub position: Option<PositionMove>,
    /// Answers a repeated request with the first answer; `None` for sources.
    pub idempotency: Option<Idempotency>,
    /// What the log cannot take, found by the source (unparsable, too deep, too large); recorded in the same transaction.
    /// A later good upsert or removal of the ref clears its record.
    pub rejected: Vec<Rejected>,
    /// Ingest refuses the whole append when one ref belongs to another source; other sources remember it as rejected and go on.
    pub on_owned: OnOwned,
}

/// What to do with a ref that belongs to another source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnOwned {
    /// Append nothing: [`StoreError::RefOwned`].
    RefuseAll,
    /// Record it in `rejected` (reason `owned by source …`) and append the rest.
    Record,
}

/// A compare-and-set of a source's checkpoint.
#[derive(Debug, Clone)]
pub struct PositionMove {
    /// The epoch under which the source owns its lease.
    pub epoch: u64,
    /// The position that must be stored now, else [`StoreError::Fenced`]. `None`: none yet.
    pub expected: Option<JsonText>,
    /// The new position (opaque JSON).
    pub new: JsonText,
}

/// A request that may be repeated.
#[derive(Debug, Clone)]
pub struct Idempotency {
    /// The client's key, with the token's name before it.
    pub key: String,
    /// SHA-256 of the body, hex.
    pub body_hash: String,
}

/// A ref whose state the log cannot take.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Rejected {
    /// The ref (or, where even that cannot be parsed, the text that stood for it).
    pub entity_ref: String,
    /// Why, for a person.
    pub reason: String,
    /// The source's version of the refused state, to see that it changed.
    pub source_version: Option<String>,
    /// The source's position of the refused state.
    pub source_position: Option<i64>,
}

/// What an append did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Appended {
    /// Events written.
    pub appended: u64,
    /// Changes that changed nothing.
    pub unchanged: u64,
    /// Refs refused and remembered as rejected: another source owns them, or the log cannot take them.
    #[serde(default)]
    pub refused: u64,
    /// The log's head after it: everything stated by this append is at or below it.
    pub last_event_offset: Offset,
    /// The answer is an earlier request's (same idempotency key and body).
    #[serde(default, skip_serializing)]
    pub repeated: bool,
}

/// An event with its entity's body before it, which views need.
#[derive(Debug, Clone)]
pub struct LogEntry {
    /// The event.
    pub event: Event,
    /// The entity before it; `None` for `added`, and where that body is no longer kept (only for removals and redactions).
    pub previous_entity: Option<JsonText>,
}

impl LogEntry {
    /// Bytes that it holds.
    pub fn size_bytes(&self) -> usize {
        let body = |text: &Option<JsonText>| text.as_ref().map_or(0, JsonText::len);
        body(&self.event.entity) + body(&self.previous_entity) + self.event.entity_ref.as_str().len() + 256
    }
}

/// Where the log stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LogState {
    /// The log's identity; offsets mean something only together with it.
    pub log_id: Uuid,
    /// The last event's offset; 0 when there is none.
    pub head: Offset,
    /// The smallest offset that a reader may resume after.
    pub oldest: Offset,
    /// Counts redactions: caches of bodies are dropped when it moves.
    pub redactions: u64,
}

/// How much to read. At least one event is returned, however large.
#[derive(Debug, Clone, Copy)]
pub struct ReadLimits {
    /// Most events.
    pub events_max: usize,
    /// Most bytes, by [`LogEntry::size_bytes`].
    pub bytes_max: usize,
}

/// A contiguous piece of the log, with the log's state of the same snapshot.
#[derive(Debug, Clone)]
pub struct Page {
    /// The state that the entries were read in.
    pub state: LogState,
    /// Offsets after+1, after+2, …
    pub entries: Vec<Arc<LogEntry>>,
}

/// A piece of a walk or of the state at an offset.
#[derive(Debug, Clone)]
pub struct StatePage {
    /// Last events of entities. For `state_at` ordered by ref, for `walk` by offset.
    pub entries: Vec<Arc<LogEntry>>,
    /// False on the last page.
    pub more: bool,
}

/// One entity that a source brought and the log holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldEntity {
    /// Its ref.
    pub entity_ref: EntityRef,
    /// Its uid.
    pub uid: Option<String>,
    /// What the source compares by.
    pub source_version: Option<String>,
    /// The source's position of what we hold.
    pub source_position: Option<i64>,
}

/// What the store can refuse or fail at.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The lease moved on, or the position is not the expected one: nothing was written; stop owning.
    #[error("fenced: {0}")]
    Fenced(String),
    /// The offset is below `oldest`: bootstrap again.
    #[error("offset {asked} is no longer kept: the oldest to resume after is {oldest}, head is {head}")]
    Expired {
        /// What was asked for.
        asked: Offset,
        /// The smallest that works.
        oldest: Offset,
        /// The log's head.
        head: Offset,
    },
    /// A ref belongs to another source; nothing was written.
    #[error("change {index}: {entity_ref} belongs to source \"{owner}\"; remove it there first")]
    RefOwned {
        /// Which of the changes.
        index: usize,
        /// The ref.
        entity_ref: EntityRef,
        /// Who owns it.
        owner: SourceName,
    },
    /// The idempotency key was used with another body; nothing was written.
    #[error("this Idempotency-Key was used with another body")]
    IdempotencyMismatch,
    /// More than one append may hold; nothing was written.
    #[error("{0}")]
    TooLarge(String),
    /// A command that makes no sense for this sink (unknown, an offset beyond head or already passed): nothing was written.
    #[error("{0}")]
    Refused(String),
    /// The log's id is not the one that the caller works with (restored, or `log new-id`): begin again.
    #[error("the log changed: its id is now {now}")]
    LogChanged {
        /// The new id.
        now: Uuid,
    },
    /// This binary is too old for the store.
    #[error("the store needs a reader of version {needed}, this binary is version {ours}: upgrade catalog-bridge")]
    TooNew {
        /// The store's `min_reader_version`.
        needed: i64,
        /// What this binary reads.
        ours: i64,
    },
    /// The database is away or failed: try again.
    #[error("{action}: {source}")]
    Unavailable {
        /// What was being done.
        action: &'static str,
        /// In the database's words, without credentials.
        source: BoxError,
    },
}

/// What retention keeps (DESIGN section 4). Live entities' last events are always kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetentionPolicy {
    /// Events older than this may go.
    pub age: Duration,
    /// At most so many bytes of what may go.
    pub bytes: u64,
    /// At most so many events of what may go; `None`: no limit.
    pub events: Option<u64>,
    /// How long a removal is kept as an entity's last event.
    pub removals: Duration,
}

/// What one pass of retention did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RetentionReport {
    /// Events deleted.
    pub deleted: u64,
    /// `oldest` now.
    pub oldest: Offset,
    /// Bytes that may be deleted when their time comes, against the policy's limit.
    pub deletable_bytes: u64,
    /// Sinks that fell behind the limit and became expired in this pass.
    pub expired_sinks: Vec<String>,
    /// Of enabled sinks: how much of the limit of bytes or events lies before them, in per cent; at 100 a sink expires. Those
    /// before which nothing lies are left out.
    pub sink_percent: BTreeMap<String, u64>,
}

/// The event log. Every method may be called from any task of any replica at once.
#[async_trait]
pub trait EventLog: Send + Sync {
    /// Decides and writes the changes in one transaction (DESIGN section 4, `append`): takes the head lock, compares epoch and
    /// position, decides each change against what the log holds, in order. An ambiguous commit is resolved by reading again.
    async fn append(&self, append: Append) -> Result<Appended, StoreError>;

    /// The events after `after`, contiguous, with their predecessors' bodies, from one snapshot. Empty at head.
    async fn read(&self, after: Offset, limits: ReadLimits) -> Result<Page, StoreError>;

    /// Each live entity's last event at or below `at`, ordered by ref, after `after_ref`. `Expired` when `at < oldest`.
    async fn state_at(
        &self,
        at: Offset,
        after_ref: Option<&EntityRef>,
        limits: ReadLimits,
    ) -> Result<StatePage, StoreError>;

    /// Ascending by true offset after `after`: each live entity's last event at or below `at`, as `added`; and, with
    /// `removals_above`, also the removals above that offset which are their entity's last event at or below `at`.
    async fn walk(
        &self,
        at: Offset,
        after: Offset,
        removals_above: Option<Offset>,
        limits: ReadLimits,
    ) -> Result<StatePage, StoreError>;

    /// The state now, asked from the store itself (also notices a restored store).
    async fn state(&self) -> Result<LogState, StoreError>;

    /// Follows the state: local appends at once, other replicas' within 250 ms. Never goes back under one log id.
    fn watch(&self) -> watch::Receiver<LogState>;

    /// One event by its offset; `None` when it is not (or no longer) there.
    async fn event(&self, offset: Offset) -> Result<Option<LogEntry>, StoreError>;

    /// The last event of an entity, also a removal; `None` when nothing is kept of it.
    async fn latest(&self, entity_ref: &EntityRef) -> Result<Option<LogEntry>, StoreError>;

    /// An entity's kept events before `before` (or from the newest), newest first.
    async fn history(
        &self,
        entity_ref: &EntityRef,
        before: Option<Offset>,
        limits: ReadLimits,
    ) -> Result<Vec<Arc<LogEntry>>, StoreError>;

    /// What the log holds of a source's entities, ordered by ref (byte order), after `after_ref`.
    async fn held(
        &self,
        source: &SourceName,
        after_ref: Option<&EntityRef>,
        limit: usize,
    ) -> Result<Vec<HeldEntity>, StoreError>;

    /// What the log holds of these refs, whoever brought them: (entity, owner).
    async fn held_by_ref(&self, entity_refs: &[EntityRef]) -> Result<Vec<(HeldEntity, SourceName)>, StoreError>;

    /// How many entities of the source the log holds.
    async fn held_count(&self, source: &SourceName) -> Result<u64, StoreError>;

    /// What could not be taken from the source, ordered by ref, after `after_ref`.
    async fn rejected(
        &self,
        source: &SourceName,
        after_ref: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Rejected>, StoreError>;

    /// How many refs of the source are rejected.
    async fn rejected_count(&self, source: &SourceName) -> Result<u64, StoreError>;

    /// Removes every body of an entity, and its `changed` paths; offsets stay. Returns the number of events touched.
    async fn redact(&self, entity_ref: &EntityRef) -> Result<u64, StoreError>;

    /// Gives the log a new id and every sink a new generation; clients learn by 409.
    async fn new_log_id(&self, reason: &str) -> Result<Uuid, StoreError>;

    /// One pass of retention, in short transactions.
    async fn retain(&self, policy: &RetentionPolicy) -> Result<RetentionReport, StoreError>;
}

/// Source or sink: the two kinds of row in `checkpoints`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ConsumerKind {
    /// Appends to the log.
    Source,
    /// Reads from it.
    Sink,
}

impl ConsumerKind {
    /// `source` or `sink`.
    pub const fn as_str(self) -> &'static str {
        match self {
            ConsumerKind::Source => "source",
            ConsumerKind::Sink => "sink",
        }
    }
}

/// One row of `checkpoints`, as anyone may read it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Checkpoint {
    /// Source or sink.
    pub kind: ConsumerKind,
    /// Its name in the config.
    pub name: String,
    /// Of a sink: the acknowledged prefix. Of a source: 0.
    pub offset: Offset,
    /// Of a source: its opaque position.
    pub source_position: Option<JsonText>,
    /// Of a sink that walks: the S of its walk.
    pub walk: Option<Offset>,
    /// Of a walk that also tells removals (the sink had delivered before): those above this offset.
    pub walk_removals_above: Option<Offset>,
    /// What the connector must keep.
    pub connector_state: Option<JsonText>,
    /// Who owns the lease, or owned it last.
    pub owner: Option<String>,
    /// Counts owners.
    pub epoch: u64,
    /// When the lease ends, by the store's clock.
    pub lease_expires_at: Option<DateTime<Utc>>,
    /// Part of the message ids; bumped by rewinds, changes of what is emitted and a new log id.
    pub generation: u64,
    /// Of what is emitted: filter, changes, encoding, omit, destination.
    pub fingerprint: Option<String>,
    /// An operator's pause.
    pub paused: bool,
    /// Retention passed it: it restarts by a walk, on command or by `on_expired: snapshot`.
    pub expired: bool,
    /// Counts the operator's commands to a sink; when it moves, the owner acts (a resume out of `diverged` changes nothing else).
    pub commands: u64,
    /// The owner's last published state (JSON, for status on other replicas).
    pub status: Option<JsonText>,
    /// When the row last changed, by the store's clock.
    pub updated_at: DateTime<Utc>,
}

/// A wish to own a consumer.
#[derive(Debug, Clone)]
pub struct ClaimRequest {
    /// Source or sink.
    pub kind: ConsumerKind,
    /// Its name.
    pub name: String,
    /// This process, unique per start.
    pub owner: String,
    /// How long the lease lasts from now, by the store's clock.
    pub time_to_live: Duration,
    /// How long beyond its expiry a former owner's requests may still land; a lease is taken only after that. Stored with
    /// the lease for the next taker.
    pub flight: Duration,
    /// Of a sink: what is emitted. Another one than the stored bumps the generation.
    pub fingerprint: Option<String>,
    /// Of a sink: where it begins; used once, when its row is made (in the same transaction, with the head of that moment).
    pub start: Start,
}

/// Where a new sink begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Start {
    /// A walk at the head of the moment, then everything after it.
    #[default]
    Snapshot,
    /// After `oldest`.
    Earliest,
    /// After head.
    Latest,
    /// After this offset.
    At(Offset),
}

/// The answer to a claim.
#[derive(Debug, Clone)]
pub enum Claimed {
    /// We own it from now on; the row after the claim (new epoch, maybe new generation).
    Ours(Box<Checkpoint>),
    /// Somebody else does.
    HeldBy {
        /// Who.
        owner: String,
        /// Until then at least, by the store's clock.
        until: DateTime<Utc>,
    },
}

/// What a sink's owner writes; compared with the stored epoch and generation.
#[derive(Debug, Clone)]
pub struct CheckpointMove {
    /// The owner's epoch.
    pub epoch: u64,
    /// The sink's generation.
    pub generation: u64,
    /// The acknowledged prefix; never less than the stored one.
    pub offset: Offset,
    /// `None` ends a walk.
    pub walk: Option<Offset>,
    /// Goes with `walk`.
    pub walk_removals_above: Option<Offset>,
    /// New connector state; `None` leaves the stored one.
    pub connector_state: Option<JsonText>,
}

/// An event that was passed over because its destination refuses it (promise P8).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Skipped {
    /// The sink.
    pub sink: String,
    /// The sink's generation then.
    pub generation: u64,
    /// The event.
    pub offset: Offset,
    /// Its entity.
    pub entity_ref: Option<EntityRef>,
    /// In the destination's words.
    pub reason: String,
    /// `on_refused: skip`, or the operator.
    pub by: String,
    /// When, by the store's clock.
    pub at: DateTime<Utc>,
}

/// An operator's command to a sink; durable, so that it reaches the owner whichever replica that is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SinkCommand {
    /// Stop delivering.
    Pause,
    /// Deliver again; also out of diverged and disabled.
    Resume,
    /// Pass over this offset, on which the sink is blocked.
    Skip(Offset),
    /// Deliver again from after this offset, under a new generation.
    RewindTo(Offset),
    /// Deliver the live state again by a walk, then go on, under a new generation. Also out of expired.
    RewindToSnapshot,
}

/// The positions of sources and sinks, and who owns them.
#[async_trait]
pub trait Checkpoints: Send + Sync {
    /// All rows.
    async fn checkpoints(&self) -> Result<Vec<Checkpoint>, StoreError>;

    /// One row.
    async fn checkpoint(&self, kind: ConsumerKind, name: &str) -> Result<Option<Checkpoint>, StoreError>;

    /// Takes the lease if it is free, ours, or past expiry + flight; bumps the epoch. Creates the row. Times are the store's.
    async fn claim(&self, request: &ClaimRequest) -> Result<Claimed, StoreError>;

    /// Prolongs our lease; returns the row (so that the owner learns of pauses and new generations). `Fenced` when it is not ours.
    async fn renew(
        &self,
        kind: ConsumerKind,
        name: &str,
        epoch: u64,
        time_to_live: Duration,
    ) -> Result<Checkpoint, StoreError>;

    /// Gives the lease up at once (clean hand-over: expiry and flight become now). Not ours any more is no error.
    async fn release(&self, kind: ConsumerKind, name: &str, epoch: u64) -> Result<(), StoreError>;

    /// Moves a sink's checkpoint by compare-and-set on (epoch, generation); `Fenced` when either moved on.
    async fn save(&self, sink: &str, to: &CheckpointMove) -> Result<(), StoreError>;

    /// Moves a sink's checkpoint back to what its destination still holds; compared as in `save`, and never forward.
    async fn set_back(&self, sink: &str, to: &CheckpointMove) -> Result<(), StoreError>;

    /// Publishes the owner's state for other replicas' status; compared by epoch.
    async fn save_status(
        &self,
        kind: ConsumerKind,
        name: &str,
        epoch: u64,
        status: &JsonText,
    ) -> Result<(), StoreError>;

    /// Writes a source's position without an append (nothing changed but the position); compare-and-set as in `append`.
    async fn save_position(&self, source: &SourceName, to: &PositionMove) -> Result<(), StoreError>;

    /// Carries out an operator's command. `RewindTo` below `oldest` is `Expired`.
    async fn command(&self, sink: &str, command: &SinkCommand) -> Result<Checkpoint, StoreError>;

    /// Records that an event was passed over; the checkpoint may pass it only after this. Idempotent.
    async fn record_skipped(&self, skipped: &Skipped) -> Result<(), StoreError>;

    /// The skips of a sink above `after`, also those commanded and not yet met.
    async fn skipped(&self, sink: &str, after: Offset, limit: usize) -> Result<Vec<Skipped>, StoreError>;
}

/// A whole store.
pub trait Store: EventLog + Checkpoints {}

impl<T: EventLog + Checkpoints> Store for T {}
