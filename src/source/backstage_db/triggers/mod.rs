//! Capture by triggers of our own on the catalog's table, which write an outbox in a schema of our own beside it.
//!
//! Invariants:
//! - P10: nothing that goes wrong in a trigger fails the catalog's statement. Every error is caught, cancellations too, and
//!   leaves a mark: a row in `gap`, or a number drawn from `lost` where even that cannot be written. A lock is waited for at most
//!   50 ms. When nobody drains, the triggers fall silent.
//! - P3: a row is read once it is visible and was not before, by the snapshots of two looks. So late commits are not
//!   missed and rolled back ones never seen, whatever the order of ids. Changes of one entity wait for each other's row
//!   lock, so within two snapshots the order of ids is the order of commits.
//! - Rows are deleted only when the log holds them; how far that went is noted beside them, and compared at each start.
//!
//! The schema and what is in it belong to the bridge's role; the catalog's role has no right there. One bridge has one such
//! schema: several bridges on one catalog each name their own.

pub(super) mod drain;
pub(super) mod health;
pub(super) mod install;
pub(super) mod outbox;
pub(super) mod snapshot;
pub(super) mod sql;
