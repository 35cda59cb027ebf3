//! All metrics of the daemon, registered in one place.

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
        registry.register_process();
        metrics
    }
}

/// The page `docs/metrics.md`.
pub fn metrics_page() -> String {
    let mut registry = Registry::default();
    Metrics::register(&mut registry);
    registry.markdown()
}
