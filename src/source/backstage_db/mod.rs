//! Captures Backstage's catalog from its database, without writing there.
//!
//! Invariants:
//! - P3: by `generations` every row is read after the number that it was given at commit, and these numbers appear in commit
//!   order; removals are found by counting in the snapshot that was just read, and confirmed by a second look. What
//!   this cannot see (a restored or replaced database) is noticed by the server's identity, and repaired by a reconcile.
//! - No false removal: a ref is removed only after a look that began when everything that we hold had been committed, and
//!   nothing is appended between that look and the removal.
//! - P10: READ ONLY transactions, none longer than a page; looks are stretched to less than 1 % of a core.
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

pub use check::{Inspection, inspect};
pub use grants::grants;
pub use settings::{CaptureChoice, Connect, RemovalGuard, Settings};

use tracing::{info, warn};

use self::catalog::Catalog;
use self::guard::HeldRemovals;
use self::incarnation::{Identity, Incarnation, difference};
use self::ledger::Ledger;
use self::position::{Gaps, Position, Progress, Way};
use self::schema::{Choice, Schema};
use self::session::Session;
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
        let incarnation = catalog.incarnation().await?;
        let can_sum = catalog.hashes_as_we_do().await?;
        let stored =
            owner.position().map(|text| Position::parse(text).ok_or("the stored position is of an unknown format"));
        let (mut position, gap) = resume(stored, choice.way, identity, incarnation, counter)?;
        log_opened(owner, &schema, &choice, gap.as_deref());
        // Before the first start there was nothing to miss.
        if let Some(reason) = gap.as_deref().filter(|reason| *reason != FIRST_START) {
            position.gaps.note(reason);
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

/// Decides where to go on, and whether capture may have missed something since.
fn resume(
    stored: Option<Result<Position, &'static str>>,
    way: Way,
    identity: Identity,
    incarnation: Incarnation,
    counter: Option<i64>,
) -> Result<(Position, Option<String>), SourceError> {
    let counter = match (way, counter) {
        (Way::Generations, Some(counter)) => counter,
        (Way::Generations, None) => {
            return Err(SourceError::Misconfigured(
                "catalog_generation_counter has no row with id 1: use capture: reconcile until Backstage repaired it"
                    .to_owned(),
            ));
        }
        (Way::Reconcile, _) => 0,
    };
    let afresh = |reason: &str, generation: i64| {
        let position = Position {
            way,
            generation,
            identity: identity.clone(),
            incarnation: incarnation.clone(),
            reconcile: Some(Progress::begin(reason, true)),
            holding: 0,
            last_reconcile: None,
            gaps: Gaps::default(),
        };
        Ok((position, Some(reason.to_owned())))
    };
    let before = match stored {
        None => return afresh(FIRST_START, counter),
        Some(Err(reason)) => return afresh(reason, counter),
        Some(Ok(before)) => before,
    };
    let kept = |position: Position, before: Position| Position {
        holding: before.holding,
        last_reconcile: before.last_reconcile,
        gaps: before.gaps,
        ..position
    };
    if before.way != way {
        let (position, gap) = afresh("the way of capture changed", counter)?;
        return Ok((kept(position, before), gap));
    }
    let gap = difference((&before.identity, &before.incarnation), (&identity, &incarnation))
        .or_else(|| (counter < before.generation).then_some("the catalog's counter went back"));
    match gap {
        // Below the old counter nothing is known; up to it the reconcile compares every row, whatever its number.
        Some(reason) => {
            let (position, gap) = afresh(reason, before.generation.min(counter))?;
            Ok((kept(position, before), gap))
        }
        None => Ok((Position { identity, incarnation, ..before }, None)),
    }
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
        let (position, found) =
            resume(before.map(Ok), Way::Generations, identity(started_at), Incarnation::default(), Some(counter))
                .expect("a position");
        assert_eq!(position.generation, generation);
        assert_eq!(found.as_deref(), gap);
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
        check(Some(other_way), "1", 39, 39, Some("the way of capture changed"));
    }

    #[test]
    fn a_reconcile_under_way_goes_on_where_it_was() {
        let progress =
            Progress { after: Some("component:default/m".to_owned()), ..Progress::begin("first start", true) };
        let before = Position { reconcile: Some(progress.clone()), ..stored(40) };

        let (position, gap) =
            resume(Some(Ok(before)), Way::Generations, identity("1"), Incarnation::default(), Some(41))
                .expect("a position");

        assert_eq!((position.reconcile, gap), (Some(progress), None));
    }
}
