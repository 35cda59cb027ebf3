//! What a sink's checkpoint promises: everything below it is there, it never goes back, and no repetition reaches below it.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, ensure};
use catalog_bridge_api::Offset;

use crate::{Delivered, Lane};

/// A checkpoint as somebody saw it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// The sink's generation.
    pub generation: u64,
    /// Up to where everything is acknowledged.
    pub checkpoint: Offset,
}

/// At the moment of a checkpoint the destination held everything up to it: `delivered` was read after that moment.
pub fn check_acknowledged(
    expected: &[(Offset, String)],
    delivered: &[Delivered],
    checkpoint: Offset,
    skipped: &BTreeSet<Offset>,
) -> Result<()> {
    let held: BTreeSet<Offset> = delivered.iter().map(|message| message.offset).collect();
    for (offset, key) in expected.iter().take_while(|(offset, _)| *offset <= checkpoint) {
        ensure!(
            held.contains(offset) || skipped.contains(offset),
            "offset {offset} ({key}) is at or below the checkpoint {checkpoint} and the destination does not hold it"
        );
    }
    Ok(())
}

/// Within a generation a checkpoint never goes back, and generations never do; none is above `head`.
pub fn check_checkpoints(seen: &[Seen], head: Offset) -> Result<()> {
    for pair in seen.windows(2) {
        let (before, after) = (pair[0], pair[1]);
        let is_forward = after.generation > before.generation
            || (after.generation == before.generation && after.checkpoint >= before.checkpoint);
        ensure!(is_forward, "the checkpoint went back from {before:?} to {after:?}");
    }
    match seen.iter().find(|seen| seen.checkpoint > head) {
        Some(beyond) => anyhow::bail!("{beyond:?} is above the head {head}"),
        None => Ok(()),
    }
}

/// What is repeated is a suffix: it lies above `checkpoint`, and after a step back a lane goes on step by step.
///
/// `checkpoint` is one that was stored before the session border. Where a former owner may write beside the new one
/// (P9: destinations that cannot fence), the two suffixes mix and only [`crate::check_delivery`] holds.
pub fn check_suffix(delivered: &[Delivered], lane: Lane, checkpoint: Offset) -> Result<()> {
    let mut lanes: BTreeMap<(u64, &str), LaneState> = BTreeMap::new();
    for message in delivered {
        let key = if lane == Lane::Stream { "" } else { message.key.as_str() };
        let state = lanes.entry((message.generation, key)).or_default();
        let Ok(index) = state.order.binary_search(&message.offset) else {
            ensure!(
                state.last.is_none_or(|last| last + 1 == state.order.len()),
                "key {}: offset {} came while the repetition had not reached {:?} again",
                message.key,
                message.offset,
                state.order.last()
            );
            state.order.push(message.offset);
            state.last = Some(state.order.len() - 1);
            continue;
        };
        ensure!(
            message.offset > checkpoint,
            "key {}: offset {} was repeated, which is not above the checkpoint {checkpoint}",
            message.key,
            message.offset
        );
        ensure!(
            state.last.is_some_and(|last| index <= last + 1),
            "key {}: a repetition jumps forward to offset {}",
            message.key,
            message.offset
        );
        state.last = Some(index);
    }
    Ok(())
}

#[derive(Debug, Default)]
struct LaneState {
    /// First deliveries, which are ascending.
    order: Vec<Offset>,
    /// The index of the last delivery.
    last: Option<usize>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delivered(offsets: &[u64]) -> Vec<Delivered> {
        let message = |offset: &u64| Delivered {
            offset: (*offset).into(),
            key: "a".to_owned(),
            generation: 1,
            bytes: Vec::new(),
        };
        offsets.iter().map(message).collect()
    }

    #[track_caller]
    fn suffix(offsets: &[u64], checkpoint: u64, verdict: Option<&str>) {
        let found = check_suffix(&delivered(offsets), Lane::Entity, checkpoint.into()).err();
        match (verdict, found.map(|error| error.to_string())) {
            (None, None) => {}
            (Some(part), Some(text)) if text.contains(part) => {}
            (_, found) => panic!("expected {verdict:?}, found {found:?}"),
        }
    }

    #[test]
    fn only_a_suffix_above_the_checkpoint_may_be_repeated() {
        suffix(&[1, 2, 5, 2, 5, 7], 1, None);
        suffix(&[1, 2, 5, 5, 2, 5, 7], 1, None);
        suffix(&[1, 2, 5, 2, 5, 7], 2, Some("not above the checkpoint"));
        suffix(&[1, 2, 5, 7, 2, 7], 1, Some("jumps forward"));
        suffix(&[1, 2, 5, 2, 7], 1, Some("had not reached"));
    }

    #[test]
    fn what_is_below_a_checkpoint_is_there_or_was_skipped() {
        let expected: Vec<(Offset, String)> = [1, 2, 3].map(|offset: u64| (offset.into(), "a".to_owned())).to_vec();
        let none = BTreeSet::new();
        assert!(check_acknowledged(&expected, &delivered(&[1, 2]), 2.into(), &none).is_ok());
        assert!(check_acknowledged(&expected, &delivered(&[1]), 2.into(), &none).is_err());
        assert!(check_acknowledged(&expected, &delivered(&[1]), 2.into(), &[2.into()].into()).is_ok());
    }

    #[test]
    fn a_checkpoint_goes_forward_and_not_beyond_the_head() {
        let seen = |generation, checkpoint: u64| Seen { generation, checkpoint: checkpoint.into() };
        assert!(check_checkpoints(&[seen(1, 3), seen(1, 3), seen(2, 0)], 3.into()).is_ok());
        assert!(check_checkpoints(&[seen(1, 3), seen(1, 2)], 3.into()).is_err());
        assert!(check_checkpoints(&[seen(2, 3), seen(1, 4)], 9.into()).is_err());
        assert!(check_checkpoints(&[seen(1, 4)], 3.into()).is_err());
    }
}
