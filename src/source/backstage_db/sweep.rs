//! Finds removals, which have no number: by counting, then by looking our refs up.
//!
//! Keeps "no false removal ever": the look that decides begins after incremental capture has caught up, and nothing is
//! appended between it and the removal. Whatever comes after that look has a generation that is still to be read.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use catalog_bridge_api::{Cause, EntityRef};
use tracing::{info, warn};

use super::catalog::Census;
use super::guard::HeldRemovals;
use super::ledger::{OurRefs, bucket};
use super::ref_hash::ref_hash;
use super::session::Session;
use crate::source::owner::SourceError;
use crate::store::{Change, Removal};

/// Refs looked up by one statement.
const LOOKUP: usize = 5_000;
/// Missing refs kept by name in one sweep (each at most a kilobyte); the next one finds the others.
const MISSING_MAX: usize = 50_000;

/// So many sweeps in a row without a finding are a sign of a gap.
const IN_VAIN_MAX: u32 = 4;
/// Most rows without a body; they come and go in moments.
const BODILESS_MAX: i64 = 20_000;

/// Our refs that the catalog did not show.
#[derive(Default)]
struct Missing {
    /// As many as are kept by name.
    refs: Vec<String>,
    /// All of them.
    hashes: HashSet<i64>,
}

impl Session<'_> {
    /// Compares the catalog's count with ours, both of the snapshot that was just applied.
    pub(super) async fn judge(&mut self, census: Census) -> Result<(), SourceError> {
        let now = Instant::now();
        self.paces.count.done(census.cost, now);
        if census.sum.is_some() {
            self.paces.sum.done(census.cost, now);
        }
        let expected = self.ledger.count_without(self.held.refs());
        let is_equal =
            census.count == expected && census.sum.is_none_or(|sum| sum == self.ledger.sum_without(self.held.refs()));
        if is_equal {
            self.paces.sweep.was_useful();
            self.held.is_known = true;
            self.position.holding = self.held.len() as u64;
            let position = self.position.to_json()?;
            return self.owner.save_position(position).await;
        }
        if !self.paces.sweep.is_due(now) {
            return Ok(());
        }
        self.catalog.take_spent();
        let held_before = self.held.len();
        let bodiless_before = self.ledger.bodiless().len();
        let removed = self.sweep().await?;
        if removed > 0 || self.held.len() != held_before || self.ledger.bodiless().len() != bodiless_before {
            self.paces.sweep.was_useful();
        } else {
            self.paces.sweep.was_in_vain();
            // Fewer rows, and each of our refs is there when looked up: it came back meanwhile. More rows than expected, or
            // others, are what was missed; so are fewer ones that nothing explains.
            if census.count >= expected || self.paces.sweep.in_vain() >= IN_VAIN_MAX {
                let reason = format!("the catalog counts {} rows where {expected} were expected", census.count);
                self.begin_reconcile(&reason, true);
            }
        }
        // Counting and looking up have one share of a core together.
        let (cost, now) = (self.catalog.take_spent(), Instant::now());
        self.paces.count.done(census.cost + cost, now);
        self.paces.sweep.done(Duration::ZERO, now);
        Ok(())
    }

    /// Carries out what the guard held back when a person confirmed it, and nothing that vanished since.
    pub(super) async fn sweep_confirmed(&mut self) -> Result<(), SourceError> {
        let mut confirmed = std::mem::take(&mut self.confirmed);
        while !confirmed.is_empty() && !self.owner.stop.is_cancelled() {
            let missing = self.find_gone(Some(&confirmed)).await?;
            // Those beyond what is kept by name are looked up again.
            confirmed.clone_from(&missing.hashes);
            for text in &missing.refs {
                confirmed.remove(&ref_hash(text));
                self.held.forget(text);
            }
            self.position.holding = self.held.len() as u64;
            self.remove(missing.refs).await?;
        }
        Ok(())
    }

    /// Rows without a body have numbers as all others, but for those of before the numbers.
    pub(super) async fn load_bodiless(&mut self) -> Result<(), SourceError> {
        let refs = self.catalog.bodiless(BODILESS_MAX).await?;
        if refs.len() as i64 >= BODILESS_MAX {
            return Err(SourceError::Misconfigured(format!(
                "the catalog holds {BODILESS_MAX} rows without an entity or more, so its stitching must have stopped: repair it, \
                 or use capture: reconcile"
            )));
        }
        self.ledger.set_bodiless(refs);
        Ok(())
    }

    /// Forgets rows without a body that are gone.
    async fn sweep_bodiless(&mut self) -> Result<(), SourceError> {
        let known: Vec<&str> = self.ledger.bodiless().iter().map(String::as_str).collect();
        if known.is_empty() {
            return Ok(());
        }
        let still = self.catalog.still_bodiless(&known).await?;
        self.ledger.set_bodiless(still);
        Ok(())
    }

    /// Looks our refs up in the catalog and removes those that are gone, or holds their removals back. Returns the number of
    /// removals appended.
    pub(super) async fn sweep(&mut self) -> Result<u64, SourceError> {
        let missing = self.find_gone(None).await?;
        let (held, gone) = self.divide(missing);
        self.hold(held).await?;
        self.remove(gone.refs).await
    }

    /// Which of our refs, or of those among them, are gone by two looks.
    async fn find_gone(&mut self, among: Option<&HashSet<i64>>) -> Result<Missing, SourceError> {
        self.sweep_bodiless().await?;
        let mut missing = self.find_missing(among).await?;
        if !missing.hashes.is_empty() {
            #[cfg(test)]
            tokio::time::sleep(self.settings.pause_between_looks).await;
            self.catch_up().await?;
            self.look_again(&mut missing).await?;
        }
        Ok(missing)
    }

    /// Which removals are held back, and which are believed. What was held stays held until a person confirms it or the
    /// entity returns, also when others of them returned, and also when another process held it.
    fn divide(&self, missing: Missing) -> (Missing, Missing) {
        let Some(guard) = self.settings.removal_guard else {
            return (Missing::default(), missing);
        };
        let is_taken_over = self.position.holding > 0 && !self.held.is_known;
        if is_taken_over || guard.holds(missing.hashes.len() as u64, self.ledger.len() as u64) {
            return (missing, Missing::default());
        }
        let was_held = |hash: &i64| self.held.refs().contains(hash);
        let (held_refs, gone_refs) = missing.refs.into_iter().partition(|text| was_held(&ref_hash(text)));
        let (held_hashes, gone_hashes) = missing.hashes.into_iter().partition(was_held);
        (Missing { refs: held_refs, hashes: held_hashes }, Missing { refs: gone_refs, hashes: gone_hashes })
    }

    async fn hold(&mut self, missing: Missing) -> Result<(), SourceError> {
        let is_new = self.held.is_empty();
        self.held.is_known = true;
        self.position.holding = missing.hashes.len() as u64;
        if *self.held.refs() == missing.hashes {
            return Ok(());
        }
        let count = missing.hashes.len();
        *self.held = HeldRemovals::hold(missing.hashes, &missing.refs, &*self.owner.store).await?;
        if is_new {
            warn!(
                source = self.report.name,
                removals = count,
                entities = self.ledger.len(),
                "more entities vanished at once than the removal guard believes; their removals wait to be confirmed"
            );
        }
        let position = self.position.to_json()?;
        self.owner.save_position(position).await
    }

    async fn remove(&mut self, refs: Vec<String>) -> Result<u64, SourceError> {
        let mut removed = 0;
        for some in refs.chunks(LOOKUP) {
            let removal = |text: &String| {
                let entity_ref = EntityRef::parse(text).ok()?;
                Some(Change::Remove(Removal { entity_ref, occurred_at: None, cause: self.removal_cause() }))
            };
            let changes: Vec<Change> = some.iter().filter_map(removal).collect();
            // A rejected text that is no ref: the log never held it, so there is nothing to state.
            for text in some {
                self.ledger.remove(text);
            }
            let cause = self.removal_cause();
            removed += self.append(changes, Vec::new(), cause).await?;
        }
        if removed > 0 {
            info!(source = self.report.name, removed, "removals were found");
        }
        Ok(removed)
    }

    /// A removal that is found while everything is compared for a sign of a gap is a repair.
    fn removal_cause(&self) -> Cause {
        match &self.position.reconcile {
            Some(progress) if progress.is_gap => Cause::Reconcile,
            _ => Cause::Capture,
        }
    }

    /// The first look: only refs in buckets whose count or sum differs can be missing.
    async fn find_missing(&mut self, among: Option<&HashSet<i64>>) -> Result<Missing, SourceError> {
        let suspects = match self.can_sum {
            true => self.ledger.differing_buckets(&*self.catalog.buckets().await?),
            false => [true; 256],
        };
        let store = Arc::clone(&self.owner.store);
        let source = self.owner.source.clone();
        let mut missing = Missing::default();
        let mut ours = OurRefs::new();
        while let Some(page) = ours.next(&*store, &source).await? {
            let is_suspected = |hash: i64| suspects[bucket(hash)] && among.is_none_or(|among| among.contains(&hash));
            let suspected: Vec<&str> =
                page.iter().map(String::as_str).filter(|text| is_suspected(ref_hash(text))).collect();
            for some in suspected.chunks(LOOKUP) {
                let present = self.catalog.present(some).await?;
                for text in some.iter().filter(|text| !present.contains(**text)) {
                    if missing.hashes.insert(ref_hash(text)) && missing.refs.len() < MISSING_MAX {
                        missing.refs.push((*text).to_owned());
                    }
                }
            }
        }
        // A rejected text that is no ref stays in the store's list when it vanishes; the ledger left it out already.
        missing.refs.retain(|text| self.ledger.contains(text));
        missing.hashes.retain(|hash| self.ledger.contains_hash(*hash));
        Ok(missing)
    }

    /// The second look, by key, which decides.
    async fn look_again(&mut self, missing: &mut Missing) -> Result<(), SourceError> {
        let mut returned: HashSet<String> = HashSet::new();
        for some in missing.refs.chunks(LOOKUP) {
            let some: Vec<&str> = some.iter().map(String::as_str).collect();
            returned.extend(self.catalog.present(&some).await?);
        }
        missing.refs.retain(|text| !returned.contains(text));
        for text in &returned {
            missing.hashes.remove(&ref_hash(text));
        }
        Ok(())
    }
}
