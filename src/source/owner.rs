//! Owning a source: the lease, and appends that are fenced by it.
//!
//! Keeps P9: every write carries the epoch of our claim and the position that we saw last; when either moved on, the store
//! answers `Fenced` and nothing was written. The lease is renewed beside the loop, so a slow catalog does not cost it.

use std::sync::Arc;
use std::time::Duration;

use catalog_bridge_api::{BoxError, JsonText, Lease, SourceName};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::store::{
    Append, Appended, Change, ClaimRequest, Claimed, ConsumerKind, OnOwned, PositionMove, Rejected, Start, Store,
    StoreError,
};
use crate::telemetry::StatusBoard;

/// Why a source's work ended; the variant says what the runner does next.
#[derive(Debug, thiserror::Error)]
pub(super) enum SourceError {
    /// Somebody else owns the source, or our position is not the stored one: claim again.
    #[error("{0}")]
    Fenced(String),
    /// The bridge's own store is away: claim again when it is back.
    #[error(transparent)]
    Store(StoreError),
    /// Tried again for ever, with backoff.
    #[error("{action} at {endpoint} failed: {source}")]
    Transient {
        /// What was being done.
        action: &'static str,
        /// Where, without credentials.
        endpoint: String,
        /// What was answered.
        source: BoxError,
    },
    /// The operator has to change something.
    #[error("{0}")]
    Misconfigured(String),
    /// A bug; what was remembered may be half a state, so claim again.
    #[error("the source panicked: {0}; please report it")]
    Panicked(String),
    /// Not an error: what is read is not what it was (restarted, replaced, upgraded). Look at it afresh, at once.
    #[error("{0}")]
    Reopen(String),
}

impl From<StoreError> for SourceError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Fenced(reason) => SourceError::Fenced(reason),
            other => SourceError::Store(other),
        }
    }
}

/// A claim to one source.
pub(super) struct Owner {
    pub(super) store: Arc<dyn Store>,
    pub(super) source: SourceName,
    epoch: u64,
    /// What is stored as the source's position; the next write compares with it.
    position: Option<JsonText>,
    /// Cancelled when the lease is lost and at shutdown.
    pub(super) stop: CancellationToken,
    keeper: JoinHandle<()>,
}

/// The answer to a claim.
pub(super) enum Ownership {
    Ours(Box<Owner>),
    HeldBy(String),
}

impl Owner {
    /// Claims the source and keeps the lease until [`Owner::release`].
    pub(super) async fn claim(
        store: Arc<dyn Store>,
        board: StatusBoard,
        source: SourceName,
        settings: &super::Settings,
        shutdown: &CancellationToken,
    ) -> Result<Ownership, StoreError> {
        let request = ClaimRequest {
            kind: ConsumerKind::Source,
            name: source.as_str().to_owned(),
            owner: settings.owner.clone(),
            time_to_live: settings.lease,
            // The store itself compares the epoch of every write, so nothing of a former owner can land later.
            flight: Duration::ZERO,
            fingerprint: None,
            start: Start::default(),
        };
        let sent = Lease::clock();
        let checkpoint = match store.claim(&request).await? {
            Claimed::HeldBy { owner, .. } => return Ok(Ownership::HeldBy(owner)),
            Claimed::Ours(checkpoint) => checkpoint,
        };
        let stop = shutdown.child_token();
        let keeper = Keeper {
            store: Arc::clone(&store),
            board,
            name: request.name,
            epoch: checkpoint.epoch,
            time_to_live: settings.lease,
            lease: Lease::until(sent, settings.lease),
            stop: stop.clone(),
        };
        Ok(Ownership::Ours(Box::new(Owner {
            store,
            source,
            epoch: checkpoint.epoch,
            position: checkpoint.source_position,
            stop,
            keeper: tokio::spawn(keeper.run()),
        })))
    }

    /// The position as it is stored.
    pub(super) fn position(&self) -> Option<&JsonText> {
        self.position.as_ref()
    }

    /// Appends the changes and moves the position, in one transaction.
    pub(super) async fn append(
        &mut self,
        changes: Vec<Change>,
        rejected: Vec<Rejected>,
        new: JsonText,
    ) -> Result<Appended, SourceError> {
        let append = Append {
            source: self.source.clone(),
            changes,
            position: Some(self.move_to(new.clone())),
            idempotency: None,
            rejected,
            on_owned: OnOwned::Record,
        };
        let appended = self.store.append(append).await?;
        self.position = Some(new);
        Ok(appended)
    }

    /// Moves the position alone; writes nothing when it is there already.
    pub(super) async fn save_position(&mut self, new: JsonText) -> Result<(), SourceError> {
        if self.position.as_ref() == Some(&new) {
            return Ok(());
        }
        self.store.save_position(&self.source, &self.move_to(new.clone())).await?;
        self.position = Some(new);
        Ok(())
    }

    fn move_to(&self, new: JsonText) -> PositionMove {
        PositionMove { epoch: self.epoch, expected: self.position.clone(), new }
    }

    /// Ends the renewal and gives the lease up, so that another replica need not wait for its end.
    pub(super) async fn release(mut self) {
        self.stop.cancel();
        if (&mut self.keeper).await.is_err() {
            warn!(source = %self.source, "the lease's keeper ended by a panic");
        }
        if let Err(error) = self.store.release(ConsumerKind::Source, self.source.as_str(), self.epoch).await {
            warn!(source = %self.source, error = %error, "the lease could not be given up; it ends by itself");
        }
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

/// Renews the lease, and publishes the owner's state for the other replicas with it.
struct Keeper {
    store: Arc<dyn Store>,
    board: StatusBoard,
    name: String,
    epoch: u64,
    time_to_live: Duration,
    lease: Lease,
    stop: CancellationToken,
}

impl Keeper {
    async fn run(mut self) {
        let pause = self.time_to_live / 5;
        while self.stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_some() {
            let sent = Lease::clock();
            match self.store.renew(ConsumerKind::Source, &self.name, self.epoch, self.time_to_live).await {
                // A new one: a lease that ran out while the store was away stays so, and the row was ours again.
                Ok(_) => self.lease = Lease::until(sent, self.time_to_live),
                Err(StoreError::Fenced(reason)) => {
                    warn!(source = self.name, reason, "another replica owns the source now");
                    return self.stop.cancel();
                }
                // A lease that ran out while the store was away may still be ours: the next append tells.
                Err(error) if self.lease.is_held() => {
                    warn!(source = self.name, error = %error, "the lease was not renewed");
                }
                Err(error) => {
                    warn!(source = self.name, error = %error, "the lease ran out and was not renewed");
                    return self.stop.cancel();
                }
            }
            self.publish().await;
        }
    }

    async fn publish(&self) {
        let Some(status) = self.board.get(ConsumerKind::Source, &self.name) else { return };
        let Ok(text) = serde_json::to_string(&status) else { return };
        let saved =
            self.store.save_status(ConsumerKind::Source, &self.name, self.epoch, &JsonText::from_trusted(text)).await;
        if let Err(error) = saved {
            tracing::debug!(source = self.name, error = %error, "the state was not published to other replicas");
        }
    }
}
