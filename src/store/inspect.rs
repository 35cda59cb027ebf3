//! Looks at a store without changing anything: no lock that another process waits for, no migration, no table made.

use std::path::Path;
use std::time::Duration;

use catalog_bridge_api::{CheckReport, EntityRef, JsonText};
use sqlx::postgres::{PgConnection, PgRow};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Row, query, query_scalar, raw_sql};

use super::{Backend, PostgresSettings, READER_VERSION, Settings, StoreError, postgres};

/// Longest wait for the whole look.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a store holds.
#[derive(Debug, Default)]
pub struct Inspection {
    /// For a person.
    pub report: CheckReport,
    /// How many entities are present in the log; `None` before its first start.
    pub present: Option<u64>,
    /// Those of them that are larger than was asked for.
    pub large: Vec<(EntityRef, JsonText)>,
}

/// Most entities in [`Inspection::large`].
pub const LARGE_MAX: usize = 100;

/// Dials the store and reads what it holds; `larger_than` bytes selects the entities that are returned.
pub async fn inspect(settings: &Settings, larger_than: usize) -> Result<Inspection, StoreError> {
    let bytes = i64::try_from(larger_than).unwrap_or(i64::MAX);
    let look = async {
        match &settings.backend {
            Backend::Postgres(postgres) => inspect_postgres(postgres, bytes).await,
            Backend::Sqlite { path } => inspect_sqlite(path, bytes).await,
        }
    };
    match tokio::time::timeout(PATIENCE, look).await {
        Ok(inspection) => inspection,
        Err(_) => Err(StoreError::Unavailable { action: ACTION, source: "the database did not answer in time".into() }),
    }
}

const ACTION: &str = "look at the store";

fn unavailable(error: sqlx::Error) -> StoreError {
    StoreError::Unavailable { action: ACTION, source: Box::new(error) }
}

const FOUND: &str = "\
select current_setting('server_version_num')::int4, current_user::text,
  to_regnamespace(quote_ident($1)) is not null,
  to_regclass(quote_ident($1) || '.log_state') is not null,
  has_database_privilege(current_database(), 'create')";

const STATE: &str = "select head, oldest, min_reader_version from log_state";

const PRESENT: &str = "select count(*) from entities";

const LARGE: &str = "\
select entities.entity_ref, events.entity
from entities
join events on events.event_offset = entities.last_offset
where events.entity_bytes > $1 and events.entity is not null
order by entities.entity_ref
limit $2";

async fn inspect_postgres(settings: &PostgresSettings, larger_than: i64) -> Result<Inspection, StoreError> {
    let options = postgres::connect_options(settings)?;
    let endpoint = format!("{}:{}", options.get_host(), options.get_port());
    let mut connection = options.connect().await.map_err(unavailable)?;
    let inspection = look_at_postgres(&mut connection, settings, larger_than, &endpoint).await;
    let _ = connection.close().await;
    inspection
}

async fn look_at_postgres(
    connection: &mut PgConnection,
    settings: &PostgresSettings,
    larger_than: i64,
    endpoint: &str,
) -> Result<Inspection, StoreError> {
    let mut transaction =
        connection.begin_with("begin isolation level repeatable read, read only").await.map_err(unavailable)?;
    let found = query(FOUND)
        .bind(&settings.schema)
        .persistent(false)
        .fetch_one(&mut *transaction)
        .await
        .map_err(unavailable)?;
    let get = |row: &PgRow, index| row.try_get::<bool, _>(index).map_err(unavailable);
    let version: i32 = found.try_get(0).map_err(unavailable)?;
    let role: String = found.try_get(1).map_err(unavailable)?;
    let mut inspection = Inspection::default();
    let report = &mut inspection.report;
    report.facts.push(format!("PostgreSQL {} at {endpoint}, role {role}", version / 10_000));
    if version < 130_000 {
        report.warnings.push("PostgreSQL 13 or newer is needed".to_owned());
    }
    if !get(&found, 3)? {
        report.facts.push(format!("no log yet: its tables are made in schema {} at the first start", settings.schema));
        if !get(&found, 2)? && !get(&found, 4)? {
            report.warnings.push(format!(
                "role {role} may not create the schema {}: grant create on the database",
                settings.schema
            ));
        }
        return Ok(inspection);
    }
    // Checked when the config was read: a plain name.
    let path = format!("set local search_path = \"{}\"", settings.schema.replace('"', "\"\""));
    raw_sql(AssertSqlSafe(path)).execute(&mut *transaction).await.map_err(unavailable)?;
    let state = query(STATE).persistent(false).fetch_one(&mut *transaction).await.map_err(unavailable)?;
    let number = |index| state.try_get::<i64, _>(index).map_err(unavailable);
    tell_state(&mut inspection.report, number(0)?, number(1)?, number(2)?);
    let present: i64 =
        query_scalar(PRESENT).persistent(false).fetch_one(&mut *transaction).await.map_err(unavailable)?;
    inspection.present = Some(present.unsigned_abs());
    let rows = query(LARGE)
        .bind(larger_than)
        .bind(LARGE_MAX as i64)
        .persistent(false)
        .fetch_all(&mut *transaction)
        .await
        .map_err(unavailable)?;
    for row in rows {
        inspection.take(row.try_get(0).map_err(unavailable)?, row.try_get(1).map_err(unavailable)?);
    }
    Ok(inspection)
}

async fn inspect_sqlite(path: &Path, larger_than: i64) -> Result<Inspection, StoreError> {
    let mut inspection = Inspection::default();
    if !path.exists() {
        inspection.report.facts.push(format!("no log yet: {} is made at the first start", path.display()));
        return Ok(inspection);
    }
    let options = SqliteConnectOptions::new().filename(path).read_only(true);
    let mut connection: SqliteConnection = options.connect().await.map_err(unavailable)?;
    inspection.report.facts.push(format!("SQLite file {}", path.display()));
    let state = query(STATE).fetch_one(&mut connection).await.map_err(unavailable)?;
    let number = |index| state.try_get::<i64, _>(index).map_err(unavailable);
    tell_state(&mut inspection.report, number(0)?, number(1)?, number(2)?);
    let present: i64 = query_scalar(PRESENT).fetch_one(&mut connection).await.map_err(unavailable)?;
    inspection.present = Some(present.unsigned_abs());
    let large = query(LARGE).bind(larger_than).bind(LARGE_MAX as i64);
    for row in large.fetch_all(&mut connection).await.map_err(unavailable)? {
        inspection.take(row.try_get(0).map_err(unavailable)?, row.try_get(1).map_err(unavailable)?);
    }
    let _ = connection.close().await;
    Ok(inspection)
}

fn tell_state(report: &mut CheckReport, head: i64, oldest: i64, needed: i64) {
    report.facts.push(format!("the log's head is {head}, its oldest offset {oldest}"));
    if needed > READER_VERSION {
        report.warnings.push(format!("the log needs a reader of version {needed}, this is {READER_VERSION}: upgrade"));
    }
}

impl Inspection {
    fn take(&mut self, entity_ref: &str, entity: String) {
        if let Ok(entity_ref) = EntityRef::parse(entity_ref) {
            self.large.push((entity_ref, JsonText::from_trusted(entity)));
        }
    }
}

#[cfg(test)]
mod tests {
    use catalog_bridge_api::{Cause, SourceName};

    use super::super::{Append, Change, Metrics, OnOwned, Upsert, open};
    use super::*;

    #[tokio::test]
    async fn a_store_in_use_is_looked_at_without_a_trace() {
        let place = tempfile::tempdir().expect("a directory");
        let settings = Settings::sqlite(place.path().join("log.db"));
        let before = inspect(&settings, 100).await.expect("looked at");
        assert_eq!(before.present, None);
        assert_eq!(std::fs::read_dir(place.path()).expect("listed").count(), 0);

        let store = open(&settings, Metrics::default()).await.expect("opened");
        let upsert = |name: &str, size: usize| {
            Change::Upsert(Upsert {
                entity_ref: EntityRef::parse(&format!("component:default/{name}")).expect("a ref"),
                uid: None,
                entity: JsonText::parse(format!("{{\"kind\":\"Component\",\"x\":\"{}\"}}", "a".repeat(size)))
                    .expect("JSON"),
                source_version: None,
                source_position: None,
                occurred_at: None,
                cause: Cause::Capture,
            })
        };
        store
            .append(Append {
                source: SourceName::parse("a").expect("a name"),
                changes: vec![upsert("small", 10), upsert("large", 1_000)],
                position: None,
                idempotency: None,
                rejected: Vec::new(),
                on_owned: OnOwned::RefuseAll,
            })
            .await
            .expect("appended");

        let during = inspect(&settings, 100).await.expect("looked at");

        assert_eq!(during.present, Some(2));
        let large: Vec<&str> = during.large.iter().map(|(entity_ref, _)| entity_ref.as_str()).collect();
        assert_eq!(large, ["component:default/large"]);
    }
}
