//! The systemd unit for hosts: systemd itself verifies it where there is one.

use std::collections::BTreeMap;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::charts::root;

fn unit() -> Result<(String, BTreeMap<String, String>)> {
    let text = std::fs::read_to_string(root().join("deploy/systemd/catalog-bridge.service"))?;
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let settings = lines.filter_map(|line| line.split_once('=')).map(|(key, value)| (key.to_owned(), value.to_owned()));
    let settings = settings.collect();
    Ok((text, settings))
}

#[test]
fn the_unit_drains_and_gives_nothing_away() -> Result<()> {
    let (_, settings) = unit()?;
    let expected = [
        ("DynamicUser", "yes"),
        ("NoNewPrivileges", "yes"),
        ("ProtectSystem", "strict"),
        ("ProtectHome", "yes"),
        ("PrivateDevices", "yes"),
        ("RestrictNamespaces", "yes"),
        ("SystemCallFilter", "@system-service"),
        ("CapabilityBoundingSet", ""),
        ("StateDirectory", "catalog-bridge"),
        ("Restart", "always"),
    ];
    for (key, value) in expected {
        ensure!(settings.get(key).is_some_and(|found| found == value), "{key} is {:?}", settings.get(key));
    }
    let patience: u64 = settings.get("TimeoutStopSec").context("TimeoutStopSec")?.parse()?;
    ensure!(patience >= 30, "the drain takes longer than {patience} s");
    Ok(())
}

#[test]
fn systemd_takes_the_unit_and_finds_it_hardened() -> Result<()> {
    if Command::new("systemd-analyze").arg("--version").output().is_err() {
        eprintln!("no systemd-analyze on this machine: the unit was only parsed");
        return Ok(());
    }
    let place = tempfile::tempdir()?;
    let file = place.path().join("catalog-bridge.service");
    // It refuses a unit whose program is not there.
    std::fs::write(&file, unit()?.0.replace("/usr/local/bin/catalog-bridge", crate::support::BINARY))?;

    for arguments in [["verify", "--man=no"], ["security", "--offline=true"]] {
        let mut analyze = Command::new("systemd-analyze");
        analyze.args(arguments).arg("--no-pager");
        if arguments[0] == "security" {
            // Of 100; what it would have us close further is the network.
            analyze.arg("--threshold=25");
        }
        let output = analyze.arg(&file).output()?;
        let told = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        ensure!(output.status.success(), "{arguments:?}: {told}");
    }
    Ok(())
}
