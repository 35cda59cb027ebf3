//! PgBouncer in transaction mode before a PostgreSQL: Debian's package, unpacked when the machine has none.
//!
//! Debian 12 has 1.18: named prepared statements fail there once the server connection changes hands, and start-up
//! parameters such as `extra_float_digits` are refused.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result};

use crate::{
    Postgres,
    account::Account,
    cache, debian,
    port::Port,
    process::StopSignal,
    server::{Readiness, Server, ServerSettings},
    supervisor::Supervisor,
};

/// How PgBouncer is started.
#[derive(Clone, Debug)]
pub struct PgBouncerOptions {
    /// Server connections for each database; a low number makes clients change hands often.
    pub pool_size: u32,
    /// The role that every client is at the server.
    pub role: String,
    /// Further lines of the section `[pgbouncer]`, name and value.
    pub settings: Vec<(String, String)>,
}

impl Default for PgBouncerOptions {
    fn default() -> Self {
        Self { pool_size: 2, role: "postgres".to_owned(), settings: Vec::new() }
    }
}

/// A PgBouncer on loopback. Dropped, it is stopped.
#[derive(Debug)]
pub struct PgBouncer {
    port: Port,
    server: Server,
}

impl PgBouncer {
    /// Finds the machine's PgBouncer, or unpacks Debian's into the cache.
    pub async fn install() -> Result<PathBuf> {
        let on_path = env::var_os("PATH").unwrap_or_default();
        let places = env::split_paths(&on_path).chain([PathBuf::from("/usr/sbin")]);
        if let Some(found) = places.map(|place| place.join("pgbouncer")).find(|program| program.is_file()) {
            return Ok(found);
        }
        let suite = debian::host_suite()?;
        let unpacked = cache::installed(&format!("pgbouncer-{suite}"), async |directory| {
            // The machine's own libc is the right one: it is the same release.
            let is_library = |name: &str| name.starts_with("lib") && !name.starts_with("libc6");
            debian::unpack(&suite, &["pgbouncer"], is_library, directory).await
        })
        .await?;
        Ok(unpacked.join("usr/sbin/pgbouncer"))
    }

    /// Starts a pooler before `postgres`. Every client is let in, and is the role of the options there.
    pub async fn start(postgres: &Postgres, options: PgBouncerOptions) -> Result<Self> {
        let program = Self::install().await?;
        let directory = Supervisor::get()?.create_directory("pgbouncer")?;
        let account = Account::unprivileged()?;
        let port = Port::reserve()?;
        let config = directory.join("pgbouncer.ini");
        let mut text = format!(
            "\
[databases]
* = host=127.0.0.1 port={} user={}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = {}
max_client_conn = 500
",
            postgres.port(),
            options.role,
            port.number(),
            options.pool_size,
        );
        for (name, value) in &options.settings {
            text.push_str(&format!("{name} = {value}\n"));
        }
        fs::write(&config, text).with_context(|| format!("writing {}", config.display()))?;
        let mut command = Command::new(&program);
        command.arg(&config).env("LD_LIBRARY_PATH", library_path(&program));
        let mut server = Server::new(ServerSettings {
            name: format!("PgBouncer at 127.0.0.1:{}", port.number()),
            command,
            directory,
            account,
            readiness: Readiness::Port(port.number()),
            start_limit: Duration::from_secs(30),
            stop_signal: StopSignal::Interrupt,
        });
        server.start_again().await?;
        Ok(Self { port, server })
    }

    /// The URL of a database, reached through the pooler.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}", self.port.number())
    }

    /// The pooler as a process, to stop, kill, freeze or start it.
    pub fn server(&mut self) -> &mut Server {
        &mut self.server
    }
}

/// The libraries unpacked with the program; empty for the machine's own.
fn library_path(program: &Path) -> String {
    let Some(root) = program.ancestors().nth(3).filter(|root| *root != Path::new("/")) else { return String::new() };
    let families = ["usr/lib", "lib"].map(|folder| root.join(folder).join(format!("{}-linux-gnu", env::consts::ARCH)));
    families.map(|family| family.display().to_string()).join(":")
}
