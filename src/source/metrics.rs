//! What the sources count.

use crate::telemetry::metrics::Registry;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

/// The ways of capture.
const CAPTURES: [&str; 3] = ["generations", "triggers", "reconcile"];

/// The label of one source.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct SourceLabel {
    source: String,
}

/// The labels of events: who brought them, and how they were noticed.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct CauseLabels {
    source: String,
    cause: &'static str,
}

/// The labels of how a source captures.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct CaptureLabels {
    source: String,
    capture: &'static str,
}

/// Metrics of all sources. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    events: Family<CauseLabels, Counter>,
    errors: Family<SourceLabel, Counter>,
    gaps: Family<SourceLabel, Counter>,
    repairs: Family<SourceLabel, Counter>,
    last_look: Family<SourceLabel, Gauge>,
    captures: Family<CaptureLabels, Gauge>,
    last_reconcile: Family<SourceLabel, Gauge>,
    next_reconcile: Family<SourceLabel, Gauge>,
    lag: Family<SourceLabel, Gauge>,
    entities: Family<SourceLabel, Gauge>,
    held_removals: Family<SourceLabel, Gauge>,
    rejected: Family<SourceLabel, Gauge>,
}

impl Metrics {
    /// Makes them known under their names.
    pub fn register(&self, registry: &mut Registry) {
        let name = |noun: &str| format!("catalog_bridge_source_{noun}");
        registry.register(name("events"), "Events that a source appended, by cause", self.events.clone());
        registry.register(name("errors"), "Failed attempts of a source", self.errors.clone());
        registry.register(name("gaps"), "Signs of a gap in capture, each followed by a reconcile", self.gaps.clone());
        registry.register(name("reconcile_repairs"), "Events that a reconcile had to add", self.repairs.clone());
        registry.register(
            name("last_look_timestamp_seconds"),
            "When the source last saw everything there was, in seconds since 1970",
            self.last_look.clone(),
        );
        registry.register(name("capture_info"), "1 for the way in which a source captures now", self.captures.clone());
        registry.register(
            name("last_reconcile_timestamp_seconds"),
            "When the last reconcile ended, in seconds since 1970",
            self.last_reconcile.clone(),
        );
        registry.register(
            name("next_reconcile_timestamp_seconds"),
            "When the next reconcile is due, in seconds since 1970",
            self.next_reconcile.clone(),
        );
        registry.register(name("lag_changes"), "Changes of the catalog that are not yet read", self.lag.clone());
        registry.register(name("entities"), "Entities that the log holds of a source", self.entities.clone());
        registry.register(
            name("held_removals"),
            "Removals that the mass removal guard holds back",
            self.held_removals.clone(),
        );
        registry.register(name("rejected_entities"), "Entities that the log cannot take", self.rejected.clone());
    }

    /// The metrics of one source.
    pub(super) fn of(&self, source: &str) -> SourceMetrics {
        SourceMetrics { all: self.clone(), label: SourceLabel { source: source.to_owned() } }
    }
}

/// The metrics of one source.
#[derive(Debug, Clone)]
pub(super) struct SourceMetrics {
    all: Metrics,
    label: SourceLabel,
}

impl SourceMetrics {
    pub(super) fn count_events(&self, cause: &'static str, count: u64) {
        let labels = CauseLabels { source: self.label.source.clone(), cause };
        self.all.events.get_or_create(&labels).inc_by(count);
    }

    pub(super) fn count_error(&self) {
        self.all.errors.get_or_create(&self.label).inc();
    }

    pub(super) fn count_gap(&self) {
        self.all.gaps.get_or_create(&self.label).inc();
    }

    pub(super) fn count_repairs(&self, count: u64) {
        self.all.repairs.get_or_create(&self.label).inc_by(count);
    }

    pub(super) fn set_last_look(&self, seconds: i64) {
        self.all.last_look.get_or_create(&self.label).set(seconds);
    }

    /// Says in which way the source captures, and no longer in another.
    pub(super) fn set_capture(&self, way: &'static str) {
        let labels = CaptureLabels { source: self.label.source.clone(), capture: way };
        if self.all.captures.get(&labels).is_some() {
            return;
        }
        for capture in CAPTURES {
            self.all.captures.remove(&CaptureLabels { source: self.label.source.clone(), capture });
        }
        self.all.captures.get_or_create(&labels).set(1);
    }

    /// When the last reconcile ended and when the next one is due, as far as known.
    pub(super) fn set_reconciles(&self, last: Option<i64>, next: Option<i64>) {
        let set = |family: &Family<SourceLabel, Gauge>, seconds: Option<i64>| {
            if let Some(seconds) = seconds {
                family.get_or_create(&self.label).set(seconds);
            }
        };
        set(&self.all.last_reconcile, last);
        set(&self.all.next_reconcile, next);
    }

    pub(super) fn set_lag(&self, changes: i64) {
        self.all.lag.get_or_create(&self.label).set(changes);
    }

    pub(super) fn set_entities(&self, count: usize) {
        self.all.entities.get_or_create(&self.label).set(gauge(count));
    }

    pub(super) fn set_held_removals(&self, count: usize) {
        self.all.held_removals.get_or_create(&self.label).set(gauge(count));
    }

    pub(super) fn set_rejected(&self, count: usize) {
        self.all.rejected.get_or_create(&self.label).set(gauge(count));
    }
}

fn gauge(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
