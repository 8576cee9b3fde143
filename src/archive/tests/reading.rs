//! Head, plans and restores.

use std::sync::Arc;

use super::model::{Bed, Model, Pages, assert_all_restorable, assert_restores, seed};
use crate::archive::{ArchiveError, ChainFault, FileSink, Relation, Target, keys};
use crate::ltx::Codec;
use crate::object::{Counted, MemoryStore, PutCond};
use crate::words::{DbName, Pos, Seq, Timestamp, Txid};

#[test]
fn every_transaction_of_the_log_restores_exactly() {
    let seed = seed();
    let bed = Bed::new();
    let writer = bed.writer(1);
    let mut models = [Model::new("a.db", seed), Model::new("dir/b ü.db", seed ^ 1)];
    models[1].codec = Codec::Lz4;
    for _ in 0..30 {
        for model in &mut models {
            let sets: Vec<_> = (0..3).map(|_| model.commit(bed.tick())).collect();
            writer.put(&sets).expect("a put");
        }
    }
    for model in &models {
        assert_eq!(writer.head().pos(&model.db), model.pos());
        assert_all_restorable(writer.archive(), model, Txid::new(1));
        assert_restores(writer.archive(), &model.db, Target::Latest, model.last());
    }
}

#[test]
fn a_page_size_change_and_a_drop_are_history_like_any_other() {
    let bed = Bed::new();
    let writer = bed.writer(1);
    let mut model = Model::new("a.db", 5);
    let mut sets = Vec::new();
    for _ in 0..5 {
        sets.push(model.commit(bed.tick()));
    }
    sets.push(model.vacuum(1024, 4, bed.tick()));
    sets.push(model.commit(bed.tick()));
    sets.push(model.drop_database(bed.tick()));
    writer.put(&sets).expect("a put");
    let head = writer.head();
    assert!(head.standing(&model.db).is_some_and(crate::archive::Standing::is_dropped));
    let error = writer.archive().plan(&head, &model.db, Target::Latest).expect_err("dropped");
    assert!(error.to_string().contains("it was dropped"), "{error}");
    writer.put(&[model.vacuum(512, 3, bed.tick()), model.commit(bed.tick())]).expect("a put");
    assert_all_restorable(writer.archive(), &model, Txid::new(1));
}

#[test]
fn a_restored_file_is_the_database() {
    let bed = Bed::new();
    let writer = bed.writer(1);
    let mut model = Model::new("a.db", 6);
    for _ in 0..20 {
        writer.put(&[model.commit(bed.tick())]).expect("a put");
    }
    let archive = writer.archive();
    let plan = archive.plan(&writer.head(), &model.db, Target::Latest).expect("a plan");
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("a.db");
    let sink = FileSink::create(&path, plan.page_size, plan.commit).expect("a file");
    archive.restore(&plan, &sink, &()).expect("a restore");
    sink.finish().expect("durable");
    let expected: Vec<u8> = model.last().pages.iter().flat_map(|page| page.iter().copied()).collect();
    assert_eq!(std::fs::read(&path).expect("readable"), expected);
    assert!(FileSink::create(&path, plan.page_size, plan.commit).is_err(), "nothing is overwritten");
}

#[test]
fn the_head_takes_a_handful_of_requests_for_any_number_of_databases() {
    let counted = Arc::new(Counted::new(Arc::new(MemoryStore::new())));
    let bed = Bed::on(counted.clone());
    let writer = bed.writer(1);
    let sets: Vec<_> = (0..200).map(|at| Model::new(&format!("{at}.db"), at).commit(bed.tick())).collect();
    writer.put(&sets).expect("a put");
    let before = counted.totals().calls();
    let head = bed.archive().head().expect("a head");
    assert_eq!(head.databases().len(), 200);
    let calls = counted.totals().calls() - before;
    assert!(calls <= 8, "{calls} requests");
}

#[test]
fn a_head_that_is_brought_up_to_date_reads_only_what_is_new() {
    let counted = Arc::new(Counted::new(Arc::new(MemoryStore::new())));
    let bed = Bed::on(counted.clone());
    let writer = bed.writer(1);
    let mut model = Model::new("a.db", 1);
    for _ in 0..40 {
        writer.put(&[model.commit(bed.tick())]).expect("a put");
    }
    let archive = bed.archive();
    let mut head = archive.head().expect("a head");
    writer.put(&[model.commit(bed.tick())]).expect("a put");
    let before = counted.totals().calls();
    archive.refresh(&mut head).expect("a head");
    assert_eq!(head.pos(&model.db), model.pos());
    assert!(counted.totals().calls() - before <= 4);
}

#[test]
fn a_missing_segment_is_a_fault_and_not_an_older_head() {
    let bed = Bed::new();
    let writer = bed.writer(1);
    let mut model = Model::new("a.db", 1);
    for _ in 0..5 {
        writer.put(&[model.commit(bed.tick())]).expect("a put");
    }
    bed.store.delete(&keys::segment(Seq::new(3))).expect("deleted");
    let error = bed.archive().head().expect_err("a gap");
    assert!(matches!(error, ArchiveError::Chain(ChainFault::Gap(seq)) if seq == Seq::new(3)), "{error}");
}

#[test]
fn a_damaged_or_exchanged_segment_is_a_fault() {
    let bed = Bed::new();
    let writer = bed.writer(1);
    let mut model = Model::new("a.db", 1);
    for _ in 0..3 {
        writer.put(&[model.commit(bed.tick())]).expect("a put");
    }
    let get = |seq| bed.store.get(&keys::segment(Seq::new(seq))).expect("reachable").expect("there").body;
    let (two, three) = (get(2), get(3));
    let put = |seq, body: bytes::Bytes| {
        bed.store.put(&keys::segment(Seq::new(seq)), body, PutCond::Always).expect("a put");
    };
    for at in 0..three.len() {
        let mut damaged = three.to_vec();
        damaged[at] ^= 1;
        put(3, damaged.into());
        assert!(bed.archive().head().is_err(), "byte {at}");
    }
    put(3, two);
    assert!(matches!(bed.archive().head(), Err(ArchiveError::Chain(ChainFault::Number(..)))));
}

#[test]
fn damaged_pages_never_come_out_of_a_restore() {
    let bed = Bed::new();
    let writer = bed.writer(1);
    let mut model = Model::new("a.db", 1);
    for _ in 0..3 {
        writer.put(&[model.commit(bed.tick())]).expect("a put");
    }
    let archive = bed.archive();
    let head = archive.head().expect("a head");
    let mut plan = archive.plan(&head, &model.db, Target::Latest).expect("a plan");
    plan.pos.checksum = crate::words::Checksum::EMPTY;
    let error = archive.restore(&plan, &Pages::default(), &()).expect_err("another checksum");
    assert!(matches!(error, ArchiveError::Checksum { .. }), "{error}");
    plan.steps.remove(0);
    let error = archive.restore(&plan, &Pages::default(), &()).expect_err("a missing page");
    assert!(matches!(error, ArchiveError::MissingPage { .. }), "{error}");
}

#[test]
fn a_cancelled_restore_ends_with_an_error() {
    let bed = Bed::new();
    let writer = bed.writer(1);
    let mut model = Model::new("a.db", 1);
    writer.put(&[model.vacuum(512, 2000, bed.tick())]).expect("a put");
    let plan = bed.archive().plan(&writer.head(), &model.db, Target::Latest).expect("a plan");
    let error = bed.archive().restore(&plan, &Pages::default(), &|_| false).expect_err("cancelled");
    assert!(matches!(error, ArchiveError::Cancelled), "{error}");
}

#[test]
fn a_position_is_told_from_one_that_left_the_chain() {
    let bed = Bed::new();
    let writer = bed.writer(1);
    let mut model = Model::new("a.db", 1);
    for _ in 0..6 {
        writer.put(&[model.commit(bed.tick())]).expect("a put");
    }
    let (archive, head, db) = (bed.archive(), writer.head(), model.db.clone());
    let relate = |pos| archive.relate(&head, &db, pos).expect("readable");
    let middle = model.states[2].pos;
    assert_eq!(relate(model.pos()), Relation::Head);
    assert_eq!(relate(middle), Relation::Ancestor);
    assert_eq!(relate(Pos::ZERO), Relation::Ancestor);
    let lost = Pos { checksum: model.pos().checksum, ..middle };
    assert_eq!(relate(lost), Relation::NotOnChain { archived: middle });
    assert_eq!(relate(Pos { txid: Txid::new(99), ..middle }), Relation::Ahead);
}

#[test]
fn an_older_copy_catches_up_with_the_pages_that_changed() {
    let seed = seed();
    let bed = Bed::new();
    let writer = bed.writer(1);
    let mut model = Model::new("a.db", seed);
    for _ in 0..40 {
        writer.put(&[model.commit(bed.tick())]).expect("a put");
    }
    let (archive, head) = (bed.archive(), writer.head());
    for state in &model.states {
        let plan = archive.plan_since(&head, &model.db, state.pos).expect("a plan");
        let sink = Pages::default();
        archive.restore(&plan, &sink, &()).expect("a restore");
        let mut pages = state.pages.clone();
        pages.resize(plan.commit as usize, Arc::new(Vec::new()));
        for (number, page) in sink.0.into_inner() {
            pages[number as usize - 1] = Arc::new(page);
        }
        assert_eq!(pages, model.last().pages, "from {}", state.pos);
    }
}

#[test]
fn unknown_points_and_databases_are_refused_with_what_to_do() {
    let bed = Bed::new();
    let writer = bed.writer(1);
    let mut model = Model::new("a.db", 1);
    writer.put(&[model.commit(bed.tick())]).expect("a put");
    let (archive, head) = (bed.archive(), writer.head());
    let other = DbName::new("b.db").expect("a name");
    let error = archive.plan(&head, &other, Target::Latest).expect_err("no such database");
    assert!(matches!(error, ArchiveError::NoDatabase { .. }), "{error}");
    for target in [Target::Txid(Txid::new(2)), Target::Timestamp(Timestamp::from_millis(5))] {
        let error = archive.plan(&head, &model.db, target).expect_err("no such point");
        assert!(matches!(error, ArchiveError::NoSuchPoint { .. }), "{error}");
    }
}

#[test]
fn an_archive_whose_manifest_is_gone_is_not_taken_for_a_new_one() {
    let bed = Bed::new();
    let writer = bed.writer(1);
    writer.put(&[Model::new("a.db", 1).commit(bed.tick())]).expect("a put");
    bed.store.delete(keys::MANIFEST).expect("deleted");
    let opened = crate::archive::Archive::open_or_init(bed.store.clone(), bed.options.clone());
    assert!(matches!(opened, Err(ArchiveError::NoManifest { .. })));
}
