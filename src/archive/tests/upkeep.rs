//! Compaction, snapshots, retention: whatever they do, every moment that is to be
//! kept restores exactly.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::model::{Bed, Model, State, assert_all_restorable, assert_restores, seed};
use super::outside::Outside;
use crate::archive::{
    Archive, ArchiveError, Kind, LostBranch, Occasion, PutError, Severity, SnapshotSource, Snapshots, Target,
    keys,
};
use crate::ltx::Codec;
use crate::object::{Counted, Faulty, FileStore, MemoryStore, ObjectStore, S3Store};
use crate::words::{Clock, DbName, PageSize, Pgno, Pos, Txid};

pub(super) fn sound(archive: &Archive) {
    let findings = archive.verify(None, true).expect("readable");
    let damage: Vec<_> = findings.iter().filter(|finding| finding.severity == Severity::Damage).collect();
    assert!(damage.is_empty(), "{damage:#?}");
}

pub(super) fn small(bed: &mut Bed) {
    bed.options.max_tail_segments = 4;
    bed.options.fan_in = 3;
    bed.options.grace = Duration::from_secs(30);
}

#[test]
fn compaction_keeps_every_transaction_restorable() {
    for codec in [Codec::Zstd { level: 1 }, Codec::Lz4] {
        let mut bed = Bed::new();
        small(&mut bed);
        bed.options.codec = codec;
        let writer = bed.writer(1);
        let mut model = Model::new("a.db", 3);
        for _ in 0..80 {
            writer.put(&[model.commit(bed.tick()), model.commit(bed.tick())]).expect("a put");
            writer.upkeep(Occasion::Running, &()).expect("upkeep");
        }
        assert!(writer.head().tail().len() <= 5);
        let objects = writer.head().objects(&model.db).to_vec();
        assert!(objects.len() < 30, "{} objects", objects.len());
        assert!(objects.iter().any(|object| object.kind == Kind::Merged(2)));
        assert_all_restorable(writer.archive(), &model, Txid::new(1));
        sound(writer.archive());
    }
}

#[test]
fn after_a_clean_stop_the_next_start_reads_almost_nothing() {
    let counted = Arc::new(Counted::new(Arc::new(MemoryStore::new())));
    let bed = Bed::on(counted.clone());
    let writer = bed.writer(1);
    let mut model = Model::new("a.db", 3);
    for _ in 0..40 {
        writer.put(&[model.commit(bed.tick())]).expect("a put");
    }
    let before = counted.totals().calls();
    writer.upkeep(Occasion::Stopping, &()).expect("upkeep");
    assert!(counted.totals().calls() - before <= 5, "a pack, a merged file, the manifest, two listings");
    let before = counted.totals().calls();
    let archive = bed.archive();
    let head = archive.head().expect("a head");
    assert_eq!(head.pos(&model.db), model.pos());
    assert!(counted.totals().calls() - before <= 4, "the manifest twice, the log's list, its end");
    let plan = archive.plan(&head, &model.db, Target::Latest).expect("a plan");
    assert_eq!(plan.steps.len(), 1);
    assert_all_restorable(&archive, &model, Txid::new(1));
    assert_eq!(writer.upkeep(Occasion::Stopping, &()).expect("nothing left").rounds, 0);
}

#[test]
fn upkeep_with_nothing_to_do_makes_no_request() {
    let store = Arc::new(Faulty::new(Arc::new(MemoryStore::new())));
    let bed = Bed::on(store.clone());
    let writer = bed.writer(1);
    writer.put(&[Model::new("a.db", 1).commit(bed.tick())]).expect("a put");
    store.forget_calls();
    writer.upkeep(Occasion::Running, &()).expect("upkeep");
    assert!(store.calls().is_empty(), "{:?}", store.calls());
}

#[test]
fn what_is_superseded_is_deleted_after_the_time_of_grace_and_not_before() {
    let mut bed = Bed::new();
    small(&mut bed);
    let writer = bed.writer(1);
    let mut model = Model::new("a.db", 3);
    for _ in 0..5 {
        writer.put(&[model.commit(bed.tick())]).expect("a put");
    }
    let early = writer.head();
    writer.upkeep(Occasion::Asked, &()).expect("upkeep");
    let archive = bed.archive();
    let plan = archive.plan(&early, &model.db, Target::Latest).expect("the old head's plan");
    archive.restore(&plan, &super::model::Pages::default(), &()).expect("its segments are still there");
    bed.clock.advance(Duration::from_secs(31));
    assert!(writer.upkeep(Occasion::Asked, &()).expect("upkeep").deleted >= 5);
    let left = bed.store.list(keys::LOG, None).expect("a list");
    assert_eq!(left.len(), 1, "only the seal: {left:?}");
    sound(&archive);
}

#[test]
fn what_is_older_than_retention_goes_and_every_moment_within_stays() {
    retention(Bed::new());
}

#[test]
fn on_minio_too_every_moment_within_retention_stays() {
    let Some(minio) = Outside::minio() else { return };
    let place = minio.place(&format!("retention-{:016x}", rand::random::<u64>()));
    retention(Bed::on(Arc::new(S3Store::new(place).expect("a store"))));
}

fn retention(mut bed: Bed) {
    let seed = seed();
    small(&mut bed);
    bed.options.retention = Duration::from_secs(60);
    bed.options.snapshot_interval = Duration::from_secs(20);
    let writer = bed.writer(1);
    let mut model = Model::new("a.db", seed);
    let mut idle = Model::new("idle.db", seed);
    writer.put(&[idle.commit(bed.tick())]).expect("a put");
    for _ in 0..300 {
        writer.put(&[model.commit(bed.tick())]).expect("a put");
        writer.upkeep(Occasion::Running, &()).expect("upkeep");
    }
    writer.upkeep(Occasion::Asked, &()).expect("upkeep");
    let (archive, head) = (bed.archive(), writer.head());
    let cutoff = bed.clock.now().before(bed.options.retention);
    let first = model.states.iter().rev().find(|state| state.time <= cutoff).expect("older");
    for state in model.states.iter().filter(|state| state.time >= first.time) {
        if state.time >= cutoff {
            assert_restores(&archive, &model.db, Target::Timestamp(state.time), state);
        }
    }
    let begin = archive.plan(&head, &model.db, Target::Timestamp(cutoff)).expect("the first moment");
    assert!(begin.pos.txid <= first.pos.txid);
    assert!(archive.plan(&head, &model.db, Target::Txid(Txid::new(5))).is_err(), "long gone");
    assert_restores(&archive, &idle.db, Target::Latest, idle.last());
    assert!(head.objects(&model.db).len() < 40, "{}", head.objects(&model.db).len());
    let manifest = bed.store.get(keys::MANIFEST).expect("reachable").expect("there").body;
    assert!(manifest.len() < 40_000, "{} bytes", manifest.len());
    sound(&archive);
}

#[test]
fn a_dropped_database_is_forgotten_after_retention_but_its_position_is_not() {
    let mut bed = Bed::new();
    small(&mut bed);
    bed.options.retention = Duration::from_secs(60);
    let writer = bed.writer(1);
    let mut model = Model::new("a.db", 3);
    for _ in 0..3 {
        writer.put(&[model.commit(bed.tick())]).expect("a put");
    }
    let alive = model.last().clone();
    writer.put(&[model.drop_database(bed.tick())]).expect("a put");
    writer.upkeep(Occasion::Asked, &()).expect("upkeep");
    assert_restores(&bed.archive(), &model.db, Target::Timestamp(alive.time), &alive);
    bed.clock.advance(Duration::from_secs(61));
    writer.upkeep(Occasion::Asked, &()).expect("upkeep");
    assert!(writer.head().objects(&model.db).is_empty());
    assert_eq!(bed.archive().head().expect("a head").pos(&model.db), model.pos());
    writer.put(&[model.vacuum(512, 2, bed.tick())]).expect("born again");
    writer.upkeep(Occasion::Asked, &()).expect("upkeep");
    assert_restores(&bed.archive(), &model.db, Target::Latest, model.last());
    sound(&bed.archive());
}

/// A local image that may stand anywhere.
struct Image(State, PageSize);

impl SnapshotSource for Image {
    fn pos(&self) -> Pos {
        self.0.pos
    }
    fn page_size(&self) -> PageSize {
        self.1
    }
    fn commit(&self) -> u32 {
        u32::try_from(self.0.pages.len()).expect("small")
    }
    fn page(&mut self, pgno: Pgno, page: &mut [u8]) -> io::Result<()> {
        page.copy_from_slice(self.0.pages.get(pgno.get() as usize - 1).expect("a page"));
        Ok(())
    }
}

struct Local(State, PageSize);

impl Snapshots for Local {
    fn open(&self, _: &DbName) -> Option<Box<dyn SnapshotSource + '_>> {
        Some(Box::new(Image(self.0.clone(), self.1)))
    }
}

#[test]
fn a_snapshot_is_made_of_local_data_and_refused_if_that_is_not_what_it_says() {
    let counted = Arc::new(Counted::new(Arc::new(MemoryStore::new())));
    let mut bed = Bed::on(counted.clone());
    small(&mut bed);
    bed.options.snapshot_interval = Duration::from_secs(5);
    let writer = bed.writer(1);
    let mut model = Model::new("a.db", 3);
    writer.put(&[model.vacuum(512, 2000, bed.tick())]).expect("a put");
    writer.upkeep(Occasion::Asked, &()).expect("upkeep");
    for _ in 1..10 {
        writer.put(&[model.touch(bed.tick())]).expect("a put");
    }
    let mut wrong = model.states[8].clone();
    wrong.pages[0] = Arc::new(vec![9; 512]);
    let error = writer.upkeep(Occasion::Asked, &Local(wrong, model.page_size)).expect_err("other pages");
    assert!(matches!(error, PutError::Refused(ArchiveError::Checksum { .. })), "{error}");
    let read = counted.totals().bytes_read();
    let local = Local(model.states[8].clone(), model.page_size);
    writer.upkeep(Occasion::Asked, &local).expect("upkeep");
    assert!(counted.totals().bytes_read() - read < 50_000, "nothing big is downloaded");
    let snapshot = writer.head().objects(&model.db).iter().find(|o| o.kind == Kind::Snapshot).cloned();
    assert_eq!(snapshot.expect("a snapshot").change.post, model.states[8].pos);
    assert_all_restorable(&bed.archive(), &model, Txid::new(1));
    sound(&bed.archive());
}

#[test]
fn a_large_change_set_is_an_object_of_its_own_and_restores_like_any_other() {
    let mut bed = Bed::new();
    small(&mut bed);
    let writer = bed.writer(1);
    let mut model = Model::new("a.db", 3);
    let dir = tempfile::tempdir().expect("a directory");
    writer.put(&[model.commit(bed.tick())]).expect("a put");
    let mut set = model.vacuum(512, 3000, bed.tick());
    let crate::archive::Body::Bytes(bytes) = &set.body else { panic!("in memory") };
    let path = dir.path().join("big.ltx");
    std::fs::write(&path, bytes).expect("written");
    set.body = crate::archive::Body::File(path);
    writer.put(&[set, model.commit(bed.tick())]).expect("a put");
    writer.put(&[model.commit(bed.tick())]).expect("a put");
    assert_all_restorable(&bed.archive(), &model, Txid::new(1));
    sound(&bed.archive());
    writer.upkeep(Occasion::Stopping, &()).expect("upkeep");
    assert!(writer.head().tail().is_empty());
    assert_all_restorable(&bed.archive(), &model, Txid::new(1));
    sound(&bed.archive());
}

#[test]
fn a_database_that_comes_with_a_past_begins_as_one_change_set() {
    let mut bed = Bed::new();
    small(&mut bed);
    let writer = bed.writer(1);
    let mut model = Model::new("a.db", 3);
    for _ in 0..9 {
        model.commit(bed.tick());
    }
    writer.put(&[model.whole()]).expect("a put");
    writer.upkeep(Occasion::Asked, &()).expect("upkeep");
    let begin = model.pos().txid;
    for _ in 0..9 {
        writer.put(&[model.commit(bed.tick())]).expect("a put");
        writer.upkeep(Occasion::Asked, &()).expect("upkeep");
    }
    assert_all_restorable(&bed.archive(), &model, begin);
    sound(&bed.archive());
}

#[test]
fn verify_finds_what_is_missing_damaged_or_left_over() {
    let mut bed = Bed::new();
    small(&mut bed);
    let writer = bed.writer(1);
    let mut model = Model::new("a.db", 3);
    for _ in 0..6 {
        writer.put(&[model.commit(bed.tick())]).expect("a put");
    }
    writer.upkeep(Occasion::Asked, &()).expect("upkeep");
    sound(&bed.archive());
    let object = writer.head().objects(&model.db)[0].clone();
    let good = bed.store.get(&object.key).expect("reachable").expect("there").body;
    let mut bad = good.to_vec();
    let middle = bad.len() / 2;
    bad[middle] ^= 1;
    let put = |key: &str, body: bytes::Bytes| {
        bed.store.put(key, body, crate::object::PutCond::Always).expect("a put")
    };
    put(&object.key, bad.into());
    assert!(bed.archive().verify(None, false).expect("readable").is_empty(), "the size is right");
    let findings = bed.archive().verify(None, true).expect("readable");
    assert!(findings.iter().any(|f| f.severity == Severity::Damage && f.what == object.key), "{findings:?}");
    put(&object.key, good.slice(..middle));
    assert!(!bed.archive().verify(None, false).expect("readable").is_empty());
    bed.store.delete(&object.key).expect("deleted");
    let findings = bed.archive().verify(None, false).expect("readable");
    assert!(findings.iter().any(|finding| finding.why == "it is missing"), "{findings:?}");
    put(&object.key, good);
    put("db/a.db/tx/stray", bytes::Bytes::new());
    let findings = bed.archive().verify(None, true).expect("readable");
    assert!(matches!(&findings[..], [one] if one.severity == Severity::Leftover), "{findings:?}");
}

#[test]
fn history_lists_every_transaction_once() {
    let mut bed = Bed::new();
    small(&mut bed);
    bed.options.snapshot_interval = Duration::from_secs(10);
    let writer = bed.writer(1);
    let mut model = Model::new("a.db", 3);
    for _ in 0..30 {
        writer.put(&[model.commit(bed.tick())]).expect("a put");
        writer.upkeep(Occasion::Running, &()).expect("upkeep");
    }
    let (archive, head) = (bed.archive(), writer.head());
    let all = archive
        .history(&head, &model.db, crate::words::Timestamp::from_millis(0), bed.clock.now())
        .expect("a history");
    assert_eq!(
        all.iter().map(|point| point.pos).collect::<Vec<_>>(),
        model.states.iter().map(|state| state.pos).collect::<Vec<_>>()
    );
    assert!(all.iter().any(|point| point.snapshot));
    let (from, to) = (model.states[10].time, model.states[20].time);
    assert_eq!(archive.history(&head, &model.db, from, to).expect("a history").len(), 11);
}

/// Everything that can happen, in random order, on both kinds of stores.
#[test]
fn random_histories_restore_exactly_at_every_point() {
    let seed = seed();
    for round in 0..6 {
        let dir = tempfile::tempdir().expect("a directory");
        let inner: Arc<dyn ObjectStore> =
            if round % 3 == 2 { Arc::new(FileStore::new(dir.path())) } else { Arc::new(MemoryStore::new()) };
        random_history(seed.wrapping_add(round), inner);
    }
}

fn random_history(seed: u64, inner: Arc<dyn ObjectStore>) {
    let store = Arc::new(Faulty::new(inner));
    let mut bed = Bed::on(store.clone());
    small(&mut bed);
    let mut rng = StdRng::seed_from_u64(seed);
    bed.options.snapshot_interval = Duration::from_secs(rng.random_range(20..200));
    bed.options.max_tail_bytes = rng.random_range(2_000..200_000);
    if rng.random() {
        bed.options.codec = Codec::Lz4;
    }
    let mut models = [Model::new("a.db", seed), Model::new("b/c.db", seed ^ 7)];
    let mut epoch = 1;
    let mut writer = bed.writer(epoch);
    for _ in 0..60 {
        let model = &mut models[rng.random_range(0..2)];
        let mut sets = Vec::new();
        for _ in 0..rng.random_range(0..6) {
            let time = bed.tick();
            sets.push(match rng.random_range(0..40) {
                0 => model.vacuum(if rng.random() { 512 } else { 1024 }, rng.random_range(1..20), time),
                1 if !model.states.is_empty() && !model.last().pages.is_empty() => model.drop_database(time),
                _ => model.commit(time),
            });
        }
        store.chance(rng.random(), 0.1);
        while writer.put(&sets).is_err() {}
        if rng.random_range(0..4) == 0 {
            let occasion = [Occasion::Running, Occasion::Stopping, Occasion::Asked][rng.random_range(0..3)];
            let _ = writer.upkeep(occasion, &());
        }
        store.heal();
        if rng.random_range(0..10) == 0 {
            epoch += 1;
            writer = bed.writer(epoch);
        }
    }
    let archive = bed.archive();
    for model in &models {
        if !model.states.is_empty() {
            assert_all_restorable(&archive, model, Txid::new(1));
        }
    }
    writer.upkeep(Occasion::Asked, &()).expect("upkeep");
    bed.clock.advance(Duration::from_secs(100));
    writer.upkeep(Occasion::Asked, &()).expect("upkeep");
    for model in &models {
        if !model.states.is_empty() {
            assert_all_restorable(&archive, model, Txid::new(1));
        }
    }
    sound(&archive);
}

#[test]
fn branches_that_lost_expire_after_their_own_time() {
    let mut bed = Bed::new();
    small(&mut bed);
    bed.options.parked_retention = Duration::from_secs(3 * 24 * 3600);
    let writer = bed.writer(1);
    let mut model = Model::new("a.db", 5);
    let archive = bed.archive();
    let branch = |id: &str, at| LostBranch {
        id: id.to_owned(),
        db: model.db.clone(),
        pos: Pos::ZERO,
        from: None,
        at,
        node: None,
        size: None,
        stored: 0,
    };
    archive.keep_branch(&branch("old", bed.tick()), None).expect("kept");
    bed.clock.advance(Duration::from_secs(2 * 24 * 3600));
    archive.keep_branch(&branch("young", bed.tick()), None).expect("kept");
    let ids = || -> Vec<String> {
        archive.lost_branches().expect("listed").into_iter().map(|branch| branch.id).collect()
    };
    let mut work = || {
        for _ in 0..6 {
            writer.put(&[model.commit(bed.tick())]).expect("a put");
            writer.upkeep(Occasion::Running, &()).expect("upkeep");
        }
    };
    work();
    assert_eq!(ids(), ["old", "young"]);
    bed.clock.advance(Duration::from_secs(2 * 24 * 3600));
    work();
    assert_eq!(ids(), ["young"]);
}

#[test]
fn the_manifest_of_five_hundred_databases_stays_small() {
    let bed = Bed::new();
    let writer = bed.writer(1);
    let mut models: Vec<Model> = (0..500).map(|n| Model::new(&format!("tenants/{n:04}.db"), n)).collect();
    for _ in 0..3 {
        let sets: Vec<_> = models.iter_mut().map(|model| model.commit(bed.tick())).collect();
        writer.put(&sets).expect("a put");
        writer.upkeep(Occasion::Stopping, &()).expect("upkeep");
    }
    let size = bed.store.head(keys::MANIFEST).expect("head").expect("a manifest").size;
    println!("500 databases with three sessions each: {size} bytes of manifest");
    assert!(size < 2 << 20, "{size}");
}
