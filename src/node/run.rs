//! Running a node: the order in which its parts come up and go down.
//!
//! Up: data directory recovered, API answering, archive's head read, every database
//! aligned with it, lease held, log sealed, mounted, publisher, commands. Down, in
//! reverse: commands, mount, drain to the archive, lease, checkpoint. A signal in any
//! phase leads to the way down from there. A node that lost the lease goes down, too,
//! and starts over: what it could not publish is parked then.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, RwLock, mpsc};
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2};
use signal_hook::iterator::Signals;

use crate::archive::{Occasion, PutError, Writer};
use crate::exec::{self, Supervisor};
use crate::fuse::{Mount, Unmounted};
use crate::lease::{self, Lease, Member, StaticLease, StorageLease, StorageLeaseOptions, Want};
use crate::object::{Counted, ObjectStore};
use crate::peer::{Event, Events, Server, ServerOptions, TxData, serve};
use crate::store::{LogRetention, Role, Store, StoreOptions};
use crate::words::{Epoch, NodeId};

use super::images::Images;
use super::publish::{Publisher, Setup};
use super::service::{NodeService, Parts, Stage};
use super::upkeep::{Poke, Upkeep};
use super::{LeaseChoice, NodeError, NodeOptions};

/// How often a node that waits for the lease looks at it, at most.
const LONGEST_POLL: Duration = Duration::from_secs(2);

/// How long a stop waits for the storage to know that the lease is free: if it does
/// not, others wait for the term to end.
const RELEASE: Duration = Duration::from_secs(3);

/// Longer than any term: whatever happens to a lease wakes who waits for it.
const A_LONG_TIME: Duration = Duration::from_secs(1 << 30);

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// With this exit code.
    Exit(u8),
    /// It is not the primary any more: the program is to start over.
    Rejoin,
}

/// What ends a running node, or is passed on.
enum Notice {
    Signal(i32),
    Exec(exec::Ended),
    Unmounted,
    Failed(NodeError),
    LeaseLost,
}

/// Runs a node until it is told to stop or cannot go on. The exit code is that of the
/// commands, else 0.
pub fn run(options: NodeOptions) -> Result<Outcome, NodeError> {
    let (notices, inbox) = mpsc::channel();
    let stop = Arc::new(AtomicBool::new(false));
    listen_for_signals(notices.clone(), Arc::clone(&stop))?;
    let node = Node::open(options, notices, stop)?;
    let result = node.serve(&inbox);
    node.close(result)
}

fn listen_for_signals(notices: mpsc::Sender<Notice>, stop: Arc<AtomicBool>) -> Result<(), NodeError> {
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2])
        .map_err(NodeError::io("listening for signals"))?;
    let listen = move || {
        for signal in signals.forever() {
            stop.fetch_or(matches!(signal, SIGTERM | SIGINT | SIGQUIT), Ordering::AcqRel);
            if notices.send(Notice::Signal(signal)).is_err() {
                return;
            }
        }
    };
    let thread = std::thread::Builder::new().name("litefs-signals".to_owned());
    thread.spawn(listen).map(drop).map_err(NodeError::io("listening for signals"))
}

/// A node with its data directory open and its API answering.
pub(super) struct Node {
    pub(super) options: NodeOptions,
    pub(super) store: Arc<Store>,
    pub(super) service: Arc<NodeService>,
    server: Server,
    notices: mpsc::Sender<Notice>,
    stop: Arc<AtomicBool>,
    poke: Poke,
}

/// The parts of a node that serves.
struct Serving {
    mount: Arc<Mount>,
    publisher: Arc<Publisher>,
    upkeep: Upkeep,
    supervisor: Option<Supervisor>,
}

impl Node {
    fn open(
        mut options: NodeOptions,
        notices: mpsc::Sender<Notice>,
        stop: Arc<AtomicBool>,
    ) -> Result<Node, NodeError> {
        let storage = Arc::new(Counted::new(Arc::clone(&options.storage)));
        options.storage = Arc::clone(&storage) as Arc<dyn ObjectStore>;
        let started = Instant::now();
        let store = Arc::new(Store::open(StoreOptions {
            dir: options.data.clone(),
            boot_id: boot_id()?,
            new_node: NodeId::new((options.archive.random)()),
            clock: Arc::clone(&options.clock),
            faults: options.faults.clone(),
        })?);
        let spool = options.data.join("spool");
        recreate(&spool)?;
        options.archive.spool = spool;
        tracing::info!(
            node = %store.node_id(), databases = store.databases().len(),
            ms = started.elapsed().as_millis() as u64, "opened the data directory"
        );
        let service = Arc::new(NodeService {
            store: Arc::clone(&store),
            storage,
            mount_path: options.mount.dir.clone(),
            hostname: options.hostname.clone(),
            candidate: options.candidate,
            started: options.clock.now(),
            events: Events::new(),
            parts: RwLock::new(Parts::default()),
            imports: AtomicU64::new(0),
        });
        let (addr, token) = options.http.clone();
        let server = serve(ServerOptions::new(addr, token), Arc::clone(&service) as _)?;
        Ok(Node { options, store, service, server, notices, stop, poke: Poke::default() })
    }

    pub(super) fn stopping(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    /// From the archive's head to the end of service.
    fn serve(&self, inbox: &mpsc::Receiver<Notice>) -> Result<Outcome, NodeError> {
        let lease = self.lease()?;
        let result = self.serve_with(&lease, inbox);
        // Nothing of this node is under way any more: the next one may begin.
        self.release(lease.as_ref());
        result
    }

    fn lease(&self) -> Result<Arc<dyn Lease>, NodeError> {
        let member = Member {
            node: self.store.node_id(),
            hostname: self.options.hostname.clone(),
            advertise_url: self.options.advertise_url.clone(),
        };
        Ok(match &self.options.lease {
            LeaseChoice::Static => Arc::new(StaticLease::primary()),
            LeaseChoice::Storage { store, ttl } => {
                let (poll, clock) = ((*ttl / 15).min(LONGEST_POLL), Arc::clone(&self.options.clock));
                let options = StorageLeaseOptions { member, ttl: *ttl, poll, clock };
                let lease = StorageLease::new(Arc::clone(store), options);
                Arc::new(lease.map_err(NodeError::io("starting the lease"))?)
            }
        })
    }

    fn is_static(&self) -> bool {
        matches!(self.options.lease, LeaseChoice::Static)
    }

    /// Gives the lease back, and waits for the storage to know, for a moment.
    fn release(&self, lease: &dyn Lease) {
        lease.want(Want::Nothing);
        lease.wait(RELEASE, &mut |standing| !standing.busy);
    }

    fn serve_with(
        &self,
        lease: &Arc<dyn Lease>,
        inbox: &mpsc::Receiver<Notice>,
    ) -> Result<Outcome, NodeError> {
        let writer = Arc::new(self.join(lease.as_ref())?);
        self.service.update(|parts| parts.writer = Some(Arc::clone(&writer)));
        self.watch_lease(lease, writer.epoch())?;
        let serving = self.begin(&writer)?;
        let result = self.attend(&serving, inbox);
        self.end(serving, result)
    }

    /// Steps down at the moment at which the lease is not this node's any more.
    fn watch_lease(&self, lease: &Arc<dyn Lease>, epoch: Epoch) -> Result<(), NodeError> {
        let (lease, store, notices) = (Arc::clone(lease), Arc::clone(&self.store), self.notices.clone());
        let watch = move || {
            let mut lost = |standing: &lease::Standing| standing.holder.this() != Some(epoch);
            while lease.wait(A_LONG_TIME, &mut lost).is_none() {}
            store.set_role(Role::Replica { primary: None });
            // The node may have ended already.
            let _ = notices.send(Notice::LeaseLost);
        };
        let thread = std::thread::Builder::new().name("litefs-step-down".to_owned());
        thread.spawn(watch).map(drop).map_err(NodeError::io("watching the lease"))
    }

    /// Mounts, takes the role, starts what runs beside.
    fn begin(&self, writer: &Arc<Writer>) -> Result<Serving, NodeError> {
        if self.stopping() {
            return Err(NodeError::Stopped);
        }
        self.store.set_role(Role::Primary);
        let notices = self.notices.clone();
        let ended = move || drop(notices.send(Notice::Unmounted));
        let mount = Arc::new(Mount::start(&self.options.mount, Arc::clone(&self.store), ended)?);
        let publisher = Arc::new(self.start_publisher(writer)?);
        let upkeep = self.start_upkeep(writer)?;
        self.service.update(|parts| {
            parts.stage = Stage::Serving;
            parts.mount = Some(Arc::clone(&mount));
            parts.publisher = Some(Arc::clone(&publisher));
        });
        tracing::info!(dir = %mount.dir().display(), passthrough = mount.passthrough(), "serving");
        let supervisor = self.start_exec()?;
        Ok(Serving { mount, publisher, upkeep, supervisor })
    }

    fn start_publisher(&self, writer: &Arc<Writer>) -> Result<Publisher, NodeError> {
        let (poke, notices) = (self.poke.clone(), self.notices.clone());
        let events = self.service.events.clone();
        self.store.commits().watch(move |commit| {
            if events.listeners() > 0 {
                let meta = &commit.meta;
                events.publish(Event::Tx {
                    db: meta.db.clone(),
                    data: TxData {
                        txid: meta.post.txid,
                        post_apply_checksum: meta.post.checksum,
                        page_size: meta.page_size.get(),
                        commit: meta.commit,
                        timestamp: meta.timestamp,
                    },
                });
            }
        });
        Publisher::start(Setup {
            store: Arc::clone(&self.store),
            writer: Arc::clone(writer),
            interval: self.options.sync_interval,
            codec: self.options.archive.codec,
            node: self.store.node_id(),
            after_put: Box::new(move || poke.poke()),
            on_end: Box::new(move |error| drop(notices.send(Notice::Failed(error.into())))),
        })
        .map_err(NodeError::io("starting the publisher"))
    }

    fn start_upkeep(&self, writer: &Arc<Writer>) -> Result<Upkeep, NodeError> {
        let (store, writer) = (Arc::clone(&self.store), Arc::clone(writer));
        let (retention, notices): (LogRetention, _) = (self.options.log_retention, self.notices.clone());
        Upkeep::start(self.poke.clone(), move || {
            if let Err(error) = store.keep_log(retention) {
                tracing::warn!(%error, "upkeep of the change log failed: tried again after the next commit");
            }
            match writer.upkeep(Occasion::Running, &Images(&store)) {
                Ok(_) => {}
                Err(error @ PutError::Fenced { .. }) => drop(notices.send(Notice::Failed(error.into()))),
                Err(error) => {
                    tracing::warn!(%error, "upkeep of the archive failed: tried again after the next commit")
                }
            }
        })
        .map_err(NodeError::io("starting the upkeep"))
    }

    fn start_exec(&self) -> Result<Option<Supervisor>, NodeError> {
        if self.options.exec.is_empty() {
            return Ok(None);
        }
        let (store, candidate, notices) =
            (Arc::clone(&self.store), self.options.candidate, self.notices.clone());
        let standing = move || exec::Standing { candidate, primary: store.role() == Role::Primary };
        let ended = move |ended| drop(notices.send(Notice::Exec(ended)));
        Supervisor::start(self.options.exec.clone(), standing, ended)
            .map(Some)
            .map_err(NodeError::io("starting the commands"))
    }

    /// Waits for what ends the node.
    fn attend(&self, serving: &Serving, inbox: &mpsc::Receiver<Notice>) -> Result<Outcome, NodeError> {
        while let Ok(notice) = inbox.recv() {
            match notice {
                Notice::Signal(SIGTERM | SIGINT | SIGQUIT) => {
                    tracing::info!("asked to stop");
                    return Ok(Outcome::Exit(0));
                }
                Notice::Signal(signal) => {
                    if let Some(supervisor) = &serving.supervisor {
                        supervisor.forward(signal);
                    }
                }
                Notice::Exec(exec::Ended::Code(code)) => {
                    tracing::info!(code, "the commands have ended: stopping");
                    return Ok(Outcome::Exit(code));
                }
                Notice::Exec(exec::Ended::Idle) => {}
                Notice::Unmounted => {
                    tracing::warn!("the mount was unmounted from outside: stopping");
                    return Ok(Outcome::Exit(0));
                }
                Notice::Failed(NodeError::Put(PutError::Fenced { by })) if !self.is_static() => {
                    tracing::error!(%by, "another node writes the archive now: starting over as a replica");
                    return Ok(Outcome::Rejoin);
                }
                Notice::Failed(NodeError::Put(PutError::Fenced { by })) => {
                    return Err(NodeError::NotAlone { by });
                }
                Notice::Failed(error) => return Err(error),
                Notice::LeaseLost => {
                    tracing::error!("the lease ran out or was taken over: starting over as a replica");
                    return Ok(Outcome::Rejoin);
                }
            }
        }
        Ok(Outcome::Exit(0))
    }

    /// The way down: nobody writes any more, everything goes to the archive.
    fn end(&self, serving: Serving, result: Result<Outcome, NodeError>) -> Result<Outcome, NodeError> {
        let deadline = Instant::now() + self.options.shutdown_timeout;
        let left = || deadline.saturating_duration_since(Instant::now());
        self.service.update(|parts| {
            parts.stage = Stage::Stopping;
            parts.mount = None;
        });
        let mut code = result;
        if let Some(supervisor) = serving.supervisor {
            let ended = supervisor.stop(left() / 2);
            if let (Ok(Outcome::Exit(0)), exec::Ended::Code(ended)) = (&code, ended) {
                code = Ok(Outcome::Exit(ended));
            }
        }
        match serving.mount.unmount(left() / 4) {
            Ok(Unmounted::Forced) => self.fence(),
            Ok(Unmounted::Clean | Unmounted::Before) => {}
            Err(error) => tracing::error!(%error, "unmounting failed"),
        }
        drop(serving.mount);
        for database in self.store.databases() {
            if let Err(error) = database.current_pos() {
                tracing::error!(db = %database.name(), %error, "the last transactions could not be captured: they are in its files, and are captured at the next start");
            }
        }
        let drained = is_ours(&code) && serving.publisher.drain(left());
        let standing = serving.publisher.standing();
        if drained {
            self.compact(left());
        }
        self.service.update(|parts| parts.publisher = None);
        drop(serving.publisher);
        drop(serving.upkeep);
        let count = self.store.commits().unpublished();
        if matches!(code, Ok(Outcome::Exit(_))) && !drained && count > 0 {
            return Err(NodeError::Unarchived {
                count,
                why: standing.error.unwrap_or_else(|| "storage.shutdown-timeout was over".to_owned()),
                dir: self.store.dir().display().to_string(),
            });
        }
        code
    }

    /// Applications that were still in the mount may go on in WAL and wal-index through
    /// passthrough: what they commit after the drain would be nobody's.
    fn fence(&self) {
        for database in self.store.databases() {
            if let Err(error) = database.fence() {
                tracing::error!(db = %database.name(), %error, "applications that stayed could not be kept from writing: end them");
            }
        }
    }

    /// Compacts the session's tail, so that the next cold start reads almost nothing.
    fn compact(&self, patience: Duration) {
        let Some(writer) = self.service.parts(|parts| parts.writer.clone()) else { return };
        if patience < Duration::from_secs(1) {
            return;
        }
        if let Err(error) = writer.upkeep(Occasion::Stopping, &Images(&self.store)) {
            tracing::warn!(%error, "the archive's tail was not compacted: the next start reads more, nothing is lost");
        }
    }

    fn close(self, result: Result<Outcome, NodeError>) -> Result<Outcome, NodeError> {
        let saved = self.store.checkpoint();
        self.server.stop(Duration::from_secs(2));
        let code = match result {
            Err(NodeError::Stopped) => Ok(Outcome::Exit(0)),
            result => result,
        };
        saved.map_err(NodeError::from).and(code)
    }
}

/// Whether the archive is still this node's to write.
fn is_ours(result: &Result<Outcome, NodeError>) -> bool {
    !matches!(result, Ok(Outcome::Rejoin) | Err(NodeError::Put(_) | NodeError::NotAlone { .. }))
}

fn boot_id() -> Result<String, NodeError> {
    const PATH: &str = "/proc/sys/kernel/random/boot_id";
    let id = std::fs::read_to_string(PATH).map_err(NodeError::io(format!("reading {PATH}")))?;
    Ok(id.trim().to_owned())
}

fn recreate(dir: &std::path::Path) -> Result<(), NodeError> {
    let failed = || NodeError::io(format!("preparing {}", dir.display()));
    match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed()(error)),
        _ => {}
    }
    std::fs::create_dir_all(dir).map_err(failed())
}
