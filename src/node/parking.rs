//! Branches that lost go to the archive too: one thread uploads those that the data
//! directory has and the archive has not, trying again while the storage is away, and
//! forgets those past their time that the archive has (or had). It sleeps until one is
//! parked; as long as none is, it asks the storage for nothing. Must not park.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crate::archive::{Archive, ArchiveError, LostBranch, Options};
use crate::object::ObjectStore;
use crate::store::{ParkedBranch, Parks, Store, StoreError, parked};

/// How long to wait after a failed upload, at first and at most.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// How often the time of what is kept is looked at; no storage is asked for that.
const LOOK_AGAIN: Duration = Duration::from_secs(24 * 3600);

/// The thread.
pub(super) struct Parking {
    parks: Arc<Parks>,
    // Not waited for: an upload may take longer than a stop may; it begins anew at the
    // next start.
    _thread: JoinHandle<()>,
}

impl Parking {
    /// Begins with what is there.
    pub fn start(
        store: Arc<Store>,
        storage: Arc<dyn ObjectStore>,
        options: Options,
    ) -> std::io::Result<Parking> {
        let parks = Arc::clone(store.parks());
        let keeper = Keeper { dir: store.dir().to_owned(), parks: Arc::clone(&parks), storage, options };
        drop(store);
        let thread = std::thread::Builder::new().name("litefs-parking".to_owned());
        Ok(Parking { parks, _thread: thread.spawn(move || keeper.run())? })
    }
}

impl Drop for Parking {
    fn drop(&mut self) {
        self.parks.end();
    }
}

struct Keeper {
    dir: std::path::PathBuf,
    parks: Arc<Parks>,
    storage: Arc<dyn ObjectStore>,
    options: Options,
}

/// Why a branch is not in the archive yet.
#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Keeper {
    fn run(&self) {
        let (mut pause, mut said) = (FIRST_PAUSE, false);
        loop {
            let timeout = match self.keep() {
                Ok(0) => None,
                Ok(_) => {
                    (pause, said) = (FIRST_PAUSE, false);
                    Some(LOOK_AGAIN)
                }
                Err(error) => {
                    if !said {
                        tracing::warn!(
                            %error,
                            "a branch that lost is not in the archive yet: it stays in the data directory, and is \
                             tried again"
                        );
                        said = true;
                    }
                    let now = pause;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                    Some(now)
                }
            };
            if !self.parks.wait(timeout) {
                return;
            }
        }
    }

    /// Does what is to be done now; returns how many branches there are.
    fn keep(&self) -> Result<usize, Trouble> {
        let until = self.options.clock.now().before(self.options.parked_retention);
        for branch in parked(&self.dir)?.iter().filter(|branch| !branch.archived) {
            self.upload(branch)?;
        }
        let branches = parked(&self.dir)?;
        for branch in branches.iter().filter(|branch| branch.archived && branch.parked.at <= until) {
            branch.forget()?;
            tracing::info!(id = branch.id, "a branch that lost is past storage.parked-retention: forgotten");
        }
        Ok(branches.len())
    }

    fn upload(&self, branch: &ParkedBranch) -> Result<(), Trouble> {
        let archive = Archive::open(Arc::clone(&self.storage), self.options.clone())?;
        let lost = LostBranch {
            id: branch.id.clone(),
            db: branch.parked.db.clone(),
            pos: branch.parked.pos,
            from: branch.parked.from,
            at: branch.parked.at,
            node: branch.parked.node,
            size: branch.size,
            stored: 0,
        };
        archive.keep_branch(&lost, branch.size.map(|_| branch.file.as_path()))?;
        branch.mark_archived()?;
        tracing::info!(id = branch.id, "a branch that lost is in the archive too, under parked/");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::db::Parked;
    use crate::object::{Faulty, MemoryStore};
    use crate::words::{DbName, ManualClock, NodeId, Pos, Timestamp};

    const DAY: Duration = Duration::from_secs(86_400);

    fn park(data: &std::path::Path, id: &str, at: Timestamp, content: &[u8]) {
        let dir = data.join("parked").join(id);
        std::fs::create_dir_all(&dir).expect("create");
        let db = DbName::new("a.db").expect("a name");
        let what = Parked { db, pos: Pos::ZERO, from: None, at, node: Some(NodeId::new(7)) };
        std::fs::write(dir.join("parked.json"), serde_json::to_vec(&what).expect("json")).expect("write");
        std::fs::write(dir.join("database"), content).expect("write");
    }

    #[test]
    fn a_branch_is_in_the_archive_before_it_is_forgotten_and_expires_in_both() {
        let data = tempfile::tempdir().expect("a directory");
        let clock = Arc::new(ManualClock::new(Timestamp::from_millis(1_800_000_000_000)));
        let storage = Arc::new(Faulty::new(Arc::new(MemoryStore::new())));
        let options = Options {
            clock: clock.clone(),
            parked_retention: 2 * DAY,
            spool: data.path().join("spool"),
            ..Options::default()
        };
        let keeper = Keeper {
            dir: data.path().to_owned(),
            parks: Arc::default(),
            storage: storage.clone(),
            options: options.clone(),
        };
        assert_eq!(keeper.keep().expect("nothing to do"), 0);
        assert!(storage.calls().is_empty(), "without a branch nothing is asked of the storage");
        let archive = Archive::open_or_init(storage.clone(), options).expect("an archive");
        let content: Vec<u8> = (0..100_000_u32).flat_map(u32::to_le_bytes).collect();
        park(data.path(), "a.db-1", crate::words::Clock::now(&*clock), &content);

        storage.partition(true);
        clock.advance(3 * DAY);
        keeper.keep().expect_err("the storage is away");
        assert_eq!(parked(data.path()).expect("listed").len(), 1, "old, and not in the archive: it stays");
        storage.partition(false);

        keeper.keep().expect("the storage is back");
        let kept = archive.lost_branches().expect("listed");
        assert_eq!((kept.len(), kept[0].id.as_str(), kept[0].size), (1, "a.db-1", Some(400_000)));
        let mut taken = Vec::new();
        archive.take_branch(&kept[0], &mut taken).expect("whole");
        assert!(taken == content);
        assert_eq!(parked(data.path()).expect("listed").len(), 0, "past its time, and the archive had it");
    }
}
