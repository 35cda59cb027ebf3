//! The newest committed events in memory, shared by every live reader and every sink of this process.
//!
//! Invariants: what it serves is a contiguous piece of the log as the store read it (P1), of the log id and redaction count
//! that the head watch shows: when either moves, everything cached is dropped, and nothing read before is put in again.
//! Bounded in bytes. Waiting costs no query, and any number of readers at one place cost one. Who lags behind what is
//! kept reads the store. Knows nothing of filters, HTTP or sinks.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use catalog_bridge_api::Offset;
use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use tokio::sync::watch;
use uuid::Uuid;

use super::{LogEntry, LogState, Page, ReadLimits, Store, StoreError};

/// What one read of the store fetches at least for the cache, whatever little its first reader asked for.
const FILL: ReadLimits = ReadLimits { events_max: 1_000, bytes_max: 1024 * 1024 };

/// Reads the log: recent events from memory, older ones from the store. Cheap to clone.
#[derive(Clone)]
pub struct Tail {
    inner: Arc<Inner>,
}

struct Inner {
    store: Arc<dyn Store>,
    bytes_max: usize,
    cache: Mutex<Cache>,
    /// The read of the store that is under way for the cache; readers that come meanwhile join it.
    flight: Mutex<Option<Flight>>,
}

/// A read that several readers wait for. It runs in a task of its own, so that a reader who goes away in the middle leaves
/// no transaction open that nobody drives.
#[derive(Clone)]
struct Flight {
    after: Offset,
    page: Shared<BoxFuture<'static, Result<Arc<Page>, Arc<StoreError>>>>,
}

enum Found {
    Page(Page),
    /// Older than what is kept.
    Lagging,
    Joined(Flight),
}

impl Tail {
    /// A tail over `store` that keeps at most `bytes_max` of events (or a single larger one).
    pub fn new(store: Arc<dyn Store>, bytes_max: usize) -> Tail {
        let cache = Mutex::new(Cache::default());
        Tail { inner: Arc::new(Inner { store, bytes_max, cache, flight: Mutex::new(None) }) }
    }

    /// The events after `after`, contiguous, from memory where they are there. Empty at the head that this process knows of
    /// (other replicas' events may follow within 250 ms) and beyond it. `Expired` below `oldest`. Cancel safe.
    pub async fn read(&self, after: Offset, limits: ReadLimits) -> Result<Page, StoreError> {
        loop {
            let state = self.inner.store.watch().borrow().clone();
            if after < state.oldest {
                return Err(StoreError::Expired { asked: after, oldest: state.oldest, head: state.head });
            }
            if after >= state.head {
                return Ok(Page { state, entries: Vec::new() });
            }
            let flight = match self.inner.find(after, limits, &state) {
                Found::Page(page) => return Ok(page),
                Found::Lagging => return self.inner.store.read(after, limits).await,
                Found::Joined(flight) => flight,
            };
            let page = flight.page.await.map_err(|error| shared_error(&error))?;
            if flight.after == after {
                let entries = take_within(page.entries.iter(), limits);
                return Ok(Page { state: page.state.clone(), entries });
            }
            // Another place was read meanwhile; what we want may be in the cache now.
        }
    }

    /// Follows the log's state.
    pub fn state(&self) -> watch::Receiver<LogState> {
        self.inner.store.watch()
    }

    /// Returns when an event after `after` is there, or when the log got a new id (then `after` means nothing any more, and
    /// the caller's next look at the state tells it so). Cancel safe; costs no query.
    pub async fn wait_beyond(&self, after: Offset) {
        let mut state = self.inner.store.watch();
        let log_id = state.borrow().log_id;
        if state.wait_for(|now| now.head > after || now.log_id != log_id).await.is_err() {
            // The store is closed: nothing will ever come.
            std::future::pending::<()>().await;
        }
    }

    /// The store beneath.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.inner.store
    }
}

impl Inner {
    fn cache(&self) -> MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn flight(&self) -> MutexGuard<'_, Option<Flight>> {
        self.flight.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks into the cache and, when `after` is beyond it, joins the read that is under way or starts one. Both under the
    /// lock of `flight`: a read that ends between the two steps would be repeated otherwise.
    fn find(self: &Arc<Self>, after: Offset, limits: ReadLimits, state: &LogState) -> Found {
        let mut under_way = self.flight();
        match self.cache().look_up(after, limits, state) {
            LookUp::Hit(page) => return Found::Page(page),
            LookUp::Lagging => return Found::Lagging,
            LookUp::Beyond => {}
        }
        let flight = under_way.get_or_insert_with(|| self.start_flight(after, limits));
        Found::Joined(flight.clone())
    }

    fn start_flight(self: &Arc<Self>, after: Offset, limits: ReadLimits) -> Flight {
        let inner = self.clone();
        let limits = ReadLimits {
            events_max: limits.events_max.max(FILL.events_max),
            bytes_max: limits.bytes_max.max(FILL.bytes_max),
        };
        let task = tokio::spawn(async move {
            let _landing = Landing(&inner);
            let page = inner.store.read(after, limits).await.map_err(Arc::new)?;
            inner.keep(after, &page);
            Ok(Arc::new(page))
        });
        let page = task.map(|ended| {
            ended.unwrap_or_else(|panic| {
                Err(Arc::new(StoreError::Unavailable { action: "read the log", source: Box::new(panic) }))
            })
        });
        Flight { after, page: page.boxed().shared() }
    }

    /// Caches a page, unless the log changed since it was read. The watch is looked at under the cache's lock, so a page
    /// from before a redaction never comes in after it.
    fn keep(&self, after: Offset, page: &Page) {
        let mut cache = self.cache();
        let identity = Identity::of(&self.store.watch().borrow());
        if identity == Identity::of(&page.state) {
            cache.put(after, identity, &page.entries, self.bytes_max);
        }
    }
}

/// Ends the flight, also when it panics: its page is in the cache by then.
struct Landing<'a>(&'a Inner);

impl Drop for Landing<'_> {
    fn drop(&mut self) {
        *self.0.flight() = None;
    }
}

/// What the cached bodies depend on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Identity {
    log_id: Uuid,
    redactions: u64,
}

impl Identity {
    fn of(state: &LogState) -> Self {
        Identity { log_id: state.log_id, redactions: state.redactions }
    }
}

/// The events `start`+1, `start`+2, …; follows the foremost reader.
#[derive(Debug, Default)]
struct Cache {
    identity: Identity,
    start: Offset,
    entries: VecDeque<Arc<LogEntry>>,
    bytes: usize,
}

enum LookUp {
    Hit(Page),
    /// Older than what is kept.
    Lagging,
    /// Newer than what is kept.
    Beyond,
}

impl Cache {
    fn end(&self) -> Offset {
        Offset::new(self.start.get() + self.entries.len() as u64)
    }

    fn look_up(&mut self, after: Offset, limits: ReadLimits, state: &LogState) -> LookUp {
        if self.identity != Identity::of(state) {
            *self = Cache { identity: Identity::of(state), ..Cache::default() };
        }
        if after >= self.end() {
            return LookUp::Beyond;
        }
        if after < self.start {
            return LookUp::Lagging;
        }
        let skip = usize::try_from(after.get() - self.start.get()).unwrap_or(usize::MAX);
        let entries = take_within(self.entries.range(skip..), limits);
        // What is cached may be newer than the state that the caller looked at.
        let mut state = state.clone();
        state.head = state.head.max(self.end());
        LookUp::Hit(Page { state, entries })
    }

    fn put(&mut self, after: Offset, identity: Identity, entries: &[Arc<LogEntry>], bytes_max: usize) {
        let continues = self.identity == identity && self.end() == after;
        if !continues {
            if self.identity == identity && after < self.end() {
                return;
            }
            *self = Cache { identity, start: after, ..Cache::default() };
        }
        for entry in entries {
            self.bytes += entry.size_bytes();
            self.entries.push_back(entry.clone());
        }
        while self.bytes > bytes_max && self.entries.len() > 1 {
            if let Some(entry) = self.entries.pop_front() {
                self.bytes -= entry.size_bytes();
                self.start = self.start.next();
            }
        }
    }
}

/// The first entries within the limits; at least one.
fn take_within<'a>(entries: impl Iterator<Item = &'a Arc<LogEntry>>, limits: ReadLimits) -> Vec<Arc<LogEntry>> {
    let mut bytes = 0;
    let mut taken = Vec::new();
    for entry in entries.take(limits.events_max.max(1)) {
        bytes += entry.size_bytes();
        if bytes > limits.bytes_max && !taken.is_empty() {
            break;
        }
        taken.push(entry.clone());
    }
    taken
}

/// An error that several readers share keeps the variant that its callers act on.
fn shared_error(error: &Arc<StoreError>) -> StoreError {
    match **error {
        StoreError::Expired { asked, oldest, head } => StoreError::Expired { asked, oldest, head },
        StoreError::LogChanged { now } => StoreError::LogChanged { now },
        _ => StoreError::Unavailable { action: "read the log", source: Box::new(error.clone()) },
    }
}

#[cfg(test)]
mod tests;
