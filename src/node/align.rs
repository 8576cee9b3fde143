//! Head first: before a node serves, each of its databases stands at the archive's
//! head, or ahead of it on the same chain. What to do is a pure decision; nothing
//! newer is ever overwritten by something older.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::archive::{
    Archive, ArchiveError, Head, PageSink, Plan, Relation, Standing, Target, Watch, in_parallel,
};
use crate::db::{Applying, Database, Goal, Incoming, LiveApply};
use crate::store::Store;
use crate::words::{DbName, PageSum, Pgno, Pos, Timestamp};

use super::NodeError;

/// So many databases are brought to the head at once: each waits for the storage a few
/// times.
const AT_ONCE: usize = 8;
/// So many requests at once each of them may make then.
const LEAST_PARALLEL: usize = 4;

/// What one database needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// It stands at the head.
    Stay,
    /// It is ahead: its waiting change sets continue the chain.
    Publish,
    /// The archive has nothing of it, and its log no longer begins at the first
    /// transaction: it is published as a whole.
    PublishWhole,
    /// Apply what the archive has since its position.
    CatchUp,
    /// Restore it from the archive.
    Restore,
    /// It was dropped.
    Drop,
    /// Its branch lost: keep it aside, then restore.
    Park,
}

/// A database as the node has it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Local {
    pub pos: Pos,
    /// There is a file.
    pub exists: bool,
    /// Between two positions.
    pub incomplete: bool,
    /// Where its oldest waiting change set begins.
    pub waiting_from: Option<Pos>,
    /// What waits will not be published: this node follows, and another one has begun
    /// to write without it.
    pub overruled: bool,
}

/// What to do with a database.
pub(super) fn decide(local: Local, standing: Option<&Standing>, relation: Relation) -> Action {
    let Some(standing) = standing else {
        return match local.waiting_from {
            _ if local.pos == Pos::ZERO => Action::Stay,
            Some(from) if from == Pos::ZERO => Action::Publish,
            _ => Action::PublishWhole,
        };
    };
    let from_archive = if standing.is_dropped() { Action::Drop } else { Action::Restore };
    if local.incomplete {
        let on_chain = matches!(relation, Relation::Head | Relation::Ancestor);
        let known = local.pos != Pos::ZERO && on_chain && !standing.is_dropped();
        return if known { Action::CatchUp } else { from_archive };
    }
    if local.pos == Pos::ZERO {
        return if local.exists { Action::Park } else { from_archive };
    }
    match relation {
        Relation::Head => Action::Stay,
        Relation::Ancestor if standing.is_dropped() => Action::Drop,
        Relation::Ancestor => Action::CatchUp,
        Relation::Ahead if local.waiting_from == Some(standing.pos) && !local.overruled => Action::Publish,
        Relation::Ahead | Relation::NotOnChain { .. } | Relation::Unknown => Action::Park,
    }
}

/// How databases are brought to the head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum How {
    /// Nobody is in them.
    Offline,
    /// Applications may be reading; each is waited for no longer than this.
    Live(Duration),
}

/// What for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Aim<'a> {
    /// To write: what waits and continues the chain is published.
    Write,
    /// To follow: what waits is the writer's, or lost once another writer has begun.
    Follow,
    /// To follow a writer that can be asked: of what waits it does not have these.
    Heed(&'a BTreeSet<DbName>),
}

impl Aim<'_> {
    /// Whether what waits of a database is lost where another writer has begun.
    fn gives_up(self, db: &DbName) -> bool {
        match self {
            Aim::Write => false,
            Aim::Follow => true,
            Aim::Heed(lost) => lost.contains(db),
        }
    }
}

/// What came of it.
#[derive(Debug, Default)]
pub(super) struct Aligned {
    /// Databases to be published as a whole.
    pub wholes: Vec<DbName>,
    /// Databases that moved.
    pub moved: Vec<DbName>,
}

/// Brings every database to the head.
///
/// # Errors
/// With applications in the mount, `Diverged` where a branch has to be parked: that
/// needs the database alone.
pub(super) fn align(
    store: &Store,
    archive: &Archive,
    head: &Head,
    (how, aim): (How, Aim<'_>),
    watch: &dyn Watch,
) -> Result<Aligned, NodeError> {
    let names: BTreeSet<DbName> = head
        .databases()
        .keys()
        .cloned()
        .chain(store.all().iter().map(|database| database.name().clone()))
        .collect();
    store.commits().retain(|commit| commit.meta.post.txid > head.pos(&commit.meta.db).txid);
    let names: Vec<DbName> = names.into_iter().collect();
    let at_once = if how == How::Offline { names.len().clamp(1, AT_ONCE) } else { 1 };
    let parallel = (archive.options().parallel / at_once).max(LEAST_PARALLEL);
    let act = Act { store, archive: &archive.with_parallel(parallel), head, how, watch };
    let outcomes = in_parallel(at_once, &names, |name| act.align(name, aim));
    let mut aligned = Aligned::default();
    for (name, outcome) in names.into_iter().zip(outcomes) {
        let outcome = outcome?;
        if outcome.whole {
            aligned.wholes.push(name.clone());
        }
        if outcome.moved {
            aligned.moved.push(name);
        }
    }
    Ok(aligned)
}

fn unsure(db: &DbName) -> NodeError {
    NodeError::Align { db: db.clone(), why: "the archive no longer has it".to_owned() }
}

fn goal(pos: Pos, standing: &Standing) -> Goal {
    Goal { pos, page_size: standing.page_size, pages: standing.commit }
}

struct Whole<'a>(Incoming<'a>);

impl PageSink for Whole<'_> {
    fn page(&self, pgno: Pgno, data: &[u8], sum: PageSum) -> std::io::Result<()> {
        self.0.page(pgno, data, sum)
    }

    fn run(&self, first: Pgno, data: &[u8], sums: &[PageSum]) -> std::io::Result<()> {
        self.0.run(first, data, sums)
    }
}

struct Delta<'a>(Applying<'a>);

impl PageSink for Delta<'_> {
    fn page(&self, pgno: Pgno, data: &[u8], sum: PageSum) -> std::io::Result<()> {
        self.0.page(pgno, data, sum)
    }
}

fn plan_goal(plan: &Plan) -> Goal {
    Goal { pos: plan.pos, page_size: plan.page_size, pages: plan.commit }
}

struct Live<'a>(LiveApply<'a>);

impl PageSink for Live<'_> {
    fn page(&self, pgno: Pgno, data: &[u8], sum: PageSum) -> std::io::Result<()> {
        self.0.page(pgno, data, sum)
    }
}

/// What came of one database.
struct Outcome {
    whole: bool,
    moved: bool,
}

/// What bringing databases to the head needs.
struct Act<'a> {
    store: &'a Store,
    archive: &'a Archive,
    head: &'a Head,
    how: How,
    watch: &'a dyn Watch,
}

impl Act<'_> {
    /// Brings one database to the head.
    fn align(&self, name: &DbName, aim: Aim<'_>) -> Result<Outcome, NodeError> {
        let (store, head) = (self.store, self.head);
        let database = store.entry(name)?;
        let standing = head.standing(name);
        let local = Local {
            pos: database.pos(),
            exists: database.exists(),
            incomplete: database.incomplete(),
            waiting_from: store.commits().oldest_of(name).map(|commit| commit.meta.pre),
            overruled: aim.gives_up(name) && head.epoch() > store.epoch(),
        };
        let relation = match standing {
            Some(standing) if local.pos == standing.pos => Relation::Head,
            Some(_) if local.pos != Pos::ZERO => self.archive.relate(head, name, local.pos)?,
            _ => Relation::Unknown,
        };
        let action = decide(local, standing, relation);
        if action != Action::Stay {
            tracing::debug!(db = %name, pos = %local.pos, ?action, "aligning with the archive");
        }
        match action {
            Action::Stay | Action::PublishWhole => store.commits().forget(name),
            Action::Publish => {}
            Action::CatchUp => {
                store.commits().forget(name);
                self.catch_up(&database)?;
            }
            Action::Restore => self.restore(&database)?,
            Action::Drop => {
                let standing = standing.ok_or_else(|| unsure(name))?;
                store.commits().forget(name);
                self.drop(&database, standing)?;
            }
            Action::Park if self.how != How::Offline => {
                return Err(NodeError::Diverged { db: name.clone(), branch: local.pos });
            }
            Action::Park => {
                let parked = store.park(&database)?;
                tracing::error!(
                    db = %name, branch = %parked.pos, archive = %head.pos(name),
                    "this node's branch lost: it is kept in the data directory under parked/, and the database is \
                     restored from the archive"
                );
                match standing {
                    Some(standing) if standing.is_dropped() => self.drop(&database, standing)?,
                    Some(_) => self.restore(&database)?,
                    None => return Err(unsure(name)),
                }
            }
        }
        Ok(Outcome { whole: action == Action::PublishWhole, moved: database.pos() != local.pos })
    }

    fn restore(&self, database: &Database) -> Result<(), NodeError> {
        let plan = self.archive.plan(self.head, database.name(), Target::Latest)?;
        match self.how {
            How::Live(patience) if database.exists() => self.apply(database, &plan, patience)?,
            how => {
                let _hidden = database.hide();
                let sink = Whole(database.install(plan_goal(&plan))?);
                self.archive.restore(&plan, &sink, self.watch)?;
                sink.0.finish()?;
                if let How::Live(patience) = how {
                    database.appears();
                    database.hold_writers(patience)?;
                }
            }
        }
        tracing::info!(db = %database.name(), pos = %plan.pos, bytes = plan.size(), "restored from the archive");
        Ok(())
    }

    fn catch_up(&self, database: &Database) -> Result<(), NodeError> {
        let from = database.pos();
        let plan = match self.archive.plan_since(self.head, database.name(), from) {
            Ok(plan) => plan,
            Err(ArchiveError::NoSuchPoint { .. }) => return self.restore(database),
            Err(error) => return Err(error.into()),
        };
        match self.how {
            How::Live(patience) => {
                self.apply(database, &plan, patience)?;
                tracing::debug!(db = %database.name(), %from, to = %plan.pos, "followed the archive");
            }
            How::Offline => {
                let sink = Delta(database.apply(plan_goal(&plan))?);
                self.archive.restore(&plan, &sink, self.watch)?;
                sink.0.finish()?;
                tracing::info!(
                    db = %database.name(), %from, to = %plan.pos, bytes = plan.size(), "caught up from the archive"
                );
            }
        }
        Ok(())
    }

    fn apply(&self, database: &Database, plan: &Plan, patience: Duration) -> Result<(), NodeError> {
        let sink = Live(database.apply_live(database.pos(), plan_goal(plan), self.time_of(database))?);
        self.archive.restore(plan, &sink, self.watch)?;
        Ok(sink.0.finish(patience)?)
    }

    fn time_of(&self, database: &Database) -> Timestamp {
        self.head.standing(database.name()).map_or_else(Timestamp::default, |standing| standing.timestamp)
    }

    fn drop(&self, database: &Database, standing: &Standing) -> Result<(), NodeError> {
        let goal = goal(standing.pos, standing);
        match self.how {
            How::Offline => database.apply_drop(goal)?,
            How::Live(patience) => {
                database.apply_live(database.pos(), goal, standing.timestamp)?.finish(patience)?
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::words::{Checksum, PageSize, Timestamp, Txid};

    fn pos(txid: u64) -> Pos {
        let checksum = Checksum::from_stored(1 << 63 | txid).expect("bit 63 is set");
        Pos { txid: Txid::new(txid), checksum }
    }

    fn at(txid: u64, commit: u32) -> Standing {
        let page_size = PageSize::new(4096).expect("a page size");
        Standing { pos: pos(txid), page_size, commit, timestamp: Timestamp::from_millis(0) }
    }

    fn local(txid: u64) -> Local {
        Local { pos: pos(txid), exists: true, incomplete: false, waiting_from: None, overruled: false }
    }

    #[test]
    fn empty_node_restores_what_the_archive_has() {
        let empty = Local { pos: Pos::ZERO, exists: false, ..local(0) };
        assert_eq!(decide(empty, Some(&at(5, 2)), Relation::Unknown), Action::Restore);
        assert_eq!(decide(empty, Some(&at(5, 0)), Relation::Unknown), Action::Drop);
    }

    #[test]
    fn only_a_branch_that_continues_the_head_is_published() {
        let ahead = |from| Local { waiting_from: Some(from), ..local(7) };
        assert_eq!(decide(ahead(pos(5)), Some(&at(5, 2)), Relation::Ahead), Action::Publish);
        let fork = Pos { checksum: Checksum::EMPTY, ..pos(5) };
        assert_eq!(decide(ahead(fork), Some(&at(5, 2)), Relation::Ahead), Action::Park);
        assert_eq!(decide(local(7), Some(&at(5, 2)), Relation::Ahead), Action::Park);
        let overruled = Local { overruled: true, ..ahead(pos(5)) };
        assert_eq!(decide(overruled, Some(&at(5, 2)), Relation::Ahead), Action::Park);
    }

    #[test]
    fn a_branch_that_lost_is_parked_and_never_overwritten() {
        for relation in [Relation::NotOnChain { archived: pos(7) }, Relation::Unknown] {
            assert_eq!(decide(local(7), Some(&at(9, 2)), relation), Action::Park);
        }
        let never_captured = Local { pos: Pos::ZERO, ..local(0) };
        assert_eq!(decide(never_captured, Some(&at(9, 2)), Relation::Unknown), Action::Park);
    }

    #[test]
    fn a_cut_off_install_is_done_again() {
        let cut = |txid| Local { incomplete: true, ..local(txid) };
        assert_eq!(decide(cut(3), Some(&at(9, 2)), Relation::Ancestor), Action::CatchUp);
        assert_eq!(decide(cut(3), Some(&at(9, 2)), Relation::Unknown), Action::Restore);
        assert_eq!(
            decide(Local { pos: Pos::ZERO, ..cut(0) }, Some(&at(9, 2)), Relation::Unknown),
            Action::Restore
        );
    }

    #[test]
    fn what_an_empty_archive_lacks_is_published() {
        assert_eq!(
            decide(Local { waiting_from: Some(Pos::ZERO), ..local(4) }, None, Relation::Unknown),
            Action::Publish
        );
        assert_eq!(
            decide(Local { waiting_from: Some(pos(2)), ..local(4) }, None, Relation::Unknown),
            Action::PublishWhole
        );
        assert_eq!(decide(local(4), None, Relation::Unknown), Action::PublishWhole);
    }
}
