//! `log`: where the event log is kept, and for how long.

use std::borrow::Cow;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use catalog_bridge_api::Secret;
use serde::de::value::{MapAccessDeserializer, StrDeserializer};
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::database::{Database, DatabaseSection};
use super::refusal::Refusals;
use super::units::{Period, Size};
use crate::store::{Backend, PostgresSettings, RetentionPolicy, Settings};

/// A URL, or a section.
#[derive(Debug)]
pub(super) enum LogSection {
    Url(Secret),
    Keys(Box<LogKeys>),
}

/// Where the event log is kept: a PostgreSQL database of its own, which replicas share, or a SQLite file for one process.
#[derive(Debug, Default, Deserialize, schemars::JsonSchema)]
#[schemars(extend("additionalProperties" = false))]
#[serde(default)]
pub(super) struct LogKeys {
    #[serde(flatten)]
    database: DatabaseSection,
    /// The schema of the log's tables; made when it is not there. Default `catalog_bridge`.
    schema: Option<String>,
    /// A direct connection for LISTEN, where `url` leads through PgBouncer. Without it, other replicas' appends are noticed by
    /// polling, within 250 ms.
    listen_url: Option<Secret>,
    /// Most connections of this process, 2 to 1000. Default 10.
    #[schemars(range(min = 2, max = 1000))]
    connections_max: Option<u32>,
    /// Most bytes of committed events that this process keeps in memory for live readers and sinks. Default 64MiB, at least 1MiB.
    tail: Option<Size>,
    /// What is kept, and for how long. A live entity's last event is always kept.
    retention: RetentionSection,
}

/// What the log keeps.
#[derive(Debug, Default, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RetentionSection {
    /// Events older than this may be deleted. Default 30d.
    age: Option<Period>,
    /// At most so many bytes of what may be deleted; a sink left further behind expires. Default 5GiB.
    bytes: Option<Size>,
    /// At most so many events of what may be deleted. Default: no limit.
    events: Option<u64>,
    /// How long the removal of an entity is kept. Default 365d.
    removals: Option<Period>,
}

impl LogSection {
    pub(super) fn resolve(&self, refusals: &mut Refusals<'_>) -> Option<(Settings, RetentionPolicy)> {
        let keys = match self {
            LogSection::Url(url) => {
                return Some((Settings::new(backend(url, &["log"], refusals)?), retention_of(None)));
            }
            LogSection::Keys(keys) => keys,
        };
        let retention = retention_of(Some(&keys.retention));
        let mut settings = Settings::new(keys.backend(refusals)?);
        if let Some(Size(bytes)) = keys.tail {
            if bytes < 1 << 20 {
                refusals.add(&["log", "tail"], "must be at least 1MiB");
            }
            settings.tail_bytes_max = usize::try_from(bytes).unwrap_or(usize::MAX);
        }
        Some((settings, retention))
    }
}

impl LogKeys {
    fn backend(&self, refusals: &mut Refusals<'_>) -> Option<Backend> {
        let backend = match &self.database.url {
            Some(url) if sqlite_path(url).is_some() => backend(url, &["log", "url"], refusals)?,
            _ => postgres(self.database.resolve(&["log"], refusals)?),
        };
        match backend {
            Backend::Postgres(mut postgres) => {
                if let Some(schema) = &self.schema {
                    let is_name =
                        schema.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
                            && schema.bytes().next().is_some_and(|byte| !byte.is_ascii_digit())
                            && schema.len() <= 63;
                    if !is_name {
                        refusals.add(&["log", "schema"], "use 1 to 63 lower-case letters, digits and underscores");
                    }
                    postgres.schema.clone_from(schema);
                }
                postgres.listen_url.clone_from(&self.listen_url);
                if let Some(url) = &self.listen_url {
                    Database::from_url(url, &["log", "listen_url"], refusals);
                }
                postgres.connections_max = self.connections_max.unwrap_or(postgres.connections_max);
                Some(Backend::Postgres(postgres))
            }
            sqlite @ Backend::Sqlite { .. } => {
                for (key, is_there) in [
                    ("schema", self.schema.is_some()),
                    ("listen_url", self.listen_url.is_some()),
                    ("connections_max", self.connections_max.is_some()),
                ] {
                    if is_there {
                        refusals.add(&["log", key], "only a PostgreSQL log has this; remove it");
                    }
                }
                Some(sqlite)
            }
        }
    }
}

fn backend(url: &Secret, path: &[&str], refusals: &mut Refusals<'_>) -> Option<Backend> {
    match sqlite_path(url) {
        Some(file) if file.as_os_str().is_empty() || file.as_os_str() == ":memory:" => {
            refusals.add(path, "names no file; write sqlite:///var/lib/catalog-bridge/log.db");
            None
        }
        Some(file) => Some(Backend::Sqlite { path: file }),
        None if is_url(url) => Some(postgres(Database::from_url(url, path, refusals)?)),
        None => {
            refusals.add(
                path,
                "this is no log; write postgres://user@host/database, or sqlite:///var/lib/catalog-bridge/log.db",
            );
            None
        }
    }
}

fn postgres(database: Database) -> Backend {
    let mut settings = PostgresSettings::new(database.url);
    settings.password = database.password;
    Backend::Postgres(settings)
}

fn is_url(url: &Secret) -> bool {
    url.is_file() || url.open().is_ok_and(|text| text.starts_with("postgres://") || text.starts_with("postgresql://"))
}

/// The file of `sqlite:///absolute`, `sqlite://relative` or `sqlite:either`.
fn sqlite_path(url: &Secret) -> Option<PathBuf> {
    if url.is_file() {
        return None;
    }
    let text = url.open().ok()?;
    let path = text.strip_prefix("sqlite:")?;
    Some(PathBuf::from(path.strip_prefix("//").unwrap_or(path)))
}

fn retention_of(section: Option<&RetentionSection>) -> RetentionPolicy {
    const DAY: Duration = Duration::from_secs(24 * 60 * 60);
    RetentionPolicy {
        age: section.and_then(|section| section.age).map_or(30 * DAY, |Period(age)| age),
        bytes: section.and_then(|section| section.bytes).map_or(5 << 30, |Size(bytes)| bytes),
        events: section.and_then(|section| section.events),
        removals: section.and_then(|section| section.removals).map_or(365 * DAY, |Period(period)| period),
    }
}

impl<'de> Deserialize<'de> for LogSection {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(LogVisitor)
    }
}

struct LogVisitor;

impl<'de> Visitor<'de> for LogVisitor {
    type Value = LogSection;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a database URL or a section of keys")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<LogSection, E> {
        Secret::deserialize(StrDeserializer::new(text)).map(LogSection::Url)
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<LogSection, A::Error> {
        LogKeys::deserialize(MapAccessDeserializer::new(map)).map(|keys| LogSection::Keys(Box::new(keys)))
    }
}

impl schemars::JsonSchema for LogSection {
    fn schema_name() -> Cow<'static, str> {
        "LogSection".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        let secret = generator.subschema_for::<Secret>();
        let keys = generator.subschema_for::<LogKeys>();
        schemars::json_schema!({ "anyOf": [secret, keys] })
    }
}
