use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::{EntityRef, JsonText, Offset};

/// What happened to an entity; decided by the log from what it holds, never by a source (promise P2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum EventType {
    /// The entity was not there before.
    Added,
    /// The entity was there with another content.
    Updated,
    /// The entity is gone.
    Removed,
}

impl EventType {
    /// `added`, `updated` or `removed`.
    pub const fn as_str(self) -> &'static str {
        match self {
            EventType::Added => "added",
            EventType::Updated => "updated",
            EventType::Removed => "removed",
        }
    }

    /// The type with this name.
    pub fn parse(text: &str) -> Option<Self> {
        [EventType::Added, EventType::Updated, EventType::Removed].into_iter().find(|known| known.as_str() == text)
    }
}

/// How the log learned of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Cause {
    /// Seen as it happened.
    Capture,
    /// Found by comparing the catalog with the log.
    Reconcile,
    /// Told by HTTP.
    Ingest,
}

impl Cause {
    /// `capture`, `reconcile` or `ingest`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Cause::Capture => "capture",
            Cause::Reconcile => "reconcile",
            Cause::Ingest => "ingest",
        }
    }

    /// The cause with this name.
    pub fn parse(text: &str) -> Option<Self> {
        [Cause::Capture, Cause::Reconcile, Cause::Ingest].into_iter().find(|known| known.as_str() == text)
    }
}

/// Why a view shows an event that the log holds otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// The entity still exists and no longer matches the filter.
    LeftFilter,
}

/// The JSON paths in which an update differs from the state before it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Changed {
    /// Dotted paths, such as `spec.owner`; at most 32, sorted. Keys that hold a dot are written `metadata.annotations.a.b/c`.
    pub paths: Vec<String>,
    /// True when there were more than 32: then any path may have changed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub truncated: bool,
}

/// One event of the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Event {
    /// Its place in the log.
    pub offset: Offset,
    /// What happened.
    #[serde(rename = "type")]
    pub event_type: EventType,
    /// To which entity.
    pub entity_ref: EntityRef,
    /// The entity's `metadata.uid`, where it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
    /// The entity after the change; absent in removals and after a redaction.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entity: Option<JsonText>,
    /// What an update changed; absent in other types.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changed: Option<Changed>,
    /// Why a view shows this event otherwise than the log holds it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// When the source says that it happened; else as `recordedAt`.
    pub occurred_at: DateTime<Utc>,
    /// When it was appended, by the store's clock.
    pub recorded_at: DateTime<Utc>,
    /// How the log learned of it.
    pub cause: Cause,
    /// That entity's event before this one; absent for `added`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous_offset: Option<Offset>,
}
