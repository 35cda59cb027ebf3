//! `check`: dials everything that the config names, and changes nothing.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use catalog_bridge_api::{Cause, CheckReport, EntityRef, Event, EventType, JsonText, Offset};
use chrono::Utc;
use clap::Args;
use serde::Serialize;
use uuid::Uuid;

use super::output::{Colour, Style, plain, print, print_json};
use super::run::refuse_missing_directory;
use super::{Global, Output};
use crate::config::Config;
use crate::delivery::Sink;
use crate::http::{Auth, Scope};
use crate::source::{Source, SourceKind, backstage_db};
use crate::store::{self, LogEntry};

/// How long one sink's destination may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// What a message may hold beside the entity.
const ENVELOPE_BYTES: usize = 8 * 1024;

#[derive(Debug, Args)]
pub(super) struct Check {
    /// Reads and resolves the config only; dials nothing.
    #[arg(long)]
    offline: bool,
}

/// One part of what the config names.
#[derive(Debug, Serialize)]
struct Part {
    part: String,
    #[serde(flatten)]
    report: CheckReport,
    /// Why it cannot work as it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

impl Check {
    pub(super) async fn run(&self, global: &Global) -> Result<ExitCode> {
        let config = global.load()?;
        let parts = if self.offline { summary(&config) } else { dial(&config).await };
        match global.output {
            Output::Json => print_json(&serde_json::to_value(&parts)?)?,
            Output::Text => parts.iter().try_for_each(|part| print(&part.text(Style::of_stdout())))?,
        }
        let is_right = parts.iter().all(|part| part.error.is_none());
        Ok(if is_right { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

impl Part {
    fn new(part: String, found: Result<CheckReport, String>) -> Part {
        match found {
            Ok(report) => Part { part, report, error: None },
            Err(error) => Part { part, report: CheckReport::default(), error: Some(error) },
        }
    }

    fn text(&self, style: Style) -> String {
        let state = match (&self.error, self.report.warnings.is_empty()) {
            (Some(_), _) => style.paint(Colour::Red, "wrong"),
            (None, false) => style.paint(Colour::Yellow, "works, with warnings"),
            (None, true) => style.paint(Colour::Green, "right"),
        };
        let mut text = format!("{}: {state}", style.paint(Colour::Bold, &self.part));
        for fact in &self.report.facts {
            text.push_str(&format!("\n    {}", plain(fact)));
        }
        for warning in &self.report.warnings {
            text.push_str(&format!("\n    {} {}", style.paint(Colour::Yellow, "warning:"), plain(warning)));
        }
        if let Some(error) = &self.error {
            text.push_str(&format!("\n    {} {}", style.paint(Colour::Red, "error:"), plain(error)));
        }
        text
    }
}

fn sink_title(sink: &Sink) -> String {
    format!("sink {} ({})", sink.name, sink.protocol)
}

fn source_title(source: &Source) -> String {
    format!("source {} ({})", source.name, source.kind.protocol())
}

/// What the file names.
fn summary(config: &Config) -> Vec<Part> {
    let fact =
        |part: String, fact: String| Part::new(part, Ok(CheckReport { facts: vec![fact], warnings: Vec::new() }));
    let log = match &config.store.backend {
        store::Backend::Postgres(settings) => format!("PostgreSQL, schema {}", settings.schema),
        store::Backend::Sqlite { path } => format!("SQLite file {}", path.display()),
    };
    let mut parts = vec![fact("log".to_owned(), log), check_http(&config.http)];
    parts.extend(
        config.sources.iter().map(|source| fact(source_title(source), "can be read as it is written".to_owned())),
    );
    parts.extend(config.sinks.iter().map(|sink| fact(sink_title(sink), sink.connector.destination())));
    parts
}

/// Who is served where; nothing is dialled, as the daemon may be running or not.
fn check_http(settings: &crate::http::Settings) -> Part {
    let admin = settings.admin.as_deref().unwrap_or("off");
    let mut report = CheckReport::default();
    report.facts.push(format!("readers on {}, operators on {admin}", settings.listen));
    match &settings.auth {
        Auth::Open => report.facts.push("no token is asked for".to_owned()),
        Auth::Tokens(tokens) => {
            report.facts.push(format!("{} tokens are known", tokens.len()));
            if settings.admin.is_some() && !tokens.iter().any(|token| token.scopes.contains(&Scope::Admin)) {
                report
                    .warnings
                    .push("no token has the scope admin, so no command reaches the daemon; add one".to_owned());
            }
            for token in tokens {
                if let Err(error) = token.secret.open() {
                    report.warnings.push(format!("token \"{}\" cannot be read: {error}", token.name));
                }
            }
        }
    }
    Part::new("http".to_owned(), Ok(report))
}

/// Present entities that are large, as the catalog or else the log holds them.
#[derive(Default)]
struct Large {
    entities: Vec<(EntityRef, JsonText)>,
    is_known: bool,
}

async fn dial(config: &Config) -> Vec<Part> {
    let limits = config.sinks.iter().filter_map(|sink| sink.connector.limits().message_bytes_max);
    let larger_than = limits.min().map_or(usize::MAX, |limit| limit.saturating_sub(ENVELOPE_BYTES));
    let mut large = Large::default();
    let mut parts = vec![check_log(config, larger_than, &mut large).await, check_http(&config.http)];
    for source in &config.sources {
        let found = check_source(source, larger_than, &mut large).await;
        parts.push(Part::new(source_title(source), found));
    }
    for sink in &config.sinks {
        let mut part = Part::new(sink_title(sink), check_sink(sink).await);
        count_oversize(sink, &large, &mut part.report);
        parts.push(part);
    }
    parts
}

async fn check_log(config: &Config, larger_than: usize, large: &mut Large) -> Part {
    if let Err(error) = refuse_missing_directory(&config.store.backend) {
        return Part::new("log".to_owned(), Err(error.to_string()));
    }
    let found = store::inspect(&config.store, larger_than).await.map_err(|error| error.to_string());
    Part::new(
        "log".to_owned(),
        found.map(|inspection| {
            let mut report = inspection.report;
            if let Some(present) = inspection.present {
                report.facts.push(format!("{present} entities are present in it"));
                large.is_known = true;
            }
            large.entities.extend(inspection.large);
            report
        }),
    )
}

async fn check_source(source: &Source, larger_than: usize, large: &mut Large) -> Result<CheckReport, String> {
    match &source.kind {
        SourceKind::BackstageDb(settings) => {
            let inspection = backstage_db::inspect(settings, larger_than).await?;
            large.is_known = true;
            // The catalog is what will be delivered; the log may be behind it.
            for (entity_ref, entity) in inspection.large {
                large.entities.retain(|(known, _)| *known != entity_ref);
                large.entities.push((entity_ref, entity));
            }
            Ok(inspection.report)
        }
        SourceKind::Files(settings) => {
            let path = settings.path.display();
            match std::fs::metadata(&settings.path) {
                Ok(_) => Ok(CheckReport { facts: vec![format!("{path} is there")], warnings: Vec::new() }),
                Err(error) => Err(format!("{path}: {error}")),
            }
        }
        SourceKind::Ingest => {
            let fact = format!("takes changes at …/sources/{}/changes", source.name);
            Ok(CheckReport { facts: vec![fact], warnings: Vec::new() })
        }
    }
}

async fn check_sink(sink: &Sink) -> Result<CheckReport, String> {
    match tokio::time::timeout(PATIENCE, sink.connector.check()).await {
        Ok(found) => found.map_err(|error| error.to_string()),
        Err(_) => Err(format!("{} did not answer within {} s", sink.connector.destination(), PATIENCE.as_secs())),
    }
}

/// Says how many present entities the sink's destination would not take whole.
fn count_oversize(sink: &Sink, large: &Large, report: &mut CheckReport) {
    let Some(limit) = sink.connector.limits().message_bytes_max else { return };
    if !large.is_known {
        return;
    }
    let encoder = sink.encoder(Uuid::nil(), 1);
    let exceeding = large
        .entities
        .iter()
        .filter_map(|(entity_ref, entity)| sink.view.see(&added(entity_ref, entity)))
        .filter(|event| encoder.encode(event).is_reference)
        .count();
    let limit = format!("its limit of {limit} bytes");
    let sentence = match exceeding {
        0 => return report.facts.push(format!("no present entity exceeds {limit}")),
        count if large.entities.len() >= store::LARGE_MAX => {
            format!("at least {count} present entities exceed {limit}")
        }
        1 => format!("1 present entity exceeds {limit}"),
        count => format!("{count} present entities exceed {limit}"),
    };
    report.warnings.push(format!("{sentence} (on_oversize decides what becomes of them)"));
}

fn added(entity_ref: &EntityRef, entity: &JsonText) -> LogEntry {
    let event = Event {
        offset: Offset::new(1),
        event_type: EventType::Added,
        entity_ref: entity_ref.clone(),
        uid: None,
        entity: Some(entity.clone()),
        changed: None,
        reason: None,
        occurred_at: Utc::now(),
        recorded_at: Utc::now(),
        cause: Cause::Reconcile,
        previous_offset: None,
    };
    LogEntry { event, previous_entity: None }
}
