//! `sinks`: what they do, and the commands that lead them out of trouble.

use anyhow::Result;
use clap::{Args, Subcommand};
use serde_json::Value;

use super::client::{Client, segment};
use super::output::{print, print_json};
use super::status::PATIENCE;
use super::{Global, Output, WrongUse, status};

#[derive(Debug, Subcommand)]
pub(super) enum Sinks {
    /// What the sinks do.
    #[command(visible_alias = "status")]
    List,
    /// The next messages that a sink would send, as it would send them; sends nothing.
    Preview(Preview),
    /// Stops a sink's delivery.
    Pause(Named),
    /// Delivers again; also out of diverged.
    Resume(Named),
    /// Passes over the event on which a sink is blocked, with a record.
    Skip(Skip),
    /// Delivers again, under a new generation.
    Rewind(Rewind),
}

#[derive(Debug, Args)]
pub(super) struct Named {
    /// The sink's name.
    sink: String,
}

#[derive(Debug, Args)]
pub(super) struct Preview {
    /// The sink's name.
    sink: String,
    /// Most messages.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u8).range(1..=100))]
    limit: u8,
}

#[derive(Debug, Args)]
pub(super) struct Skip {
    /// The sink's name.
    sink: String,
    /// The offset on which it is blocked.
    offset: u64,
}

#[derive(Debug, Args)]
pub(super) struct Rewind {
    /// The sink's name.
    sink: String,
    /// `snapshot` (the live state again, then what follows), `earliest`, `latest`, or an offset: what lies after it is
    /// delivered again.
    #[arg(long, value_name = "WHERE")]
    to: String,
}

impl Sinks {
    pub(super) async fn run(&self, global: &Global) -> Result<()> {
        match self {
            Sinks::List => status::run_of(global, "sink", "sinks").await,
            Sinks::Preview(preview) => preview.run(global).await,
            Sinks::Pause(named) => command(global, &named.sink, "pause", &[]).await,
            Sinks::Resume(named) => command(global, &named.sink, "resume", &[]).await,
            Sinks::Skip(skip) => command(global, &skip.sink, "skip", &[("offset", skip.offset.to_string())]).await,
            Sinks::Rewind(rewind) => rewind.run(global).await,
        }
    }
}

impl Rewind {
    async fn run(&self, global: &Global) -> Result<()> {
        if !matches!(self.to.as_str(), "snapshot" | "earliest" | "latest") && self.to.parse::<u64>().is_err() {
            let message = format!("--to \"{}\": write snapshot, earliest, latest or an offset", self.to);
            return Err(WrongUse(message).into());
        }
        command(global, &self.sink, "rewind", &[("to", self.to.clone())]).await
    }
}

impl Preview {
    async fn run(&self, global: &Global) -> Result<()> {
        let path = format!("/sinks/{}/preview", segment(&self.sink)?);
        let limit = [("limit", self.limit.to_string())];
        // The messages are for reading closely, so their form is the same for people and programs.
        print_json(&Client::operators(global)?.get(&path, &limit, PATIENCE).await?)
    }
}

async fn command(global: &Global, sink: &str, verb: &str, query: &[(&str, String)]) -> Result<()> {
    let path = format!("/sinks/{}/{verb}", segment(sink)?);
    let row = Client::operators(global)?.post(&path, query).await?;
    if global.output == Output::Json {
        return print_json(&row);
    }
    let field = |key: &str| row.get(key).map_or_else(|| "?".to_owned(), Value::to_string);
    let mut line =
        format!("sink {sink}: {verb} is stored; checkpoint {}, generation {}", field("offset"), field("generation"));
    if row.get("paused") == Some(&Value::Bool(true)) {
        line.push_str(", paused");
    }
    print(&line)
}
