//! Versions agree, and the release workflow is one that GitHub takes. No workflow runs here.

use anyhow::{Context, Result, ensure};
use catalog_bridge_services::deployment;
use serde_json::Value;
use tokio::process::Command;

use crate::charts::{ours, root, run};

#[test]
fn chart_and_crate_have_one_version() -> Result<()> {
    let chart: Value = serde_saphyr::from_str(&std::fs::read_to_string(ours().join("Chart.yaml"))?)?;
    ensure!(chart["appVersion"] == env!("CARGO_PKG_VERSION"), "appVersion is {}", chart["appVersion"]);
    ensure!(chart["version"] == env!("CARGO_PKG_VERSION"), "version is {}", chart["version"]);

    let toml = std::fs::read_to_string(root().join("Cargo.toml"))?;
    let msrv = toml.lines().find_map(|line| line.strip_prefix("rust-version = \"")?.split('"').next());
    let dockerfile = std::fs::read_to_string(root().join("deploy/Dockerfile"))?;
    let built_by =
        dockerfile.lines().find_map(|line| line.strip_prefix("ARG RUST_VERSION=")).context("RUST_VERSION")?;
    let number = |text: &str| text.split('.').map(|part| part.parse().unwrap_or(0_u32)).collect::<Vec<_>>();
    ensure!(msrv.is_some_and(|msrv| number(built_by)[..2] >= number(msrv)[..2]), "{built_by} is older than {msrv:?}");
    Ok(())
}

#[tokio::test]
async fn the_release_workflow_is_sound() -> Result<()> {
    let file = root().join(".github/workflows/release.yml");
    let mut actionlint = Command::new(deployment::actionlint().await?);
    // The shell's linter is not part of it.
    run(actionlint.args(["-shellcheck=", "-pyflakes="]).arg(&file)).await?;

    let workflow: Value = serde_saphyr::from_str(&std::fs::read_to_string(&file)?)?;
    ensure!(workflow["on"]["push"]["tags"][0] == "v*");
    ensure!(workflow["permissions"] == serde_json::json!({}), "rights are given job by job");
    let jobs = workflow["jobs"].as_object().context("jobs")?;
    for job in ["verify", "image", "manifest", "chart", "binaries", "release"] {
        ensure!(jobs.contains_key(job), "no job {job}");
    }
    for (name, job) in jobs {
        ensure!(job["permissions"].is_object(), "{name} has no rights of its own");
        for step in job["steps"].as_array().context("steps")? {
            if let Some(action) = step["uses"].as_str() {
                ensure!(action.contains('@'), "{name}: {action} has no version");
            }
        }
    }
    let steps = jobs["binaries"]["steps"].as_array().context("steps")?;
    let is_sbom =
        |step: &&Value| step["uses"].as_str().is_some_and(|action| action.starts_with("anchore/sbom-action@"));
    let sbom = steps.iter().find(is_sbom).context("a step that makes an SBOM")?;
    // Of the sources it would name what only tests need.
    ensure!(sbom["with"]["file"] == "catalog-bridge" && sbom["with"]["path"].is_null(), "{sbom}");
    Ok(())
}
