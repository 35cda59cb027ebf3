//! The store in a SQLite file, for one process.
//!
//! Keeps P1 and P9 as the PostgreSQL twin does; the head lock is here the one writing connection with `begin immediate`.
//! A commit is on disk before it is seen (WAL, synchronous FULL). Another process waits for the file's lock.

mod append;
mod change;
mod checkpoints;
mod held;
mod lock;
mod log;
mod migrate;
mod read;
mod retain;
mod states;
mod write;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use catalog_bridge_api::Offset;
use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteRow, SqliteSynchronous};
use sqlx::{Row, Sqlite, SqliteConnection, SqlitePool, Transaction, query};
use tokio::sync::Mutex;
use uuid::Uuid;

use self::lock::FileLock;
use super::head::Head;
use super::retention::Ledger;
use super::{LogState, Metrics, StoreError};

/// The store. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct SqliteStore {
    /// One connection: writers queue for it.
    writer: SqlitePool,
    readers: SqlitePool,
    head: Head,
    metrics: Metrics,
    ledger: Arc<Mutex<Ledger>>,
    lock: Arc<FileLock>,
}

impl SqliteStore {
    /// Waits for the file's lock, opens and migrates the file, and reads where the log stands.
    pub(crate) async fn open(path: &Path, metrics: Metrics) -> Result<Self, StoreError> {
        let lock = FileLock::acquire(path).await?;
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(Duration::from_secs(10));
        let open = "open the store's file";
        let pool = || SqlitePoolOptions::new().idle_timeout(None).max_lifetime(None);
        let writer = pool().max_connections(1).connect_with(options.clone()).await.map_err(unavailable(open))?;
        migrate::migrate(&writer).await?;
        let readers =
            pool().max_connections(4).connect_with(options.read_only(true)).await.map_err(unavailable(open))?;
        let mut reader = readers.acquire().await.map_err(unavailable(open))?;
        let state = read_state(&mut reader).await?;
        drop(reader);
        let store = SqliteStore {
            writer,
            readers,
            head: Head::new(state),
            metrics,
            ledger: Arc::default(),
            lock: Arc::new(lock),
        };
        store.settle_older_copy().await?;
        Ok(store)
    }

    /// For tests: returns when the file is closed; a store that is only dropped closes it a little later.
    #[cfg(test)]
    pub(super) async fn close(&self) {
        self.readers.close().await;
        self.writer.close().await;
    }

    /// For tests: a consistent copy of the file.
    #[cfg(test)]
    pub(super) async fn vacuum_into(&self, statement: &str) {
        let statement = sqlx::AssertSqlSafe(statement.to_owned());
        sqlx::raw_sql(statement).execute(&self.writer).await.expect("copied");
    }

    /// The one transaction that writes; it holds the head lock.
    pub(super) async fn begin_write(&self) -> Result<Transaction<'static, Sqlite>, StoreError> {
        self.writer.begin_with("begin immediate").await.map_err(unavailable("begin a transaction"))
    }

    /// A transaction that reads one snapshot: that of its first statement.
    pub(super) async fn begin_read(&self) -> Result<Transaction<'static, Sqlite>, StoreError> {
        self.readers.begin().await.map_err(unavailable("begin a transaction"))
    }

    /// Where the log stands, inside the writing transaction. A store that went behind what this process has seen was
    /// restored under it, and gets its new log id in this transaction.
    async fn lock_head(&self, connection: &mut SqliteConnection) -> Result<LogState, StoreError> {
        let seen = self.head.seen();
        let state = read_state(connection).await?;
        if !seen.is_ahead_of(&state) {
            return Ok(state);
        }
        let log_id = change::renew_in(connection).await.map_err(unavailable("give a restored log a new id"))?;
        tracing::warn!(before = %state.log_id, now = %log_id, head = %state.head, "the store was restored: the log gets a new id");
        Ok(LogState { log_id, ..state })
    }

    /// A file that is behind what was noted beside it is an older copy.
    async fn settle_older_copy(&self) -> Result<(), StoreError> {
        let state = self.head.subscribe().borrow().clone();
        if self.lock.noted().is_some_and(|(log_id, head)| log_id == state.log_id && head > state.head) {
            self.renew_log_id("the file is older than what was noted beside it: it was restored").await?;
        }
        // Not in one statement: the watch would be borrowed while it is written.
        let state = self.head.subscribe().borrow().clone();
        self.publish(&state);
        Ok(())
    }

    /// Takes a state that was committed.
    fn publish(&self, state: &LogState) {
        self.head.publish(state);
        self.lock.note(state.log_id, state.head);
    }

    /// Asks the store itself, and settles a restored one.
    async fn ask_state(&self) -> Result<LogState, StoreError> {
        let seen = self.head.seen();
        let mut transaction = self.begin_read().await?;
        let mut state = read_state(&mut transaction).await?;
        drop(transaction);
        if seen.is_ahead_of(&state) {
            let mut transaction = self.begin_write().await?;
            state = self.lock_head(&mut transaction).await?;
            transaction.commit().await.map_err(unavailable("settle a restored store"))?;
        }
        self.publish(&state);
        Ok(state)
    }

    /// Counts failures. A local file answers or fails: no time-out, unlike the PostgreSQL twin.
    async fn bounded<T>(
        &self,
        action: &'static str,
        operation: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let result = operation.await;
        if let Err(StoreError::Unavailable { .. }) = &result {
            self.metrics.failed(action);
        }
        result
    }
}

/// Where the log stands in this connection's snapshot.
async fn read_state(connection: &mut SqliteConnection) -> Result<LogState, StoreError> {
    const STATE: &str = "select log_id, head, oldest, redactions from log_state";
    let read = "read the log's state";
    let row = query(STATE).fetch_one(connection).await.map_err(unavailable(read))?;
    state_of(&row).map_err(unavailable(read))
}

fn state_of(row: &SqliteRow) -> Result<LogState, sqlx::Error> {
    let log_id: &str = row.try_get("log_id")?;
    Ok(LogState {
        log_id: Uuid::parse_str(log_id).map_err(|error| sqlx::Error::Decode(Box::new(error)))?,
        head: offset_of(row.try_get("head")?),
        oldest: offset_of(row.try_get("oldest")?),
        redactions: row.try_get::<i64, _>("redactions")?.unsigned_abs(),
    })
}

/// Offsets are never negative in the tables.
fn offset_of(number: i64) -> Offset {
    Offset::new(number.unsigned_abs())
}

/// As the tables hold it.
fn number_of(offset: Offset) -> i64 {
    i64::try_from(offset.get()).unwrap_or(i64::MAX)
}

/// Times are kept as microseconds since 1970.
fn time_of(microseconds: i64) -> DateTime<Utc> {
    DateTime::from_timestamp_micros(microseconds).unwrap_or_default()
}

/// As the tables hold it.
fn microseconds_of(time: DateTime<Utc>) -> i64 {
    time.timestamp_micros()
}

/// Wraps a database error.
fn unavailable(action: &'static str) -> impl FnOnce(sqlx::Error) -> StoreError {
    move |error| StoreError::Unavailable { action, source: Box::new(error) }
}

/// A JSON array, for `json_each`: SQLite has no array parameters.
fn json_of<T: Serialize>(values: impl Iterator<Item = T>) -> String {
    let values: Vec<T> = values.collect();
    serde_json::to_string(&values).expect("numbers and strings serialize")
}
