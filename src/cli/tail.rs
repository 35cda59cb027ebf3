//! `tail`: follows `GET /events` of a running daemon, and prints each event on a line.

use std::time::Duration;

use anyhow::Result;
use clap::Args;
use reqwest::StatusCode;
use serde_json::Value;

use super::client::{Client, Listener, Refused};
use super::output::{Style, event_line, print};
use super::{Global, Output, WrongUse};

/// How long the daemon holds a poll when there is nothing new.
const WAIT: Duration = Duration::from_secs(30);
/// How long an answer may take beyond that.
const PATIENCE: Duration = Duration::from_secs(20);
/// Longest pause after a failure.
const PAUSE_MAX: Duration = Duration::from_secs(10);

#[derive(Debug, Args)]
pub(super) struct Tail {
    /// Begin after this offset; `oldest`: everything that is kept; default: what comes from now on.
    #[arg(long, value_name = "OFFSET", default_value = "latest")]
    offset: String,
    /// Only these entities, in Backstage's filter syntax; repeated it is OR.
    #[arg(long, value_name = "FILTER")]
    filter: Vec<String>,
    /// Which updates: `all`, `content`, or paths.
    #[arg(long, value_name = "CHANGES")]
    changes: Option<String>,
    /// End when there is nothing new.
    #[arg(long)]
    no_follow: bool,
    /// The daemon's address with its base path, such as `http://catalog:8219/api/catalog`; default: as the config says.
    #[arg(long, value_name = "URL", env = "CATALOG_BRIDGE_URL")]
    url: Option<String>,
}

impl Tail {
    pub(super) async fn run(&self, global: &Global) -> Result<()> {
        let (client, base_path) = self.client(global)?;
        let style = Style::of_stdout();
        let mut query = self.first_query();
        let mut pause = Duration::from_millis(250);
        let mut has_answered = false;
        loop {
            let reply = client.get(&format!("{base_path}/events"), &query, WAIT + PATIENCE).await;
            let page = match reply {
                Ok(page) => page,
                // A first failure is a mistake; a later one is a daemon that restarts.
                Err(error) if !has_answered || !is_worth_another_try(&error) => return Err(error),
                Err(error) => {
                    eprintln!("{error:#}; trying again");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(PAUSE_MAX);
                    continue;
                }
            };
            has_answered = true;
            pause = Duration::from_millis(250);
            let events = page.get("events").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
            for event in events {
                match global.output {
                    Output::Json => print(&event.to_string())?,
                    Output::Text => print(&event_line(event, style))?,
                }
            }
            if self.no_follow && page.get("lastEventOffset") == page.get("headOffset") {
                return Ok(());
            }
            self.move_on(&mut query, &page)?;
        }
    }

    fn client(&self, global: &Global) -> Result<(Client, String)> {
        match &self.url {
            Some(url) => {
                let token = match &global.token_file {
                    Some(path) => Some(
                        std::fs::read_to_string(path)
                            .map_err(|error| WrongUse(format!("--token-file {}: {error}", path.display())))?
                            .trim()
                            .to_owned(),
                    ),
                    None => None,
                };
                Ok((Client::new(url, token, &format!("--url names {url}"))?, String::new()))
            }
            None => {
                let config = global.load()?;
                let base_path = config.http.base_path.as_str().to_owned();
                Ok((Client::of(global, &config, Listener::Readers)?, base_path))
            }
        }
    }

    fn first_query(&self) -> Vec<(&'static str, String)> {
        let wait = if self.no_follow { 0 } else { WAIT.as_secs() };
        let mut query = vec![("wait", wait.to_string()), ("limit", "500".to_owned())];
        if self.offset != "oldest" {
            query.push(("offset", self.offset.clone()));
        }
        query.extend(self.filter.iter().map(|filter| ("filter", filter.clone())));
        query.extend(self.changes.iter().map(|changes| ("changes", changes.clone())));
        query
    }

    /// Continues where the reply says, in the log that it names.
    fn move_on(&self, query: &mut Vec<(&'static str, String)>, page: &Value) -> Result<()> {
        query.retain(|(name, _)| !matches!(*name, "offset" | "logId"));
        for (name, key) in [("offset", "lastEventOffset"), ("logId", "logId")] {
            match page.get(key) {
                Some(Value::String(text)) => query.push((name, text.clone())),
                Some(Value::Number(number)) => query.push((name, number.to_string())),
                _ => anyhow::bail!("the answer has no {key}; is this catalog-bridge?"),
            }
        }
        Ok(())
    }
}

fn is_worth_another_try(error: &anyhow::Error) -> bool {
    match error.downcast_ref::<Refused>() {
        Some(refused) => refused.status.is_server_error() || refused.status == StatusCode::TOO_MANY_REQUESTS,
        None => true,
    }
}
