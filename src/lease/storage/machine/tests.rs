//! The machine's rules one by one.

use super::*;
use crate::words::NodeId;

const S: Duration = Duration::from_secs(1);

fn hold() -> Want {
    Want::Hold { after: Epoch::default() }
}

fn member(node: u64) -> Member {
    Member { node: NodeId::new(node), hostname: format!("n{node}"), advertise_url: None, proxy_url: None }
}

fn machine(node: u64) -> Machine {
    Machine::new(member(node), S * 10, S, node)
}

fn etag(n: u32) -> Etag {
    Etag(format!("v{n}"))
}

fn record(node: u64, epoch: u64, state: State) -> Vec<u8> {
    Record::new(Epoch::new(epoch), member(node), state, S * 10, u128::from(epoch) << 8 | u128::from(node))
        .encode()
}

/// Lets the machine read, and find this.
fn read(machine: &mut Machine, now: Duration, found: Option<(Vec<u8>, Etag)>) {
    assert_eq!(machine.next(now), Step::Read);
    machine.read_replied(now, Ok(found));
}

fn put(machine: &mut Machine, now: Duration) -> (Record, PutCond) {
    match machine.next(now) {
        Step::Put(body, cond) => (Record::decode(&body).expect("a record"), cond),
        other => panic!("no put but {other:?}"),
    }
}

fn acquired(node: u64, now: Duration) -> Machine {
    let mut machine = machine(node);
    machine.want(hold());
    read(&mut machine, now, None);
    put(&mut machine, now);
    machine.put_replied(now, PutReply::Done(etag(1)));
    machine
}

#[test]
fn a_lease_that_was_never_taken_is_created_in_an_epoch_after_the_archives() {
    let mut machine = machine(1);
    machine.want(Want::Hold { after: Epoch::new(7) });
    read(&mut machine, S, None);
    let (record, cond) = put(&mut machine, S);
    assert_eq!((record.epoch, record.state, cond), (Epoch::new(8), State::Held, PutCond::IfAbsent));
    assert!(machine.standing(S).busy);
    machine.put_replied(S * 2, PutReply::Done(etag(1)));
    let holder = machine.standing(S * 2).holder;
    assert_eq!(
        holder,
        Holder::This { epoch: Epoch::new(8), until: S * 10 },
        "from before the put, less a margin"
    );
}

#[test]
fn a_term_is_renewed_after_a_third_of_it_and_runs_out_without() {
    let mut machine = acquired(1, S);
    let renew_at = S + S * 10 / 3;
    assert_eq!(machine.next(S), Step::WaitUntil(renew_at));
    let (record, cond) = put(&mut machine, renew_at);
    assert_eq!((record.epoch, cond), (Epoch::new(1), PutCond::IfMatch(etag(1))));
    machine.put_replied(S * 5, PutReply::Failed("no answer".to_owned()));
    let standing = machine.standing(S * 5);
    assert_eq!(
        (standing.holder.this(), standing.trouble.as_deref()),
        (Some(Epoch::new(1)), Some("no answer"))
    );
    assert_eq!(machine.standing(S * 10).holder, Holder::Nobody);
}

#[test]
fn another_holders_term_is_waited_out_by_ones_own_clock() {
    let mut machine = machine(2);
    machine.want(hold());
    let held = Some((record(1, 4, State::Held), etag(9)));
    read(&mut machine, S * 100, held.clone());
    assert_eq!(
        machine.standing(S * 100).holder,
        Holder::Other { member: member(1), epoch: Epoch::new(4), alive: false }
    );
    let free = S * 110;
    let mut now = S * 100;
    while now < free {
        match machine.next(now) {
            Step::WaitUntil(moment) => now = moment,
            Step::Read => machine.read_replied(now, Ok(held.clone())),
            other => panic!("{other:?} at {now:?}"),
        }
    }
    let (record, cond) = put(&mut machine, now);
    assert_eq!((record.epoch, cond), (Epoch::new(5), PutCond::IfMatch(etag(9))));
}

#[test]
fn a_renewal_begins_the_wait_anew() {
    let mut machine = machine(2);
    machine.want(hold());
    read(&mut machine, S * 100, Some((record(1, 4, State::Held), etag(9))));
    let alive =
        |machine: &Machine, now| matches!(machine.standing(now).holder, Holder::Other { alive: true, .. });
    assert!(!alive(&machine, S * 100), "it may be what a dead node left");
    read(&mut machine, S * 109, Some((record(1, 4, State::Held), etag(10))));
    assert!(alive(&machine, S * 109));
    let later = S * 110 + S * 3 / 2;
    read(&mut machine, later, Some((record(1, 4, State::Held), etag(10))));
    assert!(matches!(machine.next(later), Step::WaitUntil(_)));
}

#[test]
fn a_released_lease_and_one_given_to_this_node_are_taken_at_once() {
    for (state, at_once) in [
        (State::Released, true),
        (State::Given { to: NodeId::new(2) }, true),
        (State::Given { to: NodeId::new(3) }, false),
    ] {
        let mut machine = machine(2);
        machine.want(hold());
        read(&mut machine, S, Some((record(1, 4, state), etag(1))));
        assert_eq!(matches!(machine.next(S), Step::Put(..)), at_once, "{state:?}");
    }
}

#[test]
fn a_restarted_node_takes_its_own_former_term_over_at_once() {
    let mut machine = machine(1);
    machine.want(hold());
    read(&mut machine, S, Some((record(1, 4, State::Held), etag(1))));
    assert_eq!(put(&mut machine, S).0.epoch, Epoch::new(5));
}

#[test]
fn a_copy_of_this_node_is_waited_out_like_any_other() {
    let mut machine = acquired(1, S);
    machine.look();
    read(&mut machine, S * 2, Some((record(1, 2, State::Held), etag(2))));
    assert_eq!(
        machine.standing(S * 2).holder,
        Holder::Other { member: member(1), epoch: Epoch::new(2), alive: true }
    );
    assert!(matches!(machine.next(S * 2), Step::WaitUntil(_)));
}

#[test]
fn an_unmet_condition_may_be_this_nodes_own_doing() {
    let mut machine = acquired(1, S);
    let (record, _) = put(&mut machine, S * 5);
    machine.put_replied(S * 6, PutReply::Unmet);
    read(&mut machine, S * 6, Some((record.encode(), etag(2))));
    assert_eq!(machine.standing(S * 6).holder, Holder::This { epoch: Epoch::new(1), until: S * 14 });
}

#[test]
fn a_put_that_lands_after_its_successor_was_sent_is_known_again() {
    let mut machine = acquired(1, S);
    let (first, _) = put(&mut machine, S * 5);
    machine.put_replied(S * 6, PutReply::Failed("no answer".to_owned()));
    let Step::WaitUntil(retry) = machine.next(S * 6) else { panic!("no pause") };
    read(&mut machine, retry, Some((record(1, 1, State::Held), etag(1))));
    let (second, cond) = put(&mut machine, retry);
    assert!(first.nonce != second.nonce && cond == PutCond::IfMatch(etag(1)));
    machine.put_replied(retry, PutReply::Unmet);
    read(&mut machine, retry, Some((first.encode(), etag(2))));
    assert_eq!(machine.standing(retry).holder, Holder::This { epoch: Epoch::new(1), until: S * 14 });
}

#[test]
fn a_term_that_ran_out_does_not_begin_again_when_a_late_renewal_is_found() {
    let mut machine = acquired(1, S);
    let (late, _) = put(&mut machine, S * 9);
    machine.put_replied(S * 11, PutReply::Failed("no answer".to_owned()));
    assert_eq!(machine.standing(S * 11).holder, Holder::Nobody);
    read(&mut machine, S * 13, Some((late.encode(), etag(2))));
    assert_eq!(machine.standing(S * 13).holder, Holder::Nobody);
    let (next, cond) = put(&mut machine, S * 13);
    assert_eq!((next.epoch, cond), (Epoch::new(2), PutCond::IfMatch(etag(2))));
}

#[test]
fn a_lease_that_another_took_is_lost_at_the_first_sight_of_it() {
    let mut machine = acquired(1, S);
    put(&mut machine, S * 5);
    machine.put_replied(S * 5, PutReply::Unmet);
    read(&mut machine, S * 5, Some((record(2, 2, State::Held), etag(2))));
    assert_eq!(
        machine.standing(S * 5).holder,
        Holder::Other { member: member(2), epoch: Epoch::new(2), alive: true }
    );
}

#[test]
fn what_is_released_is_not_held_from_the_moment_it_is_wanted() {
    let mut machine = acquired(1, S);
    machine.want(Want::Nothing);
    assert_eq!((machine.standing(S).holder, machine.standing(S).busy), (Holder::Nobody, true));
    let (record, _) = put(&mut machine, S);
    assert_eq!((record.state, record.epoch), (State::Released, Epoch::new(1)));
    machine.put_replied(S, PutReply::Done(etag(2)));
    assert_eq!((machine.next(S), machine.standing(S).busy), (Step::Idle, false));
}

#[test]
fn a_node_that_wants_nothing_never_ends_anothers_term() {
    let mut machine = machine(2);
    machine.want(hold());
    read(&mut machine, S, Some((record(1, 4, State::Released), etag(1))));
    put(&mut machine, S);
    machine.want(Want::Nothing);
    machine.put_replied(S * 2, PutReply::Failed("no answer".to_owned()));
    let mut now = S * 2;
    let other = Some((record(3, 5, State::Held), etag(2)));
    for _ in 0..10 {
        match machine.next(now) {
            Step::Read => machine.read_replied(now, Ok(other.clone())),
            Step::WaitUntil(moment) => now = moment,
            Step::Idle => return,
            Step::Put(..) => panic!("it puts over another's term"),
        }
    }
    panic!("it never comes to rest");
}

#[test]
fn a_store_that_contradicts_itself_is_not_asked_in_a_circle() {
    let mut machine = acquired(1, S);
    let body = machine.seen.as_ref().and_then(|seen| seen.record.as_ref()).expect("seen").encode();
    put(&mut machine, S * 5);
    machine.put_replied(S * 5, PutReply::Unmet);
    read(&mut machine, S * 5, Some((body, etag(1))));
    assert!(matches!(machine.next(S * 5), Step::WaitUntil(moment) if moment > S * 5));
    assert!(machine.standing(S * 5).trouble.is_some());
}

#[test]
fn an_object_that_cannot_be_read_is_never_overwritten() {
    let mut machine = machine(1);
    machine.want(hold());
    for round in 1..50 {
        read(&mut machine, S * round * 2, Some((b"{\"version\":2}".to_vec(), etag(1))));
        assert!(matches!(machine.next(S * round * 2), Step::WaitUntil(_)));
    }
    assert!(machine.standing(S).trouble.is_some_and(|text| text.contains("cannot be read")));
}

#[test]
fn an_archive_that_has_seen_later_epochs_makes_the_holder_begin_a_new_one() {
    let mut machine = acquired(1, S);
    machine.want(Want::Hold { after: Epoch::new(5) });
    assert_eq!(put(&mut machine, S * 2).0.epoch, Epoch::new(6));
}

#[test]
fn who_takes_a_lease_that_was_given_away_is_known_soon_and_asked_for_less_and_less() {
    let mut machine = machine(1);
    machine.want(hold());
    let given = Some((record(2, 4, State::Given { to: NodeId::new(3) }), etag(9)));
    let (begin, mut now, mut reads) = (S * 100, S * 100, 0);
    while now < begin + S {
        match machine.next(now) {
            Step::Read => {
                machine.read_replied(now, Ok(given.clone()));
                reads += 1;
            }
            Step::WaitUntil(then) => {
                assert!(reads > 1 || then <= begin + S / 20, "{then:?}");
                now = then;
            }
            other => panic!("{other:?}"),
        }
    }
    assert!((4..10).contains(&reads), "{reads} in the first second");
    // Nobody took it: as seldom as ever.
    assert_eq!(machine.next(now), Step::Read);
    machine.read_replied(now, Ok(given));
    let Step::WaitUntil(then) = machine.next(now) else { panic!("it waits") };
    assert!(then - now >= S * 8 / 10);
}

#[test]
fn a_look_is_not_answered_by_a_read_that_was_under_way_and_outlives_one_that_fails() {
    let mut machine = machine(1);
    machine.look();
    assert_eq!(machine.next(S), Step::Read);
    machine.look();
    machine.read_replied(S, Ok(Some((record(2, 4, State::Held), etag(9)))));
    assert_eq!(machine.next(S), Step::Read);
    machine.read_replied(S, Err("no answer".to_owned()));
    assert_eq!(machine.next(S * 5), Step::Read);
    machine.read_replied(S * 5, Ok(None));
    assert_eq!(machine.next(S * 5), Step::Idle);
}
