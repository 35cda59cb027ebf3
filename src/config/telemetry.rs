//! `telemetry`: what the daemon tells of itself.

use serde::Deserialize;

use super::refusal::Refusals;
use crate::telemetry::logging::{Format, Settings};

/// What the daemon tells of itself.
#[derive(Debug, Default, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct TelemetrySection {
    /// The least level of log lines: `error`, `warn`, `info`, `debug`, `trace`; also by module, such as
    /// `info,catalog_bridge::delivery=debug`. `--log-level` and `CATALOG_BRIDGE_LOG_LEVEL` go before it. Default `info`.
    log_level: Option<String>,
    /// How log lines are written: `json`, `text`, or `auto` (text on a terminal, else JSON). Default `auto`.
    log_format: Format,
}

impl TelemetrySection {
    pub(super) fn resolve(&self, refusals: &mut Refusals<'_>) -> Settings {
        let mut settings = Settings { format: self.log_format, ..Settings::default() };
        if let Some(level) = &self.log_level {
            match Settings::parse_level(level) {
                Ok(level) => settings.level = level,
                Err(message) => refusals.add(&["telemetry", "log_level"], message),
            }
        }
        settings
    }
}
