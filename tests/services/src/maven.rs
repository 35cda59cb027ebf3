//! Java artifacts from Maven's registry.

use std::path::Path;

use anyhow::Result;
use tokio::process::Command;

use crate::cache::run;

/// Pinned, since Maven's own default differs from release to release.
const DEPENDENCY_PLUGIN: &str = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1";

fn maven(goal: &str) -> Command {
    let mut command = Command::new("mvn");
    command.args(["--quiet", "--batch-mode", "--no-transfer-progress"]).arg(format!("{DEPENDENCY_PLUGIN}:{goal}"));
    command
}

/// Copies one artifact (`group:name:version`) into `directory`.
pub(crate) async fn copy_artifact(artifact: &str, directory: &Path) -> Result<()> {
    let mut command = maven("copy");
    command.arg(format!("-Dartifact={artifact}")).arg(format!("-DoutputDirectory={}", directory.display()));
    run(&mut command).await.map(drop)
}
