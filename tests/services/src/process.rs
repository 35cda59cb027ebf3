//! One running server process: launch, readiness, signals, end.
//!
//! Invariant: a signal goes only to a process that we launched, checked by its start time, and to what it started.

use std::{
    fs::{self, File},
    io::Write,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use tokio::time::sleep;

use crate::{account::Account, supervisor::Supervisor};

const POLL: Duration = Duration::from_millis(20);
const STOP_LIMIT: Duration = Duration::from_secs(30);
const LOG_LINES_SHOWN: usize = 30;

/// How a server is asked to end in good order.
#[derive(Clone, Copy, Debug)]
pub(crate) enum StopSignal {
    /// What most servers take as "finish and end".
    Terminate,
    /// PostgreSQL's fast shutdown; its SIGTERM would wait for every client.
    Interrupt,
}

impl StopSignal {
    fn signal(self) -> Signal {
        match self {
            Self::Terminate => Signal::TERM,
            Self::Interrupt => Signal::INT,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Terminate => "TERM",
            Self::Interrupt => "INT",
        }
    }
}

/// A server process of ours. Dropped, it is stopped in the background.
#[derive(Debug)]
pub(crate) struct Process {
    name: String,
    log: PathBuf,
    pid: Pid,
    started: u64,
    stop_signal: StopSignal,
    /// Taken by `drop`.
    child: Option<Child>,
}

impl Process {
    /// Starts `command` as a server. Its output is appended to `log`; it leads a process group of its own.
    ///
    /// Of `command` the program, arguments, environment and directory are used.
    pub(crate) fn launch(
        name: &str,
        command: &Command,
        log: &Path,
        account: Option<Account>,
        stop_signal: StopSignal,
    ) -> Result<Self> {
        let output = File::options().create(true).append(true).open(log);
        let output = output.with_context(|| format!("opening {}", log.display()))?;
        let errors = output.try_clone().context("duplicating a log's handle")?;
        // The shell holds the process number until the supervisor knows it, then becomes the server. Should we die
        // in between, its `read` fails and no server ever ran.
        let mut gate = Command::new("/bin/sh");
        gate.args(["-c", "read -r go && exec \"$@\" < /dev/null", "sh"]).arg(command.get_program());
        gate.args(command.get_args()).stdin(Stdio::piped()).stdout(output).stderr(errors).process_group(0);
        for (key, value) in command.get_envs() {
            match value {
                Some(value) => gate.env(key, value),
                None => gate.env_remove(key),
            };
        }
        if let Some(directory) = command.get_current_dir() {
            gate.current_dir(directory);
        }
        if let Some(account) = account {
            account.apply(&mut gate);
        }
        let mut child = gate.spawn().with_context(|| format!("starting {name}"))?;
        let pid = Pid::from_child(&child);
        let started = stat(pid).context("reading the start time of a process that was just started")?.started;
        Supervisor::get()?.add(pid.as_raw_pid(), started, stop_signal.name())?;
        let mut input = child.stdin.take().context("a launched process has no standard input")?;
        input.write_all(b"go\n").with_context(|| format!("starting {name}"))?;
        Ok(Self { name: name.to_owned(), log: log.to_owned(), pid, started, stop_signal, child: Some(child) })
    }

    /// Whether the process runs (or is paused), checked by its start time.
    pub(crate) fn is_running(&self) -> bool {
        stat(self.pid).is_some_and(|stat| stat.started == self.started && stat.is_alive)
    }

    /// Waits until `is_ready`, at most `limit`; fails at once when the process ends.
    pub(crate) async fn wait_until_ready(&self, limit: Duration, is_ready: impl AsyncFn() -> bool) -> Result<()> {
        let start = Instant::now();
        loop {
            if is_ready().await {
                return Ok(());
            }
            ensure!(self.is_running(), "{} ended while starting; {}", self.name, self.log_tail());
            let limit_seconds = limit.as_secs();
            ensure!(start.elapsed() < limit, "{} is not ready after {limit_seconds} s; {}", self.name, self.log_tail());
            sleep(POLL).await;
        }
    }

    /// The last lines of the server's log, as part of an error.
    pub(crate) fn log_tail(&self) -> String {
        log_tail(&self.log)
    }

    /// Asks the process to end in good order.
    pub(crate) fn request_stop(&self) {
        self.resume();
        self.send(self.stop_signal.signal());
    }

    /// Stops in good order, by force after 30 s.
    pub(crate) async fn stop(mut self) {
        if let Some(child) = self.child.take() {
            self.request_stop();
            self.wait_for_end(&self.family(), STOP_LIMIT).await;
            self.end(child).await;
        }
    }

    /// Kills the process and all it started, as a crash of the program (not of the machine) would.
    pub(crate) async fn kill9(mut self) {
        if let Some(child) = self.child.take() {
            self.end(child).await;
        }
    }

    /// Freezes the process and all it started. The kernel goes on accepting connections and data for it.
    pub(crate) fn pause(&self) {
        self.signal_family(Signal::STOP);
    }

    /// Ends a pause.
    pub(crate) fn resume(&self) {
        self.signal_family(Signal::CONT);
    }

    async fn end(&self, mut child: Child) {
        let family = self.signal_family(Signal::KILL);
        self.wait_for_end(&family, STOP_LIMIT).await;
        // Takes the dead process off the kernel's table; it has ended, so this does not wait.
        let _ = child.wait();
        if let Ok(supervisor) = Supervisor::get() {
            supervisor.forget(self.pid.as_raw_pid());
        }
    }

    async fn wait_for_end(&self, family: &[(Pid, u64)], limit: Duration) {
        let start = Instant::now();
        while start.elapsed() < limit && family.iter().any(|(pid, started)| is_alive(*pid, *started)) {
            sleep(POLL).await;
        }
    }

    /// This process and its descendants, itself first; none when it has ended.
    fn family(&self) -> Vec<(Pid, u64)> {
        let mut family = Vec::new();
        if self.is_running() {
            collect_family(self.pid, &mut family);
        }
        family
    }

    /// Signals the process first and its descendants after it, so that a frozen or dead parent can't start more.
    fn signal_family(&self, signal: Signal) -> Vec<(Pid, u64)> {
        self.send(match signal {
            Signal::KILL => Signal::STOP,
            other => other,
        });
        let family = self.family();
        for (pid, started) in &family {
            if is_alive(*pid, *started) {
                // It may end between the look and the signal; then there is nothing left to do.
                let _ = kill_process(*pid, signal);
            }
        }
        family
    }

    fn send(&self, signal: Signal) {
        if self.is_running() {
            let _ = kill_process(self.pid, signal);
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        // Not here, since a drop must not block an async task, and not left to the supervisor, since this process may
        // live on for long.
        let (pid, started, stop_signal) = (self.pid, self.started, self.stop_signal);
        std::thread::spawn(move || {
            let mut family = Vec::new();
            collect_family(pid, &mut family);
            for (pid, started) in &family {
                if is_alive(*pid, *started) {
                    let _ = kill_process(*pid, Signal::CONT);
                }
            }
            if is_alive(pid, started) {
                let _ = kill_process(pid, stop_signal.signal());
            }
            let start = Instant::now();
            while start.elapsed() < STOP_LIMIT && is_alive(pid, started) {
                std::thread::sleep(POLL);
            }
            for (pid, started) in family {
                if is_alive(pid, started) {
                    let _ = kill_process(pid, Signal::KILL);
                }
            }
            let _ = child.wait();
            if let Ok(supervisor) = Supervisor::get() {
                supervisor.forget(pid.as_raw_pid());
            }
        });
    }
}

struct Stat {
    is_alive: bool,
    started: u64,
}

/// State and start time of a process; none when there is no such process.
fn stat(pid: Pid) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_pid())).ok()?;
    // The second field is the program's name in parentheses, and may hold anything.
    let (_, after_name) = text.rsplit_once(") ")?;
    let fields: Vec<_> = after_name.split(' ').collect();
    Some(Stat { is_alive: !matches!(*fields.first()?, "Z" | "X"), started: fields.get(19)?.parse().ok()? })
}

fn is_alive(pid: Pid, started: u64) -> bool {
    stat(pid).is_some_and(|stat| stat.is_alive && stat.started == started)
}

fn collect_family(pid: Pid, family: &mut Vec<(Pid, u64)>) {
    let Some(stat) = stat(pid) else { return };
    family.push((pid, stat.started));
    let Ok(threads) = fs::read_dir(format!("/proc/{}/task", pid.as_raw_pid())) else { return };
    for thread in threads.flatten() {
        let children = fs::read_to_string(thread.path().join("children")).unwrap_or_default();
        for child in children.split_whitespace().filter_map(|text| text.parse().ok()).filter_map(Pid::from_raw) {
            collect_family(child, family);
        }
    }
}

/// The last lines of a log, as part of an error.
pub(crate) fn log_tail(log: &Path) -> String {
    let text = String::from_utf8_lossy(&fs::read(log).unwrap_or_default()).into_owned();
    let lines: Vec<_> = text.lines().collect();
    let tail = &lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..];
    format!("the end of {}:\n{}", log.display(), tail.join("\n"))
}

/// Runs a server's own tool to its end, under the same account as the server; returns what it printed.
pub(crate) async fn run_tool(mut command: Command, account: Option<Account>) -> Result<String> {
    if let Some(account) = account {
        account.apply(&mut command);
    }
    let shown = format!("{command:?}");
    let output = tokio::task::spawn_blocking(move || command.stdin(Stdio::null()).output()).await;
    let output = output.context("waiting for a tool")?.with_context(|| format!("running {shown}"))?;
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(printed);
    }
    bail!("{shown} ended with {}:\n{}{printed}", output.status, String::from_utf8_lossy(&output.stderr))
}
