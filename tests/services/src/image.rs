//! Root file systems for the stages of an image, made from Debian's packages: what its base images hold, without an engine
//! that could pull them. They are templates: whoever uses one lays what it writes over it.
//!
//! Both lists follow the base images' own sources: `buildpack-deps` (debian/bookworm), and `distroless` (`static`, `base` and
//! `cc` for debian12).

use std::{
    fs,
    os::unix::fs::{PermissionsExt, chown},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use crate::{account, cache, debian};

/// The Debian release of both.
pub const SUITE: &str = "bookworm";
/// The account of `distroless/…:nonroot`.
pub const NONROOT: u32 = 65532;
/// Where [`distroless_cc`] has its authorities.
pub const AUTHORITIES: &str = "etc/ssl/certs/ca-certificates.crt";

/// Counted up when a template is made otherwise.
const MAKING: &str = "1";

#[rustfmt::skip]
const BUILDPACK_DEPS: &[&str] = &[
    "ca-certificates", "curl", "gnupg", "netbase", "sq", "wget",
    "git", "git-lfs", "mercurial", "openssh-client", "subversion", "procps",
    "autoconf", "automake", "bzip2", "dpkg-dev", "file", "g++", "gcc", "imagemagick", "libbz2-dev", "libc6-dev",
    "libcurl4-openssl-dev", "libdb-dev", "libevent-dev", "libffi-dev", "libgdbm-dev", "libglib2.0-dev", "libgmp-dev",
    "libjpeg-dev", "libkrb5-dev", "liblzma-dev", "libmagickcore-dev", "libmagickwand-dev", "libmaxminddb-dev",
    "libncurses5-dev", "libncursesw5-dev", "libpng-dev", "libpq-dev", "libreadline-dev", "libsqlite3-dev", "libssl-dev",
    "libtool", "libwebp-dev", "libxml2-dev", "libxslt-dev", "libyaml-dev", "make", "patch", "unzip", "xz-utils",
    "zlib1g-dev", "default-libmysqlclient-dev",
];

const DISTROLESS_CC: &[&str] = &[
    "base-files",
    "netbase",
    "tzdata",
    "media-types",
    "libc6",
    "libssl3",
    "libgomp1",
    "libstdc++6",
    "libgcc-s1",
    "gcc-12-base",
];

/// Whether this process may make and use them: both take root.
pub fn is_allowed() -> bool {
    account::is_root()
}

/// What `rust:VERSION-bookworm` holds beside Rust: Debian with the packages of `buildpack-deps`.
pub async fn buildpack_deps() -> Result<PathBuf> {
    cache::installed(&format!("image-buildpack-deps-{SUITE}-{MAKING}"), async |directory| {
        debian::bootstrap(SUITE, BUILDPACK_DEPS, directory).await
    })
    .await
}

/// What `gcr.io/distroless/cc-debian12:nonroot` holds: the runtime of C and C++, OpenSSL's library, authorities, time zones, an
/// account, and no program but those of libc6.
pub async fn distroless_cc() -> Result<PathBuf> {
    cache::installed(&format!("image-distroless-cc-debian12-{MAKING}"), async |directory| {
        debian::unpack(SUITE, DISTROLESS_CC, |_| false, directory).await?;
        write_authorities(directory).await?;
        let nonroot = format!("nonroot:x:{NONROOT}:");
        let files = [
            (
                "etc/passwd",
                format!(
                    "root:x:0:0:root:/root:/sbin/nologin\n{nonroot}{NONROOT}:nonroot:/home/nonroot:/sbin/nologin\n"
                ),
            ),
            ("etc/group", format!("root:x:0:\n{nonroot}\n")),
            ("etc/nsswitch.conf", "hosts: files dns\n".to_owned()),
        ];
        for (name, text) in files {
            write(&directory.join(name), &text)?;
        }
        let home = directory.join("home/nonroot");
        fs::create_dir_all(&home).with_context(|| format!("creating {}", home.display()))?;
        chown(&home, Some(NONROOT), Some(NONROOT)).with_context(|| format!("giving {} away", home.display()))?;
        let temporary = directory.join("tmp");
        fs::set_permissions(&temporary, fs::Permissions::from_mode(0o1777))
            .with_context(|| format!("opening {}", temporary.display()))?;
        fs::set_permissions(directory, fs::Permissions::from_mode(0o755)).context("opening the root")
    })
    .await
}

/// Of the package only the certificates go into the image, in one file.
async fn write_authorities(directory: &Path) -> Result<()> {
    let package = directory.join(".authorities");
    debian::unpack(SUITE, &["ca-certificates"], |_| false, &package).await?;
    let mut all = String::new();
    for file in fs::read_dir(package.join("usr/share/ca-certificates/mozilla"))?.flatten() {
        let text = fs::read_to_string(file.path()).with_context(|| format!("reading {}", file.path().display()))?;
        all.push_str(text.trim_end());
        all.push('\n');
    }
    let bundle = directory.join(AUTHORITIES);
    fs::create_dir_all(bundle.parent().context("a directory")?).context("creating etc/ssl/certs")?;
    write(&bundle, &all)?;
    fs::remove_dir_all(&package).with_context(|| format!("removing {}", package.display()))
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}
