use std::fs::{File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tracing::{info, warn};

use super::{StoreError, unavailable};

/// The right to use the file, held for life: the kernel gives it back when the process ends, however it ends.
#[derive(Debug)]
pub(super) struct FileLock {
    _file: File,
}

impl FileLock {
    /// Takes the lock; while another process has it, waits and says so.
    pub(super) async fn acquire(database: &Path) -> Result<Self, StoreError> {
        let path = lock_path(database);
        let action = "lock the store's file";
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
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
        Ok(FileLock { _file: file })
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
