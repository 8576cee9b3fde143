//! What the proxy needs of the node: a trait, and the plain data that crosses it. Must
//! not know HTTP.

use tokio::sync::watch;

use super::upstream::Address;
use crate::words::{DbName, Pos};

/// The node, as its proxy sees it. Only `settled_pos` may block.
pub trait View: Send + Sync + 'static {
    /// What this node is now.
    fn role(&self) -> Role;

    /// Where a database stands for who reads it here: [`Pos::ZERO`] for one that is not
    /// there.
    fn pos(&self, db: &DbName) -> Pos;

    /// The same, after everything that was committed here is captured. May block.
    fn settled_pos(&self, db: &DbName) -> Result<Pos, String>;

    /// Marked as changed at every change of the role or of a position, after it.
    fn changes(&self) -> watch::Receiver<()>;

    /// Whether this node may serve, else why not.
    fn health(&self) -> Result<(), String>;

    /// A request needs a primary and there is none: this node should become it, if it
    /// may. Called again and again; must return at once.
    fn want_primary(&self);
}

/// What a node is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    /// It writes.
    Primary,
    /// Another node writes, or none.
    Replica {
        /// That node, if it is known.
        primary: Option<Primary>,
    },
}

/// Another node that is the primary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Primary {
    /// Its name.
    pub hostname: String,
    /// Where its proxy listens, if it says so.
    pub proxy: Option<Address>,
}

/// How writes get from a replica to the primary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forward {
    /// To the primary's proxy.
    Proxy,
    /// The router of Fly.io is told to repeat the request there.
    FlyReplay,
}
