//! The account that servers run as: our own, or `nobody` for servers that refuse to be root.

use std::{
    fs,
    os::unix::{fs::MetadataExt, fs::chown, process::CommandExt},
    path::Path,
    process::Command,
};

use anyhow::{Context, Result, ensure};

/// Whether this process is root.
pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// An account without rights of its own, for PostgreSQL and PgBouncer, which both refuse to run as root.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Account {
    user: u32,
    group: u32,
}

impl Account {
    /// `nobody` when we are root, else none: then servers simply run as we do.
    pub(crate) fn unprivileged() -> Result<Option<Self>> {
        if !is_root() {
            return Ok(None);
        }
        let accounts = fs::read_to_string("/etc/passwd").context("reading /etc/passwd")?;
        let fields = accounts.lines().map(|line| line.split(':').collect::<Vec<_>>());
        let nobody = fields
            .into_iter()
            .find(|fields| fields.first() == Some(&"nobody") && fields.len() > 3)
            .context("/etc/passwd has no account `nobody`, which PostgreSQL needs because it refuses to run as root")?;
        let number =
            |text: &str| text.parse::<u32>().with_context(|| format!("account number {text:?} in /etc/passwd"));
        Ok(Some(Self { user: number(nobody[2])?, group: number(nobody[3])? }))
    }

    /// Lets the command run as this account, without further groups.
    pub(crate) fn apply(self, command: &mut Command) {
        command.uid(self.user).gid(self.group);
    }

    /// Gives a file or directory to this account.
    pub(crate) fn take(self, path: &Path) -> Result<()> {
        chown(path, Some(self.user), Some(self.group)).with_context(|| format!("giving {} to nobody", path.display()))
    }
}

/// The first directory on the way to `path` that accounts other than its owner may not enter.
pub(crate) fn closed_ancestor(path: &Path) -> Option<&Path> {
    path.ancestors().filter(|ancestor| fs::metadata(ancestor).is_ok_and(|found| found.mode() & 0o001 == 0)).last()
}

/// Refuses a directory that a server without our rights could not reach.
pub(crate) fn ensure_passable(path: &Path, advice: &str) -> Result<()> {
    let closed = closed_ancestor(path);
    ensure!(
        closed.is_none(),
        "{} can't be used: servers run as nobody, and {} lets only its owner in; {advice}",
        path.display(),
        closed.unwrap_or(path).display(),
    );
    Ok(())
}
