//! On which thread a request is done: in the request loop, on the pool, or parked until
//! what it commits is in the archive. Must not know what is asked.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use fuser::{Errno, ReplyEmpty};

use super::Adapter;
use crate::db::{Database, DbError, Done};
use crate::fuse::committing::commit;
use crate::fuse::errno;
use crate::fuse::handles::Handle;
use crate::fuse::permissions::Caller;
use crate::fuse::placement::alone;
use crate::fuse::pool::Pool;
use crate::fuse::tree::Tree;

/// An fsync that takes no longer may be done in the request loop.
const QUICK: Duration = Duration::from_millis(1);

impl Adapter {
    /// Does on the pool what commits, once the archive has it.
    pub(super) fn committing(
        &self,
        db: Arc<Database>,
        submit: impl FnOnce(&Database, Done) -> Result<bool, DbError> + Send + 'static,
        then: impl FnOnce(Result<(), Errno>) + Send + 'static,
    ) {
        let pool = self.pool.clone();
        self.pool.run(move || commit(&pool, &db, submit, then));
    }

    /// Writes to a WAL whose commits count only once the archive has them.
    pub(super) fn write_frames(
        &self,
        (caller, handle, db): (Caller, Arc<Handle>, Arc<Database>),
        offset: u64,
        data: &[u8],
        answer: impl FnOnce(Result<(), Errno>) + Send + 'static,
    ) {
        let end = offset + data.len() as u64;
        let (tree, pool) = (self.tree.clone(), self.pool.clone());
        if db.frames_are_plain() {
            let written = tree.write(caller, &handle, offset, data);
            return match written.and_then(|()| db.completed_frame(end).map_err(errno::report)) {
                Ok(None) => answer(Ok(())),
                Ok(Some(last)) => {
                    self.pool.run(move || commit_frames(&pool, tree, (handle, db), last, answer))
                }
                Err(errno) => answer(Err(errno)),
            };
        }
        let data = data.to_owned();
        self.pool.run(move || {
            let checked = db.before_frames(offset, data.len() as u64).map_err(errno::report);
            let written = checked.and_then(|()| tree.write(caller, &handle, offset, &data));
            match written.and_then(|()| db.completed_frame(end).map_err(errno::report)) {
                Ok(None) => answer(Ok(())),
                Ok(Some(last)) => commit_frames(&pool, tree, (handle, db), last, answer),
                Err(errno) => answer(Err(errno)),
            }
        });
    }

    /// Does an fsync in the request loop where only its caller would wait: another thread
    /// costs two switches, which are a tenth of an fsync on a fast disk. On a slow disk, or
    /// with others about, on the pool.
    pub(super) fn at_once_or_later(
        &self,
        reply: ReplyEmpty,
        job: impl FnOnce(&Tree) -> Result<(), Errno> + Send + 'static,
    ) {
        if !alone() || self.slow.load(Ordering::Relaxed) {
            let (tree, slow) = (self.tree.clone(), self.slow.clone());
            return self.pool.run(move || answer(reply, timed(&slow, || job(&tree))));
        }
        answer(reply, timed(&self.slow, || job(&self.tree)));
    }

    /// Does on the pool what is answered with nothing.
    pub(super) fn later(
        &self,
        reply: ReplyEmpty,
        job: impl FnOnce(&Tree) -> Result<(), Errno> + Send + 'static,
    ) {
        let tree = self.tree.clone();
        self.pool.run(move || answer(reply, job(&tree)));
    }
}

/// Answers a write once the archive has what it commits; then its writer publishes it, or
/// turns out to be dead.
fn commit_frames(
    pool: &Pool,
    tree: Arc<Tree>,
    (handle, db): (Arc<Handle>, Arc<Database>),
    last: u32,
    answer: impl FnOnce(Result<(), Errno>) + Send + 'static,
) {
    commit(
        pool,
        &db,
        |db, done| db.submit_frames(last, done),
        move |go| {
            answer(go);
            tree.watch.look(handle.node.ino);
        },
    );
}

/// Does `job`, and notes whether it took too long to be done in the request loop.
fn timed<T>(slow: &AtomicBool, job: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let done = job();
    slow.store(start.elapsed() > QUICK, Ordering::Relaxed);
    done
}

pub(super) fn answer(reply: ReplyEmpty, result: Result<(), Errno>) {
    match result {
        Ok(()) => reply.ok(),
        Err(errno) => reply.error(errno),
    }
}
