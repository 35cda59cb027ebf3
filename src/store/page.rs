//! How much of a list of rows fits into one page, by their sizes, before a body is read.

use catalog_bridge_api::Offset;

use super::ReadLimits;

/// Rows of one page at most, whatever the caller asks for.
const ROWS_MAX: usize = 10_000;
/// Bytes of one page at most, whatever the caller asks for.
const BYTES_MAX: usize = 64 * 1024 * 1024;
/// What an event costs besides its bodies: its ref and fields (see `LogEntry::size_bytes`).
const OVERHEAD_BYTES: usize = 256 + 64;

/// A row before its body is read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sized {
    pub(super) offset: Offset,
    /// Of its bodies.
    pub(super) bytes: i64,
}

impl ReadLimits {
    /// How many rows to look at: one more than the page may hold, to know whether there are more.
    pub(super) fn rows(self) -> i64 {
        self.events_max.clamp(1, ROWS_MAX) as i64 + 1
    }

    /// How many of the rows fit; at least one, if there is one.
    pub(super) fn fit(self, rows: &[Sized]) -> usize {
        let bytes_max = self.bytes_max.min(BYTES_MAX);
        let mut bytes = 0_usize;
        let fitting = rows.iter().take(self.events_max.clamp(1, ROWS_MAX)).take_while(|row| {
            bytes = bytes.saturating_add(usize::try_from(row.bytes).unwrap_or(0) + OVERHEAD_BYTES);
            bytes <= bytes_max
        });
        fitting.count().max(1).min(rows.len())
    }
}

/// Bodies that an append compares at a time.
const COMPARE: ReadLimits = ReadLimits { events_max: 1_000, bytes_max: 16 * 1024 * 1024 };
/// Bytes of bodies that one append compares, as it holds the head lock meanwhile; of further updates it says that anything
/// may have changed.
const COMPARE_BYTES_MAX: i64 = 256 * 1024 * 1024;

/// The rows whose bodies are compared, in pieces that may be held at a time.
pub(super) fn chunks(rows: &[Sized]) -> impl Iterator<Item = &[Sized]> {
    let mut bytes = 0_i64;
    let compared = rows.iter().take_while(|row| {
        bytes = bytes.saturating_add(row.bytes);
        bytes <= COMPARE_BYTES_MAX
    });
    let mut rows = &rows[..compared.count()];
    std::iter::from_fn(move || {
        let (chunk, rest) = rows.split_at_checked(COMPARE.fit(rows))?;
        rows = rest;
        (!chunk.is_empty()).then_some(chunk)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(events_max: usize, bytes_max: usize, sizes: &[i64], expected: usize) {
        let rows: Vec<Sized> = sizes.iter().map(|bytes| Sized { offset: Offset::ZERO, bytes: *bytes }).collect();
        assert_eq!(ReadLimits { events_max, bytes_max }.fit(&rows), expected);
    }

    #[test]
    fn pages_are_bounded_and_never_empty() {
        check(10, 10_000, &[], 0);
        check(10, 10_000, &[1_000_000], 1);
        check(10, 10_000, &[1_000; 20], 7);
        check(2, 10_000, &[0; 20], 2);
        check(0, 0, &[5, 5], 1);
    }

    #[test]
    fn chunks_are_bounded_one_by_one_and_together() {
        let rows: Vec<Sized> =
            (0..2_500).map(|offset| Sized { offset: Offset::new(offset), bytes: 1024 * 1024 }).collect();

        let all: Vec<Vec<Sized>> = chunks(&rows).map(<[Sized]>::to_vec).collect();

        assert!(all.iter().all(|chunk| (1..=16).contains(&chunk.len())));
        assert_eq!(all.concat().len(), 256);
        assert_eq!(chunks(&rows[..100]).map(<[Sized]>::len).sum::<usize>(), 100);
    }
}
