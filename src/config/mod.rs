//! Reads the one YAML file: parse, then resolve.
//!
//! What the file says (`…Section`) becomes what runs (the rooms' own settings): defaults filled, filters and templates
//! compiled, connectors built. Invariants: every refusal names file, line, key and, where a word was misspelt, the nearest
//! known one; everything that is wrong is told at once; no secret is in any error, log line or `Debug` output; nothing is
//! dialled and no secret file is opened. `reference` makes the JSON Schema and the documentation from the doc comments.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

mod database;
mod document;
mod environment;
mod http;
mod log;
pub mod reference;
mod refusal;
mod schema;
mod sinks;
mod sources;
mod telemetry;
mod units;

#[cfg(test)]
mod tests;

pub use refusal::{ConfigError, Refusal};

use self::document::Node;
use self::refusal::Refusals;
use crate::store::RetentionPolicy;

/// Everything that runs, resolved.
#[derive(Clone)]
pub struct Config {
    /// Where the log is kept.
    pub store: crate::store::Settings,
    /// What the log keeps.
    pub retention: RetentionPolicy,
    /// How readers and operators are served.
    pub http: crate::http::Settings,
    /// Where changes come from, by name.
    pub sources: Vec<crate::source::Source>,
    /// Where events go, by name.
    pub sinks: Vec<crate::delivery::Sink>,
    /// How log lines are written.
    pub logging: crate::telemetry::logging::Settings,
}

/// The file.
#[derive(Debug, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
struct File {
    /// Where the event log is kept: `postgres://user:password@host/database`, `sqlite:///var/lib/catalog-bridge/log.db`,
    /// `file:/path` of a file with a PostgreSQL URL, or a section.
    log: log::LogSection,
    /// Where readers and operators are served, and who may do what.
    #[serde(default)]
    http: http::HttpSection,
    /// Where changes come from, each under a name of its own (lower-case letters, digits, hyphens). Entities belong to the source
    /// of that name: to rename a source is to remove its entities and add them again.
    #[serde(default)]
    sources: BTreeMap<String, sources::SourceSection>,
    /// Where events go, each under a name of its own (lower-case letters, digits, hyphens). The checkpoint is kept by that name.
    #[serde(default)]
    sinks: BTreeMap<String, sinks::SinkSection>,
    /// What the daemon tells of itself.
    #[serde(default)]
    telemetry: telemetry::TelemetrySection,
}

/// Reads a file. Variables come from the environment of this process.
pub fn load(path: &Path) -> Result<Config, ConfigError> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| ConfigError::Unreadable { path: path.to_owned(), reason: error.to_string() })?;
    parse(&text, &|name| std::env::var(name).ok())
        .map_err(|refusals| ConfigError::Refused { path: path.to_owned(), refusals })
}

/// Parses a file's text; `lookup` answers for the environment.
pub fn parse(text: &str, lookup: &dyn Fn(&str) -> Option<String>) -> Result<Config, Vec<Refusal>> {
    let root = Node::parse(text).map_err(|refusal| vec![refusal])?;
    let mut refusals = Refusals::new(&root);
    let filled = environment::fill(&root, lookup, &mut refusals);
    let value = schema::convert(&filled, &reference::json_schema(), &mut refusals);
    // What is missing or of a wrong type would only be told a second time.
    if !refusals.is_empty() {
        return Err(refusals.into_list());
    }
    let Some(file) = deserialize(value, &mut refusals) else { return Err(refusals.into_list()) };
    match resolve(&file, &mut refusals) {
        Some(config) if refusals.is_empty() => Ok(config),
        _ => Err(refusals.into_list()),
    }
}

fn deserialize(value: Value, refusals: &mut Refusals<'_>) -> Option<File> {
    match catalog_bridge_api::parse_config(value) {
        Ok(file) => Some(file),
        Err(error) => {
            refusals.add_at(error.path, error.message);
            None
        }
    }
}

fn resolve(file: &File, refusals: &mut Refusals<'_>) -> Option<Config> {
    let log = file.log.resolve(refusals);
    let (sources, ingest_sources) = sources::resolve(&file.sources, refusals);
    let http = file.http.resolve(ingest_sources, refusals);
    let sinks = sinks::resolve(&file.sinks, &http, refusals);
    let logging = file.telemetry.resolve(refusals);
    let (store, retention) = log?;
    Some(Config { store, retention, http, sources, sinks, logging })
}
