use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use catalog_bridge_api::{
    Acks, CheckReport, Claim, ConfigError, Connector, ConnectorError, Encoding, Feed, Limits, Offset, Session,
};

use crate::config::FileConfig;
use crate::line::{Marks, write_line};
use crate::tail::{Ending, read_ending};

/// How much one write and `fdatasync` take at most, unless a single event is larger.
const BATCH_BYTES: usize = 4 * 1024 * 1024;

#[derive(Debug)]
pub(crate) struct FileConnector {
    path: PathBuf,
    ensure: bool,
}

impl FileConnector {
    pub(crate) fn new(config: &FileConfig, ensure: bool) -> Result<Self, ConfigError> {
        if config.path.file_name().is_none() {
            return Err(ConfigError::at("path", "names no file; write something like /var/log/catalog.ndjson"));
        }
        let path = std::path::absolute(&config.path).map_err(|error| ConfigError::at("path", error.to_string()))?;
        Ok(FileConnector { path, ensure })
    }
}

#[async_trait]
impl Connector for FileConnector {
    fn limits(&self) -> Limits {
        Limits {
            message_bytes_max: None,
            prefix_safe: true,
            window_events: 10_000,
            window_bytes: 8 * 1024 * 1024,
            // A write that is under way holds the lock, and the next session waits for the lock.
            flight: Duration::ZERO,
            encoding: Encoding::Cloudevents,
        }
    }

    fn destination(&self) -> String {
        format!("file {}", self.path.display())
    }

    fn exclusive_destination(&self) -> Option<String> {
        Some(self.destination())
    }

    async fn check(&self) -> Result<CheckReport, ConnectorError> {
        let path = self.path.clone();
        let ensure = self.ensure;
        blocking(&self.path, "look at", move || look_at(&path, ensure)).await?
    }

    async fn open(&self, claim: Claim) -> Result<Box<dyn Session>, ConnectorError> {
        let (path, ensure) = (self.path.clone(), self.ensure);
        let is_ours = move |marks: &Marks| marks.log_id == claim.log_id && marks.generation == claim.generation;
        let opened = blocking(&self.path, "open", move || Appender::open(&path, ensure, is_ours)).await??;
        let tail = opened.tail.unwrap_or_default();
        if tail > claim.head {
            return Err(ConnectorError::AheadOfLog { endpoint: self.path.display().to_string(), tail });
        }
        Ok(Box::new(FileSession { appender: opened, stored: tail.max(claim.checkpoint) }))
    }
}

struct FileSession {
    appender: Appender,
    /// Everything up to here is in the file, or was acknowledged before.
    stored: Offset,
}

#[async_trait]
impl Session for FileSession {
    async fn run(self: Box<Self>, mut feed: Feed, acks: Acks) -> Result<(), ConnectorError> {
        let FileSession { mut appender, stored } = *self;
        if appender.tail.is_some_and(|tail| tail == stored) {
            acks.already_stored(stored);
        }
        while let Some(first) = feed.next().await {
            let mut last = first.offset();
            let mut lines = Vec::new();
            let mut take = |message: &catalog_bridge_api::Message| {
                last = message.offset();
                // What was offered before the driver heard of the tail.
                if last > stored {
                    write_line(message, &mut lines);
                }
                lines.len()
            };
            let mut length = take(&first);
            while length < BATCH_BYTES
                && let Some(message) = feed.try_next()
            {
                length = take(&message);
            }
            if !feed.lease().is_held() {
                return Ok(());
            }
            if !lines.is_empty() {
                // A dropped future cannot stop a write that is under way; it keeps the lock until it is done.
                let path = appender.path.clone();
                appender = blocking(&path, "append to", move || appender.append(&lines).map(|()| appender)).await??;
            }
            acks.up_to(last);
        }
        Ok(())
    }
}

/// The locked file.
struct Appender {
    path: PathBuf,
    file: File,
    /// The newest of our lines when it was opened.
    tail: Option<Offset>,
}

impl Appender {
    /// Opens, locks, cuts a torn last line off and finds the tail.
    fn open(path: &Path, ensure: bool, is_ours: impl Fn(&Marks) -> bool) -> Result<Appender, ConnectorError> {
        let fail = |error| failure("open", path, error);
        if ensure && let Some(directory) = path.parent() {
            std::fs::create_dir_all(directory).map_err(fail)?;
        }
        let file = open_locked(path)?;
        let (length, newest) = match read_ending(&file, is_ours).map_err(fail)? {
            Ending::Lines { length, newest } => (length, newest),
            Ending::Foreign => {
                let reason = "its last line has no end and is not ours; name another file";
                return Err(ConnectorError::misconfigured(path.display().to_string(), reason));
            }
        };
        if length < file.metadata().map_err(fail)?.len() {
            tracing::warn!(path = %path.display(), "a torn last line was cut off");
            file.set_len(length).map_err(fail)?;
        }
        // What a killed writer left in the page cache is not durable yet, and the name of a new file is in its directory.
        file.sync_all().map_err(fail)?;
        if let Some(directory) = path.parent() {
            File::open(directory).and_then(|directory| directory.sync_all()).map_err(fail)?;
        }
        Ok(Appender { path: path.to_owned(), file, tail: newest.map(|marks| marks.offset) })
    }

    /// Appends whole lines and makes them durable. A file that was moved away (rotated) is followed by a new one.
    fn append(&mut self, lines: &[u8]) -> Result<(), ConnectorError> {
        if !is_same_file(&self.path, &self.file) {
            *self = Appender::open(&self.path, false, |_| false)?;
        }
        let written = self.file.write_all(lines).and_then(|()| self.file.sync_data());
        written.map_err(|error| failure("append to", &self.path, error))
    }
}

fn open_locked(path: &Path) -> Result<File, ConnectorError> {
    loop {
        let file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .open(path)
            .map_err(|error| failure("open", path, error))?;
        if !file.metadata().map_err(|error| failure("open", path, error))?.is_file() {
            return Err(ConnectorError::misconfigured(path.display().to_string(), "it is no regular file"));
        }
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let held =
                    io::Error::new(ErrorKind::WouldBlock, "another process (or a former session) holds its lock");
                return Err(failure("lock", path, held));
            }
            Err(TryLockError::Error(error)) => return Err(failure("lock", path, error)),
        }
        // Moved away between opening and locking: the lock is on the wrong file.
        if is_same_file(path, &file) {
            return Ok(file);
        }
    }
}

fn is_same_file(path: &Path, file: &File) -> bool {
    let identity = |metadata: std::fs::Metadata| (metadata.dev(), metadata.ino());
    match (std::fs::metadata(path), file.metadata()) {
        (Ok(by_path), Ok(open)) => identity(by_path) == identity(open),
        _ => false,
    }
}

fn look_at(path: &Path, ensure: bool) -> Result<CheckReport, ConnectorError> {
    let mut report = CheckReport::default();
    let endpoint = || path.display().to_string();
    match std::fs::metadata(path) {
        Ok(metadata) if !metadata.is_file() => {
            return Err(ConnectorError::misconfigured(endpoint(), "it is no regular file"));
        }
        Ok(metadata) => {
            let opened = OpenOptions::new().read(true).append(true).open(path);
            let file = opened.map_err(|error| failure("open", path, error))?;
            let ending = read_ending(&file, |_| true).map_err(|error| failure("read", path, error))?;
            let Ending::Lines { newest, .. } = ending else {
                let reason = "its last line has no end and is not ours; name another file";
                return Err(ConnectorError::misconfigured(endpoint(), reason));
            };
            report.facts.push(format!("{} holds {} bytes", endpoint(), metadata.len()));
            if let Some(newest) = newest {
                let Marks { log_id, generation, offset } = newest;
                report
                    .facts
                    .push(format!("its newest event is offset {offset} of log {log_id}, generation {generation}"));
            }
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let directory = path.parent().unwrap_or(path);
            if !directory.is_dir() && !ensure {
                let reason =
                    format!("the directory {} does not exist; create it or set ensure: true", directory.display());
                return Err(ConnectorError::misconfigured(endpoint(), reason));
            }
            report.facts.push(format!("{} does not exist yet and will be made", endpoint()));
        }
        Err(error) => return Err(failure("look at", path, error)),
    }
    Ok(report)
}

/// What an operator has to change, and what passes.
fn failure(action: &'static str, path: &Path, error: io::Error) -> ConnectorError {
    let endpoint = path.display().to_string();
    match error.kind() {
        ErrorKind::NotFound => {
            let reason = format!("{error}; create its directory or set ensure: true");
            ConnectorError::misconfigured(endpoint, reason)
        }
        ErrorKind::PermissionDenied
        | ErrorKind::IsADirectory
        | ErrorKind::NotADirectory
        | ErrorKind::ReadOnlyFilesystem
        | ErrorKind::AlreadyExists => ConnectorError::misconfigured(endpoint, format!("cannot {action} it: {error}")),
        _ => ConnectorError::transient(action, endpoint, error),
    }
}

async fn blocking<T: Send + 'static>(
    path: &Path,
    action: &'static str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ConnectorError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| ConnectorError::transient(action, path.display().to_string(), error))
}
