//! Which refs the log has of a source, as hashes: 8 bytes each, whatever their number and length.
//!
//! It is the union of what the log holds and of what it could not take (`rejected`, refused as another source's), each once.
//! With the rows that have no body it is exactly what the catalog must count as long as nothing was missed. Loaded from the store at a claim, and kept by every
//! append afterwards, which only the owner makes. With 64 bits a collision among a million refs has a chance of 1 in 40
//! million; it would cost needless looks and no event.

use std::collections::{BTreeSet, HashMap, HashSet};

use catalog_bridge_api::{EntityRef, SourceName};

use super::catalog::Buckets;
use super::ref_hash::ref_hash;
use crate::store::{Rejected, Store, StoreError};

/// Refs read from the store at once.
const PAGE: usize = 5_000;
/// How the store begins the reason of a ref that belongs to another source.
const OWNED: &str = "owned by source";

/// The refs of one source.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    refs: HashSet<i64>,
    rejected: HashMap<i64, Refusal>,
    /// Rows of the catalog without a body: they are counted there and are no entities.
    bodiless: BTreeSet<String>,
}

/// What is remembered of a rejected ref.
#[derive(Debug)]
struct Refusal {
    /// Hash of the refused state's version; another version is looked at again.
    version: Option<i64>,
    is_owned: bool,
}

impl Ledger {
    pub(super) async fn load(store: &dyn Store, source: &SourceName) -> Result<Self, StoreError> {
        let mut ledger = Ledger::default();
        let mut after: Option<EntityRef> = None;
        loop {
            let page = store.held(source, after.as_ref(), PAGE).await?;
            ledger.refs.extend(page.iter().map(|held| ref_hash(held.entity_ref.as_str())));
            match page.last() {
                Some(last) if page.len() >= PAGE => after = Some(last.entity_ref.clone()),
                _ => break,
            }
        }
        ledger.load_rejected(store, source).await?;
        Ok(ledger)
    }

    /// Reads again what the store could not take: the store itself decides which refs belong to another source.
    pub(super) async fn load_rejected(&mut self, store: &dyn Store, source: &SourceName) -> Result<(), StoreError> {
        self.rejected.clear();
        let mut after: Option<String> = None;
        loop {
            let page = store.rejected(source, after.as_deref(), PAGE).await?;
            for rejected in &page {
                self.reject(rejected);
            }
            match page.last() {
                Some(last) if page.len() >= PAGE => after = Some(last.entity_ref.clone()),
                _ => return Ok(()),
            }
        }
    }

    /// The catalog's rows without a body, all of them.
    pub(super) fn set_bodiless(&mut self, refs: impl IntoIterator<Item = String>) {
        self.bodiless = refs.into_iter().collect();
    }

    pub(super) fn add_bodiless(&mut self, entity_ref: String) {
        self.bodiless.insert(entity_ref);
    }

    pub(super) fn has_body(&mut self, entity_ref: &str) {
        self.bodiless.remove(entity_ref);
    }

    pub(super) fn bodiless(&self) -> &BTreeSet<String> {
        &self.bodiless
    }

    pub(super) fn insert(&mut self, entity_ref: &str) {
        let hash = ref_hash(entity_ref);
        self.refs.insert(hash);
        self.rejected.remove(&hash);
    }

    pub(super) fn remove(&mut self, entity_ref: &str) {
        let hash = ref_hash(entity_ref);
        self.refs.remove(&hash);
        self.rejected.remove(&hash);
    }

    pub(super) fn reject(&mut self, rejected: &Rejected) {
        let hash = ref_hash(&rejected.entity_ref);
        let version = rejected.source_version.as_deref().map(ref_hash);
        self.refs.insert(hash);
        self.rejected.insert(hash, Refusal { version, is_owned: rejected.reason.starts_with(OWNED) });
    }

    pub(super) fn contains(&self, entity_ref: &str) -> bool {
        self.refs.contains(&ref_hash(entity_ref))
    }

    pub(super) fn contains_hash(&self, hash: i64) -> bool {
        self.refs.contains(&hash)
    }

    /// True when this very state was refused before.
    pub(super) fn is_rejected(&self, entity_ref: &str, version: &str) -> bool {
        self.rejected.get(&ref_hash(entity_ref)).is_some_and(|refusal| refusal.version == Some(ref_hash(version)))
    }

    pub(super) fn len(&self) -> usize {
        self.refs.len()
    }

    pub(super) fn rejected_count(&self) -> usize {
        self.rejected.len()
    }

    pub(super) fn has_owned_by_others(&self) -> bool {
        self.rejected.values().any(|refusal| refusal.is_owned)
    }

    /// What the catalog should count: all but those whose removal is held back.
    pub(super) fn count_without(&self, held: &HashSet<i64>) -> i64 {
        let held = held.iter().filter(|hash| self.refs.contains(hash)).count();
        i64::try_from(self.refs.len() - held + self.bodiless.len()).unwrap_or(i64::MAX)
    }

    /// The sum of the hashes, as the catalog should compute it.
    pub(super) fn sum_without(&self, held: &HashSet<i64>) -> i128 {
        let present = self.refs.iter().copied().filter(|hash| !held.contains(hash));
        present.chain(self.bodiless_hashes()).map(i128::from).sum()
    }

    /// Which buckets differ from the catalog's.
    pub(super) fn differing_buckets(&self, catalog: &Buckets) -> [bool; 256] {
        let mut ours: Buckets = [(0, 0); 256];
        for hash in self.refs.iter().copied().chain(self.bodiless_hashes()) {
            let (count, sum) = &mut ours[bucket(hash)];
            *count += 1;
            *sum += i128::from(hash);
        }
        std::array::from_fn(|index| ours[index] != catalog[index])
    }

    fn bodiless_hashes(&self) -> impl Iterator<Item = i64> {
        self.bodiless.iter().map(|text| ref_hash(text))
    }
}

/// The highest byte of a hash, as the catalog's statement computes it.
pub(super) fn bucket(hash: i64) -> usize {
    usize::from((hash >> 56) as u8)
}

/// Our refs page by page: those held, then those rejected. A ref may come twice.
pub(super) struct OurRefs {
    stage: Stage,
}

enum Stage {
    Held(Option<EntityRef>),
    Rejected(Option<String>),
    Done,
}

impl OurRefs {
    pub(super) fn new() -> Self {
        OurRefs { stage: Stage::Held(None) }
    }

    /// The next page; `None` at the end.
    pub(super) async fn next(
        &mut self,
        store: &dyn Store,
        source: &SourceName,
    ) -> Result<Option<Vec<String>>, StoreError> {
        match &self.stage {
            Stage::Held(after) => {
                let page = store.held(source, after.as_ref(), PAGE).await?;
                self.stage = match page.last() {
                    Some(last) if page.len() >= PAGE => Stage::Held(Some(last.entity_ref.clone())),
                    _ => Stage::Rejected(None),
                };
                Ok(Some(page.into_iter().map(|held| held.entity_ref.as_str().to_owned()).collect()))
            }
            Stage::Rejected(after) => {
                let page = store.rejected(source, after.as_deref(), PAGE).await?;
                self.stage = match page.last() {
                    Some(last) if page.len() >= PAGE => Stage::Rejected(Some(last.entity_ref.clone())),
                    _ => Stage::Done,
                };
                Ok(Some(page.into_iter().map(|rejected| rejected.entity_ref).collect()))
            }
            Stage::Done => Ok(None),
        }
    }
}

/// Rejected refs that the store refused as another source's, page by page.
pub(super) async fn owned_by_others(
    store: &dyn Store,
    source: &SourceName,
    after: Option<&str>,
) -> Result<(Vec<EntityRef>, Option<String>), StoreError> {
    let page = store.rejected(source, after, PAGE).await?;
    let next = page.last().filter(|_| page.len() >= PAGE).map(|last| last.entity_ref.clone());
    let owned = page.iter().filter(|rejected| rejected.reason.starts_with(OWNED));
    Ok((owned.filter_map(|rejected| EntityRef::parse(&rejected.entity_ref).ok()).collect(), next))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rejected(entity_ref: &str, reason: &str, version: &str) -> Rejected {
        Rejected {
            entity_ref: entity_ref.to_owned(),
            reason: reason.to_owned(),
            source_version: Some(version.to_owned()),
            source_position: None,
        }
    }

    #[test]
    fn a_ref_that_is_held_and_rejected_counts_once() {
        let mut ledger = Ledger::default();
        ledger.insert("component:default/a");
        ledger.reject(&rejected("component:default/a", "too deep", "v1"));
        ledger.reject(&rejected("component:default/b", "owned by source \"x\"", "v1"));

        assert_eq!((ledger.len(), ledger.rejected_count()), (2, 2));
        assert!(ledger.is_rejected("component:default/a", "v1") && !ledger.is_rejected("component:default/a", "v2"));
        assert!(ledger.has_owned_by_others());

        ledger.remove("component:default/b");
        ledger.insert("component:default/a");

        assert_eq!((ledger.len(), ledger.rejected_count()), (1, 0));
    }

    #[test]
    fn held_removals_do_not_count() {
        let mut ledger = Ledger::default();
        ledger.insert("component:default/a");
        ledger.insert("component:default/b");
        let held = HashSet::from([ref_hash("component:default/b"), ref_hash("component:default/never")]);

        assert_eq!(ledger.count_without(&held), 1);
        assert_eq!(ledger.sum_without(&held), i128::from(ref_hash("component:default/a")));
    }

    #[test]
    fn rows_without_a_body_are_counted_and_are_no_entities() {
        let mut ledger = Ledger::default();
        ledger.insert("component:default/a");
        ledger.set_bodiless(["component:default/b".to_owned()]);
        ledger.add_bodiless("component:default/c".to_owned());
        ledger.has_body("component:default/b");

        assert_eq!((ledger.len(), ledger.count_without(&HashSet::new())), (1, 2));
        let sum = i128::from(ref_hash("component:default/a")) + i128::from(ref_hash("component:default/c"));
        assert_eq!(ledger.sum_without(&HashSet::new()), sum);
    }

    #[test]
    fn only_the_bucket_of_a_difference_differs() {
        let mut ledger = Ledger::default();
        let mut catalog: Buckets = [(0, 0); 256];
        for name in 0..1_000 {
            let entity_ref = format!("component:default/c-{name}");
            let hash = ref_hash(&entity_ref);
            catalog[bucket(hash)].0 += 1;
            catalog[bucket(hash)].1 += i128::from(hash);
            ledger.insert(&entity_ref);
        }
        assert!(ledger.differing_buckets(&catalog).iter().all(|differs| !differs));

        ledger.insert("component:default/gone");

        let differing = ledger.differing_buckets(&catalog);
        assert!(differing[bucket(ref_hash("component:default/gone"))]);
        assert_eq!(differing.iter().filter(|differs| **differs).count(), 1);
    }
}
