//! What to connect with; mounted secrets are opened again after a failure, so that they can rotate.

use std::str::FromStr;

use catalog_bridge_api::BoxError;
use sqlx::postgres::PgConnectOptions;

use super::{PostgresSettings, PostgresStore, StoreError};

/// The options of a connection made now.
pub(in crate::store) fn connect_options(settings: &PostgresSettings) -> Result<PgConnectOptions, StoreError> {
    let misconfigured = |source: BoxError| StoreError::Unavailable { action: "read the store's url", source };
    let url = settings.url.open().map_err(|error| misconfigured(error.into()))?;
    // The parser's error may quote the URL, which may hold a password.
    let mut options = PgConnectOptions::from_str(&url)
        .map_err(|_| misconfigured("this is no PostgreSQL URL (postgres://user@host:5432/database)".into()))?;
    if let Some(password) = &settings.password {
        options = options.password(&password.open().map_err(|error| misconfigured(error.into()))?);
    }
    // PgBouncer refuses the start-up parameter extra_float_digits, and named statements do not survive it.
    Ok(options.extra_float_digits(None).statement_cache_capacity(0).application_name("catalog-bridge"))
}

impl PostgresStore {
    /// After a failure the pool's next connections take the secrets as they are then; open ones stay.
    pub(super) fn read_credentials_after<T>(&self, result: Result<T, StoreError>) -> Result<T, StoreError> {
        if result.is_err()
            && let Ok(options) = connect_options(&self.settings)
        {
            self.pool.set_connect_options(options);
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use catalog_bridge_api::Secret;
    use catalog_bridge_services::{Postgres, PostgresOptions};

    use super::super::super::{Backend, EventLog, Metrics, Settings};
    use super::*;

    /// A server that asks one role for its password, on any connection.
    async fn server() -> Postgres {
        let server = Postgres::start(PostgresOptions::default()).await.expect("a server");
        let statements =
            "create role rotating login superuser password 'first-secret'; create database rotating owner rotating";
        for statement in statements.split("; ") {
            server.execute("postgres", statement).await.expect("prepared");
        }
        let file = server.data_directory().join("pg_hba.conf");
        let rules = std::fs::read_to_string(&file).expect("read");
        std::fs::write(&file, format!("host all rotating 127.0.0.1/32 scram-sha-256\n{rules}")).expect("written");
        server.execute("postgres", "select pg_reload_conf()").await.expect("reloaded");
        server
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_password_that_was_changed_is_read_from_its_file_again() {
        let server = server().await;
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), "first-secret\n").expect("written");
        let url = format!("postgres://rotating@{}/rotating", server.address());
        let mut postgres = PostgresSettings::new(Secret::new(url));
        postgres.password = Some(Secret::new(format!("file:{}", file.path().display())));
        let settings = Settings::new(Backend::Postgres(postgres.clone()));
        let store = PostgresStore::open(&settings, &postgres, Metrics::default()).await.expect("opened");

        std::fs::write(file.path(), "second-secret\n").expect("written");
        let change = "alter role rotating password 'second-secret'";
        server.execute("postgres", change).await.expect("changed");
        let cut = "select pg_terminate_backend(pid) from pg_stat_activity where usename = 'rotating'";
        server.execute("postgres", cut).await.expect("cut off");

        let begun = Instant::now();
        while let Err(error) = store.state().await {
            assert!(begun.elapsed() < Duration::from_secs(60), "the store never came back: {error}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}
