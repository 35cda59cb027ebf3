//! Servers that all tests of one test binary share: started at first use, stopped when the process ends.
//!
//! Tests keep apart by database, topic or subject. Stopping and harming a server needs `&mut`, so nobody can do that to a
//! shared one; such tests start their own.

use anyhow::Result;
use tokio::sync::OnceCell;

use crate::{Kafka, KafkaOptions, Postgres, PostgresOptions};

/// The shared PostgreSQL 17.
pub async fn postgres() -> Result<&'static Postgres> {
    static SHARED: OnceCell<Postgres> = OnceCell::const_new();
    SHARED.get_or_try_init(|| Postgres::start(PostgresOptions::default())).await
}

/// The URL of a new, empty database on the shared PostgreSQL; its name begins with `stem`.
pub async fn fresh_database(stem: &str) -> Result<String> {
    postgres().await?.fresh_database(stem).await
}

/// The shared Kafka, one node.
pub async fn kafka() -> Result<&'static Kafka> {
    static SHARED: OnceCell<Kafka> = OnceCell::const_new();
    SHARED.get_or_try_init(|| Kafka::start(KafkaOptions::default())).await
}
