//! The long form: the build stage's commands run as they stand in a clean Debian root, and what they built runs in a root of what
//! the last stage holds. As root only, for mounts.
//!
//! What differs from an engine: the base images are made from the Debian packages that they consist of, Rust is this machine's, and
//! nothing becomes a layer, a manifest or an image of another processor.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use catalog_bridge_services::{cache_directory, image};

use super::container::{Image, namespace, tail};
use super::{authorities, instructions, last_stage, materials};
use crate::charts::root;
use crate::support::rounds;

const STEP: &str = include_str!("step.sh");

#[tokio::test(flavor = "multi_thread")]
async fn the_build_stage_builds_and_its_binary_runs_in_the_last_stage() -> Result<()> {
    if rounds(0, 1) == 0 {
        return Ok(());
    }
    if !image::is_allowed() {
        say("NOT RUN: the image's build stage and its binary in the last stage need root, for mounts and chroot");
        return Ok(());
    }
    let place = tempfile::Builder::new().prefix("image-").tempdir_in(cache_directory()?)?;
    let built = build(place.path()).await.context("the build stage")?;
    let image = Image::assemble(place.path(), &built).await.context("the last stage")?;

    last_stage::check_libraries(&image)?;
    last_stage::check_commands(&image)?;
    last_stage::check_daemon(&image).await?;
    last_stage::check_demo(&image).await?;
    materials::check(&image).await?;
    authorities::check(&image).await
}

/// Past the test runner, which shows nobody what a passing test printed.
pub(super) fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// One stage: its base image, its name, its instructions.
pub(super) struct Stage {
    pub(super) from: String,
    name: Option<String>,
    pub(super) instructions: Vec<(String, String)>,
}

pub(super) fn stages() -> Result<Vec<Stage>> {
    let (mut arguments, mut stages) = (BTreeMap::new(), Vec::<Stage>::new());
    for (word, rest) in instructions()? {
        if word == "FROM" {
            let rest = substitute(&rest, &arguments);
            let (from, name) = rest.split_once(" AS ").map_or((rest.as_str(), None), |(from, name)| (from, Some(name)));
            stages.push(Stage { from: from.to_owned(), name: name.map(str::to_owned), instructions: Vec::new() });
        } else if let Some(stage) = stages.last_mut() {
            stage.instructions.push((word, rest));
        } else {
            let (name, value) = rest.split_once('=').with_context(|| format!("{word} {rest} before any stage"))?;
            arguments.insert(name.to_owned(), value.to_owned());
        }
    }
    Ok(stages)
}

/// Puts values in the places of `${NAME}`.
fn substitute(text: &str, values: &BTreeMap<String, String>) -> String {
    values.iter().fold(text.to_owned(), |text, (name, value)| text.replace(&format!("${{{name}}}"), value))
}

/// What the build stage left behind: the directory that lies over its base image.
pub(super) struct Built {
    pub(super) name: String,
    pub(super) upper: PathBuf,
}

async fn build(place: &Path) -> Result<Built> {
    let stage = stages()?.into_iter().next().context("a stage")?;
    let version = stage.from.strip_prefix("rust:").and_then(|tag| tag.strip_suffix(&format!("-{}", image::SUITE)));
    let version = version.with_context(|| format!("what {} holds is not known here", stage.from))?;
    let toolchain = toolchain(version)?;
    let place = place.join("build");
    for child in ["upper", "work", "root"] {
        fs::create_dir_all(place.join(child))?;
    }
    let built = Built { name: stage.name.clone().context("the build stage has a name")?, upper: place.join("upper") };
    let mut builder = Builder {
        base: image::buildpack_deps().await?,
        toolchain,
        directory: "/".to_owned(),
        arguments: BTreeMap::new(),
        environment: base_environment(version),
        place,
    };
    for (word, rest) in &stage.instructions {
        builder.follow(word, rest)?;
    }
    Ok(built)
}

/// This machine's Rust, if it is the release that the Dockerfile names.
fn toolchain(version: &str) -> Result<PathBuf> {
    let rustc = |arguments: &[&str]| -> Result<String> {
        let output = Command::new("rustc").args(arguments).current_dir(root()).output();
        let printed = String::from_utf8(output.context("rustc")?.stdout)?;
        Ok(printed.trim().to_owned())
    };
    let release = rustc(&["--version"])?;
    let number = release.split_whitespace().nth(1).unwrap_or_default();
    ensure!(
        number == version || number.starts_with(&format!("{version}.")),
        "the Dockerfile builds with Rust {version}, this is {number}: \
         `rustup toolchain install {version}`, and set RUSTUP_TOOLCHAIN={version}"
    );
    Ok(PathBuf::from(rustc(&["--print", "sysroot"])?))
}

/// What the base image sets, and what an engine hands on: how the registries are reached.
fn base_environment(version: &str) -> BTreeMap<String, String> {
    let path = "/usr/local/cargo/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    let fixed = [
        ("HOME", "/root"),
        ("PATH", path),
        ("RUSTUP_HOME", "/usr/local/rustup"),
        ("CARGO_HOME", "/usr/local/cargo"),
        ("RUST_VERSION", version),
    ];
    let proxies = ["http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"];
    let proxies = proxies.into_iter().filter_map(|name| Some((name.to_owned(), std::env::var(name).ok()?)));
    fixed.map(|(name, value)| (name.to_owned(), value.to_owned())).into_iter().chain(proxies).collect()
}

/// Follows the instructions of a build stage.
struct Builder {
    base: PathBuf,
    toolchain: PathBuf,
    place: PathBuf,
    directory: String,
    arguments: BTreeMap<String, String>,
    environment: BTreeMap<String, String>,
}

impl Builder {
    fn follow(&mut self, word: &str, rest: &str) -> Result<()> {
        match (word, rest) {
            ("ARG", _) => {
                let (name, default) = rest.split_once('=').unwrap_or((rest, ""));
                let value = if name == "TARGETARCH" { architecture()? } else { default.to_owned() };
                self.arguments.insert(name.to_owned(), value);
            }
            ("WORKDIR", _) => {
                self.directory = rest.to_owned();
                fs::create_dir_all(self.place.join("upper").join(rest.trim_start_matches('/')))?;
            }
            ("COPY", ". .") => copy_context(&self.place.join("upper").join(self.directory.trim_start_matches('/')))?,
            ("RUN", _) => self.run(rest)?,
            _ => bail!("{word} {rest}: not known here"),
        }
        Ok(())
    }

    fn run(&self, rest: &str) -> Result<()> {
        let mut command = rest;
        let mut caches = Vec::new();
        while let Some(mount) = command.strip_prefix("--mount=") {
            let (mount, behind) = mount.split_once(char::is_whitespace).context("a command behind its mounts")?;
            caches.push(self.cache(mount)?);
            command = behind.trim_start();
        }
        let log = self.place.join("run.log");
        let file = fs::File::create(&log)?;
        let begin = Instant::now();
        let mut step = namespace(STEP);
        step.arg(&self.place).arg(&self.base).arg(&self.toolchain).args([&self.directory, command]).args(caches);
        step.arg("--")
            .args(self.environment.iter().chain(&self.arguments).map(|(name, value)| format!("{name}={value}")));
        let status = step.stdout(file.try_clone()?).stderr(file).status().context("unshare")?;
        ensure!(status.success(), "RUN {command}\nended with {status}:\n{}", tail(&log));
        say(&format!("{} s: RUN {command}", begin.elapsed().as_secs()));
        Ok(())
    }

    /// A cache mount as SOURCE=TARGET; it is kept between builds, as an engine does.
    fn cache(&self, mount: &str) -> Result<String> {
        let mount = substitute(mount, &self.arguments);
        let settings: BTreeMap<&str, &str> = mount.split(',').filter_map(|part| part.split_once('=')).collect();
        ensure!(settings.get("type") == Some(&"cache"), "--mount={mount}: not known here");
        let target = *settings.get("target").context("a cache mount has a target")?;
        let id = settings.get("id").unwrap_or(&target).trim_matches('/').replace('/', "-");
        let kept = cache_directory()?.join("image-caches").join(id);
        fs::create_dir_all(&kept).with_context(|| format!("creating {}", kept.display()))?;
        Ok(format!("{}={target}", kept.display()))
    }
}

/// This machine's processor, in the words of Debian and of images.
fn architecture() -> Result<String> {
    let output = Command::new("dpkg").arg("--print-architecture").output().context("dpkg")?;
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

/// The tracked files as they stand, without what `.dockerignore` names.
fn copy_context(directory: &Path) -> Result<()> {
    let git = |arguments: &[&str]| -> Result<String> {
        let output = Command::new("git").args(arguments).current_dir(root()).output().context("git")?;
        ensure!(output.status.success(), "git {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    };
    // Nothing is printed where nothing was changed.
    let changed = git(&["stash", "create"])?;
    let tree = if changed.is_empty() { "HEAD" } else { &changed };
    let archive = directory.with_extension("tar");
    let ignored = fs::read_to_string(root().join("deploy/Dockerfile.dockerignore"))?;
    let ignored = ignored.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let mut arguments = vec!["archive".to_owned(), format!("--output={}", archive.display()), tree.to_owned()];
    arguments.extend(["--".to_owned(), ".".to_owned()]);
    for line in ignored {
        ensure!(
            line.chars().all(|letter| letter.is_ascii_alphanumeric() || "._-/".contains(letter)),
            "{line}: a pattern"
        );
        arguments.push(format!(":(exclude){line}"));
    }
    git(&arguments.iter().map(String::as_str).collect::<Vec<_>>())?;
    // `--touch`: newer than what the cache of compiled code was made from, whatever commit that was.
    let mut tar = Command::new("tar");
    let status = tar.args(["--extract", "--touch", "--file"]).arg(&archive).arg("--directory").arg(directory).status();
    ensure!(status.context("tar")?.success(), "tar could not unpack {}", archive.display());
    fs::remove_file(&archive).with_context(|| format!("removing {}", archive.display()))
}
