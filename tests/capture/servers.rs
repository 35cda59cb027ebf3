//! PostgreSQL servers of several releases, each shared by the tests of this binary.

use anyhow::{Context, Result};
use catalog_bridge_services::{Postgres, PostgresOptions, PostgresVersion};
use tokio::sync::OnceCell;

/// The server of this release; it allows two-phase commit.
pub(crate) async fn postgres(version: PostgresVersion) -> Result<&'static Postgres> {
    static SERVERS: [OnceCell<Postgres>; PostgresVersion::ALL.len()] = [const { OnceCell::const_new() }; 5];
    let number = PostgresVersion::ALL.iter().position(|other| *other == version).context("a known release")?;
    let settings = vec![("max_prepared_transactions".to_owned(), "20".to_owned())];
    SERVERS[number]
        .get_or_try_init(|| Postgres::start(PostgresOptions { version, settings, ..Default::default() }))
        .await
}
