//! One life of a session, seen from the driver: reads, encodes, offers, takes acknowledgements and saves the checkpoint.
//!
//! Invariants: P5 (what is offered is in offset order within its lane; the checkpoint is the window's prefix), P8 (an event is
//! passed over only when its skip is on record). Ends only after the connector's future ended, so that nothing more is written.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use catalog_bridge_api::{
    Ack, AckReceiver, Acks, ConnectorError, Encoder, EntityRef, Event, FeedSender, JsonText, Message, Offset, Session,
    feed,
};
use chrono::{DateTime, Utc};
use futures::future::BoxFuture;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use uuid::Uuid;

use super::OnOversize;
use super::checkpoint::Position;
use super::driver::Worker;
use super::key_gate::{GateKind, KeyGate};
use super::lease::{Held, Keeper};
use super::reader::{Batch, Cursor, ReadError};
use super::report::{Figures, Reporter};
use super::retry::Retry;
use super::window::{Window, WindowLimits};
use crate::store::{CheckpointMove, LogEntry, StoreError};
use crate::telemetry::ConsumerState;

/// How often the figures are looked at.
const TICK: Duration = Duration::from_secs(1);
/// The longest connector state.
const CONNECTOR_STATE_BYTES_MAX: usize = 4096;
/// How many reports are taken between two looks at everything else.
const REPORTS_AT_ONCE: usize = 1_024;

/// Why a session is over.
#[derive(Debug)]
pub(super) enum Ended {
    /// The process stops.
    Shutdown,
    /// The row has to be looked at: a command, another generation, a new log id, or the lease is lost.
    LookAgain,
    /// Everything before the barrier is acknowledged.
    AtBarrier,
    /// Retention passed the cursor.
    Expired,
    /// The connector failed, or refused an event.
    Failed(ConnectorError),
}

/// What the driver remembers of an offered message.
#[derive(Debug)]
struct Note {
    entity_ref: EntityRef,
    recorded_at: DateTime<Utc>,
    /// A walk's events say nothing about latency.
    is_of_walk: bool,
}

/// What a session is made of; everything that outlives it is borrowed.
pub(super) struct SessionRun<'driver> {
    pub(super) worker: &'driver Worker,
    pub(super) reporter: &'driver mut Reporter,
    pub(super) retry: &'driver mut Retry,
    pub(super) position: &'driver mut Position,
    pub(super) keeper: &'driver Keeper,
    pub(super) log_id: Uuid,
    pub(super) encoder: Encoder,
    /// Offsets whose skip is on record.
    pub(super) skips: BTreeSet<Offset>,
    /// A refused event that blocks the sink: nothing from here on is offered.
    pub(super) barrier: Option<Offset>,
    /// The operator's commands that were acted on.
    pub(super) commands: u64,
    /// Set to false when the connector's future had to be dropped.
    pub(super) is_clean: &'driver mut bool,
}

impl SessionRun<'_> {
    /// Runs the session to its end.
    pub(super) async fn run(self, session: Box<dyn Session>) -> Ended {
        let limits = self.worker.sink.connector.limits();
        let (sender, feed) = feed(limits.window_events, self.keeper.lease().clone());
        let (acks, reports) = Acks::channel();
        let gate = if limits.prefix_safe {
            GateKind::Open
        } else {
            match self.worker.sink.ordering {
                catalog_bridge_api::Ordering::Entity => GateKind::Entity,
                catalog_bridge_api::Ordering::Stream => GateKind::Stream,
            }
        };
        let window = WindowLimits { events_max: limits.window_events.max(1), bytes_max: limits.window_bytes.max(1) };
        let live = Live {
            cursor: Cursor::at(self.position),
            window: Window::new(self.position.prefix(), window),
            gate: KeyGate::new(gate),
            ready: VecDeque::new(),
            incoming: VecDeque::new(),
            batch_reached: self.position.prefix(),
            is_at_barrier: false,
            refusal: None,
            stored_to: Offset::ZERO,
            stalled: None,
            is_settled: false,
            store_error: None,
            store_retry: Retry::default(),
            store_again: None,
            failed: None,
            sender: Some(sender),
            run: self,
        };
        let running = Running(tokio::spawn(session.run(feed, acks)));
        live.run(running, reports).await
    }
}

/// The connector's task; never outlives the driver's interest.
struct Running(JoinHandle<Result<(), ConnectorError>>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The moving parts.
struct Live<'driver> {
    run: SessionRun<'driver>,
    cursor: Cursor,
    window: Window<Note>,
    gate: KeyGate<Message>,
    /// May go, in order.
    ready: VecDeque<Message>,
    incoming: VecDeque<Arc<LogEntry>>,
    /// Up to where `incoming` reaches when it is empty.
    batch_reached: Offset,
    is_at_barrier: bool,
    /// An oversize event that is to be refused, at the barrier.
    refusal: Option<ConnectorError>,
    /// Found in the destination.
    stored_to: Offset,
    stalled: Option<(DateTime<Utc>, String)>,
    /// Nothing that was sent may still land.
    is_settled: bool,
    store_error: Option<String>,
    store_retry: Retry,
    store_again: Option<Instant>,
    /// A report that ends the session.
    failed: Option<ConnectorError>,
    sender: Option<FeedSender>,
}

impl Live<'_> {
    async fn run(mut self, mut running: Running, mut reports: AckReceiver) -> Ended {
        let mut held = self.run.keeper.follow();
        let shutdown = self.run.worker.shutdown.clone();
        let mut reading: Option<BoxFuture<'static, Result<Batch, ReadError>>> = None;
        let mut saving: Option<BoxFuture<'static, (CheckpointMove, Result<(), StoreError>)>> = None;
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut is_reporting = true;
        let mut stop: Option<Ended> = None;
        let mut give_up: Option<Instant> = None;
        let outcome = loop {
            if stop.is_none() {
                self.take_in();
                self.offer();
                if reading.is_none() && self.wants_more() {
                    reading = Some(Box::pin(self.cursor.read(self.run.worker.tail.clone(), self.run.log_id)));
                }
                stop = self.judge_progress(&held.borrow());
            }
            if let Some(stop) = &stop
                && self.sender.is_some()
            {
                // The end of the feed: the session flushes what it was offered and returns.
                self.sender = None;
                self.ready.clear();
                self.incoming.clear();
                reading = None;
                let is_lost = matches!(*held.borrow(), Held::Lost(_));
                let patience =
                    if is_lost || self.failed.is_some() { Duration::ZERO } else { self.run.worker.settings.drain };
                tracing::debug!(sink = %self.run.worker.sink.name, reason = ?stop, "the session is being ended");
                give_up = Some(Instant::now() + patience);
            }
            self.note_progress();
            let due = if saving.is_none() { self.save_due() } else { None };
            tokio::select! {
                biased;
                report = reports.next(), if is_reporting => match report {
                    Some(report) => {
                        self.apply(report);
                        for _ in 0..REPORTS_AT_ONCE {
                            let Some(report) = reports.try_next() else { break };
                            self.apply(report);
                        }
                    }
                    None => is_reporting = false,
                },
                outcome = &mut running.0 => break Some(outcome),
                (stored, result) = ready_or_never(&mut saving) => {
                    saving = None;
                    if let Some(ended) = self.saved(&stored, result) {
                        stop.get_or_insert(ended);
                    }
                }
                read = ready_or_never(&mut reading) => {
                    reading = None;
                    if let Some(ended) = self.received(read) {
                        stop.get_or_insert(ended);
                    }
                }
                () = until(due) => saving = self.start_save(),
                () = room(self.sender.as_ref(), &self.ready) => {}
                () = until(self.store_again), if stop.is_none() => self.store_again = None,
                changed = held.changed(), if stop.is_none() => {
                    if changed.is_err() {
                        stop = Some(Ended::LookAgain);
                    }
                }
                () = shutdown.cancelled(), if !matches!(stop, Some(Ended::Shutdown)) => stop = Some(Ended::Shutdown),
                () = until(give_up) => break None,
                _ = tick.tick() => self.measure(),
            }
        };
        if outcome.is_none() {
            running.0.abort();
            let _ = (&mut running.0).await;
        }
        while let Some(report) = reports.try_next() {
            self.apply(report);
        }
        // What a failed or dropped session sent may still land, and then after what the next one sends.
        let is_over = match &outcome {
            Some(Ok(Ok(()))) => true,
            Some(Ok(Err(_))) => self.is_settled,
            Some(Err(_)) | None => false,
        };
        if !is_over && self.window.unacknowledged() > 0 {
            *self.run.is_clean = false;
        }
        self.note_progress();
        self.measure();
        self.end(outcome, stop)
    }

    fn end(
        self,
        outcome: Option<Result<Result<(), ConnectorError>, tokio::task::JoinError>>,
        stop: Option<Ended>,
    ) -> Ended {
        if let Some(error) = self.failed {
            return Ended::Failed(error);
        }
        let endpoint = || self.run.worker.sink.connector.destination();
        let error = match outcome {
            Some(Ok(Err(error))) => error,
            Some(Err(panic)) if panic.is_panic() => {
                self.run.reporter.metrics.panics.inc();
                ConnectorError::transient("publish", endpoint(), format!("the connector panicked: {panic}"))
            }
            _ if stop.is_some() => return stop.expect("just seen"),
            _ if !self.run.keeper.lease().is_held() => return Ended::LookAgain,
            _ => ConnectorError::transient("publish", endpoint(), "the session ended without being asked to"),
        };
        match stop {
            // A failure while the process stops or the row changed: what was asked for counts, the rest is resumed later.
            Some(asked @ (Ended::Shutdown | Ended::LookAgain)) if !matches!(error, ConnectorError::Refused { .. }) => {
                tracing::debug!(sink = %self.run.worker.sink.name, %error, "the session failed while it was being ended");
                asked
            }
            _ => Ended::Failed(error),
        }
    }

    fn wants_more(&self) -> bool {
        self.incoming.is_empty() && !self.is_at_barrier && self.store_again.is_none() && self.window.has_room()
    }

    /// Moves entries into the window while it has room.
    fn take_in(&mut self) {
        while self.window.has_room()
            && self.run.position.has_room()
            && let Some(entry) = self.incoming.front().cloned()
        {
            let offset = entry.event.offset;
            if self.run.barrier.is_some_and(|barrier| offset >= barrier) {
                self.stop_before(offset);
                return;
            }
            self.incoming.pop_front();
            if self.run.skips.contains(&offset) || offset <= self.stored_to {
                self.window.pass(offset);
                continue;
            }
            match self.see(&entry) {
                None => self.window.pass(offset),
                Some(event) => self.hold(&event),
            }
        }
        if self.incoming.is_empty() && !self.is_at_barrier {
            self.window.pass(self.batch_reached);
        }
    }

    fn hold(&mut self, event: &Event) {
        let message = self.run.encoder.encode(event);
        if message.is_reference {
            if self.run.worker.sink.on_oversize == OnOversize::Refuse {
                self.refusal = Some(ConnectorError::Refused {
                    offset: event.offset,
                    entity_ref: event.entity_ref.clone(),
                    endpoint: self.run.worker.sink.connector.destination(),
                    reason: "it is larger than the destination takes, and on_oversize is refuse".to_owned(),
                });
                return self.stop_before(event.offset);
            }
            self.run.reporter.metrics.references.inc();
        }
        let note = Note {
            entity_ref: event.entity_ref.clone(),
            recorded_at: event.recorded_at,
            is_of_walk: self.run.position.walk.is_some_and(|at| event.offset <= at),
        };
        self.window.hold(event.offset, message.size_bytes(), note);
        if let Some(message) = self.gate.admit(&event.entity_ref, message) {
            self.ready.push_back(message);
        }
    }

    /// The event as the sink's view shows it.
    fn see(&self, entry: &LogEntry) -> Option<Event> {
        let view = &self.run.worker.sink.view;
        let offset = entry.event.offset;
        if self.run.position.walk.is_none_or(|at| offset > at) {
            return view.see(entry);
        }
        // A sink that had delivered before may hold what does not match now.
        view.see_in_walk(entry, self.run.position.walk_removals_above.is_some_and(|above| offset > above))
    }

    fn stop_before(&mut self, offset: Offset) {
        self.incoming.clear();
        self.window.pass(Offset::new(offset.get() - 1));
        self.is_at_barrier = true;
    }

    /// Gives what may go to the session. The feed has room for a whole window, but for messages that the session has not
    /// taken yet and that were found in the destination meanwhile.
    fn offer(&mut self) {
        let Some(sender) = &self.sender else { return };
        while let Some(message) = self.ready.pop_front() {
            let offset = message.offset();
            match sender.try_offer(message) {
                Ok(()) => self.window.sent(offset),
                Err(message) => {
                    self.ready.push_front(*message);
                    return;
                }
            }
        }
    }

    fn apply(&mut self, report: Ack) {
        match report {
            Ack::UpTo(offset) => {
                let settled = self.window.acknowledge_up_to(offset);
                self.settle(settled.into_iter().map(|(_, note)| note));
            }
            Ack::One(offset) => {
                let settled = self.window.acknowledge(offset);
                self.settle(settled.into_iter());
            }
            Ack::AlreadyStored(offset) => self.found_stored(offset),
            Ack::Remember(state) => self.remember(&state),
            Ack::Stalled(reason) => self.stalled = reason.map(|reason| (Utc::now(), reason)),
            Ack::Settled => self.is_settled = true,
        }
    }

    fn settle(&mut self, notes: impl Iterator<Item = Note>) {
        let now = Utc::now();
        let mut count = 0;
        for note in notes {
            count += 1;
            if !note.is_of_walk {
                self.run.reporter.metrics.delivered_after((now - note.recorded_at).to_std().unwrap_or_default());
            }
            if let Some(next) = self.gate.settle(&note.entity_ref) {
                self.ready.push_back(next);
            }
        }
        if count > 0 {
            self.run.reporter.metrics.acknowledged.inc_by(count);
            self.run.retry.succeeded();
        }
    }

    fn found_stored(&mut self, offset: Offset) {
        let head = self.run.worker.tail.state().borrow().head;
        if offset > head {
            let endpoint = self.run.worker.sink.connector.destination();
            self.failed.get_or_insert(ConnectorError::AheadOfLog { endpoint, tail: offset });
            return;
        }
        self.stored_to = self.stored_to.max(offset);
        // Whatever the key gate holds back stays in its order; the session leaves out what it finds stored.
        let settled = self.window.acknowledge_up_to(offset);
        let count = settled.len() as u64;
        self.run.reporter.metrics.already_stored.inc_by(count);
        for (_, note) in settled {
            if let Some(next) = self.gate.settle(&note.entity_ref) {
                self.ready.push_back(next);
            }
        }
    }

    fn remember(&mut self, state: &serde_json::Value) {
        let text = state.to_string();
        if text.len() > CONNECTOR_STATE_BYTES_MAX {
            let endpoint = self.run.worker.sink.connector.destination();
            let reason = format!("the connector wants to keep {} bytes, more than 4 KiB", text.len());
            self.failed.get_or_insert(ConnectorError::transient("keep the connector's state", endpoint, reason));
            return;
        }
        self.run.position.remember(JsonText::from_trusted(text), Instant::now());
    }

    fn note_progress(&mut self) {
        let completed = self.window.take_completed();
        self.run.position.reached(self.window.prefix(), completed, Instant::now());
    }

    fn save_due(&self) -> Option<Instant> {
        let due = self.run.position.due()?;
        Some(self.store_again.map_or(due, |again| due.max(again)))
    }

    fn start_save(&mut self) -> Option<BoxFuture<'static, (CheckpointMove, Result<(), StoreError>)>> {
        let to = self.run.position.next_move()?;
        let store = self.run.worker.tail.store().clone();
        let sink = self.run.worker.sink.name.clone();
        Some(Box::pin(async move {
            let result = store.save(sink.as_str(), &to).await;
            (to, result)
        }))
    }

    fn saved(&mut self, stored: &CheckpointMove, result: Result<(), StoreError>) -> Option<Ended> {
        match result {
            Ok(()) => {
                self.run.position.written(stored, Instant::now());
                self.store_is_back();
                None
            }
            Err(StoreError::Fenced(reason)) => {
                tracing::warn!(sink = %self.run.worker.sink.name, reason, "the checkpoint was fenced");
                Some(Ended::LookAgain)
            }
            Err(error) => {
                self.store_is_away(&error);
                None
            }
        }
    }

    fn received(&mut self, read: Result<Batch, ReadError>) -> Option<Ended> {
        match read {
            Ok(batch) => {
                self.store_is_back();
                self.incoming = batch.entries.into();
                self.batch_reached = batch.reached;
                self.cursor = batch.next;
                None
            }
            Err(ReadError::LogChanged) => Some(Ended::LookAgain),
            Err(ReadError::Expired) => Some(Ended::Expired),
            Err(ReadError::Store(error)) => {
                self.store_is_away(&error);
                None
            }
        }
    }

    fn store_is_away(&mut self, error: &StoreError) {
        let delay = self.store_retry.failed(Utc::now(), None, rand::random());
        self.store_again = Some(Instant::now() + delay);
        self.store_error = Some(error.to_string());
        self.show();
    }

    fn store_is_back(&mut self) {
        self.store_retry.succeeded();
        self.store_error = None;
    }

    /// Whether there is a reason to end the session; shows the state.
    fn judge_progress(&mut self, held: &Held) -> Option<Ended> {
        self.show();
        match held {
            Held::Lost(_) => return Some(Ended::LookAgain),
            Held::Row(row) => {
                let is_as_before = row.generation == self.run.position.generation && !row.paused && !row.expired;
                if !is_as_before || row.commands != self.run.commands {
                    return Some(Ended::LookAgain);
                }
            }
        }
        if self.failed.is_some() {
            return Some(Ended::LookAgain);
        }
        if self.is_at_barrier && self.window.unacknowledged() == 0 {
            return Some(match self.refusal.take() {
                Some(refusal) => {
                    self.failed = Some(refusal);
                    Ended::LookAgain
                }
                None => Ended::AtBarrier,
            });
        }
        None
    }

    fn show(&mut self) {
        let is_behind = self.window.prefix() < self.run.worker.tail.state().borrow().head;
        let state = if let Some(error) = &self.store_error {
            ConsumerState::StoreAway { error: error.clone() }
        } else if self.run.barrier.is_some() || (self.run.retry.attempts() > 0 && is_behind) {
            // Blocked or retrying until something went through: as it was shown before the session.
            return;
        } else if let Some((since, reason)) = &self.stalled {
            ConsumerState::Stalled { since: *since, reason: reason.clone() }
        } else if let Some(at) = self.run.position.walk.filter(|at| self.run.position.prefix() < *at) {
            if matches!(self.run.reporter.state(), ConsumerState::Snapshot { .. }) {
                return;
            }
            ConsumerState::Snapshot { progress: format!("at offset {} of {at}", self.run.position.prefix()) }
        } else {
            self.run.retry.succeeded();
            ConsumerState::Running
        };
        self.run.reporter.show(state);
    }

    fn measure(&mut self) {
        if let (ConsumerState::Snapshot { .. }, Some(at)) = (self.run.reporter.state(), self.run.position.walk) {
            let progress = format!("at offset {} of {at}", self.run.position.prefix());
            self.run.reporter.show(ConsumerState::Snapshot { progress });
        }
        let first = self.window.first().map(|note| note.recorded_at);
        let is_walking = matches!(self.cursor, Cursor::Walk { .. });
        self.run.reporter.measure(Figures {
            checkpoint: self.run.position.offset,
            head: self.run.worker.tail.state().borrow().head,
            in_flight: self.window.unacknowledged(),
            generation: self.run.position.generation,
            behind_since: first
                .or_else(|| self.incoming.front().map(|entry| entry.event.recorded_at))
                .filter(|_| !is_walking),
        });
    }
}

/// Resolves when what is ready can go; never when nothing is, or the session is gone (then its end follows).
async fn room(sender: Option<&FeedSender>, ready: &VecDeque<Message>) {
    match sender.filter(|sender| !ready.is_empty() && sender.is_open()) {
        Some(sender) => sender.room().await,
        None => std::future::pending().await,
    }
}

async fn ready_or_never<T>(future: &mut Option<BoxFuture<'static, T>>) -> T {
    match future {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}

async fn until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}
