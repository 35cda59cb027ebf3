//! Which catalog this is: whether the database that answers is the one that was read before.
//!
//! Keeps P3 over restores and failovers: generations mean something only within one incarnation. Every transaction reads the
//! identity, so that not even a pooler that changes servers between two statements can mix two databases.

use serde::{Deserialize, Serialize};

/// The server process and the table of one transaction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Identity {
    /// When the server started, in seconds since 1970, as text.
    pub(super) started_at: String,
    /// The database's oid.
    pub(super) database: String,
    /// The oid of `final_entities`.
    pub(super) table: String,
    /// The state of the triggers that capture goes by and the transactions that gave it: while they were off, changes left no
    /// trace. `None` by reconcile.
    #[serde(default)]
    pub(super) trigger: Option<String>,
}

/// What stays over a plain restart. A part that the role or the server does not let us read is `None` and compares equal.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Incarnation {
    /// Made by initdb, kept by physical copies.
    pub(super) system: Option<String>,
    /// Raised by a promotion or a point-in-time recovery.
    pub(super) timeline: Option<String>,
}

/// A sign that this is not the catalog that was read, or not as it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Difference {
    /// For a person.
    pub(super) reason: &'static str,
    /// Whether numbers of transactions still mean what they meant.
    pub(super) keeps_numbers: bool,
}

/// What differs; `None` when nothing does.
pub(super) fn difference(before: (&Identity, &Incarnation), now: (&Identity, &Incarnation)) -> Option<Difference> {
    let differs = |before: &Option<String>, now: &Option<String>| matches!((before, now), (Some(a), Some(b)) if a != b);
    let other = |reason| Some(Difference { reason, keeps_numbers: false });
    let same = |reason| Some(Difference { reason, keeps_numbers: true });
    if differs(&before.1.system, &now.1.system) {
        other("the catalog is in another database cluster")
    } else if before.0.database != now.0.database {
        other("the catalog is in another database")
    } else if before.0.table != now.0.table {
        other("the catalog's table was made anew")
    } else if differs(&before.1.timeline, &now.1.timeline) {
        other("the database server was promoted or recovered to an earlier point")
    } else if before.0.trigger != now.0.trigger {
        same("the trigger that numbers the catalog's changes was off or replaced")
    } else if before.0.started_at != now.0.started_at {
        same("the database server was restarted")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(started_at: &str, database: &str) -> Identity {
        Identity {
            started_at: started_at.to_owned(),
            database: database.to_owned(),
            table: "1".to_owned(),
            trigger: None,
        }
    }

    #[test]
    fn what_cannot_be_read_is_no_difference() {
        let known = Incarnation { system: Some("7".to_owned()), timeline: Some("00000001".to_owned()) };
        let unknown = Incarnation::default();
        let promoted = Incarnation { timeline: Some("00000002".to_owned()), ..known.clone() };
        let here = identity("1", "5");

        assert_eq!(difference((&here, &known), (&here, &known)), None);
        assert_eq!(difference((&here, &known), (&here, &unknown)), None);
        assert!(difference((&here, &known), (&here, &promoted)).is_some_and(|found| found.reason.contains("promoted")));
        assert!(
            difference((&here, &known), (&identity("2", "5"), &known))
                .is_some_and(|found| found.reason.contains("restarted"))
        );
        assert!(
            difference((&here, &known), (&identity("2", "6"), &known))
                .is_some_and(|found| found.reason.contains("another"))
        );
    }
}
