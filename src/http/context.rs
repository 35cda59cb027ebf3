use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::http::HeaderValue;
use catalog_bridge_api::Offset;
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore, TryAcquireError};
use tokio_util::sync::CancellationToken;
use tracing::warn;
use uuid::Uuid;

use super::auth::{Access, Tokens};
use super::problem::{Kind, Problem};
use super::reply::{REPLY_BYTES_MAX, Reservation};
use super::{Parts, Settings};
use crate::filter::Filter;
use crate::store::{APPEND_BYTES_MAX, LogState, Store, StoreError};

/// How long a question to the store may take where an answer is wanted in any case.
pub(super) const STORE_PATIENCE: Duration = Duration::from_secs(3);
/// How long an answer about the store's health is used again.
const HEALTH_AGE_MAX: Duration = Duration::from_millis(500);
/// Reservations are counted in these.
const KIB: usize = 1024;

/// What all handlers share.
pub(super) struct Context {
    pub(super) settings: Settings,
    pub(super) parts: Parts,
    pub(super) tokens: Tokens,
    /// Set when the daemon stops: long polls end.
    pub(super) closing: CancellationToken,
    replies: Arc<Semaphore>,
    ingests: Arc<Semaphore>,
    waiters: Arc<Semaphore>,
    health: Mutex<Option<(Instant, Result<LogState, String>)>>,
}

/// A parked long poll; gives its places back when dropped.
pub(super) struct Waiter<'context> {
    context: &'context Context,
    _places: (OwnedSemaphorePermit, Option<OwnedSemaphorePermit>),
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.context.parts.metrics.waiters.dec();
    }
}

impl Context {
    pub(super) fn new(settings: Settings, parts: Parts, closing: CancellationToken) -> Context {
        let limits = &settings.limits;
        let replies = (limits.replies_bytes_max.max(REPLY_BYTES_MAX)) / KIB;
        let ingests = limits.ingests_bytes_max.max(2 * APPEND_BYTES_MAX) / KIB + 1;
        Context {
            tokens: Tokens::new(&settings.auth, limits.waiters_per_token_max),
            replies: Arc::new(Semaphore::new(replies)),
            ingests: Arc::new(Semaphore::new(ingests)),
            waiters: Arc::new(Semaphore::new(limits.waiters_max)),
            health: Mutex::new(None),
            settings,
            parts,
            closing,
        }
    }

    pub(super) fn store(&self) -> &Arc<dyn Store> {
        self.parts.tail.store()
    }

    /// The log's state as this process knows it; costs nothing.
    pub(super) fn known_state(&self) -> LogState {
        self.parts.tail.state().borrow().clone()
    }

    /// Room for one reply; waits for it a while.
    pub(super) async fn reserve_reply(&self) -> Result<Reservation, Problem> {
        let room = u32::try_from(REPLY_BYTES_MAX / KIB).unwrap_or(u32::MAX);
        self.queue(&self.replies, room).await.map(Reservation::new)
    }

    /// Room for a request's changes; waits for it a while.
    pub(super) async fn reserve_ingest(&self, bytes: usize) -> Result<OwnedSemaphorePermit, Problem> {
        self.queue(&self.ingests, u32::try_from(bytes / KIB + 1).unwrap_or(u32::MAX)).await
    }

    async fn queue(&self, semaphore: &Arc<Semaphore>, count: u32) -> Result<OwnedSemaphorePermit, Problem> {
        let place = semaphore.clone().acquire_many_owned(count);
        match tokio::time::timeout(self.settings.limits.queue_timeout, place).await {
            Ok(Ok(permit)) => Ok(permit),
            _ => Err(Problem::new(Kind::TooBusy, "too many requests are being answered; try again").retry_after(2)),
        }
    }

    /// A place to wait for events.
    pub(super) fn park(&self, access: &Access) -> Result<Waiter<'_>, Problem> {
        let own = match access.waiters.clone().map(Semaphore::try_acquire_owned) {
            None => None,
            Some(Ok(place)) => Some(place),
            Some(Err(_)) => {
                let detail = format!(
                    "this token has {} long polls waiting already; use fewer, or poll with wait=0",
                    self.settings.limits.waiters_per_token_max
                );
                return Err(Problem::new(Kind::TooManyRequests, detail).retry_after(5));
            }
        };
        match self.waiters.clone().try_acquire_owned() {
            Ok(place) => {
                self.parts.metrics.waiters.inc();
                Ok(Waiter { context: self, _places: (place, own) })
            }
            Err(TryAcquireError::NoPermits | TryAcquireError::Closed) => {
                let detail = format!(
                    "{} long polls are waiting already; try again, or poll with wait=0",
                    self.settings.limits.waiters_max
                );
                Err(Problem::new(Kind::TooBusy, detail).retry_after(5))
            }
        }
    }

    /// The state as the store itself says.
    pub(super) async fn asked_state(&self) -> Result<LogState, Problem> {
        self.store().state().await.map_err(|error| self.problem(error))
    }

    /// The store's answer of a moment ago, for probes and status: never slow, never more than a few questions a second.
    pub(super) async fn health(&self) -> Result<LogState, String> {
        let mut health = self.health.lock().await;
        if let Some((at, answer)) = &*health
            && at.elapsed() < HEALTH_AGE_MAX
        {
            return answer.clone();
        }
        let answer = match tokio::time::timeout(STORE_PATIENCE, self.store().state()).await {
            Ok(Ok(state)) => Ok(state),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("the store did not answer within {} s", STORE_PATIENCE.as_secs())),
        };
        *health = Some((Instant::now(), answer.clone()));
        answer
    }

    /// Fails unless the log is still the one that the reader's offsets belong to.
    pub(super) async fn check_log(&self, expected: Uuid) -> Result<(), Problem> {
        if self.known_state().log_id == expected {
            return Ok(());
        }
        // We may be the one who is behind: ask the store before a reader is told to begin again.
        let state = self.asked_state().await?;
        if state.log_id == expected { Ok(()) } else { Err(self.log_changed(&state, None)) }
    }

    pub(super) fn log_changed(&self, now: &LogState, filter: Option<&Filter>) -> Problem {
        let detail = format!("the log's id is now {}: read /entities and follow from its lastEventOffset", now.log_id);
        let problem = Problem::of_field(Kind::LogChanged, "logId", detail);
        self.with_state(problem, now).with("bootstrap", self.bootstrap(filter))
    }

    pub(super) fn offset_ahead(&self, field: &str, asked: Offset, now: &LogState) -> Problem {
        let detail = format!(
            "{field} {asked} is above the log's head {}: it belongs to another log; read /entities and follow from its \
             lastEventOffset",
            now.head
        );
        let problem = Problem::of_field(Kind::OffsetAhead, field, detail);
        self.with_state(problem, now).with("bootstrap", self.bootstrap(None))
    }

    pub(super) fn offset_expired(
        &self,
        field: &str,
        asked: Offset,
        now: &LogState,
        filter: Option<&Filter>,
    ) -> Problem {
        let detail = format!(
            "{field} {asked} is no longer kept, the oldest to resume after is {}: read /entities and follow from its \
             lastEventOffset",
            now.oldest
        );
        let problem = Problem::of_field(Kind::OffsetExpired, field, detail);
        self.with_state(problem, now).with("bootstrap", self.bootstrap(filter))
    }

    fn with_state(&self, problem: Problem, now: &LogState) -> Problem {
        problem
            .with("logId", now.log_id.to_string())
            .with("headOffset", now.head.get())
            .with("oldestOffset", now.oldest.get())
    }

    /// Where a reader begins again, with its own filter.
    fn bootstrap(&self, filter: Option<&Filter>) -> String {
        let mut link = self.settings.link("/entities");
        let alternatives = filter.map(Filter::to_alternatives).unwrap_or_default();
        for (index, alternative) in alternatives.iter().enumerate() {
            let encoded: String = url::form_urlencoded::byte_serialize(alternative.as_bytes()).collect();
            link.push_str(if index == 0 { "?filter=" } else { "&filter=" });
            link.push_str(&encoded);
        }
        link
    }

    /// What a store's failure is to a client. The database's own words go to our log only.
    pub(super) fn problem(&self, error: StoreError) -> Problem {
        match error {
            StoreError::Expired { asked, oldest, head } => {
                let state = LogState { oldest, head, ..self.known_state() };
                self.offset_expired("offset", asked, &state, None)
            }
            StoreError::RefOwned { index, .. } => {
                Problem::of_field(Kind::RefOwned, &format!("changes[{index}]"), error.to_string())
                    .with("index", index as u64)
            }
            StoreError::IdempotencyMismatch => Problem::of_field(
                Kind::IdempotencyMismatch,
                "Idempotency-Key",
                "this Idempotency-Key was used with another body; take a new key for new changes",
            ),
            StoreError::TooLarge(detail) => Problem::of_field(Kind::ContentTooLarge, "changes", detail),
            StoreError::Refused(detail) => Problem::new(Kind::CommandRefused, detail),
            StoreError::LogChanged { .. } => self.log_changed(&self.known_state(), None),
            StoreError::Fenced(_) | StoreError::TooNew { .. } | StoreError::Unavailable { .. } => {
                warn!(error = &error as &dyn std::error::Error, "the event log could not answer a request");
                Problem::new(Kind::StoreUnavailable, "the event log cannot be reached at the moment; try again")
                    .retry_after(1)
            }
        }
    }
}

/// A header value from a text that is known to be plain.
pub(super) fn plain_header(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or_else(|_| HeaderValue::from_static(""))
}
