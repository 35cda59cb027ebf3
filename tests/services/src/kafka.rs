//! Apache Kafka in KRaft mode, one node or three: the released jars, resolved by Maven, without Docker or ZooKeeper.
//!
//! Each node has three listeners: CLIENT, whose advertised address a test may set so that a fault proxy stands before it,
//! INTERNAL between brokers (never through a proxy), and CONTROLLER.

use std::{
    fs,
    hash::{BuildHasher, RandomState},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};

use crate::{
    cache,
    kafka_security::KafkaSecurity,
    maven,
    port::Port,
    process::{StopSignal, run_tool},
    server::{Readiness, Server, ServerSettings},
    supervisor::Supervisor,
};

const VERSION: &str = "4.3.1";
const START_LIMIT: Duration = Duration::from_secs(120);

/// One user for SCRAM, known to every cluster.
const SCRAM_USER: &str = "SCRAM-SHA-256=[name=bob,password=bob-pw]";

/// How Kafka is started.
#[derive(Clone, Debug)]
pub struct KafkaOptions {
    /// How many nodes, each broker and controller: 1, or 3 for replication 3 and `min.insync.replicas` 2.
    pub nodes: usize,
    /// What each node tells clients to connect to (`127.0.0.1:PORT`), such as a fault proxy's address; empty for the
    /// node's own address. A proxy only before the bootstrap address would be left aside after the first metadata.
    pub advertised: Vec<String>,
    /// Lines of `server.properties`, name and value; they win over our own.
    pub settings: Vec<(String, String)>,
    /// Adds the listeners of [`KafkaSecurity`]; for one node.
    pub secured: bool,
}

impl Default for KafkaOptions {
    fn default() -> Self {
        Self { nodes: 1, advertised: Vec::new(), settings: Vec::new(), secured: false }
    }
}

/// A Kafka cluster on loopback. Dropped, it is stopped.
#[derive(Debug)]
pub struct Kafka {
    programs: Programs,
    nodes: Vec<Node>,
    security: Option<KafkaSecurity>,
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
    internal: Port,
    controller: Port,
}

impl Kafka {
    /// Installs Kafka if it is not cached yet.
    pub async fn install() -> Result<()> {
        Programs::installed().await.map(drop)
    }

    /// Starts a cluster of its own for one test. Tests that harm nothing use [`crate::shared::kafka`].
    pub async fn start(options: KafkaOptions) -> Result<Self> {
        ensure!(options.nodes >= 1, "a Kafka cluster needs a node");
        ensure!(
            options.advertised.is_empty() || options.advertised.len() == options.nodes,
            "{} advertised addresses for {} Kafka nodes",
            options.advertised.len(),
            options.nodes,
        );
        ensure!(!options.secured || options.nodes == 1, "the secured listeners are for one Kafka node");
        let programs = Programs::installed().await?;
        let security = if options.secured {
            Some(KafkaSecurity::prepare(Supervisor::get()?.create_directory("kafka-security")?).await?)
        } else {
            None
        };
        let ports = (0..options.nodes).map(|_| Ports::reserve()).collect::<Result<Vec<_>>>()?;
        let voters: Vec<_> = (1..).zip(&ports).map(|(id, ports)| format!("{id}@{}", at(&ports.controller))).collect();
        let (voters, cluster) = (voters.join(","), random_identifier());
        let mut nodes = Vec::new();
        for (index, ports) in ports.into_iter().enumerate() {
            let id = index + 1;
            let advertised = options.advertised.get(index).cloned().unwrap_or_else(|| at(&ports.client));
            let directory = Supervisor::get()?.create_directory("kafka")?;
            let properties = directory.join("server.properties");
            let text = settings(&options, id, &ports, security.as_ref(), &advertised, &voters, &directory);
            fs::write(&properties, text).with_context(|| format!("writing {}", properties.display()))?;
            programs.format(&directory.join("data"), id, &cluster)?;
            let name = format!("Kafka node {id} at {}", at(&ports.client));
            let server = Server::new(programs.server(name, directory, &programs.archive_option()));
            nodes.push(Node { ports, advertised, server });
        }
        let mut kafka = Self { programs, nodes, security };
        kafka.start_again().await?;
        Ok(kafka)
    }

    /// What clients connect to: the advertised addresses, separated by commas.
    pub fn bootstrap(&self) -> String {
        self.nodes.iter().map(|node| node.advertised.as_str()).collect::<Vec<_>>().join(",")
    }

    /// The listeners that ask who one is.
    ///
    /// # Panics
    ///
    /// Without [`KafkaOptions::secured`].
    pub fn security(&self) -> &KafkaSecurity {
        self.security.as_ref().expect("started with `secured`")
    }

    /// A node's own client listener, to which a proxy forwards. Nodes count from 1, as their broker ids do.
    pub fn address(&self, id: usize) -> String {
        at(&self.nodes[id - 1].ports.client)
    }

    /// One node, to harm it alone. Nodes count from 1.
    pub fn node(&mut self, id: usize) -> &mut Server {
        &mut self.nodes[id - 1].server
    }

    /// Creates a topic with settings such as `cleanup.policy=compact`. Costs the start of a JVM, about a second; a
    /// client's own administration calls are faster.
    pub async fn create_topic(&self, name: &str, partitions: u32, settings: &[&str]) -> Result<()> {
        let bootstrap: Vec<_> = self.nodes.iter().map(|node| at(&node.ports.internal)).collect();
        let mut command = self.programs.java(&["-Xmx128m".to_owned(), self.programs.archive_option()]);
        command.args(["org.apache.kafka.tools.TopicCommand", "--bootstrap-server", &bootstrap.join(",")]);
        command.args(["--create", "--topic", name, "--partitions", &partitions.to_string()]);
        for setting in settings {
            command.args(["--config", setting]);
        }
        run_tool(command, None).await.map(drop).with_context(|| format!("creating topic {name:?}"))
    }

    /// Starts all nodes on their data and their addresses.
    pub async fn start_again(&mut self) -> Result<()> {
        for node in &mut self.nodes {
            node.server.launch()?;
        }
        for node in &self.nodes {
            node.server.wait_until_ready().await?;
        }
        Ok(())
    }

    /// Stops all nodes in good order, at once: the last one alone would have no quorum.
    pub async fn stop(&mut self) -> Result<()> {
        for node in &self.nodes {
            node.server.request_stop();
        }
        for node in &mut self.nodes {
            node.server.stop().await?;
        }
        Ok(())
    }

    /// Kills all nodes.
    pub async fn kill9(&mut self) -> Result<()> {
        for node in &mut self.nodes {
            node.server.kill9().await?;
        }
        Ok(())
    }

    /// Freezes all nodes.
    pub fn pause(&mut self) -> Result<()> {
        self.nodes.iter_mut().try_for_each(|node| node.server.pause())
    }

    /// Ends a [`pause`](Self::pause).
    pub fn resume(&mut self) -> Result<()> {
        self.nodes.iter_mut().try_for_each(|node| node.server.resume())
    }
}

impl Ports {
    fn reserve() -> Result<Self> {
        Ok(Self { client: Port::reserve()?, internal: Port::reserve()?, controller: Port::reserve()? })
    }
}

fn at(port: &Port) -> String {
    format!("127.0.0.1:{}", port.number())
}

fn settings(
    options: &KafkaOptions,
    id: usize,
    ports: &Ports,
    security: Option<&KafkaSecurity>,
    advertised: &str,
    voters: &str,
    directory: &Path,
) -> String {
    let (client, internal, controller) = (at(&ports.client), at(&ports.internal), at(&ports.controller));
    let secured = security.map(KafkaSecurity::listeners).unwrap_or_default();
    let protocols = security.map(KafkaSecurity::protocols).unwrap_or_default();
    let replicas = options.nodes.min(3);
    let in_sync = if options.nodes < 3 { 1 } else { 2 };
    // A killed broker may come back only when its session has ended; the default of 9 s would be waited for.
    let mut text = format!(
        "\
process.roles=broker,controller
node.id={id}
controller.quorum.voters={voters}
listeners=CLIENT://{client},INTERNAL://{internal},CONTROLLER://{controller}{secured}
advertised.listeners=CLIENT://{advertised},INTERNAL://{internal}{secured}
listener.security.protocol.map=CLIENT:PLAINTEXT,INTERNAL:PLAINTEXT,CONTROLLER:PLAINTEXT{protocols}
inter.broker.listener.name=INTERNAL
controller.listener.names=CONTROLLER
log.dirs={}
broker.session.timeout.ms=3000
broker.heartbeat.interval.ms=500
auto.create.topics.enable=false
default.replication.factor={replicas}
min.insync.replicas={in_sync}
offsets.topic.replication.factor={replicas}
offsets.topic.num.partitions=1
transaction.state.log.replication.factor={replicas}
transaction.state.log.min.isr={in_sync}
transaction.state.log.num.partitions=1
share.coordinator.state.topic.replication.factor={replicas}
share.coordinator.state.topic.min.isr={in_sync}
share.coordinator.state.topic.num.partitions=1
group.initial.rebalance.delay.ms=0
log.cleaner.dedupe.buffer.size=4194304
",
        directory.join("data").display(),
    );
    text.push_str(&security.map(KafkaSecurity::settings).unwrap_or_default());
    for (name, value) in &options.settings {
        text.push_str(&format!("{name}={value}\n"));
    }
    text
}

/// The jars, and what is prepared from them once so that a start is quick.
#[derive(Debug)]
struct Programs {
    class_path: String,
    prepared: PathBuf,
}

impl Programs {
    async fn installed() -> Result<Self> {
        let jars = cache::installed(&format!("kafka-{VERSION}"), async |directory| {
            maven::copy_dependencies(include_str!("../kafka/pom.xml"), directory).await
        })
        .await?;
        // In a fixed order: an archive of loaded classes is valid for one class path.
        let mut files: Vec<_> =
            fs::read_dir(&jars)?.flatten().map(|entry| entry.path().display().to_string()).collect();
        files.sort();
        let mut programs = Self { class_path: files.join(":"), prepared: PathBuf::new() };
        let name = format!("kafka-{VERSION}-prepared");
        programs.prepared = cache::installed(&name, async |directory| programs.prepare(directory).await).await?;
        Ok(programs)
    }

    /// Formats a data directory, whose file each new node copies, and runs a broker once to archive its loaded classes.
    async fn prepare(&self, directory: &Path) -> Result<()> {
        let quiet = directory.join("log4j2.yaml");
        fs::write(&quiet, include_str!("../kafka/log4j2.yaml"))
            .with_context(|| format!("writing {}", quiet.display()))?;
        let run = Supervisor::get()?.create_directory("kafka-prepare")?;
        let ports = Ports::reserve()?;
        let voters = format!("1@{}", at(&ports.controller));
        let properties = run.join("server.properties");
        let text = settings(&KafkaOptions::default(), 1, &ports, None, &at(&ports.client), &voters, &run);
        fs::write(&properties, text).with_context(|| format!("writing {}", properties.display()))?;

        let mut format = self.java_with(&quiet, &["-Xmx128m".to_owned()]);
        format.args(["kafka.tools.StorageTool", "format", "--cluster-id", &random_identifier(), "--config"]);
        format.arg(&properties).args(["--add-scram", SCRAM_USER]);
        run_tool(format, None).await.context("formatting a Kafka data directory")?;
        let checkpoint = directory.join(CHECKPOINT);
        fs::copy(run.join("data").join(CHECKPOINT), &checkpoint).context("keeping the formatted directory's file")?;

        let archive = format!("-XX:ArchiveClassesAtExit={}", directory.join(ARCHIVE).display());
        let preparing = Self { class_path: self.class_path.clone(), prepared: directory.to_owned() };
        let mut server = Server::new(preparing.server("Kafka's first start".to_owned(), run, &archive));
        server.start_again().await?;
        server.stop().await
    }

    /// Makes a data directory as the format command would, without its second of JVM.
    fn format(&self, data: &Path, id: usize, cluster: &str) -> Result<()> {
        fs::create_dir(data).with_context(|| format!("creating {}", data.display()))?;
        let directory_id = random_identifier();
        let properties = format!("version=1\nnode.id={id}\ndirectory.id={directory_id}\ncluster.id={cluster}\n");
        fs::write(data.join("meta.properties"), properties).context("writing Kafka's meta.properties")?;
        let checkpoint = self.prepared.join(CHECKPOINT);
        fs::copy(&checkpoint, data.join(CHECKPOINT))
            .with_context(|| format!("copying {}", checkpoint.display()))
            .map(drop)
    }

    fn server(&self, name: String, directory: PathBuf, archive: &str) -> ServerSettings {
        // Tests start many brokers and run each for seconds: the quick compiler and the simple collector fit them.
        let options = ["-Xms128m".to_owned(), "-Xmx384m".to_owned(), archive.to_owned()];
        let mut command = self.java(&options);
        command.arg("kafka.Kafka").arg(directory.join("server.properties")).current_dir(&directory);
        ServerSettings {
            name,
            command,
            directory,
            account: None,
            readiness: Readiness::Log("Kafka Server started"),
            start_limit: START_LIMIT,
            stop_signal: StopSignal::Terminate,
        }
    }

    fn archive_option(&self) -> String {
        format!("-XX:SharedArchiveFile={}", self.prepared.join(ARCHIVE).display())
    }

    fn java(&self, options: &[String]) -> Command {
        self.java_with(&self.prepared.join("log4j2.yaml"), options)
    }

    fn java_with(&self, logging: &Path, options: &[String]) -> Command {
        let mut command = Command::new("java");
        command.args(["-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Djava.awt.headless=true"]).args(options);
        command.arg(format!("-Dlog4j2.configurationFile={}", logging.display()));
        command.args(["-cp", &self.class_path]);
        command
    }
}

const CHECKPOINT: &str = "bootstrap.checkpoint";
const ARCHIVE: &str = "classes.jsa";

/// 16 random bytes as Kafka writes them: 22 characters of base 64, the last of which has only two bits.
fn random_identifier() -> String {
    const LETTERS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
    let random = RandomState::new();
    let letters = (0..21_u8).map(|position| {
        let index = random.hash_one(position) % LETTERS.len() as u64;
        char::from(LETTERS[usize::try_from(index).expect("below the count of letters")])
    });
    letters.chain(['A']).collect()
}
