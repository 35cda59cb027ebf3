//! Promises P5 and P6 of what a destination received.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use catalog_bridge_api::Offset;

/// One message as the destination holds it, in the destination's order within its lane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivered {
    /// The event's offset.
    pub offset: Offset,
    /// The entity ref.
    pub key: String,
    /// The sink's generation.
    pub generation: u64,
    /// Everything that a repetition must carry alike.
    pub bytes: Vec<u8>,
}

/// Where order is promised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    /// Per key (`ordering: entity`).
    Entity,
    /// Over everything (`ordering: stream`).
    Stream,
}

/// What a run allows.
#[derive(Debug, Clone, Copy)]
pub struct DeliveryRules {
    /// Where order is promised.
    pub lane: Lane,
    /// How many messages one session border may repeat: window plus what was acknowledged and not yet checkpointed.
    pub repeated_per_session_max: usize,
    /// How many session borders there were at most (kills, cuts, restarts).
    pub sessions_max: usize,
}

/// Judges the deliveries against what had to be delivered: `(offset, key)` in log order, after the sink's view.
///
/// A key's deliveries may go on to that key's next offset or step back to one that was delivered before (a repetition);
/// a step forward over an offset not yet seen is a loss or a reorder. Steps back and repetitions are counted against the rules.
pub fn check_delivery(expected: &[(Offset, String)], delivered: &[Delivered], rules: DeliveryRules) -> Result<()> {
    check_same_bytes(delivered)?;
    let mut lanes: BTreeMap<&str, Vec<Offset>> = BTreeMap::new();
    let lane_of = |key| if rules.lane == Lane::Stream { "" } else { key };
    for (offset, key) in expected {
        lanes.entry(lane_of(key.as_str())).or_default().push(*offset);
    }
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    for message in delivered {
        let lane = lane_of(message.key.as_str());
        let wanted = lanes.get(lane).map(Vec::as_slice).unwrap_or_default();
        let count = seen.entry(lane).or_default();
        match wanted.get(*count) {
            Some(next) if *next == message.offset => *count += 1,
            next => ensure!(
                wanted[..*count].binary_search(&message.offset).is_ok(),
                "key {}: offset {} was delivered while {next:?} was due: lost or out of order",
                message.key,
                message.offset,
            ),
        }
    }
    for (lane, wanted) in &lanes {
        let count = seen.get(lane).copied().unwrap_or(0);
        ensure!(
            count == wanted.len(),
            "lane {lane:?}: offset {:?} never arrived ({count} of {} did)",
            wanted.get(count),
            wanted.len()
        );
    }
    let repeated = repeats(delivered);
    let allowed = rules.repeated_per_session_max * rules.sessions_max;
    ensure!(
        repeated <= allowed,
        "{repeated} repetitions; {} sessions of {} allow {allowed}",
        rules.sessions_max,
        rules.repeated_per_session_max
    );
    Ok(())
}

/// How many deliveries were repetitions.
pub fn repeats(delivered: &[Delivered]) -> usize {
    let mut known = std::collections::BTreeSet::new();
    delivered.iter().filter(|message| !known.insert((message.generation, message.offset))).count()
}

fn check_same_bytes(delivered: &[Delivered]) -> Result<()> {
    let mut known: BTreeMap<(u64, Offset), &Delivered> = BTreeMap::new();
    for message in delivered {
        let first = known.entry((message.generation, message.offset)).or_insert(message);
        ensure!(
            first.key == message.key && first.bytes == message.bytes,
            "offset {}: a repetition with other bytes",
            message.offset
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: DeliveryRules = DeliveryRules { lane: Lane::Entity, repeated_per_session_max: 2, sessions_max: 1 };

    fn expected() -> Vec<(Offset, String)> {
        [(1, "a"), (2, "b"), (3, "a"), (4, "a")].map(|(offset, key)| (offset.into(), key.to_owned())).to_vec()
    }

    fn delivered(list: &[(u64, &str)]) -> Vec<Delivered> {
        let message = |(offset, key): &(u64, &str)| Delivered {
            offset: (*offset).into(),
            key: (*key).to_owned(),
            generation: 1,
            bytes: vec![*offset as u8],
        };
        list.iter().map(message).collect()
    }

    #[track_caller]
    fn check(list: &[(u64, &str)], verdict: Option<&str>) {
        let found = check_delivery(&expected(), &delivered(list), RULES).err().map(|error| error.to_string());
        match (verdict, &found) {
            (None, None) => {}
            (Some(part), Some(text)) if text.contains(part) => {}
            _ => panic!("expected {verdict:?}, found {found:?}"),
        }
    }

    #[test]
    fn order_per_key_with_a_repeated_suffix_passes() {
        check(&[(1, "a"), (2, "b"), (3, "a"), (4, "a")], None);
        check(&[(2, "b"), (1, "a"), (3, "a"), (4, "a")], None);
        check(&[(1, "a"), (2, "b"), (3, "a"), (2, "b"), (3, "a"), (4, "a")], None);
    }

    #[test]
    fn loss_reorder_and_too_many_repetitions_fail() {
        check(&[(1, "a"), (2, "b"), (3, "a")], Some("never arrived"));
        check(&[(1, "a"), (2, "b"), (4, "a"), (3, "a"), (4, "a")], Some("lost or out of order"));
        check(&[(1, "a"), (1, "a"), (1, "a"), (1, "a"), (2, "b"), (3, "a"), (4, "a")], Some("repetitions"));
    }

    #[test]
    fn a_repetition_with_other_bytes_fails() {
        let mut list = delivered(&[(1, "a"), (1, "a")]);
        list[1].bytes = vec![9];
        assert!(
            check_delivery(&expected(), &list, RULES).is_err_and(|error| error.to_string().contains("other bytes"))
        );
    }
}
