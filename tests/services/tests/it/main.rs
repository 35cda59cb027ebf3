//! Every server starts, answers, survives a crash and ends with its parent.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod backstage;
mod elasticmq;
mod fault_proxy;
mod kafka;
mod nats;
mod pgbouncer;
mod postgres;
mod rabbitmq;
mod supervisor;
