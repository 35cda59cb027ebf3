//! PostgreSQL servers of several releases, each shared by the tests of this binary.

use anyhow::Result;
use catalog_bridge_services::{Postgres, PostgresOptions, PostgresVersion};
use tokio::sync::OnceCell;

/// The server of this release; it allows two-phase commit.
pub(crate) async fn postgres(version: PostgresVersion) -> Result<&'static Postgres> {
    static V14: OnceCell<Postgres> = OnceCell::const_new();
    static V17: OnceCell<Postgres> = OnceCell::const_new();
    static V18: OnceCell<Postgres> = OnceCell::const_new();
    let server = match version {
        PostgresVersion::V14 => &V14,
        PostgresVersion::V17 => &V17,
        PostgresVersion::V18 => &V18,
    };
    let settings = vec![("max_prepared_transactions".to_owned(), "20".to_owned())];
    server.get_or_try_init(|| Postgres::start(PostgresOptions { version, settings, ..Default::default() })).await
}
