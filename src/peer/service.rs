//! What the HTTP API needs of the node: a trait of blocking calls and the plain
//! data that crosses it. Must not know HTTP.

use std::collections::BTreeMap;
use std::io::Read;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::words::{ClusterId, DbName, Epoch, NodeId, PageSize, Pos, Timestamp};

use super::events::Subscription;
use super::halts::{HaltClaim, Halted};
use super::stream::Feed;
use super::wire::Hello;

/// The node, as the API sees it. Calls may block (they run on a pool of threads
/// for blocking work), and several run at once.
pub trait Service: Send + Sync + 'static {
    /// Who this node is.
    fn info(&self) -> Info;

    /// Everything a person asks for first when something looks wrong.
    fn status(&self) -> Status;

    /// Whether this node may serve requests now.
    fn health(&self) -> Health;

    /// Metrics in Prometheus' text format.
    fn metrics(&self) -> String {
        super::metrics::render(&self.info(), &self.status())
    }

    /// A stable image of a database, as of one position.
    fn export(&self, db: &DbName) -> Result<Export, ServiceError>;

    /// Replaces (or creates) a database by the file that `body` gives, as one
    /// transaction; nothing changes when the body ends early (a read error) or is
    /// no database. Returns the position after it.
    fn import(&self, db: &DbName, body: &mut dyn Read) -> Result<Pos, ServiceError>;

    /// Makes this node the primary, safely; returns when it is.
    fn promote(&self) -> Result<(), ServiceError>;

    /// Gives the lease to another node, named by id or hostname; returns when it
    /// has it.
    fn handoff(&self, node: &str) -> Result<(), ServiceError>;

    /// The events from now on; see [`super::Events`].
    fn subscribe(&self) -> Subscription;

    /// What a replica that stands at these positions is to be told.
    fn feed(&self, replica: &Hello, positions: Vec<(DbName, Pos)>) -> Result<Arc<dyn Feed>, ServiceError>;

    /// Gives the halt lock of a database to a replica: applications wait here.
    fn halt(&self, claim: &HaltClaim) -> Result<Halted, ServiceError> {
        Err(no_halt(&claim.db))
    }

    /// The replica still needs it.
    fn renew_halt(&self, claim: &HaltClaim) -> Result<(), ServiceError> {
        Err(no_halt(&claim.db))
    }

    /// The replica does not need it any more.
    fn end_halt(&self, claim: &HaltClaim) -> Result<(), ServiceError> {
        Err(no_halt(&claim.db))
    }

    /// A transaction of the replica that has the lock, which leads to `post`. It is part of
    /// the chain when this returns.
    fn take_tx(&self, claim: &HaltClaim, post: Pos, ltx: &mut dyn Read) -> Result<(), ServiceError> {
        let _ = (post, ltx);
        Err(no_halt(&claim.db))
    }
}

fn no_halt(db: &DbName) -> ServiceError {
    ServiceError::NotSupported(format!("this node gives the halt lock of {db} to nobody"))
}

/// A whole database to read: `size` bytes as of `pos`.
pub struct Export {
    /// The position that the image shows.
    pub pos: Pos,
    /// Its length in bytes; the reader gives exactly as many.
    pub size: u64,
    /// The image. Dropped early when the client goes away.
    pub reader: Box<dyn Read + Send>,
}

/// Who a node is (`GET /info`; names as LiteFS has them, and more).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Info {
    /// The cluster, once known.
    #[serde(rename = "clusterID", skip_serializing_if = "Option::is_none", default)]
    pub cluster: Option<ClusterId>,
    /// This node.
    #[serde(rename = "nodeID")]
    pub node: NodeId,
    /// This node's hostname, as other nodes and `.primary` name it.
    pub hostname: String,
    /// Whether it is the primary.
    pub is_primary: bool,
    /// Whether it may become primary.
    pub candidate: bool,
    /// The mount.
    pub path: String,
    /// The primary, when this node is not it and knows it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub primary: Option<Primary>,
    /// The program's version.
    pub version: String,
}

/// Another node that is the primary.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Primary {
    /// Its hostname.
    pub hostname: String,
    /// Where its API listens, if it says so.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub advertise_url: Option<String>,
}

/// What a node is in its cluster right now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Not yet at the head of the chain: restoring, or waiting for storage.
    Starting,
    /// The one that writes.
    Primary,
    /// Reads, follows the primary or the archive.
    Replica,
    /// Draining to the archive on the way out.
    Stopping,
}

impl Role {
    /// The role in lower case.
    pub fn as_str(self) -> &'static str {
        match self {
            Role::Starting => "starting",
            Role::Primary => "primary",
            Role::Replica => "replica",
            Role::Stopping => "stopping",
        }
    }
}

impl std::fmt::Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

/// The state of a node (`GET /status`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// What it is now.
    pub role: Role,
    /// Hostname of the primary, this node's own if it is it; `None` when unknown.
    pub primary: Option<String>,
    /// The epoch of the lease that this node knows of.
    pub epoch: Option<Epoch>,
    /// This node.
    #[serde(rename = "nodeID")]
    pub node: NodeId,
    /// The cluster, once known.
    #[serde(rename = "clusterID")]
    pub cluster: Option<ClusterId>,
    /// The program's version.
    pub version: String,
    /// When it started.
    pub started: Timestamp,
    /// How far this node is behind the primary, in milliseconds; `None` if it
    /// never heard of one. Zero on the primary.
    pub lag_ms: Option<u64>,
    /// Its mount.
    pub mount: MountStatus,
    /// The archive.
    pub archive: ArchiveStatus,
    /// The databases, by name.
    pub databases: Vec<DatabaseStatus>,
    /// Branches that lost and are kept.
    #[serde(default)]
    pub parked: u64,
    /// The replicas that follow this node, if it is the primary.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub replicas: Vec<ReplicaStatus>,
}

/// The mount of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MountStatus {
    /// Where.
    pub path: String,
    /// Whether it is served.
    pub mounted: bool,
    /// Whether journal, WAL and shm files go through the kernel directly.
    pub passthrough: bool,
}

/// What a node's archive is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ArchiveState {
    /// Everything that should be there is there.
    Synced,
    /// Change sets are on their way.
    Uploading,
    /// Storage is out of reach or slow; tried again by itself.
    Unreachable,
    /// Storage refuses this node (rights, credentials, epoch): someone must act.
    Refused,
}

impl ArchiveState {
    /// The state in lower case.
    pub fn as_str(self) -> &'static str {
        match self {
            ArchiveState::Synced => "synced",
            ArchiveState::Uploading => "uploading",
            ArchiveState::Unreachable => "unreachable",
            ArchiveState::Refused => "refused",
        }
    }
}

/// The archive as a node sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ArchiveStatus {
    /// Its address, without credentials.
    pub url: String,
    /// What it is doing.
    pub state: ArchiveState,
    /// The last failure, while it lasts.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub error: Option<String>,
    /// Requests by kind (get, put, list, …) since the start.
    pub requests: BTreeMap<String, u64>,
    /// Change sets that it does not have yet.
    #[serde(default)]
    pub unarchived: u64,
    /// Bytes of their pages.
    #[serde(default)]
    pub unarchived_bytes: u64,
    /// When the oldest of them was committed.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub oldest: Option<Timestamp>,
    /// So many bytes of them may be.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub backlog: Option<u64>,
    /// There are as many: writes are refused.
    #[serde(default)]
    pub full: bool,
    /// Bytes put since the start.
    pub bytes_out: u64,
    /// Bytes got since the start.
    pub bytes_in: u64,
}

/// A replica that follows a primary.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ReplicaStatus {
    /// Its id.
    pub node: NodeId,
    /// Its hostname.
    pub hostname: String,
    /// Transactions that it has not said that it has.
    pub behind: u64,
}

/// One database on a node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DatabaseStatus {
    /// Its name.
    pub name: DbName,
    /// Where it stands here.
    pub pos: Pos,
    /// The size of its pages; `None` while it has none.
    pub page_size: Option<PageSize>,
    /// How many pages it has.
    pub pages: u32,
    /// Transactions that the archive does not have yet.
    pub unarchived: u64,
    /// Where it stands in the archive.
    pub archived: Pos,
    /// The time of its last transaction.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub modified: Option<Timestamp>,
    /// Transactions committed or applied by this process.
    #[serde(default)]
    pub commits: u64,
    /// The share of its pages that is here, from 0 to 1.
    #[serde(default = "whole")]
    pub hydrated: f64,
}

fn whole() -> f64 {
    1.0
}

/// Whether a node may serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// It may.
    Ready,
    /// It may not, because of this.
    NotReady(String),
}

/// Why the node did not do what the API was asked. The text is complete: what,
/// on what, what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ServiceError {
    /// There is no such database.
    #[error("there is no database {0} on this node; `litefs status` lists those there are")]
    NoDatabase(DbName),
    /// Only the primary can do it.
    #[error("this node is not the primary{}; ask the primary",
        .primary.as_ref().map_or(String::new(), |primary| format!(" ({primary} is)")))]
    NotPrimary {
        /// The primary, if known.
        primary: Option<String>,
    },
    /// The node's configuration rules it out (a static lease, no candidate).
    #[error("{0}")]
    NotSupported(String),
    /// Not now: starting, stopping, storage out of reach. Later may work.
    #[error("{0}")]
    NotReady(String),
    /// What was sent is no database, or no node, or does not fit.
    #[error("{0}")]
    BadInput(String),
    /// It failed.
    #[error("{0}")]
    Failed(String),
}
