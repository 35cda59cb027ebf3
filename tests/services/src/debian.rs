//! Programs from Debian's packages, unpacked into the cache: nothing is installed system-wide, no root is needed and no
//! service of the package starts. And, as root, a Debian of its own in a directory.

use std::{fs, path::Path};

use anyhow::{Context, Result, ensure};
use tokio::process::Command;

use crate::{
    account,
    cache::{self, run},
};

/// Downloads `packages` and those of their dependencies that `is_wanted`, from a Debian release such as `bookworm`, and
/// unpacks them below `directory`.
pub(crate) async fn unpack(
    suite: &str,
    packages: &[&str],
    is_wanted: impl Fn(&str) -> bool,
    directory: &Path,
) -> Result<()> {
    let state = directory.join(".apt");
    for child in ["state/lists/partial", "cache/archives/partial", "packages"] {
        fs::create_dir_all(state.join(child)).with_context(|| format!("creating {child} in {}", state.display()))?;
    }
    let sources = state.join("run.sources");
    let stanza = format!(
        "Types: deb\nURIs: {}\nSuites: {suite}\nComponents: main\n\
         Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n",
        mirror()?,
    );
    fs::write(&sources, stanza).with_context(|| format!("writing {}", sources.display()))?;

    run(apt(&state).args(["--quiet", "update"])).await?;
    let plan = run(apt(&state).args(["--no-install-recommends", "--simulate", "install"]).args(packages)).await?;
    let planned = plan.lines().filter_map(|line| line.strip_prefix("Inst ")?.split(' ').next());
    let wanted: Vec<_> = planned.filter(|name| packages.contains(name) || is_wanted(name)).collect();
    for package in packages {
        ensure!(wanted.contains(package), "Debian {suite} has no package {package}");
    }
    let downloaded = state.join("packages");
    run(apt(&state).args(["--quiet", "download"]).args(&wanted).current_dir(&downloaded)).await?;
    for file in fs::read_dir(&downloaded)?.flatten() {
        run(Command::new("dpkg").arg("--extract").arg(file.path()).arg(directory)).await?;
    }
    fs::remove_dir_all(&state).with_context(|| format!("removing {}", state.display()))
}

/// Installs a Debian of its own with these packages into `directory`, which becomes a root file system. As root only.
pub(crate) async fn bootstrap(suite: &str, packages: &[&str], directory: &Path) -> Result<()> {
    // In a namespace of mounts of its own: what is mounted ends with it. `policy-rc.d` keeps services from starting.
    const INSTALL: &str = r#"
root=$1; shift
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
printf '#!/bin/sh\nexit 101\n' > "$root/usr/sbin/policy-rc.d"
chmod 755 "$root/usr/sbin/policy-rc.d"
export DEBIAN_FRONTEND=noninteractive LC_ALL=C
chroot "$root" apt-get --quiet update
chroot "$root" apt-get --quiet install --yes --no-install-recommends "$@"
chroot "$root" apt-get clean
rm -rf "$root"/var/lib/apt/lists/*"#;
    let (own_suite, mirror) = (host_suite()?, mirror()?);
    let tool = cache::installed(&format!("debootstrap-{own_suite}"), async |directory| {
        unpack(&own_suite, &["debootstrap"], |_| false, directory).await
    })
    .await?;
    let mut debootstrap = Command::new(tool.join("usr/sbin/debootstrap"));
    debootstrap.env("DEBOOTSTRAP_DIR", tool.join("usr/share/debootstrap")).args(["--variant=minbase", suite]);
    run(debootstrap.arg(directory).arg(&mirror)).await?;

    let mirror = mirror.trim_end_matches('/');
    let sources = format!(
        "deb {mirror} {suite} main\ndeb {mirror} {suite}-updates main\ndeb {mirror}-security {suite}-security main\n"
    );
    let dumped = run(Command::new("apt-config").arg("dump")).await?;
    let reach: Vec<_> = dumped
        .lines()
        .filter(|line| ["Acquire::http", "Acquire::Check-"].iter().any(|prefix| line.starts_with(prefix)))
        .collect();
    for (name, text) in [("sources.list", sources), ("apt.conf.d/90machine", reach.join("\n") + "\n")] {
        let file = directory.join("etc/apt").join(name);
        fs::write(&file, text).with_context(|| format!("writing {}", file.display()))?;
    }
    let mut install = Command::new("unshare");
    install.args(["--mount", "--pid", "--fork", "--kill-child", "/bin/sh", "-euc", INSTALL, "install"]);
    run(install.arg(directory).args(packages)).await.map(drop)
}

/// This machine's Debian release.
pub(crate) fn host_suite() -> Result<String> {
    let release = fs::read_to_string("/etc/os-release").context("reading /etc/os-release")?;
    let codename = release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    Ok(codename.context("/etc/os-release has no VERSION_CODENAME; is this Debian?")?.trim_matches('"').to_owned())
}

/// Where the machine itself gets Debian's packages from.
fn mirror() -> Result<String> {
    let mut files = vec![Path::new("/etc/apt/sources.list").to_owned()];
    files.extend(fs::read_dir("/etc/apt/sources.list.d").into_iter().flatten().flatten().map(|entry| entry.path()));
    let texts: Vec<_> = files.iter().filter_map(|file| fs::read_to_string(file).ok()).collect();
    let mut words = texts.iter().flat_map(|text| text.split_whitespace());
    let mirror = words.find(|word| word.contains("://") && word.trim_end_matches('/').ends_with("/debian"));
    Ok(mirror.context("apt's sources name no Debian mirror (…/debian)")?.to_owned())
}

/// An apt of its own: another release's package lists need no root then, and leave the machine's alone.
fn apt(state: &Path) -> Command {
    let mut command = Command::new("apt-get");
    let settings = [
        ("Dir::Etc::SourceList", state.join("run.sources").display().to_string()),
        ("Dir::Etc::SourceParts", "/dev/null".to_owned()),
        ("Dir::State", state.join("state").display().to_string()),
        ("Dir::State::status", "/dev/null".to_owned()),
        ("Dir::Cache", state.join("cache").display().to_string()),
        ("Acquire::Languages", "none".to_owned()),
    ];
    for (name, value) in settings {
        command.args(["-o", &format!("{name}={value}")]);
    }
    if account::is_root() {
        // apt would drop to an account that can't write here.
        command.args(["-o", "APT::Sandbox::User=root"]);
    }
    command
}
