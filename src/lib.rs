//! catalog-bridge.
