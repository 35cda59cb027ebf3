//! catalog-bridge.

use anyhow::Result;
use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() -> Result<()> {
    let path = std::env::args().nth(3).unwrap_or_default();
    let config = catalog_bridge::config::load(std::path::Path::new(&path))?;
    catalog_bridge::telemetry::logging::start(&config.logging);
    let shutdown = CancellationToken::new();
    let stop = shutdown.clone();
    tokio::spawn(async move {
        let mut term =
            tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).expect("a signal handler");
        term.recv().await;
        stop.cancel();
    });
    catalog_bridge::daemon::run(config, shutdown).await
}
