//! What can go wrong with the archive. Must not hold credentials.

use crate::ltx::LtxError;
use crate::object::{ObjectError, ObjectErrorKind};
use crate::words::{Checksum, ClusterId, DbName, Epoch, NodeId, Pgno, Pos, Seq, Txid};

/// A failed operation on the archive.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The object store failed.
    #[error(transparent)]
    Object(#[from] ObjectError),
    /// What is to be archived is no change set that can be.
    #[error("the change set of database {db} cannot be archived: {why}")]
    BadChange {
        /// Whose.
        db: DbName,
        /// What is wrong.
        why: String,
    },
    /// An object is not what it should be.
    #[error("object {key} of the archive is damaged: {why}; `litefs verify --deep` lists all damage")]
    Damaged {
        /// Its key.
        key: String,
        /// What is wrong with it.
        why: String,
    },
    /// An LTX in the archive cannot be read.
    #[error("reading object {key} of the archive failed: {source}")]
    Ltx {
        /// The key of the object that holds it.
        key: String,
        /// Why.
        source: LtxError,
    },
    /// The log is not one chain.
    #[error(transparent)]
    Chain(#[from] ChainFault),
    /// There are objects, but no manifest.
    #[error(
        "{store} holds objects of an archive ({example}) but no manifest.json; bring it back from a \
         version of the bucket, or use another prefix for a new archive"
    )]
    NoManifest {
        /// The store.
        store: String,
        /// One of the objects.
        example: String,
    },
    /// There is no archive.
    #[error(
        "{store} holds no archive; check the URL (a node with an empty data directory makes a new archive, one that \
         belongs to a cluster does not)"
    )]
    NoArchive {
        /// The store.
        store: String,
    },
    /// Someone else changed the manifest meanwhile.
    #[error("the manifest was changed by another node meanwhile; read the head again")]
    Conflict,
    /// There is no such database.
    #[error("the archive has no database {db}; `litefs history` lists them")]
    NoDatabase {
        /// The name asked for.
        db: DbName,
    },
    /// The point in time is not in the archive.
    #[error(
        "database {db} cannot be restored to {target}: {why}; `litefs history --name {db}` lists its points"
    )]
    NoSuchPoint {
        /// Which database.
        db: DbName,
        /// What was asked for.
        target: String,
        /// Why not.
        why: String,
    },
    /// A restored database is not what was archived.
    #[error(
        "restored database {db} has checksum {found} at {txid}, but {expected} was archived; `litefs verify --deep` finds the damaged object"
    )]
    Checksum {
        /// Which database.
        db: DbName,
        /// At which transaction.
        txid: Txid,
        /// What was archived.
        expected: Checksum,
        /// What came out.
        found: Checksum,
    },
    /// A page is in no object.
    #[error(
        "page {pgno} of database {db} is in no object of the archive; `litefs verify --deep` finds the gap"
    )]
    MissingPage {
        /// Which database.
        db: DbName,
        /// Which page.
        pgno: Pgno,
    },
    /// The local side failed.
    #[error("{attempt} failed: {source}")]
    Local {
        /// What was attempted, on which file.
        attempt: String,
        /// Why it failed.
        source: std::io::Error,
    },
    /// The caller asked to stop.
    #[error("the restore was cancelled")]
    Cancelled,
}

impl ArchiveError {
    /// Whether trying again later may succeed without anyone doing anything.
    pub fn is_transient(&self) -> bool {
        match self {
            ArchiveError::Object(error) => error.is_transient(),
            ArchiveError::Conflict => true,
            _ => false,
        }
    }

    /// Whether an object was gone that the head still names: upkeep has replaced it
    /// since; read the head again.
    pub fn is_outdated(&self) -> bool {
        matches!(self, ArchiveError::Object(error) if error.kind == ObjectErrorKind::NotFound)
            || matches!(self, ArchiveError::Conflict)
    }

    pub(super) fn damaged(key: &str, why: impl ToString) -> ArchiveError {
        ArchiveError::Damaged { key: key.to_owned(), why: why.to_string() }
    }

    pub(super) fn ltx(key: &str) -> impl FnOnce(LtxError) -> ArchiveError {
        let key = key.to_owned();
        move |source| ArchiveError::Ltx { key, source }
    }

    pub(super) fn local(attempt: impl ToString) -> impl FnOnce(std::io::Error) -> ArchiveError {
        let attempt = attempt.to_string();
        move |source| ArchiveError::Local { attempt, source }
    }
}

/// What breaks the chain of the log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChainFault {
    /// A segment is missing.
    #[error("segment {0} of the log is missing; bring it back from a version of the bucket")]
    Gap(Seq),
    /// A segment belongs to another cluster.
    #[error(
        "segment {seq} belongs to cluster {found}, this archive to {expected}; two clusters must not \
         share a prefix"
    )]
    OtherCluster {
        /// Which segment.
        seq: Seq,
        /// The archive's cluster.
        expected: ClusterId,
        /// The segment's.
        found: ClusterId,
    },
    /// A segment says that it is another.
    #[error("segment {0} says that it is segment {1}; someone copied or renamed objects of the log")]
    Number(Seq, Seq),
    /// A segment was written after another one than the one before it.
    #[error("segment {0} does not follow the segment before it; someone replaced an object of the log")]
    NotAfter(Seq),
    /// A segment of an epoch lower than one before it.
    #[error(
        "segment {seq} is of epoch {epoch}, but epoch {after} came before it; bring the bucket back to a version of before segment {seq}"
    )]
    OldEpoch {
        /// Which segment.
        seq: Seq,
        /// Its epoch.
        epoch: Epoch,
        /// The epoch before it.
        after: Epoch,
    },
    /// A segment of a writer that did not seal its epoch.
    #[error(
        "segment {seq} of epoch {epoch} was written by node {found}, but that epoch was begun by node {expected}"
    )]
    OtherWriter {
        /// Which segment.
        seq: Seq,
        /// Its epoch.
        epoch: Epoch,
        /// Who began the epoch.
        expected: NodeId,
        /// Who wrote the segment.
        found: NodeId,
    },
    /// A change set that does not begin where its database stands.
    #[error("segment {seq} takes database {db} from {wants}, but it stands at {stands}")]
    Position {
        /// Which segment.
        seq: Seq,
        /// Which database.
        db: DbName,
        /// Where it stands.
        stands: Pos,
        /// Where the change set begins.
        wants: Pos,
    },
    /// A page size that changes without all pages being rewritten.
    #[error("segment {seq} changes the page size of database {db} without rewriting all of it")]
    PageSize {
        /// Which segment.
        seq: Seq,
        /// Which database.
        db: DbName,
    },
}

/// Who fences a writer off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fence {
    /// The segment that it found taken.
    pub seq: Seq,
    /// The epoch of whoever took it.
    pub epoch: Epoch,
    /// The node that took it.
    pub node: NodeId,
}

impl std::fmt::Display for Fence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "node {} took segment {} in epoch {}", self.node, self.seq, self.epoch)
    }
}

/// Why change sets did not get into the log.
#[derive(Debug, thiserror::Error)]
pub enum PutError {
    /// Someone else is the writer now. Final: nothing more can be put in this epoch.
    #[error("this node no longer is the archive's writer: {by}; what is not archived has to be parked")]
    Fenced {
        /// Who.
        by: Fence,
    },
    /// The store could not be reached, or its reply was lost. Put again: what
    /// happened is found out then, nothing is put twice.
    #[error(transparent)]
    Unreachable(ObjectError),
    /// The store refuses, or does what it must not.
    #[error(transparent)]
    Refused(ArchiveError),
    /// A change set does not begin where the archive stands.
    #[error("the change set of database {db} begins at {wants}, but the archive stands at {stands}")]
    NotNext {
        /// Which database.
        db: DbName,
        /// Where the archive stands.
        stands: Pos,
        /// Where the change set begins.
        wants: Pos,
    },
}

impl From<ObjectError> for PutError {
    fn from(error: ObjectError) -> PutError {
        if error.is_transient() { PutError::Unreachable(error) } else { PutError::Refused(error.into()) }
    }
}

impl From<ArchiveError> for PutError {
    fn from(error: ArchiveError) -> PutError {
        match error {
            ArchiveError::Object(error) => error.into(),
            other => PutError::Refused(other),
        }
    }
}
