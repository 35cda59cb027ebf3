//! What is wrong with a config file: where, which key, what to write instead.
//!
//! Invariant: no refusal shows a secret. Texts are built without values where possible, and what an environment variable or
//! a secret setting held is blotted out of the rest.

use std::fmt;
use std::path::{Path, PathBuf};

use super::document::Node;

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Counted from 1.
    pub line: u64,
    /// The key, from the root.
    pub path: Vec<String>,
    /// What is wrong and what to write instead.
    pub message: String,
}

impl Refusal {
    pub(super) fn new(line: u64, path: Vec<String>, message: impl Into<String>) -> Self {
        Refusal { line, path, message: message.into() }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: ", self.line)?;
        if !self.path.is_empty() {
            write!(formatter, "{}: ", key_text(&self.path))?;
        }
        formatter.write_str(&self.message)
    }
}

/// `sinks.platform.kafka.brokers[0]`.
fn key_text(path: &[String]) -> String {
    let mut text = String::new();
    for key in path {
        if !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_digit()) {
            text.push_str(&format!("[{key}]"));
            continue;
        }
        if !text.is_empty() {
            text.push('.');
        }
        text.push_str(key);
    }
    text
}

/// Why there is no config.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{path}: {reason}; name another file with --config")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// In the system's words.
        reason: String,
    },
    /// Everything that is wrong in it.
    #[error("{}", list(path, refusals))]
    Refused {
        /// The file.
        path: PathBuf,
        /// In the order of the file.
        refusals: Vec<Refusal>,
    },
}

fn list(path: &Path, refusals: &[Refusal]) -> String {
    refusals.iter().map(|refusal| format!("{}:{refusal}", path.display())).collect::<Vec<_>>().join("\n")
}

/// Collects refusals of one file while it is resolved.
pub(super) struct Refusals<'node> {
    root: &'node Node,
    sensitive: Vec<String>,
    list: Vec<Refusal>,
}

impl<'node> Refusals<'node> {
    pub(super) fn new(root: &'node Node) -> Self {
        Refusals { root, sensitive: Vec::new(), list: Vec::new() }
    }

    /// Never shows this text.
    pub(super) fn hide(&mut self, secret: &str) {
        if !secret.is_empty() && !secret.starts_with("file:") {
            self.sensitive.push(secret.to_owned());
        }
    }

    /// Refuses what stands at a key.
    pub(super) fn add(&mut self, path: &[&str], message: impl Into<String>) {
        self.add_at(path.iter().map(|key| (*key).to_owned()).collect(), message);
    }

    /// Refuses what stands at a key.
    pub(super) fn add_at(&mut self, path: Vec<String>, message: impl Into<String>) {
        let line = self.root.line_of(&path);
        self.add_on(line, path, message);
    }

    /// Refuses a key on a line that is known.
    pub(super) fn add_on(&mut self, line: u64, path: Vec<String>, message: impl Into<String>) {
        self.list.push(Refusal::new(line, path, message));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// What was refused, in the order of the file, without secrets.
    pub(super) fn into_list(self) -> Vec<Refusal> {
        let mut sensitive = self.sensitive;
        sensitive.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
        let mut list = self.list;
        for refusal in &mut list {
            refusal.message = blot(&refusal.message, &sensitive);
        }
        list.sort_by_key(|refusal| refusal.line);
        list
    }
}

/// Replaces secrets: a long one everywhere, a shorter one where it is a word, a very short one where it is quoted.
fn blot(message: &str, sensitive: &[String]) -> String {
    let mut text = message.to_owned();
    for secret in sensitive {
        if secret.len() >= 8 {
            text = text.replace(secret, "***");
        } else if secret.len() >= 4 {
            text = blot_word(&text, secret);
        }
        for quote in ['"', '`', '\''] {
            text = text.replace(&format!("{quote}{secret}{quote}"), &format!("{quote}***{quote}"));
        }
    }
    text
}

fn blot_word(text: &str, secret: &str) -> String {
    let mut blotted = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(secret) {
        let after = &rest[at + secret.len()..];
        let is_word = !rest[..at].ends_with(char::is_alphanumeric) && !after.starts_with(char::is_alphanumeric);
        blotted.push_str(&rest[..at]);
        blotted.push_str(if is_word { "***" } else { secret });
        rest = after;
    }
    blotted + rest
}

/// The known word nearest to what was written, if it is near enough to be meant.
pub(crate) fn nearest<'known>(written: &str, known: impl IntoIterator<Item = &'known str>) -> Option<&'known str> {
    let written = written.to_lowercase();
    known
        .into_iter()
        .map(|word| (strsim::damerau_levenshtein(&written, &word.to_lowercase()), word))
        .filter(|(distance, word)| *distance <= (word.len().max(written.len()) / 3).max(1))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, word)| word)
}

/// `did you mean "brokers"?`, or the words to choose from.
pub(crate) fn suggestion(written: &str, known: &[&str]) -> String {
    match nearest(written, known.iter().copied()) {
        Some(word) => format!("did you mean \"{word}\"?"),
        None if known.is_empty() => "there is none to choose".to_owned(),
        None => format!("known here: {}", known.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_finds_the_word_and_another_word_finds_none() {
        let known = ["brokers", "topic", "delivery"];

        assert_eq!(nearest("brokres", known), Some("brokers"));
        assert_eq!(nearest("Topics", known), Some("topic"));
        assert_eq!(nearest("password", known), None);
        assert_eq!(suggestion("password", &known), "known here: brokers, topic, delivery");
    }

    #[test]
    fn secrets_are_blotted_out() {
        let sensitive = ["hunter2".to_owned(), "me".to_owned()];

        let shown = blot("hunter2, \"hunter2\" and \"me\" are no time in shunter2", &sensitive);

        assert_eq!(shown, "***, \"***\" and \"***\" are no time in shunter2");
    }
}
