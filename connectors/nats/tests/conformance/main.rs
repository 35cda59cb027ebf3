//! The NATS connector on a real server: order, prefix, acknowledgements, the tail, refusals, logins.

mod cluster;
mod faults;
mod kit;
mod login;
mod refusals;
mod server;
mod sink;
mod tail;
