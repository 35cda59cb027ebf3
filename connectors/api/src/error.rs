use std::time::Duration;

use crate::{EntityRef, Offset};

/// Any error, boxed.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Why a session ended; the variant says what the driver does next. Texts carry the broker's words and never a secret.
#[derive(Debug, thiserror::Error)]
pub enum ConnectorError {
    /// Tried again for ever, with jittered, capped backoff; not before `retry_after` where the destination named one.
    #[error("{action} at {endpoint} failed: {source}")]
    Transient {
        /// What was being done, such as `publish`.
        action: &'static str,
        /// Where, without credentials.
        endpoint: String,
        /// What the client library or broker said.
        source: BoxError,
        /// The destination's own wish (`Retry-After`).
        retry_after: Option<Duration>,
    },
    /// This event is never accepted: it blocks the sink or is skipped with a record, as configured.
    #[error("offset {offset} ({entity_ref}) is refused by {endpoint}: {reason}")]
    Refused {
        /// The event.
        offset: Offset,
        /// Its entity.
        entity_ref: EntityRef,
        /// Who refuses it.
        endpoint: String,
        /// In the destination's words.
        reason: String,
    },
    /// The operator has to change something (credentials, a missing topic): shown, and looked at again each minute.
    #[error("{endpoint}: {reason}")]
    Misconfigured {
        /// Where.
        endpoint: String,
        /// What is wrong and what to do.
        reason: String,
    },
    /// Somebody else owns this sink: give the lease up.
    #[error("fenced at {endpoint}: {reason}")]
    Fenced {
        /// Where.
        endpoint: String,
        /// In the destination's words.
        reason: String,
    },
    /// The destination is written by others or is not what it was: an operator decides (`sinks resume`, `sinks rewind`).
    #[error("{endpoint} has diverged: {reason}")]
    Diverged {
        /// Where.
        endpoint: String,
        /// What was seen and expected.
        reason: String,
    },
    /// The destination lost what it had acknowledged (a power failure before its disk was flushed, an unclean election). The
    /// driver moves the checkpoint back to `kept`, within the generation, so that what is lost is delivered again with its
    /// ids. Only for a destination that tells what of ours is left, and only when something is; otherwise `Diverged`.
    #[error("{endpoint} lost acknowledged events after offset {kept}: {reason}")]
    TailLost {
        /// Where.
        endpoint: String,
        /// Everything up to here is still there; below the claim's checkpoint.
        kept: Offset,
        /// How that was seen.
        reason: String,
    },
    /// The destination's tail carries our log id and an offset above head: the store was restored to an older state. The
    /// driver asks the store; if its head is still below, the log gets a new id (DESIGN section 4, Restores).
    #[error("{endpoint} holds offset {tail} of this log, above its head")]
    AheadOfLog {
        /// Where.
        endpoint: String,
        /// The offset found there.
        tail: Offset,
    },
}

impl ConnectorError {
    /// A transient failure.
    pub fn transient(action: &'static str, endpoint: impl Into<String>, source: impl Into<BoxError>) -> Self {
        ConnectorError::Transient { action, endpoint: endpoint.into(), source: source.into(), retry_after: None }
    }

    /// Something for the operator to change.
    pub fn misconfigured(endpoint: impl Into<String>, reason: impl Into<String>) -> Self {
        ConnectorError::Misconfigured { endpoint: endpoint.into(), reason: reason.into() }
    }
}
