//! `status`: what the running daemon does, and the command that leads out of each trouble.

use std::time::Duration;

use anyhow::Result;
use serde_json::{Map, Value};

use super::client::Client;
use super::output::{Colour, Style, plain, print, print_json};
use super::{Global, Output, capture};

pub(super) const PATIENCE: Duration = Duration::from_secs(30);

pub(super) async fn run(global: &Global) -> Result<()> {
    let status = Client::operators(global)?.get("/status", &[], PATIENCE).await?;
    if global.output == Output::Json {
        return print_json(&status);
    }
    let style = Style::of_stdout();
    print(&log_line(&status, style))?;
    print_consumers("source", status.get("sources"), style, Depth::State)?;
    print_consumers("sink", status.get("sinks"), style, Depth::State)
}

/// The sources only, or the sinks only.
pub(super) async fn run_of(global: &Global, noun: &'static str, key: &str) -> Result<()> {
    let status = Client::operators(global)?.get("/status", &[], PATIENCE).await?;
    let consumers = status.get(key);
    match global.output {
        Output::Json => print_json(consumers.unwrap_or(&Value::Null)),
        Output::Text => print_consumers(noun, consumers, Style::of_stdout(), Depth::Capture),
    }
}

/// How much is told of each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Depth {
    /// What it does, and what helps.
    State,
    /// Of a source also how it captures.
    Capture,
}

fn log_line(status: &Value, style: Style) -> String {
    let log = status.get("log").cloned().unwrap_or_default();
    let field = |key: &str| log.get(key).map(shown).unwrap_or_else(|| "?".to_owned());
    let is_ok = log.get("state").and_then(Value::as_str) == Some("ok");
    let state = style.paint(if is_ok { Colour::Green } else { Colour::Red }, &field("state"));
    let mut line = format!("log {}: {state}, head {}, oldest {}", field("logId"), field("head"), field("oldest"));
    if let Some(error) = log.get("error").and_then(Value::as_str) {
        line.push_str(&format!("\n    {}", plain(error)));
    }
    line
}

fn print_consumers(noun: &str, consumers: Option<&Value>, style: Style, depth: Depth) -> Result<()> {
    let none = Map::new();
    let consumers = consumers.and_then(Value::as_object).unwrap_or(&none);
    if consumers.is_empty() {
        return print(&format!("no {noun} is configured"));
    }
    for (name, consumer) in consumers {
        for line in consumer_lines(noun, name, consumer, style) {
            print(&line)?;
        }
        if depth == Depth::Capture {
            for line in capture::lines(consumer) {
                print(&format!("    {line}"))?;
            }
        }
    }
    Ok(())
}

/// A line with name and state, then what it waits for, then the commands that help.
fn consumer_lines(noun: &str, name: &str, consumer: &Value, style: Style) -> Vec<String> {
    let text = |key: &str| consumer.get(key).and_then(Value::as_str).map(plain);
    let state = text("state").unwrap_or_else(|| "unknown".to_owned());
    let colour = match state.as_str() {
        "running" | "standby" => Colour::Green,
        "starting" | "snapshot" | "paused" | "retrying" | "stalled" => Colour::Yellow,
        _ => Colour::Red,
    };
    let protocol = text("protocol").map(|protocol| format!(" ({protocol})")).unwrap_or_default();
    let mut line =
        format!("{noun} {}{protocol}: {}", style.paint(Colour::Bold, &plain(name)), style.paint(colour, &state));
    for (key, word) in [("checkpoint", "checkpoint"), ("lagEvents", "events behind"), ("lagSeconds", "seconds behind")]
    {
        match (consumer.get(key), key) {
            (Some(value), "checkpoint") => line.push_str(&format!(", {word} {}", shown(value))),
            (Some(value), _) => line.push_str(&format!(", {} {word}", shown(value))),
            (None, _) => {}
        }
    }
    if consumer.get("configured") == Some(&Value::Bool(false)) {
        line.push_str(", no longer in the config");
    }
    let mut lines = vec![line];
    let reason: Vec<String> =
        ["progress", "owner", "since", "attempts", "offset", "entityRef", "count", "error", "reason"]
            .into_iter()
            .filter(|key| state != "running" || !matches!(*key, "owner"))
            .filter_map(|key| Some(format!("{} {}", words(key), shown(consumer.get(key)?))))
            .collect();
    if !reason.is_empty() && state != "running" {
        lines.push(format!("    {}", reason.join(", ")));
    }
    let help = consumer.get("help").and_then(Value::as_array);
    lines.extend(
        help.into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .map(|help| format!("    try: {}", style.paint(Colour::Bold, &plain(help)))),
    );
    lines
}

fn words(key: &str) -> &str {
    match key {
        "owner" => "owned by",
        "entityRef" => "entity",
        key => key,
    }
}

fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => plain(text),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn trouble_is_shown_with_the_command_that_leads_out_of_it() {
        let sink = json!({
            "state": "blocked", "offset": 7, "entityRef": "component:default/a", "reason": "too large",
            "protocol": "kafka", "checkpoint": 6, "lagEvents": 3, "help": ["catalog-bridge sinks skip a 7"],
        });

        let lines = consumer_lines("sink", "a", &sink, Style::plain());

        assert_eq!(
            lines,
            [
                "sink a (kafka): blocked, checkpoint 6, 3 events behind",
                "    offset 7, entity component:default/a, reason too large",
                "    try: catalog-bridge sinks skip a 7",
            ]
        );
    }
}
