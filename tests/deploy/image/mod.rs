//! The image: rules of hadolint that a Dockerfile of ours can break, and what the binary needs of its last stage.
//!
//! hadolint itself is a Haskell program, and an image is built by an engine: neither runs in these tests. What an engine would do
//! with the Dockerfile, [`build`] does in the long form, and its container is [`last_stage`]'s.

mod authorities;
mod build;
mod container;
mod last_stage;
mod materials;

use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::charts::root;

/// The instructions of the Dockerfile as they stand, continued lines joined, without comments.
fn instructions() -> Result<Vec<(String, String)>> {
    let text = std::fs::read_to_string(root().join("deploy/Dockerfile"))?;
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim_start().starts_with('#')).collect();
    let joined = lines.join("\n").replace("\\\n", "");
    let whole = joined.lines().filter_map(|line| line.trim().split_once(' '));
    Ok(whole.map(|(word, rest)| (word.to_owned(), rest.trim().to_owned())).collect())
}

#[test]
fn the_dockerfile_keeps_the_rules() -> Result<()> {
    let mut all = instructions()?;
    for (_, rest) in &mut all {
        *rest = rest.split_whitespace().collect::<Vec<_>>().join(" ");
    }
    let of =
        |word: &str| all.iter().filter(|(found, _)| found == word).map(|(_, rest)| rest.as_str()).collect::<Vec<_>>();
    let known = ["ARG", "FROM", "RUN", "WORKDIR", "COPY", "LABEL", "USER", "EXPOSE", "ENTRYPOINT", "CMD", "ENV"];
    for (word, rest) in &all {
        ensure!(
            known.contains(&word.as_str()),
            "{word} {rest}: no instruction, or one we do not want (ADD, MAINTAINER, SHELL)"
        );
    }
    for image in of("FROM") {
        ensure!(image.contains(':') && !image.contains(":latest"), "{image}: name a tag (DL3006, DL3007)");
    }
    for run in of("RUN") {
        ensure!(!run.contains("sudo") && !run.contains("apt "), "{run}: (DL3004, DL3027)");
        if run.contains("apt-get install") {
            ensure!(run.contains("apt-get update &&"), "{run}: lists of an earlier layer are stale (DL3009)");
            ensure!(run.contains("-y --no-install-recommends"), "{run}: (DL3014, DL3015)");
            ensure!(run.contains("rm -rf /var/lib/apt/lists/*"), "{run}: (DL3009)");
        }
        ensure!(!run.contains('|') || run.contains("pipefail"), "{run}: a pipe hides what failed (DL4006)");
    }
    for place in of("WORKDIR") {
        ensure!(place.starts_with('/'), "{place}: (DL3000)");
    }
    for command in of("ENTRYPOINT").into_iter().chain(of("CMD")) {
        serde_json::from_str::<Vec<String>>(command).with_context(|| format!("{command}: the JSON form (DL3025)"))?;
    }
    ensure!(of("ENTRYPOINT").len() == 1 && of("CMD").len() == 1, "(DL4003, DL4004)");
    let user = of("USER").last().copied().context("a USER (DL3002)")?.to_owned();
    ensure!(user == "65532:65532", "{user}: a number, so that Kubernetes can see that it is not root");
    let last = all.iter().rposition(|(word, _)| word == "FROM").context("a stage")?;
    ensure!(all[last..].iter().all(|(word, _)| word != "RUN"), "the last stage has no shell");
    let labels = of("LABEL").join(" ");
    for label in ["title", "description", "licenses", "source", "version", "revision"] {
        ensure!(labels.contains(&format!("org.opencontainers.image.{label}=")), "no label {label}");
    }
    Ok(())
}

/// distroless/cc of Debian 12 holds glibc 2.36 and libgcc, and nothing else that we might link to.
#[test]
fn the_binary_needs_no_library_that_the_last_stage_lacks() -> Result<()> {
    let read = |argument: &str| -> Result<String> {
        let output = Command::new("readelf").args(["--wide", argument, crate::support::BINARY]).output();
        Ok(String::from_utf8(output.context("readelf of binutils")?.stdout)?)
    };
    let (last, _) = instructions()?
        .into_iter()
        .rfind(|(word, _)| word == "FROM")
        .map(|(word, rest)| (rest, word))
        .context("a stage")?;
    ensure!(last.contains("distroless/cc-debian12"), "what {last} holds is not known here");
    let held = ["libc.so.6", "libm.so.6", "libgcc_s.so.1", "libpthread.so.0", "libdl.so.2", "librt.so.1"];

    let needed = read("--dynamic")?;
    let needed: Vec<_> = needed
        .lines()
        .filter(|line| line.contains("(NEEDED)"))
        .filter_map(|line| line.split_once('[')?.1.split(']').next())
        .collect();

    ensure!(needed.contains(&"libc.so.6"), "readelf found {needed:?}");
    for library in &needed {
        ensure!(held.contains(library) || library.starts_with("ld-linux"), "{library} is not in {last}");
    }
    Ok(())
}
