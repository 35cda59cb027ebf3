//! Ports on loopback that nothing else takes while we hold them, also while the server behind them is down.
//!
//! They lie below the kernel's range for outgoing connections. A port from within that range (what binding port 0
//! gives) may become the local port of any client while its server restarts; a client that retries can even connect to
//! itself. Test binaries that run at once keep apart by a locked file per port.

use std::{
    env,
    fs::{self, File, OpenOptions, TryLockError},
    hash::{BuildHasher, RandomState},
    net::{Ipv4Addr, TcpListener},
    path::PathBuf,
};

use anyhow::{Context, Result, bail};

const LOWEST: u16 = 10_000;

/// A reserved port of 127.0.0.1; free for others once dropped.
#[derive(Debug)]
pub(crate) struct Port {
    number: u16,
    /// Its lock is the reservation; the kernel releases it when we die.
    _reservation: File,
}

impl Port {
    /// Reserves a port on which nothing listens.
    pub(crate) fn reserve() -> Result<Self> {
        let directory = directory()?;
        let count = first_outgoing_port().saturating_sub(LOWEST).max(1);
        let random = RandomState::new();
        for attempt in 0..2_000_u32 {
            let offset = random.hash_one(attempt) % u64::from(count);
            let number = LOWEST + u16::try_from(offset).expect("below count, which is a u16");
            let path = directory.join(number.to_string());
            let file = OpenOptions::new().write(true).create(true).truncate(false).open(&path);
            let file = file.with_context(|| format!("opening {}", path.display()))?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => continue,
                Err(TryLockError::Error(error)) => {
                    return Err(error).with_context(|| format!("locking {}", path.display()));
                }
            }
            if TcpListener::bind((Ipv4Addr::LOCALHOST, number)).is_ok() {
                return Ok(Self { number, _reservation: file });
            }
        }
        bail!("found no free port of 127.0.0.1 from {LOWEST} on; end what holds them")
    }

    /// The port's number.
    pub(crate) fn number(&self) -> u16 {
        self.number
    }
}

fn directory() -> Result<PathBuf> {
    let user = rustix::process::geteuid().as_raw();
    let directory = env::temp_dir().join(format!("catalog-bridge-ports-{user}"));
    fs::create_dir_all(&directory).with_context(|| format!("creating {}", directory.display()))?;
    Ok(directory)
}

/// Where the range of outgoing connections begins, or Linux's default where that can't be read.
fn first_outgoing_port() -> u16 {
    let range = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let first = range.split_whitespace().next().and_then(|text| text.parse().ok());
    first.filter(|first| *first > LOWEST + 1_000).unwrap_or(32_768)
}
