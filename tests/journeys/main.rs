//! What a user does, from end to end.

#[allow(dead_code, unreachable_pub, reason = "each test binary uses a part of what they share")]
#[path = "../support/mod.rs"]
mod support;

mod backlog;
mod backstage_to_kafka;
mod bad_input;
mod cli;
mod consumer_loop;
mod every_sink;
mod rabbitmq_troubles;
mod restores;
mod webhook_troubles;
