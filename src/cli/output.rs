//! How things look on a terminal, and that a closed pipe is no error.

use std::io::{self, IsTerminal, Write};

use anyhow::Result;
use serde_json::Value;

/// ANSI colours, where the standard output is a terminal and `NO_COLOR` is not set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Style {
    is_coloured: bool,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Colour {
    Green,
    Yellow,
    Red,
    Dim,
    Bold,
}

impl Style {
    pub(super) fn of_stdout() -> Style {
        let is_wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Style { is_coloured: is_wanted && io::stdout().is_terminal() }
    }

    #[cfg(test)]
    pub(super) const fn plain() -> Style {
        Style { is_coloured: false }
    }

    pub(super) fn paint(self, colour: Colour, text: &str) -> String {
        if !self.is_coloured {
            return text.to_owned();
        }
        let code = match colour {
            Colour::Green => "32",
            Colour::Yellow => "33",
            Colour::Red => "31",
            Colour::Dim => "2",
            Colour::Bold => "1",
        };
        format!("\u{1b}[{code}m{text}\u{1b}[0m")
    }
}

/// Prints a text and a line end. A reader that went away (`| head`) ends the process, as it does other programs.
pub(super) fn print(text: &str) -> Result<()> {
    let mut stdout = io::stdout().lock();
    let written = writeln!(stdout, "{text}").and_then(|()| stdout.flush());
    match written {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
        other => Ok(other?),
    }
}

/// Prints JSON for programs.
pub(super) fn print_json(value: &Value) -> Result<()> {
    print(&serde_json::to_string_pretty(value)?)
}

/// Without what could move a terminal's cursor or fake a line.
pub(super) fn plain(text: &str) -> String {
    text.chars().map(|character| if character.is_control() { '\u{fffd}' } else { character }).collect()
}

/// One event on one line: offset, what happened, to whom, and what changed.
pub(super) fn event_line(event: &Value, style: Style) -> String {
    let text = |key: &str| plain(event.get(key).and_then(Value::as_str).unwrap_or("?"));
    let offset = event.get("offset").map(offset_text).unwrap_or_default();
    let kind = text("type");
    let colour = match kind.as_str() {
        "added" => Colour::Green,
        "removed" => Colour::Red,
        _ => Colour::Yellow,
    };
    let mut line = format!(
        "{} {} {}",
        style.paint(Colour::Dim, &format!("{offset:>6}")),
        style.paint(colour, &format!("{kind:<8}")),
        style.paint(Colour::Bold, &text("entityRef"))
    );
    let note = note(event);
    if !note.is_empty() {
        line.push_str(&style.paint(Colour::Dim, &format!("  {note}")));
    }
    line
}

/// Offsets may be numbers or texts.
fn offset_text(offset: &Value) -> String {
    offset.as_str().map_or_else(|| offset.to_string(), plain)
}

fn note(event: &Value) -> String {
    if event.get("reason").and_then(Value::as_str) == Some("left-filter") {
        return "no longer matches the filter".to_owned();
    }
    let changed = event.get("changed");
    let paths = changed.and_then(|changed| changed.get("paths")).and_then(Value::as_array);
    let mut note: Vec<String> = paths.into_iter().flatten().filter_map(Value::as_str).map(plain).collect();
    if changed.and_then(|changed| changed.get("truncated")) == Some(&Value::Bool(true)) {
        note.push("…".to_owned());
    }
    note.join(", ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_event_is_one_line() {
        let style = Style { is_coloured: false };
        let updated = json!({ "offset": 7, "type": "updated", "entityRef": "component:default/a",
            "changed": { "paths": ["spec.owner", "spec.type"] } });
        let removed = json!({ "offset": 8, "type": "removed", "entityRef": "component:default/a\u{1b}[2J\n", "reason": "left-filter" });

        assert_eq!(event_line(&updated, style), "     7 updated  component:default/a  spec.owner, spec.type");
        assert_eq!(
            event_line(&removed, style),
            "     8 removed  component:default/a\u{fffd}[2J\u{fffd}  no longer matches the filter"
        );
    }

    #[test]
    fn colours_are_only_for_terminals() {
        assert_eq!(Style { is_coloured: false }.paint(Colour::Red, "x"), "x");
        assert_eq!(Style { is_coloured: true }.paint(Colour::Red, "x"), "\u{1b}[31mx\u{1b}[0m");
    }
}
