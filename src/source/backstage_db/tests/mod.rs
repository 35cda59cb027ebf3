//! Capture against a real PostgreSQL with the catalog's real schema, by a role that may read two tables and nothing else.

mod catalog;
mod faults;
mod history;
mod removals;
