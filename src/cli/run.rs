//! `run`: the daemon, until it is told to stop.

use std::path::Path;

use anyhow::{Context, Result, bail};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::Global;
use crate::store::Backend;
use crate::{daemon, telemetry};

pub(super) async fn run(global: &Global) -> Result<()> {
    let config = global.load()?;
    telemetry::logging::start(&config.logging);
    refuse_missing_directory(&config.store.backend)?;
    let shutdown = CancellationToken::new();
    stop_on_signals(&shutdown)?;
    info!(version = env!("CARGO_PKG_VERSION"), config = %global.config.display(), "starting");
    daemon::run(config, shutdown).await
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
