//! A catalog with the bridge's triggers, laid by the daemon's role with exactly the rights that are printed for it.

use std::process::Output;

use anyhow::{Result, ensure};
use sqlx::{AssertSqlSafe, Executor, PgConnection, raw_sql};

use super::catalog::Catalog;
use super::{Daemon, Place, catalog_database, cli, grants};

/// A catalog with triggers, and a place for the daemon that captures it.
pub struct Installed {
    pub catalog: Catalog,
    pub place: Place,
    /// Keys of the source beside its URL.
    pub source: String,
}

/// Lays the triggers by the command, as the daemon's role.
pub async fn install(catalog: &Catalog) -> Result<()> {
    let sql = "select to_regclass('catalog_generation_counter') is null";
    let is_old: bool = sqlx::query_scalar(sql).fetch_one(&mut catalog.connect().await?).await?;
    let options: &[&str] = if is_old { &["--triggers", "--without-generations"] } else { &["--triggers"] };
    grants::grant(catalog.owner_url(), "public", options).await?;
    run(catalog, &["install"])
}

/// Takes them away by the command, as the daemon's role.
pub async fn uninstall(catalog: &Catalog) -> Result<()> {
    run(catalog, &["uninstall"])
}

fn run(catalog: &Catalog, words: &[&str]) -> Result<()> {
    let output = Installed::command(catalog, &Place::new()?, words)?;
    ensure!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

impl Installed {
    /// On the shared server.
    pub async fn new(source: &str) -> Result<Self> {
        Self::on(&catalog_database().await?, source).await
    }

    /// In this empty database.
    pub async fn on(owner_url: &str, source: &str) -> Result<Self> {
        let catalog = Catalog::create(owner_url).await?;
        install(&catalog).await?;
        Ok(Installed { catalog, place: Place::new()?, source: source.to_owned() })
    }

    /// Starts a daemon and waits until it has compared everything: from then on each version is captured.
    pub async fn start(&self) -> Result<Daemon> {
        let daemon = self.place.start(&self.config()).await?;
        daemon
            .wait_until("the source is followed", async || {
                let detail = daemon.source("backstage").await?["detail"].clone();
                Ok(detail["lastReconcile"].is_object() && detail["reconcile"].is_null())
            })
            .await?;
        Ok(daemon)
    }

    fn config(&self) -> String {
        format!(
            "log: sqlite://{}/log.db\nsources: {{ backstage: {{ backstage-db: {{ url: \"{}\", {} }} }} }}\n",
            self.place.path().display(),
            self.catalog.bridge_url(),
            self.source
        )
    }

    /// `source …` to the running daemon.
    pub fn run(&self, words: &[&str]) -> Result<String> {
        let config = self.place.path().join("daemon.yaml").display().to_string();
        let output = cli(&[&["source"], words, &["--config", &config]].concat())?;
        ensure!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?)
    }

    /// `source …` beside no daemon.
    pub fn command(catalog: &Catalog, place: &Place, words: &[&str]) -> Result<Output> {
        let config = place.path().join("command.yaml");
        let text = format!(
            "log: sqlite://{}/log.db\nsources: {{ backstage: {{ backstage-db: {{ url: \"{}\" }} }} }}\n",
            place.path().display(),
            catalog.bridge_url()
        );
        std::fs::write(&config, text)?;
        cli(&[&["source"], words, &["--config", &config.display().to_string()]].concat())
    }

    /// How many rows a table has.
    pub async fn count(&self, table: &str) -> Result<i64> {
        let sql = format!("select count(*) from {table}");
        Ok(sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(&mut self.catalog.connect().await?).await?)
    }

    /// Runs statements as a superuser, in one transaction.
    pub async fn execute(&self, statements: &str) -> Result<()> {
        self.catalog.connect().await?.execute(raw_sql(AssertSqlSafe(statements.to_owned()))).await?;
        Ok(())
    }

    /// A connection of a role that owns the catalog's tables and is no superuser, as Backstage's is.
    pub async fn as_backstage(&self) -> Result<PgConnection> {
        let mut connection = self.catalog.connect().await?;
        let prepare = "do $$ declare item record; begin
             begin create role backstage_owner; exception when duplicate_object or unique_violation then null; end;
             for item in select tablename from pg_tables where schemaname = 'public' loop
               execute format('alter table public.%I owner to backstage_owner', item.tablename);
             end loop;
             grant all on schema public to backstage_owner;
           end $$;
           set role backstage_owner";
        connection.execute(raw_sql(prepare)).await?;
        Ok(connection)
    }
}
