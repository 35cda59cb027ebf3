//! `schema`: the config file's JSON Schema, and the generated pages.

use anyhow::Result;
use clap::Args;

use super::output::{print, print_json};
use crate::{config, daemon};

#[derive(Debug, Args)]
pub(super) struct Schema {
    /// Prints docs/configuration.md instead.
    #[arg(long, hide = true, conflicts_with = "metrics")]
    docs: bool,
    /// Prints docs/metrics.md instead.
    #[arg(long, hide = true)]
    metrics: bool,
}

impl Schema {
    pub(super) fn run(&self) -> Result<()> {
        if self.docs {
            return print(config::reference::markdown().trim_end());
        }
        if self.metrics {
            return print(daemon::metrics_page().trim_end());
        }
        print_json(&config::reference::json_schema())
    }
}
