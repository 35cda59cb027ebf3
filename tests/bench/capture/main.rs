//! What capture costs a catalog's database, and how soon an event comes of a commit.
//!
//! `cargo bench --bench capture -- stitching|upserts|waits|scale|latency|noise [arguments]`; docs/capture-performance.md holds
//! the results. Each prints a table and asserts nothing about time. The machine decides the absolute figures: compare within
//! one run. CPU is what the kernel counts for the server's processes, so that other work on the machine does not enter.

#[allow(dead_code, unreachable_pub, reason = "each test binary uses a part of what they share")]
#[path = "../../support/mod.rs"]
mod support;

mod cpu;
mod latency;
mod noise;
mod scale;
mod stitching;
mod upserts;
mod waits;
mod ways;

use anyhow::{Result, bail};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    // `cargo test --benches` builds and starts this too; there is nothing to test in it.
    if arguments.iter().any(|argument| argument == "--test") {
        return Ok(());
    }
    let Some((what, arguments)) = arguments.split_first() else {
        bail!("name one of stitching, upserts, waits, scale, latency, noise");
    };
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(async {
        match what.as_str() {
            "stitching" => stitching::run(arguments).await,
            "upserts" => upserts::run(arguments).await,
            "waits" => waits::run().await,
            "scale" => scale::run(arguments).await,
            "latency" => latency::run(arguments).await,
            "noise" => noise::run().await,
            other => bail!("no bench is called {other}"),
        }
    })
}

/// The argument at a place, as a number.
fn number(arguments: &[String], place: usize, default: usize) -> Result<usize> {
    Ok(arguments.get(place).map(|text| text.parse()).transpose()?.unwrap_or(default))
}

/// The middle of some measures.
fn median(measures: &[f64]) -> f64 {
    let mut sorted = measures.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The smallest, the middle and the largest.
fn spread(measures: &[f64], digits: usize) -> String {
    let least = measures.iter().copied().fold(f64::INFINITY, f64::min);
    let most = measures.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    format!("{least:.digits$} / {:.digits$} / {most:.digits$}", median(measures))
}
