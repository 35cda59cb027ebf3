//! What judges the files of `deploy/`: Helm, kubeconform, promtool, actionlint, syft, and Compose's own loader.
//!
//! All but promtool are built by the Go toolchain; promtool comes from Debian's package of Prometheus, which is a download
//! of seconds instead of a build of minutes.

use std::path::PathBuf;

use anyhow::{Context, Result};
use tokio::process::Command;

pub use crate::kubernetes::{operator_schemas, schemas};
use crate::{
    cache::{self, run},
    debian,
    go::{self, Speed},
};

/// Helm, as users run it.
pub async fn helm() -> Result<PathBuf> {
    go::program("helm.sh/helm/v4/cmd/helm", "v4.3.1", Speed::OfTheBuild).await
}

/// Validates Kubernetes objects against schemas.
pub async fn kubeconform() -> Result<PathBuf> {
    go::program("github.com/yannh/kubeconform/cmd/kubeconform", "v0.8.0", Speed::OfTheBuild).await
}

/// Lints workflows of GitHub Actions.
pub async fn actionlint() -> Result<PathBuf> {
    go::program("github.com/rhysd/actionlint/cmd/actionlint", "v1.7.12", Speed::OfTheBuild).await
}

/// Lists what a directory or a program is made of, as BuildKit's scanner and the release workflow's action do.
pub async fn syft() -> Result<PathBuf> {
    go::program("github.com/anchore/syft/cmd/syft", "v1.57.1", Speed::OfTheBuild).await
}

/// Checks and tests rules of Prometheus.
pub async fn promtool() -> Result<PathBuf> {
    let suite = debian::host_suite()?;
    let unpacked = cache::installed(&format!("prometheus-{suite}"), async |directory| {
        debian::unpack(&suite, &["prometheus"], |_| false, directory).await
    })
    .await?;
    Ok(unpacked.join("usr/bin/promtool"))
}

/// Loads a Compose file as Docker Compose does and prints it resolved, as JSON: `compose FILE PROFILE…`.
pub async fn compose() -> Result<PathBuf> {
    let installed = cache::installed("compose-go-v2.16.2", async |directory| {
        let files = [
            ("go.mod", include_str!("../compose/go.mod")),
            ("go.sum", include_str!("../compose/go.sum")),
            ("main.go", include_str!("../compose/main.go.txt")),
        ];
        for (name, text) in files {
            std::fs::write(directory.join(name), text).with_context(|| format!("writing {name}"))?;
        }
        let mut go: Command = go::go(directory);
        run(go.args(["build", "-trimpath", "-ldflags", "-s -w", "-o", "compose", "."])).await.map(drop)
    })
    .await?;
    Ok(installed.join("compose"))
}
