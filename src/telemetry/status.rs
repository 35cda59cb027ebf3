use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use catalog_bridge_api::{EntityRef, Offset};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::store::ConsumerKind;

/// What a source or sink is doing. Every state names what it waits for; `help` in [`ConsumerStatus`] holds the command that
/// leads out of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case", rename_all_fields = "camelCase")]
pub enum ConsumerState {
    /// Not yet begun.
    Starting,
    /// Another replica owns the lease.
    Standby {
        /// Who.
        owner: String,
    },
    /// At work or waiting for events.
    Running,
    /// A walk over the live state, or a first reconcile, is under way.
    Snapshot {
        /// For a person: how far.
        progress: String,
    },
    /// An operator's pause.
    Paused,
    /// Trouble that is tried again for ever.
    Retrying {
        /// Since when nothing went through.
        since: DateTime<Utc>,
        /// How often it was tried.
        attempts: u32,
        /// In the destination's words.
        error: String,
    },
    /// The destination accepts nothing for now, without an error (RabbitMQ's `connection.blocked`).
    Stalled {
        /// Since when.
        since: DateTime<Utc>,
        /// In the destination's words.
        reason: String,
    },
    /// The destination refuses this event for good.
    Blocked {
        /// The event.
        offset: Offset,
        /// Its entity.
        entity_ref: EntityRef,
        /// In the destination's words.
        reason: String,
    },
    /// Settings, credentials or topology have to change; looked at again each minute.
    Misconfigured {
        /// What is wrong.
        reason: String,
    },
    /// Somebody else writes to the destination.
    Diverged {
        /// What was seen.
        reason: String,
    },
    /// Retention passed its checkpoint.
    Expired,
    /// Removals are held back by the mass removal guard; adds and updates flow on.
    RemovalsHeld {
        /// How many.
        count: u64,
    },
    /// The bridge's own store is away.
    StoreAway {
        /// In the database's words.
        error: String,
    },
}

/// One source or sink, as `/status` and `catalog-bridge status` show it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ConsumerStatus {
    /// What it does.
    #[serde(flatten)]
    pub state: ConsumerState,
    /// The key that chose it, such as `kafka` or `backstage-db`.
    pub protocol: String,
    /// Of a sink: the acknowledged prefix.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<Offset>,
    /// Of a sink: events after the checkpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lag_events: Option<u64>,
    /// Seconds since the oldest unprocessed change was made, 0 when caught up; of a source: since the last completed look.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lag_seconds: Option<u64>,
    /// Whatever else the room wants to show, as an object.
    #[serde(default, skip_serializing_if = "serde_json::Value::is_null")]
    pub detail: serde_json::Value,
    /// Commands that lead out of the state, ready to be copied.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub help: Vec<String>,
}

/// The states of this process's sources and sinks. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct StatusBoard {
    rows: Arc<RwLock<BTreeMap<(&'static str, String), ConsumerStatus>>>,
}

impl StatusBoard {
    /// Publishes a state; the last one counts.
    pub fn publish(&self, kind: ConsumerKind, name: &str, status: ConsumerStatus) {
        self.rows.write().unwrap_or_else(PoisonError::into_inner).insert((kind.as_str(), name.to_owned()), status);
    }

    /// One state.
    pub fn get(&self, kind: ConsumerKind, name: &str) -> Option<ConsumerStatus> {
        self.rows.read().unwrap_or_else(PoisonError::into_inner).get(&(kind.as_str(), name.to_owned())).cloned()
    }

    /// All states of a kind by name.
    pub fn all(&self, kind: ConsumerKind) -> Vec<(String, ConsumerStatus)> {
        let rows = self.rows.read().unwrap_or_else(PoisonError::into_inner);
        rows.iter()
            .filter(|((row, _), _)| *row == kind.as_str())
            .map(|((_, name), status)| (name.clone(), status.clone()))
            .collect()
    }
}
