//! Java artifacts from Maven's registry.

use std::{fs, path::Path};

use anyhow::{Context, Result};
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

/// Copies all that the project file `pom` needs at run time into `directory`.
pub(crate) async fn copy_dependencies(pom: &str, directory: &Path) -> Result<()> {
    let file = directory.join("pom.xml");
    fs::write(&file, pom).with_context(|| format!("writing {}", file.display()))?;
    let mut command = maven("copy-dependencies");
    command.arg("-f").arg(&file).arg("-DincludeScope=runtime");
    command.arg(format!("-DoutputDirectory={}", directory.display()));
    run(&mut command).await?;
    fs::remove_file(&file).with_context(|| format!("removing {}", file.display()))
}
