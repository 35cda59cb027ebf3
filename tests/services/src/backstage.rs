//! A real Backstage backend (the catalog plugin) on a given PostgreSQL, driven over plain HTTP.
//!
//! Removals are committed when a mutation answers; adds and changes follow 0.5 to 2 s later, as in production:
//! [`Backstage::wait_idle`] waits for them.

use std::{
    fs,
    hash::{DefaultHasher, Hash, Hasher},
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::{process::Command as InstallCommand, time::sleep};

use crate::{
    Postgres, cache,
    port::Port,
    process::StopSignal,
    server::{Readiness, Server, ServerSettings},
    supervisor::Supervisor,
};

const TOKEN: &str = "catalog-bridge-test-token";
const START_LIMIT: Duration = Duration::from_secs(180);
const IDLE_LIMIT: Duration = Duration::from_secs(120);
/// How long nothing must have changed; covers an entity between being picked and being written.
const IDLE_QUIET: Duration = Duration::from_millis(600);
const HARNESS: &str = include_str!("../backstage/harness.js");

/// The releases of the catalog backend that tests run against.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BackstageVersion {
    /// Catalog backend 4.0.5: numbers every change by `generation`.
    #[default]
    New,
    /// Catalog backend 1.30.0: has no generations, and first commits a row without a body.
    Old,
}

impl BackstageVersion {
    fn name(self) -> &'static str {
        match self {
            Self::New => "backstage-catalog-4.0.5",
            Self::Old => "backstage-catalog-1.30.0",
        }
    }

    fn package(self) -> (&'static str, &'static str) {
        match self {
            Self::New => (
                include_str!("../backstage/current/package.json"),
                include_str!("../backstage/current/package-lock.json"),
            ),
            Self::Old => {
                (include_str!("../backstage/old/package.json"), include_str!("../backstage/old/package-lock.json"))
            }
        }
    }
}

/// Where Backstage keeps the tables of its plugins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Division {
    /// A database for each plugin; the catalog's tables are in its schema `public`.
    #[default]
    Database,
    /// One database, a schema for each plugin; the catalog's is `catalog`.
    Schema,
    /// The same with a prefix before each schema's name, which only the new release knows; the catalog's is `portal_catalog`.
    PrefixedSchema,
}

/// What becomes of entities whose parent no longer mentions them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OrphanStrategy {
    /// They are deleted, by a task that runs every 30 s.
    #[default]
    Delete,
    /// They stay, marked by an annotation.
    Keep,
}

/// How Backstage is started.
#[derive(Clone, Debug)]
pub struct BackstageOptions {
    /// The release of the catalog backend.
    pub version: BackstageVersion,
    /// How often each entity is processed again. 2 s makes files of locations follow quickly; take 60 for bulk loads.
    pub processing_seconds: u32,
    /// What becomes of orphans.
    pub orphan_strategy: OrphanStrategy,
    /// Where the tables are.
    pub division: Division,
}

impl Default for BackstageOptions {
    fn default() -> Self {
        Self {
            version: BackstageVersion::default(),
            processing_seconds: 2,
            orphan_strategy: OrphanStrategy::default(),
            division: Division::default(),
        }
    }
}

/// A Backstage backend on loopback. Dropped, it is stopped; its databases stay.
#[derive(Debug)]
pub struct Backstage {
    server: Server,
    port: Port,
    control_port: Port,
    tables: Tables,
    options: BackstageOptions,
    client: reqwest::Client,
}

/// Where one installation keeps its tables.
#[derive(Clone, Debug)]
struct Tables {
    postgres_port: u16,
    prefix: String,
    /// The database that the backend connects to.
    database: String,
    /// The database with the catalog's tables.
    catalog_url: String,
}

impl Backstage {
    /// Installs the release's npm packages if they are not cached yet.
    pub async fn install(version: BackstageVersion) -> Result<PathBuf> {
        let (package, lock) = version.package();
        let name = format!("{}-{:016x}", version.name(), hash(&[package, lock]));
        cache::installed(&name, async |directory| {
            fs::write(directory.join("package.json"), package).context("writing package.json")?;
            fs::write(directory.join("package-lock.json"), lock).context("writing package-lock.json")?;
            let mut npm = InstallCommand::new("npm");
            // With PostgreSQL no native addon is needed, so no script has to run.
            npm.args(["ci", "--ignore-scripts", "--omit=dev", "--omit=optional", "--omit=peer"]);
            npm.args(["--no-audit", "--no-fund", "--loglevel=error"]).current_dir(directory);
            cache::run(&mut npm).await.map(drop)
        })
        .await
    }

    /// Starts a backend whose tables are in new databases of `postgres`, and waits until its catalog answers.
    pub async fn start(postgres: &Postgres, options: BackstageOptions) -> Result<Self> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let prefix = format!("backstage_{}_", COUNT.fetch_add(1, Ordering::Relaxed));
        let (database, catalog_database) = match options.division {
            Division::Database => ("postgres".to_owned(), format!("{prefix}catalog")),
            Division::Schema | Division::PrefixedSchema => {
                let database = format!("{prefix}all");
                postgres.create_database(&database).await?;
                (database.clone(), database)
            }
        };
        let catalog_url = postgres.url(&catalog_database);
        let tables = Tables { postgres_port: postgres.port(), prefix, database, catalog_url };
        Self::start_on(tables, options).await
    }

    /// Starts another backend on the same tables, as an installation is scaled out.
    pub async fn start_replica(&self) -> Result<Self> {
        Self::start_on(self.tables.clone(), self.options.clone()).await
    }

    async fn start_on(tables: Tables, options: BackstageOptions) -> Result<Self> {
        let application = Self::install(options.version).await?;
        let harness = publish_harness(&application)?;
        let (division, schema_prefix) = match options.division {
            Division::Database => ("database", ""),
            Division::Schema => ("schema", ""),
            Division::PrefixedSchema => ("schema", "    schemaPrefix: portal_\n"),
        };
        let directory = Supervisor::get()?.create_directory("backstage")?;
        let config = directory.join("app-config.yaml");
        let text = include_str!("../backstage/app-config.yaml");
        let text = text.replace("    pluginDivisionMode:", &format!("{schema_prefix}    pluginDivisionMode:"));
        fs::write(&config, text).with_context(|| format!("writing {}", config.display()))?;
        let (port, control_port) = (Port::reserve()?, Port::reserve()?);
        let mut command = Command::new("node");
        command.arg(harness).arg("--config").arg(config).current_dir(&application);
        command.env("NODE_ENV", "production").env("BACKSTAGE_TOKEN", TOKEN);
        command.env("BACKSTAGE_PORT", port.number().to_string());
        command.env("BACKSTAGE_CONTROL_PORT", control_port.number().to_string());
        command.env("BACKSTAGE_POSTGRES_PORT", tables.postgres_port.to_string());
        command.env("BACKSTAGE_DATABASE", &tables.database).env("BACKSTAGE_DATABASE_PREFIX", &tables.prefix);
        command.env("BACKSTAGE_DIVISION", division);
        command.env("BACKSTAGE_PROCESSING_SECONDS", options.processing_seconds.to_string());
        command.env(
            "BACKSTAGE_ORPHAN_STRATEGY",
            match options.orphan_strategy {
                OrphanStrategy::Delete => "delete",
                OrphanStrategy::Keep => "keep",
            },
        );
        let server = Server::new(ServerSettings {
            name: format!("Backstage at 127.0.0.1:{}", port.number()),
            command,
            directory,
            account: None,
            readiness: Readiness::Http(control_port.number(), "/ready"),
            start_limit: START_LIMIT,
            stop_signal: StopSignal::Terminate,
        });
        // Without idle connections, which belong to the runtime of the test that opened them.
        let client = reqwest::Client::builder().pool_max_idle_per_host(0).no_proxy().build();
        let client = client.context("building an HTTP client")?;
        let mut backstage = Self { server, port, control_port, tables, options, client };
        backstage.start_again().await?;
        Ok(backstage)
    }

    /// The backend's URL; its catalog is below `/api/catalog`.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port.number())
    }

    /// A static token for the backend's API (`authorization: Bearer …`).
    pub fn token(&self) -> &'static str {
        TOKEN
    }

    /// The URL of the database with the catalog's tables.
    pub fn database_url(&self) -> &str {
        &self.tables.catalog_url
    }

    /// The schema with the catalog's tables.
    pub fn schema(&self) -> &'static str {
        match self.options.division {
            Division::Database => "public",
            Division::Schema => "catalog",
            Division::PrefixedSchema => "portal_catalog",
        }
    }

    /// Makes these the provider's only entities. `apiVersion` and the managed-by annotations are filled in.
    pub async fn mutate_full(&self, entities: &[Value]) -> Result<()> {
        self.mutate(&json!({ "type": "full", "added": entities })).await
    }

    /// Adds or changes entities, and removes others by reference (`component:default/a`).
    pub async fn mutate_delta(&self, added: &[Value], removed: &[&str]) -> Result<()> {
        self.mutate(&json!({ "type": "delta", "added": added, "removed": removed })).await
    }

    /// Any mutation that `backstage/harness.js` describes, such as one by the second provider.
    pub async fn mutate(&self, mutation: &Value) -> Result<()> {
        self.control(Method::POST, "/mutate", mutation.to_string()).await
    }

    /// Stores a YAML file that Backstage can read, and returns its URL for [`register_location`](Self::register_location).
    pub async fn put_file(&self, name: &str, yaml: &str) -> Result<String> {
        let path = format!("/files/{name}");
        self.control(Method::PUT, &path, yaml.to_owned()).await?;
        Ok(self.control_url(&path))
    }

    /// Removes a file stored by [`put_file`](Self::put_file).
    pub async fn delete_file(&self, name: &str) -> Result<()> {
        self.control(Method::DELETE, &format!("/files/{name}"), String::new()).await
    }

    /// Registers a URL as a location and returns its id.
    pub async fn register_location(&self, target: &str) -> Result<String> {
        let location = json!({ "type": "url", "target": target });
        let (status, answer) = self.request(Method::POST, "/api/catalog/locations", Some(&location)).await?;
        ensure!(status.is_success(), "registering location {target}: {status} {answer}");
        let id = answer["location"]["id"].as_str().context("Backstage's answer has no location id")?;
        Ok(id.to_owned())
    }

    /// Deletes the location of this target, with all entities that came by it.
    ///
    /// Backstage answers 500 when its own processing holds the entities just then (a deadlock that PostgreSQL resolves),
    /// and it is not atomic: the location may be gone while its entities stay. So it is registered again and deleted again.
    pub async fn delete_location(&self, target: &str) -> Result<()> {
        let mut attempts = 1;
        loop {
            let id = match self.find_location(target).await? {
                Some(id) => id,
                None if attempts == 1 => bail!("no location has the target {target}"),
                None => self.register_location(target).await?,
            };
            let path = format!("/api/catalog/locations/{id}");
            let (status, answer) = self.request(Method::DELETE, &path, None).await?;
            if status.is_success() {
                return Ok(());
            }
            ensure!(status.is_server_error() && attempts < 5, "deleting location {target}: {status} {answer}");
            attempts += 1;
            sleep(Duration::from_secs(1)).await;
        }
    }

    async fn find_location(&self, target: &str) -> Result<Option<String>> {
        let (_, listed) = self.request(Method::GET, "/api/catalog/locations", None).await?;
        let mut locations = listed.as_array().context("Backstage lists no locations")?.iter().map(|item| &item["data"]);
        // By target: the first row is Backstage's own.
        let location = locations.find(|location| location["target"] == target);
        Ok(location.and_then(|location| location["id"].as_str()).map(str::to_owned))
    }

    /// Calls Backstage's own API with the token; returns the status and the JSON body (null when there is none).
    pub async fn request(&self, method: Method, path: &str, body: Option<&Value>) -> Result<(StatusCode, Value)> {
        let url = format!("{}{path}", self.url());
        let mut request = self.client.request(method, &url).bearer_auth(TOKEN);
        if let Some(body) = body {
            request = request.json(body);
        }
        let answer = request.send().await.with_context(|| format!("calling {url}"))?;
        let status = answer.status();
        let text = answer.text().await.with_context(|| format!("reading the answer of {url}"))?;
        Ok((status, serde_json::from_str(&text).unwrap_or(Value::Null)))
    }

    async fn control(&self, method: Method, path: &str, body: String) -> Result<()> {
        let url = self.control_url(path);
        let answer = self.client.request(method, &url).body(body).send().await;
        let answer = answer.with_context(|| format!("calling {url}; {}", self.server.log_tail()))?;
        let status = answer.status();
        ensure!(status.is_success(), "{url} answered {status}: {}", answer.text().await.unwrap_or_default());
        Ok(())
    }

    /// A URL of the harness itself; `backstage/harness.js` lists its paths.
    pub fn control_url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.control_port.number())
    }

    /// Waits until everything that was asked for is processed, stitched and committed.
    ///
    /// Changes of files behind locations are noticed only at the next processing: poll for what you expect of them.
    pub async fn wait_idle(&self) -> Result<()> {
        let start = Instant::now();
        let mut last = (String::new(), Instant::now());
        while start.elapsed() < IDLE_LIMIT {
            match self.read_idle_state().await? {
                Some(state) if state == last.0 => {
                    if last.1.elapsed() >= IDLE_QUIET {
                        return Ok(());
                    }
                }
                Some(state) => last = (state, Instant::now()),
                None => last.0.clear(),
            }
            sleep(Duration::from_millis(100)).await;
        }
        bail!("Backstage is still busy after {} s; {}", IDLE_LIMIT.as_secs(), self.server.log_tail())
    }

    /// A fingerprint of the entities, or none while some wait to be processed or stitched.
    async fn read_idle_state(&self) -> Result<Option<String>> {
        let schema = self.schema();
        // The newer release keeps waiting stitches in a table of their own.
        let stitches: bool =
            self.read_value(&format!("select to_regclass('{schema}.stitch_queue') is not null")).await?;
        let waiting_stitches = if stitches {
            format!("select 1 from {schema}.stitch_queue")
        } else {
            format!("select 1 from {schema}.refresh_state where next_stitch_ticket is not null")
        };
        // Discovery sets both times alike; picking an entity for processing moves the first into the future. The older release
        // marks the relatives of what is removed by a hash, and stitches them when it processes them again.
        let busy = format!(
            "select exists ({waiting_stitches}) or exists (
               select 1 from {schema}.final_entities where hash = 'force-stitching') or exists (
               select 1 from {schema}.refresh_state
               where next_update_at <= last_discovery_at or processed_entity is null and errors in ('', '[]'))"
        );
        if self.read_value::<bool>(&busy).await? {
            return Ok(None);
        }
        let fingerprint = format!(
            "select count(*) || ' ' || coalesce(sum(hashtextextended(entity_ref || hash, 0)), 0) from {schema}.final_entities"
        );
        Ok(Some(self.read_value(&fingerprint).await?))
    }

    async fn read_value<T>(&self, query: &str) -> Result<T>
    where
        T: for<'row> sqlx::Decode<'row, sqlx::Postgres> + sqlx::Type<sqlx::Postgres> + Send + Unpin,
    {
        let url = &self.tables.catalog_url;
        let connected = <sqlx::PgConnection as sqlx::Connection>::connect(url).await;
        let mut connection = connected.with_context(|| format!("connecting to {url}"))?;
        let read = sqlx::query_scalar(sqlx::AssertSqlSafe(query)).fetch_one(&mut connection).await;
        read.with_context(|| format!("reading Backstage's tables at {url}"))
    }

    /// Starts the backend on its databases and addresses, and waits until its catalog answers.
    pub async fn start_again(&mut self) -> Result<()> {
        self.server.start_again().await?;
        let start = Instant::now();
        loop {
            let answer = self.request(Method::GET, "/api/catalog/entities/by-query?limit=0", None).await;
            if answer.is_ok_and(|(status, _)| status.is_success()) {
                return Ok(());
            }
            ensure!(start.elapsed() < START_LIMIT, "Backstage's catalog does not answer; {}", self.server.log_tail());
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// The backend as a process, to stop, kill or freeze it.
    pub fn server(&mut self) -> &mut Server {
        &mut self.server
    }
}

/// Writes the harness beside the packages that it loads; named by its content, as several test binaries may start.
fn publish_harness(application: &Path) -> Result<PathBuf> {
    let path = application.join(format!("harness-{:016x}.js", hash(&[HARNESS])));
    if !path.exists() {
        let mut file = tempfile::NamedTempFile::new_in(application).context("creating Backstage's main file")?;
        std::io::Write::write_all(&mut file, HARNESS.as_bytes()).context("writing Backstage's main file")?;
        file.persist(&path).with_context(|| format!("publishing {}", path.display()))?;
    }
    Ok(path)
}

fn hash(texts: &[&str]) -> u64 {
    let mut hasher = DefaultHasher::new();
    texts.hash(&mut hasher);
    hasher.finish()
}
