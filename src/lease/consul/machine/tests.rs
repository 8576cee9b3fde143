//! The machine's rules one by one, and the whole of it against a Consul that is none.

use std::collections::HashMap;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use super::*;
use crate::words::NodeId;

const S: Duration = Duration::from_secs(1);
const MS: Duration = Duration::from_millis(1);
const TTL: Duration = Duration::from_secs(10);

fn hold() -> Want {
    Want::Hold { after: Epoch::default() }
}

fn member(node: u64) -> Member {
    Member { node: NodeId::new(node), hostname: format!("n{node}"), advertise_url: None, proxy_url: None }
}

fn machine(node: u64) -> Machine {
    Machine::new(member(node), TTL, MS * 250, node)
}

/// The key as node `node` left it.
fn entry(index: u64, node: u64, epoch: u64, state: State, session: Option<&str>) -> Entry {
    let record = Record::new(Epoch::new(epoch), member(node), state, TTL, u128::from(index));
    Entry { index, session: session.map(str::to_owned), value: record.encode() }
}

fn found(entry: Option<Entry>) -> Reply {
    Reply::Read(Found { index: entry.as_ref().map_or(1, |entry| entry.index), entry })
}

/// Expects this step and answers it.
fn answer(machine: &mut Machine, now: Duration, expected: &str, reply: Reply) -> Step {
    let step = machine.next(now);
    let name = format!("{step:?}");
    assert!(name.starts_with(expected), "{name} is no {expected}");
    machine.replied(now, reply);
    step
}

fn epoch_of(step: &Step) -> Epoch {
    let (Step::Lock(Lock { body, .. }) | Step::Unlock(_, body)) = step else {
        panic!("{step:?} has no value")
    };
    Record::decode(body).expect("a record").epoch
}

fn acquired(now: Duration) -> Machine {
    let mut machine = machine(1);
    machine.want(hold());
    answer(&mut machine, now, "Read(None", found(None));
    answer(&mut machine, now, "Create", Reply::Created("s1".to_owned()));
    answer(&mut machine, now, "Lock", Reply::Locked(true));
    machine
}

#[test]
fn a_key_that_nobody_has_locked_is_locked_in_an_epoch_after_every_known_one() {
    let mut machine = machine(1);
    machine.want(Want::Hold { after: Epoch::new(7) });
    let left = entry(5, 2, 9, State::Released, None);
    answer(&mut machine, S, "Read(None", found(Some(left)));
    answer(&mut machine, S, "Create", Reply::Created("s1".to_owned()));
    let step = answer(&mut machine, S * 2, "Lock", Reply::Locked(true));
    assert_eq!(epoch_of(&step), Epoch::new(10));
    assert!(matches!(step, Step::Lock(Lock { index: Some(5), .. })), "on condition that it is as it was");
    let until = S + TTL - TTL / MARGIN;
    assert_eq!(machine.standing(S * 2).holder, Holder::This { epoch: Epoch::new(10), until });
}

#[test]
fn a_session_is_renewed_after_a_third_and_the_term_runs_out_without() {
    let mut machine = acquired(S);
    answer(&mut machine, S, "Read(None", found(Some(entry(6, 1, 1, State::Held, Some("s1")))));
    let Step::Read(Some(6), wait) = machine.next(S) else { panic!("it does not watch its key") };
    assert_eq!(wait, TTL / 3, "until the session is renewed");
    machine.replied(S, Reply::Interrupted);
    let renew_at = S + TTL / 3;
    answer(&mut machine, renew_at, "Renew", Reply::Failed("no answer".to_owned()));
    let standing = machine.standing(renew_at);
    assert!(standing.holder.this().is_some() && standing.trouble.as_deref() == Some("no answer"));
    let end = S + TTL - TTL / MARGIN;
    assert_eq!(machine.standing(end - MS).holder.this(), Some(Epoch::new(1)));
    assert_eq!(machine.standing(end).holder.this(), None);
    // It was only slow: the next term has another epoch.
    answer(&mut machine, end, "Renew", Reply::Renewed(true));
    answer(&mut machine, end, "Read(None", found(Some(entry(6, 1, 1, State::Held, Some("s1")))));
    let step = answer(&mut machine, end, "Lock", Reply::Locked(true));
    assert_eq!(epoch_of(&step), Epoch::new(2));
    assert_eq!(machine.standing(end).holder.this(), Some(Epoch::new(2)));
}

#[test]
fn a_holder_whose_session_was_ended_by_others_steps_down_and_comes_back_later() {
    let mut machine = acquired(S);
    answer(&mut machine, S, "Read(None", found(Some(entry(6, 1, 1, State::Held, Some("s1")))));
    answer(&mut machine, S * 2, "Read(Some(6)", found(Some(entry(7, 1, 1, State::Held, None))));
    assert_eq!(machine.standing(S * 2).holder.this(), None);
    // The lock delay first, then the session is found to be gone.
    answer(&mut machine, S * 2, "Lock", Reply::Locked(false));
    assert!(matches!(machine.next(S * 2), Step::WaitUntil(_)));
    answer(&mut machine, S * 5, "Renew", Reply::Renewed(false));
    answer(&mut machine, S * 5, "Read(None", found(Some(entry(7, 1, 1, State::Held, None))));
    answer(&mut machine, S * 5, "Create", Reply::Created("s2".to_owned()));
    let step = answer(&mut machine, S * 5, "Lock", Reply::Locked(true));
    assert_eq!(epoch_of(&step), Epoch::new(2));
}

#[test]
fn a_lock_whose_reply_was_lost_is_known_by_its_session() {
    let mut machine = machine(1);
    machine.want(hold());
    answer(&mut machine, S, "Read(None", found(None));
    answer(&mut machine, S, "Create", Reply::Created("s1".to_owned()));
    answer(&mut machine, S, "Lock", Reply::Failed("lost".to_owned()));
    assert!(machine.standing(S).busy);
    answer(&mut machine, S * 2, "Read(None", found(Some(entry(6, 1, 1, State::Held, Some("s1")))));
    assert_eq!(machine.standing(S * 2).holder.this(), Some(Epoch::new(1)));
    // Not wanted any more while it is not known whether it was locked: the session goes,
    // and whatever it has locked or may yet lock with it.
    let mut machine = self::machine(1);
    machine.want(hold());
    answer(&mut machine, S, "Read(None", found(None));
    answer(&mut machine, S, "Create", Reply::Created("s1".to_owned()));
    answer(&mut machine, S, "Lock", Reply::Failed("lost".to_owned()));
    machine.want(Want::Nothing);
    assert!(machine.standing(S).busy);
    answer(&mut machine, S, "Destroy", Reply::Destroyed);
    assert!(!machine.standing(S).busy);
}

#[test]
fn a_lease_that_is_not_wanted_is_unlocked_with_a_last_word() {
    let mut machine = acquired(S);
    machine.want(Want::GiveTo(NodeId::new(3)));
    let standing = machine.standing(S);
    assert!(standing.holder.this().is_none() && standing.busy);
    let Step::Unlock(session, body) = answer(&mut machine, S, "Unlock", Reply::Unlocked(true)) else {
        panic!("it keeps its lock")
    };
    let record = Record::decode(&body).expect("a record");
    assert_eq!((session.as_str(), record.state), ("s1", State::Given { to: NodeId::new(3) }));
    assert!(!machine.standing(S).busy);
    answer(&mut machine, S, "Destroy", Reply::Destroyed);
    answer(&mut machine, S, "Read(None", found(Some(entry(7, 1, 1, record.state, None))));
    assert_eq!(machine.next(S), Step::Idle);
}

#[test]
fn a_lease_that_is_given_waits_for_who_it_is_given_to() {
    let given = entry(7, 1, 4, State::Given { to: NodeId::new(3) }, None);
    let (mut other, mut heir) = (machine(2), machine(3));
    other.want(hold());
    heir.want(hold());
    answer(&mut heir, S, "Read(None", found(Some(given.clone())));
    answer(&mut heir, S, "Create", Reply::Created("s3".to_owned()));
    answer(&mut other, S, "Read(None", found(Some(given.clone())));
    assert!(matches!(other.next(S), Step::Read(Some(7), wait) if wait == TTL));
    other.replied(S + TTL, found(Some(given)));
    answer(&mut other, S + TTL, "Create", Reply::Created("s2".to_owned()));
}

#[test]
fn a_node_that_starts_again_takes_its_former_runs_lock_away() {
    let mut machine = machine(1);
    machine.want(hold());
    let left = entry(7, 1, 4, State::Held, Some("old"));
    answer(&mut machine, S, "Read(None", found(Some(left)));
    assert_eq!(machine.standing(S).holder, Holder::Nobody);
    let Step::Unlock(session, _) = answer(&mut machine, S, "Unlock", Reply::Unlocked(true)) else {
        panic!("it waits for itself")
    };
    assert_eq!(session, "old");
    answer(&mut machine, S, "Read(None", found(Some(entry(8, 1, 4, State::Released, None))));
    answer(&mut machine, S, "Create", Reply::Created("new".to_owned()));
    let step = answer(&mut machine, S, "Lock", Reply::Locked(true));
    assert_eq!(epoch_of(&step), Epoch::new(5));
}

#[test]
fn a_holder_that_lives_is_seen_to() {
    let mut holder = acquired(S);
    answer(&mut holder, S, "Read(None", found(Some(entry(6, 1, 1, State::Held, Some("s1")))));
    answer(&mut holder, S * 5, "Renew", Reply::Renewed(true));
    let step = answer(&mut holder, S * 5, "Lock", Reply::Locked(true));
    assert_eq!(epoch_of(&step), Epoch::new(1), "the same term, written again");
    assert_eq!(holder.standing(S * 5).holder.this(), Some(Epoch::new(1)));
    let mut other = machine(2);
    other.want(hold());
    let alive = |machine: &Machine| match machine.standing(S).holder {
        Holder::Other { alive, .. } => alive,
        holder => panic!("{holder:?}"),
    };
    answer(&mut other, S, "Read(None", found(Some(entry(6, 1, 1, State::Held, Some("s1")))));
    assert!(!alive(&other), "it may stand there from before it died");
    answer(&mut other, S, "Read(Some(6)", found(Some(entry(7, 1, 1, State::Held, Some("s1")))));
    assert!(alive(&other));
}

#[test]
fn what_cannot_be_read_is_nobodys_to_take() {
    let mut machine = machine(1);
    machine.want(hold());
    let odd = Entry { index: 3, session: None, value: b"{\"hostname\":\"litefs\"}".to_vec() };
    answer(&mut machine, S, "Read(None", found(Some(odd)));
    assert!(machine.standing(S).trouble.is_some_and(|why| why.contains("cannot be read")));
    assert!(matches!(machine.next(S), Step::Read(Some(3), _)));
}

#[test]
fn a_watch_that_does_not_wait_is_not_asked_all_the_time() {
    let mut machine = machine(2);
    machine.want(hold());
    let held = entry(7, 1, 4, State::Held, Some("s1"));
    answer(&mut machine, S, "Read(None", found(Some(held.clone())));
    answer(&mut machine, S, "Read(Some(7)", found(Some(held)));
    assert!(matches!(machine.next(S), Step::WaitUntil(_)));
}

/// A Consul with one key, and a network that loses and delays.
#[derive(Default)]
struct World {
    index: u64,
    entry: Option<Entry>,
    /// Sessions and when they end.
    sessions: HashMap<String, Duration>,
    created: u64,
    delayed_until: Duration,
}

impl World {
    fn change(&mut self, session: Option<String>, value: Vec<u8>) {
        self.index += 1;
        self.entry = Some(Entry { index: self.index, session, value });
    }

    fn end(&mut self, session: &str, now: Duration) {
        self.sessions.remove(session);
        if let Some(entry) = self.entry.clone().filter(|entry| entry.session.as_deref() == Some(session)) {
            self.change(None, entry.value);
            self.delayed_until = now + S;
        }
    }

    fn pass(&mut self, now: Duration) {
        let over: Vec<_> =
            self.sessions.iter().filter(|(_, end)| now >= **end).map(|(id, _)| id.clone()).collect();
        over.iter().for_each(|id| self.end(id, now));
    }

    fn ask(&mut self, step: &Step, now: Duration) -> Reply {
        let locked_by = self.entry.as_ref().and_then(|entry| entry.session.clone());
        match step {
            Step::Read(..) => Reply::Read(Found { index: self.index.max(1), entry: self.entry.clone() }),
            Step::Create => {
                self.created += 1;
                let id = format!("s{}", self.created);
                self.sessions.insert(id.clone(), now + TTL);
                Reply::Created(id)
            }
            Step::Renew(id) => match self.sessions.get_mut(id) {
                Some(end) => {
                    *end = now + TTL;
                    Reply::Renewed(true)
                }
                None => Reply::Renewed(false),
            },
            Step::Lock(lock) => {
                let can = self.entry.as_ref().map(|entry| entry.index) == lock.index
                    && self.sessions.contains_key(&lock.session)
                    && (locked_by.is_none() && now >= self.delayed_until
                        || locked_by.as_ref() == Some(&lock.session));
                if can {
                    self.change(Some(lock.session.clone()), lock.body.clone());
                }
                Reply::Locked(can)
            }
            Step::Unlock(session, body) => {
                let can = locked_by.as_ref() == Some(session);
                if can {
                    self.change(None, body.clone());
                }
                Reply::Unlocked(can)
            }
            Step::Destroy(session) => {
                self.end(session, now);
                Reply::Destroyed
            }
            Step::WaitUntil(_) | Step::Idle => panic!("nothing to ask"),
        }
    }
}

/// A node in the simulation: its machine, and a request that is on its way.
struct Actor {
    machine: Machine,
    /// When the reply arrives, and what it is.
    reply: Option<(Duration, Reply)>,
    sleeps_until: Duration,
}

fn simulate(seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    let mut world = World::default();
    let mut actors: Vec<Actor> = (1..=3)
        .map(|node| Actor { machine: machine(node), reply: None, sleeps_until: Duration::ZERO })
        .collect();
    actors.iter_mut().for_each(|actor| actor.machine.want(hold()));
    // Requests that land later than their sender believes.
    let mut late: Vec<(Duration, Step)> = Vec::new();
    let mut terms = std::collections::BTreeSet::new();
    // Where sessions are ended by others, a holder may not know for a moment, and another
    // may hold it already: their epochs differ, and the archive's fence stops the first.
    let meddling = seed % 2 == 1;
    let mut before = [None; 3];
    for tick in 0..6000u32 {
        let now = S + MS * 20 * tick;
        world.pass(now);
        let due: Vec<Step> = late.extract_if(.., |(at, _)| now >= *at).map(|(_, step)| step).collect();
        due.iter().for_each(|step| drop(world.ask(step, now)));
        for (n, actor) in actors.iter_mut().enumerate() {
            if random.random_ratio(1, 3000) {
                actor.sleeps_until = now + S * random.random_range(1..20);
            }
            if random.random_ratio(1, 400) {
                let to = NodeId::new(random.random_range(1..=3));
                actor
                    .machine
                    .want([Want::Nothing, Want::GiveTo(to), hold(), hold()][random.random_range(0..4)]);
            }
            if meddling
                && random.random_ratio(1, 4000)
                && let Some(session) = world.sessions.keys().next().cloned()
            {
                world.end(&session, now);
            }
            if random.random_ratio(1, 3000) {
                // It is killed, and starts again.
                *actor = Actor { machine: machine(n as u64 + 1), reply: None, sleeps_until: now };
                actor.machine.want(hold());
            }
            if now < actor.sleeps_until {
                continue;
            }
            if let Some((at, _)) = &actor.reply {
                if now < *at {
                    continue;
                }
                let (_, reply) = actor.reply.take().expect("a reply");
                actor.machine.replied(now, reply);
            }
            let step = actor.machine.next(now);
            if matches!(step, Step::Idle | Step::WaitUntil(_)) {
                continue;
            }
            let after = MS * random.random_range(0..200);
            let reply = match random.random_range(0..20) {
                0 => Reply::Failed("refused".to_owned()),
                1 => {
                    world.ask(&step, now);
                    Reply::Failed("the reply was lost".to_owned())
                }
                2 => {
                    late.push((now + MS * random.random_range(0..3000), step));
                    Reply::Failed("late".to_owned())
                }
                _ => world.ask(&step, now),
            };
            actor.reply = Some((now + after, reply));
        }
        let holders: Vec<_> = actors.iter().map(|actor| actor.machine.standing(now).holder.this()).collect();
        let at_once = holders.iter().flatten().count();
        assert!(meddling || at_once <= 1, "seed {seed}: {holders:?} at {now:?}");
        for (n, held) in holders.iter().enumerate() {
            if let Some(epoch) = held
                && before[n] != Some(*epoch)
            {
                assert!(terms.insert(*epoch), "seed {seed}: two terms of epoch {epoch}");
                assert!(
                    meddling || terms.last() == Some(epoch),
                    "seed {seed}: {epoch} comes after {terms:?}"
                );
            }
            before[n] = *held;
        }
    }
    assert!(terms.len() > 3, "seed {seed}: only {terms:?}");
}

#[test]
fn whatever_the_network_does_one_node_at_a_time_holds_it_and_no_epoch_comes_twice() {
    for seed in 0..60 {
        simulate(seed);
    }
}

#[test]
fn a_look_is_not_answered_by_a_read_that_was_under_way_and_outlives_an_interruption() {
    let mut machine = machine(1);
    machine.look();
    assert!(matches!(machine.next(S), Step::Read(None, _)));
    machine.look();
    machine.replied(S, found(Some(entry(5, 2, 9, State::Held, Some("s2")))));
    answer(&mut machine, S, "Read(None", Reply::Interrupted);
    answer(&mut machine, S, "Read(None", Reply::Failed("no answer".to_owned()));
    answer(&mut machine, S * 2, "Read(None", found(Some(entry(6, 2, 9, State::Released, None))));
    assert_eq!(machine.standing(S * 2).holder, Holder::Nobody);
    assert_eq!(machine.next(S * 2), Step::Idle);
}
