//! The fault matrix: every kind of destination, on one node and on three, through every fault, on both stores, with the real
//! daemon, real servers and `tests/history` as the judge of what was stored (P5, P6), of who it concerned (P7) and of what woke
//! up (P9).
//!
//! The table of cells is in `matrix.rs`; `cell.rs` runs one of them; `fault.rs` says what each fault is, `destination/` how each
//! server is started, harmed and read. A new connector brings one file in `destination/` and its lines in the table.
//!
//! `cargo test --test faults` runs a choice that the seed makes: every kind of sink and every fault at least once.
//! `CATALOG_BRIDGE_TEST=long` runs all cells and prints the table of `docs/fault-matrix.md`. `CATALOG_BRIDGE_SEED` repeats a
//! run, and `CATALOG_BRIDGE_CELLS`, a part of a cell's name, such a cell alone.

#[allow(dead_code, unreachable_pub, reason = "each test binary uses a part of what they share")]
#[path = "../support/mod.rs"]
mod support;

mod cell;
mod destination;
mod fault;
mod judge;
mod load;
mod matrix;
mod scene;
mod table;

use anyhow::{Result, ensure};

/// P5, P6, P7, P9: in every cell nothing is lost, nothing is out of order, and what is repeated is a suffix.
#[tokio::test(flavor = "multi_thread")]
async fn every_cell_holds() -> Result<()> {
    let seed = support::seed();
    let cells = matrix::chosen(seed);

    let outcomes = matrix::run(&cells, seed).await;

    println!("{}", table::render(&outcomes));
    let failed: Vec<String> = outcomes
        .iter()
        .filter_map(|(cell, outcome)| outcome.as_ref().err().map(|error| format!("{cell}: {error:#}")))
        .collect();
    ensure!(failed.is_empty(), "CATALOG_BRIDGE_SEED={seed}\n{}", failed.join("\n\n"));
    Ok(())
}
