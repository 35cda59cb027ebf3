use std::sync::atomic::AtomicU64;
use std::time::Duration;

use crate::telemetry::metrics::Registry;
use catalog_bridge_api::EventType;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;

use super::RetentionReport;
use super::decide::Decision;

/// What the store measures. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Metrics {
    append_duration: Histogram,
    events: Family<TypeLabel, Counter>,
    failures: Family<ActionLabel, Counter>,
    deleted: Counter,
    deletable_bytes: Gauge,
    oldest: Gauge,
    sink_ratio: Family<SinkLabel, Gauge<f64, AtomicU64>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TypeLabel {
    r#type: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ActionLabel {
    action: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SinkLabel {
    sink: String,
}

impl Default for Metrics {
    fn default() -> Self {
        Metrics {
            append_duration: Histogram::new([0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0]),
            events: Family::default(),
            failures: Family::default(),
            deleted: Counter::default(),
            deletable_bytes: Gauge::default(),
            oldest: Gauge::default(),
            sink_ratio: Family::default(),
        }
    }
}

impl Metrics {
    /// Adds them to the registry, with their help texts.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "catalog_bridge_append_duration_seconds",
            "How long appends to the event log took, from the request to the commit",
            self.append_duration.clone(),
        );
        registry.register(
            "catalog_bridge_events_appended",
            "Events that this process appended to the log, by type",
            self.events.clone(),
        );
        registry.register(
            "catalog_bridge_store_failures",
            "Requests to the store that failed because the database was away or refused, by what was being done",
            self.failures.clone(),
        );
        registry.register(
            "catalog_bridge_retention_deleted_events",
            "Events that this process deleted by retention",
            self.deleted.clone(),
        );
        registry.register(
            "catalog_bridge_retention_deletable_bytes",
            "What retention may delete when its time comes, against the limit log.retention.bytes; live state is not in it",
            self.deletable_bytes.clone(),
        );
        registry.register(
            "catalog_bridge_log_oldest_offset",
            "The smallest offset that a reader may resume after, as of the last pass of retention",
            self.oldest.clone(),
        );
        registry.register(
            "catalog_bridge_retention_sink_ratio",
            "How much of retention's limit of bytes or events lies before a sink, from 0 to 1; at 1 the sink expires",
            self.sink_ratio.clone(),
        );
    }

    pub(crate) fn appended(&self, duration: Duration) {
        self.append_duration.observe(duration.as_secs_f64());
    }

    pub(super) fn events(&self, decision: &Decision) {
        for event_type in [EventType::Added, EventType::Updated, EventType::Removed] {
            let label = TypeLabel { r#type: event_type.as_str() };
            self.events.get_or_create(&label).inc_by(decision.count(event_type));
        }
    }

    pub(super) fn retained(&self, report: &RetentionReport) {
        self.deleted.inc_by(report.deleted);
        self.deletable_bytes.set(i64::try_from(report.deletable_bytes).unwrap_or(i64::MAX));
        self.oldest.set(i64::try_from(report.oldest.get()).unwrap_or(i64::MAX));
        // Sinks come and go, and those before which nothing lies are not in the report.
        self.sink_ratio.clear();
        for (sink, percent) in &report.sink_percent {
            let percent = u32::try_from(*percent).unwrap_or(u32::MAX);
            self.sink_ratio.get_or_create(&SinkLabel { sink: sink.clone() }).set(f64::from(percent) / 100.0);
        }
    }

    pub(crate) fn failed(&self, action: &'static str) {
        self.failures.get_or_create(&ActionLabel { action }).inc();
    }
}
