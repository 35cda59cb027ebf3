//! The ledger of what a log holds and what a destination received, and its judge.
//!
//! The judge knows the invariants of ordered, checkpointed delivery and nothing of how they are kept:
//!
//! - no loss: at the end the destination holds everything that the sink's view lets through, and at each checkpoint
//!   everything up to it but for what was skipped with a record;
//! - step rule: per key (or over all, for `ordering: stream`) the first deliveries are in offset order, and a step back
//!   happens only at a session border;
//! - suffix: what is repeated lies above the checkpoint and goes on step by step;
//! - bounded repetition: at a border at most the in-flight window is repeated, and none where the destination can tell;
//! - determinism: the same generation and offset always carry the same bytes;
//! - checkpoint: it never goes back within a generation, and never beyond the head;
//! - last writer: folding the deliveries by key gives the state that folding the log gives.

mod checkpoint;
mod delivery;
mod last_writer;
mod well_formed;

pub use checkpoint::{Seen, check_acknowledged, check_checkpoints, check_suffix};
pub use delivery::{Delivered, DeliveryRules, Lane, check_delivery, repeats};
pub use last_writer::check_last_writer;
pub use well_formed::{Truth, check_dense, check_well_formed, live_state};
