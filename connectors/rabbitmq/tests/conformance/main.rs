//! The sink against real brokers: the kit, and what only RabbitMQ can do.

mod broker;
mod cluster;
mod driver;
mod faults;
mod kit;
mod login;
mod misconfigured;
mod routes;
