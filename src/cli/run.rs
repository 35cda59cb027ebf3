//! `run`: the daemon, until it is told to stop.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::Global;
use crate::store::Backend;
use crate::{daemon, http, telemetry};

/// Where probes of a pod look while the config cannot be read: the chart's container port.
const PROBED: &str = "0.0.0.0:8219";
/// Pause between two starts that fail.
const STAY_PAUSE: Duration = Duration::from_secs(60);

#[derive(Debug, Args)]
pub(super) struct Run {
    /// Never ends by itself: what would end the daemon, such as a wrong config, is logged and tried again each minute, and /healthz
    /// answers on port 8219. For a sidecar, as a pod is ready only while all of its containers run.
    #[arg(long)]
    stay: bool,
}

impl Run {
    pub(super) async fn run(&self, global: &Global) -> Result<()> {
        let shutdown = CancellationToken::new();
        stop_on_signals(&shutdown)?;
        loop {
            let Err(error) = start(global, &shutdown).await else { return Ok(()) };
            if !self.stay || shutdown.is_cancelled() {
                return Err(error);
            }
            telemetry::logging::start(&telemetry::logging::Settings::default());
            let text = super::describe(&error);
            error!(error = text, retry_in = ?STAY_PAUSE, "the daemon cannot run; it stays and tries again");
            tokio::select! {
                () = http::answer_alive(PROBED, &text) => {}
                () = tokio::time::sleep(STAY_PAUSE) => {}
                () = shutdown.cancelled() => return Ok(()),
            }
        }
    }
}

async fn start(global: &Global, shutdown: &CancellationToken) -> Result<()> {
    let config = global.load()?;
    telemetry::logging::start(&config.logging);
    refuse_missing_directory(&config.store.backend)?;
    info!(version = env!("CARGO_PKG_VERSION"), config = %global.config.display(), "starting");
    daemon::run(config, shutdown.clone()).await
}

/// The first SIGTERM or SIGINT stops in order; the second ends the process at once, which a restart makes good.
pub(super) fn stop_on_signals(shutdown: &CancellationToken) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listening for SIGINT")?;
    let shutdown = shutdown.clone();
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            if shutdown.is_cancelled() {
                warn!("told to stop a second time: ending at once");
                std::process::exit(1);
            }
            info!("told to stop: flushing, saving checkpoints, giving leases up");
            shutdown.cancel();
        }
    });
    Ok(())
}

/// Made on the way, it would hide a volume that was not mounted, and the log would be lost with the container.
pub(super) fn refuse_missing_directory(backend: &Backend) -> Result<()> {
    let Backend::Sqlite { path } = backend else { return Ok(()) };
    match path.parent() {
        Some(directory) if directory != Path::new("") && !directory.is_dir() => bail!(
            "log: the directory {} of {} does not exist; create it, or mount the volume there",
            directory.display(),
            path.display()
        ),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_in_a_directory_that_is_not_there_is_refused() {
        let place = tempfile::tempdir().expect("a directory");
        let at = |path: &str| refuse_missing_directory(&Backend::Sqlite { path: place.path().join(path) });

        assert!(at("log.db").is_ok());
        assert!(at("gone/log.db").is_err_and(|error| error.to_string().contains("create it")));
        assert!(refuse_missing_directory(&Backend::Sqlite { path: "log.db".into() }).is_ok());
    }
}
