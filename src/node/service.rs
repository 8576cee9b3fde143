//! The node as its HTTP API sees it: a view on the parts as they come up. Must not
//! control them.

use std::collections::{BTreeMap, HashMap};
use std::io::{Read, Seek, SeekFrom};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, mpsc};
use std::time::Duration;

use crate::archive::Writer;
use crate::db::Database;
use crate::fuse::Mount;
use crate::lease::Member;
use crate::object::{Counted, ObjectStore, Totals};
use crate::peer::stream::Feed;
use crate::peer::wire::Hello;
use crate::peer::{
    ArchiveState, ArchiveStatus, DatabaseStatus, Event, Events, Export, HaltClaim, Halted, Health, Info,
    MountStatus, Primary, ReplicaStatus, Role, Service, ServiceError, Status, Subscription, TxData,
};
use crate::store::{self, Store};
use crate::words::{DbName, NodeId, Pos, Timestamp};

use super::feed::{Feeds, Replica};
use super::halt::Keeper;
use super::publish::{Publisher, Standing};
use super::roles::Reply;
use super::run::Notice;

/// How long a change of the primary is waited for.
const CHANGE: Duration = Duration::from_secs(60);

/// The parts that come up one after the other.
#[derive(Default)]
pub(super) struct Parts {
    pub stage: Stage,
    pub writer: Option<Arc<Writer>>,
    pub publisher: Option<Arc<Publisher>>,
    pub mount: Option<Arc<Mount>>,
    /// What replicas are told, while this node is the primary.
    pub feeds: Option<Feeds>,
    /// Which of them may write.
    pub halts: Option<Arc<Keeper>>,
    /// Why the node waits, while it starts.
    pub waiting_for: Option<String>,
    /// The primary, where it is another node and known.
    pub primary: Option<Member>,
    /// Serving what was here at the start: the archive could not be read since.
    pub stale: bool,
}

/// How far the node is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Stage {
    #[default]
    Starting,
    Serving,
    Stopping,
}

/// The node behind the API.
pub(super) struct NodeService {
    pub store: Arc<Store>,
    pub storage: Arc<Counted>,
    /// The same, by the lease's own connections.
    pub lease_storage: Option<Arc<Counted>>,
    pub mount_path: PathBuf,
    pub hostname: String,
    pub candidate: bool,
    /// The configuration alone says which node is the primary.
    pub fixed_lease: bool,
    pub started: Timestamp,
    pub events: Events,
    pub parts: RwLock<Parts>,
    pub imports: AtomicU64,
    pub notices: mpsc::Sender<Notice>,
}

impl NodeService {
    pub fn parts<T>(&self, look: impl FnOnce(&Parts) -> T) -> T {
        look(&self.parts.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub fn update(&self, change: impl FnOnce(&mut Parts)) {
        change(&mut self.parts.write().unwrap_or_else(PoisonError::into_inner));
    }

    fn role(&self) -> Role {
        match (self.parts(|parts| parts.stage), self.store.role()) {
            (Stage::Starting, _) => Role::Starting,
            (Stage::Stopping, _) => Role::Stopping,
            (Stage::Serving, store::Role::Primary) => Role::Primary,
            (Stage::Serving, _) => Role::Replica,
        }
    }

    fn primary(&self) -> Option<String> {
        match self.store.role() {
            store::Role::Primary => Some(self.hostname.clone()),
            store::Role::Replica { primary } => primary,
        }
    }

    fn replicas(&self) -> Vec<ReplicaStatus> {
        let feeds = self.parts(|parts| parts.feeds.clone());
        let replicas = feeds.map_or(Vec::new(), |feeds| feeds.replicas());
        let status = |replica: &Arc<Replica>| ReplicaStatus {
            node: replica.node(),
            hostname: replica.hostname().to_owned(),
            behind: replica.behind(),
        };
        replicas.iter().map(status).collect()
    }

    fn lag_ms(&self) -> Option<u64> {
        let lag = match self.store.role() {
            store::Role::Primary => Some(Duration::ZERO),
            store::Role::Replica { .. } => self.store.lag(),
        };
        lag.map(|lag| u64::try_from(lag.as_millis()).unwrap_or(u64::MAX))
    }

    fn archive_status(&self) -> ArchiveStatus {
        let totals = self.storage.totals();
        let mut requests = by_name(&totals);
        if let Some(lease) = &self.lease_storage {
            requests.insert("lease".to_owned(), lease.totals().calls());
        }
        let waiting = self.parts(|parts| parts.waiting_for.clone());
        let standing = self.parts(|parts| parts.publisher.as_ref().map(|publisher| publisher.standing()));
        let standing = standing.unwrap_or(match waiting {
            Some(why) => Standing { state: ArchiveState::Unreachable, error: Some(why) },
            None => Standing { state: ArchiveState::Synced, error: None },
        });
        let backlog = self.store.commits().backlog();
        let unpublished = backlog.count > 0;
        let state = match standing.state {
            ArchiveState::Synced if unpublished => ArchiveState::Uploading,
            ArchiveState::Uploading if !unpublished => ArchiveState::Synced,
            state => state,
        };
        ArchiveStatus {
            url: self.storage.describe(),
            state,
            error: standing.error,
            requests,
            unarchived: backlog.count,
            unarchived_bytes: backlog.bytes,
            oldest: backlog.oldest,
            backlog: backlog.limit,
            full: backlog.full,
            bytes_out: totals.bytes_written(),
            bytes_in: totals.bytes_read(),
        }
    }

    fn database_status(&self, database: &Database, unarchived: &HashMap<DbName, u64>) -> DatabaseStatus {
        let name = database.name().clone();
        let (page_size, pages) = database.shape();
        let writer = self.parts(|parts| parts.writer.clone());
        let standing = writer.and_then(|writer| writer.with_head(|head| head.standing(&name).copied()));
        DatabaseStatus {
            pos: database.pos(),
            page_size,
            pages,
            unarchived: unarchived.get(&name).copied().unwrap_or(0),
            archived: standing.map_or(Pos::ZERO, |standing| standing.pos),
            modified: standing.map(|standing| standing.timestamp),
            commits: database.captured(),
            hydrated: 1.0,
            name,
        }
    }
}

impl NodeService {
    /// Asks the node to change its role, and waits until it has.
    fn request(&self, notice: impl FnOnce(Reply) -> Notice) -> Result<(), ServiceError> {
        if self.parts(|parts| parts.stage) != Stage::Serving {
            return Err(ServiceError::NotReady("the node is starting or stopping".to_owned()));
        }
        let (reply, answer) = mpsc::sync_channel(1);
        let stopping = || ServiceError::NotReady("the node is stopping".to_owned());
        self.notices.send(notice(reply)).map_err(|_| stopping())?;
        match answer.recv_timeout(CHANGE) {
            Ok(answer) => answer,
            Err(mpsc::RecvTimeoutError::Disconnected) => Err(stopping()),
            Err(mpsc::RecvTimeoutError::Timeout) => Err(ServiceError::NotReady(match self.primary() {
                Some(primary) => format!("{primary} still holds the lease; stop it, or try again"),
                None => "the lease could not be had yet; see the log".to_owned(),
            })),
        }
    }
}

impl NodeService {
    /// The replica of this name; several may have the same.
    fn node_of(&self, hostname: &str) -> Result<NodeId, ServiceError> {
        let replicas = self.replicas();
        let mut named = replicas.iter().filter(|replica| replica.hostname == hostname);
        match (named.next(), named.next()) {
            (Some(replica), None) => Ok(replica.node),
            (Some(_), Some(_)) => Err(ServiceError::BadInput(format!(
                "several replicas have the hostname {hostname:?}: name one by its node id (`litefs status`)"
            ))),
            (None, _) => Err(ServiceError::BadInput(format!(
                "{hostname:?} is neither a node id nor the hostname of a replica that follows this node (`litefs status` \
                 lists them)"
            ))),
        }
    }

    /// Who gives halt locks, to a replica of this cluster.
    fn keeper(&self, claim: &HaltClaim) -> Result<Arc<Keeper>, ServiceError> {
        if self.store.cluster() != Some(claim.cluster) || claim.node == self.store.node_id() {
            return Err(ServiceError::NotSupported(format!(
                "node {} of cluster {} is no replica of this node",
                claim.node, claim.cluster
            )));
        }
        let keeper =
            self.parts(|parts| (parts.stage == Stage::Serving).then(|| parts.halts.clone()).flatten());
        let keeper = keeper.filter(|_| self.store.role() == store::Role::Primary);
        keeper.ok_or_else(|| ServiceError::NotPrimary { primary: self.primary() })
    }
}

impl Service for NodeService {
    fn info(&self) -> Info {
        let primary = self.parts(|parts| parts.primary.clone());
        let primary =
            primary.map(|Member { hostname, advertise_url, .. }| Primary { hostname, advertise_url });
        Info {
            cluster: self.store.cluster(),
            node: self.store.node_id(),
            hostname: self.hostname.clone(),
            is_primary: self.store.role() == store::Role::Primary,
            candidate: self.candidate,
            path: self.mount_path.display().to_string(),
            primary,
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }

    fn status(&self) -> Status {
        let unarchived = self.store.commits().unpublished_by_database();
        let databases = self.store.databases();
        let (mounted, passthrough) = self.parts(|parts| match &parts.mount {
            Some(mount) => (true, mount.passthrough()),
            None => (false, false),
        });
        Status {
            role: self.role(),
            primary: self.primary(),
            epoch: self.parts(|parts| parts.writer.as_ref().map(|writer| writer.epoch())),
            node: self.store.node_id(),
            cluster: self.store.cluster(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started: self.started,
            lag_ms: self.lag_ms(),
            mount: MountStatus { path: self.mount_path.display().to_string(), mounted, passthrough },
            archive: self.archive_status(),
            databases: databases.iter().map(|database| self.database_status(database, &unarchived)).collect(),
            parked: self.store.parked_count(),
            replicas: self.replicas(),
        }
    }

    fn health(&self) -> Health {
        let stage = self.parts(|parts| parts.stage);
        match stage {
            Stage::Serving if self.store.commits().backlog().full => Health::NotReady(
                "the backlog of what the archive does not have is full: writes are refused".to_owned(),
            ),
            Stage::Serving => match self.parts(|parts| parts.stale.then(|| parts.waiting_for.clone())) {
                None => Health::Ready,
                Some(why) => Health::NotReady(format!(
                    "the node serves what it had when it started: {}",
                    why.as_deref().unwrap_or("its archive cannot be read")
                )),
            },
            Stage::Stopping => Health::NotReady("the node is stopping".to_owned()),
            Stage::Starting => Health::NotReady(match self.parts(|parts| parts.waiting_for.clone()) {
                Some(why) => format!("the node waits for its archive: {why}"),
                None => "the node is starting".to_owned(),
            }),
        }
    }

    fn metrics(&self) -> String {
        let mut page = crate::peer::render_metrics(&self.info(), &self.status());
        if let Some(counts) = self.parts(|parts| parts.mount.as_ref().map(|mount| mount.counters())) {
            page.push_str("# HELP litefs_fuse_requests requests of the kernel to the mount, by operation\n");
            page.push_str("# TYPE litefs_fuse_requests counter\n");
            for (op, count) in counts.nonzero() {
                page.push_str(&format!("litefs_fuse_requests{{op=\"{}\"}} {count}\n", op.name()));
            }
        }
        page
    }

    fn export(&self, db: &DbName) -> Result<Export, ServiceError> {
        let database = self.store.database(db).ok_or_else(|| ServiceError::NoDatabase(db.clone()))?;
        let failed = |error: String| ServiceError::Failed(format!("exporting database {db}: {error}"));
        let image = database.image(self.store.dir()).map_err(|error| failed(error.to_string()))?;
        let image = image.ok_or_else(|| ServiceError::NoDatabase(db.clone()))?;
        let mut file = image.file;
        file.seek(SeekFrom::Start(0)).map_err(|error| failed(error.to_string()))?;
        let size = u64::from(image.pages) * u64::from(image.page_size.get());
        Ok(Export { pos: image.pos, size, reader: Box::new(file) })
    }

    fn import(&self, db: &DbName, body: &mut dyn Read) -> Result<Pos, ServiceError> {
        if self.parts(|parts| parts.stage) != Stage::Serving {
            return Err(ServiceError::NotReady(
                "the node is not serving yet; try again when it is".to_owned(),
            ));
        }
        if self.store.role() != store::Role::Primary {
            return Err(ServiceError::NotPrimary { primary: self.primary() });
        }
        let unique = self.imports.fetch_add(1, Ordering::Relaxed);
        super::import::import(self.store.dir(), unique, &self.mount_path.join(db.as_str()), body)?;
        let database = self.store.database(db).ok_or_else(|| ServiceError::NoDatabase(db.clone()))?;
        database.current_pos().map_err(|error| ServiceError::Failed(error.to_string()))
    }

    fn promote(&self) -> Result<(), ServiceError> {
        if self.store.role() == store::Role::Primary {
            return Ok(());
        }
        if !self.candidate {
            return Err(ServiceError::NotSupported(
                "this node may not become the primary (lease.candidate = false)".to_owned(),
            ));
        }
        self.request(Notice::Promote)
    }

    fn handoff(&self, node: &str) -> Result<(), ServiceError> {
        if self.store.role() != store::Role::Primary {
            return Err(ServiceError::NotPrimary { primary: self.primary() });
        }
        if self.fixed_lease {
            return Err(ServiceError::NotSupported(
                "with lease.type = \"static\" the configuration alone decides which node is the primary"
                    .to_owned(),
            ));
        }
        let to = match node.parse() {
            Ok(id) => id,
            Err(_) => self.node_of(node)?,
        };
        self.request(|reply| Notice::Handoff(to, reply))
    }

    fn subscribe(&self) -> Subscription {
        self.events.subscribe()
    }

    fn feed(&self, replica: &Hello, positions: Vec<(DbName, Pos)>) -> Result<Arc<dyn Feed>, ServiceError> {
        if self.store.cluster() != Some(replica.cluster) {
            let own = self.store.cluster().map_or("none".to_owned(), |cluster| cluster.to_string());
            return Err(ServiceError::NotSupported(format!(
                "this node is of cluster {own}, node {} ({}) of cluster {}: nothing is sent to it",
                replica.node, replica.hostname, replica.cluster
            )));
        }
        if replica.node == self.store.node_id() {
            return Err(ServiceError::BadInput(
                "this node cannot follow itself: two nodes share a data directory or its copy, or advertise-url is \
                 that of another node"
                    .to_owned(),
            ));
        }
        let feeds = self.parts(|parts| parts.feeds.clone());
        let feeds = feeds.filter(|_| self.store.role() == store::Role::Primary);
        let feeds = feeds.ok_or_else(|| ServiceError::NotPrimary { primary: self.primary() })?;
        let failed = |why| ServiceError::Failed(format!("reading the change log for a replica: {why}"));
        feeds.open(replica.clone(), positions).map(|replica| replica as _).map_err(failed)
    }

    fn halt(&self, claim: &HaltClaim) -> Result<Halted, ServiceError> {
        self.keeper(claim)?.give(claim)
    }

    fn renew_halt(&self, claim: &HaltClaim) -> Result<(), ServiceError> {
        self.keeper(claim)?.renew(claim)
    }

    fn end_halt(&self, claim: &HaltClaim) -> Result<(), ServiceError> {
        self.keeper(claim)?.end(claim)
    }

    fn take_tx(&self, claim: &HaltClaim, post: Pos, ltx: &mut dyn Read) -> Result<(), ServiceError> {
        self.keeper(claim)?.take(claim, post, ltx)?;
        if let Some(database) = self.store.database(&claim.db) {
            let (page_size, commit) = database.shape();
            self.events.publish(Event::Tx {
                db: claim.db.clone(),
                data: TxData {
                    txid: post.txid,
                    post_apply_checksum: post.checksum,
                    page_size: page_size.map_or(0, |size| size.get()),
                    commit,
                    timestamp: self.store.now(),
                },
            });
        }
        Ok(())
    }
}

/// Requests by the names that status and metrics use.
fn by_name(totals: &Totals) -> BTreeMap<String, u64> {
    [
        ("get", totals.get.calls + totals.get_range.calls),
        ("head", totals.head.calls),
        ("put", totals.put.calls + totals.put_file.calls),
        ("delete", totals.delete.calls),
        ("list", totals.list.calls),
    ]
    .into_iter()
    .map(|(name, calls)| (name.to_owned(), calls))
    .collect()
}
