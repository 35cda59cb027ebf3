//! `sources`: where changes come from.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;

use catalog_bridge_api::SourceName;
use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::database::DatabaseSection;
use super::refusal::Refusals;
use super::units::{Period, Share};
use crate::source::backstage_db::{self, CaptureChoice, Connect, RemovalGuard};
use crate::source::{Source, SourceKind, files};

/// One source: exactly one of its keys.
#[derive(Debug, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct SourceSection {
    /// Backstage's catalog database (PostgreSQL 13 or newer), read-only.
    backstage_db: Option<BackstageDbSection>,
    /// A directory of `catalog-info.yaml` files, watched.
    files: Option<FilesSection>,
    /// Changes that programs send to `POST …/sources/{source}/changes`.
    ingest: Option<IngestSection>,
}

/// How Backstage's catalog database is read.
#[derive(Debug, Deserialize, schemars::JsonSchema)]
#[schemars(extend("additionalProperties" = false))]
pub(super) struct BackstageDbSection {
    #[serde(flatten)]
    database: DatabaseSection,
    /// The schema of the catalog's tables: `public`, or `catalog` where Backstage divides by schema. Default `public`.
    schema: Option<String>,
    /// The way of capture. `auto` takes `triggers` where `source install` laid them, else `generations` where the catalog has them
    /// (backend 4.0.3 and newer), else `reconcile`. Default `auto`.
    #[serde(default)]
    capture: Capture,
    /// Pause between looks for changes, at least 10ms. Default: 50ms for ten seconds after a change (by `triggers` 10ms), else
    /// 250ms.
    poll_interval: Option<Period>,
    /// Pause between looks for removals; stretched to cost the database less than 1 % of a core. Default 1s.
    removal_interval: Option<Period>,
    /// Pause between reconciles beside `triggers` and `generations`. Default 24h.
    reconcile_interval: Option<Period>,
    /// Pause between reconciles where they are the only way of capture; stretched to less than 1 % of a core. Default 10s.
    reconcile_only_interval: Option<Period>,
    /// Holds removals back until a person confirms them, when more than this share *and* this count of the entities vanish
    /// at once. `off`: never. Default `{ share: 50%, count: 100 }`.
    #[serde(default)]
    removal_guard: GuardSection,
    /// The schema, in the catalog's database, of the outbox that the triggers write; each bridge on one catalog needs one of its
    /// own. Small letters, digits and `_`, at most 40. Default `catalog_bridge`.
    trigger_schema: Option<String>,
    /// The triggers write no more when nobody drained their outbox for so long, at least 1h. Default 7d.
    abandon_after: Option<Period>,
    /// Longest wait for a connection. Default 10s.
    connect_timeout: Option<Period>,
    /// Longest wait for a statement. Default 30s.
    statement_timeout: Option<Period>,
}

/// The way of capture.
#[derive(Debug, Clone, Copy, Default, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
enum Capture {
    #[default]
    Auto,
    Triggers,
    Generations,
    Reconcile,
}

/// A section, or `off`.
#[derive(Debug, Default)]
enum GuardSection {
    #[default]
    Default,
    Off,
    Keys(GuardKeys),
}

/// When a mass removal is held back.
#[derive(Debug, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct GuardKeys {
    /// More than this share of the source's entities. Default 50%.
    share: Share,
    /// And more than so many. Default 100.
    count: u64,
}

/// Which files are read.
#[derive(Debug, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct FilesSection {
    /// A directory, read with everything below it, or one file.
    path: PathBuf,
    /// Pause between looks at everything, beside the watch; at least 1s. Default 30s.
    rescan_interval: Option<Period>,
}

/// Nothing to set yet: `ingest: {}`.
#[derive(Debug, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct IngestSection {}

/// All sources, and the names of those that take changes by HTTP.
pub(super) fn resolve(
    sections: &BTreeMap<String, SourceSection>,
    refusals: &mut Refusals<'_>,
) -> (Vec<Source>, BTreeSet<SourceName>) {
    let sources: Vec<Source> = sections.iter().filter_map(|(name, section)| section.resolve(name, refusals)).collect();
    let is_ingest = |source: &&Source| matches!(source.kind, SourceKind::Ingest);
    let ingest = sources.iter().filter(is_ingest).map(|source| source.name.clone()).collect();
    (sources, ingest)
}

impl SourceSection {
    fn resolve(&self, name: &str, refusals: &mut Refusals<'_>) -> Option<Source> {
        let path = ["sources", name];
        let parsed = SourceName::parse(name).map_err(|error| refusals.add(&path, error.to_string())).ok();
        let kind = match (&self.backstage_db, &self.files, &self.ingest) {
            (Some(section), None, None) => section.resolve(name, refusals)?,
            (None, Some(section), None) => section.resolve(name, refusals),
            (None, None, Some(_)) => SourceKind::Ingest,
            (None, None, None) => {
                refusals.add(&path, "names no source; write one of backstage-db, files, ingest");
                return None;
            }
            _ => {
                refusals.add(&path, "names more than one source; give each a name of its own");
                return None;
            }
        };
        Some(Source { name: parsed?, kind })
    }
}

impl BackstageDbSection {
    fn resolve(&self, name: &str, refusals: &mut Refusals<'_>) -> Option<SourceKind> {
        let path = ["sources", name, "backstage-db"];
        if self.poll_interval.is_some_and(|Period(interval)| interval.as_millis() < 10) {
            refusals.add(&[&path[..], &["poll_interval"]].concat(), "must be at least 10ms");
        }
        let database = self.database.resolve(&path, refusals)?;
        let mut settings = backstage_db::Settings::new(Connect::new(move || database.options()));
        let set = |value: &mut std::time::Duration, period: Option<Period>| {
            if let Some(Period(period)) = period {
                *value = period;
            }
        };
        set(&mut settings.removal_interval, self.removal_interval);
        set(&mut settings.reconcile_interval, self.reconcile_interval);
        set(&mut settings.reconcile_only_interval, self.reconcile_only_interval);
        set(&mut settings.connect_timeout, self.connect_timeout);
        set(&mut settings.statement_timeout, self.statement_timeout);
        settings.poll_interval = self.poll_interval.map(|Period(interval)| interval);
        if let Some(schema) = &self.schema {
            settings.schema.clone_from(schema);
        }
        if let Some(name) = &self.trigger_schema {
            if !is_plain(name) {
                let message = "must be small letters, digits and _, beginning with a letter, at most 40";
                refusals.add(&[&path[..], &["trigger_schema"]].concat(), message);
            }
            settings.trigger_schema.clone_from(name);
        }
        if self.abandon_after.is_some_and(|Period(period)| period.as_secs() < 3_600) {
            refusals.add(&[&path[..], &["abandon_after"]].concat(), "must be at least 1h");
        }
        set(&mut settings.abandon_after, self.abandon_after);
        settings.capture = match self.capture {
            Capture::Auto => CaptureChoice::Auto,
            Capture::Triggers => CaptureChoice::Triggers,
            Capture::Generations => CaptureChoice::Generations,
            Capture::Reconcile => CaptureChoice::Reconcile,
        };
        settings.removal_guard = match &self.removal_guard {
            GuardSection::Default => Some(RemovalGuard::default()),
            GuardSection::Off => None,
            GuardSection::Keys(keys) => Some(RemovalGuard { share: keys.share.0, count: keys.count }),
        };
        Some(SourceKind::BackstageDb(settings))
    }
}

/// A name that needs no quotes anywhere: it is part of the names of triggers and of a setting.
fn is_plain(name: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    name.len() <= 40
        && name.bytes().all(is_allowed)
        && name.bytes().next().is_some_and(|byte| byte.is_ascii_lowercase())
}

impl FilesSection {
    fn resolve(&self, name: &str, refusals: &mut Refusals<'_>) -> SourceKind {
        let mut settings = files::Settings::new(&self.path);
        if let Some(Period(interval)) = self.rescan_interval {
            if interval.as_secs() < 1 {
                refusals.add(&["sources", name, "files", "rescan_interval"], "must be at least 1s");
            }
            settings.rescan_interval = interval;
        }
        SourceKind::Files(settings)
    }
}

impl Default for GuardKeys {
    fn default() -> Self {
        let RemovalGuard { share, count } = RemovalGuard::default();
        GuardKeys { share: Share(share), count }
    }
}

impl<'de> Deserialize<'de> for GuardSection {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(GuardVisitor)
    }
}

struct GuardVisitor;

impl<'de> Visitor<'de> for GuardVisitor {
    type Value = GuardSection;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("off, or share and count")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<GuardSection, E> {
        match text {
            "off" => Ok(GuardSection::Off),
            _ => Err(E::custom("write off, or { share: 50%, count: 100 }")),
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<GuardSection, A::Error> {
        GuardKeys::deserialize(MapAccessDeserializer::new(map)).map(GuardSection::Keys)
    }
}

impl schemars::JsonSchema for GuardSection {
    fn schema_name() -> Cow<'static, str> {
        "GuardSection".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        let keys = generator.subschema_for::<GuardKeys>();
        schemars::json_schema!({ "anyOf": [{ "const": "off", "description": "Removals are never held back." }, keys] })
    }
}
