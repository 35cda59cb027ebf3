//! The tail of the stream: what of ours is there already, and whether anybody else wrote or anything was lost.
//!
//! Keeps P6 (nothing is repeated after a crash) and P8 (what was lost or written by others is told, never passed over). The
//! whole suffix after the remembered sequence is compared, not the last message only: a foreign message may sit in the middle.
//! Deciding is plain code over what was read.

use async_nats::jetstream::stream::{RawMessageErrorKind, Stream};
use catalog_bridge_api::{Claim, ConnectorError, Offset};
use futures::StreamExt;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::connection::Connection;
use crate::record::{self, Origin};
use crate::stream;

/// Messages that are asked for at the same time.
const READS_IN_FLIGHT: usize = 32;

/// What a sink keeps of its stream (in [`Claim::state`]), together with its checkpoint: everything in the stream up to
/// `sequence` is accounted for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Mark {
    pub(crate) stream: String,
    /// When the stream was created, in the server's words: tells a stream that was deleted and created again.
    pub(crate) created: String,
    pub(crate) log_id: Uuid,
    pub(crate) generation: u64,
    pub(crate) sequence: u64,
    /// Which event is stored under `sequence`; absent when that message is none of this generation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) offset: Option<Offset>,
}

impl Mark {
    /// What the sink remembers of this stream.
    pub(crate) fn known(claim: &Claim, stream: &str) -> Option<Mark> {
        let mark: Mark = serde_json::from_value(claim.state.clone()?).ok()?;
        (mark.stream == stream).then_some(mark)
    }

    fn is_of(&self, claim: &Claim) -> bool {
        self.log_id == claim.log_id && self.generation == claim.generation
    }
}

/// Where a session begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Start {
    pub(crate) mark: Mark,
    /// The last event of this generation that is known to be stored.
    pub(crate) stored: Option<Offset>,
}

/// Why no session begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// Somebody has to decide.
    Diverged { reason: String },
    /// Acknowledged messages are gone, and everything up to `kept` is there.
    Lost { kept: Offset, reason: String },
}

/// Whose a message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Writer {
    /// This sink, in this generation.
    Now(Offset),
    /// This sink, in an earlier generation or under the log's earlier id.
    Before,
    /// Somebody else, or this sink in a generation that the store does not know of.
    Foreign,
}

/// Finds where to begin. With `is_accepted` an operator has seen what is there and wants to go on from its end.
pub(crate) async fn search(
    connection: &Connection,
    stream: &Stream,
    claim: &Claim,
    is_accepted: bool,
) -> Result<Result<Start, Trouble>, ConnectorError> {
    let info = stream.cached_info();
    let last = info.state.last_sequence;
    let known = Mark::known(claim, &info.config.name);
    let mut start = Start {
        mark: Mark {
            stream: info.config.name.clone(),
            created: info.created.to_string(),
            log_id: claim.log_id,
            generation: claim.generation,
            sequence: last,
            offset: None,
        },
        stored: None,
    };
    let reader = Reader { connection, stream, claim, known: known.as_ref() };
    let Some(known) = &known else {
        let suffix = reader.suffix(0, last).await?;
        start.found(suffix.newest);
        return Ok(Ok(start));
    };
    // Going back is lost data only to a generation that counts on it: after a rewind everything is sent anew.
    let is_counted_on = known.is_of(claim);
    if is_counted_on
        && !is_accepted
        && let Some(trouble) = reader.loss(known, &start.mark).await?
    {
        return Ok(Err(trouble));
    }
    let is_same_stream = known.created == start.mark.created && known.sequence <= last;
    let from = if is_same_stream { known.sequence } else { 0 };
    let suffix = reader.suffix(from, last).await?;
    if let Some(sequence) = suffix.foreign
        && is_same_stream
        && !is_accepted
    {
        let reason = if stream::takes_chain(info) {
            format!(
                "somebody else wrote message {sequence}, and this sink must be the stream's only writer; nothing was lost. \
                 Keep others away, then resume to go on after it"
            )
        } else {
            format!(
                "somebody else wrote message {sequence}, and this sink must be the stream's only writer; an event after \
                 offset {} may be missing. Keep others away, then `catalog-bridge sinks rewind {} --to {}` delivers what \
                 follows again, and resume goes on without it",
                claim.checkpoint, claim.sink, claim.checkpoint
            )
        };
        return Ok(Err(Trouble::Diverged { reason }));
    }
    match suffix.newest {
        Some((sequence, offset)) => start.found(Some((sequence, offset))),
        None if is_same_stream && is_counted_on => {
            start.stored = known.offset;
            // The mark's message is the last one, unless others follow that were accepted.
            start.mark.offset = known.offset.filter(|_| known.sequence == last);
        }
        None => {}
    }
    Ok(Ok(start))
}

impl Start {
    fn found(&mut self, newest: Option<(u64, Offset)>) {
        let Some((sequence, offset)) = newest else { return };
        self.stored = Some(offset);
        if sequence == self.mark.sequence {
            self.mark.offset = Some(offset);
        }
    }
}

struct Reader<'a> {
    connection: &'a Connection,
    stream: &'a Stream,
    claim: &'a Claim,
    known: Option<&'a Mark>,
}

/// What lies after a sequence.
#[derive(Debug, Default, PartialEq, Eq)]
struct Suffix {
    newest: Option<(u64, Offset)>,
    /// The last message that is not this sink's.
    foreign: Option<u64>,
}

impl Reader<'_> {
    /// Reads backwards from `last` to the message after `from`. With nothing remembered (`from` is 0), or after a loss, only
    /// to the first message that this generation did not write after its checkpoint: what is older was there before.
    async fn suffix(&self, from: u64, last: u64) -> Result<Suffix, ConnectorError> {
        let mut suffix = Suffix::default();
        let mut read = futures::stream::iter((from + 1..=last).rev())
            .map(|sequence| async move { (sequence, self.read(sequence).await) })
            .buffered(READS_IN_FLIGHT);
        while let Some((sequence, message)) = read.next().await {
            let Some(origin) = message? else { continue };
            match self.writer(origin.as_ref()) {
                Writer::Now(offset) => {
                    suffix.newest.get_or_insert((sequence, offset));
                    if from == 0 && offset <= self.claim.checkpoint {
                        break;
                    }
                }
                Writer::Before | Writer::Foreign if from == 0 => break,
                Writer::Before => {}
                Writer::Foreign => suffix.foreign = suffix.foreign.or(Some(sequence)),
            }
        }
        Ok(suffix)
    }

    /// Whether the stream lost what this sink had in it: its last sequence went back, it was created again, or another message
    /// sits where ours was. With something of ours at its end the sink can go back to that.
    async fn loss(&self, known: &Mark, current: &Mark) -> Result<Option<Trouble>, ConnectorError> {
        let command = format!("`catalog-bridge sinks rewind {} --to snapshot` delivers it again", self.claim.sink);
        if known.created != current.created {
            let reason = format!("the stream was created anew at {}; what it held is gone: {command}", current.created);
            return Ok(Some(Trouble::Diverged { reason }));
        }
        if current.sequence < known.sequence {
            let suffix = self.suffix(0, current.sequence).await?;
            let went_back = format!("its last sequence went back from {} to {}", known.sequence, current.sequence);
            return Ok(match suffix.newest {
                Some((_, kept)) if kept >= self.claim.checkpoint => None,
                Some((_, kept)) => Some(Trouble::Lost { kept, reason: went_back }),
                None => {
                    let reason = format!("{went_back}, and nothing of this sink is at its end: {command}");
                    Some(Trouble::Diverged { reason })
                }
            });
        }
        let Some(offset) = known.offset else { return Ok(None) };
        match self.read(known.sequence).await? {
            Some(origin) if self.writer(origin.as_ref()) != Writer::Now(offset) => {
                let sequence = known.sequence;
                let reason = format!(
                    "message {sequence} should be event {offset} and is another: the stream lost acknowledged messages and was \
                     written to afterwards: {command}"
                );
                Ok(Some(Trouble::Diverged { reason }))
            }
            _ => Ok(None),
        }
    }

    fn writer(&self, origin: Option<&Origin>) -> Writer {
        let Some(origin) = origin else { return Writer::Foreign };
        if origin.sink != self.claim.sink.as_str() {
            return Writer::Foreign;
        }
        if origin.log_id == self.claim.log_id {
            return match origin.generation.cmp(&self.claim.generation) {
                std::cmp::Ordering::Equal => Writer::Now(origin.offset),
                std::cmp::Ordering::Less => Writer::Before,
                std::cmp::Ordering::Greater => Writer::Foreign,
            };
        }
        if self.known.is_some_and(|known| known.log_id == origin.log_id) { Writer::Before } else { Writer::Foreign }
    }

    /// One message: `None` when it left the stream, `Some(None)` when it is none of any bridge.
    async fn read(&self, sequence: u64) -> Result<Option<Option<Origin>>, ConnectorError> {
        match self.stream.get_raw_message(sequence).await {
            Ok(message) => Ok(Some(record::origin(&message.headers))),
            Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => Ok(None),
            Err(error) => Err(ConnectorError::transient("read the tail", &self.connection.endpoint, error)),
        }
    }
}
