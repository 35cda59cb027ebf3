//! PostgreSQL 14 to 18: the relocatable server builds that are published as Maven artifacts.
//!
//! User `postgres`, no password. The builds hold no client programs; databases are created over a connection.

use std::{
    fs::{self, File},
    io::Write,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use sqlx::{Connection, Executor, PgConnection};
use tokio::process::Command as InstallCommand;

use crate::{
    account::Account,
    cache, certificates, maven,
    port::Port,
    process::{StopSignal, run_tool},
    server::{Readiness, Server, ServerSettings},
    supervisor::Supervisor,
};

const START_LIMIT: Duration = Duration::from_secs(60);

/// Where a database's own settings end up; later lines win over the defaults of `initdb`.
const DEFAULT_SETTINGS: &str = "\
listen_addresses = '127.0.0.1'
unix_socket_directories = ''
max_connections = 200
shared_buffers = 64MB
max_wal_size = 1GB
jit = off
log_min_messages = warning
log_line_prefix = '%m [%p] %d '
";

/// The releases that tests run against.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PostgresVersion {
    /// 14, the oldest release that its makers still support.
    V14,
    /// 15.
    V15,
    /// 16.
    V16,
    /// 17, the default.
    #[default]
    V17,
    /// 18, the newest.
    V18,
}

impl PostgresVersion {
    /// All of them, oldest first.
    pub const ALL: [Self; 5] = [Self::V14, Self::V15, Self::V16, Self::V17, Self::V18];

    fn artifact_version(self) -> &'static str {
        match self {
            Self::V14 => "14.20.0",
            Self::V15 => "15.15.0",
            Self::V16 => "16.11.0",
            Self::V17 => "17.7.0",
            Self::V18 => "18.1.0",
        }
    }
}

/// How a PostgreSQL server is started.
#[derive(Clone, Debug, Default)]
pub struct PostgresOptions {
    /// The release.
    pub version: PostgresVersion,
    /// Lines of `postgresql.conf`, name and value; they win over our own.
    pub settings: Vec<(String, String)>,
    /// Whether a commit waits for the disk. Off by default: only a crash of the machine loses more without it, and
    /// [`Postgres::kill9`] is none.
    pub fsync: bool,
    /// Whether clients may use TLS; [`Postgres::tls_url`] then makes them check the server's certificate.
    pub tls: bool,
    /// Start on a copy of this data directory (see [`Postgres::copy_data_to`]) instead of a new cluster.
    pub data_from: Option<PathBuf>,
}

/// How a database sorts text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Collation {
    /// By bytes; what the other functions give.
    C,
    /// As English readers do: `a` before `B`, punctuation hardly counts. From PostgreSQL 15 on, by ICU.
    English,
}

/// A PostgreSQL server on loopback. Dropped, it is stopped.
#[derive(Debug)]
pub struct Postgres {
    programs: PathBuf,
    directory: PathBuf,
    account: Option<Account>,
    port: Port,
    version: PostgresVersion,
    server: Server,
    databases: AtomicU64,
}

impl Postgres {
    /// Installs the release if it is not cached yet.
    pub async fn install(version: PostgresVersion) -> Result<PathBuf> {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64v8",
            other => bail!("there is no PostgreSQL build for {other} among the Maven artifacts"),
        };
        let release = version.artifact_version();
        let artifact = format!("io.zonky.test.postgres:embedded-postgres-binaries-linux-{architecture}:{release}");
        let unpack = "import io, sys, tarfile, zipfile\n\
                      archive = zipfile.ZipFile(sys.argv[1])\n\
                      name = next(name for name in archive.namelist() if name.endswith('.txz'))\n\
                      tarfile.open(fileobj=io.BytesIO(archive.read(name))).extractall(sys.argv[2])";
        cache::installed(&format!("postgres-{release}"), async |directory| {
            maven::copy_artifact(&artifact, directory).await?;
            let jar = fs::read_dir(directory)?.flatten().map(|entry| entry.path()).next();
            let jar = jar.context("Maven copied no file")?;
            cache::run(InstallCommand::new("python3").args(["-c", unpack]).arg(&jar).arg(directory)).await?;
            fs::remove_file(&jar).with_context(|| format!("removing {}", jar.display()))
        })
        .await
    }

    /// Starts a server of its own for one test. Tests that harm nothing use [`crate::shared::postgres`].
    pub async fn start(options: PostgresOptions) -> Result<Self> {
        let programs = Self::install(options.version).await?.join("bin");
        let directory = Supervisor::get()?.create_directory("postgres")?;
        let account = Account::unprivileged()?;
        if let Some(account) = account {
            account.take(&directory)?;
        }
        let port = Port::reserve()?;
        let mut command = tool(&programs, "postgres", &directory);
        command.arg("-D").arg(directory.join("data")).args(["-p", &port.number().to_string()]);
        let server = Server::new(ServerSettings {
            name: format!("PostgreSQL at 127.0.0.1:{}", port.number()),
            command,
            directory: directory.clone(),
            account,
            readiness: Readiness::Log("database system is ready to accept connections"),
            start_limit: START_LIMIT,
            stop_signal: StopSignal::Interrupt,
        });
        let version = options.version;
        let mut postgres = Self { programs, directory, account, port, version, server, databases: AtomicU64::new(0) };
        match &options.data_from {
            Some(copy) => copy_tree(copy, &postgres.data_directory()).await?,
            None => postgres.initialize(options.fsync).await?,
        }
        if options.tls {
            postgres.enable_tls().await?;
        }
        for (name, value) in &options.settings {
            postgres.set(name, value)?;
        }
        postgres.server.start_again().await?;
        Ok(postgres)
    }

    async fn initialize(&self, fsync: bool) -> Result<()> {
        let mut initdb = tool(&self.programs, "initdb", &self.directory);
        initdb.arg("-D").arg(self.data_directory()).args(["-U", "postgres", "--auth=trust", "--no-sync"]);
        initdb.args(["--encoding=UTF8", "--no-locale"]);
        run_tool(initdb, self.account).await.context("creating a PostgreSQL cluster")?;
        self.append_settings(&format!("{DEFAULT_SETTINGS}fsync = {}\n", if fsync { "on" } else { "off" }))
    }

    async fn enable_tls(&self) -> Result<()> {
        let directory = self.tls_directory();
        fs::create_dir(&directory).with_context(|| format!("creating {}", directory.display()))?;
        certificates::make(&directory).await?;
        let (certificate, key) = (directory.join("server.crt"), directory.join("server.key"));
        // PostgreSQL refuses a key that others could read.
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).context("closing PostgreSQL's key")?;
        if let Some(account) = self.account {
            account.take(&key)?;
        }
        self.set("ssl", "on")?;
        self.set("ssl_cert_file", &certificate.display().to_string())?;
        self.set("ssl_key_file", &key.display().to_string())
    }

    fn tls_directory(&self) -> PathBuf {
        self.directory.join("tls")
    }

    /// Sets a line of `postgresql.conf`; it holds from the next start.
    pub fn set(&self, name: &str, value: &str) -> Result<()> {
        self.append_settings(&format!("{name} = '{}'\n", value.replace('\'', "''")))
    }

    fn append_settings(&self, lines: &str) -> Result<()> {
        let path = self.data_directory().join("postgresql.conf");
        let appended = File::options().append(true).open(&path).and_then(|mut file| file.write_all(lines.as_bytes()));
        appended.with_context(|| format!("appending to {}", path.display()))
    }

    /// The server's release.
    pub fn version(&self) -> PostgresVersion {
        self.version
    }

    /// The address, `127.0.0.1:PORT`; it stays the same for the life of this value.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port.number())
    }

    pub(crate) fn port(&self) -> u16 {
        self.port.number()
    }

    /// The URL of a database of this server, whether or not it exists.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://postgres@{}/{database}", self.address())
    }

    /// As [`url`](Self::url), with TLS and a check of the server's certificate; wants [`PostgresOptions::tls`].
    pub fn tls_url(&self, database: &str) -> String {
        let authority = self.tls_directory().join("ca.pem");
        format!("{}?sslmode=verify-full&sslrootcert={}", self.url(database), authority.display())
    }

    /// Where the cluster's files are. Changing them is safe while the server is stopped.
    pub fn data_directory(&self) -> PathBuf {
        self.directory.join("data")
    }

    /// What the server has logged since its last start.
    pub fn read_log(&self) -> String {
        self.server.read_log()
    }

    /// Creates a database that sorts by bytes, and returns its URL.
    pub async fn create_database(&self, name: &str) -> Result<String> {
        self.create_database_with(name, Collation::C).await
    }

    /// Creates a database with a collation of its own, and returns its URL.
    pub async fn create_database_with(&self, name: &str, collation: Collation) -> Result<String> {
        let collation = match (collation, self.version) {
            (Collation::C, _) => "",
            (Collation::English, PostgresVersion::V14) => bail!("PostgreSQL 14 has no databases sorted by ICU; use 17"),
            (Collation::English, _) => "locale_provider icu icu_locale 'en-US' locale 'C'",
        };
        let name_quoted = name.replace('"', "\"\"");
        self.execute("postgres", &format!("create database \"{name_quoted}\" template template0 {collation}"))
            .await
            .with_context(|| format!("creating database {name}"))?;
        Ok(self.url(name))
    }

    /// Creates a database of a name not used before, beginning with `stem`, and returns its URL.
    pub async fn fresh_database(&self, stem: &str) -> Result<String> {
        let number = self.databases.fetch_add(1, Ordering::Relaxed);
        self.create_database(&format!("{stem}_{number}")).await
    }

    /// Runs SQL in a database; several statements are one transaction.
    pub async fn execute(&self, database: &str, statements: &str) -> Result<()> {
        let mut connection = self.connect(database).await?;
        let result = connection.execute(sqlx::raw_sql(sqlx::AssertSqlSafe(statements))).await;
        result.with_context(|| format!("running {statements:?} at {}", self.url(database)))?;
        connection.close().await.with_context(|| format!("closing a connection to {}", self.url(database)))
    }

    async fn connect(&self, database: &str) -> Result<PgConnection> {
        let url = self.url(database);
        PgConnection::connect(&url).await.with_context(|| format!("connecting to {url}"))
    }

    /// Starts the server on its data and its address, after [`stop`](Self::stop) or [`kill9`](Self::kill9).
    pub async fn start_again(&mut self) -> Result<()> {
        self.server.start_again().await
    }

    /// Stops the server in good order; clients are disconnected.
    pub async fn stop(&mut self) -> Result<()> {
        self.server.stop().await
    }

    /// Kills the server and its backends, as a crash does; the next start recovers from the log.
    pub async fn kill9(&mut self) -> Result<()> {
        self.server.kill9().await?;
        // The next start refuses this file as long as a dead process of that number waits to be cleared away.
        let file = self.data_directory().join("postmaster.pid");
        fs::remove_file(&file).with_context(|| format!("removing {}", file.display()))
    }

    /// Freezes the server and its backends; the kernel still accepts connections.
    pub fn pause(&mut self) -> Result<()> {
        self.server.pause()
    }

    /// Ends a [`pause`](Self::pause).
    pub fn resume(&mut self) -> Result<()> {
        self.server.resume()
    }

    /// Copies the data of a stopped server into `directory`, which must not exist or be empty.
    ///
    /// [`replace_data_by`](Self::replace_data_by) and [`PostgresOptions::data_from`] take such a copy.
    pub async fn copy_data_to(&self, directory: &Path) -> Result<()> {
        ensure!(!self.server.is_started(), "stop PostgreSQL at {} before copying its data", self.address());
        copy_tree(&self.data_directory(), directory).await
    }

    /// Puts a copy made earlier in place of the data of this stopped server, as a restored backup.
    pub async fn replace_data_by(&mut self, directory: &Path) -> Result<()> {
        ensure!(!self.server.is_started(), "stop PostgreSQL at {} before replacing its data", self.address());
        let data = self.data_directory();
        fs::remove_dir_all(&data).with_context(|| format!("removing {}", data.display()))?;
        copy_tree(directory, &data).await
    }
}

fn tool(programs: &Path, program: &str, directory: &Path) -> Command {
    let mut command = Command::new(programs.join(program));
    command.current_dir(directory).env("HOME", directory).env("LC_ALL", "C").env("TZ", "UTC");
    command
}

/// Copies a directory with owners and modes, which PostgreSQL insists on.
async fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    let mut copy = Command::new("cp");
    copy.args(["-a", "--reflink=auto", "-T"]).arg(from).arg(to);
    run_tool(copy, None).await.with_context(|| format!("copying {} to {}", from.display(), to.display())).map(drop)
}
