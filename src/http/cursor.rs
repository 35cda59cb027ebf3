use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use catalog_bridge_api::{EntityRef, Offset};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::problem::{Kind, Problem};
use crate::filter::View;

/// Where a walk over `/entities` goes on. Opaque to clients and not signed: whatever stands in it, its reader sees nothing
/// but what the request's own token and filter show.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Cursor {
    /// The walk's offset.
    #[serde(rename = "s")]
    pub(super) at: Offset,
    #[serde(rename = "l")]
    pub(super) log_id: Uuid,
    #[serde(rename = "a")]
    pub(super) after: EntityRef,
    /// Of the filters, so that a walk is not continued with others by mistake.
    #[serde(rename = "f")]
    view: String,
}

impl Cursor {
    pub(super) fn new(at: Offset, log_id: Uuid, after: EntityRef, view: &View) -> Cursor {
        Cursor { at, log_id, after, view: fingerprint(view) }
    }

    pub(super) fn encode(&self) -> String {
        URL_SAFE_NO_PAD.encode(serde_json::to_vec(self).unwrap_or_default())
    }

    pub(super) fn decode(text: &str, view: &View) -> Result<Cursor, Problem> {
        let decoded = URL_SAFE_NO_PAD.decode(text).ok();
        let Some(cursor) = decoded.and_then(|json| serde_json::from_slice::<Cursor>(&json).ok()) else {
            let detail = "cursor is not one that we gave; begin without cursor, and send nextCursor back as it came";
            return Err(Problem::of_field(Kind::InvalidParameter, "cursor", detail));
        };
        if cursor.view != fingerprint(view) {
            let detail =
                "cursor belongs to a walk with another filter; repeat the filter of the first page on each page";
            return Err(Problem::of_field(Kind::InvalidParameter, "cursor", detail));
        }
        Ok(cursor)
    }
}

fn fingerprint(view: &View) -> String {
    URL_SAFE_NO_PAD.encode(&Sha256::digest(view.describe().as_bytes())[..8])
}
