//! How far a catalog was read: the position that the log stores with each append.

use catalog_bridge_api::JsonText;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::incarnation::{Identity, Incarnation};
use super::triggers::outbox::Drain;
use crate::source::owner::SourceError;

/// The checkpoint of a catalog.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Position {
    /// The way of capture that it belongs to.
    pub(super) way: Way,
    /// Every row with a generation up to here was read; 0 where there are none.
    pub(super) generation: i64,
    /// By triggers: how far their outbox was read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) drain: Option<Drain>,
    /// Which server process and table that was.
    pub(super) identity: Identity,
    /// Which database that was, across restarts.
    pub(super) incarnation: Incarnation,
    /// A reconcile under way; capture is not caught up before its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) reconcile: Option<Progress>,
    /// So many removals are held back by the guard: whoever goes on finds and holds them again, until they are confirmed.
    #[serde(default)]
    pub(super) holding: u64,
    /// The last one that ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) last_reconcile: Option<Outcome>,
    /// Signs that capture may have missed something, since the source began.
    #[serde(default)]
    pub(super) gaps: Gaps,
}

/// Signs of a gap; each was followed by a reconcile.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Gaps {
    pub(super) count: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) last: Option<Gap>,
}

/// One sign of a gap.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Gap {
    pub(super) reason: String,
    pub(super) noticed_at: DateTime<Utc>,
}

/// A way of capture.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Way {
    /// By triggers of our own.
    Triggers,
    /// By the numbers given at commit.
    Generations,
    /// By comparing everything.
    Reconcile,
}

impl Way {
    /// As the config and the status call it.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Way::Triggers => "triggers",
            Way::Generations => "generations",
            Way::Reconcile => "reconcile",
        }
    }
}

/// How far a reconcile came.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Progress {
    /// Why it was begun.
    pub(super) reason: String,
    /// Something may have been missed: until its end the source does not count as caught up.
    pub(super) is_gap: bool,
    /// When.
    pub(super) started_at: DateTime<Utc>,
    /// The last ref compared, in the catalog's own order; `None` at the beginning.
    pub(super) after: Option<String>,
    /// True when all of the catalog was compared, and what the log holds beyond it is looked up.
    pub(super) sweeping: bool,
    /// Refs compared.
    pub(super) compared: u64,
    /// Events that it had to add.
    pub(super) repaired: u64,
}

/// What a reconcile did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Outcome {
    pub(super) reason: String,
    pub(super) started_at: DateTime<Utc>,
    pub(super) ended_at: DateTime<Utc>,
    pub(super) compared: u64,
    pub(super) repaired: u64,
}

impl Progress {
    pub(super) fn begin(reason: impl Into<String>, is_gap: bool) -> Self {
        Progress {
            reason: reason.into(),
            is_gap,
            started_at: Utc::now(),
            after: None,
            sweeping: false,
            compared: 0,
            repaired: 0,
        }
    }
}

impl Gaps {
    pub(super) fn note(&mut self, reason: &str) {
        self.count += 1;
        self.last = Some(Gap { reason: reason.to_owned(), noticed_at: Utc::now() });
    }
}

impl Position {
    /// What an earlier process stored; `None` when it is not ours to read (an unknown format).
    pub(super) fn parse(text: &JsonText) -> Option<Self> {
        serde_json::from_str(text.as_str()).ok()
    }

    pub(super) fn to_json(&self) -> Result<JsonText, SourceError> {
        let text = serde_json::to_string(self).map_err(|error| SourceError::Reopen(error.to_string()))?;
        Ok(JsonText::from_trusted(text))
    }
}
