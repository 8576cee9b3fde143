//! The node as its HTTP API sees it: a view on the parts as they come up. Must not
//! control them.

use std::collections::{BTreeMap, HashMap};
use std::io::{Read, Seek, SeekFrom};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use crate::archive::Writer;
use crate::db::Database;
use crate::fuse::Mount;
use crate::object::{Counted, ObjectStore, Totals};
use crate::peer::{
    ArchiveState, ArchiveStatus, DatabaseStatus, Events, Export, Health, Info, MountStatus, Primary, Role,
    Service, ServiceError, Status, Subscription,
};
use crate::store::{self, Store};
use crate::words::{DbName, Pos, Timestamp};

use super::publish::{Publisher, Standing};

/// The parts that come up one after the other.
#[derive(Default)]
pub(super) struct Parts {
    pub stage: Stage,
    pub writer: Option<Arc<Writer>>,
    pub publisher: Option<Arc<Publisher>>,
    pub mount: Option<Arc<Mount>>,
    /// Why the node waits, while it starts.
    pub waiting_for: Option<String>,
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
    pub mount_path: PathBuf,
    pub hostname: String,
    pub candidate: bool,
    pub started: Timestamp,
    pub events: Events,
    pub parts: RwLock<Parts>,
    pub imports: AtomicU64,
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

    fn archive_status(&self) -> ArchiveStatus {
        let totals = self.storage.totals();
        let waiting = self.parts(|parts| parts.waiting_for.clone());
        let standing = self.parts(|parts| parts.publisher.as_ref().map(|publisher| publisher.standing()));
        let standing = standing.unwrap_or(match waiting {
            Some(why) => Standing { state: ArchiveState::Unreachable, error: Some(why) },
            None => Standing { state: ArchiveState::Synced, error: None },
        });
        let unpublished = self.store.commits().unpublished() > 0;
        let state = match standing.state {
            ArchiveState::Synced if unpublished => ArchiveState::Uploading,
            ArchiveState::Uploading if !unpublished => ArchiveState::Synced,
            state => state,
        };
        ArchiveStatus {
            url: self.storage.describe(),
            state,
            error: standing.error,
            requests: by_name(&totals),
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

impl Service for NodeService {
    fn info(&self) -> Info {
        let primary = match self.store.role() {
            store::Role::Replica { primary: Some(hostname) } => {
                Some(Primary { hostname, advertise_url: None })
            }
            store::Role::Primary | store::Role::Replica { primary: None } => None,
        };
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
            lag_ms: (self.role() == Role::Primary).then_some(0),
            mount: MountStatus { path: self.mount_path.display().to_string(), mounted, passthrough },
            archive: self.archive_status(),
            databases: databases.iter().map(|database| self.database_status(database, &unarchived)).collect(),
            parked: self.store.parked_count(),
        }
    }

    fn health(&self) -> Health {
        let stage = self.parts(|parts| parts.stage);
        match stage {
            Stage::Serving => Health::Ready,
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
        match self.store.role() {
            store::Role::Primary => Ok(()),
            _ => Err(ServiceError::NotReady("this node does not hold the lease yet".to_owned())),
        }
    }

    fn handoff(&self, _node: &str) -> Result<(), ServiceError> {
        Err(ServiceError::NotSupported(
            "this version cannot hand the lease over: stop this node, and another candidate has it at once (with \
             lease.type = \"static\" the configuration alone decides)"
                .to_owned(),
        ))
    }

    fn subscribe(&self) -> Subscription {
        self.events.subscribe()
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
