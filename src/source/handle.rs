//! Commands to the sources of this process.
//!
//! A command is a wish that the source's loop meets at its next step; asking twice is asking once. Only the owner of the
//! source can carry it out.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use catalog_bridge_api::SourceName;
use tokio::sync::Notify;

use super::{Source, SourceKind};

/// Why a command cannot be met.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// No such source.
    #[error("source \"{0}\" is not configured")]
    Unknown(String),
    /// This kind has nothing to reconcile.
    #[error("source \"{name}\" is of kind {protocol}, which has nothing to reconcile")]
    NotReconciled {
        /// The source.
        name: String,
        /// Its kind.
        protocol: &'static str,
    },
    /// Another replica owns it.
    #[error("source \"{name}\" is owned by {owner}: send the command to that replica")]
    NotOwner {
        /// The source.
        name: String,
        /// Who owns it, as far as known.
        owner: String,
    },
    /// No removals are held.
    #[error("source \"{0}\" holds no removals back: there is nothing to confirm")]
    NothingHeld(String),
}

/// Sends commands to the sources of this process. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Handle {
    sources: Arc<BTreeMap<String, (&'static str, Arc<Commands>)>>,
}

/// What is asked of one source, and what a command must know of it.
#[derive(Debug, Default)]
pub(super) struct Commands {
    reconcile: AtomicBool,
    /// How many removals were shown to whoever confirmed them; 0: nobody did.
    confirm: AtomicU64,
    held_removals: AtomicU64,
    /// `Some` while another replica owns the source, or nobody does.
    not_owned: Mutex<Option<String>>,
    woken: Notify,
}

impl Handle {
    pub(super) fn new(sources: &[Source]) -> Self {
        let entry = |source: &Source| {
            let commands = Commands::default();
            commands.set_other_owner(Some("nobody yet".to_owned()));
            (source.name.as_str().to_owned(), (source.kind.protocol(), Arc::new(commands)))
        };
        Handle { sources: Arc::new(sources.iter().map(entry).collect()) }
    }

    pub(super) fn commands(&self, name: &SourceName) -> Option<Arc<Commands>> {
        self.sources.get(name.as_str()).map(|(_, commands)| Arc::clone(commands))
    }

    /// Compares everything the catalog holds with the log, beginning at the source's next step.
    pub fn reconcile(&self, source: &str) -> Result<(), CommandError> {
        let commands = self.owned(source)?;
        commands.reconcile.store(true, Ordering::Release);
        commands.woken.notify_one();
        Ok(())
    }

    /// Lets the removals go on that the mass removal guard holds back. Returns how many there were.
    pub fn confirm_removals(&self, source: &str) -> Result<u64, CommandError> {
        let commands = self.owned(source)?;
        match commands.held_removals.load(Ordering::Acquire) {
            0 => Err(CommandError::NothingHeld(source.to_owned())),
            count => {
                commands.confirm.store(count, Ordering::Release);
                commands.woken.notify_one();
                Ok(count)
            }
        }
    }

    fn owned(&self, source: &str) -> Result<&Arc<Commands>, CommandError> {
        let (protocol, commands) = self.sources.get(source).ok_or_else(|| CommandError::Unknown(source.to_owned()))?;
        if *protocol == SourceKind::Ingest.protocol() {
            return Err(CommandError::NotReconciled { name: source.to_owned(), protocol });
        }
        match &*commands.not_owned.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(owner) => Err(CommandError::NotOwner { name: source.to_owned(), owner: owner.clone() }),
            None => Ok(commands),
        }
    }
}

impl Commands {
    /// Takes the wish for a reconcile.
    pub(super) fn take_reconcile(&self) -> bool {
        self.reconcile.swap(false, Ordering::AcqRel)
    }

    /// Takes the confirmation of held removals: how many were shown to whoever gave it.
    pub(super) fn take_confirm(&self) -> Option<u64> {
        Some(self.confirm.swap(0, Ordering::AcqRel)).filter(|count| *count > 0)
    }

    pub(super) fn set_held_removals(&self, count: u64) {
        self.held_removals.store(count, Ordering::Release);
    }

    pub(super) fn set_other_owner(&self, owner: Option<String>) {
        *self.not_owned.lock().unwrap_or_else(PoisonError::into_inner) = owner;
    }

    /// Resolves when a command came in. Cancel safe.
    pub(super) async fn woken(&self) {
        self.woken.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_reaches_only_an_owned_source_that_can_meet_it() {
        let name = SourceName::parse("orders").expect("a name");
        let handle = Handle::new(&[Source { name: name.clone(), kind: SourceKind::Ingest }]);
        assert!(matches!(handle.reconcile("orders"), Err(CommandError::NotReconciled { .. })));
        assert_eq!(handle.reconcile("x"), Err(CommandError::Unknown("x".to_owned())));

        let files = super::super::files::Settings::new("/nowhere");
        let handle = Handle::new(&[Source { name: name.clone(), kind: SourceKind::Files(files) }]);
        assert!(matches!(handle.reconcile("orders"), Err(CommandError::NotOwner { .. })));
        let commands = handle.commands(&name).expect("configured");
        commands.set_other_owner(None);
        assert_eq!(handle.confirm_removals("orders"), Err(CommandError::NothingHeld("orders".to_owned())));
        commands.set_held_removals(7);

        assert_eq!(handle.confirm_removals("orders"), Ok(7));
        assert_eq!(handle.reconcile("orders"), Ok(()));
        assert!(commands.take_confirm() == Some(7) && commands.take_reconcile());
        assert!(commands.take_confirm().is_none() && !commands.take_reconcile());
    }
}
