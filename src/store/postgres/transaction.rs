use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::Duration;

use sqlx::pool::PoolConnection;
use sqlx::{AssertSqlSafe, PgConnection, PgPool, Postgres, raw_sql};

use super::{StoreError, unavailable};

/// The statements that begin transactions, with all settings local to the transaction: PgBouncer in transaction mode hands
/// the server connection to somebody else afterwards.
#[derive(Debug, Clone)]
pub(super) struct Begin {
    /// READ COMMITTED: statements after the head lock see what was committed before it was granted.
    pub(super) write: Arc<str>,
    /// REPEATABLE READ, READ ONLY: one snapshot.
    pub(super) read: Arc<str>,
    /// The longest that a transaction may take, on the server and for us.
    pub(super) limit: Duration,
}

impl Begin {
    /// `schema` is checked to be a plain name; `server_version` is `server_version_num`.
    pub(super) fn new(schema: &str, server_version: i32, lease: Duration) -> Self {
        // Below half a lease: a frozen owner must lose the head lock before its lease can be taken.
        let limit = (lease * 2 / 5).max(Duration::from_millis(500));
        let milliseconds = |duration: Duration| duration.as_millis();
        let (statement, idle, lock) = (milliseconds(limit), milliseconds(limit / 2), milliseconds(limit * 3 / 4));
        let mut local = format!(
            "set local search_path = \"{schema}\"; set local statement_timeout = {statement}; \
             set local idle_in_transaction_session_timeout = {idle}; set local lock_timeout = {lock};"
        );
        if server_version >= 170_000 {
            local.push_str(&format!(" set local transaction_timeout = {statement};"));
        }
        Begin {
            write: format!(
                "begin isolation level read committed, read write; {local} set local synchronous_commit = on;"
            )
            .into(),
            read: format!("begin isolation level repeatable read, read only; {local}").into(),
            limit,
        }
    }
}

/// A transaction. One that was neither committed nor rolled back (an error, a dropped future) is not trusted: its
/// connection is closed, and the server rolls back.
pub(in crate::store) struct Transaction {
    connection: Option<PoolConnection<Postgres>>,
}

impl Transaction {
    pub(super) async fn begin(pool: &PgPool, statement: &Arc<str>) -> Result<Self, StoreError> {
        let connection = pool.acquire().await.map_err(unavailable("connect to the store"))?;
        let mut transaction = Transaction { connection: Some(connection) };
        raw_sql(AssertSqlSafe(Arc::clone(statement)))
            .execute(&mut *transaction)
            .await
            .map_err(unavailable("begin a transaction"))?;
        Ok(transaction)
    }

    /// After an error the outcome is unknown.
    pub(in crate::store) async fn commit(mut self) -> Result<(), sqlx::Error> {
        raw_sql("commit").execute(&mut *self).await?;
        self.connection = None;
        Ok(())
    }

    /// Ends it without a change; for refusals, where the connection is well.
    pub(super) async fn rollback(mut self) {
        if raw_sql("rollback").execute(&mut *self).await.is_ok() {
            self.connection = None;
        }
    }
}

impl Deref for Transaction {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        self.connection.as_ref().expect("only commit and rollback take it, and they consume the transaction")
    }
}

impl DerefMut for Transaction {
    fn deref_mut(&mut self) -> &mut PgConnection {
        self.connection.as_mut().expect("only commit and rollback take it, and they consume the transaction")
    }
}

impl Drop for Transaction {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take() {
            drop(connection.detach());
        }
    }
}
