//! NATS with JetStream, one server or a cluster of three, built by the Go toolchain.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use tokio::process::Command as InstallCommand;

use crate::{
    cache, go,
    port::Port,
    process::StopSignal,
    server::{Readiness, Server, ServerSettings},
    supervisor::Supervisor,
};

const VERSION: &str = "v2.15.2";
/// Where a server keeps its streams, in its directory, and their copy.
const DATA: &str = "jetstream";
const KEPT: &str = "kept";

/// How NATS is started.
#[derive(Clone, Debug)]
pub struct NatsOptions {
    /// How many servers: 1, or 3 for streams with three replicas.
    pub nodes: usize,
    /// Whether every acknowledgement waits for the disk. By default it does so every two minutes, which only a crash of
    /// the machine shows.
    pub sync_always: bool,
    /// What each server tells clients of a cluster to connect to, such as a fault proxy's address; empty for its own.
    pub advertised: Vec<String>,
    /// Further lines of each server's configuration, such as accounts.
    pub settings: String,
}

impl Default for NatsOptions {
    fn default() -> Self {
        Self { nodes: 1, sync_always: false, advertised: Vec::new(), settings: String::new() }
    }
}

/// NATS servers on loopback. Dropped, they are stopped.
#[derive(Debug)]
pub struct Nats {
    nodes: Vec<Node>,
}

#[derive(Debug)]
struct Node {
    ports: Ports,
    advertised: String,
    server: Server,
}

#[derive(Debug)]
struct Ports {
    client: Port,
    cluster: Port,
    monitoring: Port,
}

impl Nats {
    /// Builds the server if it is not cached yet: a minute on two cores.
    pub async fn install() -> Result<PathBuf> {
        go::program("github.com/nats-io/nats-server/v2", VERSION, go::Speed::OfRuns).await
    }

    /// Starts servers of their own for one test.
    pub async fn start(options: NatsOptions) -> Result<Self> {
        ensure!(options.nodes >= 1, "a NATS cluster needs a server");
        ensure!(
            options.advertised.is_empty() || options.advertised.len() == options.nodes,
            "{} advertised addresses for {} NATS servers",
            options.advertised.len(),
            options.nodes,
        );
        let program = Self::install().await?;
        let ports = (0..options.nodes).map(|_| Ports::reserve()).collect::<Result<Vec<_>>>()?;
        let routes: Vec<_> = ports.iter().map(|ports| format!("nats://{}", at(&ports.cluster))).collect();
        let routes = routes.join(", ");
        let mut nodes = Vec::new();
        for (index, ports) in ports.into_iter().enumerate() {
            let advertised = options.advertised.get(index).cloned().unwrap_or_else(|| at(&ports.client));
            let directory = Supervisor::get()?.create_directory("nats")?;
            let mut text = format!(
                "server_name: n{}\nlisten: {}\nclient_advertise: {advertised:?}\nhttp: {}\n\
                 jetstream {{ store_dir: {:?}, max_file_store: 4GB, max_memory_store: 256MB{} }}\n",
                index + 1,
                at(&ports.client),
                at(&ports.monitoring),
                directory.join(DATA).display().to_string(),
                if options.sync_always { ", sync_interval: always" } else { "" },
            );
            if options.nodes > 1 {
                let listen = at(&ports.cluster);
                text.push_str(&format!("cluster {{ name: tests, listen: {listen}, routes: [ {routes} ] }}\n"));
            }
            text.push_str(&options.settings);
            let config = directory.join("nats.conf");
            fs::write(&config, text).with_context(|| format!("writing {}", config.display()))?;
            let mut command = Command::new(&program);
            command.arg("-c").arg(&config);
            let server = Server::new(ServerSettings {
                name: format!("NATS at {}", at(&ports.client)),
                command,
                directory,
                account: None,
                // With JetStream it answers 200 only once that is recovered and, in a cluster, has a leader.
                readiness: Readiness::Http(ports.monitoring.number(), "/healthz"),
                start_limit: Duration::from_secs(60),
                stop_signal: StopSignal::Terminate,
            });
            nodes.push(Node { ports, advertised, server });
        }
        let mut nats = Self { nodes };
        nats.start_again().await?;
        Ok(nats)
    }

    /// What clients connect to: the advertised addresses as URLs, separated by commas.
    pub fn url(&self) -> String {
        let urls: Vec<_> = self.nodes.iter().map(|node| format!("nats://{}", node.advertised)).collect();
        urls.join(",")
    }

    /// A server's own address, to which a proxy forwards. Servers count from 1.
    pub fn address(&self, number: usize) -> String {
        at(&self.nodes[number - 1].ports.client)
    }

    /// One server, to harm it alone. Servers count from 1.
    pub fn node(&mut self, number: usize) -> &mut Server {
        &mut self.nodes[number - 1].server
    }

    /// Starts all servers on their data and their addresses.
    ///
    /// A cluster may refuse to create a replicated stream for some seconds more: try again.
    pub async fn start_again(&mut self) -> Result<()> {
        for node in &mut self.nodes {
            node.server.launch()?;
        }
        for node in &self.nodes {
            node.server.wait_until_ready().await?;
        }
        Ok(())
    }

    /// Stops all servers in good order.
    pub async fn stop(&mut self) -> Result<()> {
        for node in &mut self.nodes {
            node.server.stop().await?;
        }
        Ok(())
    }

    /// Kills all servers.
    pub async fn kill9(&mut self) -> Result<()> {
        for node in &mut self.nodes {
            node.server.kill9().await?;
        }
        Ok(())
    }

    /// Keeps a copy of all data as it is now; the servers stop and start for it.
    pub async fn keep_data(&mut self) -> Result<()> {
        self.stop().await?;
        for node in &self.nodes {
            let directory = node.server.directory();
            copy(&directory.join(DATA), &directory.join(KEPT)).await?;
        }
        self.start_again().await
    }

    /// Goes back to the data that [`keep_data`](Self::keep_data) kept: what was acknowledged since is gone, as after a power
    /// failure between two flushes of the disk.
    pub async fn lose_data(&mut self) -> Result<()> {
        self.kill9().await?;
        for node in &self.nodes {
            let directory = node.server.directory();
            let data = directory.join(DATA);
            fs::remove_dir_all(&data).with_context(|| format!("removing {}", data.display()))?;
            copy(&directory.join(KEPT), &data).await?;
        }
        self.start_again().await
    }
}

async fn copy(from: &Path, to: &Path) -> Result<()> {
    cache::run(InstallCommand::new("cp").arg("-a").arg(from).arg(to)).await.map(drop)
}

impl Ports {
    fn reserve() -> Result<Self> {
        Ok(Self { client: Port::reserve()?, cluster: Port::reserve()?, monitoring: Port::reserve()? })
    }
}

fn at(port: &Port) -> String {
    format!("127.0.0.1:{}", port.number())
}
