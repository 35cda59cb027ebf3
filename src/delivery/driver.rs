//! One sink's worker: owns the lease, opens sessions one after the other, and decides what an end of one means.
//!
//! Invariants: P7 (everything a connector does wrong, a panic included, ends in a state of this sink), P8 (a refused event is
//! passed only after its skip is on record), P9 (a session is opened only under a held lease, and only after the former one's
//! future has ended). Every wait here ends at once when the row changes, the lease is lost or the process stops.

use std::collections::BTreeSet;
use std::time::Duration;

use catalog_bridge_api::{Claim, ConnectorError, EntityRef, Offset, Session};
use chrono::Utc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::checkpoint::Position;
use super::lease::{self, Held, Keeper};
use super::metrics::Metrics;
use super::report::{Figures, Reporter};
use super::retry::Retry;
use super::session::{Ended, SessionRun};
use super::{Nudge, OnExpired, OnRefused, Settings, Sink};
use crate::store::{
    Checkpoint, ClaimRequest, ConsumerKind, LogState, ReadLimits, SinkCommand, Skipped, StoreError, Tail,
};
use crate::telemetry::{ConsumerState, StatusBoard};

/// Opening and checking may take this long.
const DIAL_TIMEOUT: Duration = Duration::from_secs(60);
/// A misconfigured sink is looked at again this often.
const LOOK_AGAIN: Duration = Duration::from_secs(60);
/// How many skips on record a session knows of; one beyond is refused again and recorded again.
const SKIPS_MAX: usize = 1_000;
/// How long a small question to the store may take where its answer can wait.
const STORE_PATIENCE: Duration = Duration::from_secs(5);

/// What one worker works with.
pub(super) struct Worker {
    pub(super) sink: Sink,
    pub(super) tail: Tail,
    pub(super) board: StatusBoard,
    pub(super) metrics: Metrics,
    pub(super) nudge: Nudge,
    pub(super) settings: Settings,
    pub(super) shutdown: CancellationToken,
}

/// Runs a worker until the process stops; one that panics is shown and started again.
pub(super) async fn supervise(worker: Worker) {
    let worker = std::sync::Arc::new(worker);
    let mut retry = Retry::default();
    loop {
        let started = Instant::now();
        let mut task = AbortOnDrop(tokio::spawn(worker.clone().run()));
        let Err(error) = (&mut task.0).await else { return };
        if started.elapsed() > Duration::from_secs(60) {
            retry.succeeded();
        }
        let delay = retry.failed(Utc::now(), Some(Duration::from_secs(1)), rand::random());
        let error = format!("the sink's worker failed: {error}");
        tracing::error!(sink = %worker.sink.name, error, "the sink's worker is started again; please report this");
        let mut reporter = worker.reporter();
        reporter.metrics.panics.inc();
        reporter.show(ConsumerState::Retrying {
            since: retry.since().unwrap_or_else(Utc::now),
            attempts: retry.attempts(),
            error,
        });
        tokio::select! {
            () = tokio::time::sleep(delay) => {}
            () = worker.shutdown.cancelled() => return,
        }
    }
}

struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Worker {
    fn reporter(&self) -> Reporter {
        let metrics = self.metrics.of(self.sink.name.as_str());
        Reporter::new(self.sink.name.clone(), self.sink.protocol, self.board.clone(), metrics)
    }

    async fn run(self: std::sync::Arc<Self>) {
        let mut reporter = self.reporter();
        let mut retry = Retry::default();
        let request = ClaimRequest {
            kind: ConsumerKind::Sink,
            name: self.sink.name.to_string(),
            owner: self.settings.owner.clone(),
            time_to_live: self.settings.lease,
            flight: self.sink.connector.limits().flight,
            fingerprint: Some(self.sink.fingerprint()),
            start: self.sink.start,
        };
        while !self.shutdown.is_cancelled() {
            let claim = tokio::select! {
                claim = lease::claim(self.tail.store(), &request, self.nudge.listen(), reporter.row()) => claim,
                () = self.shutdown.cancelled() => return,
            };
            let wait = match claim {
                Ok(lease::Claim::Ours(keeper)) => {
                    retry.succeeded();
                    Owned::new(&self, keeper, &mut reporter).run().await
                }
                Ok(lease::Claim::HeldBy { owner }) => {
                    retry.succeeded();
                    reporter.show(ConsumerState::Standby { owner });
                    self.settings.lease / 10
                }
                Err(error @ StoreError::Expired { .. }) => {
                    reporter.show(ConsumerState::Misconfigured { reason: format!("start: {error}") });
                    LOOK_AGAIN
                }
                Err(error) => {
                    reporter.show(ConsumerState::StoreAway { error: error.to_string() });
                    retry.failed(Utc::now(), None, rand::random())
                }
            };
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.shutdown.cancelled() => {}
            }
        }
    }
}

/// Why the sink stands still until an operator commands something.
#[derive(Debug)]
enum Standing {
    Blocked { offset: Offset, entity_ref: EntityRef, reason: String },
    Diverged { reason: String },
    Expired,
}

/// What an owner does next.
enum Next {
    /// Looks at the row again.
    Again,
    /// Lets another replica try; claims again after this.
    GiveUp(Duration),
    /// The process stops.
    Stop,
}

/// A worker that holds the lease.
struct Owned<'worker> {
    worker: &'worker Worker,
    keeper: Keeper,
    reporter: &'worker mut Reporter,
    retry: Retry,
    position: Option<Position>,
    /// A refused event: everything before it is still delivered.
    blocked: Option<Standing>,
    commands: u64,
    /// False when a session had to be dropped: what it sent may land for another `flight`.
    is_clean: bool,
}

impl<'worker> Owned<'worker> {
    fn new(worker: &'worker Worker, keeper: Keeper, reporter: &'worker mut Reporter) -> Self {
        Owned {
            worker,
            keeper,
            reporter,
            retry: Retry::default(),
            position: None,
            blocked: None,
            commands: 0,
            is_clean: true,
        }
    }

    /// Delivers until the lease is lost or given up; returns how long to wait before the next claim.
    async fn run(mut self) -> Duration {
        let shutdown = self.worker.shutdown.clone();
        let patience = self.worker.settings.drain + STORE_PATIENCE;
        let wait = loop {
            let next = tokio::select! {
                next = self.step() => next,
                () = async { shutdown.cancelled().await; tokio::time::sleep(patience).await; } => Next::Stop,
            };
            match next {
                Next::Again => {}
                Next::GiveUp(wait) => break wait,
                Next::Stop => break Duration::ZERO,
            }
        };
        // What a dropped session sent may still land: no claim of ours before that either.
        let flight = if self.is_clean { Duration::ZERO } else { self.worker.sink.connector.limits().flight };
        self.hand_over().await;
        wait.max(flight)
    }

    /// One look at the row and what follows from it.
    async fn step(&mut self) -> Next {
        let row = tokio::select! {
            held = self.keeper.refresh() => match held {
                Held::Row(row) => row,
                Held::Lost(reason) => {
                    tracing::warn!(sink = %self.worker.sink.name, reason, "the lease is lost");
                    return Next::GiveUp(self.worker.settings.lease / 15);
                }
            },
            () = self.worker.shutdown.cancelled() => return Next::Stop,
        };
        self.adopt(&row);
        if !self.is_clean {
            self.is_clean = true;
            tokio::select! {
                () = tokio::time::sleep(self.worker.sink.connector.limits().flight) => {}
                () = self.worker.shutdown.cancelled() => self.is_clean = false,
            }
        }
        if row.paused {
            self.reporter.show(ConsumerState::Paused);
            self.stand(None).await
        } else if row.expired {
            self.expired().await
        } else {
            self.session().await
        }
    }

    /// Takes the row over where somebody else changed it: a rewind, a new log id, a command.
    fn adopt(&mut self, row: &Checkpoint) {
        let is_ours = self.position.as_ref().is_some_and(|position| position.generation == row.generation);
        if !is_ours {
            self.position = Some(Position::of(row));
            self.blocked = None;
            self.retry.succeeded();
            // Whatever state is shown next stands beside these figures, and not beside zeros.
            let head = self.worker.tail.state().borrow().head;
            let (checkpoint, generation) = (row.offset, row.generation);
            self.reporter.measure(Figures { checkpoint, head, in_flight: 0, generation, behind_since: None });
        }
        if row.commands != self.commands {
            self.commands = row.commands;
            self.blocked = None;
        }
    }

    fn position(&mut self) -> &mut Position {
        self.position.as_mut().expect("a row is adopted before anything else")
    }

    async fn session(&mut self) -> Next {
        let state = match self.worker.tail.store().state().await {
            Ok(state) => state,
            Err(error) => return self.store_away(&error).await,
        };
        let skips = match self.skips().await {
            Ok(skips) => skips,
            Err(error) => return self.store_away(&error).await,
        };
        let log_id = state.log_id;
        let session = match self.open(&state).await {
            Ok(Some(session)) => session,
            Ok(None) => return Next::Again,
            Err(error) => return self.failed(error, &state).await,
        };
        let generation = self.position().generation;
        let barrier = match &self.blocked {
            Some(Standing::Blocked { offset, .. }) => Some(*offset),
            _ => None,
        };
        let run = SessionRun {
            worker: self.worker,
            reporter: &mut *self.reporter,
            retry: &mut self.retry,
            position: self.position.as_mut().expect("a row is adopted before anything else"),
            keeper: &self.keeper,
            log_id,
            encoder: self.worker.sink.encoder(log_id, generation),
            skips,
            barrier,
            commands: self.commands,
            is_clean: &mut self.is_clean,
        };
        let ended = run.run(session).await;
        self.save_rest().await;
        match ended {
            Ended::Shutdown => Next::Stop,
            Ended::LookAgain => Next::Again,
            Ended::AtBarrier => match self.blocked.take() {
                Some(standing) => self.stand(Some(standing)).await,
                None => Next::Again,
            },
            Ended::Expired => self.expired().await,
            Ended::Failed(error) => self.failed(error, &state).await,
        }
    }

    /// Saves what was acknowledged last; what cannot be saved now is saved in the next session.
    async fn save_rest(&mut self) {
        let Some(position) = &mut self.position else { return };
        let Some(rest) = position.next_move().filter(|_| self.keeper.lease().is_held()) else { return };
        let saving = self.worker.tail.store().save(self.worker.sink.name.as_str(), &rest);
        match tokio::time::timeout(STORE_PATIENCE, saving).await {
            Ok(Ok(())) => position.written(&rest, Instant::now()),
            Ok(Err(error)) => tracing::debug!(sink = %self.worker.sink.name, %error, "the checkpoint was not saved"),
            Err(_) => tracing::debug!(sink = %self.worker.sink.name, "the checkpoint was not saved in time"),
        }
    }

    /// `None` when something else has to be looked at first.
    async fn open(&mut self, state: &LogState) -> Result<Option<Box<dyn Session>>, ConnectorError> {
        if matches!(self.reporter.state(), ConsumerState::Standby { .. } | ConsumerState::Paused) {
            self.reporter.show(ConsumerState::Starting);
        }
        let position = self.position.as_ref().expect("a row is adopted before anything else");
        let kept = position.connector_state.as_ref().and_then(|text| serde_json::from_str(text.as_str()).ok());
        let claim = Claim {
            log_id: state.log_id,
            sink: self.worker.sink.name.clone(),
            generation: position.generation,
            epoch: position.epoch,
            checkpoint: position.prefix(),
            head: state.head,
            ordering: self.worker.sink.ordering,
            state: kept,
            lease: self.keeper.lease().clone(),
        };
        let mut held = self.keeper.follow();
        let opening = dial("open", &self.worker.sink, self.worker.sink.connector.open(claim));
        tokio::pin!(opening);
        loop {
            tokio::select! {
                session = &mut opening => return session.map(Some),
                changed = held.changed() => {
                    if changed.is_err() || self.must_look(&held.borrow()) {
                        return Ok(None);
                    }
                }
                () = self.worker.shutdown.cancelled() => return Ok(None),
            }
        }
    }

    async fn skips(&mut self) -> Result<BTreeSet<Offset>, StoreError> {
        let (generation, after) = (self.position().generation, self.position().prefix());
        let store = self.worker.tail.store();
        let skipped = store.skipped(self.worker.sink.name.as_str(), after, SKIPS_MAX).await?;
        Ok(skipped.into_iter().filter(|skip| skip.generation == generation).map(|skip| skip.offset).collect())
    }

    /// Decides what an error means.
    async fn failed(&mut self, error: ConnectorError, state: &LogState) -> Next {
        let text = error.to_string();
        match error {
            ConnectorError::Transient { retry_after, .. } => self.back_off(text, retry_after).await,
            ConnectorError::Refused { offset, entity_ref, reason, .. } => {
                self.refused(offset, entity_ref, reason).await
            }
            ConnectorError::Misconfigured { .. } => self.misconfigured(text).await,
            ConnectorError::Diverged { .. } => self.stand(Some(Standing::Diverged { reason: text })).await,
            ConnectorError::Fenced { .. } => {
                // Somebody else owns the destination: whoever that is has one lease's time to own the sink as well.
                self.show_retrying(text);
                Next::GiveUp(self.worker.settings.lease)
            }
            ConnectorError::TailLost { kept, .. } => self.tail_lost(kept, text).await,
            ConnectorError::AheadOfLog { tail, .. } => self.ahead_of_log(tail, text, state).await,
        }
    }

    fn show_retrying(&mut self, error: String) {
        let since = self.retry.since().unwrap_or_else(Utc::now);
        self.reporter.show(ConsumerState::Retrying { since, attempts: self.retry.attempts(), error });
    }

    async fn back_off(&mut self, error: String, retry_after: Option<Duration>) -> Next {
        let delay = self.retry.failed(Utc::now(), retry_after, rand::random());
        self.reporter.metrics.retries.inc();
        self.show_retrying(error);
        self.wait(Some(delay)).await
    }

    async fn store_away(&mut self, error: &StoreError) -> Next {
        let delay = self.retry.failed(Utc::now(), None, rand::random());
        self.reporter.show(ConsumerState::StoreAway { error: error.to_string() });
        self.wait(Some(delay)).await
    }

    async fn refused(&mut self, offset: Offset, entity_ref: EntityRef, reason: String) -> Next {
        if self.worker.sink.on_refused == OnRefused::Block {
            let blocked = Standing::Blocked { offset, entity_ref, reason };
            self.show_standing(&blocked);
            // What comes before it is delivered first; the next session ends there.
            self.blocked = Some(blocked);
            return Next::Again;
        }
        tracing::warn!(sink = %self.worker.sink.name, %offset, %entity_ref, reason, "a refused event is skipped");
        let skipped = Skipped {
            sink: self.worker.sink.name.to_string(),
            generation: self.position().generation,
            offset,
            entity_ref: Some(entity_ref),
            reason,
            by: "on_refused: skip".to_owned(),
            at: Utc::now(),
        };
        match self.worker.tail.store().record_skipped(&skipped).await {
            Ok(()) => {
                self.reporter.metrics.skipped.inc();
                Next::Again
            }
            // Nothing is lost: the event is offered again and refused again.
            Err(error) => self.store_away(&error).await,
        }
    }

    async fn misconfigured(&mut self, reason: String) -> Next {
        // What `check` cannot see shows with the first message only: the state stands until one went through.
        let _ = self.retry.failed(Utc::now(), None, rand::random());
        self.reporter.show(ConsumerState::Misconfigured { reason });
        loop {
            let next = self.wait(Some(LOOK_AGAIN)).await;
            if !matches!(next, Next::Again) || self.has_news() {
                return next;
            }
            match dial("check", &self.worker.sink, self.worker.sink.connector.check()).await {
                Err(error @ ConnectorError::Misconfigured { .. }) => {
                    self.reporter.show(ConsumerState::Misconfigured { reason: error.to_string() });
                }
                // Anything else shows itself when the session is opened.
                _ => return Next::Again,
            }
        }
    }

    async fn expired(&mut self) -> Next {
        if self.worker.sink.on_expired == OnExpired::Wait {
            return self.stand(Some(Standing::Expired)).await;
        }
        tracing::warn!(sink = %self.worker.sink.name, "the sink expired and starts again by a walk over the live state");
        let sink = self.worker.sink.name.as_str();
        match self.worker.tail.store().command(sink, &SinkCommand::RewindToSnapshot).await {
            Ok(_) => Next::Again,
            Err(error) => self.store_away(&error).await,
        }
    }

    /// The destination lost acknowledged events: goes back to what it holds. The generation stays, so what is delivered again
    /// has the ids that consumers may have seen.
    async fn tail_lost(&mut self, kept: Offset, text: String) -> Next {
        let position = self.position.as_ref().expect("a row is adopted before anything else");
        let before = position.prefix();
        if kept >= before {
            return self.back_off(text, None).await;
        }
        let back = position.back_to(kept);
        let sink = self.worker.sink.name.as_str();
        if let Err(error) = self.worker.tail.store().set_back(sink, &back).await {
            return self.store_away(&error).await;
        }
        tracing::error!(sink, error = text, checkpoint = %before, %kept, "what the destination lost is delivered again");
        self.reporter.tail_lost(before, kept);
        // The row tells from where.
        self.position = None;
        Next::Again
    }

    /// The destination holds an offset of this log above the head that the claim named.
    async fn ahead_of_log(&mut self, tail: Offset, text: String, claimed: &LogState) -> Next {
        let store = self.worker.tail.store();
        let now = match store.state().await {
            Ok(now) => now,
            Err(error) => return self.store_away(&error).await,
        };
        if now.log_id != claimed.log_id {
            return Next::Again;
        }
        if now.head >= tail {
            return self.back_off(text, None).await;
        }
        tracing::error!(sink = %self.worker.sink.name, %tail, head = %now.head, "the log was restored to an older state");
        let reason = format!("sink \"{}\": {text} ({})", self.worker.sink.name, now.head);
        match store.new_log_id(&reason).await {
            Ok(_) => Next::Again,
            Err(error) => self.store_away(&error).await,
        }
    }

    /// Stands still until an operator commands something.
    async fn stand(&mut self, standing: Option<Standing>) -> Next {
        if let Some(standing) = &standing {
            self.show_standing(standing);
        }
        self.wait(None).await
    }

    fn show_standing(&mut self, standing: &Standing) {
        self.reporter.show(match standing {
            Standing::Blocked { offset, entity_ref, reason } => {
                ConsumerState::Blocked { offset: *offset, entity_ref: entity_ref.clone(), reason: reason.clone() }
            }
            Standing::Diverged { reason } => ConsumerState::Diverged { reason: reason.clone() },
            Standing::Expired => ConsumerState::Expired,
        });
    }

    /// Waits for the delay (for ever without one); ends early when the row has to be looked at or the process stops.
    async fn wait(&mut self, delay: Option<Duration>) -> Next {
        let mut held = self.keeper.follow();
        let mut measure = tokio::time::interval(Duration::from_secs(5));
        let due = delay.map(|delay| Instant::now() + delay);
        let over = async {
            match due {
                Some(due) => tokio::time::sleep_until(due).await,
                None => std::future::pending().await,
            }
        };
        tokio::pin!(over);
        while !self.has_news() {
            tokio::select! {
                () = &mut over => break,
                changed = held.changed() => {
                    if changed.is_err() {
                        break;
                    }
                }
                () = self.worker.shutdown.cancelled() => return Next::Stop,
                _ = measure.tick() => self.measure().await,
            }
        }
        Next::Again
    }

    fn has_news(&self) -> bool {
        self.must_look(&self.keeper.held())
    }

    fn must_look(&self, held: &Held) -> bool {
        let Held::Row(row) = held else { return true };
        let generation = self.position.as_ref().map(|position| position.generation);
        row.commands != self.commands || Some(row.generation) != generation
    }

    /// Figures while no session runs.
    async fn measure(&mut self) {
        let Some(position) = &self.position else { return };
        let (checkpoint, generation) = (position.offset, position.generation);
        let head = self.worker.tail.state().borrow().head;
        let one = ReadLimits { events_max: 1, bytes_max: 1 };
        let first = match tokio::time::timeout(STORE_PATIENCE, self.worker.tail.read(checkpoint, one)).await {
            Ok(Ok(page)) if position.walk.is_none() => page.entries.first().map(|entry| entry.event.recorded_at),
            _ => None,
        };
        self.reporter.measure(Figures { checkpoint, head, in_flight: 0, generation, behind_since: first });
    }

    /// Saves what is acknowledged and gives the lease up.
    async fn hand_over(mut self) {
        let patience = self.worker.settings.drain;
        let worker = self.worker;
        let (store, sink) = (worker.tail.store(), worker.sink.name.as_str());
        let last = self.position.as_mut().and_then(Position::next_move);
        let farewell = async {
            if let Some(last) = last
                && self.keeper.lease().is_held()
                && let Err(error) = store.save(sink, &last).await
            {
                tracing::warn!(sink, %error, "the last checkpoint was not saved; what follows it is delivered again");
            }
            if !self.is_clean {
                // The lease and its flight end by themselves: a taker must wait for what may still land.
                return;
            }
            if let Err(error) = self.keeper.release(store, sink).await {
                tracing::warn!(sink, %error, "the lease was not given up; it ends by itself");
            }
        };
        if tokio::time::timeout(patience, farewell).await.is_err() {
            tracing::warn!(sink, "the store did not answer while the sink was handed over");
        }
    }
}

/// Bounds a connector's call and names the sink's destination when it never ends.
async fn dial<T>(
    action: &'static str,
    sink: &Sink,
    call: impl Future<Output = Result<T, ConnectorError>>,
) -> Result<T, ConnectorError> {
    match tokio::time::timeout(DIAL_TIMEOUT, call).await {
        Ok(result) => result,
        Err(_) => {
            let reason = format!("no answer within {} s", DIAL_TIMEOUT.as_secs());
            Err(ConnectorError::transient(action, sink.connector.destination(), reason))
        }
    }
}
