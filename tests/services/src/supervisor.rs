//! Ends our servers when we can't: after a panic, an abort or SIGKILL of the test process.
//!
//! A small shell loop (`supervisor.sh`) reads from a pipe whose other end this process holds. When the pipe closes, for
//! whatever reason, it stops every server that was announced and removes the run's directory. `PR_SET_PDEATHSIG` would not
//! do: it follows the thread that started a server, and async runtimes end threads at will.
//!
//! Invariant: a server is announced before it runs (see [`crate::process`]), so no moment is left in which it could be
//! forgotten.

use std::{
    env, fs,
    io::Write,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    sync::{
        Mutex, OnceLock, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use anyhow::{Context, Result, anyhow};

use crate::account;

/// The supervisor of this process, and the directory below which all its servers keep their data.
#[derive(Debug)]
pub(crate) struct Supervisor {
    directory: PathBuf,
    pipe: Mutex<ChildStdin>,
    directories: AtomicUsize,
    /// Never waited for: it outlives us.
    _shell: Child,
}

impl Supervisor {
    /// The one supervisor of this process, started at first use.
    pub(crate) fn get() -> Result<&'static Self> {
        static SUPERVISOR: OnceLock<Result<Supervisor, String>> = OnceLock::new();
        let started = SUPERVISOR.get_or_init(|| Self::start().map_err(|error| format!("{error:#}")));
        started.as_ref().map_err(|error| anyhow!("{error}"))
    }

    fn start() -> Result<Self> {
        let parent = temporary_directory()?;
        let directory = tempfile::Builder::new()
            .prefix("catalog-bridge-run-")
            .permissions(fs::Permissions::from_mode(0o755))
            .tempdir_in(&parent)
            .with_context(|| format!("creating a directory in {}", parent.display()))?
            .keep();
        // In a group of its own, so that Ctrl-C and a test runner's kill of our group pass it by.
        let shell = Command::new("/bin/sh")
            .args(["-c", include_str!("supervisor.sh"), "catalog-bridge-supervisor"])
            .arg(&directory)
            .current_dir("/")
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let mut shell = shell.context("starting /bin/sh as the servers' supervisor")?;
        let pipe = shell.stdin.take().context("the supervisor has no standard input")?;
        Ok(Self { directory, pipe: Mutex::new(pipe), directories: AtomicUsize::new(0), _shell: shell })
    }

    /// Creates an empty directory for one server; it is gone at the latest when this process has ended.
    pub(crate) fn create_directory(&self, name: &str) -> Result<PathBuf> {
        let number = self.directories.fetch_add(1, Ordering::Relaxed);
        let directory = self.directory.join(format!("{name}-{number}"));
        fs::create_dir(&directory).with_context(|| format!("creating {}", directory.display()))?;
        Ok(directory)
    }

    /// Announces a process: it ends with us, first by `signal` (such as `TERM`), then by force.
    pub(crate) fn add(&self, pid: i32, started: u64, signal: &str) -> Result<()> {
        self.tell(&format!("add {pid} {started} {signal}\n")).with_context(|| format!("announcing process {pid}"))
    }

    /// Forgets a process that has ended.
    pub(crate) fn forget(&self, pid: i32) {
        // When this fails the supervisor is gone; nothing is lost, as the process has ended.
        let _ = self.tell(&format!("drop {pid}\n"));
    }

    fn tell(&self, line: &str) -> Result<()> {
        let mut pipe = self.pipe.lock().unwrap_or_else(PoisonError::into_inner);
        pipe.write_all(line.as_bytes()).context("the servers' supervisor (a /bin/sh) does not listen; was it killed?")
    }
}

/// `TMPDIR`, unless the account that servers run as could not enter it.
fn temporary_directory() -> Result<PathBuf> {
    let chosen = env::temp_dir();
    if !account::is_root() || account::closed_ancestor(&chosen).is_none() {
        return Ok(chosen);
    }
    let fallback = Path::new("/tmp");
    account::ensure_passable(fallback, "set TMPDIR to a directory of mode 0755")?;
    Ok(fallback.to_owned())
}
