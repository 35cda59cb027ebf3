//! catalog-bridge.
fn main() {}
