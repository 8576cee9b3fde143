//! What upkeep is due: which segments, files and snapshots to make into what, and
//! what may go. Pure. Must not do I/O.
//!
//! Levels: segments of the log become, per database, a *pack* (every transaction for
//! itself: any moment stays restorable) and a merged file of level 1 (a fast way to
//! the head). `fan_in` merged files become one of the next level, up to 3; small
//! packs become larger ones; snapshots make the way to the head short again.
//!
//! What is superseded leaves the manifest first, is *doomed*, and is deleted after
//! the time of grace.

use std::collections::BTreeSet;

use super::change::{Change, Place};
use super::head::{Head, Standing, TailSegment};
use super::manifest::{Database, Kind, ObjectRef};
use super::{Options, keys};
use crate::ltx::Codec;
use crate::words::{DbName, Seq, Timestamp};

/// When upkeep runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Occasion {
    /// While the node runs: what its limits ask for.
    Running,
    /// The node stops: the log's tail, so that the next start finds nothing to read.
    Stopping,
    /// Someone asked for it: everything that can be.
    Asked,
}

/// One thing to do. Those of one plan are independent of each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act {
    /// Make the segments up to this one into packs and merged files.
    Compact {
        /// The new horizon.
        upto: Seq,
    },
    /// Merge these, which follow each other, into one file of this level.
    Merge {
        /// Whose.
        db: DbName,
        /// The level of the result.
        level: u8,
        /// What is merged, oldest first.
        objects: Vec<ObjectRef>,
    },
    /// Put the transactions of these, which follow each other, into one pack.
    Repack {
        /// Whose.
        db: DbName,
        /// What is put together, oldest first.
        objects: Vec<ObjectRef>,
    },
    /// Make a snapshot.
    Snapshot {
        /// Of which database.
        db: DbName,
    },
    /// Take these out of the manifest: nobody needs them any more.
    Retire {
        /// Whose.
        db: DbName,
        /// Their keys.
        keys: Vec<String>,
    },
    /// Delete these, which left the manifest long enough ago.
    Delete {
        /// Their keys.
        keys: Vec<String>,
    },
}

/// The highest level of merged files.
const TOP: u8 = 3;
/// From so many databases on the log may become longer, in proportion: the objects that
/// compaction makes, some for each, are then fewer than the segments.
const DATABASES: u64 = 8;
/// But no more than so many times: a start after a crash reads all of it.
const LONGEST: u64 = 8;
/// A log without change sets is shortened when it has more segments than this.
const MAX_SEALS: usize = 8;
/// Change sets that a snapshot would save reading are worth one when they are more
/// than the last snapshot and than this.
const SNAPSHOT_WORTH: u64 = 16 << 20;
/// Packs below these sizes are small, of class 0, 1, …; a run of `fan_in` of up to a
/// class becomes one. So each byte is written again once a class at most.
const CLASSES: [u64; 4] = [64 << 10, 512 << 10, 4 << 20, 32 << 20];
/// No pack spans more than this part of the retention: it goes when all of it is old.
const SPAN: u32 = 8;
/// No pack becomes larger than this: it is held in memory.
const MAX_PACK: u64 = 64 << 20;

/// What is due.
pub fn plan_upkeep(head: &Head, now: Timestamp, occasion: Occasion, options: &Options) -> Vec<Act> {
    if let Some(upto) = compact_upto(head, occasion, options) {
        // What becomes of the rest depends on what this makes.
        return vec![Act::Compact { upto }];
    }
    if occasion == Occasion::Stopping {
        return Vec::new();
    }
    let mut acts = Vec::new();
    for (db, database) in &head.manifest().databases {
        let retired = retire(database, now, options);
        if !retired.is_empty() {
            acts.push(Act::Retire { db: db.clone(), keys: retired });
            continue;
        }
        if head.standing(db).is_some_and(|standing| snapshot_is_due(database, standing, occasion, options)) {
            acts.push(Act::Snapshot { db: db.clone() });
            continue;
        }
        acts.extend(merge(db, database, options));
        acts.extend(repack(db, database, options));
    }
    let doomed = head.manifest().doomed.iter();
    let ripe: Vec<String> = doomed
        .filter(|doomed| doomed.since <= now.before(options.grace))
        .map(|doomed| doomed.key.clone())
        .collect();
    // A few old objects do no harm: deleting them waits until it is worth a
    // change of the manifest, or until something else changes it anyway.
    if !ripe.is_empty() && (occasion == Occasion::Asked || !acts.is_empty() || ripe.len() >= options.fan_in) {
        acts.push(Act::Delete { keys: ripe });
    }
    acts
}

/// Up to which segment the log is to be compacted now.
pub(super) fn compact_upto(head: &Head, occasion: Occasion, options: &Options) -> Option<Seq> {
    let tail = head.tail();
    let size: u64 = tail.iter().map(|tail| tail.segment.size).sum();
    let entries: usize = tail.iter().map(|tail| tail.segment.entries.len()).sum();
    let many = tail.len() as u64 > worth_compacting(tail, options) || size > options.max_tail_bytes;
    let due = match occasion {
        Occasion::Running => many,
        Occasion::Stopping | Occasion::Asked => entries > 0 || tail.len() > MAX_SEALS,
    };
    if !due {
        return None;
    }
    let mut sum = 0;
    let fitting = tail.iter().take_while(|tail| {
        let first = sum == 0;
        sum += tail.segment.size;
        first || sum <= options.max_tail_bytes
    });
    fitting.last().map(|tail| tail.segment.head.seq)
}

/// How long the log may become: longer the more databases are in it, since each of them
/// gets objects of its own.
fn worth_compacting(tail: &[TailSegment], options: &Options) -> u64 {
    let least = options.max_tail_segments;
    if tail.len() as u64 <= least {
        return least;
    }
    let entries = tail.iter().flat_map(|tail| &tail.segment.entries);
    let databases: BTreeSet<&DbName> = entries.map(|entry| &entry.db).collect();
    (databases.len() as u64 * least / DATABASES).clamp(least, least * LONGEST)
}

/// What retention and better files make needless.
fn retire(database: &Database, now: Timestamp, options: &Options) -> Vec<String> {
    let objects = &database.objects;
    let cutoff = now.before(options.retention);
    if database.commit == 0 && database.timestamp <= cutoff {
        return objects.iter().map(|object| object.key.clone()).collect();
    }
    let base = objects
        .iter()
        .filter(|object| object.is_full() && object.change.timestamp <= cutoff)
        .max_by_key(|object| object.change.max());
    // The base stays, whatever else does what it does: what is older than it goes.
    let is_base = |object: &ObjectRef| base.is_some_and(|base| object.key == base.key);
    let is_old = |object: &ObjectRef| base.is_some_and(|base| object.change.max() <= base.change.max());
    let retired = objects
        .iter()
        .filter(|object| !is_base(object) && (is_old(object) || is_superseded(object, objects)));
    retired.map(|object| object.key.clone()).collect()
}

/// Whether a merged file of a higher level, or a larger pack, does all that it does.
fn is_superseded(object: &ObjectRef, others: &[ObjectRef]) -> bool {
    let covers = |other: &&ObjectRef| {
        other.key != object.key
            && other.change.pre.txid <= object.change.pre.txid
            && object.change.max() <= other.change.max()
    };
    let mut covering = others.iter().filter(covers);
    match object.kind {
        Kind::Merged(level) => {
            let packed = !object.is_exact() || others.iter().filter(covers).any(|o| o.kind == Kind::Pack);
            let is_better = |other: &ObjectRef| match other.kind {
                Kind::Merged(higher) => higher > level,
                Kind::Snapshot => level < TOP,
                Kind::Pack | Kind::Change => false,
            };
            packed && covering.any(is_better)
        }
        Kind::Pack => covering.any(|other| other.kind == Kind::Pack),
        Kind::Change | Kind::Snapshot => false,
    }
}

fn snapshot_is_due(database: &Database, stands: &Standing, occasion: Occasion, options: &Options) -> bool {
    // Litestream does not see change sets that are objects of their own.
    let sees = |object: &&ObjectRef| options.codec != Codec::Lz4 || object.kind != Kind::Change;
    let full = database.objects.iter().filter(|object| object.is_full()).filter(sees);
    if stands.is_dropped() || database.objects.is_empty() {
        return false;
    }
    let Some(last) = full.max_by_key(|object| object.change.max()) else { return true };
    if last.change.max() >= database.pos.txid {
        return false;
    }
    let since: u64 = database
        .objects
        .iter()
        .filter(|object| object.kind != Kind::Pack && object.change.max() > last.change.max())
        .map(|object| object.size)
        .sum();
    let old = last.change.timestamp <= stands.timestamp.before(options.snapshot_interval);
    let is_merged_twice = since > SNAPSHOT_WORTH && since > last.size;
    old || is_merged_twice || (occasion == Occasion::Asked && since > last.size)
}

/// Enough files of one level after the last full one.
fn merge(db: &DbName, database: &Database, options: &Options) -> Option<Act> {
    let full = database.objects.iter().filter(|object| object.is_full() && object.kind == Kind::Snapshot);
    let from = full.map(|object| object.change.max()).max().unwrap_or_default();
    (1..TOP).find_map(|level| {
        let higher = database.objects.iter().filter(|o| matches!(o.kind, Kind::Merged(l) if l > level));
        let covered = higher.map(|object| object.change.max()).max().unwrap_or_default().max(from);
        let objects = database.objects.iter();
        let fresh: Vec<ObjectRef> = objects
            .filter(|object| object.kind == Kind::Merged(level) && object.change.max() > covered)
            .cloned()
            .collect();
        let run = longest_run(&fresh);
        (run.len() >= options.fan_in.max(2)).then(|| Act::Merge {
            db: db.clone(),
            level: level + 1,
            objects: run.to_vec(),
        })
    })
}

/// The first of the longest runs of objects that follow each other without a gap.
fn longest_run(objects: &[ObjectRef]) -> &[ObjectRef] {
    objects
        .chunk_by(|a, b| a.change.post == b.change.pre)
        .rev()
        .max_by_key(|run| run.len())
        .unwrap_or_default()
}

/// Enough small packs in a row.
fn repack(db: &DbName, database: &Database, options: &Options) -> Option<Act> {
    let exact: Vec<ObjectRef> = exact(database);
    CLASSES.iter().find_map(|limit| {
        let is_small = |object: &ObjectRef| object.size < *limit && object.kind != Kind::Change;
        exact
            .chunk_by(|a, b| a.change.post == b.change.pre && is_small(a) && is_small(b))
            .map(|run| {
                let (mut size, first) = (0, run.first().map_or_else(Timestamp::default, |o| o.first));
                let fits = run.iter().take_while(|object| {
                    size += object.size;
                    size <= MAX_PACK && first >= object.change.timestamp.before(options.retention / SPAN)
                });
                run.get(..fits.count()).unwrap_or_default()
            })
            .find(|run| run.len() >= options.fan_in.max(2))
            .map(|run| Act::Repack { db: db.clone(), objects: run.to_vec() })
    })
}

/// What keeps transactions one by one, without what a pack has already.
pub(super) fn exact(database: &Database) -> Vec<ObjectRef> {
    let mut exact: Vec<ObjectRef> = Vec::new();
    for object in database.objects.iter().filter(|object| object.is_exact()) {
        let covers = |other: &&ObjectRef| {
            other.kind == Kind::Pack
                && other.key != object.key
                && other.change.pre.txid <= object.change.pre.txid
                && object.change.max() <= other.change.max()
        };
        if !database.objects.iter().any(|other| covers(&other)) {
            exact.push(object.clone());
        }
    }
    exact
}

/// A stretch of one database's part of the tail: what becomes one pack and one
/// merged file, or is an object already.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stretch {
    pub(super) db: DbName,
    /// Segment, change set, where in it: oldest first.
    pub(super) entries: Vec<(Seq, Change, Place)>,
}

/// The tail up to a segment, by database.
pub(super) fn stretches(head: &Head, upto: Seq) -> Vec<Stretch> {
    let mut by_db: std::collections::BTreeMap<&DbName, Vec<Stretch>> = std::collections::BTreeMap::new();
    for tail in head.tail().iter().filter(|tail| tail.segment.head.seq <= upto) {
        for entry in &tail.segment.entries {
            let item = (tail.segment.head.seq, entry.change, entry.place.clone());
            let is_own = matches!(entry.place, Place::Object { .. });
            let list = by_db.entry(&entry.db).or_default();
            let joins = |last: &Stretch| {
                !is_own && matches!(last.entries.as_slice(), [(_, _, Place::Here { .. }), ..])
            };
            match list.last_mut().filter(|last| joins(last)) {
                Some(last) => last.entries.push(item),
                None => list.push(Stretch { db: entry.db.clone(), entries: vec![item] }),
            }
        }
    }
    by_db.into_values().flatten().collect()
}

/// The key of a pack or merged file with this content.
pub(super) fn key_of(db: &DbName, kind: Kind, change: &Change) -> String {
    match kind {
        Kind::Pack | Kind::Change => keys::pack(db, change.min(), change.max()),
        Kind::Merged(level) => keys::level(db, level, change.min(), change.max()),
        Kind::Snapshot => keys::level(db, 9, change.min(), change.max()),
    }
}
