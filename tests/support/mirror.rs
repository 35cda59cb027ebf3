//! The RFC's consumer: bootstrap from `/entities`, follow `/events`, begin again when told to.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::Daemon;

/// What a consumer keeps: the entities by name, and where it stands.
#[derive(Debug, Default)]
pub struct Mirror {
    pub entities: BTreeMap<String, Value>,
    pub offset: u64,
}

/// How a step ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Followed {
    /// Go on.
    On,
    /// 410: begin again.
    Expired,
}

impl Mirror {
    /// Walks all pages with a pause between them; `None` after 410.
    pub async fn bootstrap(daemon: &Daemon, filter: &str, pause: Duration) -> Result<Option<Self>> {
        let mut mirror = Mirror::default();
        let mut cursor = String::new();
        loop {
            let (status, page) = daemon.try_get(&format!("/entities?limit=7{filter}{cursor}")).await?;
            match status {
                200 => {}
                410 => return Ok(None),
                _ => bail!("{status}: {page}"),
            }
            mirror.offset = page["lastEventOffset"].as_u64().context("lastEventOffset")?;
            for entity in page["items"].as_array().context("items")? {
                let name = entity["metadata"]["name"].as_str().context("a name")?;
                ensure!(mirror.entities.insert(name.to_owned(), entity.clone()).is_none(), "{name} is on two pages");
            }
            let Some(next) = page["pageInfo"]["nextCursor"].as_str() else { return Ok(Some(mirror)) };
            cursor = format!("&cursor={next}");
            tokio::time::sleep(pause).await;
        }
    }

    /// One request for what came after.
    pub async fn follow(&mut self, daemon: &Daemon, filter: &str, wait: u64) -> Result<Followed> {
        let path = format!("/events?offset={}&wait={wait}&limit=13{filter}", self.offset);
        let (status, page) = daemon.try_get(&path).await?;
        match status {
            200 => {}
            410 => return Ok(Followed::Expired),
            _ => bail!("{status}: {page}"),
        }
        for event in page["events"].as_array().context("events")? {
            let name =
                event["entityRef"].as_str().context("entityRef")?.rsplit('/').next().unwrap_or_default().to_owned();
            if event["type"] == "removed" {
                ensure!(self.entities.remove(&name).is_some(), "removed what was not there: {event}");
            } else {
                let was_there = self.entities.insert(name, event["entity"].clone()).is_some();
                ensure!(was_there == (event["type"] == "updated"), "the entity was there: {was_there}; {event}");
            }
        }
        self.offset = page["lastEventOffset"].as_u64().context("lastEventOffset")?;
        Ok(Followed::On)
    }
}
