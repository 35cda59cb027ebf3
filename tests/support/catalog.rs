//! A catalog database with Backstage's real schema, written to as the catalog's backend writes.

use anyhow::{Context, Result};
use catalog_bridge_api::EntityRef;
use catalog_bridge_history::Truth;
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection, Row};

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

    /// What the catalog holds now.
    pub async fn truth(&self) -> Result<Truth> {
        let mut connection = self.connect().await?;
        let rows = sqlx::query("select entity_ref, final_entity from final_entities where final_entity is not null")
            .fetch_all(&mut connection)
            .await?;
        rows.iter()
            .map(|row| {
                Ok((EntityRef::parse(row.try_get("entity_ref")?)?, serde_json::from_str(row.try_get("final_entity")?)?))
            })
            .collect()
    }
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
