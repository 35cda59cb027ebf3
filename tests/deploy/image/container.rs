//! Containers without an engine: the last stage's layers as a root that nobody writes to, a process 1 without rights.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use catalog_bridge_services::image;
use serde_json::{Value, json};

use super::build::{Built, stages};
use crate::support::{free_port, wait_until};

const CONTAINER: &str = include_str!("container.sh");
/// Where a container finds its config and keeps its data, as in the chart.
pub(super) const CONFIG: &str = "/etc/catalog-bridge";
pub(super) const DATA: &str = "/var/lib/catalog-bridge";
/// What an engine mounts into each container, so that names resolve.
const NAMES: [&str; 2] = ["/etc/hosts", "/etc/resolv.conf"];

/// The last stage: what a container is started from.
#[derive(Clone)]
pub(super) struct Image {
    pub(super) place: PathBuf,
    /// The last first.
    pub(super) layers: Vec<PathBuf>,
    environment: BTreeMap<String, String>,
    user: String,
    pub(super) entry: Vec<String>,
    command: Vec<String>,
}

impl Image {
    pub(super) async fn assemble(place: &Path, built: &Built) -> Result<Image> {
        let stage = stages()?.pop().context("a stage")?;
        ensure!(stage.from == "gcr.io/distroless/cc-debian12:nonroot", "what {} holds is not known here", stage.from);
        let layer = place.join("layer");
        for directory in [CONFIG, DATA] {
            fs::create_dir_all(layer.join(&directory[1..]))?;
        }
        fs::create_dir_all(layer.join("etc"))?;
        for file in NAMES {
            fs::write(layer.join(&file[1..]), "")?;
        }
        fs::create_dir_all(place.join("root"))?;
        let mut image = Image {
            place: place.to_owned(),
            layers: vec![layer.clone(), image::distroless_cc().await?],
            environment: BTreeMap::from([
                ("PATH".to_owned(), "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned()),
                ("SSL_CERT_FILE".to_owned(), format!("/{}", image::AUTHORITIES)),
            ]),
            user: "0:0".to_owned(),
            entry: Vec::new(),
            command: Vec::new(),
        };
        for (word, rest) in stage.instructions {
            match word.as_str() {
                "ARG" | "LABEL" | "EXPOSE" => {}
                "COPY" => {
                    let rest =
                        rest.strip_prefix(&format!("--from={} ", built.name)).context("COPY from the build stage")?;
                    let (from, to) = rest.split_once(' ').context("COPY from to")?;
                    let to = layer.join(to.trim_start_matches('/'));
                    fs::create_dir_all(to.parent().context("a directory")?)?;
                    let from = built.upper.join(from.trim_start_matches('/'));
                    fs::copy(&from, &to).with_context(|| format!("copying {}", from.display()))?;
                }
                "ENV" => {
                    let (name, value) = rest.split_once('=').context("ENV NAME=VALUE")?;
                    image.environment.insert(name.to_owned(), value.to_owned());
                }
                "USER" => image.user = rest,
                "ENTRYPOINT" => image.entry = serde_json::from_str(&rest)?,
                "CMD" => image.command = serde_json::from_str(&rest)?,
                _ => bail!("{word} {rest}: not known here"),
            }
        }
        Ok(image)
    }

    /// The same with one more layer.
    pub(super) fn with_layer(&self, layer: PathBuf) -> Image {
        let mut image = self.clone();
        image.layers.insert(0, layer);
        image
    }

    /// A container with these mounts that starts `program`.
    pub(super) fn container(&self, mounts: &[(PathBuf, &str)], program: &[&str]) -> Result<Command> {
        let (user, group) = self.user.split_once(':').context("USER user:group")?;
        let layers: Vec<_> = self.layers.iter().map(|layer| layer.display().to_string()).collect();
        let empty = self.place.join("root");
        let mut command = namespace(CONTAINER);
        command.arg(layers.join(":")).arg(&empty);
        command.args(NAMES.map(|file| format!("{file}={file}")));
        command.args(mounts.iter().map(|(source, target)| format!("{}={target}", source.display()))).arg("--");
        command.args(self.environment.iter().map(|(name, value)| format!("{name}={value}")));
        command.arg("unshare").arg(format!("--root={}", empty.display())).arg("--wd=/home/nonroot");
        command.arg(format!("--setgid={group}")).arg(format!("--setuid={user}")).arg("--").args(program);
        Ok(command)
    }

    /// A container of the image's entry point with these arguments.
    pub(super) fn start(&self, mounts: &[(PathBuf, &str)], arguments: &[&str]) -> Result<Command> {
        let program: Vec<_> = self.entry.iter().map(String::as_str).chain(arguments.iter().copied()).collect();
        self.container(mounts, &program)
    }

    /// A container that runs to its end in order; returns what it printed.
    pub(super) fn run(&self, mounts: &[(PathBuf, &str)], arguments: &[&str]) -> Result<String> {
        let output = self.start(mounts, arguments)?.output().context("unshare")?;
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        let told = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{arguments:?} ended with {}:\n{told}{printed}", output.status);
        Ok(printed)
    }

    /// An empty directory of the container's account.
    pub(super) fn directory(&self, name: &str) -> Result<PathBuf> {
        let directory = self.place.join(name);
        fs::create_dir_all(&directory)?;
        chown(&directory, Some(image::NONROOT), Some(image::NONROOT))?;
        Ok(directory)
    }
}

/// A container that runs on. Killed when dropped.
pub(super) struct Running {
    outer: Child,
    log: PathBuf,
}

impl Running {
    pub(super) fn start(mut command: Command, log: PathBuf) -> Result<Running> {
        let file = fs::File::create(&log)?;
        let outer = command.stdout(file.try_clone()?).stderr(file).spawn().context("unshare")?;
        Ok(Running { outer, log })
    }

    /// Process 1 of the container, by its number outside.
    pub(super) fn inner(&self) -> Result<u32> {
        let pid = self.outer.id();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
        let child = children.split_whitespace().next().context("the container has no process")?;
        Ok(child.parse()?)
    }

    pub(super) async fn wait_until(&self, what: &str, condition: impl AsyncFn() -> Result<bool>) -> Result<()> {
        wait_until(what, condition).await.with_context(|| format!("the container's log ends:\n{}", tail(&self.log)))
    }

    /// SIGTERM to process 1, which must end in order.
    pub(super) async fn stop(mut self) -> Result<()> {
        let status = Command::new("kill").args(["-TERM", &self.inner()?.to_string()]).status().context("kill")?;
        ensure!(status.success(), "kill -TERM");
        let begin = Instant::now();
        loop {
            if let Some(status) = self.outer.try_wait()? {
                ensure!(status.success(), "it ended with {status}:\n{}", tail(&self.log));
                return Ok(());
            }
            ensure!(begin.elapsed().as_secs() < 60, "it did not stop in 60 s:\n{}", tail(&self.log));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.outer.kill();
        let _ = self.outer.wait();
    }
}

/// A container whose daemon is started by the image's own CMD, with a place for its config and its data.
pub(super) struct Daemon {
    pub(super) running: Running,
    pub(super) mounts: Vec<(PathBuf, &'static str)>,
    pub(super) data: PathBuf,
    http: String,
    client: reqwest::Client,
}

impl Daemon {
    pub(super) async fn start(image: &Image, name: &str, config: &str) -> Result<Daemon> {
        let (settings, data) = (image.directory(&format!("{name}-config"))?, image.directory(&format!("{name}-data"))?);
        let (http, admin) = (free_port()?, free_port()?);
        let text = format!("http: {{ listen: 127.0.0.1:{http}, admin: 127.0.0.1:{admin} }}\n{config}");
        fs::write(settings.join("catalog-bridge.yaml"), text)?;
        let mounts = vec![(settings, CONFIG), (data.clone(), DATA)];
        let command: Vec<_> = image.command.iter().map(String::as_str).collect();
        let running = Running::start(image.start(&mounts, &command)?, image.place.join(format!("{name}.log")))?;
        let http = format!("http://127.0.0.1:{http}");
        let daemon = Daemon { running, mounts, data, http, client: reqwest::Client::new() };
        for probe in ["healthz", "readyz"] {
            let url = format!("{}/{probe}", daemon.http);
            let is_well =
                async || Ok(daemon.client.get(&url).send().await.is_ok_and(|reply| reply.status().is_success()));
            daemon.running.wait_until(&format!("{probe} of the container"), is_well).await?;
        }
        Ok(daemon)
    }

    pub(super) async fn ingest(&self, changes: &[Value]) -> Result<()> {
        let url = format!("{}/api/catalog/sources/push/changes", self.http);
        let reply = self.client.post(url).json(&json!({ "changes": changes })).send().await?;
        ensure!(reply.status().is_success(), "ingest: {}", reply.status());
        Ok(())
    }
}

/// A shell script with mounts and processes of its own; all of them end with it.
pub(super) fn namespace(script: &str) -> Command {
    let mut command = Command::new("unshare");
    command.args(["--mount", "--pid", "--fork", "--kill-child", "/bin/sh", "-c", script, "image"]).stdin(Stdio::null());
    command
}

pub(super) fn tail(log: &Path) -> String {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(60)..].join("\n")
}
