//! The lease: who may write, one node at a time. A node says what it wants, the lease
//! says how it stands. Must not know databases or the archive: that an old holder
//! cannot write is the archive's doing, a lease only decides who tries, and when.

mod consul;
mod fixed;
mod record;
mod storage;

pub use consul::{ConsulLease, ConsulLeaseOptions, ConsulPlace};
pub use fixed::StaticLease;
#[cfg(test)]
pub(crate) use storage::SteppedLease;
pub use storage::{LEASE_KEY, StorageLease, StorageLeaseOptions};

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::words::{Epoch, NodeId};

/// A node of the cluster, as the lease names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Member {
    /// Its id.
    pub node: NodeId,
    /// Its name for people and `.primary`.
    pub hostname: String,
    /// Where others reach its API.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advertise_url: Option<String>,
    /// Where others' proxies reach its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxy_url: Option<String>,
}

/// What a node wants of the lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// Not to hold it; one that is held is released.
    Nothing,
    /// To hold it, as soon as it can be had, in an epoch after this (the archive's:
    /// it may have seen epochs that this lease has not given).
    Hold {
        /// The last epoch that the archive has seen.
        after: Epoch,
    },
    /// To give it to this node; others get it only if that one does not take it.
    GiveTo(NodeId),
}

/// Who holds the lease, as far as this node knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Holder {
    /// Nothing is known yet.
    Unknown,
    /// Nobody: never taken, released, or ours and run out.
    Nobody,
    /// This node.
    This {
        /// Its epoch.
        epoch: Epoch,
        /// Until when (by the clock's `elapsed`), unless it is renewed.
        until: Duration,
    },
    /// Another node, or it did when it was last looked at.
    Other {
        /// That node.
        member: Member,
        /// Its epoch.
        epoch: Epoch,
        /// Whether it was seen to renew since this node looks: it is at work, and does
        /// not only stand there from before it died.
        alive: bool,
    },
}

impl Holder {
    /// The epoch that this node holds, if it does.
    pub fn this(&self) -> Option<Epoch> {
        match self {
            Holder::This { epoch, .. } => Some(*epoch),
            _ => None,
        }
    }
}

/// How the lease stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Who holds it.
    pub holder: Holder,
    /// What this node wants.
    pub want: Want,
    /// Whether what is wanted is not yet reached.
    pub busy: bool,
    /// What keeps it from being reached or known, for people; gone with the next success.
    pub trouble: Option<String>,
}

/// A lease. Nothing here waits for the storage but `wait` and the drop; a lease that
/// was not released when it is dropped runs out.
pub trait Lease: Send + Sync {
    /// Says what this node wants from now on. With anything but `Hold` the lease is
    /// not held any more when this returns, whatever the storage still says.
    fn want(&self, want: Want);

    /// How it stands now.
    fn standing(&self) -> Standing;

    /// Asks the storage who holds it, though nothing is wanted.
    fn look(&self);

    /// Waits until `enough` says so of how it stands; looks again at every change,
    /// running out included. `None` when the time is up.
    fn wait(&self, timeout: Duration, enough: &mut dyn FnMut(&Standing) -> bool) -> Option<Standing>;
}

#[cfg(test)]
mod conformance;
