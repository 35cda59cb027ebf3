use std::time::Duration;

use crate::telemetry::metrics::Registry;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;

use crate::telemetry::ConsumerState;

/// Every state's name, as [`ConsumerState`] serializes it.
const STATES: [&str; 11] = [
    "starting",
    "standby",
    "running",
    "snapshot",
    "paused",
    "retrying",
    "stalled",
    "blocked",
    "misconfigured",
    "diverged",
    "expired",
];
const STORE_AWAY: &str = "store-away";

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SinkLabel {
    sink: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabels {
    sink: String,
    state: &'static str,
}

/// What delivery counts. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Metrics {
    acknowledged: Family<SinkLabel, Counter>,
    already_stored: Family<SinkLabel, Counter>,
    retries: Family<SinkLabel, Counter>,
    skipped: Family<SinkLabel, Counter>,
    references: Family<SinkLabel, Counter>,
    panics: Family<SinkLabel, Counter>,
    tail_losses: Family<SinkLabel, Counter>,
    lag_events: Family<SinkLabel, Gauge>,
    lag_seconds: Family<SinkLabel, Gauge>,
    checkpoint: Family<SinkLabel, Gauge>,
    in_flight: Family<SinkLabel, Gauge>,
    state: Family<StateLabels, Gauge>,
    latency: Family<SinkLabel, Histogram, fn() -> Histogram>,
}

impl Metrics {
    /// Metrics that nobody sees until they are registered.
    pub fn new() -> Self {
        Metrics {
            acknowledged: Family::default(),
            already_stored: Family::default(),
            retries: Family::default(),
            skipped: Family::default(),
            references: Family::default(),
            panics: Family::default(),
            tail_losses: Family::default(),
            lag_events: Family::default(),
            lag_seconds: Family::default(),
            checkpoint: Family::default(),
            in_flight: Family::default(),
            state: Family::default(),
            latency: Family::new_with_constructor(latency_histogram),
        }
    }

    /// Makes them visible.
    pub fn register(&self, registry: &mut Registry) {
        let counters = [
            ("acknowledged_events", "Events that the sink's destination stored durably", &self.acknowledged),
            ("already_stored_events", "Events found in the destination when a session began", &self.already_stored),
            ("retries", "Sessions that ended in an error and were tried again", &self.retries),
            ("skipped_events", "Events passed over with a record, because the destination refuses them", &self.skipped),
            ("references", "Oversize events sent as a reference", &self.references),
            ("panics", "Times that the sink's worker was restarted after a panic", &self.panics),
            (
                "tail_losses",
                "Times that the destination lost acknowledged events and the checkpoint went back to what it holds",
                &self.tail_losses,
            ),
        ];
        for (name, help, family) in counters {
            registry.register(format!("catalog_bridge_sink_{name}"), help, family.clone());
        }
        let gauges = [
            ("lag_events", "Events of the log after the sink's checkpoint", &self.lag_events),
            ("lag_seconds", "Age of the oldest event that is not acknowledged, 0 when caught up", &self.lag_seconds),
            ("checkpoint", "The acknowledged prefix: the offset up to which everything is delivered", &self.checkpoint),
            ("in_flight_events", "Events that are with the destination and not yet acknowledged", &self.in_flight),
        ];
        for (name, help, family) in gauges {
            registry.register(format!("catalog_bridge_sink_{name}"), help, family.clone());
        }
        registry.register("catalog_bridge_sink_state", "1 for the state that the sink is in", self.state.clone());
        registry.register(
            "catalog_bridge_sink_delivery_duration_seconds",
            "From the append to the log until the destination's acknowledgement (walks left out)",
            self.latency.clone(),
        );
    }

    pub(super) fn of(&self, sink: &str) -> SinkMetrics {
        let label = SinkLabel { sink: sink.to_owned() };
        SinkMetrics {
            acknowledged: self.acknowledged.get_or_create(&label).clone(),
            already_stored: self.already_stored.get_or_create(&label).clone(),
            retries: self.retries.get_or_create(&label).clone(),
            skipped: self.skipped.get_or_create(&label).clone(),
            references: self.references.get_or_create(&label).clone(),
            panics: self.panics.get_or_create(&label).clone(),
            tail_losses: self.tail_losses.get_or_create(&label).clone(),
            lag_events: self.lag_events.get_or_create(&label).clone(),
            lag_seconds: self.lag_seconds.get_or_create(&label).clone(),
            checkpoint: self.checkpoint.get_or_create(&label).clone(),
            in_flight: self.in_flight.get_or_create(&label).clone(),
            latency: self.latency.get_or_create(&label).clone(),
            states: self.state.clone(),
            sink: sink.to_owned(),
        }
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Metrics::new()
    }
}

/// From a millisecond to a minute.
fn latency_histogram() -> Histogram {
    Histogram::new([0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0])
}

/// One sink's metrics, looked up once.
#[derive(Debug, Clone)]
pub(super) struct SinkMetrics {
    pub(super) acknowledged: Counter,
    pub(super) already_stored: Counter,
    pub(super) retries: Counter,
    pub(super) skipped: Counter,
    pub(super) references: Counter,
    pub(super) panics: Counter,
    pub(super) tail_losses: Counter,
    pub(super) lag_events: Gauge,
    pub(super) lag_seconds: Gauge,
    pub(super) checkpoint: Gauge,
    pub(super) in_flight: Gauge,
    latency: Histogram,
    states: Family<StateLabels, Gauge>,
    sink: String,
}

impl SinkMetrics {
    pub(super) fn delivered_after(&self, delay: Duration) {
        self.latency.observe(delay.as_secs_f64());
    }

    pub(super) fn show(&self, state: &ConsumerState) {
        let now = name_of(state);
        for state in STATES.into_iter().chain([STORE_AWAY]) {
            let labels = StateLabels { sink: self.sink.clone(), state };
            self.states.get_or_create(&labels).set(i64::from(state == now));
        }
    }
}

/// The state's name as it is serialized.
pub(super) fn name_of(state: &ConsumerState) -> &'static str {
    match state {
        ConsumerState::Starting => "starting",
        ConsumerState::Standby { .. } => "standby",
        ConsumerState::Running | ConsumerState::RemovalsHeld { .. } => "running",
        ConsumerState::Snapshot { .. } => "snapshot",
        ConsumerState::Paused => "paused",
        ConsumerState::Retrying { .. } => "retrying",
        ConsumerState::Stalled { .. } => "stalled",
        ConsumerState::Blocked { .. } => "blocked",
        ConsumerState::Misconfigured { .. } => "misconfigured",
        ConsumerState::Diverged { .. } => "diverged",
        ConsumerState::Expired => "expired",
        ConsumerState::StoreAway { .. } => STORE_AWAY,
    }
}
