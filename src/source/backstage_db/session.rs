//! One connection's loop, and the one place that appends.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use catalog_bridge_api::{Cause, EntityRef, JsonText};
use chrono::Utc;

use super::catalog::{Body, Catalog, Key, Row};
use super::guard::HeldRemovals;
use super::ledger::{Ledger, owned_by_others};
use super::pace::{Pace, Poll};
use super::position::{Position, Way};
use super::schema::Choice;
use super::settings::Settings;
use super::triggers::drain::Reading;
use crate::source::entity::{EntityError, parse_entity};
use crate::source::owner::{Owner, SourceError};
use crate::source::report::Report;
use crate::source::runner::Trouble;
use crate::store::{Change, HeldEntity, Rejected, Removal, Upsert};

/// Most bytes of bodies read at once; a single larger entity comes alone.
pub(super) const PAGE_BYTES: usize = 8 * 1024 * 1024;
/// Pause between looks at whether a refused ref's owner let go.
const OWNED_INTERVAL: Duration = Duration::from_secs(10);
/// Pause between looks at the schema: a switch of the way of capture is noticed within it.
const SCHEMA_INTERVAL: Duration = Duration::from_secs(10);
/// Pause between sums of ref hashes beside the counts.
const SUM_INTERVAL: Duration = Duration::from_secs(60);

/// When which look is due.
pub(super) struct Paces {
    pub(super) poll: Poll,
    pub(super) count: Pace,
    pub(super) sum: Pace,
    pub(super) sweep: Pace,
    pub(super) owned: Pace,
    pub(super) schema: Pace,
    pub(super) reconcile: Pace,
}

/// What one connection's loop works with.
pub(super) struct Session<'a> {
    pub(super) settings: &'a Settings,
    pub(super) catalog: Catalog,
    pub(super) choice: Choice,
    pub(super) position: Position,
    /// The server hashes refs as we do.
    pub(super) can_sum: bool,
    pub(super) ledger: &'a mut Ledger,
    pub(super) held: &'a mut HeldRemovals,
    pub(super) owner: &'a mut Owner,
    pub(super) report: &'a mut Report,
    pub(super) trouble: &'a mut Trouble,
    pub(super) paces: Paces,
    /// The removals that were held when a person confirmed them.
    pub(super) confirmed: HashSet<i64>,
    /// The catalog's counter, as seen last.
    pub(super) counter: i64,
    /// Entities that lost their bodies since all pages were read last.
    pub(super) bodies_lost: u64,
    /// By triggers: what is known of their outbox.
    pub(super) reading: Reading,
}

impl<'a> Session<'a> {
    #[expect(clippy::too_many_arguments, reason = "the parts live in different places: settings, claim, connection")]
    pub(super) fn new(
        settings: &'a Settings,
        catalog: Catalog,
        choice: Choice,
        position: Position,
        can_sum: bool,
        ledger: &'a mut Ledger,
        held: &'a mut HeldRemovals,
        owner: &'a mut Owner,
        report: &'a mut Report,
        trouble: &'a mut Trouble,
    ) -> Self {
        let now = Instant::now();
        let reconcile = match choice.way {
            Way::Triggers | Way::Generations => {
                Pace::later(until_scheduled(&position, settings.reconcile_interval), now)
            }
            Way::Reconcile => Pace::new(settings.reconcile_only_interval, now),
        };
        let counter = position.generation;
        let poll = Poll::new(settings.poll_interval, choice.way);
        let reading = Reading::new(position.holding > 0);
        Session {
            settings,
            catalog,
            choice,
            position,
            can_sum,
            ledger,
            held,
            owner,
            report,
            trouble,
            paces: Paces {
                poll,
                count: Pace::new(settings.removal_interval, now),
                sum: Pace::new(SUM_INTERVAL.max(settings.removal_interval), now),
                sweep: Pace::new(settings.removal_interval, now),
                owned: Pace::new(OWNED_INTERVAL, now),
                schema: Pace::later(SCHEMA_INTERVAL, now),
                reconcile,
            },
            confirmed: HashSet::new(),
            counter,
            bodies_lost: 0,
            reading,
        }
    }

    /// Captures until something fails or the ownership ends. `is_continued`: the position is of this very catalog, so only
    /// its last generations are looked at again.
    pub(super) async fn run(&mut self, is_continued: bool) -> Result<(), SourceError> {
        let position = self.position.to_json()?;
        self.owner.save_position(position).await?;
        self.publish();
        match self.choice.way {
            Way::Generations => {
                self.load_bodiless().await?;
                if is_continued {
                    self.verify_recent().await?;
                }
            }
            Way::Triggers => {
                if let Some(drain) = &self.position.drain {
                    self.catalog.drained_to(drain, 0);
                }
                self.ledger.set_bodiless([]);
            }
            Way::Reconcile => self.ledger.set_bodiless([]),
        }
        while !self.owner.stop.is_cancelled() {
            self.meet_commands();
            match self.choice.way {
                Way::Triggers => self.step_by_triggers().await?,
                Way::Generations => self.step_by_generations().await?,
                Way::Reconcile => self.step_by_reconcile().await?,
            }
        }
        Ok(())
    }

    /// How many removals are held; those that another process held, as long as this one has not looked by itself.
    pub(super) fn held_count(&self) -> u64 {
        match self.held.is_known {
            true => self.held.len() as u64,
            false => self.position.holding,
        }
    }

    fn meet_commands(&mut self) {
        // Until this process has looked, a confirmation waits: what it is for is not known by name.
        if (self.held.is_known || self.position.holding == 0)
            && let Some(shown) = self.report.commands.take_confirm()
        {
            let removals = self.held.len();
            if removals as u64 > shown {
                tracing::warn!(
                    source = self.report.name,
                    removals,
                    shown,
                    "more removals are held than were shown to be confirmed: look at them and confirm again"
                );
            } else if removals > 0 {
                tracing::info!(source = self.report.name, removals, "held removals are confirmed");
                self.confirmed = self.held.refs().clone();
            }
        }
        if self.report.commands.take_reconcile() {
            self.begin_reconcile("on demand", false);
        }
    }

    /// Looks that have their own times, in whatever way of capture.
    pub(super) async fn look_around(&mut self) -> Result<(), SourceError> {
        let now = Instant::now();
        if self.paces.owned.is_due(now) {
            if self.ledger.has_owned_by_others() {
                self.take_up_released().await?;
            }
            self.paces.owned.done(Duration::ZERO, now);
        }
        if self.paces.schema.is_due(now) {
            let schema = self.catalog.schema().await?;
            let choice = schema.choose(self.settings.capture, &self.settings.schema)?;
            if choice.way != self.choice.way {
                return Err(SourceError::Reopen(format!(
                    "the way of capture changes to {}: {}",
                    choice.way.name(),
                    choice.why
                )));
            }
            if choice.way == Way::Triggers {
                self.measure_outbox().await?;
            }
            self.choice = choice;
            self.paces.schema.done(Duration::ZERO, now);
        }
        Ok(())
    }

    /// Reads until nothing is left.
    pub(super) async fn catch_up(&mut self) -> Result<(), SourceError> {
        match self.choice.way {
            Way::Triggers => self.drain_all().await,
            Way::Generations => self.read_all().await,
            Way::Reconcile => Ok(()),
        }
    }

    /// Reads refs again whose owner let them go meanwhile.
    async fn take_up_released(&mut self) -> Result<(), SourceError> {
        let store = std::sync::Arc::clone(&self.owner.store);
        let mut after: Option<String> = None;
        loop {
            let (refs, next) = owned_by_others(&*store, &self.owner.source, after.as_deref()).await?;
            let owners: HashMap<EntityRef, _> =
                store.held_by_ref(&refs).await?.into_iter().map(|(held, owner)| (held.entity_ref, owner)).collect();
            let is_free =
                |entity_ref: &EntityRef| owners.get(entity_ref).is_none_or(|owner| *owner == self.owner.source);
            let free: Vec<String> = refs
                .iter()
                .filter(|entity_ref| is_free(entity_ref))
                .map(|entity_ref| entity_ref.as_str().to_owned())
                .collect();
            self.repair(free, Cause::Capture).await?;
            match next {
                Some(next) => after = Some(next),
                None => return Ok(()),
            }
        }
    }

    /// Reads these refs afresh and states what they are now. A body read here is never older than what was appended
    /// before, and what has a generation that is still to be read is left to its page; so no order is broken.
    pub(super) async fn repair(&mut self, mut refs: Vec<String>, cause: Cause) -> Result<u64, SourceError> {
        let mut appended = 0;
        while !refs.is_empty() {
            let (rows, left) = self.catalog.by_ref(&refs, self.position.generation, PAGE_BYTES).await?;
            refs = left;
            appended += self.apply(rows, cause).await?;
        }
        Ok(appended)
    }

    /// Which of these keys the log does not hold as they are.
    pub(super) async fn differing(&mut self, keys: &[Key]) -> Result<Vec<String>, SourceError> {
        let refs: Vec<EntityRef> = keys.iter().filter_map(|key| canonical(&key.entity_ref)).collect();
        let held = self.owner.store.held_by_ref(&refs).await?;
        let held: HashMap<&str, &HeldEntity> = held
            .iter()
            .filter(|(_, owner)| *owner == self.owner.source)
            .map(|(held, _)| (held.entity_ref.as_str(), held))
            .collect();
        let mut differing = Vec::new();
        for key in keys {
            self.held.forget(&key.entity_ref);
            let is_held = held.get(key.entity_ref.as_str()).is_some_and(|held| {
                held.source_version.as_ref() == Some(&key.hash) && held.uid.as_ref() == Some(&key.entity_id)
            });
            if !is_held && !self.ledger.is_rejected(&key.entity_ref, &key.hash) {
                differing.push(key.entity_ref.clone());
            }
        }
        Ok(differing)
    }

    /// Appends what the rows say, together with the position; returns the number of events.
    pub(super) async fn apply(&mut self, rows: Vec<Row>, cause: Cause) -> Result<u64, SourceError> {
        let mut changes = Vec::new();
        let mut rejected = Vec::new();
        let is_mass = self.lose_bodies(&rows);
        for row in rows {
            let is_held = self.held.contains(&row.entity_ref);
            match row.body {
                Body::Absent => self.ledger.add_bodiless(row.entity_ref.clone()),
                _ => {
                    self.held.forget(&row.entity_ref);
                    self.ledger.has_body(&row.entity_ref);
                }
            }
            let is_known = self.ledger.contains(&row.entity_ref);
            match to_change(&row, cause) {
                Ok(Some(Change::Remove(_))) if !is_known || is_held || is_mass => {}
                Ok(Some(change)) => changes.push(change),
                Ok(None) => {}
                Err(refused) => rejected.push(refused),
            }
        }
        self.append(changes, rejected, cause).await
    }

    /// Counts the entities of a page that lost their bodies. True when they are too many to be removed without the guard, or
    /// may be among what another process held: as their rows are counted besides, the next count leads to a sweep, which
    /// finds them and decides.
    fn lose_bodies(&mut self, rows: &[Row]) -> bool {
        let is_lost = |row: &&Row| row.body == Body::Absent && self.ledger.contains(&row.entity_ref);
        self.bodies_lost += rows.iter().filter(is_lost).count() as u64;
        let is_taken_over = self.position.holding > 0 && !self.held.is_known;
        self.settings.removal_guard.is_some_and(|guard| is_taken_over || self.bodies_lost > guard.count)
    }

    /// Appends, and keeps ledger and metrics true to it.
    pub(super) async fn append(
        &mut self,
        changes: Vec<Change>,
        rejected: Vec<Rejected>,
        cause: Cause,
    ) -> Result<u64, SourceError> {
        let position: JsonText = self.position.to_json()?;
        if changes.is_empty() && rejected.is_empty() {
            self.owner.save_position(position).await?;
            return Ok(0);
        }
        let stated: Vec<(bool, EntityRef)> =
            changes.iter().map(|change| (matches!(change, Change::Upsert(_)), change.entity_ref().clone())).collect();
        for refused in &rejected {
            tracing::warn!(
                source = self.report.name,
                entity_ref = refused.entity_ref,
                reason = refused.reason,
                "an entity is rejected"
            );
        }
        let appended = self.owner.append(changes, rejected.clone(), position).await?;
        for (is_there, entity_ref) in &stated {
            match is_there {
                true => self.ledger.insert(entity_ref.as_str()),
                false => self.ledger.remove(entity_ref.as_str()),
            }
        }
        for refused in &rejected {
            self.ledger.reject(refused);
        }
        if appended.refused > 0 {
            // The store found refs of other sources, or states that only it could judge; it knows which.
            self.ledger.load_rejected(&*self.owner.store, &self.owner.source).await?;
        }
        if appended.appended > 0 {
            self.report.metrics.count_events(cause.as_str(), appended.appended);
        }
        self.trouble.clear();
        Ok(appended.appended)
    }

    /// Everything there was has been seen.
    pub(super) fn seen(&mut self) {
        let now = Utc::now();
        self.report.last_look = Some(now);
        self.report.metrics.set_last_look(now.timestamp());
        self.trouble.clear();
    }
}

fn until_scheduled(position: &Position, interval: Duration) -> Duration {
    let Some(last) = &position.last_reconcile else { return interval };
    let passed = (Utc::now() - last.ended_at).to_std().unwrap_or_default();
    interval.saturating_sub(passed)
}

/// The ref, if the catalog writes it as we do. Another one could not be found by our name for it.
pub(super) fn canonical(text: &str) -> Option<EntityRef> {
    EntityRef::parse(text).ok().filter(|entity_ref| entity_ref.as_str() == text)
}

/// What a row says. `Err`: the log cannot take it.
pub(super) fn to_change(row: &Row, cause: Cause) -> Result<Option<Change>, Rejected> {
    let refuse = |reason: String| Rejected {
        entity_ref: row.entity_ref.clone(),
        reason,
        source_version: Some(row.hash.clone()),
        source_position: row.generation,
    };
    let entity_ref = canonical(&row.entity_ref);
    let text = match &row.body {
        Body::Absent => {
            return Ok(
                entity_ref.map(|entity_ref| Change::Remove(Removal { entity_ref, occurred_at: row.updated_at, cause }))
            );
        }
        Body::TooLarge(bytes) => return Err(refuse(EntityError::TooLarge { bytes: *bytes }.to_string())),
        Body::Text(text) => text,
    };
    let Some(entity_ref) = entity_ref else {
        return Err(refuse("the catalog's entity_ref is not of the form kind:namespace/name in lower case".to_owned()));
    };
    let parsed = parse_entity(text).map_err(|error| refuse(error.to_string()))?;
    // The catalog's own columns name the entity: they are what its readers, and our lookups, go by.
    Ok(Some(Change::Upsert(Upsert {
        entity_ref,
        uid: Some(row.entity_id.clone()),
        entity: parsed.entity,
        source_version: Some(row.hash.clone()),
        source_position: row.generation,
        occurred_at: row.updated_at,
        cause,
    })))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(entity_ref: &str, body: Body) -> Row {
        Row {
            entity_ref: entity_ref.to_owned(),
            entity_id: "u1".to_owned(),
            hash: "h1".to_owned(),
            generation: Some(7),
            updated_at: None,
            body,
        }
    }

    #[test]
    fn a_row_becomes_what_it_says() {
        let text = r#"{"kind":"Component","metadata":{"name":"A"}}"#;
        let good = to_change(&row("component:default/a", Body::Text(text.to_owned())), Cause::Capture);
        assert!(matches!(good, Ok(Some(Change::Upsert(upsert))) if upsert.source_version.as_deref() == Some("h1")));
        let gone = to_change(&row("component:default/a", Body::Absent), Cause::Capture);
        assert!(matches!(gone, Ok(Some(Change::Remove(_)))));
    }

    #[test]
    fn what_the_log_cannot_take_is_rejected_with_its_version() {
        let check = |row: Row, part: &str| {
            let refused = to_change(&row, Cause::Capture).expect_err("must be rejected");
            assert!(refused.reason.contains(part), "{}", refused.reason);
            assert_eq!((refused.source_version.as_deref(), refused.source_position), (Some("h1"), Some(7)));
        };

        check(row("component:default/a", Body::Text("{".to_owned())), "not an entity");
        check(row("component:default/a", Body::TooLarge(17_000_000)), "17000000 bytes");
        check(row("Component:default/a", Body::Text("{}".to_owned())), "lower case");
    }
}
