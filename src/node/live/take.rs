//! Change sets that came from the primary: verified, and applied while applications
//! read. Must not wait longer than it is told.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::time::{Duration, Instant};

use crate::db::{Database, DbError, Goal, LiveApply};
use crate::ltx::{Decoder, Header, LtxError};
use crate::peer::stream::{Ltx, ReceivedChange};
use crate::peer::wire::ChangeHead;
use crate::store::Store;
use crate::words::{DbName, PageSum};

/// How often it is asked whether a commit of this node has its answer, should nobody tell.
const ANSWER: Duration = Duration::from_millis(20);

/// What became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// It is applied.
    Applied,
    /// The database has it already.
    Before,
    /// It does not continue the database's position.
    NotNext,
}

/// Why a change set cannot be taken in.
#[derive(Debug, thiserror::Error)]
pub enum TakeError {
    #[error("a change set of database {db} from the primary is damaged: {why}")]
    Damaged { db: DbName, why: String },
    #[error(transparent)]
    Database(#[from] DbError),
    #[error("reading a change set of database {db} that came from the primary: {source}")]
    Io { db: DbName, source: io::Error },
}

impl TakeError {
    /// Whether applications were in the way: it can be tried again.
    pub fn is_busy(&self) -> bool {
        matches!(self, TakeError::Database(DbError::Busy { .. }))
    }
}

/// Applies change sets of one database that follow each other, as one, unless they are
/// there or do not fit. `archived`: the archive has all of them.
pub(super) fn take(
    store: &Store,
    run: &[ReceivedChange],
    archived: bool,
    patience: Duration,
) -> Result<Taken, TakeError> {
    let Some(head) = run.last().map(|last| &last.head) else { return Ok(Taken::Before) };
    let database = store.entry(&head.db)?;
    for change in run {
        wait_for_answer(store, &database, &change.head, patience)?;
    }
    let at = database.pos();
    let there = run.iter().take_while(|change| change.head.post.txid <= at.txid).count();
    let run = &run[there..];
    let Some(from) = run.first().map(|first| first.head.pre) else { return Ok(Taken::Before) };
    if at != from {
        return Ok(Taken::NotNext);
    }
    let goal = Goal { pos: head.post, page_size: head.page_size, pages: head.commit };
    let mut live = database.apply_live(from, goal, head.timestamp)?;
    if !archived {
        // The primary puts it into the archive, unless this node takes over before.
        live = live.not_archived();
    }
    for change in run {
        spool(&live, change)?;
    }
    live.finish(patience)?;
    Ok(Taken::Applied)
}

/// A commit that was made here under the halt lock comes back on the stream, perhaps before
/// the primary's answer that lets it count.
fn wait_for_answer(
    store: &Store,
    database: &Database,
    head: &ChangeHead,
    patience: Duration,
) -> Result<(), TakeError> {
    let deadline = Instant::now() + patience;
    loop {
        let seen = store.news().count();
        if !database.awaits(head.post) {
            return Ok(());
        }
        if Instant::now() >= deadline {
            let what = "a commit waits for the primary's answer".to_owned();
            return Err(DbError::Busy { db: head.db.clone(), what }.into());
        }
        store.news().wait(seen, ANSWER);
    }
}

/// Takes in the pages of a change set; of a page the last content counts.
fn spool(live: &LiveApply<'_>, change: &ReceivedChange) -> Result<(), TakeError> {
    let head = &change.head;
    match &change.ltx {
        Ltx::Memory(bytes) => pages(live, head, &bytes[..]),
        Ltx::File(file) => {
            let io = |source| TakeError::Io { db: head.db.clone(), source };
            let file = File::open(file.path()).map_err(io)?;
            pages(live, head, BufReader::with_capacity(1 << 18, file))
        }
    }
}

fn pages(live: &LiveApply<'_>, head: &ChangeHead, ltx: impl Read) -> Result<(), TakeError> {
    let damaged = |why: String| TakeError::Damaged { db: head.db.clone(), why };
    let failed = |error: LtxError| damaged(error.to_string());
    let mut decoder = Decoder::new(ltx).map_err(failed)?;
    if !says_the_same(decoder.header(), head) {
        return Err(damaged("its header is that of another one".to_owned()));
    }
    let (mut page, mut count) = (Vec::new(), 0);
    while let Some(pgno) = decoder.next_page(&mut page).map_err(failed)? {
        let kept = live.page(pgno, &page, PageSum::of(pgno, &page));
        kept.map_err(|source| TakeError::Io { db: head.db.clone(), source })?;
        count += 1;
    }
    let trailer = decoder.finish().map_err(failed)?;
    if trailer.post != Some(head.post.checksum) || count != head.pages {
        return Err(damaged("it leads elsewhere than it says".to_owned()));
    }
    Ok(())
}

fn says_the_same(header: &Header, head: &ChangeHead) -> bool {
    let (min, max) = (head.pre.txid.next(), head.post.txid);
    (header.min, header.max) == (min, max)
        && header.pre == head.pre.checksum
        && (header.page_size, header.commit, header.timestamp)
            == (head.page_size, head.commit, head.timestamp)
}
