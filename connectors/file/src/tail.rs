//! Finds where a file ends: what of it is torn, and the last line that is ours.
//!
//! A crash leaves at most one torn line, at the end. It is cut off only when it is a broken piece of JSON: any other file
//! without a line end at its end is not ours, and is left alone.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::line::{Marks, parse_marks};

/// How far back a line of ours is looked for behind lines that others appended.
const SEARCH_BYTES_MAX: u64 = 64 * 1024 * 1024;
const CHUNK: u64 = 64 * 1024;

/// What the end of a file holds.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// Complete lines up to `length`; what follows is torn. `newest` is the newest line that `is_ours` accepts.
    Lines { length: u64, newest: Option<Marks> },
    /// The last line has no end and is no torn line of ours.
    Foreign,
}

/// Reads a file's end; changes nothing.
pub(crate) fn read_ending(file: &File, is_ours: impl Fn(&Marks) -> bool) -> io::Result<Ending> {
    let size = file.metadata()?.len();
    let complete = line_start(file, size)?;
    if complete < size {
        let piece = read_between(file, complete, size)?;
        let is_torn = piece.first() == Some(&b'{') && serde_json::from_slice::<serde::de::IgnoredAny>(&piece).is_err();
        // A whole line of which only the line end is missing is torn as well.
        if !is_torn && parse_marks(&piece).is_none() {
            return Ok(Ending::Foreign);
        }
    }
    let mut newest = None;
    let mut end = complete;
    while end > 0 && newest.is_none() && complete - end < SEARCH_BYTES_MAX {
        let start = line_start(file, end - 1)?;
        newest = parse_marks(&read_between(file, start, end)?).filter(&is_ours);
        end = start;
    }
    Ok(Ending::Lines { length: complete, newest })
}

/// Where the line that holds the byte before `end` begins: after the last line end below `end`.
fn line_start(file: &File, mut end: u64) -> io::Result<u64> {
    while end > 0 {
        let start = end.saturating_sub(CHUNK);
        let chunk = read_between(file, start, end)?;
        if let Some(at) = chunk.iter().rposition(|byte| *byte == b'\n') {
            return Ok(start + at as u64 + 1);
        }
        end = start;
    }
    Ok(0)
}

fn read_between(file: &File, start: u64, end: u64) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(end - start).map_err(io::Error::other)?];
    file.read_exact_at(&mut bytes, start)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::line::tests::message;
    use crate::line::write_line;

    fn line(offset: u64) -> Vec<u8> {
        let mut line = Vec::new();
        write_line(&message(offset, "{\"a\":1}"), &mut line);
        line
    }

    #[track_caller]
    fn check(content: &[u8], expected: Option<(usize, Option<u64>)>) {
        let mut file = tempfile::tempfile().expect("a temporary file");
        file.write_all(content).expect("written");

        let ending = read_ending(&file, |marks| marks.generation == 3).expect("read");

        let found = match ending {
            Ending::Lines { length, newest } => Some((length as usize, newest.map(|marks| marks.offset.get()))),
            Ending::Foreign => None,
        };
        assert_eq!(found, expected);
    }

    #[test]
    fn a_torn_last_line_does_not_count() {
        let (one, two) = (line(1), line(2));
        check(b"", Some((0, None)));
        check(&one, Some((one.len(), Some(1))));
        for torn in 1..two.len() {
            check(&[&one[..], &two[..torn]].concat(), Some((one.len(), Some(1))));
        }
        check(&two[..1], Some((0, None)));
    }

    #[test]
    fn lines_of_others_are_looked_behind_and_kept() {
        let one = line(1);
        let content = [&one[..], b"{\"note\":\"hello\"}\n\nplain\n"].concat();
        check(&content, Some((content.len(), Some(1))));
        check(b"plain\n", Some((6, None)));
    }

    #[test]
    fn a_foreign_last_line_without_an_end_is_left_alone() {
        check(b"{\"setting\":true}", None);
        check(b"plain text", None);
    }

    #[test]
    fn long_lines_are_read_whole() {
        let mut long = Vec::new();
        write_line(&message(9, &format!("{{\"a\":\"{}\"}}", "x".repeat(300_000))), &mut long);
        check(&[&line(8)[..], &long].concat(), Some((line(8).len() + long.len(), Some(9))));
    }
}
