use std::path::PathBuf;
use std::time::Duration;

use catalog_bridge_api::Secret;

/// Where the log is kept and how; every value resolved.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Which store.
    pub backend: Backend,
    /// How long leases last: a transaction that holds the head lock is ended by the server below half of it.
    pub lease: Duration,
    /// Most bytes of committed events that this process keeps for its live readers and sinks.
    pub tail_bytes_max: usize,
}

/// The two stores.
#[derive(Debug, Clone)]
pub enum Backend {
    /// A database that replicas share.
    Postgres(PostgresSettings),
    /// A file of this machine, for one process.
    Sqlite {
        /// The database file; made when it is not there.
        path: PathBuf,
    },
}

/// A PostgreSQL (13 or newer) store, directly or through PgBouncer in transaction mode.
#[derive(Debug, Clone)]
pub struct PostgresSettings {
    /// `postgres://user:password@host/database`.
    pub url: Secret,
    /// The role's password, instead of one in `url`; opened at each use, so that a mounted secret rotates.
    pub password: Option<Secret>,
    /// A direct connection for LISTEN, where `url` leads through PgBouncer; without it other replicas' appends are noticed
    /// by polling only.
    pub listen_url: Option<Secret>,
    /// The schema of the tables; made when it is not there.
    pub schema: String,
    /// Most connections of this process.
    pub connections_max: u32,
}

impl Settings {
    /// Settings with the usual limits.
    pub fn new(backend: Backend) -> Self {
        Settings { backend, lease: Duration::from_secs(15), tail_bytes_max: 64 * 1024 * 1024 }
    }

    /// A SQLite store at this path.
    pub fn sqlite(path: impl Into<PathBuf>) -> Self {
        Settings::new(Backend::Sqlite { path: path.into() })
    }

    /// A PostgreSQL store at this address.
    pub fn postgres(url: impl Into<String>) -> Self {
        Settings::new(Backend::Postgres(PostgresSettings::new(Secret::new(url))))
    }
}

impl PostgresSettings {
    /// The schema that holds the log unless another is named.
    pub const SCHEMA: &'static str = "catalog_bridge";

    /// Settings with the usual limits.
    pub fn new(url: Secret) -> Self {
        PostgresSettings { url, password: None, listen_url: None, schema: Self::SCHEMA.to_owned(), connections_max: 10 }
    }
}
