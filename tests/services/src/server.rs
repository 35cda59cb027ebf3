//! A server that can be harmed: what all kinds have in common, above one process and below each kind's settings.

use std::{
    fs,
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};

use crate::{
    account::Account,
    process::{Process, StopSignal, log_tail},
};

/// How one tells that a server is ready for clients. An open port alone is not always it.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Readiness {
    /// The server logs this text.
    Log(&'static str),
    /// The server accepts connections here.
    Port(u16),
    /// `GET` of this path at this port answers 200.
    Http(u16, &'static str),
}

/// What a server is made of.
#[derive(Debug)]
pub(crate) struct ServerSettings {
    pub(crate) name: String,
    pub(crate) command: Command,
    pub(crate) directory: PathBuf,
    pub(crate) account: Option<Account>,
    pub(crate) readiness: Readiness,
    pub(crate) start_limit: Duration,
    pub(crate) stop_signal: StopSignal,
}

/// One server process that can be stopped, killed, frozen and started again. Dropped, it is stopped.
#[derive(Debug)]
pub struct Server {
    settings: ServerSettings,
    process: Option<Process>,
    /// Every start has a log of its own, so that readiness is never read from an earlier one.
    start_count: usize,
}

impl Server {
    /// A server that does not run yet.
    pub(crate) fn new(settings: ServerSettings) -> Self {
        Self { settings, process: None, start_count: 0 }
    }

    /// Its directory, where its data and logs are.
    pub fn directory(&self) -> &Path {
        &self.settings.directory
    }

    /// What the server has logged since its last start.
    pub fn read_log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.log_path()).unwrap_or_default()).into_owned()
    }

    /// The last lines of that log, as part of an error.
    pub(crate) fn log_tail(&self) -> String {
        log_tail(&self.log_path())
    }

    fn log_path(&self) -> PathBuf {
        self.settings.directory.join(format!("log-{}", self.start_count))
    }

    /// Starts the server on its data and its ports, and returns when it is ready.
    pub async fn start_again(&mut self) -> Result<()> {
        self.launch()?;
        self.wait_until_ready().await
    }

    /// Starts the server without waiting; members of a cluster are ready only together.
    pub(crate) fn launch(&mut self) -> Result<()> {
        ensure!(!self.is_started(), "{} runs already", self.settings.name);
        self.start_count += 1;
        let settings = &self.settings;
        let log = self.log_path();
        let process = Process::launch(&settings.name, &settings.command, &log, settings.account, settings.stop_signal)?;
        self.process = Some(process);
        Ok(())
    }

    /// Waits for a launched server.
    pub(crate) async fn wait_until_ready(&self) -> Result<()> {
        let is_ready = async || match self.settings.readiness {
            Readiness::Log(text) => self.read_log().contains(text),
            Readiness::Port(port) => connect(port).is_some(),
            Readiness::Http(port, path) => is_http_ready(port, path),
        };
        self.running()?.wait_until_ready(self.settings.start_limit, is_ready).await
    }

    /// Whether the server was started and neither stopped nor killed since.
    pub fn is_started(&self) -> bool {
        self.process.is_some()
    }

    /// Stops the server in good order, by force after 30 s.
    pub async fn stop(&mut self) -> Result<()> {
        self.take_process()?.stop().await;
        Ok(())
    }

    /// Asks the server to stop and does not wait; [`stop`](Self::stop) then does.
    pub(crate) fn request_stop(&self) {
        if let Some(process) = &self.process {
            process.request_stop();
        }
    }

    /// Kills the server and all it started, as a crash of the program does (a crash of the machine is worse).
    pub async fn kill9(&mut self) -> Result<()> {
        self.take_process()?.kill9().await;
        Ok(())
    }

    /// Freezes the server; the kernel still accepts connections and data for it, but nothing answers.
    pub fn pause(&mut self) -> Result<()> {
        self.running()?.pause();
        Ok(())
    }

    /// Ends a [`pause`](Self::pause).
    pub fn resume(&mut self) -> Result<()> {
        self.running()?.resume();
        Ok(())
    }

    fn running(&self) -> Result<&Process> {
        self.process.as_ref().with_context(|| format!("{} does not run", self.settings.name))
    }

    fn take_process(&mut self) -> Result<Process> {
        self.process.take().with_context(|| format!("{} does not run", self.settings.name))
    }
}

/// Connects to loopback, where the kernel answers at once.
fn connect(port: u16) -> Option<TcpStream> {
    TcpStream::connect_timeout(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)), Duration::from_secs(1)).ok()
}

fn is_http_ready(port: u16, path: &str) -> bool {
    let Some(mut stream) = connect(port) else { return false };
    let request = format!("GET {path} HTTP/1.0\r\nhost: 127.0.0.1\r\n\r\n");
    let mut answer = String::new();
    let exchange = stream
        .set_read_timeout(Some(Duration::from_secs(1)))
        .and_then(|()| stream.write_all(request.as_bytes()))
        .and_then(|()| stream.take(64 * 1024).read_to_string(&mut answer));
    exchange.is_ok() && answer.split_whitespace().nth(1) == Some("200")
}
