//! A catalog database driven as Backstage drives it, only worse.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use catalog_bridge_services::{Collation, Postgres, shared};
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, Row, raw_sql};
use tokio::sync::Mutex;

use super::super::{Connect, Settings, grants};
use crate::source::SourceKind;
use crate::source::testing::{Bridge, Log};

const SCHEMA: &str = include_str!("../testdata/catalog-4.0.5.sql");
/// The role that the bridge reads by.
pub(super) const ROLE: &str = "bridge_reader";

/// One catalog database.
pub(super) struct Catalog {
    url: String,
    /// Of the database.
    pub(super) name: String,
}

impl Catalog {
    /// A new catalog on the shared server.
    pub(super) async fn new(stem: &str, collation: Collation) -> Self {
        let postgres = shared::postgres().await.expect("PostgreSQL starts");
        Catalog::on(postgres, stem, collation).await
    }

    /// A new catalog on this server.
    pub(super) async fn on(postgres: &Postgres, stem: &str, collation: Collation) -> Self {
        static NUMBER: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let name = format!("catalog_{stem}_{number}");
        let url = postgres.create_database_with(&name, collation).await.expect("a database");
        let catalog = Catalog { url, name: name.clone() };
        let mut connection = catalog.connect().await;
        run(&mut connection, SCHEMA).await;
        run(&mut connection, "insert into catalog_generation_counter values (1, 0)").await;
        {
            // Roles belong to the whole server: two tests must not make one at once.
            static ROLES: OnceLock<Mutex<()>> = OnceLock::new();
            let _one = ROLES.get_or_init(Mutex::default).lock().await;
            let role = format!(
                "do $$ begin
                   if not exists (select from pg_roles where rolname = '{ROLE}') then create role {ROLE} login; end if;
                 end $$"
            );
            run(&mut connection, &role).await;
            run(&mut connection, &grants(ROLE, &name, "public", true)).await;
        }
        catalog
    }

    /// A connection as the catalog's owner.
    pub(super) async fn connect(&self) -> PgConnection {
        PgConnection::connect(&self.url).await.expect("the catalog is there")
    }

    /// How the bridge reads it.
    pub(super) fn settings(&self) -> Settings {
        let url = self.url.replace("postgres://postgres@", &format!("postgres://{ROLE}@"));
        let url: PgConnectOptions = url.parse().expect("a URL");
        Settings::new(Connect::new(move || Ok(url.clone())))
    }

    /// Lays the triggers by the daemon's role, with no more rights than it is told to be given.
    pub(super) async fn install(&self) {
        let settings = self.settings();
        self.run(&super::super::trigger_grants(ROLE, "public", &settings.trigger_schema)).await;
        super::super::install(&settings, &settings.connect, ROLE.to_owned()).await.expect("installed");
    }

    /// Runs statements in one transaction.
    pub(super) async fn run(&self, sql: &str) {
        run(&mut self.connect().await, sql).await;
    }

    /// Writes one entity, as stitching does.
    pub(super) async fn write(&self, name: &str, id: &str, body: &str) {
        let mut connection = self.connect().await;
        let mut transaction = connection.begin().await.expect("a transaction");
        write(&mut transaction, name, id, body).await.expect("written");
        transaction.commit().await.expect("committed");
    }

    /// What the catalog holds: JSON by ref.
    pub(super) async fn truth(&self) -> BTreeMap<String, String> {
        let rows =
            sqlx::query("select entity_ref::text, final_entity from final_entities where final_entity is not null")
                .fetch_all(&mut self.connect().await)
                .await
                .expect("the truth");
        rows.iter().map(|row| (row.get(0), row.get(1))).collect()
    }
}

/// A bridge of its own that captures the catalog.
pub(super) fn start(settings: Settings, log: &Log) -> Bridge {
    Bridge::start(SourceKind::BackstageDb(settings), log)
}

/// The same, taking this owner's lease at once.
pub(super) fn start_as(owner: &str, settings: Settings, log: &Log) -> Bridge {
    Bridge::start_as(owner, SourceKind::BackstageDb(settings), log)
}

/// Waits until the log holds exactly what the catalog holds.
pub(super) async fn wait_for_truth(bridge: &Bridge, catalog: &Catalog) {
    bridge.wait_for_log(async || catalog.truth().await).await;
}

pub(super) async fn run(connection: &mut PgConnection, sql: &str) {
    connection.execute(raw_sql(AssertSqlSafe(sql.to_owned()))).await.expect(sql);
}

pub(super) fn entity_ref(name: &str) -> String {
    format!("component:default/{name}")
}

/// A body that is told apart from every other by `mark`.
pub(super) fn body(name: &str, id: &str, mark: &str) -> String {
    format!(
        r#"{{"kind":"Component","metadata":{{"name":"{name}","uid":"{id}","annotations":{{"backstage.io/managed-by-origin-location":"url:https://git/{kind}"}}}},"spec":{{"mark":"{mark}"}}}}"#,
        kind = name.chars().next().unwrap_or('x'),
    )
}

/// The statements of one stitch: the refresh state if it is not there, then the final entity.
pub(super) async fn write(connection: &mut PgConnection, name: &str, id: &str, body: &str) -> sqlx::Result<()> {
    let entity_ref = entity_ref(name);
    sqlx::query(
        "insert into refresh_state (entity_id, entity_ref, unprocessed_entity, errors, next_update_at, last_discovery_at)
         values ($1, $2, '{}', '', now(), now()) on conflict do nothing",
    )
    .bind(id)
    .bind(&entity_ref)
    .execute(&mut *connection)
    .await?;
    sqlx::query(
        "insert into final_entities (entity_id, entity_ref, hash, final_entity, last_updated_at)
         values ($1, $2, md5($3), $3, now())
         on conflict (entity_id) do update
         set hash = excluded.hash, final_entity = excluded.final_entity, last_updated_at = excluded.last_updated_at",
    )
    .bind(id)
    .bind(&entity_ref)
    .bind(body)
    .execute(&mut *connection)
    .await?;
    Ok(())
}

/// Deletes as Backstage does: the final entity goes by cascade.
pub(super) async fn delete(connection: &mut PgConnection, name: &str) -> sqlx::Result<()> {
    sqlx::query("delete from refresh_state where entity_ref = $1").bind(entity_ref(name)).execute(connection).await?;
    Ok(())
}
