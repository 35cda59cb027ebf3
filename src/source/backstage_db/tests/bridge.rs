//! A source running on a log in memory, and the wait for its effects.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use catalog_bridge_api::{Event, EventType, SourceName};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::super::Settings;
use super::catalog::Catalog;
use crate::source::memory::MemoryStore;
use crate::source::{self, Handle, Metrics, Source, SourceKind, Sources};
use crate::store::ConsumerKind;
use crate::telemetry::{ConsumerState, ConsumerStatus, StatusBoard};

/// How long anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running bridge with one source.
pub(super) struct Bridge {
    pub(super) store: Arc<MemoryStore>,
    pub(super) handle: Handle,
    board: StatusBoard,
    shutdown: CancellationToken,
    task: JoinHandle<()>,
}

pub(super) fn name() -> SourceName {
    SourceName::parse("backstage").expect("a name")
}

impl Bridge {
    pub(super) fn start(settings: Settings, store: &Arc<MemoryStore>) -> Self {
        let sources = vec![Source { name: name(), kind: SourceKind::BackstageDb(settings) }];
        let shared = source::Settings { owner: uuid::Uuid::new_v4().to_string(), lease: Duration::from_secs(15) };
        let board = StatusBoard::default();
        let sources = Sources::new(sources, shared, Arc::clone(store) as Arc<_>, board.clone(), Metrics::default());
        let handle = sources.handle();
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(sources.run(shutdown.clone()));
        Bridge { store: Arc::clone(store), handle, board, shutdown, task }
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
        self.store.take_over(&name());
    }

    pub(super) async fn wait_for_state(&self, what: &str, is_met: impl Fn(&ConsumerState) -> bool) -> ConsumerStatus {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.status().filter(|status| is_met(&status.state)) {
                return status;
            }
            assert!(Instant::now() < end, "never {what}: {:?}", self.status());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub(super) async fn wait_until_running(&self) {
        self.wait_for_state("running", |state| *state == ConsumerState::Running).await;
    }

    /// Waits until the log holds exactly what the catalog holds.
    pub(super) async fn wait_for_truth(&self, catalog: &Catalog) {
        let end = Instant::now() + PATIENCE;
        loop {
            let truth = catalog.truth().await;
            let log = live(&self.store.events());
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
