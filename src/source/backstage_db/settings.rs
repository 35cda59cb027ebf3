//! How a catalog's database is read; plain, resolved values.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use catalog_bridge_api::Secret;
use sqlx::postgres::PgConnectOptions;

/// Everything that the capture of one catalog needs.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where it is.
    pub connect: Connect,
    /// The schema of the catalog's tables: `public`, or `catalog` where Backstage divides by schema.
    pub schema: String,
    /// The way of capture.
    pub capture: CaptureChoice,
    /// Pause between looks at the counter. `None`: 50 ms for ten seconds after a change (by triggers
    /// 10 ms), else 250 ms.
    pub poll_interval: Option<Duration>,
    /// Pause between looks for removals; stretched so that they cost the database less than 1 % of a core.
    pub removal_interval: Duration,
    /// Pause between scheduled reconciles beside another way of capture.
    pub reconcile_interval: Duration,
    /// Pause between reconciles where they are the only way of capture; stretched to less than 1 % of a core.
    pub reconcile_only_interval: Duration,
    /// When a mass removal is held back; `None`: never.
    pub removal_guard: Option<RemovalGuard>,
    /// Rows of a page, of changes as of a reconcile.
    pub page_rows: u32,
    /// The schema of our own triggers' outbox, in the catalog's database; one for each bridge.
    pub trigger_schema: String,
    /// The triggers write no more when nobody drained for so long.
    pub abandon_after: Duration,
    /// Lets a test widen the window in which an entity may return between the two looks of a sweep.
    #[cfg(test)]
    pub(super) pause_between_looks: Duration,
    /// Longest wait for a connection.
    pub connect_timeout: Duration,
    /// Longest wait for a statement, on both sides.
    pub statement_timeout: Duration,
}

impl Settings {
    /// The defaults, for a database.
    pub fn new(connect: Connect) -> Self {
        Settings {
            connect,
            schema: "public".to_owned(),
            capture: CaptureChoice::Auto,
            poll_interval: None,
            removal_interval: Duration::from_secs(1),
            reconcile_interval: Duration::from_secs(24 * 60 * 60),
            reconcile_only_interval: Duration::from_secs(10),
            removal_guard: Some(RemovalGuard::default()),
            page_rows: 1_000,
            trigger_schema: "catalog_bridge".to_owned(),
            abandon_after: Duration::from_secs(7 * 24 * 60 * 60),
            #[cfg(test)]
            pause_between_looks: Duration::ZERO,
            connect_timeout: Duration::from_secs(10),
            statement_timeout: Duration::from_secs(30),
        }
    }
}

/// Which way of capture the config asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CaptureChoice {
    /// Triggers where they are installed, else generations where the catalog has them, else reconcile.
    #[default]
    Auto,
    /// Our own triggers, which `source install` makes.
    Triggers,
    /// The numbers that catalog backends from 4.0.3 on give at commit.
    Generations,
    /// Comparing everything, again and again.
    Reconcile,
}

/// Removals are held back when more than this share *and* this count of a source's entities vanish at once.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RemovalGuard {
    /// Of the source's entities, 0 to 1.
    pub share: f64,
    /// Of refs.
    pub count: u64,
}

impl Default for RemovalGuard {
    fn default() -> Self {
        RemovalGuard { share: 0.5, count: 100 }
    }
}

impl RemovalGuard {
    /// Whether so many removals of so many entities are too many to believe.
    pub fn holds(&self, removals: u64, entities: u64) -> bool {
        removals > self.count && removals as f64 > self.share * entities as f64
    }
}

const NO_URL: &str = "the catalog's url is no PostgreSQL URL (postgres://user@host:5432/database)";

/// Makes the options of a connection afresh each time, so that mounted secrets rotate.
#[derive(Clone)]
pub struct Connect(Arc<dyn Fn() -> Result<PgConnectOptions, String> + Send + Sync>);

impl Connect {
    /// Asks this function before each connection. Its error names the setting and never a secret.
    pub fn new(options: impl Fn() -> Result<PgConnectOptions, String> + Send + Sync + 'static) -> Self {
        Connect(Arc::new(options))
    }

    /// A connection by URL.
    pub fn url(url: Secret) -> Self {
        Connect::new(move || {
            let url = url.open().map_err(|error| error.to_string())?;
            // The parser takes any scheme, and its error may quote the URL, which holds the password.
            let is_postgres = url.starts_with("postgres://") || url.starts_with("postgresql://");
            url.parse().ok().filter(|_| is_postgres).ok_or_else(|| NO_URL.to_owned())
        })
    }

    /// The role and the database that are connected to.
    pub fn names(&self) -> Result<(String, String), String> {
        let options = self.options()?;
        let role = options.get_username().to_owned();
        Ok((role.clone(), options.get_database().map_or(role, str::to_owned)))
    }

    /// The options, without anything that a pooler in transaction mode refuses.
    pub(super) fn options(&self) -> Result<PgConnectOptions, String> {
        Ok((self.0)()?.extra_float_digits(None).statement_cache_capacity(0).application_name("catalog-bridge"))
    }
}

impl fmt::Debug for Connect {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("***")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guard_holds_only_above_share_and_count() {
        let guard = RemovalGuard::default();

        assert!(!guard.holds(100, 100));
        assert!(guard.holds(101, 101));
        assert!(!guard.holds(500, 1_000));
        assert!(guard.holds(501, 1_000));
    }

    #[test]
    fn a_wrong_url_does_not_show_its_password() {
        for url in ["mysql://u:hunter2@h/d", "postgres://u:hunter2@h:port/d"] {
            assert_eq!(Connect::url(Secret::new(url)).options().err().as_deref(), Some(NO_URL));
        }
    }
}
