//! Owns a sink's lease: claims it, renews it at a third of its life, and shows the row that each renewal brings back.
//!
//! Invariants (P9): the lease's deadline counts from before the claim or renewal was sent; once it is lost it is never held
//! again. Renewals run in a task of their own, so nothing that the driver does can delay them.

use std::sync::Arc;
use std::time::Duration;

use catalog_bridge_api::{JsonText, Lease};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::store::{Checkpoint, ClaimRequest, Claimed, ConsumerKind, Store, StoreError};

/// What the last renewal said.
#[derive(Debug, Clone)]
pub(super) enum Held {
    /// Ours; the row as it was then.
    Row(Arc<Checkpoint>),
    /// Not ours any more.
    Lost(String),
}

/// The answer to a claim.
pub(super) enum Claim {
    Ours(Keeper),
    HeldBy { owner: String },
}

/// Keeps a claimed lease alive until it is dropped.
#[derive(Debug)]
pub(super) struct Keeper {
    lease: Lease,
    held: watch::Receiver<Held>,
    ask: Arc<Notify>,
    task: JoinHandle<()>,
}

/// Claims the lease. `status` is written to the row whenever it changed.
pub(super) async fn claim(
    store: &Arc<dyn Store>,
    request: &ClaimRequest,
    nudge: watch::Receiver<u64>,
    status: watch::Receiver<Option<JsonText>>,
) -> Result<Claim, StoreError> {
    let sent = Lease::clock();
    let row = match store.claim(request).await? {
        Claimed::Ours(row) => row,
        Claimed::HeldBy { owner, .. } => return Ok(Claim::HeldBy { owner }),
    };
    let lease = Lease::until(sent, request.time_to_live);
    let (show, held) = watch::channel(Held::Row(Arc::new(*row.clone())));
    let ask = Arc::new(Notify::new());
    let renewal = Renewal {
        store: store.clone(),
        name: request.name.clone(),
        epoch: row.epoch,
        time_to_live: request.time_to_live,
        lease: lease.clone(),
        show,
        ask: ask.clone(),
        nudge,
        status,
    };
    Ok(Claim::Ours(Keeper { lease, held, ask, task: tokio::spawn(renewal.run()) }))
}

impl Keeper {
    pub(super) fn lease(&self) -> &Lease {
        &self.lease
    }

    /// What the last renewal said.
    pub(super) fn held(&self) -> Held {
        self.held.borrow().clone()
    }

    /// A receiver that sees every renewal from now on.
    pub(super) fn follow(&self) -> watch::Receiver<Held> {
        let mut held = self.held.clone();
        held.mark_unchanged();
        held
    }

    /// Asks the store now; the row or the loss that it answers.
    pub(super) async fn refresh(&self) -> Held {
        let mut held = self.follow();
        self.ask.notify_one();
        if held.changed().await.is_err() {
            return Held::Lost("the renewing task ended".to_owned());
        }
        held.borrow().clone()
    }

    /// Gives the lease up for a clean hand-over.
    pub(super) async fn release(self, store: &Arc<dyn Store>, name: &str) -> Result<(), StoreError> {
        let Held::Row(row) = self.held() else { return Ok(()) };
        self.lease.end();
        self.task.abort();
        store.release(ConsumerKind::Sink, name, row.epoch).await
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.lease.end();
        self.task.abort();
    }
}

struct Renewal {
    store: Arc<dyn Store>,
    name: String,
    epoch: u64,
    time_to_live: Duration,
    lease: Lease,
    show: watch::Sender<Held>,
    ask: Arc<Notify>,
    nudge: watch::Receiver<u64>,
    status: watch::Receiver<Option<JsonText>>,
}

impl Renewal {
    async fn run(mut self) {
        let mut due = Instant::now() + self.time_to_live / 3;
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(due) => {}
                () = self.ask.notified() => {}
                Ok(()) = self.nudge.changed() => {}
                Ok(()) = self.status.changed() => {
                    self.save_status().await;
                    continue;
                }
            }
            let sent = Lease::clock();
            let renewal = self.store.renew(ConsumerKind::Sink, &self.name, self.epoch, self.time_to_live);
            let wait = match tokio::time::timeout(self.time_to_live / 3, renewal).await {
                Ok(Ok(row)) => {
                    self.lease.extend(sent, self.time_to_live);
                    if !self.lease.is_held() {
                        return self.lose("the lease ran out before its renewal was answered".to_owned());
                    }
                    self.show.send_replace(Held::Row(Arc::new(row)));
                    self.time_to_live / 3
                }
                Ok(Err(StoreError::Fenced(reason))) => return self.lose(reason),
                Ok(Err(error)) if self.lease.is_held() => self.missed(&error.to_string()),
                Err(_) if self.lease.is_held() => self.missed("the store does not answer"),
                Ok(Err(error)) => return self.lose(format!("the lease ran out: {error}")),
                Err(_) => return self.lose("the lease ran out: the store does not answer".to_owned()),
            };
            due = Instant::now() + wait;
        }
    }

    fn missed(&self, error: &str) -> Duration {
        tracing::warn!(sink = %self.name, error, "the lease could not be renewed and is tried again");
        self.time_to_live / 15
    }

    fn lose(&self, reason: String) {
        self.lease.end();
        self.show.send_replace(Held::Lost(reason));
    }

    /// For other replicas' status only, so a failure is no trouble of the sink's.
    async fn save_status(&mut self) {
        let Some(status) = self.status.borrow_and_update().clone() else { return };
        let saving = self.store.save_status(ConsumerKind::Sink, &self.name, self.epoch, &status);
        match tokio::time::timeout(self.time_to_live / 6, saving).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(sink = %self.name, %error, "the status was not saved"),
            Err(_) => tracing::debug!(sink = %self.name, "the status was not saved in time"),
        }
    }
}
