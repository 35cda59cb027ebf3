//! The routes as clients see them: a real listener, real requests, a store in memory.

mod access;
mod bad_input;
mod consumer;
mod fake_store;
mod harness;
mod operator;
mod reading;
mod waiting;
