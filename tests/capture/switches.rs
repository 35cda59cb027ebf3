//! The way of capture changes while the daemon runs: nothing is repeated, nothing lost.
