//! Publishing: one thread takes captured transactions in commit order and puts them
//! into the archive, the first after a pause at once, later ones no more often than
//! the interval, trying again as long as the storage is out of reach. It says so once
//! per change of state. No timer runs while nothing waits.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::archive::{Body, ChangeSet, PutError, Writer};
use crate::db::Committed;
use crate::ltx::Codec;
use crate::peer::ArchiveState;
use crate::store::Store;
use crate::words::NodeId;

use super::encode::{EncodeError, Style, change_set};

/// A segment holds at most about so many bytes of pages, and so many change sets.
const BATCH_BYTES: u64 = 16 << 20;
const BATCH_SETS: usize = 4096;

/// The lowest priority there is.
const LEAST_URGENT: i32 = 19;

/// How long to wait after a failed put, at first and at most.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// How publishing stands, for status and health.
#[derive(Clone, Debug)]
pub(super) struct Standing {
    pub state: ArchiveState,
    pub error: Option<String>,
}

/// What the publisher needs.
pub(super) struct Setup {
    pub store: Arc<Store>,
    pub writer: Arc<Writer>,
    pub interval: Duration,
    /// Commits wait for it.
    pub urgent: bool,
    pub codec: Codec,
    pub node: NodeId,
    /// Called after each put.
    pub after_put: Box<dyn Fn() + Send + Sync>,
    /// Called once if nothing can be published any more.
    pub on_end: Box<dyn Fn(PutError) + Send + Sync>,
}

struct Shared {
    setup: Setup,
    standing: Mutex<Standing>,
    stop: AtomicBool,
    /// No pauses between puts: the node is stopping.
    hurry: AtomicBool,
}

/// The thread that publishes.
pub(super) struct Publisher {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Publisher {
    pub fn start(setup: Setup) -> std::io::Result<Publisher> {
        let shared = Arc::new(Shared {
            setup,
            standing: Mutex::new(Standing { state: ArchiveState::Synced, error: None }),
            stop: AtomicBool::new(false),
            hurry: AtomicBool::new(false),
        });
        let inner = Arc::clone(&shared);
        let thread =
            std::thread::Builder::new().name("litefs-publish".to_owned()).spawn(move || inner.run())?;
        Ok(Publisher { shared, thread: Some(thread) })
    }

    /// How it stands.
    pub fn standing(&self) -> Standing {
        self.shared.standing()
    }

    /// Publishes what is left without pauses; true if nothing is left within
    /// `timeout`.
    pub fn drain(&self, timeout: Duration) -> bool {
        self.shared.hurry.store(true, Ordering::Release);
        self.shared.setup.store.commits().wake();
        self.shared.setup.store.commits().wait_empty(timeout)
    }
}

impl Publisher {
    /// Goes on as before a drain that was not completed.
    pub fn resume(&self) {
        self.shared.hurry.store(false, Ordering::Release);
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.shared.setup.store.commits().wake();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn standing(&self) -> Standing {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn stopping(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    fn run(&self) {
        // Compressing pages costs more than committing them: applications come first,
        // unless they wait for it. On Linux a priority is a thread's own (setpriority(2),
        // NOTES).
        if !self.setup.urgent {
            let _ = rustix::process::setpriority_process(None, LEAST_URGENT);
        }
        let commits = self.setup.store.commits();
        let mut last: Option<Instant> = None;
        while !self.stopping() {
            commits.wait_waiting(|| self.stopping());
            if self.stopping() {
                return;
            }
            self.pace(last);
            let batch = self.take();
            if batch.is_empty() {
                continue;
            }
            last = Some(Instant::now());
            if let Err(error) = self.publish(&batch) {
                tracing::error!(%error, "nothing can be published any more");
                self.set(ArchiveState::Refused, Some(error.to_string()));
                commits.refuse_waits();
                (self.setup.on_end)(error);
                return;
            }
        }
    }

    /// Waits until the interval since the last put is over.
    fn pace(&self, last: Option<Instant>) {
        let Some(due) = last.map(|last| last + self.setup.interval) else { return };
        while !self.stopping() && !self.hurry.load(Ordering::Acquire) {
            let Some(left) = due.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) else {
                return;
            };
            let hurries = || self.stopping() || self.hurry.load(Ordering::Acquire);
            self.setup.store.commits().pause_unless(left, hurries);
        }
    }

    fn take(&self) -> Vec<Committed> {
        let (mut bytes, mut sets) = (0, 0);
        self.setup.store.commits().take(|commit| {
            let size = u64::from(commit.pages) * u64::from(commit.meta.page_size.get());
            let fits = sets == 0 || (bytes + size <= BATCH_BYTES && sets < BATCH_SETS);
            bytes += size;
            sets += 1;
            fits
        })
    }

    /// Puts a batch, however long it takes, unless the node stops or the put can
    /// never succeed.
    fn publish(&self, batch: &[Committed]) -> Result<(), PutError> {
        if self.standing().error.is_none() {
            self.set(ArchiveState::Uploading, None);
        }
        let mut pause = FIRST_PAUSE;
        let mut sets = None;
        while !self.stopping() {
            match self.attempt(batch, &mut sets) {
                Ok(()) => {
                    self.recovered();
                    self.setup.store.commits().published();
                    (self.setup.after_put)();
                    return Ok(());
                }
                Err(Trouble::Later(why)) => self.trouble(why),
                Err(Trouble::Never(error)) => return Err(error),
            }
            self.setup.store.commits().pause_unless(pause, || self.stopping());
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
        Ok(())
    }

    fn attempt(&self, batch: &[Committed], sets: &mut Option<Vec<ChangeSet>>) -> Result<(), Trouble> {
        if sets.is_none() {
            *sets = Some(self.encode(batch).map_err(|error| Trouble::Later(error.to_string()))?);
        }
        let sets = sets.as_deref().unwrap_or_default();
        match self.setup.writer.put(sets) {
            Ok(_) => {
                for set in sets {
                    if let Body::File(path) = &set.body {
                        let _ = std::fs::remove_file(path);
                    }
                }
                Ok(())
            }
            // Rights, credentials and a full or lost archive are mended from outside.
            Err(PutError::Unreachable(error)) => Err(Trouble::Later(error.to_string())),
            Err(PutError::Refused(crate::archive::ArchiveError::Object(error))) => {
                Err(Trouble::Later(error.to_string()))
            }
            Err(error) => Err(Trouble::Never(error)),
        }
    }

    fn encode(&self, batch: &[Committed]) -> Result<Vec<ChangeSet>, EncodeError> {
        let spool = &self.setup.writer.archive().options().spool;
        let style = Style { codec: self.setup.codec, node: self.setup.node, spool };
        batch.iter().map(|commit| change_set(&self.setup.store.log().read(commit.place)?, &style)).collect()
    }

    fn set(&self, state: ArchiveState, error: Option<String>) {
        *self.standing.lock().unwrap_or_else(PoisonError::into_inner) = Standing { state, error };
    }

    fn trouble(&self, why: String) {
        if self.standing().state != ArchiveState::Unreachable {
            tracing::warn!(
                error = why,
                "the archive cannot be written: commits go on locally and are published when it is back"
            );
        }
        self.set(ArchiveState::Unreachable, Some(why));
    }

    fn recovered(&self) {
        if self.standing().state == ArchiveState::Unreachable {
            tracing::info!("the archive can be written again");
        }
        self.set(ArchiveState::Synced, None);
    }
}

enum Trouble {
    Later(String),
    Never(PutError),
}
