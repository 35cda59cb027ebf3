//! One file per promise of the README, tested through the front door: REST, CLI, broker.

#[allow(dead_code, unreachable_pub, reason = "each test binary uses a part of what they share")]
#[path = "../support/mod.rs"]
mod support;

mod p01_dense_and_final;
mod p02_well_formed;
mod p03_nothing_missed;
mod p04_bootstrap_is_exact;
mod p05_in_order_per_sink;
mod p06_at_least_once_bounded;
mod p06_walks;
mod p07_isolated;
mod p08_nothing_dropped_silently;
mod p09_fenced;
mod p10_catalog_does_not_feel_it;
