//! The Kafka connector on a real Kafka: order, prefix, acknowledgements, refusals, fencing, rights.

mod broker;
mod cluster;
mod idempotent;
mod kit;
mod refusals;
mod sink;
mod topic;
mod topology;
mod transactional;
