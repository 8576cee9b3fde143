//! Who may write: seals, lost replies, writers that slept.

use std::sync::Arc;

use super::model::{Bed, Model, assert_restores};
use crate::archive::{Archive, PutError, Target, Writer, keys};
use crate::object::{Faulty, MemoryStore, ObjectErrorKind, Op};
use crate::words::{Epoch, NodeId, Seq};

fn faulty() -> (Arc<Faulty>, Bed) {
    let store = Arc::new(Faulty::new(Arc::new(MemoryStore::new())));
    (store.clone(), Bed::on(store))
}

#[test]
fn a_writer_of_an_older_epoch_can_put_nothing_after_the_seal() {
    let bed = Bed::new();
    let old = bed.writer(1);
    let mut model = Model::new("a.db", 1);
    old.put(&[model.commit(bed.tick())]).expect("a put");
    let new = bed.writer(2);
    let late = model.commit(bed.tick());
    let error = old.put(std::slice::from_ref(&late)).expect_err("fenced");
    assert!(matches!(error, PutError::Fenced { by } if by.epoch == Epoch::new(2)), "{error}");
    let error = old.put(std::slice::from_ref(&late)).expect_err("still fenced");
    assert!(matches!(error, PutError::Fenced { .. }), "{error}");
    new.put(&[late]).expect("the new writer may");
    assert_restores(new.archive(), &model.db, Target::Latest, model.last());
}

#[test]
fn an_epoch_is_begun_once_and_never_again() {
    let bed = Bed::new();
    let _first = bed.writer(3);
    for epoch in [1, 2, 3] {
        let error = Writer::seal(&bed.archive(), Epoch::new(epoch), NodeId::new(9)).expect_err("too late");
        assert!(matches!(error, PutError::Fenced { by } if by.epoch == Epoch::new(3)), "{error}");
    }
}

#[test]
fn a_lost_reply_is_no_lost_write_and_nothing_is_put_twice() {
    for lost in [true, false] {
        let (store, bed) = faulty();
        let writer = bed.writer(1);
        let mut model = Model::new("a.db", 1);
        let first = model.commit(bed.tick());
        if lost {
            store.lose_next_reply(Op::Put, keys::LOG);
            writer.put(&[first]).expect("found to be its own");
        } else {
            store.fail_next(Op::Put, keys::LOG, ObjectErrorKind::Unknown);
            let error = writer.put(std::slice::from_ref(&first)).expect_err("not there");
            assert!(matches!(error, PutError::Unreachable(_)), "{error}");
            writer.put(&[first, model.commit(bed.tick())]).expect("a put");
        }
        writer.put(&[model.commit(bed.tick())]).expect("a put");
        assert_restores(&bed.archive(), &model.db, Target::Latest, model.last());
    }
}

#[test]
fn a_put_that_is_unsure_is_settled_before_the_next_one() {
    let (store, bed) = faulty();
    let writer = bed.writer(1);
    let mut model = Model::new("a.db", 1);
    let first = model.commit(bed.tick());
    store.lose_next_reply(Op::Put, keys::LOG);
    store.fail_next(Op::Get, keys::LOG, ObjectErrorKind::Unreachable);
    let error = writer.put(std::slice::from_ref(&first)).expect_err("cannot know");
    assert!(matches!(error, PutError::Unreachable(_)), "{error}");
    let seq = writer.put(&[first, model.commit(bed.tick())]).expect("a put");
    assert_eq!(seq, Seq::new(3), "seal, the first, the second");
    assert_restores(&bed.archive(), &model.db, Target::Latest, model.last());
}

#[test]
fn a_lost_reply_to_a_seal_is_found_to_be_its_own() {
    let (store, bed) = faulty();
    bed.archive();
    store.lose_next_reply(Op::Put, keys::LOG);
    let writer = bed.writer(1);
    assert_eq!(writer.head().seq(), Seq::new(1));
}

#[test]
fn a_lost_reply_to_the_first_manifest_makes_no_second_cluster() {
    let (store, bed) = faulty();
    store.lose_next_reply(Op::Put, keys::MANIFEST);
    let first = bed.archive();
    assert_eq!(first.cluster(), bed.archive().cluster());
}

#[test]
fn a_seal_waits_for_the_segments_that_came_before_it() {
    let (store, bed) = faulty();
    let old = bed.writer(1);
    let mut model = Model::new("a.db", 1);
    let set = model.commit(bed.tick());
    // Between the new writer's look at the head and its seal, the old one still puts.
    let once = std::sync::atomic::AtomicBool::new(true);
    let old_writer = Arc::new(old);
    let putting = old_writer.clone();
    store.hook(move |call| {
        let is_seal = call.op == Op::Put && call.key == keys::segment(Seq::new(2));
        if is_seal && once.swap(false, std::sync::atomic::Ordering::SeqCst) {
            putting.put(std::slice::from_ref(&set)).expect("not yet fenced");
        }
        None
    });
    let new = bed.writer(2);
    assert_eq!(new.head().seq(), Seq::new(3));
    assert_eq!(new.head().pos(&model.db), model.pos());
    store.heal();
    assert!(old_writer.put(&[model.commit(bed.tick())]).is_err());
}

#[test]
fn an_unreachable_store_is_no_fence() {
    let (store, bed) = faulty();
    let writer = bed.writer(1);
    let mut model = Model::new("a.db", 1);
    store.partition(true);
    let set = model.commit(bed.tick());
    for _ in 0..3 {
        let error = writer.put(std::slice::from_ref(&set)).expect_err("no store");
        assert!(matches!(error, PutError::Unreachable(_)), "{error}");
    }
    store.partition(false);
    writer.put(&[set]).expect("back again");
    assert_restores(&bed.archive(), &model.db, Target::Latest, model.last());
}

#[test]
fn what_does_not_follow_the_chain_is_refused_before_it_is_put() {
    let bed = Bed::new();
    let writer = bed.writer(1);
    let mut model = Model::new("a.db", 1);
    let (first, second) = (model.commit(bed.tick()), model.commit(bed.tick()));
    let error = writer.put(&[second]).expect_err("the first is missing");
    assert!(matches!(error, PutError::NotNext { .. }), "{error}");
    writer.put(std::slice::from_ref(&first)).expect("a put");
    let mut other = Model::new("a.db", 2);
    let lost = other.commit(bed.tick());
    assert!(matches!(writer.put(&[lost]), Err(PutError::NotNext { .. })));
    let mut wrong = first;
    wrong.change.pre = wrong.change.post;
    wrong.change.post.txid = wrong.change.post.txid.next();
    assert!(matches!(writer.put(&[wrong]), Err(PutError::Refused(_))), "its facts are not its LTX's");
    assert_eq!(
        Archive::open(bed.store.clone(), bed.options.clone())
            .expect("an archive")
            .head()
            .expect("a head")
            .seq(),
        Seq::new(2)
    );
}

#[test]
fn nothing_to_put_is_no_request() {
    let (store, bed) = faulty();
    let writer = bed.writer(1);
    store.forget_calls();
    writer.put(&[]).expect("nothing");
    assert!(store.calls().is_empty());
}
