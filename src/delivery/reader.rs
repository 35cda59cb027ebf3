//! Reads what a sink has to deliver next: first its walk over the live state, then the log.

use std::sync::Arc;

use catalog_bridge_api::Offset;
use uuid::Uuid;

use super::checkpoint::Position;
use crate::store::{LogEntry, ReadLimits, StoreError, Tail};

/// How much one read brings at most: a sink holds no more than this besides its window.
const LIMITS: ReadLimits = ReadLimits { events_max: 1_000, bytes_max: 4 * 1024 * 1024 };

/// Where to read on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cursor {
    /// In a walk at `at`.
    Walk { at: Offset, removals_above: Option<Offset>, after: Offset },
    /// In the log.
    Log { after: Offset },
}

/// What was read.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) entries: Vec<Arc<LogEntry>>,
    /// Everything up to here is in `entries` or needs no delivery.
    pub(super) reached: Offset,
    pub(super) next: Cursor,
}

/// Why nothing was read.
#[derive(Debug)]
pub(super) enum ReadError {
    /// The log's id is another one.
    LogChanged,
    /// Retention passed the cursor.
    Expired,
    /// Try again.
    Store(StoreError),
}

impl Cursor {
    /// Where the sink's next session begins.
    pub(super) fn at(position: &Position) -> Cursor {
        let after = position.prefix();
        match position.walk {
            Some(at) if after < at => Cursor::Walk { at, removals_above: position.walk_removals_above, after },
            _ => Cursor::Log { after },
        }
    }

    /// Reads the next piece; in the log it waits until there is one. Cancel safe.
    pub(super) async fn read(self, tail: Tail, log_id: Uuid) -> Result<Batch, ReadError> {
        match self {
            Cursor::Walk { at, removals_above, after } => walk(&tail, log_id, at, removals_above, after).await,
            Cursor::Log { after } => follow(&tail, log_id, after).await,
        }
    }
}

async fn follow(tail: &Tail, log_id: Uuid, after: Offset) -> Result<Batch, ReadError> {
    loop {
        let page = tail.read(after, LIMITS).await.map_err(judge)?;
        if page.state.log_id != log_id {
            return Err(ReadError::LogChanged);
        }
        if let Some(last) = page.entries.last() {
            let reached = last.event.offset;
            return Ok(Batch { reached, next: Cursor::Log { after: reached }, entries: page.entries });
        }
        tail.wait_beyond(after).await;
    }
}

async fn walk(
    tail: &Tail,
    log_id: Uuid,
    at: Offset,
    removals_above: Option<Offset>,
    after: Offset,
) -> Result<Batch, ReadError> {
    let store = tail.store();
    let page = store.walk(at, after, removals_above, LIMITS).await.map_err(judge)?;
    // The page does not say which log it is of; offsets of a restored one may name other events.
    if store.state().await.map_err(judge)?.log_id != log_id {
        return Err(ReadError::LogChanged);
    }
    match page.entries.last() {
        Some(last) if page.more => {
            let reached = last.event.offset;
            Ok(Batch { reached, next: Cursor::Walk { at, removals_above, after: reached }, entries: page.entries })
        }
        _ => Ok(Batch { reached: at, next: Cursor::Log { after: at }, entries: page.entries }),
    }
}

fn judge(error: StoreError) -> ReadError {
    match error {
        StoreError::Expired { .. } => ReadError::Expired,
        StoreError::LogChanged { .. } => ReadError::LogChanged,
        other => ReadError::Store(other),
    }
}
