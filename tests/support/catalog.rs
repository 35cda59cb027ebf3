//! A catalog database with Backstage's real schema, written to as the catalog's backend writes.

use anyhow::{Context, Result};
use catalog_bridge_api::EntityRef;
use catalog_bridge_history::Truth;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection, PgConnection, Row};

const SCHEMA: &str = include_str!("../../src/source/backstage_db/testdata/catalog-4.0.5.sql");

/// One catalog database.
pub struct Catalog {
    owner_url: String,
    bridge_url: String,
}

impl Catalog {
    /// Fills an empty database with the schema and makes the bridge's role. `owner_url` must be of a superuser.
    pub async fn create(owner_url: &str) -> Result<Self> {
        let mut connection = PgConnection::connect(owner_url).await?;
        sqlx::raw_sql(SCHEMA).execute(&mut connection).await.context("laying the catalog's schema")?;
        sqlx::raw_sql(
            "insert into public.catalog_generation_counter (id, generation) values (1, 0) on conflict do nothing",
        )
        .execute(&mut connection)
        .await?;
        let bridge_url = super::grants::grant(owner_url, "public", &[]).await?;
        Ok(Catalog { owner_url: owner_url.to_owned(), bridge_url })
    }

    /// What goes into the bridge's config.
    pub fn bridge_url(&self) -> &str {
        &self.bridge_url
    }

    /// The catalog's database, as its owner reaches it.
    pub fn owner_url(&self) -> &str {
        &self.owner_url
    }

    /// A connection of the catalog's own backend.
    pub async fn connect(&self) -> Result<PgConnection> {
        Ok(PgConnection::connect(&self.owner_url).await?)
    }

    /// One entity, in a transaction of its own, as stitching does.
    pub async fn put_one(&self, name: &str, version: u64) -> Result<()> {
        put(&mut self.connect().await?, name, || version).await.map(drop)
    }

    /// Removes one entity, by cascade.
    pub async fn remove_one(&self, name: &str) -> Result<()> {
        remove(&mut self.connect().await?, name).await
    }

    /// Adds `fill-0`, `fill-1`, … with numbers, bodies of about so many bytes, quicker than stitching could.
    pub async fn fill(&self, count: u64, bytes: usize) -> Result<()> {
        let mut connection = self.connect().await?;
        let filled = format!(
            "set session_replication_role = replica;
             insert into refresh_state (entity_id, entity_ref, unprocessed_entity, errors, next_update_at, last_discovery_at)
             select 'fill-' || n, 'component:default/fill-' || n, '{{}}', '[]', now(), now() from generate_series(0, {count} - 1) n;
             insert into final_entities (entity_id, hash, final_entity, last_updated_at, entity_ref, generation)
             select 'fill-' || n, 'hash-' || n, jsonb_build_object('apiVersion', 'backstage.io/v1alpha1', 'kind', 'Component',
               'metadata', jsonb_build_object('name', 'fill-' || n, 'namespace', 'default', 'uid', 'fill-' || n),
               'spec', jsonb_build_object('type', 'service', 'lifecycle', 'production', 'owner', 'team-' || n % 50,
                 'text', repeat(md5(n::text), {repeats})))::text, now(), 'component:default/fill-' || n,
               n + 1 + (select generation from catalog_generation_counter)
             from generate_series(0, {count} - 1) n;
             update catalog_generation_counter set generation = generation + {count};
             reset session_replication_role",
            repeats = bytes / 32
        );
        sqlx::raw_sql(AssertSqlSafe(filled)).execute(&mut connection).await.context("filling the catalog")?;
        sqlx::raw_sql("vacuum analyze final_entities").execute(&mut connection).await?;
        Ok(())
    }

    /// What the catalog holds now.
    pub async fn truth(&self) -> Result<Truth> {
        read_truth(&self.owner_url, "public").await
    }
}

/// What the catalog of a database holds now.
pub async fn read_truth(owner_url: &str, schema: &str) -> Result<Truth> {
    let mut connection = PgConnection::connect(owner_url).await?;
    let query = format!("select entity_ref, final_entity from {schema}.final_entities where final_entity is not null");
    let rows = sqlx::query(AssertSqlSafe(query)).fetch_all(&mut connection).await?;
    let entity = |row: &sqlx::postgres::PgRow| {
        Ok((EntityRef::parse(row.try_get("entity_ref")?)?, serde_json::from_str(row.try_get("final_entity")?)?))
    };
    rows.iter().map(entity).collect()
}

/// The entity as it is stitched.
pub fn stitched(name: &str, version: u64, uid: &str) -> Value {
    let mut entity = super::component(name, version);
    entity["metadata"]["uid"] = json!(uid);
    entity["metadata"]["etag"] = json!(format!("etag-{version}"));
    entity["relations"] = json!([]);
    entity
}

/// Adds or changes a component, inside whatever transaction the connection is in. The version is drawn once the entity's row
/// is locked, so that versions of one entity grow in commit order. Returns it.
pub async fn put(connection: &mut PgConnection, name: &str, version: impl FnOnce() -> u64) -> Result<u64> {
    let entity_ref = format!("component:default/{name}");
    let new_id = uuid::Uuid::new_v4().to_string();
    let row = sqlx::query(
        "insert into refresh_state (entity_id, entity_ref, unprocessed_entity, errors, next_update_at, last_discovery_at)
         values ($1, $2, '{}', '[]', now(), now())
         on conflict (entity_ref) do update set next_update_at = now()
         returning entity_id",
    )
    .bind(&new_id)
    .bind(&entity_ref)
    .fetch_one(&mut *connection)
    .await?;
    let uid: String = row.try_get("entity_id")?;
    let version = version();
    sqlx::query(
        "insert into final_entities (entity_id, hash, final_entity, last_updated_at, entity_ref)
         values ($1, $2, $3, now(), $4)
         on conflict (entity_ref) do update set hash = excluded.hash, final_entity = excluded.final_entity, last_updated_at = now()",
    )
    .bind(&uid)
    .bind(format!("hash-{uid}-{version}"))
    .bind(stitched(name, version, &uid).to_string())
    .bind(&entity_ref)
    .execute(&mut *connection)
    .await?;
    Ok(version)
}

/// Removes a component by cascade from `refresh_state`, inside whatever transaction the connection is in.
pub async fn remove(connection: &mut PgConnection, name: &str) -> Result<()> {
    sqlx::query("delete from refresh_state where entity_ref = $1")
        .bind(format!("component:default/{name}"))
        .execute(connection)
        .await?;
    Ok(())
}
