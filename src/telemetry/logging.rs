//! Log lines: one JSON object each, or text for people.

use std::io::IsTerminal;

use serde::Deserialize;
use tracing_subscriber::EnvFilter;

/// How log lines are written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Which lines, as tracing's filters have it: `info`, or `info,catalog_bridge::delivery=debug`.
    pub level: String,
    /// In which form.
    pub format: Format,
}

/// In which form log lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Text on a terminal, else JSON.
    #[default]
    Auto,
    /// One JSON object a line.
    Json,
    /// For people.
    Text,
}

impl Default for Settings {
    fn default() -> Self {
        Settings { level: "info".to_owned(), format: Format::Auto }
    }
}

impl Settings {
    /// Checks a filter; the error says what to write.
    pub fn parse_level(text: &str) -> Result<String, String> {
        const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
        let is_level = |directive: &str| match directive.trim().split_once('=') {
            Some((_, level)) => LEVELS.contains(&level.to_lowercase().as_str()),
            None => LEVELS.contains(&directive.trim().to_lowercase().as_str()),
        };
        if text.split(',').all(is_level) && EnvFilter::try_new(text).is_ok() {
            return Ok(text.to_owned());
        }
        Err("this is no level; write error, warn, info, debug or trace, or by module info,catalog_bridge::delivery=debug"
            .to_owned())
    }
}

/// Clients of brokers whose lines a sink's state tells better, and that write whole messages (`lapin`, of those without a queue).
/// A level that names them shows them.
const SILENT: &str = "lapin=off,async_nats=off";

/// Writes log lines to the standard error from now on. To be called once; a second call changes nothing.
pub fn start(settings: &Settings) {
    let level = format!("{SILENT},{}", settings.level);
    let filter = EnvFilter::try_new(level).unwrap_or_else(|_| EnvFilter::new("info"));
    let is_text = match settings.format {
        Format::Json => false,
        Format::Text => true,
        Format::Auto => std::io::stderr().is_terminal(),
    };
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let started = if is_text {
        let has_colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        builder.with_ansi(has_colour).try_init()
    } else {
        builder.json().flatten_event(true).with_current_span(false).with_span_list(false).try_init()
    };
    if started.is_err() {
        tracing::debug!("log lines are already written");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_known_words() {
        for good in ["info", "DEBUG", "info,catalog_bridge::delivery=debug", "off", "info,lapin=warn"] {
            assert!(Settings::parse_level(good).is_ok(), "{good}");
        }
        for bad in ["", "verbose", "info,,", "catalog_bridge=loud"] {
            assert!(Settings::parse_level(bad).is_err(), "{bad}");
        }
    }
}
