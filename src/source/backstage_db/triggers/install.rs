//! Lays the triggers and takes them away, on a catalog that goes on working.
//!
//! Keeps P10: the one lock that others can wait for is that of making or dropping a trigger. It is asked for half a second at most,
//! then given up and asked for again after a pause.

use std::time::Duration;

use rand::Rng;
use sqlx::{AssertSqlSafe, Connection, PgConnection, Row};

use super::health::SERVER_VERSION_MIN;
use super::sql::{self, Target};
use crate::source::backstage_db::{Connect, Settings};

/// Attempts to get the lock.
const ATTEMPTS: u32 = 40;
/// Between them, at most.
const PAUSE_MAX: Duration = Duration::from_millis(1_500);
/// How long an attempt may wait.
const LOCK_TIMEOUT: &str = "set local lock_timeout = '500ms'";

const FACTS: &str = "\
select
  current_setting('server_version_num')::int4,
  to_regclass($1) is not null,
  exists (select from pg_namespace where nspname = $2),
  (
    select t.tgrelid::regclass::text
    from pg_trigger t
    join pg_proc p on p.oid = t.tgfoid
    join pg_namespace n on n.oid = p.pronamespace
    where n.nspname = $2 and t.tgrelid is distinct from to_regclass($1)
    limit 1
  )";

/// What became of an uninstall.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Uninstalled {
    /// There was nothing.
    Absent,
    /// Nothing is left.
    Dropped,
    /// The triggers do nothing any more, but their table was busy: they are still there.
    Silenced,
}

/// The statements that install the triggers, for a DBA.
pub fn install_script(settings: &Settings, role: &str) -> String {
    sql::install_script(&target(settings, role.to_owned()))
}

/// The statements that take the triggers away, for a DBA.
pub fn uninstall_script(settings: &Settings) -> String {
    sql::uninstall_script(&settings.trigger_schema)
}

/// Installs the triggers for the daemon's `role`, as whoever `connect` is. The error says what to change.
pub async fn install(settings: &Settings, connect: &Connect, role: String) -> Result<(), String> {
    let mut installer = Installer::connect(settings, connect).await?;
    let target = target(settings, role);
    if installer.facts.version < SERVER_VERSION_MIN {
        return Err(format!("triggers need PostgreSQL 14 or later, this is {}", installer.facts.version / 10_000));
    }
    if !installer.facts.has_table {
        return Err(format!(
            "there is no table final_entities in schema \"{}\" that this role can see",
            settings.schema
        ));
    }
    if let Some(table) = &installer.facts.other_table {
        return Err(format!(
            "schema \"{}\" holds the triggers of table {table}: name another trigger_schema for this source",
            settings.trigger_schema
        ));
    }
    installer.run("", &sql::create_outbox(&target)).await.map_err(|error| told(&error))?;
    match installer.run_when_calm(&sql::create_triggers(&target)).await {
        Ok(true) => Ok(()),
        Ok(false) => {
            Err("the catalog's table was busy at every attempt, so its triggers were not made: run this again when \
                          fewer changes are under way"
                .to_owned())
        }
        Err(error) => Err(told(&error)),
    }
}

/// Takes the triggers away, which needs no right on the catalog's table. The error says what to change.
pub async fn uninstall(settings: &Settings, connect: &Connect) -> Result<Uninstalled, String> {
    let mut installer = Installer::connect(settings, connect).await?;
    if !installer.facts.has_schema {
        return Ok(Uninstalled::Absent);
    }
    installer.run("", &sql::silence(&settings.trigger_schema)).await.map_err(|error| told(&error))?;
    match installer.run_when_calm(&sql::drop_all(&settings.trigger_schema)).await {
        Ok(true) => Ok(Uninstalled::Dropped),
        Ok(false) => Ok(Uninstalled::Silenced),
        Err(error) => Err(told(&error)),
    }
}

fn target(settings: &Settings, role: String) -> Target {
    Target {
        role,
        catalog: settings.schema.clone(),
        outbox: settings.trigger_schema.clone(),
        abandon_after: settings.abandon_after,
    }
}

/// What is there before anything is done.
struct Facts {
    version: i32,
    has_table: bool,
    has_schema: bool,
    other_table: Option<String>,
}

struct Installer {
    connection: PgConnection,
    facts: Facts,
}

impl Installer {
    async fn connect(settings: &Settings, connect: &Connect) -> Result<Self, String> {
        let options = connect.options()?;
        let connecting = tokio::time::timeout(settings.connect_timeout, PgConnection::connect_with(&options)).await;
        let mut connection = connecting
            .map_err(|_| format!("no connection to the catalog within {:?}", settings.connect_timeout))?
            .map_err(|error| told(&error))?;
        let table = format!("{}.final_entities", crate::source::backstage_db::quote(&settings.schema));
        let row = sqlx::query(FACTS)
            .bind(table)
            .bind(&settings.trigger_schema)
            .persistent(false)
            .fetch_one(&mut connection)
            .await
            .map_err(|error| told(&error))?;
        let facts = |row: &sqlx::postgres::PgRow| {
            Ok(Facts {
                version: row.try_get(0)?,
                has_table: row.try_get(1)?,
                has_schema: row.try_get(2)?,
                other_table: row.try_get(3)?,
            })
        };
        let facts = facts(&row).map_err(|error: sqlx::Error| told(&error))?;
        Ok(Installer { connection, facts })
    }

    /// One transaction.
    async fn run(&mut self, before: &str, statements: &str) -> Result<(), sqlx::Error> {
        let text = format!("begin; {before}; {statements}; commit");
        let ran = sqlx::raw_sql(AssertSqlSafe(text)).execute(&mut self.connection).await;
        if ran.is_err() {
            sqlx::raw_sql("rollback").execute(&mut self.connection).await?;
        }
        ran.map(drop)
    }

    /// One transaction that is tried again while others hold the lock. False: they always did.
    async fn run_when_calm(&mut self, statements: &str) -> Result<bool, sqlx::Error> {
        for _ in 0..ATTEMPTS {
            match self.run(LOCK_TIMEOUT, statements).await {
                Ok(()) => return Ok(true),
                // A deadlock with somebody who waits for us is the same as a lock.
                Err(error) if matches!(code(&error).as_deref(), Some("55P03" | "40P01")) => {}
                Err(error) => return Err(error),
            }
            tokio::time::sleep(PAUSE_MAX.mul_f64(rand::rng().random_range(0.3..=1.0))).await;
        }
        Ok(false)
    }
}

fn code(error: &sqlx::Error) -> Option<String> {
    error.as_database_error().and_then(|error| error.code().map(std::borrow::Cow::into_owned))
}

fn told(error: &sqlx::Error) -> String {
    match code(error).as_deref() {
        Some("42501") => format!(
            "{error}; give the role its rights (catalog-bridge source grants --print --triggers), connect as a DBA (--url), or let \
             one run what --print shows"
        ),
        _ => error.to_string(),
    }
}
