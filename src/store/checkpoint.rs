//! Decides what claims, saves and commands do to a row of `checkpoints`; the same for both stores.
//!
//! Keeps P9: each claim bumps the epoch, a lease is taken only when the store's clock is past expiry + flight, and who writes
//! with another epoch or generation than the stored is fenced. Keeps P5: an offset goes back only by a rewind, which bumps
//! the generation, or to what the destination itself says that it still holds. Knows nothing of SQL; the row is locked around it and the store's clock is passed in.

use std::time::Duration;

use catalog_bridge_api::{EntityRef, JsonText, Offset};
use chrono::{DateTime, TimeDelta, Utc};

use super::{
    Checkpoint, CheckpointMove, ClaimRequest, ConsumerKind, LogState, SinkCommand, Skipped, Start, StoreError,
};

/// The longest that a connector's state may be.
pub(super) const CONNECTOR_STATE_BYTES_MAX: usize = 4096;

/// How far the epochs jump when the log gets a new id: owners that the restored copy never heard of hold higher ones than
/// its rows do, and none of theirs may come again.
pub(super) const EPOCH_JUMP: i64 = 1_000_000;

/// A row as the table holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Row {
    /// What everybody may read.
    pub(super) checkpoint: Checkpoint,
    /// How long beyond the lease's expiry the owner's requests may still land.
    pub(super) flight: Duration,
}

/// What became of a claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Claim {
    /// Write this row.
    Ours(Box<Row>),
    /// Somebody else's until then.
    HeldBy { owner: String, until: DateTime<Utc> },
}

impl Row {
    /// Claims a consumer that has no row yet, in the same transaction that read `log`.
    pub(super) fn first_claim(request: &ClaimRequest, log: &LogState, now: DateTime<Utc>) -> Result<Row, StoreError> {
        let (offset, walk) = match (request.kind, request.start) {
            (ConsumerKind::Source, _) => (Offset::ZERO, None),
            (ConsumerKind::Sink, Start::Snapshot) => (Offset::ZERO, Some(log.head)),
            (ConsumerKind::Sink, Start::Earliest) => (log.oldest, None),
            (ConsumerKind::Sink, Start::Latest) => (log.head, None),
            (ConsumerKind::Sink, Start::At(offset)) if offset < log.oldest => {
                return Err(StoreError::Expired { asked: offset, oldest: log.oldest, head: log.head });
            }
            (ConsumerKind::Sink, Start::At(offset)) => (offset, None),
        };
        let checkpoint = Checkpoint {
            kind: request.kind,
            name: request.name.clone(),
            offset,
            source_position: None,
            walk,
            walk_removals_above: None,
            connector_state: None,
            owner: None,
            epoch: 0,
            lease_expires_at: None,
            generation: 1,
            fingerprint: request.fingerprint.clone(),
            paused: false,
            expired: false,
            status: None,
            commands: 0,
            updated_at: now,
        };
        Ok(Row { checkpoint, flight: Duration::ZERO }.owned_by(request, now))
    }

    /// Claims a consumer that has a row.
    pub(super) fn claim(self, request: &ClaimRequest, now: DateTime<Utc>) -> Claim {
        if let (Some(owner), Some(expires_at)) = (&self.checkpoint.owner, self.checkpoint.lease_expires_at) {
            let until = expires_at + delta(self.flight);
            if *owner != request.owner && now < until {
                return Claim::HeldBy { owner: owner.clone(), until };
            }
        }
        let mut row = self;
        if request.fingerprint.is_some() && row.checkpoint.fingerprint != request.fingerprint {
            if row.checkpoint.fingerprint.is_some() {
                row.checkpoint.generation += 1;
                // It was of another destination, maybe.
                row.checkpoint.connector_state = None;
            }
            row.checkpoint.fingerprint.clone_from(&request.fingerprint);
        }
        Claim::Ours(Box::new(row.owned_by(request, now)))
    }

    fn owned_by(mut self, request: &ClaimRequest, now: DateTime<Utc>) -> Row {
        self.checkpoint.epoch += 1;
        self.checkpoint.owner = Some(request.owner.clone());
        self.checkpoint.lease_expires_at = Some(now + delta(request.time_to_live));
        self.checkpoint.updated_at = now;
        self.flight = request.flight;
        self
    }

    /// Prolongs the lease of the owner with this epoch.
    pub(super) fn renew(&mut self, epoch: u64, time_to_live: Duration, now: DateTime<Utc>) -> Result<(), StoreError> {
        self.check_epoch(epoch)?;
        self.checkpoint.lease_expires_at = Some(now + delta(time_to_live));
        self.checkpoint.updated_at = now;
        Ok(())
    }

    /// Ends the lease of the owner with this epoch, at once: a clean owner has nothing in flight.
    pub(super) fn release(&mut self, epoch: u64, now: DateTime<Utc>) -> Result<(), StoreError> {
        self.check_epoch(epoch)?;
        self.checkpoint.lease_expires_at = Some(now);
        self.checkpoint.updated_at = now;
        self.flight = Duration::ZERO;
        Ok(())
    }

    /// Moves a sink's checkpoint forward.
    pub(super) fn save(&mut self, to: &CheckpointMove, now: DateTime<Utc>) -> Result<(), StoreError> {
        let offset = self.checkpoint.offset.max(to.offset);
        self.move_to(offset, to, now)
    }

    /// Moves a sink's checkpoint back. Below `oldest` the next read says so, and the sink is expired.
    pub(super) fn set_back(&mut self, to: &CheckpointMove, now: DateTime<Utc>) -> Result<(), StoreError> {
        let offset = self.checkpoint.offset.min(to.offset);
        self.move_to(offset, to, now)
    }

    fn move_to(&mut self, offset: Offset, to: &CheckpointMove, now: DateTime<Utc>) -> Result<(), StoreError> {
        self.check_epoch(to.epoch)?;
        if self.checkpoint.generation != to.generation {
            return Err(StoreError::Fenced(format!(
                "{} is at generation {} now, not {}",
                self.named(),
                self.checkpoint.generation,
                to.generation
            )));
        }
        if let Some(state) = &to.connector_state {
            if state.len() > CONNECTOR_STATE_BYTES_MAX {
                return Err(StoreError::TooLarge(format!(
                    "{}: the connector's state of {} bytes is above {CONNECTOR_STATE_BYTES_MAX}",
                    self.named(),
                    state.len()
                )));
            }
            self.checkpoint.connector_state = Some(state.clone());
        }
        self.checkpoint.offset = offset;
        self.checkpoint.walk = to.walk;
        self.checkpoint.walk_removals_above = to.walk.and(to.walk_removals_above);
        self.checkpoint.updated_at = now;
        Ok(())
    }

    /// Publishes the owner's state.
    pub(super) fn save_status(&mut self, epoch: u64, status: &JsonText, now: DateTime<Utc>) -> Result<(), StoreError> {
        self.check_epoch(epoch)?;
        self.checkpoint.status = Some(status.clone());
        self.checkpoint.updated_at = now;
        Ok(())
    }

    /// Carries out an operator's command, under the head lock under which `log` was read. `Skip` only checks the offset: its
    /// record is a row of `skipped`.
    pub(super) fn command(
        &mut self,
        command: &SinkCommand,
        log: &LogState,
        now: DateTime<Utc>,
    ) -> Result<(), StoreError> {
        match *command {
            SinkCommand::Pause => self.checkpoint.paused = true,
            SinkCommand::Resume => self.checkpoint.paused = false,
            SinkCommand::Skip(offset) => self.check_skip(offset, log)?,
            SinkCommand::RewindTo(offset) => self.rewind_to(offset, log)?,
            SinkCommand::RewindToSnapshot => self.rewind_to_snapshot(log),
        }
        self.checkpoint.commands += 1;
        self.checkpoint.updated_at = now;
        Ok(())
    }

    fn check_skip(&self, offset: Offset, log: &LogState) -> Result<(), StoreError> {
        let reason = if offset <= self.checkpoint.offset {
            format!("is at or below its checkpoint {}: there is nothing to skip", self.checkpoint.offset)
        } else if offset > log.head {
            format!("is above the log's head {}", log.head)
        } else {
            return Ok(());
        };
        Err(StoreError::Refused(format!("{}: offset {offset} {reason}", self.named())))
    }

    fn rewind_to(&mut self, offset: Offset, log: &LogState) -> Result<(), StoreError> {
        if offset < log.oldest {
            return Err(StoreError::Expired { asked: offset, oldest: log.oldest, head: log.head });
        }
        if offset > log.head {
            return Err(StoreError::Refused(format!(
                "{}: offset {offset} is above the log's head {}",
                self.named(),
                log.head
            )));
        }
        self.begin_generation(offset, None, None);
        Ok(())
    }

    fn rewind_to_snapshot(&mut self, log: &LogState) {
        // Everything that it may have delivered and that is gone by now must be told as removed. Outside a walk that is what
        // was removed after the checkpoint. Inside a walk, what is live at its S is sent by offset, so a removal after S is not
        // yet told; a walk that tells removals itself has told those up to where it is.
        let untold_above = match (self.checkpoint.walk, self.checkpoint.walk_removals_above) {
            (None, _) => self.checkpoint.offset,
            (Some(at), None) => at,
            (Some(_), Some(above)) => above.max(self.checkpoint.offset),
        };
        self.begin_generation(Offset::ZERO, Some(log.head), Some(untold_above));
    }

    fn begin_generation(&mut self, offset: Offset, walk: Option<Offset>, removals_above: Option<Offset>) {
        self.checkpoint.generation += 1;
        self.checkpoint.offset = offset;
        self.checkpoint.walk = walk;
        self.checkpoint.walk_removals_above = removals_above;
        self.checkpoint.expired = false;
    }

    fn check_epoch(&self, epoch: u64) -> Result<(), StoreError> {
        if self.checkpoint.epoch == epoch {
            return Ok(());
        }
        let owner = self.checkpoint.owner.as_deref().unwrap_or("nobody");
        Err(StoreError::Fenced(format!(
            "{} has epoch {} now (owner {owner}), not {epoch}",
            self.named(),
            self.checkpoint.epoch
        )))
    }

    fn named(&self) -> String {
        format!("{} \"{}\"", self.checkpoint.kind.as_str(), self.checkpoint.name)
    }
}

/// The record of a skip that an operator commanded; `at` is the store's to say.
pub(super) fn commanded_skip(sink: &Checkpoint, offset: Offset, entity_ref: Option<&str>) -> Skipped {
    Skipped {
        sink: sink.name.clone(),
        generation: sink.generation,
        offset,
        entity_ref: entity_ref.and_then(|text| EntityRef::parse(text).ok()),
        reason: "skipped by command".to_owned(),
        by: "operator".to_owned(),
        at: sink.updated_at,
    }
}

/// The refusal of a row that is not there.
pub(super) fn unknown(kind: ConsumerKind, name: &str) -> StoreError {
    StoreError::Refused(format!(
        "the log knows no {} \"{name}\": its row is made when a daemon that has it configured first starts",
        kind.as_str()
    ))
}

/// The same for an owner: whoever does not find its row does not own it.
pub(super) fn fenced_without_row(kind: ConsumerKind, name: &str) -> StoreError {
    StoreError::Fenced(format!("{} \"{name}\" has no row", kind.as_str()))
}

fn delta(duration: Duration) -> TimeDelta {
    TimeDelta::from_std(duration).unwrap_or(TimeDelta::days(365_000))
}
