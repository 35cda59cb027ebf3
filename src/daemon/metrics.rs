//! All metrics of the daemon, registered in one place.

use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry as Registered;

use crate::telemetry::metrics::Registry;
use crate::{delivery, http, source, store};

/// What all rooms count.
#[derive(Clone)]
pub(super) struct Metrics {
    pub(super) store: store::Metrics,
    pub(super) source: source::Metrics,
    pub(super) delivery: delivery::Metrics,
    pub(super) http: http::Metrics,
}

impl Metrics {
    /// The metrics of all rooms and of the process, registered.
    pub(super) fn register(registry: &mut Registry) -> Metrics {
        let metrics = Metrics {
            store: store::Metrics::default(),
            source: source::Metrics::default(),
            delivery: delivery::Metrics::new(),
            http: http::Metrics::default(),
        };
        metrics.store.register(registry);
        metrics.source.register(registry);
        metrics.delivery.register(registry);
        metrics.http.register(registry);
        register_process(registry, true);
        metrics
    }
}

/// What `/metrics` shows while a process stays that cannot run the daemon.
pub fn registry_without_daemon() -> Registered {
    let mut registry = Registry::default();
    register_process(&mut registry, false);
    registry.into_registered()
}

fn register_process(registry: &mut Registry, is_running: bool) {
    let help = "1 where the daemon runs, 0 where `run --stay` waits to try a start again that failed";
    registry.register("catalog_bridge_daemon_running", help, ConstGauge::new(i64::from(is_running)));
    registry.register_process();
}

/// The page `docs/metrics.md`.
pub fn metrics_page() -> String {
    let mut registry = Registry::default();
    Metrics::register(&mut registry);
    registry.markdown()
}
