//! What the log holds of a source's entities, and what it could not take.

use catalog_bridge_api::{EntityRef, SourceName};
use sqlx::postgres::{PgArguments, PgRow};
use sqlx::query::Query;
use sqlx::{Postgres, Row, query};

use super::super::{HeldEntity, Rejected, StoreError, decode, queries};
use super::{PostgresStore, unavailable};

const ACTION: &str = "read what the log holds";

impl PostgresStore {
    pub(super) async fn read_held(
        &self,
        source: &SourceName,
        after_ref: Option<&EntityRef>,
        limit: usize,
    ) -> Result<Vec<HeldEntity>, StoreError> {
        let after_ref = after_ref.map_or("", EntityRef::as_str);
        let statement = query(queries::HELD).bind(source.as_str()).bind(after_ref).bind(limit as i64);
        self.rows(statement, |row| held_of(&row)).await
    }

    pub(super) async fn read_held_by_ref(
        &self,
        entity_refs: &[EntityRef],
    ) -> Result<Vec<(HeldEntity, SourceName)>, StoreError> {
        const HELD_BY_REF: &str = "
            select entity_ref, uid, source_version, source_position, source
            from entities
            where entity_ref = any($1)
            order by entity_ref";
        let refs: Vec<&str> = entity_refs.iter().map(EntityRef::as_str).collect();
        let owned = |row: PgRow| Ok((held_of(&row)?, decode::source(row.try_get("source")?)?));
        self.rows(query(HELD_BY_REF).bind(refs), owned).await
    }

    pub(super) async fn read_rejected(
        &self,
        source: &SourceName,
        after_ref: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Rejected>, StoreError> {
        let statement =
            query(queries::REJECTED).bind(source.as_str()).bind(after_ref.unwrap_or_default()).bind(limit as i64);
        self.rows(statement, |row| rejected_of(&row)).await
    }

    /// One of the counting statements.
    pub(super) async fn count(&self, statement: &'static str, source: &SourceName) -> Result<u64, StoreError> {
        let count = |row: PgRow| Ok(row.try_get::<i64, _>("count")?.unsigned_abs());
        Ok(self.rows(query(statement).bind(source.as_str()), count).await?.into_iter().sum())
    }

    async fn rows<T: Send + Unpin>(
        &self,
        statement: Query<'_, Postgres, PgArguments>,
        decode: impl FnMut(PgRow) -> Result<T, sqlx::Error> + Send,
    ) -> Result<Vec<T>, StoreError> {
        let read = async {
            let mut transaction = self.begin_read().await?;
            let rows = statement.persistent(false).try_map(decode).fetch_all(&mut *transaction).await;
            let rows = rows.map_err(unavailable(ACTION))?;
            transaction.rollback().await;
            Ok(rows)
        };
        self.bounded(ACTION, read).await
    }
}

fn held_of(row: &PgRow) -> Result<HeldEntity, sqlx::Error> {
    Ok(HeldEntity {
        entity_ref: decode::entity_ref(row.try_get("entity_ref")?)?,
        uid: row.try_get("uid")?,
        source_version: row.try_get("source_version")?,
        source_position: row.try_get("source_position")?,
    })
}

fn rejected_of(row: &PgRow) -> Result<Rejected, sqlx::Error> {
    Ok(Rejected {
        entity_ref: row.try_get("entity_ref")?,
        reason: row.try_get("reason")?,
        source_version: row.try_get("source_version")?,
        source_position: row.try_get("source_position")?,
    })
}
