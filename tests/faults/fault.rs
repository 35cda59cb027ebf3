//! The faults, and whom each of them harms.

use std::fmt;

/// One thing that goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Fault {
    /// SIGKILL of the daemon in mid-window, and a new start.
    DaemonKilled,
    /// SIGSTOP of the daemon beyond its lease. On PostgreSQL a second replica takes over; on SQLite it goes on itself.
    DaemonFrozen,
    /// SIGKILL of a broker's node, and a new start on its data.
    BrokerKilled,
    /// SIGSTOP of a broker's node for some seconds.
    BrokerFrozen,
    /// The connection is reset after a random number of bytes, in the middle of a message, three times.
    Cut,
    /// What is sent arrives, and every answer is lost; then the connection is reset.
    AnswersLost,
    /// The destination refuses for a while: nacks, throttling, a part of a batch.
    Refusing,
    /// Nobody listens when the daemon starts.
    Absent,
    /// The queue is unbound, or topic or stream is deleted and created again.
    Removed,
    /// The store is gone or stands still.
    StoreAway,
}

/// Whom a fault harms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Victim {
    /// The daemon itself.
    Daemon,
    /// The destination, or the way to it.
    Destination,
    /// The log's store.
    Store,
}

impl Fault {
    /// In the order of the table's columns.
    pub(crate) const ALL: [Fault; 10] = [
        Fault::DaemonKilled,
        Fault::DaemonFrozen,
        Fault::BrokerKilled,
        Fault::BrokerFrozen,
        Fault::Cut,
        Fault::AnswersLost,
        Fault::Refusing,
        Fault::Absent,
        Fault::Removed,
        Fault::StoreAway,
    ];

    /// Whom it harms.
    pub(crate) fn victim(self) -> Victim {
        match self {
            Fault::DaemonKilled | Fault::DaemonFrozen => Victim::Daemon,
            Fault::StoreAway => Victim::Store,
            _ => Victim::Destination,
        }
    }

    /// Whether the sink cannot go on while it lasts; `Cut` lets it.
    pub(crate) fn stops_delivery(self) -> bool {
        self.victim() == Victim::Destination && self != Fault::Cut
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Fault::DaemonKilled => "daemon killed",
            Fault::DaemonFrozen => "daemon frozen past its lease",
            Fault::BrokerKilled => "broker killed",
            Fault::BrokerFrozen => "broker frozen",
            Fault::Cut => "connection cut",
            Fault::AnswersLost => "answers lost",
            Fault::Refusing => "refusing",
            Fault::Absent => "absent at start",
            Fault::Removed => "topology removed",
            Fault::StoreAway => "store away",
        })
    }
}
