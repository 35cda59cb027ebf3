//! The store on PostgreSQL 13 or newer, shared by all replicas.
//!
//! Keeps P1 and P9: every append holds the one row of `log_state` from before it reads until it commits, so offsets are given
//! in commit order, and epoch and position are compared under that lock. Locks are always taken in the order `log_state`,
//! `checkpoints`, the rest. Works through PgBouncer in transaction mode: every statement is unnamed and inside a
//! transaction, settings are local to it, and nothing relies on the session.

mod append;
mod change;
mod checkpoints;
mod credentials;
mod follow;
mod held;
mod log;
mod migrate;
mod read;
mod restore;
mod retain;
mod states;
mod transaction;
mod write;

use std::sync::Arc;

use catalog_bridge_api::Offset;
use chrono::{DateTime, Utc};
use sqlx::postgres::{PgPoolOptions, PgRow};
use sqlx::{PgPool, Row, query};
use tokio::sync::{Mutex, Notify};

pub(super) use self::credentials::connect_options;
use self::follow::Follower;
use self::restore::KnownStart;
use self::transaction::{Begin, Transaction};
use super::head::Head;
use super::retention::Ledger;
use super::{LogState, Metrics, PostgresSettings, Settings, StoreError};

/// As `server_version_num`.
const SERVER_VERSION_MIN: i32 = 130_000;

/// The store. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct PostgresStore {
    pool: PgPool,
    settings: Arc<PostgresSettings>,
    begin: Begin,
    head: Head,
    metrics: Metrics,
    /// Whose append it is, in this process.
    turn: Arc<Mutex<()>>,
    ledger: Arc<Mutex<Ledger>>,
    known_start: KnownStart,
    /// Makes the next look at the head come at once.
    wake: Arc<Notify>,
    /// Ends with the last clone; `None` in the follower's own.
    _follower: Option<Arc<Follower>>,
}

impl PostgresStore {
    /// Connects, migrates, and reads where the log stands.
    pub(crate) async fn open(
        settings: &Settings,
        postgres: &PostgresSettings,
        metrics: Metrics,
    ) -> Result<Self, StoreError> {
        check_schema_name(&postgres.schema)?;
        let pool = PgPoolOptions::new()
            .max_connections(postgres.connections_max.max(2))
            .acquire_timeout(settings.lease / 2)
            .connect_with(connect_options(postgres)?)
            .await
            .map_err(unavailable("connect to the store"))?;
        let server_version = server_version(&pool).await?;
        if server_version < SERVER_VERSION_MIN {
            return Err(StoreError::Unavailable {
                action: "use this server as the store",
                source: format!("its version is {server_version}: PostgreSQL 13 or newer is needed").into(),
            });
        }
        migrate::migrate(&pool, &postgres.schema).await?;
        let begin = Begin::new(&postgres.schema, server_version, settings.lease);
        let mut transaction = Transaction::begin(&pool, &begin.read).await?;
        let (state, _started_at) = query_state(&mut transaction, STATE).await?;
        transaction.rollback().await;
        let store = PostgresStore {
            pool,
            settings: Arc::new(postgres.clone()),
            begin,
            head: Head::new(state),
            metrics,
            turn: Arc::default(),
            ledger: Arc::default(),
            known_start: KnownStart::default(),
            wake: Arc::new(Notify::new()),
            _follower: None,
        };
        // Settles a restored log before anything of it is served.
        store.ask_state().await?;
        let follower = Follower::start(store.clone(), postgres.listen_url.clone());
        Ok(PostgresStore { _follower: Some(follower), ..store })
    }

    /// A transaction that writes; see [`Begin`].
    pub(super) async fn begin_write(&self) -> Result<Transaction, StoreError> {
        let begun = Transaction::begin(&self.pool, &self.begin.write).await;
        self.read_credentials_after(begun)
    }

    /// A transaction that reads one snapshot.
    pub(super) async fn begin_read(&self) -> Result<Transaction, StoreError> {
        let begun = Transaction::begin(&self.pool, &self.begin.read).await;
        self.read_credentials_after(begun)
    }

    /// Bounds a whole operation: a server that is frozen or cut off answers nothing, and its own time-outs do not reach us.
    async fn bounded<T>(
        &self,
        action: &'static str,
        operation: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let result = match tokio::time::timeout(self.begin.limit * 2, operation).await {
            Ok(result) => result,
            Err(_) => Err(StoreError::Unavailable { action, source: "the database did not answer in time".into() }),
        };
        if let Err(StoreError::Unavailable { .. }) = &result {
            self.metrics.failed(action);
        }
        result
    }
}

const STATE: &str = "select log_id, head, oldest, redactions, pg_postmaster_start_time() as started_at from log_state";
const LOCK: &str = "select log_id, head, oldest, redactions, pg_postmaster_start_time() as started_at from log_state \
                    for update";

/// The log's state, and when the server started.
async fn query_state(
    transaction: &mut Transaction,
    statement: &'static str,
) -> Result<(LogState, DateTime<Utc>), StoreError> {
    let action = if statement == LOCK { "wait for the log's head lock" } else { "read the log's state" };
    let row = query(statement).persistent(false).fetch_one(&mut **transaction).await;
    row.and_then(|row| state_of(&row)).map_err(unavailable(action))
}

fn state_of(row: &PgRow) -> Result<(LogState, DateTime<Utc>), sqlx::Error> {
    let state = LogState {
        log_id: row.try_get("log_id")?,
        head: offset_of(row.try_get("head")?),
        oldest: offset_of(row.try_get("oldest")?),
        redactions: row.try_get::<i64, _>("redactions")?.unsigned_abs(),
    };
    Ok((state, row.try_get("started_at")?))
}

/// Offsets are never negative in the tables.
fn offset_of(number: i64) -> Offset {
    Offset::new(number.unsigned_abs())
}

/// As the tables hold it.
fn number_of(offset: Offset) -> i64 {
    i64::try_from(offset.get()).unwrap_or(i64::MAX)
}

/// Wraps a database error; its text carries no credentials.
fn unavailable(action: &'static str) -> impl FnOnce(sqlx::Error) -> StoreError {
    move |error| StoreError::Unavailable { action, source: Box::new(error) }
}

async fn server_version(pool: &PgPool) -> Result<i32, StoreError> {
    let read = "read the server's version";
    let begin = "begin isolation level read committed, read only".into();
    let mut transaction = Transaction::begin(pool, &begin).await?;
    let row = query("select current_setting('server_version_num')::int4 as version")
        .persistent(false)
        .fetch_one(&mut *transaction)
        .await
        .map_err(unavailable(read))?;
    transaction.rollback().await;
    row.try_get("version").map_err(unavailable(read))
}

/// The name stands in statements that take no parameters.
fn check_schema_name(schema: &str) -> Result<(), StoreError> {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    let starts_well = schema.bytes().next().is_some_and(|byte| !byte.is_ascii_digit());
    if starts_well && schema.len() <= 63 && schema.bytes().all(plain) {
        return Ok(());
    }
    Err(StoreError::Unavailable {
        action: "read the store's settings",
        source: format!(
            "schema \"{schema}\": use lower-case letters, digits and _, at most 63, not beginning with a digit"
        )
        .into(),
    })
}
