//! `run`: the daemon, until it is told to stop.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::Global;
use crate::store::Backend;
use crate::{daemon, http, telemetry};

/// Pause after the first start that failed; the next are longer.
const STAY_PAUSE: Duration = Duration::from_secs(1);
/// The longest.
const STAY_PAUSE_MAX: Duration = Duration::from_secs(60);

#[derive(Debug, Args)]
pub(super) struct Run {
    /// Never ends by itself: what would end the daemon, such as a wrong config, is logged and tried again, at least each minute.
    /// Meanwhile /healthz and /metrics answer at ADDRESS, as the config that would name it may be what is wrong. For a sidecar, as
    /// a pod is ready only while all of its containers run.
    #[arg(long, value_name = "ADDRESS")]
    stay: Option<SocketAddr>,
}

impl Run {
    pub(super) async fn run(&self, global: &Global) -> Result<()> {
        let shutdown = CancellationToken::new();
        stop_on_signals(&shutdown)?;
        let mut pause = STAY_PAUSE;
        loop {
            let Err(error) = start(global, &shutdown).await else { return Ok(()) };
            let Some(address) = self.stay.filter(|_| !shutdown.is_cancelled()) else { return Err(error) };
            telemetry::logging::start(&telemetry::logging::Settings::default());
            error!(error = super::describe(&error), retry_in = ?pause, "the daemon cannot run; it stays and tries again");
            let registry = Arc::new(daemon::registry_without_daemon());
            tokio::select! {
                () = http::answer_without_daemon(address, &registry) => {}
                () = tokio::time::sleep(pause.mul_f64(rand::random_range(0.5..1.0))) => {}
                () = shutdown.cancelled() => return Ok(()),
            }
            pause = (pause * 2).min(STAY_PAUSE_MAX);
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
