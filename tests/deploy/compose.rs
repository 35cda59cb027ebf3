//! The Compose file, loaded as Docker Compose loads it, and the configs that it mounts. No container runs here.

use anyhow::{Context, Result, ensure};
use catalog_bridge_services::deployment;
use serde_json::Value;
use tokio::process::Command;

use crate::charts::{root, run};
use crate::config::check_offline;

/// Every profile that compose.yaml knows; a config of its name lies beside it.
fn profiles() -> Result<Vec<String>> {
    let configs = std::fs::read_dir(root().join("deploy/compose/config"))?.flatten();
    let names = configs.filter_map(|file| Some(file.path().file_stem()?.to_str()?.to_owned()));
    Ok(names.collect())
}

async fn load(profile: &str) -> Result<Value> {
    let mut compose = Command::new(deployment::compose().await?);
    compose.arg(root().join("deploy/compose/compose.yaml")).arg(profile).env("COMPOSE_PROFILES", profile);
    Ok(serde_json::from_str(&run(&mut compose).await?)?)
}

#[tokio::test]
async fn every_profile_starts_what_its_config_names() -> Result<()> {
    let profiles = profiles()?;
    ensure!(profiles.len() >= 5, "{profiles:?}");
    for profile in profiles {
        let project = load(&profile).await.with_context(|| profile.clone())?;
        let services = project["services"].as_object().context("services")?;
        for always in ["postgres", "backstage", "bridge", &profile] {
            ensure!(services.contains_key(always), "{profile}: no {always} in {:?}", services.keys());
        }
        ensure!(services.len() == 4, "{profile} starts {:?}", services.keys());

        let bridge = &services["bridge"];
        let mount = bridge["volumes"][0]["source"].as_str().context("a mount")?;
        ensure!(mount.ends_with(&format!("config/{profile}.yaml")), "{mount}");
        check_offline(mount.as_ref()).await?;
        ensure!(bridge["stop_grace_period"] == "45s" && bridge["read_only"] == true);
        for service in services.values() {
            for port in service["ports"].as_array().into_iter().flatten() {
                ensure!(port["host_ip"] == "127.0.0.1", "{port} is open to everybody");
            }
            for volume in service["volumes"].as_array().into_iter().flatten() {
                let source = volume["source"].as_str().unwrap_or_default();
                ensure!(volume["type"] != "bind" || std::path::Path::new(source).exists(), "{source} is not there");
            }
        }
        let variables = bridge["environment"].as_object().context("variables")?;
        let config = std::fs::read_to_string(mount)?;
        for name in config.split("${").skip(1).filter_map(|rest| rest.split('}').next()) {
            ensure!(variables.contains_key(name), "{profile} names ${{{name}}}, which the bridge is not given");
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_wrong_key_is_found() -> Result<()> {
    let place = tempfile::tempdir()?;
    let file = place.path().join("compose.yaml");
    std::fs::write(&file, "services: { a: { image: b, volums: [] } }")?;
    let mut compose = Command::new(deployment::compose().await?);
    let error = run(compose.arg(&file)).await.err().context("it is taken")?.to_string();
    ensure!(error.contains("volums"), "{error}");
    Ok(())
}
