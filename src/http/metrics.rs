use std::time::Duration;

use crate::telemetry::metrics::Registry;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;

/// What the HTTP room measures. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Metrics {
    requests: Family<RequestLabels, Counter>,
    duration: Family<RouteLabel, Histogram, fn() -> Histogram>,
    events: Counter,
    pub(super) waiters: Gauge,
    pub(super) connections: Gauge,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    route: String,
    status: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RouteLabel {
    route: String,
}

impl Default for Metrics {
    fn default() -> Self {
        Metrics {
            requests: Family::default(),
            duration: Family::new_with_constructor(|| Histogram::new([0.001, 0.005, 0.025, 0.1, 0.5, 2.5, 10.0, 60.0])),
            events: Counter::default(),
            waiters: Gauge::default(),
            connections: Gauge::default(),
        }
    }
}

impl Metrics {
    /// Adds them to the registry, with their help texts.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "catalog_bridge_http_requests",
            "Requests that were answered, by route and status",
            self.requests.clone(),
        );
        registry.register(
            "catalog_bridge_http_request_duration_seconds",
            "How long requests took, by route; a long poll takes as long as it waits",
            self.duration.clone(),
        );
        registry.register(
            "catalog_bridge_http_events_served",
            "Events in replies of the events route",
            self.events.clone(),
        );
        registry.register("catalog_bridge_http_waiters", "Long polls that wait at present", self.waiters.clone());
        registry.register(
            "catalog_bridge_http_connections",
            "Connections that are open at present",
            self.connections.clone(),
        );
    }

    /// A request was answered. `route` is the route's template, so that labels stay few.
    pub(super) fn answered(&self, route: &str, status: u16, duration: Duration) {
        self.requests.get_or_create(&RequestLabels { route: route.to_owned(), status }).inc();
        self.duration.get_or_create(&RouteLabel { route: route.to_owned() }).observe(duration.as_secs_f64());
    }

    pub(super) fn served(&self, events: usize) {
        self.events.inc_by(events as u64);
    }
}
