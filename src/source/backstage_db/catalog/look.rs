//! What the catalog is: its tables, its rights, its server.

use sqlx::Row as _;

use super::{Catalog, classify};
use crate::source::backstage_db::incarnation::Incarnation;
use crate::source::backstage_db::ref_hash::ref_hash;
use crate::source::backstage_db::schema::{Counter, Schema};
use crate::source::backstage_db::triggers::health::{SERVER_VERSION_MIN as TRIGGERS_VERSION_MIN, Triggers};
use crate::source::owner::SourceError;

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

const HASH: &str = "select hashtextextended($1::text collate \"C\", 0)";

impl Catalog {
    pub(crate) async fn schema(&mut self) -> Result<Schema, SourceError> {
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
            triggers: Triggers::Absent,
        };
        if row.try_get(7).map_err(get)? {
            let rows = self.all("read the last migration", sqlx::query(LAST_MIGRATION)).await?;
            schema.last_migration = rows.first().map(|row| row.try_get(0)).transpose().map_err(get)?;
        }
        if schema.server_version >= TRIGGERS_VERSION_MIN {
            schema.triggers = self.triggers().await?;
        }
        self.commit().await?;
        Ok(schema)
    }

    /// Which database this is; parts that the role or the server refuses stay unknown.
    pub(crate) async fn incarnation(&mut self) -> Result<Incarnation, SourceError> {
        Ok(Incarnation { system: self.optional(SYSTEM).await?, timeline: self.optional(TIMELINE).await? })
    }

    /// Whether the server hashes a ref as we do.
    pub(crate) async fn hashes_as_we_do(&mut self) -> Result<bool, SourceError> {
        let sample = "component:default/catalog-bridge.sample_1";
        self.begin_bare().await?;
        let row = self.one("compare a hash", sqlx::query(HASH).bind(sample)).await?;
        self.commit().await?;
        Ok(row.try_get::<i64, _>(0).is_ok_and(|hash| hash == ref_hash(sample)))
    }
}
