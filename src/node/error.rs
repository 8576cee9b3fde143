//! Why a node does not start or go on. Must not decide exit codes; it says whether
//! going on would be unsafe.

use crate::archive::{ArchiveError, Fence, PutError};
use crate::db::DbError;
use crate::fuse::MountError;
use crate::peer::ServeError;
use crate::proxy::ProxyError;
use crate::store::StoreError;
use crate::words::{ClusterId, DbName, Pos};

/// Why a node does not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The data directory.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A database.
    #[error(transparent)]
    Database(#[from] DbError),
    /// The archive.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// The archive does not take what this node writes.
    #[error(transparent)]
    Put(#[from] PutError),
    /// The mount.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// The HTTP API.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// The proxy.
    #[error(transparent)]
    Proxy(#[from] ProxyError),
    /// Archive and data directory belong to different clusters.
    #[error(
        "the data directory belongs to cluster {local}, but the archive {archive} is of cluster {found}: one of the \
         two is not the right one; nothing was changed (to let this node join the other cluster, give it another \
         data.dir)"
    )]
    OtherCluster {
        /// The data directory's.
        local: ClusterId,
        /// The archive's.
        found: ClusterId,
        /// The archive.
        archive: String,
    },
    /// A database cannot be brought to the head.
    #[error("database {db} cannot be brought to the archive's head: {why}")]
    Align {
        /// Which.
        db: DbName,
        /// Why.
        why: String,
    },
    /// A branch lost, and applications are in the mount.
    #[error(
        "database {db} is on a branch that lost (at {branch}): it is parked once applications are out of the mount"
    )]
    Diverged {
        /// Which.
        db: DbName,
        /// Where it stands.
        branch: Pos,
    },
    /// A system call failed.
    #[error("{attempt}: {source}")]
    Io {
        /// What was attempted.
        attempt: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// Two nodes that both are told to be the only one.
    #[error(
        "{by}, but with lease.type = \"static\" this node is to be the only one that writes the archive: stop the \
         other, or use lease.type = \"storage\" on both (what this node has not archived is in its data directory)"
    )]
    NotAlone {
        /// The other.
        by: Fence,
    },
    /// Asked to stop before it was up.
    #[error("stopped before it was up")]
    Stopped,
    /// Stopped with change sets that the archive does not have.
    #[error(
        "stopped with {count} change sets that the archive does not have ({why}): they are kept in {dir} and are \
         published when the node starts again on the same data directory"
    )]
    Unarchived {
        /// How many.
        count: usize,
        /// Why.
        why: String,
        /// The data directory.
        dir: String,
    },
}

impl NodeError {
    /// Whether going on, or starting again as it is, could do harm.
    pub fn is_unsafe(&self) -> bool {
        match self {
            NodeError::OtherCluster { .. } | NodeError::Align { .. } | NodeError::NotAlone { .. } => true,
            NodeError::Put(error) => !matches!(error, PutError::Unreachable(_)),
            NodeError::Archive(error) => !matches!(error, ArchiveError::Object(_) | ArchiveError::Cancelled),
            NodeError::Database(error) => matches!(error, DbError::Damaged { .. }),
            NodeError::Store(error) => match error {
                StoreError::Damaged { .. } => true,
                StoreError::Database(error) => matches!(error, DbError::Damaged { .. }),
                StoreError::InUse { .. } | StoreError::Io { .. } | StoreError::Log(_) => false,
            },
            NodeError::Mount(_)
            | NodeError::Serve(_)
            | NodeError::Diverged { .. }
            | NodeError::Proxy(_)
            | NodeError::Io { .. }
            | NodeError::Stopped
            | NodeError::Unarchived { .. } => false,
        }
    }

    pub(super) fn io(attempt: impl Into<String>) -> impl FnOnce(std::io::Error) -> NodeError {
        let attempt = attempt.into();
        move |source| NodeError::Io { attempt, source }
    }
}
