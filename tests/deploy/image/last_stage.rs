//! What the built binary finds in the last stage: its libraries, an account without rights, a root that nobody writes to.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use catalog_bridge_services::image;
use serde_json::Value;

use super::build::say;
use super::container::{CONFIG, DATA, Daemon, Image, Running};
use crate::support::{free_port, read_lines, upsert};

/// The newest symbol version of Debian 12's libc.so.6.
const GLIBC: (u32, u32) = (2, 36);

/// The loader of the last stage itself resolves the binary, to its last symbol version.
pub(super) fn check_libraries(image: &Image) -> Result<()> {
    let loader = ["lib64/ld-linux-x86-64.so.2", "lib/ld-linux-aarch64.so.1"];
    let (layer, base) = (image.layers.first().context("a layer")?, image.layers.last().context("a base")?);
    let binary = image.entry.first().context("an ENTRYPOINT")?;
    let outside = layer.join(binary.trim_start_matches('/'));
    let loader = loader.into_iter().find(|loader| base.join(loader).exists()).context("a loader")?;
    let output = image.container(&[], &[&format!("/{loader}"), "--list", binary])?.output().context("unshare")?;
    let told = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success() && !told.contains("not found"), "{told}");

    let needed = Command::new("readelf").args(["--wide", "--version-info"]).arg(&outside).output();
    let needed = String::from_utf8(needed.context("readelf of binutils")?.stdout)?;
    let versions = needed.split_whitespace().filter_map(|word| {
        let (major, minor) = word.strip_prefix("GLIBC_")?.split_once('.')?;
        Some((major.parse::<u32>().ok()?, minor.split('.').next()?.parse::<u32>().ok()?))
    });
    let highest = versions.max().context("readelf found no version of glibc")?;
    ensure!(highest <= GLIBC, "it needs glibc {highest:?}, Debian 12 has {GLIBC:?}");
    let size = fs::metadata(&outside)?.len();
    let libraries: Vec<_> = told.lines().filter_map(|line| line.split_whitespace().next()).collect();
    say(&format!("{size} bytes, needs {libraries:?}, symbols up to GLIBC_{}.{}", highest.0, highest.1));

    for shell in ["bin/sh", "bin/bash", "usr/bin/sh", "busybox/sh"] {
        ensure!(!base.join(shell).exists(), "{shell} lies in the last stage");
    }
    Ok(())
}

/// Commands that need no daemon.
pub(super) fn check_commands(image: &Image) -> Result<()> {
    let version = image.run(&[], &["--version"])?;
    ensure!(version.trim() == concat!("catalog-bridge ", env!("CARGO_PKG_VERSION")), "{version}");

    let config = image.directory("offline")?;
    let text = "log: postgres://bridge@db/log\nsources: { push: { ingest: {} } }\n\
                sinks: { platform: { kafka: { brokers: [\"kafka:9092\"], topic: catalog, tls: {} } } }\n";
    fs::write(config.join("catalog-bridge.yaml"), text)?;
    // No --config: the image's environment names it.
    let checked = image.run(&[(config, CONFIG)], &["check", "--offline"])?;
    ensure!(checked.contains("sink platform (kafka)"), "{checked}");
    Ok(())
}

/// Process 1, account 65532, on a root that nobody writes to: serves, delivers, is asked by a second command, and drains.
pub(super) async fn check_daemon(image: &Image) -> Result<()> {
    let config = format!(
        "log: sqlite://{DATA}/log.db\nsources: {{ push: {{ ingest: {{}} }} }}\n\
         sinks: {{ audit: {{ file: {{ path: {DATA}/catalog.ndjson }} }} }}\n"
    );
    let daemon = Daemon::start(image, "daemon", &config).await?;
    daemon.ingest(&[upsert("a", 1), upsert("b", 1)]).await?;
    let delivered = daemon.data.join("catalog.ndjson");
    daemon.running.wait_until("two lines are delivered", async || Ok(read_lines(&delivered)?.len() == 2)).await?;

    let inside = fs::read_to_string(format!("/proc/{}/status", daemon.running.inner()?))?;
    let field = |name: &str| inside.lines().find_map(|line| line.strip_prefix(name)).map(str::trim).unwrap_or_default();
    ensure!(field("Name:") == "catalog-bridge" && field("NSpid:").ends_with("\t1"), "{inside}");
    let own = format!("{0}\t{0}\t{0}\t{0}", image::NONROOT);
    ensure!(field("Uid:") == own && field("Gid:") == own && field("Groups:").is_empty(), "{inside}");
    ensure!(field("CapEff:").trim_start_matches('0').is_empty(), "{inside}");

    let status = image.run(&daemon.mounts, &["status", "--output", "json"])?;
    let status: Value = serde_json::from_str(&status)?;
    ensure!(status["log"]["head"] == 2 && status["sinks"]["audit"]["state"] == "running", "{status}");
    daemon.running.stop().await
}

/// `demo` wants a place for temporary files, and nothing else.
pub(super) async fn check_demo(image: &Image) -> Result<()> {
    let temporary = image.directory("demo-temporary")?;
    let port = free_port()?.to_string();
    let command = image.start(&[(temporary.clone(), "/tmp")], &["demo", "--port", &port])?;
    let running = Running::start(command, image.place.join("demo.log"))?;
    let url = format!("http://127.0.0.1:{port}/api/catalog/events?offset=0&limit=3");
    let has_events = async || {
        let Ok(reply) = reqwest::get(&url).await else { return Ok(false) };
        let page: Value = reply.json().await?;
        Ok(page["events"].as_array().is_some_and(|events| events.len() == 3))
    };
    running.wait_until("the demo shows events", has_events).await?;
    running.stop().await?;
    ensure!(fs::read_dir(&temporary)?.next().is_none(), "the demo leaves its directory behind");
    Ok(())
}
