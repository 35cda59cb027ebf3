//! `source install` and `source uninstall`: the triggers of capture.

use anyhow::{Result, anyhow};
use catalog_bridge_api::Secret;
use clap::Args;
use serde_json::json;

use super::output::{print, print_json};
use super::{Global, Output, WrongUse};
use crate::source::SourceKind;
use crate::source::backstage_db::{self, Connect, Settings, Uninstalled};

/// Which source's triggers, and by whom.
#[derive(Debug, Args)]
pub(super) struct Which {
    /// The source's name; default: the only backstage-db source.
    source: Option<String>,
    /// Prints the statements for a DBA; nothing is carried out.
    #[arg(long)]
    print: bool,
    /// Connects as somebody else than the daemon, such as a DBA: `postgres://…`, or `file:/path` that holds it.
    #[arg(long, value_name = "URL")]
    url: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct Install {
    #[command(flatten)]
    which: Which,
    /// The daemon's role, which will own the outbox; default: as the config says.
    #[arg(long)]
    role: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct Uninstall {
    #[command(flatten)]
    which: Which,
}

impl Install {
    pub(super) async fn run(&self, global: &Global) -> Result<()> {
        let (name, settings) = self.which.source(global)?;
        let role = match &self.role {
            Some(role) => role.clone(),
            None => settings.connect.names().map_err(|error| anyhow!(error))?.0,
        };
        if self.which.print {
            return show(global, &name, &backstage_db::install_script(&settings, &role));
        }
        let connect = self.which.connect(&settings);
        backstage_db::install(&settings, &connect, role).await.map_err(|error| anyhow!("source {name}: {error}"))?;
        if global.output == Output::Json {
            return print_json(&json!({ "source": name, "installed": true, "schema": settings.trigger_schema }));
        }
        print(&format!(
            "source {name}: the triggers are installed, their outbox is in schema {}; capture: auto takes them within seconds",
            settings.trigger_schema
        ))
    }
}

impl Uninstall {
    pub(super) async fn run(&self, global: &Global) -> Result<()> {
        let (name, settings) = self.which.source(global)?;
        if self.which.print {
            return show(global, &name, &backstage_db::uninstall_script(&settings));
        }
        let connect = self.which.connect(&settings);
        let done = backstage_db::uninstall(&settings, &connect).await;
        let done = done.map_err(|error| anyhow!("source {name}: {error}"))?;
        if global.output == Output::Json {
            let left = done == Uninstalled::Silenced;
            return print_json(&json!({ "source": name, "installed": false, "triggersLeft": left }));
        }
        print(&match done {
            Uninstalled::Absent => format!("source {name}: no triggers are installed"),
            Uninstalled::Dropped => format!("source {name}: the triggers and their outbox are gone"),
            Uninstalled::Silenced => format!(
                "source {name}: the triggers do nothing any more; they could not be dropped, as the catalog's table was busy at \
                 every attempt: run this again when fewer changes are under way"
            ),
        })
    }
}

impl Which {
    fn source(&self, global: &Global) -> Result<(String, Settings)> {
        let config = global.load()?;
        let mut found = config.sources.into_iter().filter_map(|source| match source.kind {
            SourceKind::BackstageDb(settings) => Some((source.name.as_str().to_owned(), settings)),
            _ => None,
        });
        let chosen = match &self.source {
            Some(name) => found.find(|(found, _)| found == name),
            None => found.next().filter(|_| found.next().is_none()),
        };
        chosen.ok_or_else(|| {
            let wrong = match &self.source {
                Some(name) => format!("the config has no backstage-db source \"{name}\""),
                None => "the config has no single backstage-db source: name one".to_owned(),
            };
            WrongUse(wrong).into()
        })
    }

    fn connect(&self, settings: &Settings) -> Connect {
        self.url.as_ref().map_or_else(|| settings.connect.clone(), |url| Connect::url(Secret::new(url)))
    }
}

fn show(global: &Global, name: &str, statements: &str) -> Result<()> {
    if global.output == Output::Json {
        return print_json(&json!({ "source": name, "statements": statements }));
    }
    print(statements.trim_end())
}
