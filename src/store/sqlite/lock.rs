use std::fs::{File, OpenOptions, TryLockError};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use catalog_bridge_api::Offset;
use tracing::{info, warn};
use uuid::Uuid;

use super::{StoreError, unavailable};

/// The right to use the file, held for life: the kernel gives it back when the process ends, however it ends. Also keeps,
/// beside the file, how far the log had come: a file that is behind was replaced by an older copy.
#[derive(Debug)]
pub(super) struct FileLock {
    file: File,
}

impl FileLock {
    /// Takes the lock; while another process has it, waits and says so.
    pub(super) async fn acquire(database: &Path) -> Result<Self, StoreError> {
        let path = lock_path(database);
        let action = "lock the store's file";
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&path)
            .map_err(|error| unavailable_at(action, &path, &error))?;
        let mut waited = false;
        loop {
            match file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) => {
                    if !waited {
                        warn!(path = %path.display(), "another catalog-bridge uses this store; waiting until it ends");
                        waited = true;
                    }
                    tokio::time::sleep(Duration::from_millis(250)).await;
                }
                Err(TryLockError::Error(error)) => return Err(unavailable_at(action, &path, &error)),
            }
        }
        if waited {
            info!(path = %path.display(), "the other catalog-bridge ended; going on");
        }
        Ok(FileLock { file })
    }
    /// Notes how far the log has come. Written after the commit, so it is never ahead of a log that was not replaced; not
    /// forced to the disk, as a note that is too low only notices less.
    pub(super) fn note(&self, log_id: Uuid, head: Offset) {
        let line = format!("{log_id} {}\n", head.padded());
        if let Err(error) = self.file.write_all_at(line.as_bytes(), 0) {
            warn!(error = %error, "the log's head could not be noted beside the store's file");
        }
    }

    /// What was noted last, by this process or the one before it.
    pub(super) fn noted(&self) -> Option<(Uuid, Offset)> {
        let mut line = [0; 57];
        self.file.read_exact_at(&mut line, 0).ok()?;
        let (log_id, head) = str::from_utf8(&line).ok()?.split_once(' ')?;
        Some((Uuid::parse_str(log_id).ok()?, Offset::new(head.trim_end().parse().ok()?)))
    }
}

fn lock_path(database: &Path) -> PathBuf {
    let mut name = database.as_os_str().to_owned();
    name.push(".lock");
    name.into()
}

fn unavailable_at(action: &'static str, path: &Path, error: &std::io::Error) -> StoreError {
    let message = format!("{}: {error}", path.display());
    unavailable(action)(sqlx::Error::Io(std::io::Error::new(error.kind(), message)))
}
