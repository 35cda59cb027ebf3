//! CPU time of the database's processes, as the kernel counts it.

use std::time::Duration;

use anyhow::{Context, Result};
use sqlx::PgConnection;

use crate::support::grants;

/// Ticks of a second in `/proc`; Linux fixes it at 100 for what it shows to programs.
const TICKS: f64 = 100.0;

/// Of one process, with what its children that ended took.
pub(crate) fn of_process(pid: i32) -> Result<Duration> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name in parentheses may hold spaces.
    let fields: Vec<&str> = text.rsplit_once(')').context("a name")?.1.split_whitespace().collect();
    let ticks: u64 = fields.get(11..15).context("times")?.iter().map(|ticks| ticks.parse::<u64>().unwrap_or(0)).sum();
    Ok(Duration::from_secs_f64(ticks as f64 / TICKS))
}

/// Of the whole server so far, its backends and helpers, those that ended included.
pub(crate) async fn of_server(connection: &mut PgConnection) -> Result<Duration> {
    let own: i32 = sqlx::query_scalar("select pg_backend_pid()").fetch_one(&mut *connection).await?;
    let server = parent(own).context("the server's process")?;
    loop {
        let ended = of_process(server)?;
        let mut running = Duration::ZERO;
        for entry in std::fs::read_dir("/proc")?.flatten() {
            let pid = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok());
            if let Some(pid) = pid.filter(|pid| parent(*pid) == Some(server)) {
                running += of_process(pid).unwrap_or_default();
            }
        }
        // A process that ended in between was counted twice or not at all.
        if of_process(server)? == ended {
            return Ok(ended + running);
        }
    }
}

/// Of the backends that serve the bridge now.
pub(crate) async fn of_bridge(connection: &mut PgConnection) -> Result<Duration> {
    let pids: Vec<i32> =
        sqlx::query_scalar("select pid from pg_stat_activity where usename = $1 and datname = current_database()")
            .bind(grants::ROLE)
            .fetch_all(connection)
            .await?;
    pids.into_iter().map(of_process).sum()
}

fn parent(pid: i32) -> Option<i32> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    text.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}
