//! A mount from beginning to end.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use fuser::{Config, Session, SessionACL};
use parking_lot::{Condvar, Mutex, RwLock};

use super::adapter::Adapter;
use super::counters::{Counters, OpCounts};
use super::error::MountError;
use super::halting::Halts;
use super::handles::Handles;
use super::inodes::Inodes;
use super::notify::{self, Note};
use super::options::{MountOptions, Passthrough};
use super::own::Own;
use super::pool::Pool;
use super::spares::Spares;
use super::tree::Tree;
use super::unsynced::Unsynced;
use super::watch::Watch;
use super::{bare, modes, mounting};
use crate::store::Store;

/// Request loops: what takes long goes to the pool. With two, one client's requests
/// alternate between threads on two CPUs, and a round trip across CPUs costs ten times
/// one on the same (docs/PERFORMANCE.md: DELETE OFF 0.17 of ext4 with two, 0.28 with one).
const LOOPS: usize = 1;

/// How long a mount that is dropped waits for applications to leave.
const AT_DROP: Duration = Duration::from_millis(500);

/// How often it is asked whether applications have left.
const LEAVING: Duration = Duration::from_millis(5);

/// How long a forced unmount waits for the commits that are under way.
const LAST_COMMIT: Duration = Duration::from_secs(1);

/// How an unmount went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unmounted {
    /// Nobody was in the mount.
    Clean,
    /// Applications were in the mount; they now get ENOTCONN.
    Forced,
    /// Somebody else had unmounted it.
    Before,
}

/// A mount; unmounted when dropped.
pub struct Mount {
    dir: PathBuf,
    tree: Arc<Tree>,
    counters: Arc<Counters>,
    ended: Arc<Ended>,
    stopped: AtomicBool,
}

/// Says that the kernel has ended the session.
#[derive(Default)]
struct Ended {
    yes: Mutex<bool>,
    changed: Condvar,
}

impl Ended {
    fn is(&self) -> bool {
        *self.yes.lock()
    }

    fn wait(&self, patience: Duration) -> bool {
        let mut yes = self.yes.lock();
        self.changed.wait_while_for(&mut yes, |yes| !*yes, patience);
        *yes
    }
}

/// A mount that is not complete yet.
struct Begun {
    dir: PathBuf,
    own: Arc<Own>,
    watch: Option<Arc<Watch>>,
    mounted: bool,
    complete: bool,
}

impl Drop for Begun {
    fn drop(&mut self) {
        if self.complete {
            return;
        }
        if let Some(watch) = &self.watch {
            watch.stop();
        }
        if self.mounted
            && let Err(error) = mounting::abort(&self.dir)
        {
            tracing::error!("cannot unmount {}: {error}", self.dir.display());
        }
        self.own.stop();
    }
}

impl Mount {
    /// Mounts the store. `ended` is called once, on a thread of the mount, when the
    /// mount has ended, be it by [`Mount::unmount`] or from outside.
    pub fn start(
        options: &MountOptions,
        store: Arc<Store>,
        ended: impl FnOnce() + Send + 'static,
    ) -> Result<Mount, MountError> {
        let dir = mounting::prepare(&options.dir)?;
        let under = File::open(&dir).map_err(MountError::io("open", &dir))?;
        let inodes = Arc::new(Inodes::new());
        let (notes, told) = crossbeam_channel::unbounded();
        let own = Own::start(&dir, inodes.clone(), notes.clone()).map_err(MountError::io("prepare", &dir))?;
        let own = Arc::new(own);
        let mut begun =
            Begun { dir: dir.clone(), own: own.clone(), watch: None, mounted: false, complete: false };
        let device = mounting::mount(&dir, options.allow_other)?;
        begun.mounted = true;
        bare::reopen_below(&under, &dir, store.dir());
        let watch = Watch::start(own.clone()).map_err(MountError::io("watch", &dir))?;
        begun.watch = Some(watch.clone());
        let tree = Arc::new(Tree {
            store: store.clone(),
            inodes: inodes.clone(),
            handles: Handles::new(),
            own: own.clone(),
            watch,
            notes,
            unsynced: Unsynced::default(),
            spares: Spares::default(),
            passthrough: AtomicBool::new(false),
            halts: OnceLock::new(),
            closing: RwLock::new(false),
            check: options.allow_other,
            under,
        });
        let counters = Arc::new(Counters::default());
        let session = begin(options, &tree, &counters, device).map_err(MountError::io("mount", &dir))?;
        let notifier = session.notifier();
        notify::start(told, notifier, inodes).map_err(MountError::io("serve", &dir))?;
        let over = Arc::new(Ended::default());
        let (running, runner) = (over.clone(), tree.clone());
        let serve = move || {
            if let Err(error) = session.run() {
                tracing::error!("the mount ended: {error}");
            }
            runner.end();
            // Whoever waits for the end may open the data directory again.
            drop(runner);
            *running.yes.lock() = true;
            running.changed.notify_all();
            ended();
        };
        let thread = std::thread::Builder::new().name("litefs-mount".to_owned());
        thread.spawn(serve).map_err(MountError::io("serve", &dir))?;
        begun.complete = true;
        store.set_mount(own);
        Ok(Mount { dir, tree, counters, ended: over, stopped: AtomicBool::new(false) })
    }

    /// Sets where halt locks come from, once. Without, nobody gets one.
    pub fn set_halts(&self, halts: Arc<dyn Halts>) {
        let _ = self.tree.halts.set(halts);
    }

    /// Where it is.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Whether journal, WAL and shm go past the daemon.
    pub fn passthrough(&self) -> bool {
        self.tree.passthrough.load(Ordering::Acquire)
    }

    /// How often the kernel asked for what.
    pub fn counters(&self) -> OpCounts {
        self.counters.read()
    }

    /// The node is to start over: from the unmount to the next mount on it nobody makes
    /// anything in the directory below, where that can be had.
    pub fn shut_mount_point(&self) {
        bare::shut(&self.tree.under, &self.dir, self.tree.store.dir());
    }

    /// Unmounts. Waits up to `patience` for applications to leave, then does without.
    pub fn unmount(&self, patience: Duration) -> Result<Unmounted, MountError> {
        if self.stopped.swap(true, Ordering::AcqRel) {
            self.ended.wait(patience);
            return Ok(Unmounted::Before);
        }
        let deadline = Instant::now() + patience;
        let unmounted = if self.wait_unused(deadline) {
            self.tree.watch.stop();
            self.tree.own.stop();
            self.leave(deadline)?
        } else {
            self.drive_out()?
        };
        // The loops have ended but for a lazily unmounted mount of an ordinary user,
        // which lasts as long as its applications.
        if !self.ended.wait(Duration::from_secs(10)) {
            tracing::warn!("applications still use {}, which is unmounted", self.dir.display());
        }
        self.tree.own.stop();
        notify::post(&self.tree.notes, Note::Stop);
        Ok(unmounted)
    }

    /// Waits until no application has a file open; from then on none is opened. Until
    /// then everything goes on as before: what those that leave do to a WAL is judged by
    /// its wal-index. False if applications stay.
    fn wait_unused(&self, deadline: Instant) -> bool {
        while !self.tree.close_unused() {
            if self.ended.wait(LEAVING) {
                return true;
            }
            if Instant::now() >= deadline {
                self.tree.close();
                return false;
            }
        }
        true
    }

    /// Unmounts what nobody has a file open in, but perhaps a working directory.
    fn leave(&self, deadline: Instant) -> Result<Unmounted, MountError> {
        loop {
            if self.ended.is() {
                return Ok(Unmounted::Before);
            }
            match mounting::unmount(&self.dir, false) {
                Ok(()) => return Ok(Unmounted::Clean),
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                    if Instant::now() >= deadline {
                        return self.abort();
                    }
                    std::thread::sleep(LEAVING);
                }
                // EINVAL: not mounted any more; the session is about to learn it.
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => return Ok(Unmounted::Before),
                Err(source) => return Err(MountError::io("unmount", &self.dir)(source)),
            }
        }
    }

    /// Takes the mount from applications that stay. What they committed is captured
    /// before, and they commit nothing after.
    fn drive_out(&self) -> Result<Unmounted, MountError> {
        let deadline = Instant::now() + LAST_COMMIT;
        let locks: Vec<_> = self.tree.store.databases().iter().map(|db| db.drive_out(deadline)).collect();
        self.tree.watch.stop();
        let unmounted = self.abort();
        // Until it is certain.
        drop(locks);
        unmounted
    }

    fn abort(&self) -> Result<Unmounted, MountError> {
        tracing::warn!("{} is in use: unmounting it by force", self.dir.display());
        mounting::abort(&self.dir).map_err(MountError::io("unmount", &self.dir))?;
        Ok(Unmounted::Forced)
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if !self.stopped.load(Ordering::Acquire)
            && let Err(error) = self.unmount(AT_DROP)
        {
            tracing::error!("{error}");
        }
    }
}

/// Shakes hands with the kernel and settles whether files are passed through.
fn begin(
    options: &MountOptions,
    tree: &Arc<Tree>,
    counters: &Arc<Counters>,
    device: OwnedFd,
) -> std::io::Result<Session<Adapter>> {
    let probe = device.try_clone()?;
    let wanted = options.passthrough == Passthrough::Auto;
    let adapter = Adapter::new(tree.clone(), Pool::new(), counters.clone(), wanted);
    let mut config = Config::default();
    config.n_threads = Some(LOOPS);
    config.clone_fd = LOOPS > 1;
    // Who may enter the kernel decides by the mount's option.
    let session = Session::from_fd(adapter, device, SessionACL::All, config)?;
    if wanted {
        let dir = tree.store.dir_path("");
        let probed = match dir {
            Some(dir) => modes::probe(&probe, &dir),
            None => Err(std::io::ErrorKind::NotFound.into()),
        };
        match probed {
            Ok(()) => {
                tree.passthrough.store(true, Ordering::Release);
                tree.own.passthrough.store(true, Ordering::Release);
            }
            Err(error) => tracing::info!(
                "journal, WAL and shm go through the daemon: passthrough is not available ({error})"
            ),
        }
    }
    Ok(session)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::db::{FileKind, OwnMount};
    use crate::store::{Role, StoreOptions};
    use crate::words::{DbName, Faults, NodeId, SystemClock};
    use std::os::unix::fs::FileExt;

    /// Looks until `found`; far longer than it takes.
    fn eventually(what: &str, mut found: impl FnMut() -> bool) {
        let start = Instant::now();
        while !found() {
            assert!(start.elapsed() < Duration::from_secs(180), "in vain: {what}");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn mounted(scratch: &std::path::Path) -> Option<(Arc<Store>, Mount)> {
        if File::options().read(true).write(true).open("/dev/fuse").is_err() {
            eprintln!("SKIPPED: no FUSE on this machine");
            return None;
        }
        let options = StoreOptions {
            dir: scratch.join("data"),
            boot_id: "this boot".to_owned(),
            new_node: NodeId::new(1),
            clock: Arc::new(SystemClock),
            faults: Faults::none(),
        };
        let store = Arc::new(Store::open(options).expect("a store"));
        store.set_role(Role::Primary);
        let options =
            MountOptions { dir: scratch.join("mnt"), allow_other: false, passthrough: Passthrough::Auto };
        let mount = Mount::start(&options, store.clone(), || ()).expect("a mount");
        Some((store, mount))
    }

    #[test]
    fn what_the_daemon_changes_applications_see() {
        let scratch = tempfile::tempdir().expect("a directory");
        let Some((store, mount)) = mounted(scratch.path()) else { return };
        let path = mount.dir().join("a.db");
        // The kernel now remembers that there is no such file.
        assert!(!path.exists());
        let name = DbName::new("a.db").expect("a name");
        let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        let database = store.create(&name, 0o644, uid, gid).expect("create");
        mount.tree.own.changed(&name, 0, 0);
        eventually("the new database", || path.exists());
        let backing = File::options().write(true).open(database.path(FileKind::Database)).expect("open");
        for round in 1..=20_u8 {
            let content = vec![round; 4096 * usize::from(round)];
            backing.write_all_at(&content, 0).expect("write");
            mount.tree.own.changed(&name, 0, 0);
            eventually("the new content", || std::fs::read(&path).is_ok_and(|read| read == content));
        }
        assert_eq!(mount.unmount(Duration::from_secs(60)).expect("unmount"), Unmounted::Clean);
    }

    /// The kernel drops the answer to a question for a file's size which a change has
    /// overtaken; a reader that asked would find nothing at the file's new end.
    #[test]
    fn readers_find_the_end_of_a_database_that_grew_whatever_else_the_kernel_is_told() {
        let scratch = tempfile::tempdir().expect("a directory");
        let Some((store, mount)) = mounted(scratch.path()) else { return };
        let name = DbName::new("a.db").expect("a name");
        let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        let database = store.create(&name, 0o644, uid, gid).expect("create");
        let own = &mount.tree.own;
        own.changed(&name, 0, 0);
        let path = mount.dir().join("a.db");
        eventually("the new database", || path.exists());
        let backing = File::options().write(true).open(database.path(FileKind::Database)).expect("open");
        let reader = File::open(&path).expect("open");
        let stop = std::sync::atomic::AtomicBool::new(false);
        let short = std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(std::sync::atomic::Ordering::Acquire) {
                    own.changed(&name, 0, 1);
                    own.settle().expect("the kernel listens");
                }
            });
            let short: Vec<u64> = (0..500)
                .filter(|number| {
                    let (offset, mut page) = (number * 4096, vec![0; 4096]);
                    backing.write_all_at(&[7; 4096], offset).expect("write");
                    own.changed(&name, offset, 4096);
                    own.settle().expect("the kernel listens");
                    own.grown(&name, offset + 4096).expect("the kernel knows");
                    reader.read_at(&mut page, offset).expect("read") < 4096
                })
                .collect();
            stop.store(true, std::sync::atomic::Ordering::Release);
            short
        });
        assert_eq!(short, [0; 0], "pages of which nothing was read");
        drop(reader);
        assert_eq!(mount.unmount(Duration::from_secs(60)).expect("unmount"), Unmounted::Clean);
    }
}
