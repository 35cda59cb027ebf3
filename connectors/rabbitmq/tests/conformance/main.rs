//! The sink against real brokers: the kit, and what only RabbitMQ can do.

mod broker;
mod driver;
mod faults;
mod kit;
mod misconfigured;
