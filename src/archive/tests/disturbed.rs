//! Upkeep that is disturbed: crashes, another node's upkeep, writers that slept, stores out
//! of reach. Whatever happens, nothing is lost and the next one goes on.

use std::sync::Arc;
use std::time::Duration;

use super::model::{Bed, Model, assert_all_restorable, assert_restores};
use super::upkeep::{small, sound};
use crate::archive::{Body, ChangeSet, Occasion, PutError, Severity, Target, keys};
use crate::object::{Faulty, MemoryStore, ObjectErrorKind, Op, PutCond};
use crate::words::Txid;

#[test]
fn a_crash_at_any_step_of_upkeep_loses_nothing_and_the_next_one_goes_on() {
    for kind in [None, Some(Op::Put)] {
        for step in 0.. {
            let store = Arc::new(Faulty::new(Arc::new(MemoryStore::new())));
            let mut bed = Bed::on(store.clone());
            small(&mut bed);
            bed.options.parallel = 1;
            bed.options.snapshot_interval = Duration::from_secs(8);
            let mut models = [Model::new("a.db", 3), Model::new("b.db", 4)];
            let writer = bed.writer(1);
            for _ in 0..12 {
                for model in &mut models {
                    writer.put(&[model.commit(bed.tick()), model.commit(bed.tick())]).expect("a put");
                }
            }
            bed.clock.advance(Duration::from_secs(60));
            store.forget_calls();
            match kind {
                None => store.die_after(step),
                Some(op) => store.rule(crate::object::Rule {
                    op: Some(op),
                    key: String::new(),
                    skip: step,
                    times: 1,
                    fault: crate::object::Fault::After,
                }),
            }
            let ended = writer.upkeep(Occasion::Asked, &());
            let steps = store.calls().len() as u64;
            store.heal();
            for model in &models {
                assert_restores(&bed.archive(), &model.db, Target::Latest, model.last());
            }
            let writer = bed.writer(2);
            writer.upkeep(Occasion::Asked, &()).expect("the next upkeep goes on");
            bed.clock.advance(Duration::from_secs(60));
            writer.upkeep(Occasion::Asked, &()).expect("and deletes");
            for model in &models {
                assert_all_restorable(&bed.archive(), model, Txid::new(1));
            }
            let findings = bed.archive().verify(None, true).expect("readable");
            assert!(findings.iter().all(|finding| finding.severity == Severity::Leftover), "{findings:#?}");
            if ended.is_ok() && step >= steps {
                break;
            }
            assert!(kind.is_some() || ended.is_err(), "step {step} of {steps}");
        }
    }
}

#[test]
fn two_nodes_that_do_upkeep_at_once_do_not_harm_each_other() {
    let mut bed = Bed::new();
    small(&mut bed);
    let old = bed.writer(1);
    let mut model = Model::new("a.db", 3);
    for _ in 0..6 {
        old.put(&[model.commit(bed.tick())]).expect("a put");
    }
    let new = bed.writer(2);
    // The old one does not know yet that it is fenced: what it compacts is true.
    old.upkeep(Occasion::Asked, &()).expect("upkeep of what it knows");
    let last = model.commit(bed.tick());
    new.put(std::slice::from_ref(&last)).expect("a put");
    new.upkeep(Occasion::Asked, &()).expect("it takes over the other's manifest");
    let error = old.upkeep(Occasion::Asked, &());
    assert!(error.is_ok_and(|done| done.rounds == 0), "nothing to do as far as it knows");
    let error = old.put(&[last]).expect_err("fenced");
    assert!(matches!(error, PutError::Fenced { .. }), "{error}");
    assert_all_restorable(&bed.archive(), &model, Txid::new(1));
    sound(&bed.archive());
}

#[test]
fn a_writer_that_slept_through_compaction_and_deletion_stays_fenced() {
    let mut bed = Bed::new();
    small(&mut bed);
    let old = bed.writer(1);
    let mut model = Model::new("a.db", 3);
    old.put(&[model.commit(bed.tick())]).expect("a put");
    let new = bed.writer(2);
    let fork = model.commit(bed.tick());
    for _ in 0..3 {
        new.upkeep(Occasion::Asked, &()).expect("upkeep");
        bed.clock.advance(Duration::from_secs(100));
    }
    assert!(new.head().tail().is_empty());
    let error = old.put(&[fork]).expect_err("its next number is taken for ever");
    assert!(matches!(error, PutError::Fenced { .. }), "{error}");
}

#[test]
fn a_seal_on_a_number_that_was_compacted_away_is_void() {
    let store = Arc::new(Faulty::new(Arc::new(MemoryStore::new())));
    let mut bed = Bed::on(store.clone());
    small(&mut bed);
    let old = Arc::new(bed.writer(1));
    let mut model = Model::new("a.db", 3);
    let (clock, putting) = (bed.clock.clone(), old.clone());
    let sets: Vec<_> = (0..6).map(|_| model.commit(bed.tick())).collect();
    let once = std::sync::atomic::AtomicBool::new(true);
    // Between the new writer's look at the head and its seal, the old one goes on,
    // compacts what it put, and deletes it.
    store.hook(move |call| {
        let is_seal = call.op == Op::Put && call.key == keys::segment(crate::words::Seq::new(2));
        if is_seal && once.swap(false, std::sync::atomic::Ordering::SeqCst) {
            for set in &sets {
                putting.put(std::slice::from_ref(set)).expect("not yet fenced");
            }
            for _ in 0..3 {
                putting.upkeep(Occasion::Asked, &()).expect("upkeep");
                clock.advance(Duration::from_secs(100));
            }
        }
        None
    });
    let new = bed.writer(2);
    assert_eq!(new.head().pos(&model.db), model.pos());
    assert!(new.head().seq() > crate::words::Seq::new(7));
    assert!(old.put(&[model.commit(bed.tick())]).is_err());
}

#[test]
fn an_upkeep_on_an_unreachable_store_is_an_error_to_try_again() {
    let store = Arc::new(Faulty::new(Arc::new(MemoryStore::new())));
    let mut bed = Bed::on(store.clone());
    small(&mut bed);
    let writer = bed.writer(1);
    let mut model = Model::new("a.db", 3);
    for _ in 0..6 {
        writer.put(&[model.commit(bed.tick())]).expect("a put");
    }
    store.fail_next(Op::Put, keys::MANIFEST, ObjectErrorKind::Unreachable);
    assert!(matches!(writer.upkeep(Occasion::Asked, &()), Err(PutError::Unreachable(_))));
    writer.upkeep(Occasion::Asked, &()).expect("again");
    assert_all_restorable(&bed.archive(), &model, Txid::new(1));
}

#[test]
fn what_a_dead_writer_left_behind_is_deleted_and_what_is_named_or_under_way_is_not() {
    let mut bed = Bed::new();
    small(&mut bed);
    let dir = tempfile::tempdir().expect("a directory");
    let mut model = Model::new("a.db", 5);
    let big = |model: &mut Model, name: &str| {
        let set = model.commit(bed.tick());
        let Body::Bytes(bytes) = &set.body else { panic!("it is in memory") };
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).expect("write");
        ChangeSet { body: Body::File(path), ..set }
    };
    let first = bed.writer(1);
    first.put(&[big(&mut model, "named")]).expect("a put");
    // It dies between the object and the segment that would have named it; and so does
    // another, of which the next writer knows only that it was.
    let unique = "0000000000000001-00000000deadbeef/a.db/0000000000000002.ltx";
    let left = format!("{}{unique}", keys::BIG);
    let foreign = format!("{}strange", keys::BIG);
    for key in [&left, &foreign] {
        bed.store.put(key, bytes::Bytes::from_static(b"x"), PutCond::IfAbsent).expect("put");
    }
    let second = bed.writer(2);
    let under_way = format!("{}0000000000000002-00000000deadbeef/a.db/0000000000000009.ltx", keys::BIG);
    let later = format!("{}0000000000000003-00000000deadbeef/a.db/0000000000000009.ltx", keys::BIG);
    for key in [&under_way, &later] {
        bed.store.put(key, bytes::Bytes::from_static(b"x"), PutCond::IfAbsent).expect("put");
    }
    second.put(&[model.commit(bed.tick())]).expect("a put");
    second.upkeep(Occasion::Stopping, &()).expect("upkeep");
    let keys = bed.store.list(keys::BIG, None).expect("a list");
    let keys: Vec<&str> = keys.iter().map(|info| info.key.as_str()).collect();
    assert_eq!(keys.len(), 4, "{keys:?}");
    assert!(!keys.contains(&left.as_str()), "{keys:?}");
    assert_all_restorable(&bed.archive(), &model, Txid::new(1));
    sound(&bed.archive());
}
