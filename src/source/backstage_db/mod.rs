//! Captures Backstage's catalog from its database; without writing there, unless triggers of our own are installed.
//!
//! Invariants:
//! - P3: by `generations` every row is read after the number that it was given at commit, and these numbers appear in commit
//!   order; removals are found by counting in the snapshot that was just read, and confirmed by a second look. What
//!   this cannot see (a restored or replaced database) is noticed by the server's identity, and repaired by a reconcile.
//! - No false removal: a ref is removed only after a look that began when everything that we hold had been committed, and
//!   nothing is appended between that look and the removal.
//! - P10: READ ONLY transactions, none longer than a page; looks are stretched to less than 1 % of a core. What `triggers`
//!   write is in a schema of their own, and cannot fail the catalog.
//!
//! Knows nothing of how the log decides, and holds no entity longer than a page. DESIGN section 5 is the contract.

mod catalog;
mod check;
mod generations;
mod grants;
mod guard;
mod incarnation;
mod ledger;
mod pace;
mod position;
mod reconcile;
mod ref_hash;
mod schema;
mod session;
mod settings;
mod status;
mod sweep;
#[cfg(test)]
mod tests;
mod triggers;

pub use check::{Inspection, inspect};
pub use grants::{grants, trigger_grants};
pub use settings::{CaptureChoice, Connect, RemovalGuard, Settings};
pub use triggers::install::{Uninstalled, install, install_script, uninstall, uninstall_script};

use tracing::{info, warn};

use self::catalog::Catalog;
use self::guard::HeldRemovals;
use self::incarnation::{Difference, Identity, Incarnation, difference};
use self::ledger::Ledger;
use self::position::{Gaps, Position, Progress, Way};
use self::schema::{Choice, Schema};
use self::session::Session;
use self::triggers::outbox::{Drain, OutboxLook};
use super::owner::{Owner, SourceError};
use super::report::Report;
use super::runner::Trouble;

/// The reason of the very first reconcile.
const FIRST_START: &str = "first start";

/// What is remembered of a catalog from one connection to the next, under one claim.
pub(super) struct Capture {
    settings: Settings,
    ledger: Option<Ledger>,
    held: HeldRemovals,
}

impl Capture {
    pub(super) fn new(settings: Settings) -> Self {
        Capture { settings, ledger: None, held: HeldRemovals::default() }
    }

    /// Connects and captures until something fails or the ownership ends.
    pub(super) async fn run(
        &mut self,
        owner: &mut Owner,
        report: &mut Report,
        trouble: &mut Trouble,
    ) -> Result<(), SourceError> {
        let mut catalog = Catalog::connect(&self.settings).await?;
        let schema = catalog.schema().await?;
        let choice = schema.choose(self.settings.capture, &self.settings.schema)?;
        catalog.use_way(choice.way);
        let (identity, counter) = catalog.look().await?;
        catalog.expect(identity.clone());
        let standing = match choice.way {
            Way::Generations => Standing::Counter(counter.ok_or_else(no_counter)?),
            Way::Triggers => Standing::Outbox(catalog.outbox_look()?),
            Way::Reconcile => Standing::Nothing,
        };
        let incarnation = catalog.incarnation().await?;
        let can_sum = catalog.hashes_as_we_do().await?;
        let stored =
            owner.position().map(|text| Position::parse(text).ok_or("the stored position is of an unknown format"));
        let (mut position, gap) = resume(stored, &standing, identity, incarnation);
        if choice.way == Way::Triggers && gap.as_ref().is_some_and(|gap| !gap.goes_on) {
            catalog.empty_outbox(self.settings.abandon_after).await?;
            catalog.look().await?;
            position.drain = Some(Drain::begin(&catalog.outbox_look()?));
        }
        log_opened(owner, &schema, &choice, gap.as_ref().map(|gap| gap.reason.as_str()));
        // Before the first start there was nothing to miss.
        if let Some(gap) = gap.as_ref().filter(|gap| gap.reason != FIRST_START) {
            position.gaps.note(&gap.reason);
            report.metrics.count_gap();
        }
        let ledger = match self.ledger.take() {
            Some(ledger) => ledger,
            None => Ledger::load(&*owner.store, &owner.source).await?,
        };
        let ledger = self.ledger.insert(ledger);
        let mut session = Session::new(
            &self.settings,
            catalog,
            choice,
            position,
            can_sum,
            ledger,
            &mut self.held,
            owner,
            report,
            trouble,
        );
        session.run(gap.is_none()).await
    }
}

fn log_opened(owner: &Owner, schema: &Schema, choice: &Choice, gap: Option<&str>) {
    let source = owner.source.as_str();
    info!(
        source,
        capture = ?choice.way,
        why = choice.why,
        server_version = schema.server_version,
        last_migration = schema.last_migration.as_deref().unwrap_or("not readable"),
        "the catalog is open"
    );
    if schema.is_newer_than_known() {
        warn!(
            source,
            last_migration = schema.last_migration,
            "the catalog's schema is newer than this release was tried with"
        );
    }
    if let Some(gap) = gap {
        info!(source, reason = gap, "everything is compared before the source counts as caught up");
    }
}

/// Where the catalog stands at the moment.
enum Standing {
    Counter(i64),
    Outbox(OutboxLook),
    Nothing,
}

/// Why capture may have missed something.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Gap {
    reason: String,
    /// What was not yet read can still be read in order.
    goes_on: bool,
}

fn no_counter() -> SourceError {
    SourceError::Misconfigured(
        "catalog_generation_counter has no row with id 1: use capture: reconcile until Backstage repaired it"
            .to_owned(),
    )
}

/// Decides where to go on, and whether capture may have missed something since.
fn resume(
    stored: Option<Result<Position, &'static str>>,
    standing: &Standing,
    identity: Identity,
    incarnation: Incarnation,
) -> (Position, Option<Gap>) {
    let (way, counter, drain) = match standing {
        Standing::Counter(counter) => (Way::Generations, *counter, None),
        Standing::Outbox(look) => (Way::Triggers, 0, Some(Drain::begin(look))),
        Standing::Nothing => (Way::Reconcile, 0, None),
    };
    let afresh = |reason: &str| Position {
        way,
        generation: counter,
        drain: drain.clone(),
        identity: identity.clone(),
        incarnation: incarnation.clone(),
        reconcile: Some(Progress::begin(reason, true)),
        holding: 0,
        last_reconcile: None,
        gaps: Gaps::default(),
    };
    let before = match stored {
        None => return (afresh(FIRST_START), Some(Gap { reason: FIRST_START.to_owned(), goes_on: false })),
        Some(Err(reason)) => return (afresh(reason), Some(Gap { reason: reason.to_owned(), goes_on: false })),
        Some(Ok(before)) => before,
    };
    let Some(gap) = find_gap(&before, way, standing, (&identity, &incarnation)) else {
        return (Position { identity, incarnation, ..before }, None);
    };
    let mut position = Position {
        holding: before.holding,
        last_reconcile: before.last_reconcile,
        gaps: before.gaps,
        ..afresh(&gap.reason)
    };
    if before.way == way {
        // Below the old counter nothing is known; up to it the reconcile compares every row, whatever its number.
        position.generation = before.generation.min(counter);
    }
    if let (Standing::Outbox(look), Some(before), true) = (standing, before.drain, gap.goes_on) {
        // What was under way while the triggers were off ends later.
        let unsettled = (!look.is_settled()).then_some(look.next_xid);
        position.drain = Some(Drain { unsettled: unsettled.or(before.unsettled), ..before });
    }
    (position, Some(gap))
}

fn find_gap(before: &Position, way: Way, standing: &Standing, now: (&Identity, &Incarnation)) -> Option<Gap> {
    let lost = |reason: String| Some(Gap { reason, goes_on: false });
    if before.way != way {
        let (from, to) = (before.way.name(), way.name());
        return lost(format!("the way of capture changed from {from} to {to}"));
    }
    let found = difference((&before.identity, &before.incarnation), now);
    if let Some(found) = found.filter(|found| !found.keeps_numbers) {
        return lost(found.reason.to_owned());
    }
    match (standing, &before.drain) {
        (Standing::Counter(counter), _) if *counter < before.generation => {
            return lost(found.map_or("the catalog's counter went back", |found| found.reason).to_owned());
        }
        (Standing::Outbox(_), None) => return lost("the position has no drain".to_owned()),
        (Standing::Outbox(look), Some(drain)) if drain.is_after(&look.snapshot) => {
            return lost("the catalog's transaction numbers went back".to_owned());
        }
        (Standing::Outbox(look), Some(drain))
            if look.cleaned.as_ref().is_some_and(|cleaned| !drain.from.includes(cleaned)) =>
        {
            return lost("the outbox was cleaned beyond what the log holds".to_owned());
        }
        _ => {}
    }
    let are_ours = way == Way::Triggers && before.identity.trigger != now.0.trigger;
    let reason = |found: Difference| {
        if are_ours { "the bridge's triggers were off or replaced, or their table was rewritten" } else { found.reason }
    };
    found.map(|found| Gap { reason: reason(found).to_owned(), goes_on: true })
}

/// An identifier in SQL.
fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

#[cfg(test)]
mod resume_tests {
    use super::*;

    fn identity(started_at: &str) -> Identity {
        Identity { started_at: started_at.to_owned(), database: "5".to_owned(), table: "9".to_owned(), trigger: None }
    }

    fn stored(generation: i64) -> Position {
        Position {
            way: Way::Generations,
            generation,
            drain: None,
            identity: identity("1"),
            incarnation: Incarnation::default(),
            reconcile: None,
            holding: 7,
            last_reconcile: None,
            gaps: Gaps::default(),
        }
    }

    #[track_caller]
    fn check(before: Option<Position>, started_at: &str, counter: i64, generation: i64, gap: Option<&str>) {
        let standing = Standing::Counter(counter);
        let (position, found) = resume(before.map(Ok), &standing, identity(started_at), Incarnation::default());
        assert_eq!(position.generation, generation);
        assert_eq!(found.as_ref().map(|gap| gap.reason.as_str()), gap);
        assert_eq!(position.reconcile.is_some(), gap.is_some());
    }

    #[test]
    fn signs_of_a_gap_begin_a_reconcile() {
        check(None, "1", 40, 40, Some("first start"));
        check(Some(stored(40)), "1", 55, 40, None);
        check(Some(stored(40)), "2", 55, 40, Some("the database server was restarted"));
        check(Some(stored(40)), "1", 39, 39, Some("the catalog's counter went back"));
        check(Some(stored(40)), "2", 39, 39, Some("the database server was restarted"));
        let other_way = Position { way: Way::Reconcile, ..stored(0) };
        check(Some(other_way), "1", 39, 39, Some("the way of capture changed from reconcile to generations"));
    }

    #[test]
    fn a_reconcile_under_way_goes_on_where_it_was() {
        let progress =
            Progress { after: Some("component:default/m".to_owned()), ..Progress::begin("first start", true) };
        let before = Position { reconcile: Some(progress.clone()), ..stored(40) };

        let (position, gap) = resume(Some(Ok(before)), &Standing::Counter(41), identity("1"), Incarnation::default());

        assert_eq!((position.reconcile, gap), (Some(progress), None));
    }

    #[track_caller]
    fn check_drain(from: &str, now: &str, cleaned: Option<&str>, started_at: &str, gap: Option<(&str, bool)>) {
        let look = |snapshot: &str| OutboxLook {
            snapshot: snapshot.parse().expect("a snapshot"),
            last_id: 0,
            lost: 0,
            gaps: 0,
            is_abandoned: false,
            cleaned: cleaned.map(|text| text.parse().expect("a snapshot")),
            next_xid: 0,
        };
        let before = Position { way: Way::Triggers, drain: Some(Drain::begin(&look(from))), ..stored(0) };
        let standing = Standing::Outbox(look(now));

        let (position, found) = resume(Some(Ok(before)), &standing, identity(started_at), Incarnation::default());

        assert_eq!(found.as_ref().map(|gap| (gap.reason.as_str(), gap.goes_on)), gap);
        let goes_on = gap.is_none_or(|(_, goes_on)| goes_on);
        assert_eq!(position.drain.expect("a drain").from.to_string(), if goes_on { from } else { now });
    }

    #[test]
    fn a_drain_goes_on_only_where_its_numbers_mean_the_same() {
        check_drain("10:12:10", "20:20:", Some("10:11:10"), "1", None);
        check_drain("10:12:10", "20:20:", None, "2", Some(("the database server was restarted", true)));
        let cleaned = "the outbox was cleaned beyond what the log holds";
        check_drain("10:12:10", "20:20:", Some("12:12:"), "1", Some((cleaned, false)));
        check_drain("30:30:", "20:20:", None, "1", Some(("the catalog's transaction numbers went back", false)));
    }
}
