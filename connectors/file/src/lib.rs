//! The sinks `file` (NDJSON, durable) and `stdout` (lines, not durable): the worked example of a connector.
//!
//! Invariants of `file`: P5 (lines are appended in feed order, so what is stored is always a prefix of what was offered), P6
//! (nothing is repeated: a new session takes the tail of the file as where it stands), P9 (an exclusive lock on the file keeps a
//! second writer of this host out). An event is acknowledged only after `fdatasync`.
//! Knows nothing of the log, of filters or of retries: those are the driver's.

mod config;
mod file;
mod line;
mod stdout;
mod tail;

use catalog_bridge_api::{BuildContext, ConfigError, Connector, ConnectorKind, parse_config};

/// The connector `file`.
pub static KIND: FileKind = FileKind;
/// The connector `stdout`.
pub static STDOUT_KIND: StdoutKind = StdoutKind;

/// Builds `file` sinks.
#[derive(Debug)]
pub struct FileKind;

impl ConnectorKind for FileKind {
    fn name(&self) -> &'static str {
        "file"
    }

    fn schema(&self) -> schemars::Schema {
        schemars::schema_for!(config::FileConfig)
    }

    fn build(&self, section: serde_json::Value, context: BuildContext) -> Result<Box<dyn Connector>, ConfigError> {
        let config: config::FileConfig = parse_config(section)?;
        Ok(Box::new(file::FileConnector::new(&config, context.ensure)?))
    }
}

/// Builds `stdout` sinks.
#[derive(Debug)]
pub struct StdoutKind;

impl ConnectorKind for StdoutKind {
    fn name(&self) -> &'static str {
        "stdout"
    }

    fn schema(&self) -> schemars::Schema {
        schemars::schema_for!(config::StdoutConfig)
    }

    fn build(&self, section: serde_json::Value, _: BuildContext) -> Result<Box<dyn Connector>, ConfigError> {
        let config: config::StdoutConfig = parse_config(section)?;
        Ok(Box::new(stdout::StdoutConnector::new(&config)))
    }
}
