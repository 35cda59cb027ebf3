//! Fills `${NAME}`, `${NAME:-default}` and `$$` in the texts of a document.
//!
//! It works on parsed values, so that what a variable holds can never become another key. Variables are not looked up again
//! in what they hold.

use super::document::{Content, Node};
use super::refusal::Refusals;

/// How variables are looked up.
pub(super) type Lookup<'lookup> = dyn Fn(&str) -> Option<String> + 'lookup;

/// A copy of the document with all texts filled; a refusal for each variable that is not set.
pub(super) fn fill(root: &Node, lookup: &Lookup<'_>, refusals: &mut Refusals<'_>) -> Node {
    let mut copy = root.clone();
    fill_node(&mut copy, lookup, &mut Vec::new(), refusals);
    copy
}

fn fill_node(node: &mut Node, lookup: &Lookup<'_>, path: &mut Vec<String>, refusals: &mut Refusals<'_>) {
    match &mut node.content {
        Content::Text(text) if text.contains('$') => match expand(text, lookup) {
            Ok((filled, from_environment)) => {
                for value in &from_environment {
                    refusals.hide(value);
                }
                node.is_from_environment = !from_environment.is_empty();
                *text = filled;
            }
            Err(message) => refusals.add_at(path.clone(), message),
        },
        Content::List(items) => {
            for (index, item) in items.iter_mut().enumerate() {
                path.push(index.to_string());
                fill_node(item, lookup, path, refusals);
                path.pop();
            }
        }
        Content::Map(entries) => {
            for entry in entries {
                path.push(entry.key.clone());
                fill_node(&mut entry.value, lookup, path, refusals);
                path.pop();
            }
        }
        _ => {}
    }
}

/// The filled text, and what came from variables or their defaults.
fn expand(text: &str, lookup: &Lookup<'_>) -> Result<(String, Vec<String>), String> {
    let mut filled = String::with_capacity(text.len());
    let mut values = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        filled.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        if let Some(after) = after.strip_prefix('$') {
            filled.push('$');
            rest = after;
            continue;
        }
        let Some(inside) = after.strip_prefix('{') else {
            // A dollar sign alone means itself, as in many passwords.
            filled.push('$');
            rest = after;
            continue;
        };
        let Some(end) = inside.find('}') else {
            return Err("a ${ without its }; write $$ for a dollar sign".to_owned());
        };
        let value = variable(&inside[..end], lookup)?;
        filled.push_str(&value);
        values.push(value);
        rest = &inside[end + 1..];
    }
    filled.push_str(rest);
    Ok((filled, values))
}

fn variable(inside: &str, lookup: &Lookup<'_>) -> Result<String, String> {
    let (name, default) = match inside.split_once(":-") {
        Some((name, default)) => (name, Some(default)),
        None => (inside, None),
    };
    let is_name = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        && name.bytes().next().is_some_and(|byte| !byte.is_ascii_digit());
    if !is_name {
        return Err("${…} holds no name of an environment variable; write ${NAME}, or $$ for a dollar sign".to_owned());
    }
    // As in a shell, `:-` stands in for an empty variable too.
    match (lookup(name), default) {
        (Some(value), _) if !value.is_empty() => Ok(value),
        (_, Some(default)) => Ok(default.to_owned()),
        (Some(value), None) => Ok(value),
        (None, None) => {
            Err(format!("the environment variable {name} is not set; set it, or write ${{{name}:-default}}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: Result<&str, &str>) {
        let lookup = |name: &str| match name {
            "HOST" => Some("db".to_owned()),
            "EMPTY" => Some(String::new()),
            "ODD" => Some("${HOST}".to_owned()),
            _ => None,
        };
        match (expand(text, &lookup), expected) {
            (Ok((filled, _)), Ok(expected)) => assert_eq!(filled, expected),
            (Err(message), Err(part)) => assert!(message.contains(part), "{message}"),
            (result, _) => panic!("{text}: {result:?}"),
        }
    }

    #[test]
    fn variables_defaults_and_dollar_signs_are_filled() {
        check("postgres://${HOST}/x", Ok("postgres://db/x"));
        check("${GONE:-fallback}-${HOST:-other}", Ok("fallback-db"));
        check("${EMPTY:-fallback}${EMPTY}", Ok("fallback"));
        check("pa$$word$", Ok("pa$word$"));
        check("$${HOST}", Ok("${HOST}"));
        check("${ODD}", Ok("${HOST}"));
        check("${GONE}", Err("GONE is not set"));
        check("${HOST", Err("without its }"));
        check("${}", Err("no name"));
        check("${1A}", Err("no name"));
    }
}
