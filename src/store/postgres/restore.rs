//! Notices that the server's data is another copy than the one that this log was written on.
//!
//! Keeps P1 over restores: offsets of a restored log would be given a second time, so the log gets a new id and every sink a
//! new generation before anything more is served or appended. Signs of it: what this process has itself seen is not there
//! (any more), or the incarnation differs from the one stored in the log. The incarnation is looked at whenever the server's
//! start time is a new one; it says nothing about a copy of the same files that did not pass through a recovery to another
//! timeline. There the first sign, clients' and destinations' offsets above head, and `log new-id` remain.

use std::sync::{Arc, Mutex, PoisonError};

use chrono::{DateTime, Utc};
use sqlx::{PgConnection, query, query_scalar};

use super::super::head::Seen;
use super::super::{LogState, StoreError};
use super::transaction::Transaction;
use super::{LOCK, PostgresStore, STATE, change, query_state, unavailable};

/// The start of the server whose incarnation was compared last.
#[derive(Debug, Clone, Default)]
pub(super) struct KnownStart(Arc<Mutex<Option<DateTime<Utc>>>>);

impl KnownStart {
    fn is(&self, started_at: DateTime<Utc>) -> bool {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) == Some(started_at)
    }

    fn set(&self, started_at: DateTime<Utc>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(started_at);
    }
}

/// System identifier, database, table, timeline. The timeline by the name of the log file that is being written: the
/// control file's lags behind after a promotion.
const INCARNATION: &str = "\
select concat_ws(
    ':',
    (select system_identifier from pg_control_system()),
    (select oid from pg_database where datname = current_database()),
    'log_state'::regclass::oid,
    substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)
)";

const STORED: &str = "select incarnation from log_state";

const STORE: &str = "update log_state set incarnation = $1";

impl PostgresStore {
    /// Where the log stands in this transaction's snapshot. Refused while it may be a restored one.
    pub(super) async fn read_state(&self, transaction: &mut Transaction) -> Result<LogState, StoreError> {
        let seen = self.head.seen();
        let (state, started_at) = query_state(transaction, STATE).await?;
        if self.is_as_known(&seen, &state, started_at) {
            return Ok(state);
        }
        self.wake.notify_one();
        Err(StoreError::Unavailable {
            action: "read the log",
            source: "the database server restarted or was restored, which is being looked at; try again".into(),
        })
    }

    /// The same under the head lock, as a statement of its own: the statements after it see everything that was committed
    /// before the lock was granted. Until the commit nobody else appends or changes `oldest` or the log's id. A restored
    /// store gets its new log id in this transaction.
    pub(super) async fn lock_head(&self, transaction: &mut Transaction) -> Result<LogState, StoreError> {
        let seen = self.head.seen();
        let (state, started_at) = query_state(transaction, LOCK).await?;
        if self.is_as_known(&seen, &state, started_at) {
            return Ok(state);
        }
        self.look_at_incarnation(transaction, &seen, state, started_at)
            .await
            .map_err(unavailable("compare the store with the server that it is on"))
    }

    /// Asks the store itself, and settles a restored one.
    pub(super) async fn ask_state(&self) -> Result<LogState, StoreError> {
        let seen = self.head.seen();
        let mut transaction = self.begin_read().await?;
        let (mut state, started_at) = query_state(&mut transaction, STATE).await?;
        transaction.rollback().await;
        if !self.is_as_known(&seen, &state, started_at) {
            let mut transaction = self.begin_write().await?;
            state = self.lock_head(&mut transaction).await?;
            transaction.commit().await.map_err(unavailable("settle a restored store"))?;
        }
        self.head.publish(&state);
        Ok(state)
    }

    fn is_as_known(&self, seen: &Seen, found: &LogState, started_at: DateTime<Utc>) -> bool {
        self.known_start.is(started_at) && !seen.is_ahead_of(found)
    }

    async fn look_at_incarnation(
        &self,
        connection: &mut PgConnection,
        seen: &Seen,
        state: LogState,
        started_at: DateTime<Utc>,
    ) -> Result<LogState, sqlx::Error> {
        let stored: Option<String> = query_scalar(STORED).persistent(false).fetch_one(&mut *connection).await?;
        let now: String = query_scalar(INCARNATION).persistent(false).fetch_one(&mut *connection).await?;
        let is_another = stored.as_ref().is_some_and(|stored| *stored != now);
        if stored.as_ref() != Some(&now) {
            query(STORE).bind(&now).persistent(false).execute(&mut *connection).await?;
        }
        if !is_another && !seen.is_ahead_of(&state) {
            // Another replica may have settled it, or nothing happened but a restart. If this transaction is rolled back the
            // first incarnation is not stored: whoever starts next stores it.
            self.known_start.set(started_at);
            return Ok(state);
        }
        // The start stays unknown until the next look finds everything settled: this transaction may yet be rolled back.
        let log_id = change::renew_in(connection).await?;
        let sign = if is_another { "its incarnation is another" } else { "events that were seen are not there" };
        tracing::warn!(before = %state.log_id, now = %log_id, head = %state.head, sign, "the store was restored: the log gets a new id");
        Ok(LogState { log_id, ..state })
    }
}
