//! What lies in `deploy/` is judged by the tools and schemas of those who will read it, and by our own binary.

#[allow(dead_code, unreachable_pub, reason = "each test binary uses a part of what they share")]
#[path = "../support/mod.rs"]
mod support;

mod api_server;
mod charts;
mod compose;
mod config;
mod host;
mod image;
mod monitoring;
mod release;
mod rollback;
mod schemas;
mod sidecar;
mod standalone;
mod termination;
mod values;
