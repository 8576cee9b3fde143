//! What a node is told. Plain data; must not read files.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::archive;
use crate::exec;
use crate::fuse::MountOptions;
use crate::lease::ConsulPlace;
use crate::object::ObjectStore;
use crate::proxy::{Address, ProxyOptions};
use crate::store::LogRetention;
use crate::words::{Clock, Faults};

/// What to do when the storage cannot be reached at start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum OnUnreachable {
    /// Wait for it, and say so.
    #[default]
    Wait,
    /// Serve reads from what is here; never take the lease before it answers.
    ServeStale,
}

/// When a commit counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Durability {
    /// When it is as durable on this machine as the application asked.
    #[default]
    Async,
    /// When the archive has it.
    Archive,
}

/// Who decides which node writes.
pub enum LeaseChoice {
    /// The configuration: this node, and no other.
    Static,
    /// An object in the archive's storage.
    Storage {
        /// The storage, by connections of its own.
        store: Arc<dyn ObjectStore>,
        /// How long a term holds without renewal.
        ttl: Duration,
    },
    /// A key in Consul.
    Consul {
        /// The agent and the key.
        place: ConsulPlace,
        /// How long a session holds without renewal.
        ttl: Duration,
        /// How long nobody gets the lease after a session was lost.
        lock_delay: Duration,
    },
}

/// The proxy before the application.
pub struct ProxyChoice {
    /// How it works.
    pub options: ProxyOptions,
    /// Where the proxies of other nodes reach it.
    pub advertise: Option<Address>,
    /// How far behind a healthy node may be; zero for any.
    pub max_lag: Duration,
}

/// What a node is told.
pub struct NodeOptions {
    /// The mount.
    pub mount: MountOptions,
    /// The data directory.
    pub data: PathBuf,
    /// How long the change log is kept for others.
    pub log_retention: LogRetention,
    /// The archive's storage.
    pub storage: Arc<dyn ObjectStore>,
    /// How the archive is kept.
    pub archive: archive::Options,
    /// Segments are put no more often than this, unless commits wait for them.
    pub sync_interval: Duration,
    /// When a commit counts.
    pub durability: Durability,
    /// So many bytes of change sets may wait for the archive; then writes are refused.
    pub backlog: Option<u64>,
    /// What to do when the storage cannot be reached at start.
    pub on_unreachable: OnUnreachable,
    /// How long stopping may take.
    pub shutdown_timeout: Duration,
    /// Who decides which node writes.
    pub lease: LeaseChoice,
    /// What other nodes and `.primary` call this one.
    pub hostname: String,
    /// Where other nodes reach this one's API.
    pub advertise_url: Option<String>,
    /// The proxy before the application.
    pub proxy: Option<ProxyChoice>,
    /// Whether it may become primary.
    pub candidate: bool,
    /// Whether it asks the primary for the lease once it stands at the head.
    pub promote: bool,
    /// It gives the lease away after so much time without a write; zero: never.
    pub release_on_idle: Duration,
    /// Where the HTTP API listens, and its token.
    pub http: (SocketAddr, Option<String>),
    /// The commands to run.
    pub exec: Vec<exec::Command>,
    /// The clock.
    pub clock: Arc<dyn Clock>,
    /// Fail points.
    pub faults: Faults,
}
