//! A PostgreSQL database as the config names it: by URL or by its parts.

use std::path::PathBuf;
use std::str::FromStr;

use catalog_bridge_api::Secret;
use serde::Deserialize;
use sqlx::postgres::PgConnectOptions;

use super::refusal::Refusals;

/// A PostgreSQL database: `url`, or `host` and `database` with what else is needed.
#[derive(Debug, Clone, Default, Deserialize, schemars::JsonSchema)]
#[serde(default)]
pub(super) struct DatabaseSection {
    /// `postgres://user:password@host:5432/database?sslmode=verify-full`; `file:/path` reads it from a file. Instead of the parts.
    pub(super) url: Option<Secret>,
    /// The server's name or address.
    host: Option<String>,
    /// The server's port. Default 5432.
    port: Option<u16>,
    /// The database's name.
    database: Option<String>,
    /// The role.
    user: Option<String>,
    /// The role's password: the value, `${VARIABLE}`, or `file:/path`, which is read again at each new connection.
    password: Option<Secret>,
    /// How TLS is used; default `prefer`. Over a network use `verify-full`.
    sslmode: Option<SslMode>,
    /// The authorities to trust, a PEM file. Default: Mozilla's, as they were when this release was built, and not the system's.
    sslrootcert: Option<PathBuf>,
}

/// As libpq has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
enum SslMode {
    Disable,
    Allow,
    Prefer,
    Require,
    VerifyCa,
    VerifyFull,
}

impl SslMode {
    const fn as_str(self) -> &'static str {
        match self {
            SslMode::Disable => "disable",
            SslMode::Allow => "allow",
            SslMode::Prefer => "prefer",
            SslMode::Require => "require",
            SslMode::VerifyCa => "verify-ca",
            SslMode::VerifyFull => "verify-full",
        }
    }
}

/// Where a PostgreSQL database is; secrets are opened at each use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Database {
    pub(super) url: Secret,
    /// Instead of one in the URL.
    pub(super) password: Option<Secret>,
}

impl Database {
    /// A URL; it is checked now unless it stands in a file.
    pub(super) fn from_url(url: &Secret, path: &[&str], refusals: &mut Refusals<'_>) -> Option<Database> {
        if let Some(message) = refuse_url(url) {
            refusals.add(path, message);
            return None;
        }
        Some(Database { url: url.clone(), password: None })
    }

    /// What to connect with, now. The error never shows the URL, which may hold a password.
    pub(super) fn options(&self) -> Result<PgConnectOptions, String> {
        let url = self.url.open().map_err(|error| error.to_string())?;
        let options = PgConnectOptions::from_str(&url)
            .map_err(|_| "this is no PostgreSQL URL (postgres://user@host:5432/database)".to_owned())?;
        match &self.password {
            Some(password) => Ok(options.password(&password.open().map_err(|error| error.to_string())?)),
            None => Ok(options),
        }
    }
}

impl DatabaseSection {
    /// The database; `None` with a refusal.
    pub(super) fn resolve(&self, path: &[&str], refusals: &mut Refusals<'_>) -> Option<Database> {
        let at = |key| [path, &[key]].concat();
        if let Some(url) = &self.url {
            if let Some(key) = self.first_part() {
                refusals.add(&at(key), "this stands beside url; write either the URL or the parts");
                return None;
            }
            return Database::from_url(url, &at("url"), refusals);
        }
        let Some(host) = &self.host else {
            refusals.add(path, "names no database; write url, or host and database");
            return None;
        };
        let Some(database) = &self.database else {
            refusals.add(&at("database"), "this key is missing beside host");
            return None;
        };
        match self.url_of_parts(host, database) {
            Some(url) => Some(Database { url: Secret::new(url), password: self.password.clone() }),
            None => {
                refusals.add(&at("host"), "this is no host name or address");
                None
            }
        }
    }

    /// Without the password, which is opened at each use.
    fn url_of_parts(&self, host: &str, database: &str) -> Option<String> {
        let mut url = url::Url::parse("postgres://localhost").ok()?;
        if host.starts_with('/') {
            // A directory of a Unix socket.
            url.query_pairs_mut().append_pair("host", host);
        } else {
            let is_bare_v6 = host.contains(':') && !host.starts_with('[');
            let host = if is_bare_v6 { format!("[{host}]") } else { host.to_owned() };
            url.set_host(Some(&host)).ok()?;
        }
        url.set_port(self.port).ok()?;
        url.path_segments_mut().ok()?.clear().push(database);
        if let Some(user) = &self.user {
            url.set_username(user).ok()?;
        }
        if let Some(mode) = self.sslmode {
            url.query_pairs_mut().append_pair("sslmode", mode.as_str());
        }
        if let Some(file) = &self.sslrootcert {
            url.query_pairs_mut().append_pair("sslrootcert", file.to_str()?);
        }
        Some(url.into())
    }

    fn first_part(&self) -> Option<&'static str> {
        [
            ("host", self.host.is_some()),
            ("port", self.port.is_some()),
            ("database", self.database.is_some()),
            ("user", self.user.is_some()),
            ("password", self.password.is_some()),
            ("sslmode", self.sslmode.is_some()),
            ("sslrootcert", self.sslrootcert.is_some()),
        ]
        .into_iter()
        .find_map(|(key, is_there)| is_there.then_some(key))
    }
}

/// What is wrong with a URL that stands in the config itself.
fn refuse_url(url: &Secret) -> Option<&'static str> {
    const EXPECTED: &str = "this is no PostgreSQL URL; write postgres://user:password@host:5432/database";
    if url.is_file() {
        return None;
    }
    let text = url.open().ok()?;
    let is_postgres = text.starts_with("postgres://") || text.starts_with("postgresql://");
    (!is_postgres || PgConnectOptions::from_str(&text).is_err()).then_some(EXPECTED)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::document::Node;

    #[track_caller]
    fn resolve(section: serde_json::Value) -> Result<Database, String> {
        let root = Node::parse("log:\n").expect("valid");
        let mut refusals = Refusals::new(&root);
        let section: DatabaseSection = serde_json::from_value(section).expect("a section");
        let database = section.resolve(&["log"], &mut refusals);
        database.ok_or_else(|| refusals.into_list()[0].to_string())
    }

    #[test]
    fn parts_become_the_options_that_the_url_would_give() {
        let database = resolve(serde_json::json!({
            "host": "db.example.com", "port": 6432, "database": "cata/log", "user": "bri@dge", "password": "p:/@",
            "sslmode": "verify-full",
        }))
        .expect("resolved");

        let options = database.options().expect("options");

        assert_eq!(options.get_host(), "db.example.com");
        assert_eq!(options.get_port(), 6432);
        assert_eq!(options.get_username(), "bri@dge");
        assert_eq!(options.get_database(), Some("cata/log"));
        assert!(matches!(options.get_ssl_mode(), sqlx::postgres::PgSslMode::VerifyFull));
        assert!(!format!("{database:?}").contains("p:/@"));
    }

    #[test]
    fn a_url_beside_parts_and_half_a_database_are_refused() {
        let refused = |section| resolve(section).expect_err("refused");

        assert!(refused(serde_json::json!({ "url": "postgres://h/d", "port": 1 })).contains("log.port"));
        assert!(refused(serde_json::json!({ "host": "h" })).contains("log.database"));
        assert!(refused(serde_json::json!({})).contains("names no database"));
        let wrong = refused(serde_json::json!({ "url": "mysql://u:hunter2@h/d" }));
        assert!(wrong.contains("log.url") && !wrong.contains("hunter2"), "{wrong}");
    }

    #[test]
    fn a_password_in_a_file_is_read_at_each_use() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let password = format!("file:{}", file.path().display());
        let database =
            resolve(serde_json::json!({ "host": "h", "database": "d", "password": password })).expect("resolved");
        assert!(database.options().is_ok());

        let path = file.path().to_owned();
        drop(file);

        let error = database.options().expect_err("the file is gone");
        assert!(error.contains(&path.display().to_string()), "{error}");
    }
}
