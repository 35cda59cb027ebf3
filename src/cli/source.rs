//! `source`: status, reconcile, and the rights that capture needs.

use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::client::{Client, segment};
use super::output::{print, print_json};
use super::triggers::{Install, Uninstall};
use super::{Global, Output, WrongUse, status};
use crate::source::SourceKind;
use crate::source::backstage_db::{self, CaptureChoice};

#[derive(Debug, Subcommand)]
pub(super) enum Source {
    /// What the sources do.
    #[command(visible_alias = "list")]
    Status,
    /// Compares everything that the catalog holds with the log now.
    Reconcile(Reconcile),
    /// Prints the statements that give the daemon's role what it reads, for the catalog database's owner.
    Grants(Grants),
    /// Installs triggers on the catalog's table that write each change to an outbox of the bridge's own.
    Install(Install),
    /// Takes the triggers and their outbox away.
    Uninstall(Uninstall),
}

#[derive(Debug, Args)]
pub(super) struct Reconcile {
    /// The source's name.
    source: String,
    /// Lets the removals go that the mass removal guard holds back.
    #[arg(long)]
    confirm: bool,
}

#[derive(Debug, Args)]
pub(super) struct Grants {
    /// The source's name; default: every backstage-db source.
    source: Option<String>,
    /// Prints them; nothing is ever carried out.
    #[arg(long)]
    print: bool,
    /// The daemon's role; default: as the config says.
    #[arg(long)]
    role: Option<String>,
    /// The catalog's database; default: as the config says.
    #[arg(long)]
    database: Option<String>,
    /// Leaves out the counter, which catalogs before 4.0.3 do not have.
    #[arg(long)]
    without_generations: bool,
    /// Adds what `source install` needs to lay triggers by the daemon's role.
    #[arg(long)]
    triggers: bool,
}

impl Source {
    pub(super) async fn run(&self, global: &Global) -> Result<()> {
        match self {
            Source::Status => status::run_of(global, "source", "sources").await,
            Source::Reconcile(reconcile) => reconcile.run(global).await,
            Source::Grants(grants) => grants.run(global),
            Source::Install(install) => install.run(global).await,
            Source::Uninstall(uninstall) => uninstall.run(global).await,
        }
    }
}

impl Reconcile {
    async fn run(&self, global: &Global) -> Result<()> {
        let path = format!("/sources/{}/reconcile", segment(&self.source)?);
        let query: &[(&str, String)] = if self.confirm { &[("confirm", "true".to_owned())] } else { &[] };
        let begun = Client::operators(global)?.post(&path, query).await?;
        if global.output == Output::Json {
            return print_json(&begun);
        }
        match begun.get("confirmedRemovals").and_then(Value::as_u64) {
            Some(count) => print(&format!("source {}: {count} held removals are confirmed", self.source)),
            None => print(&format!(
                "source {}: a reconcile has begun; catalog-bridge source status shows how far it is",
                self.source
            )),
        }
    }
}

impl Grants {
    fn run(&self, global: &Global) -> Result<()> {
        let config = global.load()?;
        let mut all = Vec::new();
        for source in &config.sources {
            let SourceKind::BackstageDb(settings) = &source.kind else { continue };
            if self.source.as_ref().is_some_and(|name| name != source.name.as_str()) {
                continue;
            }
            all.push((source.name.as_str().to_owned(), self.statements(settings)?));
        }
        if all.is_empty() {
            let which = self.source.as_ref().map(|name| format!(" \"{name}\"")).unwrap_or_default();
            return Err(WrongUse(format!("the config has no backstage-db source{which}")).into());
        }
        if global.output == Output::Json {
            let statements = |(name, text): &(String, String)| json!({ "source": name, "statements": text });
            return print_json(&all.iter().map(statements).collect());
        }
        for (name, text) in all {
            print(&format!("-- what source {name} needs, and nothing else\n{}", text.trim_end()))?;
        }
        Ok(())
    }

    fn statements(&self, settings: &backstage_db::Settings) -> Result<String> {
        let (role, database) = match (&self.role, &self.database) {
            (Some(role), Some(database)) => (role.clone(), database.clone()),
            (role, database) => {
                let (of_config, database_of_config) = settings
                    .connect
                    .names()
                    .map_err(|error| anyhow::anyhow!(error))
                    .context("reading the source's database; or name --role and --database")?;
                (role.clone().unwrap_or(of_config), database.clone().unwrap_or(database_of_config))
            }
        };
        let mut text = backstage_db::grants(&role, &database, &settings.schema, !self.without_generations);
        if self.triggers || settings.capture == CaptureChoice::Triggers {
            text += &backstage_db::trigger_grants(&role, &settings.schema, &settings.trigger_schema);
        }
        Ok(text)
    }
}
