//! A source running on a real log, and the wait for its effects.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use catalog_bridge_api::{Event, EventType, SourceName};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Handle, Metrics, Settings, Source, SourceKind, Sources};
use crate::store::{self, ClaimRequest, ConsumerKind, ReadLimits, Start, Store};
use crate::telemetry::{ConsumerState, ConsumerStatus, StatusBoard};

/// How long anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(240);

/// A log of its own.
#[derive(Clone)]
pub(super) struct Log {
    pub(super) store: Arc<dyn Store>,
    _directory: Arc<tempfile::TempDir>,
}

impl Log {
    /// In a SQLite file.
    pub(super) async fn sqlite() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        Self::open(store::Settings::sqlite(directory.path().join("log.db")), directory).await
    }

    /// In a PostgreSQL database.
    pub(super) async fn postgres() -> Self {
        let url = catalog_bridge_services::shared::fresh_database("log").await.expect("a database");
        Self::open(store::Settings::postgres(url), tempfile::tempdir().expect("a directory")).await
    }

    async fn open(settings: store::Settings, directory: tempfile::TempDir) -> Self {
        let store = store::open(&settings, store::Metrics::default()).await.expect("the store opens");
        Log { store, _directory: Arc::new(directory) }
    }

    /// All events.
    pub(super) async fn events(&self) -> Vec<Event> {
        let mut events: Vec<Event> = Vec::new();
        loop {
            let after = events.last().map_or(catalog_bridge_api::Offset::ZERO, |event| event.offset);
            let page =
                self.store.read(after, ReadLimits { events_max: 1_000, bytes_max: 1 << 26 }).await.expect("read");
            if page.entries.is_empty() {
                return events;
            }
            events.extend(page.entries.iter().map(|entry| entry.event.clone()));
        }
    }

    pub(super) async fn rejected_count(&self) -> u64 {
        self.store.rejected_count(&name()).await.expect("counted")
    }

    /// Claims the source again in the name of its owner, as a taker would after the lease: whoever owned it is displaced.
    pub(super) async fn take_over(&self, owner: &str) {
        let request = ClaimRequest {
            kind: ConsumerKind::Source,
            name: name().as_str().to_owned(),
            owner: owner.to_owned(),
            time_to_live: Duration::from_secs(15),
            flight: Duration::ZERO,
            fingerprint: None,
            start: Start::default(),
        };
        self.store.claim(&request).await.expect("claimed");
    }
}

/// A running bridge with one source.
pub(super) struct Bridge {
    pub(super) log: Log,
    pub(super) owner: String,
    pub(super) handle: Handle,
    board: StatusBoard,
    shutdown: CancellationToken,
    task: JoinHandle<()>,
}

pub(super) fn name() -> SourceName {
    SourceName::parse("catalog").expect("a name")
}

impl Bridge {
    /// A process of its own.
    pub(super) fn start(kind: SourceKind, log: &Log) -> Self {
        Self::start_as(&uuid::Uuid::new_v4().to_string(), kind, log)
    }

    /// A process that takes the leases of this owner at once, as its successor on the same machine does in time.
    pub(super) fn start_as(owner: &str, kind: SourceKind, log: &Log) -> Self {
        let sources = vec![Source { name: name(), kind }];
        let shared = Settings { owner: owner.to_owned(), lease: Duration::from_secs(15) };
        let board = StatusBoard::default();
        let sources = Sources::new(sources, shared, Arc::clone(&log.store), board.clone(), Metrics::default());
        let handle = sources.handle();
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(sources.run(shutdown.clone()));
        Bridge { log: log.clone(), owner: owner.to_owned(), handle, board, shutdown, task }
    }

    pub(super) fn status(&self) -> Option<ConsumerStatus> {
        self.board.get(ConsumerKind::Source, name().as_str())
    }

    /// Stops it in good order.
    pub(super) async fn stop(self) {
        self.shutdown.cancel();
        self.task.await.expect("stopped");
    }

    /// Stops it as a crash does: nothing is given up.
    pub(super) async fn kill(self) {
        self.task.abort();
        let _ = self.task.await;
    }

    pub(super) async fn wait_for_state(&self, what: &str, is_met: impl Fn(&ConsumerState) -> bool) -> ConsumerStatus {
        self.wait_for_status(what, |status| is_met(&status.state)).await
    }

    /// The status is told after the append, so what it says of one is waited for.
    pub(super) async fn wait_for_status(&self, what: &str, is_met: impl Fn(&ConsumerStatus) -> bool) -> ConsumerStatus {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.status().filter(|status| is_met(status)) {
                return status;
            }
            assert!(Instant::now() < end, "never {what}: {:?}", self.status());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub(super) async fn wait_until_running(&self) {
        self.wait_for_state("running", |state| *state == ConsumerState::Running).await;
    }

    /// Waits until the log holds exactly this, JSON by ref; it is asked again each time.
    pub(super) async fn wait_for_log(&self, truth: impl AsyncFn() -> BTreeMap<String, String>) {
        let end = Instant::now() + PATIENCE;
        loop {
            let truth = truth().await;
            let log = live(&self.log.events().await);
            if truth == log {
                return;
            }
            if Instant::now() >= end {
                let missing: Vec<_> = truth.keys().filter(|key| !log.contains_key(*key)).collect();
                let ghosts: Vec<_> = log.keys().filter(|key| !truth.contains_key(*key)).collect();
                panic!("log is not truth; missing {missing:?}, ghosts {ghosts:?}; status {:?}", self.status());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// The state that the events make.
pub(super) fn live(events: &[Event]) -> BTreeMap<String, String> {
    let mut state = BTreeMap::new();
    for event in events {
        let entity_ref = event.entity_ref.as_str().to_owned();
        match &event.entity {
            Some(entity) => state.insert(entity_ref, entity.as_str().to_owned()),
            None => state.remove(&entity_ref),
        };
    }
    state
}

/// Every ref goes added (updated)* removed (added …)*.
pub(super) fn check_well_formed(events: &[Event]) {
    let mut present = BTreeSet::new();
    for event in events {
        let expected = match event.event_type {
            EventType::Added => present.insert(event.entity_ref.clone()),
            EventType::Updated => present.contains(&event.entity_ref),
            EventType::Removed => present.remove(&event.entity_ref),
        };
        assert!(expected, "{} {} at {}", event.event_type.as_str(), event.entity_ref, event.offset);
    }
}
