//! Installed programs: a directory outside the source tree, filled once and shared by all test binaries.
//!
//! Invariant: a directory `NAME` in the cache is complete. It is filled as `NAME.partial` under a file lock and renamed,
//! so a killed install leaves nothing that looks installed.

use std::{
    env, fs,
    fs::File,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use tokio::process::Command;

use crate::account;

/// Where installed programs are kept: `CATALOG_BRIDGE_CACHE`, else the user's cache directory.
///
/// Root's home is usually closed to others, while PostgreSQL must run as somebody else: then it is
/// `/var/cache/catalog-bridge`.
pub fn cache_directory() -> Result<PathBuf> {
    if let Some(chosen) = env::var_os("CATALOG_BRIDGE_CACHE").filter(|value| !value.is_empty()) {
        let chosen = PathBuf::from(chosen);
        fs::create_dir_all(&chosen).with_context(|| format!("creating {} (CATALOG_BRIDGE_CACHE)", chosen.display()))?;
        let chosen = chosen.canonicalize().with_context(|| format!("resolving {}", chosen.display()))?;
        if account::is_root() {
            account::ensure_passable(&chosen, "set CATALOG_BRIDGE_CACHE to a directory of mode 0755")?;
        }
        return Ok(chosen);
    }
    let base = env::var_os("XDG_CACHE_HOME").filter(|value| !value.is_empty()).map(PathBuf::from);
    let base = base.or_else(|| env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")));
    let own = base.filter(|base| !account::is_root() || account::closed_ancestor(base).is_none());
    let directory = own.unwrap_or_else(|| PathBuf::from("/var/cache")).join("catalog-bridge");
    fs::create_dir_all(&directory).with_context(|| {
        format!("creating {}; set CATALOG_BRIDGE_CACHE to a directory of yours", directory.display())
    })?;
    Ok(directory)
}

/// Returns the cache's directory `name`, and fills it first by `fill` when it is not there yet.
///
/// `fill` gets an empty directory to write to. Other processes that want the same name wait meanwhile.
pub(crate) async fn installed(name: &str, fill: impl AsyncFnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let cache = cache_directory()?;
    let published = cache.join(name);
    if published.is_dir() {
        return Ok(published);
    }
    let _lock = lock(cache.join(format!("{name}.lock"))).await?;
    if published.is_dir() {
        return Ok(published);
    }
    // Whoever left this behind no longer holds the lock, so it is dead.
    let partial = cache.join(format!("{name}.partial"));
    if partial.exists() {
        fs::remove_dir_all(&partial).with_context(|| format!("removing {}", partial.display()))?;
    }
    fs::create_dir(&partial).with_context(|| format!("creating {}", partial.display()))?;
    eprintln!("installing {name} into {}", cache.display());
    fill(&partial).await.with_context(|| format!("installing {name} into {}", cache.display()))?;
    fs::rename(&partial, &published).with_context(|| format!("publishing {}", published.display()))?;
    Ok(published)
}

async fn lock(path: PathBuf) -> Result<File> {
    let locking = tokio::task::spawn_blocking(move || {
        let file = File::create(&path).with_context(|| format!("creating {}", path.display()))?;
        file.lock().with_context(|| format!("locking {}", path.display()))?;
        Ok(file)
    });
    locking.await.context("waiting for the lock of an install")?
}

/// Runs an install command to its end; what it printed becomes part of the error.
pub(crate) async fn run(command: &mut Command) -> Result<String> {
    let shown = format!("{:?}", command.as_std());
    let program = command.as_std().get_program().display().to_string();
    let output = command.kill_on_drop(true).output().await;
    let output = output.with_context(|| format!("running {program}; is it installed and on PATH?"))?;
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(printed);
    }
    bail!("{shown} ended with {}:\n{}{printed}", output.status, String::from_utf8_lossy(&output.stderr));
}
