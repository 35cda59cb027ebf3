//! The SBOM of the image: a scanner finds the crates that went into the binary, and nothing of the tests.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use catalog_bridge_services::deployment;
use serde_json::Value;
use tokio::process::Command;

use super::build::say;
use super::container::Image;
use crate::charts::{root, run};

pub(super) async fn check(image: &Image) -> Result<()> {
    let layer = image.layers.first().context("a layer")?;
    let mut syft = Command::new(deployment::syft().await?);
    syft.args(["scan", "--quiet", "--output", "spdx-json"]).arg(format!("dir:{}", layer.display()));
    let document: Value = serde_json::from_str(&run(syft.env("SYFT_CHECK_FOR_APP_UPDATE", "false")).await?)?;
    let packages = document["packages"].as_array().context("packages")?;
    let references = packages.iter().flat_map(|package| package["externalRefs"].as_array().into_iter().flatten());
    let found: BTreeSet<_> = references
        .filter(|reference| reference["referenceType"] == "purl")
        .filter_map(|reference| reference["referenceLocator"].as_str())
        .collect();

    let locked = std::fs::read_to_string(root().join("Cargo.lock"))?;
    for package in &found {
        let of_cargo = package.strip_prefix("pkg:cargo/").and_then(|named| named.split_once('@'));
        let (name, version) = of_cargo.with_context(|| format!("{package} is no crate"))?;
        let entry = format!("name = \"{name}\"\nversion = \"{}\"\n", version.replace("%2B", "+"));
        ensure!(locked.contains(&entry), "{package} is not in Cargo.lock");
    }
    for name in ["async-nats", "aws-sdk-sqs", "catalog-bridge", "lapin", "rdkafka", "sqlx-core", "tokio"] {
        ensure!(
            found.iter().any(|package| package.starts_with(&format!("pkg:cargo/{name}@"))),
            "no {name} in {found:?}"
        );
    }
    say(&format!("the SBOM names {} crates", found.len()));
    Ok(())
}
