//! The connection to the catalog's database, and every statement that is sent there.
//!
//! Keeps P10: each transaction is short, bounded by time-outs on both sides, and takes no lock but the shared one of a reader.
//! It is READ ONLY, but for those that clean the outbox of our own triggers. Works through a pooler in transaction mode: nothing outlives a transaction, no statement has a name. Each
//! transaction reads the server's identity in its own snapshot, and is refused when it is not the expected one.

mod census;
mod keys;
mod look;
mod page;
mod rows;

pub(super) use self::census::{Buckets, Census, CensusKind};
pub(super) use self::keys::Key;
pub(super) use self::page::PageLimits;
pub(super) use self::rows::{Body, Row, bound_bytes};

use std::future::Future;
use std::time::Duration;

use sqlx::postgres::types::PgInterval;
use sqlx::postgres::{PgArguments, PgRow};
use sqlx::query::Query;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, Postgres, Row as _};

use super::incarnation::Identity;
use super::pace::Meter;
use super::position::Way;
use super::quote;
use super::settings::Settings;
use super::triggers::outbox::{Drain, OutboxLook};
use crate::source::owner::SourceError;

/// What the client adds to the server's own time-out, so that the server's error comes first where it still can.
const CLIENT_MARGIN: Duration = Duration::from_secs(5);

/// One connection.
pub(super) struct Catalog {
    connection: PgConnection,
    endpoint: String,
    timeout: Duration,
    /// Begins a transaction without looking at any table.
    begin_bare: String,
    /// What reads identity, and counter or outbox, in its snapshot.
    identify: String,
    way: Way,
    expected: Option<Identity>,
    meter: Meter,
    /// The schema of our own triggers' outbox.
    outbox: String,
    /// How far it was read, and the id below which everything is.
    drained: Option<(Drain, i64)>,
    /// What the last transaction saw of it.
    outbox_look: Option<OutboxLook>,
}

impl Catalog {
    pub(super) async fn connect(settings: &Settings) -> Result<Self, SourceError> {
        let options = settings.connect.options().map_err(SourceError::Misconfigured)?;
        let database = options.get_database().unwrap_or(options.get_username()).to_owned();
        let endpoint = format!("{}:{}/{database}", options.get_host(), options.get_port());
        let connecting = tokio::time::timeout(settings.connect_timeout, PgConnection::connect_with(&options)).await;
        let connection = match connecting {
            Err(_) => return Err(timed_out("connect", &endpoint, settings.connect_timeout)),
            Ok(connected) => connected.map_err(|error| classify("connect", &endpoint, error))?,
        };
        let milliseconds = settings.statement_timeout.as_millis().max(1);
        let begin_bare = format!(
            "begin isolation level repeatable read read only; \
             set local search_path to {schema}; \
             set local statement_timeout = {milliseconds}; \
             set local lock_timeout = {milliseconds}; \
             set local idle_in_transaction_session_timeout = {milliseconds}; \
             set local max_parallel_workers_per_gather = 0",
            schema = quote(&settings.schema),
        );
        Ok(Catalog {
            connection,
            endpoint,
            timeout: settings.statement_timeout + CLIENT_MARGIN,
            identify: String::new(),
            begin_bare,
            way: Way::Reconcile,
            expected: None,
            meter: Meter::default(),
            outbox: settings.trigger_schema.clone(),
            drained: None,
            outbox_look: None,
        })
    }

    /// Host, port and database.
    pub(super) fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// From now on transactions read what `way` goes by.
    pub(super) fn use_way(&mut self, way: Way) {
        let (counter, trigger, more) = match way {
            Way::Generations => (
                "(select generation from catalog_generation_counter where id = 1)::text",
                "(select tgenabled::text || ':' || xmin::text from pg_trigger \
                  where tgrelid = 'final_entities'::regclass \
                  and tgname = 'final_entities_assign_generation_at_commit')"
                    .to_owned(),
                String::new(),
            ),
            Way::Triggers => ("null::text", OutboxLook::identity(&self.outbox), OutboxLook::columns(&self.outbox)),
            Way::Reconcile => ("null::text", "null::text".to_owned(), String::new()),
        };
        self.way = way;
        self.identify = format!(
            "select extract(epoch from pg_postmaster_start_time())::text, \
             (select oid::text from pg_database where datname = current_database()), \
             'final_entities'::regclass::oid::text, {counter}, {trigger}{more}",
        );
    }

    /// The schema of our own triggers' outbox.
    pub(super) fn outbox(&self) -> &str {
        &self.outbox
    }

    /// From now on rows with changes in the outbox after this are left to it; ids up to `floor` are all read.
    pub(super) fn drained_to(&mut self, drain: &Drain, floor: i64) {
        self.drained = Some((drain.clone(), floor));
    }

    pub(super) fn drained(&self) -> Option<&(Drain, i64)> {
        self.drained.as_ref()
    }

    /// What the last transaction saw of the outbox.
    pub(super) fn outbox_look(&self) -> Result<OutboxLook, SourceError> {
        self.outbox_look.clone().ok_or_else(|| SourceError::Reopen("the outbox was not looked at".to_owned()))
    }

    /// From now on a transaction of another server, database or table is refused.
    pub(super) fn expect(&mut self, identity: Identity) {
        self.expected = Some(identity);
    }

    /// What the repeated looks cost the database since this was asked last.
    pub(super) fn take_spent(&mut self) -> Duration {
        self.meter.take_spent()
    }

    /// Identity and counter now, in one round trip.
    pub(super) async fn look(&mut self) -> Result<(Identity, Option<i64>), SourceError> {
        let text = format!("{}; {}; commit", self.begin_bare, self.identify);
        self.identify(text).await
    }

    /// Begins a transaction and returns the counter of its snapshot.
    pub(super) async fn begin(&mut self) -> Result<Option<i64>, SourceError> {
        let begin = self.begin_bare.clone();
        self.begin_by(&begin).await
    }

    /// Begins one that may write; only our own tables are written.
    pub(super) async fn begin_writing(&mut self) -> Result<(), SourceError> {
        let begin = self.begin_bare.replacen("read only", "read write", 1);
        self.begin_by(&format!("{begin}; set local synchronous_commit = off")).await.map(drop)
    }

    async fn begin_by(&mut self, begin: &str) -> Result<Option<i64>, SourceError> {
        let text = format!("{begin}; {}", self.identify);
        let (identity, counter) = self.identify(text).await?;
        match &self.expected {
            Some(expected) if *expected != identity => Err(SourceError::Reopen(
                "another server, database or table answered, or its triggers changed".to_owned(),
            )),
            _ => Ok(counter),
        }
    }

    async fn identify(&mut self, text: String) -> Result<(Identity, Option<i64>), SourceError> {
        let action = "look at the catalog";
        let work = sqlx::raw_sql(AssertSqlSafe(text)).fetch_all(&mut self.connection);
        let rows = timed(work, self.timeout, action, &self.endpoint).await?;
        let row = rows.first().ok_or_else(|| SourceError::Reopen("the catalog gave no answer".to_owned()))?;
        let counter: Option<String> = self.get(row, 3)?;
        let look = match self.way {
            Way::Triggers => Some(OutboxLook::read(self, row, 5)?),
            _ => None,
        };
        let identity = Identity {
            started_at: self.get(row, 0)?,
            database: self.get(row, 1)?,
            table: self.get(row, 2)?,
            trigger: self.get(row, 4)?,
        };
        self.outbox_look = look;
        Ok((identity, counter.and_then(|counter| counter.parse().ok())))
    }

    async fn begin_bare(&mut self) -> Result<(), SourceError> {
        let text = self.begin_bare.clone();
        self.send("begin", text).await
    }

    pub(super) async fn commit(&mut self) -> Result<(), SourceError> {
        self.send("end a transaction", "commit".to_owned()).await
    }

    async fn send(&mut self, action: &'static str, text: String) -> Result<(), SourceError> {
        let work = self.connection.execute(sqlx::raw_sql(AssertSqlSafe(text)));
        timed(work, self.timeout, action, &self.endpoint).await.map(|_| ())
    }

    pub(super) async fn all(
        &mut self,
        action: &'static str,
        query: Query<'_, Postgres, PgArguments>,
    ) -> Result<Vec<PgRow>, SourceError> {
        let work = query.persistent(false).fetch_all(&mut self.connection);
        timed(work, self.timeout, action, &self.endpoint).await
    }

    /// The same for a statement that names our own schema.
    pub(super) async fn all_of(
        &mut self,
        action: &'static str,
        sql: String,
        bind: impl for<'q> FnOnce(Query<'q, Postgres, PgArguments>) -> Query<'q, Postgres, PgArguments>,
    ) -> Result<Vec<PgRow>, SourceError> {
        self.all(action, bind(sqlx::query(AssertSqlSafe(sql)))).await
    }

    async fn one(
        &mut self,
        action: &'static str,
        query: Query<'_, Postgres, PgArguments>,
    ) -> Result<PgRow, SourceError> {
        let work = query.persistent(false).fetch_one(&mut self.connection);
        timed(work, self.timeout, action, &self.endpoint).await
    }

    /// One text that the server may refuse, in a transaction of its own.
    async fn optional(&mut self, sql: &'static str) -> Result<Option<String>, SourceError> {
        self.begin_bare().await?;
        let work = sqlx::query(sql).persistent(false).fetch_one(&mut self.connection);
        let answer = tokio::time::timeout(self.timeout, work).await;
        let answer = match answer {
            Err(_) => return Err(timed_out("identify the server", &self.endpoint, self.timeout)),
            Ok(Ok(row)) => self.get(&row, 0)?,
            Ok(Err(sqlx::Error::Database(_))) => None,
            Ok(Err(error)) => return Err(classify("identify the server", &self.endpoint, error)),
        };
        self.send("end a transaction", "rollback".to_owned()).await?;
        Ok(answer)
    }

    /// Counts what the server says it worked on a look over so many rows; returns what that cost it.
    fn note(&mut self, look: &'static str, rows: i64, row: &PgRow, column: usize) -> Result<Duration, SourceError> {
        let worked: PgInterval = self.get(row, column)?;
        let worked = Duration::from_micros(u64::try_from(worked.microseconds).unwrap_or_default());
        Ok(self.meter.note(look, u64::try_from(rows).unwrap_or_default(), worked))
    }

    pub(super) fn get<'r, T: sqlx::Decode<'r, Postgres> + sqlx::Type<Postgres>>(
        &self,
        row: &'r PgRow,
        index: usize,
    ) -> Result<T, SourceError> {
        row.try_get(index).map_err(|error| classify("read a row", &self.endpoint, error))
    }
}

/// A server that was stopped still completes connects and takes bytes: the client must not wait for it for ever.
async fn timed<T>(
    work: impl Future<Output = Result<T, sqlx::Error>>,
    timeout: Duration,
    action: &'static str,
    endpoint: &str,
) -> Result<T, SourceError> {
    match tokio::time::timeout(timeout, work).await {
        Err(_) => Err(timed_out(action, endpoint, timeout)),
        Ok(answer) => answer.map_err(|error| classify(action, endpoint, error)),
    }
}

fn timed_out(action: &'static str, endpoint: &str, timeout: Duration) -> SourceError {
    SourceError::Transient {
        action,
        endpoint: endpoint.to_owned(),
        source: format!("no answer within {timeout:?}").into(),
    }
}

fn classify(action: &'static str, endpoint: &str, error: sqlx::Error) -> SourceError {
    let code = error.as_database_error().and_then(|error| error.code().map(std::borrow::Cow::into_owned));
    match code.as_deref() {
        // Wrong password, no such role, database, table, column or function, no right.
        Some("28P01" | "28000" | "3D000" | "42P01" | "42703" | "42883" | "42501" | "3F000") => {
            SourceError::Misconfigured(format!(
                "{endpoint}: {error}; check the source's settings and its rights (catalog-bridge source grants --print)"
            ))
        }
        _ => SourceError::Transient { action, endpoint: endpoint.to_owned(), source: Box::new(error) },
    }
}
