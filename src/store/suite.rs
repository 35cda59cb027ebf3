//! What every store must do: one suite, run against both.
//!
//! Each test brings its own store (a fresh database, a fresh file), so all run at once.

mod append;
mod concurrent;
mod faults;
mod operate;
mod positions;
mod reads;
mod retention;
mod twins;

use std::collections::BTreeMap;
use std::sync::Arc;

use catalog_bridge_api::{Cause, EntityRef, Event, JsonText, Offset, SourceName};
use catalog_bridge_services::{PgBouncer, PgBouncerOptions};
use sqlx::{AssertSqlSafe, query_scalar, raw_sql};
use tokio::sync::OnceCell;

use super::postgres::PostgresStore;
use super::sqlite::SqliteStore;
use super::{
    Append, Backend, Change, EventLog, Metrics, OnOwned, PositionMove, ReadLimits, Rejected, Removal, Settings,
    StoreError, Upsert,
};

/// A store under test. Cheap to clone; the directory goes with the last one.
#[derive(Clone)]
struct Subject {
    log: Arc<dyn EventLog>,
    raw: Raw,
    settings: Settings,
    _directory: Arc<tempfile::TempDir>,
}

/// The way to the tables, for what no method does.
#[derive(Clone)]
enum Raw {
    Postgres(PostgresStore),
    Sqlite(SqliteStore),
}

impl Subject {
    async fn postgres() -> Self {
        Self::open(Settings::postgres(fresh_database().await), tempfile::tempdir().expect("a directory")).await
    }

    /// The same through PgBouncer in transaction mode, with fewer server connections than the tests have clients.
    async fn pgbouncer() -> Self {
        Self::open(Settings::postgres(pooled(&fresh_database().await).await), tempfile::tempdir().expect("a directory"))
            .await
    }

    async fn sqlite() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        Self::open(Settings::sqlite(directory.path().join("log.db")), directory).await
    }

    async fn open(settings: Settings, directory: tempfile::TempDir) -> Self {
        Self::open_in(settings, Arc::new(directory)).await
    }

    async fn open_in(settings: Settings, directory: Arc<tempfile::TempDir>) -> Self {
        let raw = Raw::try_open(&settings).await.expect("the store opens");
        Subject { log: raw.log(), raw, settings, _directory: directory }
    }

    /// Another replica on the same store; of SQLite, which has none, the same.
    async fn replica(&self) -> Self {
        let raw = match &self.raw {
            Raw::Postgres(_) => Raw::try_open(&self.settings).await.expect("the store opens"),
            Raw::Sqlite(_) => self.raw.clone(),
        };
        Subject { log: raw.log(), raw, ..self.clone() }
    }

    /// Appends as the source `catalog` and checks what came of it.
    async fn append(&self, changes: Vec<Change>) -> super::Appended {
        self.log.append(append(changes)).await.expect("appended")
    }

    /// Everything, page by page.
    async fn events(&self) -> Vec<Event> {
        let mut events: Vec<Event> = Vec::new();
        loop {
            let after = events.last().map_or(Offset::ZERO, |event| event.offset);
            let page = self.log.read(after, limits(7)).await.expect("read");
            if page.entries.is_empty() {
                return events;
            }
            events.extend(page.entries.iter().map(|entry| entry.event.clone()));
        }
    }

    /// Types and names in offset order: `added a`, `removed b`, …
    async fn story(&self) -> Vec<String> {
        let line = |event: &Event| format!("{} {}", event.event_type.as_str(), event.entity_ref.name());
        self.events().await.iter().map(line).collect()
    }

    /// Runs a statement that both databases understand.
    async fn execute(&self, sql: &str) {
        let sql = AssertSqlSafe(sql.to_owned());
        match &self.raw {
            Raw::Postgres(store) => {
                let mut transaction = store.begin_write().await.expect("begun");
                raw_sql(sql).execute(&mut *transaction).await.expect("executed");
                transaction.commit().await.expect("committed");
            }
            Raw::Sqlite(store) => {
                let mut transaction = store.begin_write().await.expect("begun");
                raw_sql(sql).execute(&mut *transaction).await.expect("executed");
                transaction.commit().await.expect("committed");
            }
        }
    }

    /// The first column of each row, texts.
    async fn texts(&self, sql: &'static str) -> Vec<String> {
        match &self.raw {
            Raw::Postgres(store) => {
                let mut transaction = store.begin_read().await.expect("begun");
                query_scalar(sql).persistent(false).fetch_all(&mut *transaction).await.expect("read")
            }
            Raw::Sqlite(store) => {
                let mut transaction = store.begin_read().await.expect("begun");
                query_scalar(sql).fetch_all(&mut *transaction).await.expect("read")
            }
        }
    }

    /// The first column of each row, numbers.
    async fn numbers(&self, sql: &'static str) -> Vec<i64> {
        match &self.raw {
            Raw::Postgres(store) => {
                let mut transaction = store.begin_read().await.expect("begun");
                query_scalar(sql).persistent(false).fetch_all(&mut *transaction).await.expect("read")
            }
            Raw::Sqlite(store) => {
                let mut transaction = store.begin_read().await.expect("begun");
                query_scalar(sql).fetch_all(&mut *transaction).await.expect("read")
            }
        }
    }

    /// Makes the row of a source as a claim would.
    async fn lease(&self, source: &str, epoch: u64) {
        self.execute(&format!(
            "insert into checkpoints (kind, name, epoch) values ('source', '{source}', {epoch}) \
             on conflict (kind, name) do update set epoch = {epoch}"
        ))
        .await;
    }
}

impl Raw {
    async fn try_open(settings: &Settings) -> Result<Self, StoreError> {
        match &settings.backend {
            Backend::Postgres(postgres) => {
                PostgresStore::open(settings, postgres, Metrics::default()).await.map(Raw::Postgres)
            }
            Backend::Sqlite { path } => SqliteStore::open(path, Metrics::default()).await.map(Raw::Sqlite),
        }
    }

    fn log(&self) -> Arc<dyn EventLog> {
        match self.clone() {
            Raw::Postgres(store) => Arc::new(store),
            Raw::Sqlite(store) => Arc::new(store),
        }
    }
}

/// An empty database on the shared test server.
async fn fresh_database() -> String {
    catalog_bridge_services::shared::fresh_database("store").await.expect("a database")
}

/// The same database through a shared PgBouncer.
async fn pooled(direct: &str) -> String {
    static SHARED: OnceCell<PgBouncer> = OnceCell::const_new();
    let start = || async {
        let server = catalog_bridge_services::shared::postgres().await?;
        PgBouncer::start(server, PgBouncerOptions { pool_size: 3, ..PgBouncerOptions::default() }).await
    };
    let pgbouncer = SHARED.get_or_try_init(start).await.expect("PgBouncer starts");
    let (_, database) = direct.rsplit_once('/').expect("a path");
    pgbouncer.url(database)
}

fn limits(events_max: usize) -> ReadLimits {
    ReadLimits { events_max, bytes_max: 1024 * 1024 }
}

fn source(name: &str) -> SourceName {
    SourceName::parse(name).expect("a name")
}

fn entity_ref(name: &str) -> EntityRef {
    EntityRef::parse(&format!("component:default/{name}")).expect("a ref")
}

fn json(text: &str) -> JsonText {
    JsonText::parse(text).expect("JSON")
}

fn upsert(name: &str, entity: &str) -> Change {
    Change::Upsert(Upsert {
        entity_ref: entity_ref(name),
        uid: Some(format!("uid-{name}")),
        entity: json(entity),
        source_version: Some("v1".to_owned()),
        source_position: Some(7),
        occurred_at: None,
        cause: Cause::Capture,
    })
}

fn remove(name: &str) -> Change {
    Change::Remove(Removal { entity_ref: entity_ref(name), occurred_at: None, cause: Cause::Reconcile })
}

fn append(changes: Vec<Change>) -> Append {
    Append {
        source: source("catalog"),
        changes,
        position: None,
        idempotency: None,
        rejected: Vec::new(),
        on_owned: OnOwned::Record,
    }
}

fn rejected(name: &str, reason: &str) -> Rejected {
    Rejected {
        entity_ref: entity_ref(name).as_str().to_owned(),
        reason: reason.to_owned(),
        source_version: Some("v2".to_owned()),
        source_position: Some(9),
    }
}

fn position(epoch: u64, expected: Option<&str>, new: &str) -> Option<PositionMove> {
    Some(PositionMove { epoch, expected: expected.map(json), new: json(new) })
}

/// The live entities after these events.
fn fold(events: &[Event]) -> BTreeMap<EntityRef, JsonText> {
    let mut state = BTreeMap::new();
    for event in events {
        match &event.entity {
            Some(entity) => state.insert(event.entity_ref.clone(), entity.clone()),
            None => state.remove(&event.entity_ref),
        };
    }
    state
}

/// Runs each claim against both stores, and against PostgreSQL also through PgBouncer.
macro_rules! on_both_stores {
    ($($(#[$doc:meta])* $claim:ident,)*) => {
        mod postgres {
            $($(#[$doc])* #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $claim() {
                super::$claim(super::super::Subject::postgres().await).await;
            })*
        }

        mod pgbouncer {
            $($(#[$doc])* #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $claim() {
                super::$claim(super::super::Subject::pgbouncer().await).await;
            })*
        }

        mod sqlite {
            $($(#[$doc])* #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $claim() {
                super::$claim(super::super::Subject::sqlite().await).await;
            })*
        }
    };
}

use on_both_stores;
