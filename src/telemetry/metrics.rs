//! What the rooms register their metrics at, and the metrics of the process itself.
//!
//! What `/metrics` shows and what `docs/metrics.md` says come from one registration, so they cannot differ. Knows nothing of
//! what the rooms measure.

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

    /// Adds the metrics of this process.
    pub fn register_process(&mut self) {
        self.register(
            "catalog_bridge_build",
            "The running release",
            Info::new([("version", env!("CARGO_PKG_VERSION"))]),
        );
        Process::register(self);
    }

    /// What `/metrics` is written from.
    pub fn into_registered(self) -> Registered {
        self.registered
    }

    /// The page `docs/metrics.md`.
    pub fn markdown(&self) -> String {
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
        registry.register_process();
        let page = registry.markdown();

        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry.into_registered()).expect("encoded");

        for name in ["process_resident_memory_bytes", "process_start_time_seconds", "catalog_bridge_build_info"] {
            assert!(text.contains(name), "{name} is missing:\n{text}");
            assert!(page.contains(&format!("| `{name}` |")), "{name} is missing:\n{page}");
        }
    }
}
