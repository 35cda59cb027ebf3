use std::path::PathBuf;

use serde::Deserialize;

/// Appends each event as one line of JSON to a file.
#[derive(Debug, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct FileConfig {
    /// The file, such as `/var/log/catalog.ndjson`. It is made when it is not there; its directory must exist (or
    /// `ensure: true`). Only one sink may write to it.
    pub(crate) path: PathBuf,
}

/// Prints each event to the standard output. Not durable: what a pipe's reader loses is not sent again.
#[derive(Debug, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct StdoutConfig {
    /// How events are printed.
    #[serde(default)]
    pub(crate) format: StdoutFormat,
}

/// How `stdout` prints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum StdoutFormat {
    /// Readable on a terminal, JSON lines otherwise.
    #[default]
    Auto,
    /// One readable line per event: offset, type, entity and what changed.
    Text,
    /// One line of JSON per event.
    Json,
}
