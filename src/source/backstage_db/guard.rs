//! Removals that are held back because there are too many at once to believe.
//!
//! Adds and updates flow on meanwhile. The removals go on when a person confirms them, and are forgotten one by one when
//! their entities return. Only how many there are is durable (`holding` in the position): whoever owns the source next
//! finds and holds them again.

use std::collections::{BTreeMap, HashSet};

use catalog_bridge_api::EntityRef;
use serde::Serialize;

use super::ref_hash::ref_hash;
use crate::store::{Store, StoreError};

/// Where Backstage says an entity comes from in the end.
const ORIGIN: &str = "backstage.io/managed-by-origin-location";
/// Refs whose origin is looked up.
const LOOKED_UP_MAX: usize = 2_000;
/// Refs shown per origin.
const SHOWN_MAX: usize = 20;
/// Origins shown; further ones are counted together.
const ORIGINS_MAX: usize = 50;
/// The name for what was not looked up or names no origin.
const OTHER: &str = "other";

/// The removals held back now.
#[derive(Debug, Default)]
pub(super) struct HeldRemovals {
    refs: HashSet<i64>,
    by_origin: BTreeMap<String, Origin>,
    /// Whether this process looked by itself; until then it knows only how many there were (`holding`).
    pub(super) is_known: bool,
}

/// What vanished of one origin.
#[derive(Debug, Default, Serialize)]
pub(super) struct Origin {
    count: u64,
    /// The first few.
    refs: Vec<String>,
}

impl HeldRemovals {
    /// Holds these removals back: all hashes, and as many refs as were kept, to be shown by origin.
    pub(super) async fn hold(refs: HashSet<i64>, known: &[String], store: &dyn Store) -> Result<Self, StoreError> {
        let mut by_origin: BTreeMap<String, Origin> = BTreeMap::new();
        for text in known.iter().take(LOOKED_UP_MAX) {
            let origin = match EntityRef::parse(text) {
                Ok(entity_ref) => {
                    store.latest(&entity_ref).await?.and_then(|entry| origin(entry.event.entity?.as_str()))
                }
                Err(_) => None,
            };
            let origin = origin.unwrap_or_else(|| OTHER.to_owned());
            let is_listed = by_origin.len() < ORIGINS_MAX || by_origin.contains_key(&origin);
            let shown = by_origin.entry(if is_listed { origin } else { OTHER.to_owned() }).or_default();
            shown.count += 1;
            if shown.refs.len() < SHOWN_MAX {
                shown.refs.push(text.clone());
            }
        }
        let listed: u64 = by_origin.values().map(|origin| origin.count).sum();
        let unlisted = (refs.len() as u64).saturating_sub(listed);
        if unlisted > 0 {
            by_origin.entry(OTHER.to_owned()).or_default().count += unlisted;
        }
        Ok(HeldRemovals { refs, by_origin, is_known: true })
    }

    /// The entity is there after all, or its removal is carried out.
    pub(super) fn forget(&mut self, entity_ref: &str) {
        self.refs.remove(&ref_hash(entity_ref));
        if self.refs.is_empty() {
            self.by_origin.clear();
        }
    }

    pub(super) fn contains(&self, entity_ref: &str) -> bool {
        self.refs.contains(&ref_hash(entity_ref))
    }

    pub(super) fn refs(&self) -> &HashSet<i64> {
        &self.refs
    }

    pub(super) fn len(&self) -> usize {
        self.refs.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.refs.is_empty()
    }

    /// As it was when they were held.
    pub(super) fn by_origin(&self) -> &BTreeMap<String, Origin> {
        &self.by_origin
    }
}

fn origin(entity: &str) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Envelope {
        metadata: Metadata,
    }
    #[derive(serde::Deserialize)]
    struct Metadata {
        annotations: BTreeMap<String, serde_json::Value>,
    }
    let envelope: Envelope = serde_json::from_str(entity).ok()?;
    Some(envelope.metadata.annotations.get(ORIGIN)?.as_str()?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_origin_is_read_from_the_annotation() {
        let entity =
            r#"{"metadata":{"annotations":{"backstage.io/managed-by-origin-location":"url:https://x/all.yaml"}}}"#;
        assert_eq!(origin(entity).as_deref(), Some("url:https://x/all.yaml"));
        assert_eq!(origin(r#"{"metadata":{"name":"a"}}"#), None);
    }
}
