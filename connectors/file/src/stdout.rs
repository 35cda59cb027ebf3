use std::io::{IsTerminal, Write};

use async_trait::async_trait;
use catalog_bridge_api::{
    Acks, CheckReport, Claim, Connector, ConnectorError, Encoding, EventType, Feed, Limits, Message, Session,
};
use serde::Deserialize;

use crate::config::{StdoutConfig, StdoutFormat};
use crate::line::write_line;
use std::time::Duration;

/// How much one write takes at most, unless a single event is larger.
const BATCH_BYTES: usize = 256 * 1024;

#[derive(Debug, Clone, Copy)]
pub(crate) struct StdoutConnector {
    format: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Json,
    Text { coloured: bool },
}

impl StdoutConnector {
    pub(crate) fn new(config: &StdoutConfig) -> Self {
        let terminal = std::io::stdout().is_terminal();
        let format = match config.format {
            StdoutFormat::Json => Format::Json,
            StdoutFormat::Auto if !terminal => Format::Json,
            StdoutFormat::Auto | StdoutFormat::Text => {
                Format::Text { coloured: terminal && std::env::var_os("NO_COLOR").is_none() }
            }
        };
        StdoutConnector { format }
    }
}

#[async_trait]
impl Connector for StdoutConnector {
    fn limits(&self) -> Limits {
        Limits {
            message_bytes_max: None,
            prefix_safe: true,
            window_events: 1_000,
            window_bytes: 4 * 1024 * 1024,
            flight: Duration::ZERO,
            encoding: Encoding::Cloudevents,
        }
    }

    fn destination(&self) -> String {
        "stdout".to_owned()
    }

    fn exclusive_destination(&self) -> Option<String> {
        Some(self.destination())
    }

    async fn check(&self) -> Result<CheckReport, ConnectorError> {
        Ok(CheckReport {
            facts: vec!["events are printed to the standard output".to_owned()],
            warnings: vec!["stdout is not durable: what its reader loses is not sent again".to_owned()],
        })
    }

    async fn open(&self, _: Claim) -> Result<Box<dyn Session>, ConnectorError> {
        Ok(Box::new(StdoutSession { format: self.format }))
    }
}

struct StdoutSession {
    format: Format,
}

#[async_trait]
impl Session for StdoutSession {
    async fn run(self: Box<Self>, mut feed: Feed, acks: Acks) -> Result<(), ConnectorError> {
        while let Some(first) = feed.next().await {
            let mut last = first.offset();
            let mut text = Vec::new();
            write_message(self.format, &first, &mut text);
            while text.len() < BATCH_BYTES
                && let Some(message) = feed.try_next()
            {
                last = message.offset();
                write_message(self.format, &message, &mut text);
            }
            print(text).await.map_err(|error| ConnectorError::transient("write", "stdout", error))?;
            acks.up_to(last);
        }
        Ok(())
    }
}

/// In a blocking thread: a pipe whose reader is slow must hold up no other sink.
async fn print(text: Vec<u8>) -> std::io::Result<()> {
    let write = move || {
        let mut stdout = std::io::stdout().lock();
        stdout.write_all(&text)?;
        stdout.flush()
    };
    tokio::task::spawn_blocking(write).await.map_err(std::io::Error::other)?
}

fn write_message(format: Format, message: &Message, text: &mut Vec<u8>) {
    match format {
        Format::Json => write_line(message, text),
        Format::Text { coloured } => text.extend_from_slice(readable(message, coloured).as_bytes()),
    }
}

/// `#17 updated component:default/a  spec.owner, spec.lifecycle`
fn readable(message: &Message, coloured: bool) -> String {
    let colour = match message.event_type {
        EventType::Added => "32",
        EventType::Updated => "33",
        EventType::Removed => "31",
    };
    let kind = format!("{:<7}", message.event_type.as_str());
    let kind = if coloured { format!("\x1b[{colour}m{kind}\x1b[0m") } else { kind };
    let mut line = format!("#{:<5} {kind} {}", message.offset().get(), printable(message.entity_ref.as_str()));
    let changed = changed_paths(&message.body);
    if !changed.is_empty() {
        line.push_str("  changed: ");
        line.push_str(&printable(&changed.join(", ")));
    }
    line.push('\n');
    line
}

/// Nothing that an entity holds may steer the terminal.
fn printable(text: &str) -> String {
    text.chars().filter(|letter| !letter.is_control()).collect()
}

/// Of the RFC event, the CloudEvent's data, or the structured CloudEvent.
fn changed_paths(body: &[u8]) -> Vec<String> {
    #[derive(Default, Deserialize)]
    struct Changed {
        #[serde(default)]
        paths: Vec<String>,
    }
    #[derive(Deserialize)]
    struct Known {
        changed: Option<Changed>,
        data: Option<Box<Known>>,
    }
    let Ok(known) = serde_json::from_slice::<Known>(body) else { return Vec::new() };
    let changed = known.changed.or_else(|| known.data.and_then(|data| data.changed));
    changed.unwrap_or_default().paths
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::line::tests::message;

    #[test]
    fn a_readable_line_names_offset_type_entity_and_what_changed() {
        let mut updated = message(17, "{\"data\":{\"changed\":{\"paths\":[\"spec.owner\"]}}}");
        updated.event_type = EventType::Updated;

        assert_eq!(readable(&updated, false), "#17    updated component:default/a  changed: spec.owner\n");
        assert!(readable(&updated, true).contains("\x1b[33mupdated\x1b[0m"));
    }

    #[test]
    fn control_characters_never_reach_a_terminal() {
        let odd = message(1, "{\"changed\":{\"paths\":[\"a\\u001b[2Jb\"]}}");
        assert_eq!(readable(&odd, false), "#1     added   component:default/a  changed: a[2Jb\n");
    }
}
