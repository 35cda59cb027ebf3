//! Programs that the Go toolchain builds from its module proxy, and files that lie in a module.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use tokio::process::Command;

use crate::cache::{self, run};

/// How a program is built.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Speed {
    /// Optimized: for servers.
    OfRuns,
    /// Not optimized, which saves a third of the build: for tools that run for a moment.
    OfTheBuild,
}

/// Builds the program `package` (an import path) at `version` if it is not cached yet; returns its path.
///
/// Stripped, as the linker is a good part of the time.
pub(crate) async fn program(package: &str, version: &str, speed: Speed) -> Result<PathBuf> {
    let name = package.rsplit('/').find(|part| !is_major_version(part)).context("an import path has a name")?;
    let installed = cache::installed(&format!("{name}-{version}"), async |directory| {
        let mut go = go(directory);
        go.args(["install", "-trimpath", "-ldflags", "-s -w"]);
        if matches!(speed, Speed::OfTheBuild) {
            go.arg("-gcflags=all=-N -l");
        }
        go.arg(format!("{package}@{version}"));
        run(go.env("GOBIN", directory)).await.map(drop)
    })
    .await?;
    Ok(installed.join(name))
}

/// Downloads a module, checked against Go's checksum database; returns the directory with its files.
pub(crate) async fn module(path: &str, version: &str, directory: &Path) -> Result<PathBuf> {
    let printed = run(go(directory).args(["mod", "download", "-json"]).arg(format!("{path}@{version}"))).await?;
    let answer: serde_json::Value = serde_json::from_str(&printed).context("reading what go mod download says")?;
    let files = answer["Dir"].as_str().with_context(|| format!("the module {path}@{version} has no directory"))?;
    Ok(PathBuf::from(files))
}

/// The Go toolchain, without C: what it builds runs on any Linux.
pub(crate) fn go(directory: &Path) -> Command {
    let mut command = Command::new("go");
    command.env("CGO_ENABLED", "0").current_dir(directory);
    command
}

/// `v2` in `…/nats-server/v2` belongs to the module, not to the program.
fn is_major_version(part: &str) -> bool {
    part.strip_prefix('v').is_some_and(|digits| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()))
}
