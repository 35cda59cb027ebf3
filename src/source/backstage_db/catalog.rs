//! The connection to the catalog's database, and every statement that is sent there.
//!
//! Keeps P10: each transaction is READ ONLY, short, bounded by time-outs on both sides, and takes no lock but the shared one
//! of a reader. Works through a pooler in transaction mode: nothing outlives a transaction, no statement has a name. Each
//! transaction reads the server's identity in its own snapshot, and is refused when it is not the expected one.

use std::collections::HashSet;
use std::future::Future;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use sqlx::postgres::{PgArguments, PgRow};
use sqlx::query::Query;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, Postgres, Row as _};

use super::incarnation::{Identity, Incarnation};
use super::position::Way;
use super::quote;
use super::schema::{Counter, Schema};
use super::settings::Settings;
use crate::source::entity::ENTITY_BYTES_MAX;
use crate::source::owner::SourceError;

/// What the client adds to the server's own time-out, so that the server's error comes first where it still can.
const CLIENT_MARGIN: Duration = Duration::from_secs(5);

const SCHEMA: &str = "\
select
  current_setting('server_version_num')::int4,
  current_user::text,
  array(
    select attname::text
    from pg_attribute
    where attrelid = to_regclass('final_entities') and attnum > 0 and not attisdropped
  ),
  coalesce(has_table_privilege(to_regclass('final_entities'), 'select'), false),
  to_regclass('catalog_generation_counter') is not null,
  coalesce(has_table_privilege(to_regclass('catalog_generation_counter'), 'select'), false),
  exists(
    select 1
    from pg_trigger
    where tgrelid = to_regclass('final_entities')
      and tgname = 'final_entities_assign_generation_at_commit'
      and tgenabled in ('O', 'A')
  ),
  coalesce(has_table_privilege(to_regclass('knex_migrations'), 'select'), false)";

const LAST_MIGRATION: &str = "\
select name::text
from knex_migrations
order by id desc
limit 1";

const SYSTEM: &str = "select system_identifier::text from pg_control_system()";

/// A standby cannot tell by this; there the start time has to do.
const TIMELINE: &str = "\
select case when pg_is_in_recovery() then null else substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8) end";

/// The lengths of a page before its bodies: `octet_length` does not read what is stored out of line.
const PAGE: &str = "\
select entity_ref::text, entity_id::text, hash::text, generation, last_updated_at, octet_length(final_entity)
from final_entities
where generation > $1
order by generation
limit $2";

const PAGE_BODIES: &str = "\
select entity_ref::text, final_entity
from final_entities
where generation > $1 and generation <= $2 and octet_length(final_entity) <= $3";

/// Rows without a body count too: leaving them out would read the table instead of an index, and cost five times as much.
const CENSUS: &str = "\
select count(*), null::text
from final_entities";

const CENSUS_WITH_SUM: &str = "\
select count(*), coalesce(sum(hashtextextended(entity_ref collate \"C\", 0)), 0)::text
from final_entities";

const BUCKETS: &str = "\
select ((hash >> 56) & 255)::int4, count(*), sum(hash)::text
from (
  select hashtextextended(entity_ref collate \"C\", 0) as hash
  from final_entities
) as hashes
group by 1";

/// By reconcile alone nothing tells which rows have no body, so they are left out, whatever it costs.
const BUCKETS_WITH_BODY: &str = "\
select ((hash >> 56) & 255)::int4, count(*), sum(hash)::text
from (
  select hashtextextended(entity_ref collate \"C\", 0) as hash
  from final_entities
  where final_entity is not null
) as hashes
group by 1";

const BODILESS: &str = "\
select entity_ref::text
from final_entities
where final_entity is null
limit $1";

const STILL_BODILESS: &str = "\
select entity_ref::text
from final_entities
where entity_ref = any($1) and final_entity is null";

const HASH: &str = "select hashtextextended($1::text collate \"C\", 0)";

/// By key range in the column's own collation, which is the one that its index has. No order of ours is compared with it.
const KEYS: &str = "\
select entity_ref::text, entity_id::text, hash::text
from final_entities
where ($1::text is null or entity_ref > $1) and final_entity is not null
order by entity_ref
limit $2";

/// Without the rows that come by pages: those numbered after a generation. A number above the counter, which a person has
/// set back, comes by no page.
const KEYS_UP_TO: &str = "\
select entity_ref::text, entity_id::text, hash::text
from final_entities
where ($1::text is null or entity_ref > $1) and final_entity is not null
  and (generation is null or generation <= $3 or generation > $4)
order by entity_ref
limit $2";

const KEYS_RECENT: &str = "\
select entity_ref::text, entity_id::text, hash::text, generation
from final_entities
where generation > $1 and generation <= $2 and final_entity is not null
order by generation
limit $3";

/// A collation may hold different texts for equal, so the answer is compared byte by byte by the caller.
const PRESENT: &str = "\
select entity_ref::text
from final_entities
where entity_ref = any($1) and final_entity is not null";

const BY_REF: &str = "\
select entity_ref::text, entity_id::text, hash::text, null::int8, last_updated_at, octet_length(final_entity)
from final_entities
where entity_ref = any($1) and final_entity is not null";

const BY_REF_WITH_GENERATION: &str = "\
select entity_ref::text, entity_id::text, hash::text, generation, last_updated_at, octet_length(final_entity)
from final_entities
where entity_ref = any($1) and final_entity is not null";

const BY_REF_BODIES: &str = "\
select entity_ref::text, final_entity
from final_entities
where entity_ref = any($1) and octet_length(final_entity) <= $2";

const LARGER_THAN: &str = "\
select entity_ref::text
from final_entities
where octet_length(final_entity) > $1 and octet_length(final_entity) <= $2
order by entity_ref
limit 100";

/// One row of `final_entities`.
#[derive(Debug, Clone)]
pub(super) struct Row {
    pub(super) entity_ref: String,
    pub(super) entity_id: String,
    pub(super) hash: String,
    pub(super) generation: Option<i64>,
    pub(super) updated_at: Option<DateTime<Utc>>,
    pub(super) body: Body,
}

/// The JSON of a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Body {
    /// NULL: the catalog shows no such entity.
    Absent,
    /// Not read, as the log could not take it.
    TooLarge(usize),
    /// The text.
    Text(String),
}

/// What a row is compared by.
#[derive(Debug, Clone)]
pub(super) struct Key {
    pub(super) entity_ref: String,
    pub(super) entity_id: String,
    pub(super) hash: String,
}

/// Rows of one snapshot after a generation.
#[derive(Debug)]
pub(super) struct Page {
    /// The counter in the same snapshot.
    pub(super) counter: i64,
    /// In the order of their generations.
    pub(super) rows: Vec<Row>,
    /// There are more.
    pub(super) is_full: bool,
    /// What the snapshot holds in all, if asked for.
    pub(super) census: Option<Census>,
}

/// How many rows a snapshot holds, with and without a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Census {
    pub(super) count: i64,
    /// The sum of the ref hashes, if asked for.
    pub(super) sum: Option<i128>,
    /// What it cost the database.
    pub(super) cost: Duration,
}

/// Which census is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CensusKind {
    None,
    Count,
    Sum,
}

/// Bounds of a page.
#[derive(Debug, Clone, Copy)]
pub(super) struct PageLimits {
    pub(super) rows: i64,
    pub(super) bytes: usize,
}

/// Count and sum of hashes per highest byte of the hash.
pub(super) type Buckets = [(i64, i128); 256];

/// One connection.
pub(super) struct Catalog {
    connection: PgConnection,
    endpoint: String,
    timeout: Duration,
    /// Begins a transaction without looking at any table.
    begin_bare: String,
    /// Begins one and reads identity and counter in its snapshot.
    begin: String,
    way: Way,
    expected: Option<Identity>,
    spent: Duration,
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
            begin: String::new(),
            begin_bare,
            way: Way::Reconcile,
            expected: None,
            spent: Duration::ZERO,
        })
    }

    /// Host, port and database.
    pub(super) fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// How many entities there are, and the refs of those above so many bytes, at most 100.
    pub(super) async fn larger_than(&mut self, bytes: usize) -> Result<(u64, Vec<String>), SourceError> {
        self.begin_bare().await?;
        let row = self.one("count entities", sqlx::query(CENSUS)).await?;
        let present: i64 = self.get(&row, 0)?;
        let asked = i32::try_from(bytes).unwrap_or(i32::MAX);
        let refs = sqlx::query(LARGER_THAN).bind(asked).bind(ENTITY_BYTES_MAX as i32);
        let rows = self.all("look for large entities", refs).await?;
        self.send("end a transaction", "rollback".to_owned()).await?;
        Ok((present.unsigned_abs(), rows.iter().map(|row| self.get(row, 0)).collect::<Result<_, SourceError>>()?))
    }

    /// One entity's body, if it is there and the log could take it.
    pub(super) async fn body(&mut self, entity_ref: &str) -> Result<Option<String>, SourceError> {
        self.begin_bare().await?;
        let query = sqlx::query(BY_REF_BODIES).bind(vec![entity_ref]).bind(ENTITY_BYTES_MAX as i32);
        let rows = self.all("read a large entity", query).await?;
        self.send("end a transaction", "rollback".to_owned()).await?;
        rows.first().map(|row| self.get(row, 1)).transpose()
    }

    /// From now on transactions read the counter where `way` has one.
    pub(super) fn use_way(&mut self, way: Way) {
        let (counter, trigger) = match way {
            Way::Generations => (
                "(select generation from catalog_generation_counter where id = 1)::text",
                "(select tgenabled::text || ':' || xmin::text from pg_trigger \
                  where tgrelid = 'final_entities'::regclass \
                  and tgname = 'final_entities_assign_generation_at_commit')",
            ),
            Way::Reconcile => ("null::text", "null::text"),
        };
        self.way = way;
        self.begin = format!(
            "{}; select extract(epoch from pg_postmaster_start_time())::text, \
             (select oid::text from pg_database where datname = current_database()), \
             'final_entities'::regclass::oid::text, {counter}, {trigger}",
            self.begin_bare
        );
    }

    /// From now on a transaction of another server, database or table is refused.
    pub(super) fn expect(&mut self, identity: Identity) {
        self.expected = Some(identity);
    }

    /// What the statements took since this was asked last: what they cost the database, at most.
    pub(super) fn take_spent(&mut self) -> Duration {
        std::mem::take(&mut self.spent)
    }

    pub(super) async fn schema(&mut self) -> Result<Schema, SourceError> {
        self.begin_bare().await?;
        let row = self.one("read the schema", sqlx::query(SCHEMA)).await?;
        let get = |error| classify("read the schema", "the catalog", error);
        let mut schema = Schema {
            server_version: row.try_get(0).map_err(get)?,
            role: row.try_get(1).map_err(get)?,
            columns: row.try_get(2).map_err(get)?,
            may_select: row.try_get(3).map_err(get)?,
            counter: match (row.try_get(4).map_err(get)?, row.try_get(5).map_err(get)?) {
                (false, _) => Counter::Absent,
                (true, false) => Counter::Forbidden,
                (true, true) => Counter::Readable,
            },
            has_generation_trigger: row.try_get(6).map_err(get)?,
            last_migration: None,
        };
        if row.try_get(7).map_err(get)? {
            let rows = self.all("read the last migration", sqlx::query(LAST_MIGRATION)).await?;
            schema.last_migration = rows.first().map(|row| row.try_get(0)).transpose().map_err(get)?;
        }
        self.commit().await?;
        Ok(schema)
    }

    /// Which database this is; parts that the role or the server refuses stay unknown.
    pub(super) async fn incarnation(&mut self) -> Result<Incarnation, SourceError> {
        Ok(Incarnation { system: self.optional(SYSTEM).await?, timeline: self.optional(TIMELINE).await? })
    }

    /// Whether the server hashes a ref as we do.
    pub(super) async fn hashes_as_we_do(&mut self) -> Result<bool, SourceError> {
        let sample = "component:default/catalog-bridge.sample_1";
        self.begin_bare().await?;
        let row = self.one("compare a hash", sqlx::query(HASH).bind(sample)).await?;
        self.commit().await?;
        Ok(row.try_get::<i64, _>(0).is_ok_and(|hash| hash == super::ref_hash::ref_hash(sample)))
    }

    /// Identity and counter now, in one round trip.
    pub(super) async fn look(&mut self) -> Result<(Identity, Option<i64>), SourceError> {
        let text = format!("{}; commit", self.begin);
        self.identify(text).await
    }

    /// The rows after a generation, bounded, with the counter and the census of the same snapshot.
    pub(super) async fn page(
        &mut self,
        after: i64,
        limits: PageLimits,
        census: CensusKind,
    ) -> Result<Page, SourceError> {
        let counter = self
            .begin()
            .await?
            .ok_or_else(|| SourceError::Reopen("the row of catalog_generation_counter is gone".to_owned()))?;
        let mut page = Page { counter, rows: Vec::new(), is_full: false, census: None };
        if counter > after {
            let heads = self.all("read changes", sqlx::query(PAGE).bind(after).bind(limits.rows)).await?;
            page.is_full = heads.len() as i64 >= limits.rows;
            page.rows = self.heads(&heads)?;
            page.is_full |= bound_bytes(&mut page.rows, limits.bytes);
            if let Some(last) = page.rows.last().and_then(|row| row.generation) {
                let bodies = sqlx::query(PAGE_BODIES).bind(after).bind(last).bind(ENTITY_BYTES_MAX as i32);
                let bodies = self.all("read entities", bodies).await?;
                self.fill(&mut page.rows, &bodies)?;
            }
        }
        page.census = self.census(census).await?;
        self.commit().await?;
        Ok(page)
    }

    async fn census(&mut self, kind: CensusKind) -> Result<Option<Census>, SourceError> {
        let sql = match kind {
            CensusKind::None => return Ok(None),
            CensusKind::Count => CENSUS,
            CensusKind::Sum => CENSUS_WITH_SUM,
        };
        let started = Instant::now();
        let row = self.one("count entities", sqlx::query(sql)).await?;
        let (count, sum) = (self.get(&row, 0)?, self.get::<Option<String>>(&row, 1)?);
        Ok(Some(Census { count, sum: sum.and_then(|sum| sum.parse().ok()), cost: started.elapsed() }))
    }

    /// The refs of rows without a body, at most so many.
    pub(super) async fn bodiless(&mut self, limit: i64) -> Result<Vec<String>, SourceError> {
        self.begin().await?;
        let rows = self.all("look for rows without a body", sqlx::query(BODILESS).bind(limit)).await?;
        self.commit().await?;
        rows.iter().map(|row| self.get(row, 0)).collect()
    }

    /// Which of these rows are there, still without a body.
    pub(super) async fn still_bodiless(&mut self, refs: &[&str]) -> Result<HashSet<String>, SourceError> {
        self.begin().await?;
        let rows = self.all("look for rows without a body", sqlx::query(STILL_BODILESS).bind(refs)).await?;
        self.commit().await?;
        rows.iter().map(|row| self.get(row, 0)).collect()
    }

    /// Count and sum of the ref hashes per bucket: by generations of all rows, by reconcile of those with a body.
    pub(super) async fn buckets(&mut self) -> Result<Box<Buckets>, SourceError> {
        let sql = match self.way {
            Way::Generations => BUCKETS,
            Way::Reconcile => BUCKETS_WITH_BODY,
        };
        self.begin().await?;
        let rows = self.all("compare refs", sqlx::query(sql)).await?;
        self.commit().await?;
        let mut buckets = Box::new([(0, 0); 256]);
        for row in &rows {
            let index = usize::try_from(self.get::<i32>(row, 0)?).unwrap_or_default();
            let sum = self.get::<String>(row, 2)?.parse().unwrap_or_default();
            if let Some(bucket) = buckets.get_mut(index) {
                *bucket = (self.get(row, 1)?, sum);
            }
        }
        Ok(buckets)
    }

    /// The keys after a ref, in the catalog's own order; by generations without those that come by pages after `read_to`.
    pub(super) async fn keys(
        &mut self,
        after: Option<&str>,
        read_to: i64,
        limit: i64,
    ) -> Result<Vec<Key>, SourceError> {
        let query = match self.begin().await? {
            Some(counter) => sqlx::query(KEYS_UP_TO).bind(after).bind(limit).bind(read_to).bind(counter),
            None => sqlx::query(KEYS).bind(after).bind(limit),
        };
        let rows = self.all("compare entities", query).await?;
        self.commit().await?;
        rows.iter().map(|row| self.key(row)).collect()
    }

    /// The keys of a range of generations, with the last generation read.
    pub(super) async fn recent_keys(
        &mut self,
        after: i64,
        up_to: i64,
        limit: i64,
    ) -> Result<(Vec<Key>, Option<i64>), SourceError> {
        self.begin().await?;
        let query = sqlx::query(KEYS_RECENT).bind(after).bind(up_to).bind(limit);
        let rows = self.all("compare recent changes", query).await?;
        self.commit().await?;
        let last = rows.last().map(|row| self.get(row, 3)).transpose()?;
        Ok((rows.iter().map(|row| self.key(row)).collect::<Result<_, _>>()?, last))
    }

    /// Which of these refs the catalog holds, byte for byte.
    pub(super) async fn present(&mut self, refs: &[&str]) -> Result<HashSet<String>, SourceError> {
        self.begin().await?;
        let rows = self.all("look refs up", sqlx::query(PRESENT).bind(refs)).await?;
        self.commit().await?;
        rows.iter().map(|row| self.get(row, 0)).collect()
    }

    /// The rows of some of these refs, as many as the bytes allow, and the refs that are left for another call. A ref that
    /// the catalog does not hold is in neither, nor one whose row comes by a page after `read_to`.
    pub(super) async fn by_ref(
        &mut self,
        refs: &[String],
        read_to: i64,
        bytes_max: usize,
    ) -> Result<(Vec<Row>, Vec<String>), SourceError> {
        let sql = if self.way == Way::Generations { BY_REF_WITH_GENERATION } else { BY_REF };
        let counter = self.begin().await?.unwrap_or(read_to);
        let heads = self.all("read entities by ref", sqlx::query(sql).bind(refs)).await?;
        let mut rows = self.heads(&heads)?;
        let asked: HashSet<&str> = refs.iter().map(String::as_str).collect();
        let comes_by_page = |row: &Row| row.generation.is_some_and(|number| number > read_to && number <= counter);
        rows.retain(|row| asked.contains(row.entity_ref.as_str()) && !comes_by_page(row));
        let found: Vec<String> = rows.iter().map(|row| row.entity_ref.clone()).collect();
        bound_bytes(&mut rows, bytes_max);
        let (now, left) = found.split_at(rows.len());
        let bodies = sqlx::query(BY_REF_BODIES).bind(now).bind(ENTITY_BYTES_MAX as i32);
        let bodies = self.all("read entities by ref", bodies).await?;
        self.commit().await?;
        self.fill(&mut rows, &bodies)?;
        Ok((rows, left.to_vec()))
    }

    fn heads(&self, rows: &[PgRow]) -> Result<Vec<Row>, SourceError> {
        let head = |row: &PgRow| {
            let length: Option<i32> = self.get(row, 5)?;
            Ok(Row {
                entity_ref: self.get(row, 0)?,
                entity_id: self.get(row, 1)?,
                hash: self.get(row, 2)?,
                generation: self.get(row, 3)?,
                updated_at: self.get(row, 4)?,
                body: length.map_or(Body::Absent, |length| Body::TooLarge(usize::try_from(length).unwrap_or_default())),
            })
        };
        rows.iter().map(head).collect()
    }

    /// Puts the bodies to their rows; what has no body now is too large, or absent.
    fn fill(&self, rows: &mut [Row], bodies: &[PgRow]) -> Result<(), SourceError> {
        let mut texts = std::collections::HashMap::with_capacity(bodies.len());
        for body in bodies {
            texts.insert(self.get::<String>(body, 0)?, self.get::<String>(body, 1)?);
        }
        for row in rows {
            if let Some(text) = texts.remove(&row.entity_ref) {
                row.body = Body::Text(text);
            }
        }
        Ok(())
    }

    fn key(&self, row: &PgRow) -> Result<Key, SourceError> {
        Ok(Key { entity_ref: self.get(row, 0)?, entity_id: self.get(row, 1)?, hash: self.get(row, 2)? })
    }

    /// Begins a transaction and returns the counter of its snapshot.
    async fn begin(&mut self) -> Result<Option<i64>, SourceError> {
        let text = self.begin.clone();
        let (identity, counter) = self.identify(text).await?;
        match &self.expected {
            Some(expected) if *expected != identity => {
                Err(SourceError::Reopen("another server, database or table answered".to_owned()))
            }
            _ => Ok(counter),
        }
    }

    async fn identify(&mut self, text: String) -> Result<(Identity, Option<i64>), SourceError> {
        let action = "look at the catalog";
        let work = sqlx::raw_sql(AssertSqlSafe(text)).fetch_all(&mut self.connection);
        let rows = timed(work, &mut self.spent, self.timeout, action, &self.endpoint).await?;
        let row = rows.first().ok_or_else(|| SourceError::Reopen("the catalog gave no answer".to_owned()))?;
        let counter: Option<String> = self.get(row, 3)?;
        let identity = Identity {
            started_at: self.get(row, 0)?,
            database: self.get(row, 1)?,
            table: self.get(row, 2)?,
            trigger: self.get(row, 4)?,
        };
        Ok((identity, counter.and_then(|counter| counter.parse().ok())))
    }

    async fn begin_bare(&mut self) -> Result<(), SourceError> {
        let text = self.begin_bare.clone();
        self.send("begin", text).await
    }

    async fn commit(&mut self) -> Result<(), SourceError> {
        self.send("end a transaction", "commit".to_owned()).await
    }

    async fn send(&mut self, action: &'static str, text: String) -> Result<(), SourceError> {
        let work = self.connection.execute(sqlx::raw_sql(AssertSqlSafe(text)));
        timed(work, &mut self.spent, self.timeout, action, &self.endpoint).await.map(|_| ())
    }

    async fn all(
        &mut self,
        action: &'static str,
        query: Query<'_, Postgres, PgArguments>,
    ) -> Result<Vec<PgRow>, SourceError> {
        let work = query.persistent(false).fetch_all(&mut self.connection);
        timed(work, &mut self.spent, self.timeout, action, &self.endpoint).await
    }

    async fn one(
        &mut self,
        action: &'static str,
        query: Query<'_, Postgres, PgArguments>,
    ) -> Result<PgRow, SourceError> {
        let work = query.persistent(false).fetch_one(&mut self.connection);
        timed(work, &mut self.spent, self.timeout, action, &self.endpoint).await
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

    fn get<'r, T: sqlx::Decode<'r, Postgres> + sqlx::Type<Postgres>>(
        &self,
        row: &'r PgRow,
        index: usize,
    ) -> Result<T, SourceError> {
        row.try_get(index).map_err(|error| classify("read a row", &self.endpoint, error))
    }
}

/// Cuts the rows off where their bodies exceed the bytes; keeps at least one. True when something was cut off.
fn bound_bytes(rows: &mut Vec<Row>, bytes_max: usize) -> bool {
    let mut bytes = 0;
    let fits = |row: &Row| {
        bytes += match row.body {
            Body::TooLarge(length) if length <= ENTITY_BYTES_MAX => length,
            _ => 0,
        };
        bytes <= bytes_max
    };
    let count = rows.iter().map(fits).take_while(|fits| *fits).count().max(1).min(rows.len());
    let was_cut = count < rows.len();
    rows.truncate(count);
    was_cut
}

/// A server that was stopped still completes connects and takes bytes: the client must not wait for it for ever.
async fn timed<T>(
    work: impl Future<Output = Result<T, sqlx::Error>>,
    spent: &mut Duration,
    timeout: Duration,
    action: &'static str,
    endpoint: &str,
) -> Result<T, SourceError> {
    let started = Instant::now();
    let answer = tokio::time::timeout(timeout, work).await;
    *spent += started.elapsed();
    match answer {
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
