//! `demo`: all of it on this machine, without a server.

use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;

use anyhow::{Context, Result, anyhow};
use clap::Args;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::output::{Colour, Style, print};
use super::{Global, run};
use crate::config::Config;
use crate::{config, daemon, telemetry};

#[derive(Debug, Args)]
pub(super) struct Demo {
    /// The port of the REST address; default: 8219 if it is free, else any.
    #[arg(long)]
    port: Option<u16>,
}

/// A small web shop.
const FILES: [(&str, &str); 4] = [
    ("teams.yaml", include_str!("demo/teams.yaml")),
    ("systems.yaml", include_str!("demo/systems.yaml")),
    ("apis.yaml", include_str!("demo/apis.yaml")),
    ("components.yaml", include_str!("demo/components.yaml")),
];

impl Demo {
    pub(super) async fn run(&self, global: &Global) -> Result<()> {
        let place = tempfile::Builder::new()
            .prefix("catalog-bridge-demo-")
            .tempdir()
            .context("making a directory for the demo")?;
        let catalog = place.path().join("catalog");
        write_files(&catalog)?;
        let port = self.port.map_or_else(free_port, Ok)?;
        let config = demo_config(place.path(), port, global.log_level.as_deref())?;
        telemetry::logging::start(&config.logging);
        let shutdown = CancellationToken::new();
        run::stop_on_signals(&shutdown)?;
        print(&introduction(&catalog, port, Style::of_stdout()))?;
        daemon::run(config, shutdown).await?;
        print("\nstopped; the demo's directory is deleted")
    }
}

fn write_files(directory: &Path) -> Result<()> {
    std::fs::create_dir(directory).context("making the demo's catalog")?;
    for (name, text) in FILES {
        std::fs::write(directory.join(name), text).with_context(|| format!("writing the demo's {name}"))?;
    }
    Ok(())
}

/// The config is one that a user could have written.
fn demo_config(place: &Path, port: u16, log_level: Option<&str>) -> Result<Config> {
    let text = json!({
        "log": format!("sqlite://{}", place.join("log.db").display()),
        "http": { "listen": format!("127.0.0.1:{port}"), "admin": "127.0.0.1:0" },
        "sources": { "example": { "files": { "path": place.join("catalog"), "rescan_interval": "2s" } } },
        "sinks": { "screen": { "stdout": { "format": "text" } } },
        "telemetry": { "log_level": log_level.unwrap_or("warn"), "log_format": "text" },
    });
    config::parse(&text.to_string(), &|_| None)
        .map_err(|refusals| anyhow!("{}", refusals.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")))
}

/// The RFC's port, unless something uses it. Between this look and the daemon's own another process may take it: then the
/// daemon says so.
fn free_port() -> Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 8219))
        .or_else(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))
        .context("looking for a free port on 127.0.0.1")?;
    Ok(listener.local_addr()?.port())
}

fn introduction(catalog: &Path, port: u16, style: Style) -> String {
    let base = format!("http://127.0.0.1:{port}/api/catalog");
    let title = style.paint(Colour::Bold, "A small software catalog in files, and its change feed on this machine");
    let file = style.paint(Colour::Bold, &catalog.join("components.yaml").display().to_string());
    let command = |text: String| style.paint(Colour::Green, &text);
    format!(
        "{title}\n\n\
         REST    {base}\n\
         try     {}\n        {}\n\
         change  {file}\n        give a component another owner and save: the event appears below\n\
         stop    Ctrl-C; everything lies below {} and is deleted then\n",
        command(format!("curl '{base}/events?offset=0&limit=3'")),
        command(format!("curl '{base}/entities?filter=kind=component,spec.owner=checkout'")),
        catalog.parent().unwrap_or(catalog).display(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_demo_is_a_config_that_a_user_could_write() {
        let place = tempfile::tempdir().expect("a directory");
        write_files(&place.path().join("catalog")).expect("written");

        let config = demo_config(place.path(), 8219, None).expect("a config");

        assert_eq!(config.sinks[0].protocol, "stdout");
        assert_eq!(config.sources[0].kind.protocol(), "files");
    }
}
