//! A change feed for Backstage's software catalog: one event table, REST over it, and ordered delivery to sinks.
//!
//! The rooms: `config` reads the file, `store` keeps the log, `source` brings changes, `http` serves readers, `delivery`
//! drives the sinks that `sinks` lists, `telemetry` tells how it goes, `cli` is the operator's hand, `daemon` puts them
//! together. ARCHITECTURE.md is the map.

pub mod cli;
pub mod config;
pub mod daemon;
pub mod delivery;
pub mod filter;
pub mod http;
pub mod sinks;
pub mod source;
pub mod store;
pub mod telemetry;
