//! Which objects give a database as of a moment, or what it needs since a position.
//! Pure: what only the inside of a pack can tell is asked for by its key, and the
//! plan is made again. Must not do I/O.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;

use super::change::{Change, Entry, Place};
use super::error::ArchiveError;
use super::head::{Head, TailSegment};
use super::keys;
use super::manifest::{Kind, ObjectRef};
use crate::words::{DbName, PageSize, Pos, Timestamp, Txid};

/// The state of a database that is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// The newest.
    Latest,
    /// After this transaction.
    Txid(Txid),
    /// After the last transaction that was committed at or before this time.
    Timestamp(Timestamp),
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Target::Latest => f.write_str("its newest state"),
            Target::Txid(txid) => write!(f, "TXID {txid}"),
            Target::Timestamp(time) => write!(f, "{time}"),
        }
    }
}

/// One LTX inside an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// What it does.
    pub change: Change,
    /// From which byte of the object on.
    pub offset: u64,
    /// So many bytes.
    pub len: u64,
}

/// Where the bytes of a step are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// An object that is one LTX.
    Object {
        /// CRC-64/NVME of its bytes, if known.
        sum: Option<u64>,
    },
    /// Parts of an object, oldest first; its bytes, if they are at hand.
    Parts(Vec<Part>, Option<Bytes>),
    /// A whole pack, of which only the pack itself knows the parts.
    Pack,
}

/// One object to be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Its key.
    pub key: String,
    /// Its size in bytes, or of the parts that are wanted of it.
    pub size: u64,
    /// What it does; of several parts, all together.
    pub change: Change,
    /// What of it is wanted.
    pub source: Source,
}

/// What to read to get a database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Which database.
    pub db: DbName,
    /// The position that the reader has already; `None`: nothing.
    pub base: Option<Pos>,
    /// The position that it gives.
    pub pos: Pos,
    /// The page size there.
    pub page_size: PageSize,
    /// The size of the database there, in pages; 0: dropped.
    pub commit: u32,
    /// When its last transaction was committed.
    pub timestamp: Timestamp,
    /// What to read, oldest first. They may overlap: the newest page counts.
    pub steps: Vec<Step>,
}

impl Plan {
    /// How many bytes are read at most.
    pub fn size(&self) -> u64 {
        self.steps.iter().map(|step| step.size).sum()
    }
}

/// How a position relates to the archive's chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Relation {
    /// It is the head.
    Head,
    /// It is on the chain, before the head.
    Ancestor,
    /// Its transaction is after the head's. Whether it continues the chain, only
    /// the change sets in between can tell.
    Ahead,
    /// The chain has another position at that transaction.
    NotOnChain {
        /// That position.
        archived: Pos,
    },
    /// It is older than the history, or inside of what was merged.
    Unknown,
}

/// The lists of change sets of the packs that were read, by key.
pub type Packs = HashMap<String, Arc<Vec<Entry>>>;

/// An answer, or what has to be read first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Need<T> {
    /// The answer.
    Have(T),
    /// This pack's list of change sets, and then ask again.
    Pack(ObjectRef),
}

/// A piece of a database's history.
struct Piece {
    step: Step,
    first: Timestamp,
    object: Option<ObjectRef>,
}

impl Piece {
    fn is_pack(&self) -> bool {
        self.step.source == Source::Pack
    }

    fn is_full(&self) -> bool {
        !self.is_pack() && self.step.change.is_full()
    }
}

/// What gives `target` of database `db` from nothing.
///
/// # Errors
/// `NoDatabase`, `NoSuchPoint`, or `Damaged` if there is a gap.
pub fn plan(head: &Head, db: &DbName, target: Target, packs: &Packs) -> Result<Need<Plan>, ArchiveError> {
    let standing = head.standing(db).ok_or_else(|| ArchiveError::NoDatabase { db: db.clone() })?;
    let pieces = pieces(head, db);
    let refused = |why: String| ArchiveError::NoSuchPoint { db: db.clone(), target: target.to_string(), why };
    let goal = match target {
        Target::Latest => {
            let Some(last) = pieces.iter().map(|piece| piece.step.change).find(|c| c.post == standing.pos)
            else {
                let why = if standing.is_dropped() { "it was dropped" } else { "no object ends there" };
                return Err(refused(why.to_owned()));
            };
            Need::Have(Some(last))
        }
        Target::Txid(txid) => at_txid(&pieces, packs, txid),
        Target::Timestamp(time) => at_time(&pieces, packs, time),
    };
    let goal = match goal {
        Need::Pack(pack) => return Ok(Need::Pack(pack)),
        Need::Have(Some(goal)) => goal,
        Need::Have(None) => {
            let first = pieces.iter().map(|piece| piece.first).min();
            let first = first.map_or("is empty".to_owned(), |first| format!("begins at {first}"));
            return Err(refused(format!("its history {first} and ends at {}", standing.pos.txid)));
        }
    };
    if goal.is_drop() {
        let at = goal.timestamp;
        return Err(refused(format!(
            "it was dropped with TXID {} at {at}; restore an earlier state",
            goal.max()
        )));
    }
    let base = pieces.iter().filter(|p| p.is_full() && p.step.change.max() <= goal.max());
    let (steps, from) = match base.max_by_key(|piece| piece.step.change.max()) {
        Some(base) => (vec![base.step.clone()], base.step.change.max()),
        None => (Vec::new(), Txid::ZERO),
    };
    let path = path(db, &pieces, packs, from, goal.max())?;
    Ok(finish(db, None, goal, steps, path))
}

/// What takes a reader of database `db` from `base`, which must be on the chain, to
/// the head.
///
/// # Errors
/// `Damaged` if there is a gap.
pub fn plan_since(head: &Head, db: &DbName, base: Pos, packs: &Packs) -> Result<Need<Plan>, ArchiveError> {
    let standing = head.standing(db).ok_or_else(|| ArchiveError::NoDatabase { db: db.clone() })?;
    let goal = Change {
        pre: base,
        post: standing.pos,
        page_size: standing.page_size,
        commit: standing.commit,
        pages: 0,
        timestamp: standing.timestamp,
    };
    let path = path(db, &pieces(head, db), packs, base.txid, goal.max())?;
    Ok(finish(db, Some(base), goal, Vec::new(), path))
}

fn finish(
    db: &DbName,
    base: Option<Pos>,
    goal: Change,
    mut steps: Vec<Step>,
    path: Need<Vec<Step>>,
) -> Need<Plan> {
    match path {
        Need::Pack(pack) => Need::Pack(pack),
        Need::Have(path) => {
            steps.extend(path);
            let Change { post: pos, page_size, commit, timestamp, .. } = goal;
            Need::Have(Plan { db: db.clone(), base, pos, page_size, commit, timestamp, steps })
        }
    }
}

/// How `pos` relates to the chain of database `db`.
pub fn relate(head: &Head, db: &DbName, pos: Pos, packs: &Packs) -> Need<Relation> {
    let stands = head.pos(db);
    if pos == stands {
        return Need::Have(Relation::Head);
    }
    if pos == Pos::ZERO {
        return Need::Have(Relation::Ancestor);
    }
    if pos.txid > stands.txid {
        return Need::Have(Relation::Ahead);
    }
    let judge = |archived: Pos| {
        if archived == pos { Relation::Ancestor } else { Relation::NotOnChain { archived } }
    };
    let pieces = pieces(head, db);
    let ends = pieces.iter().flat_map(|piece| [piece.step.change.pre, piece.step.change.post]);
    if let Some(archived) = ends.into_iter().find(|end| end.txid == pos.txid) {
        return Need::Have(judge(archived));
    }
    match at_txid(&pieces, packs, pos.txid) {
        Need::Pack(pack) => Need::Pack(pack),
        Need::Have(Some(change)) => Need::Have(judge(change.post)),
        Need::Have(None) => Need::Have(Relation::Unknown),
    }
}

/// Everything that holds history of `db`, by its first transaction.
fn pieces(head: &Head, db: &DbName) -> Vec<Piece> {
    let mut pieces: Vec<Piece> = head.objects(db).iter().map(of_object).collect();
    for tail in head.tail() {
        pieces.extend(of_segment(tail, db));
    }
    pieces.sort_by_key(|piece| piece.step.change.pre.txid);
    pieces
}

fn of_object(object: &ObjectRef) -> Piece {
    let source = match object.kind {
        Kind::Pack => Source::Pack,
        Kind::Change | Kind::Merged(_) | Kind::Snapshot => Source::Object { sum: object.sum },
    };
    let step = Step { key: object.key.clone(), size: object.size, change: object.change, source };
    Piece { step, first: object.first, object: Some(object.clone()) }
}

/// The pieces of `db` in a segment: one for each transaction, so that each can be
/// the end of a plan; `path` puts neighbours together again.
fn of_segment<'a>(tail: &'a TailSegment, db: &'a DbName) -> impl Iterator<Item = Piece> + 'a {
    let segment = keys::segment(tail.segment.head.seq);
    tail.segment.entries.iter().filter(move |entry| &entry.db == db).map(move |entry| {
        let change = entry.change;
        let step = match &entry.place {
            Place::Here { offset, len } => {
                let parts = vec![Part { change, offset: *offset, len: *len }];
                let source = Source::Parts(parts, tail.bytes.clone());
                Step { key: segment.clone(), size: *len, change, source }
            }
            Place::Object { key, size } => {
                Step { key: key.clone(), size: *size, change, source: Source::Object { sum: None } }
            }
        };
        Piece { step, first: change.timestamp, object: None }
    })
}

/// The change set that ends with transaction `txid`.
fn at_txid(pieces: &[Piece], packs: &Packs, txid: Txid) -> Need<Option<Change>> {
    if let Some(piece) = pieces.iter().find(|piece| piece.step.change.max() == txid) {
        return Need::Have(Some(piece.step.change));
    }
    let inside = |change: &Change| change.pre.txid < txid && txid < change.max();
    let Some(pack) = pieces.iter().find(|piece| piece.is_pack() && inside(&piece.step.change)) else {
        return Need::Have(None);
    };
    match (packs.get(&pack.step.key), &pack.object) {
        (None, Some(object)) => Need::Pack(object.clone()),
        (entries, _) => {
            let entries = entries.map_or(&[][..], |entries| entries.as_slice());
            Need::Have(entries.iter().map(|entry| entry.change).find(|change| change.max() == txid))
        }
    }
}

/// The last change set committed at or before `time`.
fn at_time(pieces: &[Piece], packs: &Packs, time: Timestamp) -> Need<Option<Change>> {
    let whole = pieces.iter().map(|piece| piece.step.change).filter(|change| change.timestamp <= time);
    let mut best = whole.max_by_key(Change::max);
    for piece in pieces.iter().filter(|piece| piece.is_pack()) {
        if piece.first > time || piece.step.change.timestamp <= time {
            continue;
        }
        match (packs.get(&piece.step.key), &piece.object) {
            (None, Some(object)) => return Need::Pack(object.clone()),
            (entries, _) => {
                let entries = entries.map_or(&[][..], |entries| entries.as_slice());
                let within = entries.iter().map(|entry| entry.change).filter(|c| c.timestamp <= time);
                best = best.into_iter().chain(within).max_by_key(Change::max);
            }
        }
    }
    Need::Have(best)
}

/// The steps from transaction `from` to transaction `to`: always the object that
/// goes furthest. One that begins before `from` will do, too: what it says of pages
/// that did not change since is still true.
fn path(
    db: &DbName,
    pieces: &[Piece],
    packs: &Packs,
    from: Txid,
    to: Txid,
) -> Result<Need<Vec<Step>>, ArchiveError> {
    let mut steps: Vec<Step> = Vec::new();
    let mut at = from;
    let mut rest = pieces.iter().peekable();
    let mut best: Option<&Piece> = None;
    while at < to {
        // Pieces are sorted by their begin; the best of those that begin in time is
        // kept while more of them come into reach.
        while let Some(piece) = rest.next_if(|piece| piece.step.change.pre.txid <= at) {
            let reach = |piece: &Piece| (piece.step.change.max(), !piece.is_pack());
            if piece.step.change.max() <= to && best.is_none_or(|best| reach(best) <= reach(piece)) {
                best = Some(piece);
            }
        }
        if let Some(best) = best.filter(|best| best.step.change.max() > at) {
            at = best.step.change.max();
            join(&mut steps, best.step.clone());
            continue;
        }
        let begins = |change: &Change| change.pre.txid <= at && at < change.max();
        let Some(pack) = pieces.iter().find(|p| p.is_pack() && begins(&p.step.change)) else {
            let why = format!("nothing in it takes database {db} from TXID {at} on");
            return Err(ArchiveError::damaged(keys::MANIFEST, why));
        };
        match (packs.get(&pack.step.key), &pack.object) {
            (None, Some(object)) => return Ok(Need::Pack(object.clone())),
            (entries, _) => {
                let before = at;
                for entry in entries.map_or(&[][..], |entries| entries.as_slice()) {
                    if let Place::Here { offset, len } = entry.place
                        && entry.change.pre.txid == at
                        && entry.change.max() <= to
                    {
                        at = entry.change.max();
                        let parts = vec![Part { change: entry.change, offset, len }];
                        let source = Source::Parts(parts, None);
                        let key = pack.step.key.clone();
                        join(&mut steps, Step { key, size: len, change: entry.change, source });
                    } else if entry.change.max() <= before {
                        continue;
                    }
                }
                if at == before {
                    let why = format!("it has no change set that takes database {db} on from TXID {at}");
                    return Err(ArchiveError::damaged(&pack.step.key, why));
                }
            }
        }
    }
    Ok(Need::Have(steps))
}

/// Adds a step; parts of the object that the last step reads join that.
fn join(steps: &mut Vec<Step>, step: Step) {
    if let Some(last) = steps.last_mut()
        && last.key == step.key
        && let (Source::Parts(parts, _), Source::Parts(more, _)) = (&mut last.source, &step.source)
    {
        parts.extend(more.iter().cloned());
        last.size += step.size;
        last.change = Change { pre: last.change.pre, ..step.change };
        return;
    }
    steps.push(step);
}
