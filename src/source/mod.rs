//! Where changes come from: Backstage's database, files, HTTP ingest.
//!
//! Invariants: P3 (nothing that the catalog committed is missed), P9 (one owner per source, appends carry its epoch), P10
//! (the catalog does not feel it). A source states "this entity is now so" or "this ref is gone"; the log decides what
//! that means. Knows nothing of HTTP, sinks and brokers.

pub mod entity;

pub use entity::{EntityError, ParsedEntity, parse_entity};
