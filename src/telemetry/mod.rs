//! How the daemon tells what it does: states of sources and sinks, metrics, logs.
//!
//! Knows nothing of how anything works; the rooms publish here and `http` and `cli` read.

pub mod logging;
pub mod metrics;
mod status;

pub use status::{ConsumerState, ConsumerStatus, StatusBoard};
