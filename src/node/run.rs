//! Running a node: the order in which its parts come up and go down.
//!
//! Up: data directory recovered, API answering, archive's head read, every database
//! aligned with it, lease asked for, mounted as primary or as replica, commands. Down,
//! in reverse: commands, mount, drain to the archive, lease, checkpoint. A signal in any
//! phase leads to the way down from there. Roles change in between (`roles`), without
//! the mount going.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, mpsc};
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2};
use signal_hook::flag;
use signal_hook::iterator::Signals;

use crate::exec::{self, Supervisor};
use crate::fuse::{Mount, reopen_mount_point};
use crate::lease::{Lease, Want};
use crate::object::{Counted, ObjectStore};
use crate::peer::wire::Ending;
use crate::peer::{Event, Events, Server, ServerOptions, TxData, serve};
use crate::proxy::{self, Proxy};
use crate::store::{Role, Store, StoreError, StoreOptions};
use crate::words::NodeId;

use super::follow::Following;
use super::halt::{Holder, Setup as HolderSetup};
use super::last_call::LastCall;
use super::parking::Parking;
use super::proxy_view::ProxyView;
use super::reign::Reign;
use super::roles::{Reply, Waiting};
use super::service::{NodeService, Parts, Stage};
use super::upkeep::Poke;
use super::{Durability, LeaseChoice, NodeError, NodeOptions};

/// How long a stop waits for the storage to know that the lease is free: if it does
/// not, others wait for the term to end.
pub(super) const RELEASE: Duration = Duration::from_secs(3);

/// How long a stop waits for requests that the proxy has begun.
const REQUESTS: Duration = Duration::from_secs(3);

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// With this exit code.
    Exit(u8),
    /// It is not the primary any more: the program is to start over.
    Rejoin,
}

/// What a running node is to act on.
pub(super) enum Notice {
    Signal(i32),
    Exec(exec::Ended),
    Unmounted,
    Failed(NodeError),
    /// The lease stands otherwise than before.
    Lease,
    /// A replica that had to start without the archive stands at its head.
    AtHead,
    /// Someone wants this node to be the primary.
    Promote(Reply),
    /// Someone wants the node of this id to be the primary.
    Handoff(NodeId, Reply),
    /// An application is about to write, or may be.
    Wanted,
}

/// Runs a node until it is told to stop or cannot go on. The exit code is that of the
/// commands, else 0.
pub fn run(options: NodeOptions) -> Result<Outcome, NodeError> {
    let (notices, inbox) = mpsc::channel();
    let (stop, over) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    listen_for_signals(notices.clone(), &stop, &over)?;
    raise_file_limit();
    let data = options.data.clone();
    let result = live(options, notices, &inbox, &stop);
    if matches!(result, Ok(Outcome::Rejoin)) {
        // Who was told to stop meanwhile does not start over; and from here on the
        // signal itself ends the process.
        over.store(true, Ordering::SeqCst);
        if !stop.load(Ordering::SeqCst) {
            return result;
        }
    }
    // What is in use by another is that one's.
    if !matches!(result, Err(NodeError::Store(StoreError::InUse { .. }))) {
        reopen_mount_point(&data);
    }
    match result {
        Ok(Outcome::Rejoin) => Ok(Outcome::Exit(0)),
        result => result,
    }
}

fn live(
    options: NodeOptions,
    notices: mpsc::Sender<Notice>,
    inbox: &mpsc::Receiver<Notice>,
    stop: &Arc<AtomicBool>,
) -> Result<Outcome, NodeError> {
    let node = Arc::new(Node::open(options, notices, Arc::clone(stop))?);
    let result = node.serve(inbox);
    node.close(result)
}

fn listen_for_signals(
    notices: mpsc::Sender<Notice>,
    stop: &Arc<AtomicBool>,
    over: &Arc<AtomicBool>,
) -> Result<(), NodeError> {
    let failed = || NodeError::io("listening for signals");
    for signal in [SIGTERM, SIGINT, SIGQUIT] {
        // In the handler itself, in this order: one of the two is seen.
        flag::register(signal, Arc::clone(stop)).map_err(failed())?;
        flag::register_conditional_default(signal, Arc::clone(over)).map_err(failed())?;
    }
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2]).map_err(failed())?;
    let listen = move || {
        for signal in signals.forever() {
            if notices.send(Notice::Signal(signal)).is_err() {
                return;
            }
        }
    };
    let thread = std::thread::Builder::new().name("litefs-signals".to_owned());
    thread.spawn(listen).map(drop).map_err(failed())
}

/// A node with its data directory open and its API answering.
pub(super) struct Node {
    pub(super) options: NodeOptions,
    pub(super) store: Arc<Store>,
    pub(super) service: Arc<NodeService>,
    pub(super) notices: mpsc::Sender<Notice>,
    pub(super) poke: Poke,
    /// The halt locks that this node holds.
    pub(super) holder: Arc<Holder>,
    server: Mutex<Option<Server>>,
    _parking: Parking,
    stop: Arc<AtomicBool>,
}

/// The parts of a node that serves.
pub(super) struct Serving {
    pub(super) lease: Arc<dyn Lease>,
    pub(super) part: Part,
    pub(super) waiting: Waiting,
    mount: Arc<Mount>,
    pub(super) proxy: Option<Proxy>,
    exec: Exec,
}

/// What a node does in its cluster.
pub(super) enum Part {
    Primary(Reign),
    Replica(Following),
    /// On the way from one to the other, or down.
    None,
}

/// The commands: not before it is settled what this node is.
enum Exec {
    Waiting,
    Running(Supervisor),
    None,
}

impl Node {
    fn open(
        mut options: NodeOptions,
        notices: mpsc::Sender<Notice>,
        stop: Arc<AtomicBool>,
    ) -> Result<Node, NodeError> {
        let storage = Arc::new(Counted::new(Arc::clone(&options.storage)));
        options.storage = Arc::clone(&storage) as Arc<dyn ObjectStore>;
        let mut lease_storage = None;
        if let LeaseChoice::Storage { store, .. } = &mut options.lease {
            let counted = Arc::new(Counted::new(Arc::clone(store)));
            *store = Arc::clone(&counted) as Arc<dyn ObjectStore>;
            lease_storage = Some(counted);
        }
        let started = Instant::now();
        let store = Arc::new(Store::open(StoreOptions {
            dir: options.data.clone(),
            boot_id: boot_id()?,
            new_node: NodeId::new((options.archive.random)()),
            clock: Arc::clone(&options.clock),
            faults: options.faults.clone(),
        })?);
        if store.cluster().is_some() {
            // There is an archive: what is not there is out of reach, and nobody may make it.
            options.storage.expect_existing();
            lease_storage.iter().for_each(|storage| storage.expect_existing());
        }
        store.commits().set_limit(options.backlog);
        store.set_archive_first(options.durability == Durability::Archive);
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
            lease_storage,
            mount_path: options.mount.dir.clone(),
            hostname: options.hostname.clone(),
            candidate: options.candidate,
            fixed_lease: matches!(options.lease, super::LeaseChoice::Static),
            started: options.clock.now(),
            events: Events::new(),
            parts: RwLock::new(Parts::default()),
            imports: AtomicU64::new(0),
            notices: notices.clone(),
        });
        let (addr, token) = options.http.clone();
        let server = serve(ServerOptions::new(addr, token), Arc::clone(&service) as _)?;
        let server = Mutex::new(Some(server));
        let parking =
            Parking::start(Arc::clone(&store), Arc::clone(&options.storage), options.archive.clone())
                .map_err(NodeError::io("starting to keep branches that lost"))?;
        let poke = Poke::default();
        let holder = Arc::new(holder(&options, &service));
        Ok(Node { options, store, service, notices, poke, holder, server, _parking: parking, stop })
    }

    pub(super) fn stopping(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    /// From the archive's head to the end of service.
    fn serve(self: &Arc<Node>, inbox: &mpsc::Receiver<Notice>) -> Result<Outcome, NodeError> {
        let lease = self.lease()?;
        let result = self.serve_with(&lease, inbox);
        release(lease.as_ref());
        result
    }

    fn serve_with(
        self: &Arc<Node>,
        lease: &Arc<dyn Lease>,
        inbox: &mpsc::Receiver<Notice>,
    ) -> Result<Outcome, NodeError> {
        // Who holds it is asked meanwhile; it is wanted only at the head.
        lease.look();
        let mut joined = self.join()?;
        let writer = match &mut joined {
            Some(joined) => self.take_first(joined, lease.as_ref())?,
            None => None,
        };
        if self.stopping() {
            return Err(NodeError::Stopped);
        }
        self.tell_of_commits();
        self.store.set_role(match writer {
            Some(_) => Role::Primary,
            None => Role::Replica { primary: None },
        });
        self.watch_lease(lease, writer.as_ref().map(|writer| writer.epoch()))?;
        let mount = self.mount()?;
        let part = match writer {
            Some(writer) => Part::Primary(self.begin_reign(writer)?),
            None => Part::Replica(self.begin_following(lease, joined)?),
        };
        let exec = if self.options.exec.is_empty() { Exec::None } else { Exec::Waiting };
        let waiting = Waiting::default();
        let mut serving = Serving { lease: Arc::clone(lease), part, waiting, mount, proxy: None, exec };
        self.service.update(|parts| {
            parts.stage = Stage::Serving;
            parts.mount = Some(Arc::clone(&serving.mount));
        });
        let (mount, role) = (&serving.mount, self.store.role());
        tracing::info!(dir = %mount.dir().display(), passthrough = mount.passthrough(), ?role, "serving");
        serving.proxy = self.start_proxy()?;
        let result = self.aspire(&mut serving).and_then(|()| self.attend(&mut serving, inbox));
        self.end(serving, result)
    }

    fn mount(&self) -> Result<Arc<Mount>, NodeError> {
        let notices = self.notices.clone();
        let ended = move || drop(notices.send(Notice::Unmounted));
        let mount = Mount::start(&self.options.mount, Arc::clone(&self.store), ended)?;
        mount.set_halts(Arc::clone(&self.holder) as _);
        Ok(Arc::new(mount))
    }

    fn start_proxy(&self) -> Result<Option<Proxy>, NodeError> {
        let Some(choice) = &self.options.proxy else { return Ok(None) };
        let view = ProxyView::new(&self.service, choice.max_lag);
        Ok(Some(proxy::start(choice.options.clone(), view)?))
    }

    fn tell_of_commits(&self) {
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
        let notices = self.notices.clone();
        self.store.on_wanted(move || drop(notices.send(Notice::Wanted)));
    }

    /// Starts the commands once it is settled what this node is.
    fn start_exec(&self, serving: &mut Serving) -> Result<(), NodeError> {
        if !matches!(serving.exec, Exec::Waiting) || !self.settled(serving) {
            return Ok(());
        }
        let (store, candidate, notices) =
            (Arc::clone(&self.store), self.options.candidate, self.notices.clone());
        let standing = move || exec::Standing { candidate, primary: store.role() == Role::Primary };
        let ended = move |ended| drop(notices.send(Notice::Exec(ended)));
        let supervisor = Supervisor::start(self.options.exec.clone(), standing, ended)
            .map_err(NodeError::io("starting the commands"))?;
        serving.exec = Exec::Running(supervisor);
        Ok(())
    }

    /// Waits for what ends the node.
    fn attend(
        self: &Arc<Node>,
        serving: &mut Serving,
        inbox: &mpsc::Receiver<Notice>,
    ) -> Result<Outcome, NodeError> {
        loop {
            self.start_exec(serving)?;
            let notice = match self.rest_due(serving) {
                None => inbox.recv().map_err(|_| mpsc::RecvTimeoutError::Disconnected),
                Some(due) => inbox.recv_timeout(due.saturating_duration_since(Instant::now())),
            };
            let ended = match notice {
                Ok(notice) => self.act(serving, notice)?,
                Err(mpsc::RecvTimeoutError::Timeout) => self.rest(serving)?,
                Err(mpsc::RecvTimeoutError::Disconnected) => Some(Outcome::Exit(0)),
            };
            if let Some(outcome) = ended {
                return Ok(outcome);
            }
        }
    }

    /// Acts on a notice; how the node ends, if it does.
    fn act(self: &Arc<Node>, serving: &mut Serving, notice: Notice) -> Result<Option<Outcome>, NodeError> {
        match notice {
            Notice::Signal(SIGTERM | SIGINT | SIGQUIT) => {
                tracing::info!("asked to stop");
                return Ok(Some(Outcome::Exit(0)));
            }
            Notice::Signal(signal) => {
                if let Exec::Running(supervisor) = &serving.exec {
                    supervisor.forward(signal);
                }
            }
            Notice::Exec(exec::Ended::Code(code)) => {
                tracing::info!(code, "the commands have ended: stopping");
                return Ok(Some(Outcome::Exit(code)));
            }
            Notice::Exec(exec::Ended::Idle) => {}
            Notice::Unmounted => {
                tracing::warn!("the mount was unmounted from outside: stopping");
                return Ok(Some(Outcome::Exit(0)));
            }
            Notice::Failed(error) => return self.failed(serving, error),
            Notice::Lease => return self.follow_lease(serving),
            Notice::AtHead => self.aspire(serving)?,
            Notice::Promote(reply) => self.promote(serving, reply),
            Notice::Handoff(to, reply) => return self.handoff(serving, to, &reply),
            Notice::Wanted => self.wanted(serving),
        }
        Ok(None)
    }

    /// The way down: nobody writes any more, everything goes to the archive.
    fn end(&self, serving: Serving, result: Result<Outcome, NodeError>) -> Result<Outcome, NodeError> {
        let deadline = Instant::now() + self.options.shutdown_timeout;
        let left = || deadline.saturating_duration_since(Instant::now());
        self.service.update(|parts| {
            parts.stage = Stage::Stopping;
            parts.mount = None;
        });
        if let Some(proxy) = serving.proxy {
            proxy.stop(left().min(REQUESTS));
        }
        let mut code = result;
        let last_call = LastCall::start(self.store.commits(), left() / 4);
        if let Exec::Running(supervisor) = serving.exec {
            let ended = supervisor.stop(left() / 2);
            if let (Ok(Outcome::Exit(0)), exec::Ended::Code(ended)) = (&code, ended) {
                code = Ok(Outcome::Exit(ended));
            }
        }
        // Before the mount, of which they are clients.
        self.holder.end_all(left() / 8);
        if let Part::Primary(reign) = &serving.part {
            reign.halts.close();
        }
        let part = match serving.part {
            Part::Replica(following) => {
                drop(following);
                Part::None
            }
            part => part,
        };
        if matches!(code, Ok(Outcome::Rejoin)) {
            serving.mount.shut_mount_point();
        }
        if let Err(error) = serving.mount.unmount(left() / 4) {
            tracing::error!(%error, "unmounting failed");
        }
        drop(serving.mount);
        drop(last_call);
        for database in self.store.databases() {
            if let Err(error) = database.current_pos() {
                tracing::error!(db = %database.name(), %error, "the last transactions could not be captured: they are in its files, and are captured at the next start");
            }
        }
        match part {
            Part::Primary(reign) => {
                let feeds = reign.feeds.clone();
                let code = self.drain(reign, code, deadline);
                release(serving.lease.as_ref());
                // Who follows looks at the lease as soon as the stream is over.
                feeds.end(Ending::Stopping);
                code
            }
            Part::Replica(_) | Part::None => code,
        }
    }

    /// What the archive lacks goes there.
    fn drain(
        &self,
        reign: Reign,
        code: Result<Outcome, NodeError>,
        deadline: Instant,
    ) -> Result<Outcome, NodeError> {
        let left = || deadline.saturating_duration_since(Instant::now());
        let drained = is_ours(&code) && reign.publisher.drain(left());
        let standing = reign.publisher.standing();
        if drained {
            self.compact(&reign, left());
        }
        self.end_reign(reign);
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

    fn close(&self, result: Result<Outcome, NodeError>) -> Result<Outcome, NodeError> {
        let saved = self.store.checkpoint();
        let server = self.server.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(server) = server {
            server.stop(Duration::from_secs(2));
        }
        let code = match result {
            Err(NodeError::Stopped) => Ok(Outcome::Exit(0)),
            result => result,
        };
        saved.map_err(NodeError::from).and(code)
    }
}

/// Nothing of this node is under way any more: the next one may begin.
fn release(lease: &dyn Lease) {
    lease.want(Want::Nothing);
    lease.wait(RELEASE, &mut |standing| !standing.busy);
}

/// What gets halt locks from the primary.
fn holder(options: &NodeOptions, service: &Arc<NodeService>) -> Holder {
    // The service has the mount, and that has this: a mount that nobody unmounts must not
    // keep itself.
    let of = Arc::downgrade(service);
    Holder::new(HolderSetup {
        store: Arc::clone(&service.store),
        clock: Arc::clone(&options.clock),
        token: options.http.1.clone(),
        spool: options.archive.spool.clone(),
        random: Arc::clone(&options.archive.random),
        primary: Box::new(move || of.upgrade()?.parts(|parts| parts.primary.clone())),
    })
}

/// Whether the archive is still this node's to write.
fn is_ours(result: &Result<Outcome, NodeError>) -> bool {
    !matches!(result, Ok(Outcome::Rejoin) | Err(NodeError::Put(_) | NodeError::NotAlone { .. }))
}

/// Hundreds of databases have several files each; the soft limit is often 1024.
fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
    if let Err(error) = raised {
        tracing::debug!(%error, "the limit of open files stays");
    }
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
