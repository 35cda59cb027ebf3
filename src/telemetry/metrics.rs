//! All metrics of the daemon in one place: what `/metrics` shows and what `docs/metrics.md` says cannot differ.
//!
//! The rooms define theirs; here they are registered, beside those of the process itself.

use std::fmt::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Metric, Registry as Registered};

/// What the rooms register at: Prometheus' registry that also remembers what was registered, for the documentation.
#[derive(Debug, Default)]
pub struct Registry {
    registered: Registered,
    entries: Vec<Entry>,
}

#[derive(Debug)]
struct Entry {
    name: String,
    help: String,
    kind: String,
}

impl Registry {
    /// Adds a metric. Counters get `_total` after their name, info metrics `_info`.
    pub fn register(&mut self, name: impl Into<String>, help: impl Into<String>, metric: impl Metric) {
        let (name, help) = (name.into(), help.into());
        self.entries.push(Entry {
            name: name.clone(),
            help: help.clone(),
            kind: metric.metric_type().as_str().to_owned(),
        });
        self.registered.register(name, help, metric);
    }

    /// What `/metrics` is written from.
    pub fn into_registered(self) -> Registered {
        self.registered
    }

    fn markdown(&self) -> String {
        let mut entries: Vec<&Entry> = self.entries.iter().collect();
        entries.sort_by_key(|entry| &entry.name);
        let mut page = INTRODUCTION.to_owned();
        for entry in entries {
            let suffix = match entry.kind.as_str() {
                "counter" => "_total",
                "info" => "_info",
                _ => "",
            };
            let _ = writeln!(page, "| `{}{suffix}` | {} | {}. |", entry.name, entry.kind, entry.help);
        }
        page
    }
}

const INTRODUCTION: &str = "\
# Metrics

<!-- Made from the metrics that the rooms register by `catalog-bridge schema --metrics`; edit their help texts. -->

`GET /metrics` on the readers' listener, in the OpenMetrics format of Prometheus. A histogram has `_bucket`, `_sum` and `_count`.

| metric | type | meaning |
| --- | --- | --- |
";

/// What all rooms count.
#[derive(Clone)]
#[expect(missing_docs, reason = "each is the room's own")]
pub struct Metrics {
    pub store: crate::store::Metrics,
    pub source: crate::source::Metrics,
    pub delivery: crate::delivery::Metrics,
    pub http: crate::http::Metrics,
}

impl Metrics {
    /// The metrics of all rooms and of the process, registered.
    pub fn register(registry: &mut Registry) -> Metrics {
        let metrics = Metrics {
            store: crate::store::Metrics::default(),
            source: crate::source::Metrics::default(),
            delivery: crate::delivery::Metrics::new(),
            http: crate::http::Metrics::default(),
        };
        metrics.store.register(registry);
        metrics.source.register(registry);
        metrics.delivery.register(registry);
        metrics.http.register(registry);
        let build = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("catalog_bridge_build", "The running release", build);
        Process::register(registry);
        metrics
    }
}

/// The page `docs/metrics.md`.
pub fn markdown() -> String {
    let mut registry = Registry::default();
    Metrics::register(&mut registry);
    registry.markdown()
}

/// This process, looked at when it is asked. Its names are those that every Prometheus client uses.
#[derive(Debug)]
struct Process {
    started_at: f64,
}

const RESIDENT: (&str, &str) = ("process_resident_memory_bytes", "Memory of this process that is in RAM, in bytes");
const FILES: (&str, &str) = ("process_open_fds", "Files and sockets that this process holds open");
const STARTED: (&str, &str) = ("process_start_time_seconds", "When this process started, in seconds since 1970");

impl Process {
    fn register(registry: &mut Registry) {
        for (name, help) in [RESIDENT, FILES, STARTED] {
            registry.entries.push(Entry { name: name.to_owned(), help: help.to_owned(), kind: "gauge".to_owned() });
        }
        let started_at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        registry.registered.register_collector(Box::new(Process { started_at }));
    }
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let mut write = |(name, help): (&str, &str), value: f64| {
            let gauge = ConstGauge::new(value);
            gauge.encode(encoder.encode_descriptor(name, help.trim_end_matches('.'), None, gauge.metric_type())?)
        };
        if let Some(bytes) = resident_bytes() {
            write(RESIDENT, bytes)?;
        }
        if let Ok(files) = std::fs::read_dir("/proc/self/fd") {
            write(FILES, files.count() as f64)?;
        }
        write(STARTED, self.started_at)
    }
}

/// As Linux tells it; elsewhere unknown.
fn resident_bytes() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_process_tells_its_memory_and_its_release() {
        let mut registry = Registry::default();
        Metrics::register(&mut registry);

        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry.into_registered()).expect("encoded");

        for part in
            ["process_resident_memory_bytes ", "process_start_time_seconds ", "catalog_bridge_build_info{version="]
        {
            assert!(text.contains(part), "{part} is missing:\n{text}");
        }
    }

    #[test]
    fn names_say_whose_they_are_and_help_has_no_full_stop() {
        let mut registry = Registry::default();
        Metrics::register(&mut registry);

        for Entry { name, help, .. } in &registry.entries {
            assert!(name.starts_with("catalog_bridge_") || name.starts_with("process_"), "{name}");
            assert!(!name.ends_with("_total") && !help.ends_with('.') && !help.is_empty(), "{name}: {help}");
        }
    }
}
