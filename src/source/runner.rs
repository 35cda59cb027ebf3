//! Runs one source: claims it, lets it work, backs off after trouble, gives it up at the end.
//!
//! Whatever is away (store, catalog), and a panic too, is a state that is shown and tried again for ever. Knows nothing of what a source reads.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use chrono::{DateTime, Utc};
use rand::Rng;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::handle::Commands;
use super::owner::{Owner, Ownership, SourceError};
use super::report::Report;
use super::{Metrics, Settings, Source, SourceKind, backstage_db, files};
use crate::store::{Store, StoreError};
use crate::telemetry::{ConsumerState, StatusBoard};

/// Longest pause between two attempts.
const BACKOFF_MAX: Duration = Duration::from_secs(15);
/// Pause after the first failure.
const BACKOFF_MIN: Duration = Duration::from_millis(250);
/// Shortest pause after a panic: it may come again after some success, which ends the doubling.
const PANIC_PAUSE: Duration = Duration::from_secs(2);
/// How long the loop may take to come to a border after a stop; then it is cut off, which a position by compare-and-set
/// makes safe.
const STOP_MAX: Duration = Duration::from_secs(5);

pub(super) struct Runner {
    pub(super) source: Source,
    pub(super) settings: Settings,
    pub(super) store: Arc<dyn Store>,
    pub(super) board: StatusBoard,
    pub(super) metrics: Metrics,
    pub(super) commands: Arc<Commands>,
}

/// What reads one source. `run` returns only by an error or at a stop, and may be called again after an error.
enum Capture {
    BackstageDb(Box<backstage_db::Capture>),
    Files(Box<files::Capture>),
}

impl Capture {
    /// A capture for one claim; what it remembers of the log is valid only as long as we own the source.
    fn new(kind: &SourceKind) -> Option<Self> {
        match kind {
            SourceKind::BackstageDb(settings) => {
                Some(Capture::BackstageDb(Box::new(backstage_db::Capture::new(settings.clone()))))
            }
            SourceKind::Files(settings) => Some(Capture::Files(Box::new(files::Capture::new(settings.clone())))),
            SourceKind::Ingest => None,
        }
    }

    async fn run(
        &mut self,
        owner: &mut Owner,
        report: &mut Report,
        recovered: &mut Trouble,
    ) -> Result<(), SourceError> {
        match self {
            Capture::BackstageDb(capture) => capture.run(owner, report, recovered).await,
            Capture::Files(capture) => capture.run(owner, report, recovered).await,
        }
    }
}

/// How long it has not worked, and how often it was tried.
#[derive(Debug, Default)]
pub(super) struct Trouble {
    since: Option<DateTime<Utc>>,
    attempts: u32,
}

impl Trouble {
    /// To be called whenever something went through.
    pub(super) fn clear(&mut self) {
        *self = Trouble::default();
    }

    fn add(&mut self) -> DateTime<Utc> {
        self.attempts = self.attempts.saturating_add(1);
        *self.since.get_or_insert_with(Utc::now)
    }

    /// Doubles up to the limit; a random half of it, so that replicas do not march in step.
    fn pause(&self) -> Duration {
        let doubled = BACKOFF_MIN.saturating_mul(1 << self.attempts.saturating_sub(1).min(16)).min(BACKOFF_MAX);
        doubled.mul_f64(rand::rng().random_range(0.5..=1.0))
    }
}

/// Turns a panic into an error: a bug that one source meets must end neither it nor the others.
async fn caught(work: impl Future<Output = Result<(), SourceError>>) -> Result<(), SourceError> {
    let mut work = std::pin::pin!(work);
    std::future::poll_fn(|context| {
        // What it worked on is dropped with the claim.
        let polled = std::panic::catch_unwind(AssertUnwindSafe(|| work.as_mut().poll(context)));
        polled.unwrap_or_else(|panic| Poll::Ready(Err(SourceError::Panicked(message(&*panic)))))
    })
    .await
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "without a message".to_owned())
}

impl Runner {
    pub(super) async fn run(self, shutdown: CancellationToken) {
        let name = self.source.name.as_str();
        let mut report = Report {
            board: self.board.clone(),
            name: name.to_owned(),
            protocol: self.source.kind.protocol(),
            metrics: self.metrics.of(name),
            commands: Arc::clone(&self.commands),
            detail: serde_json::Value::Null,
            last_look: None,
        };
        if matches!(self.source.kind, SourceKind::Ingest) {
            // Every replica takes ingest, by its own HTTP server; there is nothing to own.
            return report.publish(ConsumerState::Running);
        }
        report.publish(ConsumerState::Starting);
        let mut trouble = Trouble::default();
        while !shutdown.is_cancelled() {
            let claim = Owner::claim(
                Arc::clone(&self.store),
                self.board.clone(),
                self.source.name.clone(),
                &self.settings,
                &shutdown,
            );
            let pause = match shutdown.run_until_cancelled(claim).await {
                None => break,
                Some(Err(error)) => self.store_away(&report, &mut trouble, &error),
                Some(Ok(Ownership::HeldBy(owner))) => {
                    trouble.clear();
                    self.commands.set_other_owner(Some(owner.clone()));
                    report.publish(ConsumerState::Standby { owner });
                    self.settings.lease / 5
                }
                Some(Ok(Ownership::Ours(owner))) => self.own(*owner, &mut report, &mut trouble).await,
            };
            let _ = shutdown.run_until_cancelled(tokio::time::sleep(pause)).await;
        }
    }

    /// Works as the owner until the ownership ends; returns the pause before the next claim.
    async fn own(&self, mut owner: Owner, report: &mut Report, trouble: &mut Trouble) -> Duration {
        info!(source = %self.source.name, "the source is ours");
        self.commands.set_other_owner(None);
        let Some(mut capture) = Capture::new(&self.source.kind) else { return Duration::ZERO };
        let stop = owner.stop.clone();
        let pause = loop {
            let error = {
                let work = caught(capture.run(&mut owner, report, trouble));
                tokio::pin!(work);
                let ended = tokio::select! {
                    ended = &mut work => Some(ended),
                    () = stop.cancelled() => tokio::time::timeout(STOP_MAX, &mut work).await.ok(),
                };
                match ended {
                    Some(Err(error)) if !stop.is_cancelled() => error,
                    _ => break Duration::ZERO,
                }
            };
            match error {
                SourceError::Reopen(reason) => {
                    info!(source = %self.source.name, reason, "the source is looked at afresh");
                    let _ = stop.run_until_cancelled(tokio::time::sleep(BACKOFF_MIN)).await;
                }
                SourceError::Fenced(reason) => {
                    warn!(source = %self.source.name, reason, "the source is claimed again");
                    trouble.add();
                    break trouble.pause();
                }
                SourceError::Store(error) => break self.store_away(report, trouble, &error),
                error @ SourceError::Panicked(_) => {
                    break self.failed(report, trouble, &error).max(PANIC_PAUSE);
                }
                error @ (SourceError::Transient { .. } | SourceError::Misconfigured(_)) => {
                    let pause = self.failed(report, trouble, &error);
                    let _ = stop.run_until_cancelled(tokio::time::sleep(pause)).await;
                }
            }
        };
        self.commands.set_other_owner(Some("nobody at the moment".to_owned()));
        owner.release().await;
        pause
    }

    fn failed(&self, report: &Report, trouble: &mut Trouble, error: &SourceError) -> Duration {
        report.metrics.count_error();
        let since = trouble.add();
        if trouble.attempts == 1 {
            warn!(source = %self.source.name, error = %error, "the source is in trouble and tried again");
        }
        let text = error.to_string();
        report.publish(match error {
            SourceError::Misconfigured(_) => ConsumerState::Misconfigured { reason: text },
            _ => ConsumerState::Retrying { since, attempts: trouble.attempts, error: text },
        });
        trouble.pause()
    }

    fn store_away(&self, report: &Report, trouble: &mut Trouble, error: &StoreError) -> Duration {
        report.metrics.count_error();
        trouble.add();
        if trouble.attempts == 1 {
            warn!(source = %self.source.name, error = %error, "the event log cannot be written");
        }
        report.publish(ConsumerState::StoreAway { error: error.to_string() });
        trouble.pause()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pause_doubles_up_to_its_limit() {
        let mut trouble = Trouble::default();
        let mut longest = Duration::ZERO;
        for _ in 0..40 {
            trouble.add();
            let pause = trouble.pause();
            assert!(pause >= BACKOFF_MIN / 2 && pause <= BACKOFF_MAX);
            longest = longest.max(pause);
        }
        assert!(longest >= BACKOFF_MAX / 2);

        trouble.clear();
        trouble.add();

        assert!(trouble.pause() <= BACKOFF_MIN);
    }
}
