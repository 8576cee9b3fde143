//! What a stream needs of the primary: its change sets, one after the other.

use std::io::{self, Write};
use std::time::Duration;

use crate::peer::wire::{Beat, ChangeHead, Ending, Welcome};
use crate::words::{DbName, Pos};

/// What one replica is to be told, in order. One thread asks; others may say where the
/// replica stands meanwhile.
pub trait Feed: Send + Sync {
    /// Who the primary is.
    fn welcome(&self) -> Welcome;

    /// What comes next; waits for it up to `patience`, and gives a beat then.
    ///
    /// # Errors
    /// A text for the log: the stream ends without an ending, and the replica comes
    /// back.
    fn next(&self, patience: Duration) -> Result<Item, String>;

    /// The replica stands there. Must return at once.
    fn at(&self, positions: Vec<(DbName, Pos)>);

    /// Nobody listens any more: ends a wait. Must return at once.
    fn close(&self);
}

/// What a replica is told.
pub enum Item {
    /// A change set.
    Change(OutgoingChange),
    /// Everything committed before is said.
    Beat(Beat),
    /// Where databases stand in the archive.
    Archived(Vec<(DbName, Pos)>),
    /// The primary is looking for what comes next.
    Busy,
    /// The archive knows what lies between the replica's position and this.
    Settle {
        /// The database.
        db: DbName,
        /// The primary's position.
        pos: Pos,
    },
    /// Nothing follows.
    End(Ending),
}

/// Writes a change set's LTX.
pub type WriteLtx = Box<dyn FnOnce(&mut dyn Write) -> io::Result<()> + Send>;

/// A change set on its way out.
pub struct OutgoingChange {
    /// What it does.
    pub head: ChangeHead,
    /// Writes its LTX, a page at a time. A write that fails ends it.
    pub write: WriteLtx,
}
