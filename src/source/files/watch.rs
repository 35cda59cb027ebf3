//! Tells when something below a path changed; says nothing of what.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use notify::event::{AccessKind, AccessMode};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::Notify;

/// Pause between reads where nothing tells of changes.
pub(super) const UNWATCHED_INTERVAL: Duration = Duration::from_secs(2);
/// How long it must be quiet after a change: editors write in several steps.
const SETTLE: Duration = Duration::from_millis(100);
/// Longest wait for quiet.
const SETTLE_MAX: Duration = Duration::from_secs(2);

/// The changes below a path.
pub(super) struct Changes {
    changed: Arc<Notify>,
    /// Watches as long as it lives.
    _watcher: Option<RecommendedWatcher>,
}

/// Watches a path. `false`: it cannot be watched, and no change will ever be told.
pub(super) fn watch(path: &Path) -> (Changes, bool) {
    let changed = Arc::new(Notify::new());
    let teller = Arc::clone(&changed);
    let watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
        // Our own reading is no change; an error may have hidden one.
        if event.is_ok_and(|event| is_reading(event.kind)) {
            return;
        }
        teller.notify_one();
    });
    let watcher = watcher.and_then(|mut watcher| watcher.watch(path, RecursiveMode::Recursive).map(|()| watcher)).ok();
    let is_watched = watcher.is_some();
    (Changes { changed, _watcher: watcher }, is_watched)
}

fn is_reading(kind: EventKind) -> bool {
    matches!(kind, EventKind::Access(access) if access != AccessKind::Close(AccessMode::Write))
}

impl Changes {
    /// Resolves when something changed and it has been quiet since. Cancel safe: a change that was told is lost only with
    /// the caller's own wish to read again.
    pub(super) async fn settled(&mut self) {
        self.changed.notified().await;
        let settling = async { while tokio::time::timeout(SETTLE, self.changed.notified()).await.is_ok() {} };
        let _ = tokio::time::timeout(SETTLE_MAX, settling).await;
    }
}
