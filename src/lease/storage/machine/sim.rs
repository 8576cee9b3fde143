//! The machine in a simulated world: clocks that differ, requests that are slow, lost,
//! or land long after the client gave up, nodes that freeze, crash, come back, release
//! and hand over. In every run one node at a time holds the lease, in growing epochs.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::*;
use crate::words::NodeId;

const NODES: usize = 4;
const MS: Duration = Duration::from_millis(1);
const TTL: Duration = Duration::from_secs(10);
/// When faults end, in milliseconds; then the world must come to rest.
const QUIET: u64 = 100_000;
const END: u64 = QUIET + 60_000;

/// What happens at a moment of the world's time. The number is the node's turn that it
/// belongs to: what belongs to a former turn is ignored.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Wake(usize, u64),
    PutLands { node: usize, turn: u64, body: Vec<u8>, over: Option<String>, reply_after: Option<u64> },
    ReadLands { node: usize, turn: u64, reply_after: Option<u64> },
    Replied(usize, u64, Answer),
    Fate(usize),
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Answer {
    Done(String),
    Unmet,
    Object(Option<(Vec<u8>, String)>),
    PutTimedOut,
    ReadTimedOut,
}

/// A term as its holder believed in it.
#[derive(Debug, Clone, Copy)]
struct Term {
    epoch: Epoch,
    from: u64,
    until: u64,
}

struct Node {
    machine: Machine,
    turn: u64,
    in_flight: bool,
    frozen_until: u64,
    rate: f64,
    offset: Duration,
    term: Option<Term>,
}

impl Node {
    fn clock(&self, now: u64) -> Duration {
        self.offset + MS.mul_f64(now as f64 * self.rate)
    }

    fn world(&self, clock: Duration) -> u64 {
        (clock.saturating_sub(self.offset).as_secs_f64() * 1000.0 / self.rate) as u64
    }
}

struct World {
    random: StdRng,
    now: u64,
    order: u64,
    events: BinaryHeap<Reverse<(u64, u64, Event)>>,
    object: Option<(Vec<u8>, String)>,
    version: u64,
    nodes: Vec<Node>,
    terms: Vec<Term>,
}

fn machine(node: usize, seed: u64) -> Machine {
    let node = NodeId::new(node as u64 + 1);
    Machine::new(
        Member { node, hostname: node.to_string(), advertise_url: None, proxy_url: None },
        TTL,
        MS * 2000,
        seed,
    )
}

impl World {
    fn new(seed: u64) -> World {
        let mut random = StdRng::seed_from_u64(seed);
        let nodes = (0..NODES).map(|n| Node {
            machine: machine(n, random.random()),
            turn: 0,
            in_flight: false,
            frozen_until: 0,
            rate: random.random_range(0.96..1.04),
            offset: MS * random.random_range(0..1_000_000),
            term: None,
        });
        let nodes = nodes.collect();
        let (events, terms) = (BinaryHeap::new(), Vec::new());
        let mut world = World { random, now: 0, order: 0, events, object: None, version: 0, nodes, terms };
        for node in 0..NODES {
            world.nodes[node].machine.want(Want::Hold { after: Epoch::default() });
            world.think(node);
            let first = world.random.random_range(0..15_000);
            world.at(first, Event::Fate(node));
            world.at(QUIET, Event::Fate(node));
        }
        world
    }

    fn at(&mut self, when: u64, event: Event) {
        self.order += 1;
        self.events.push(Reverse((when.max(self.now), self.order, event)));
    }

    /// A fault of this chance, while there are faults.
    fn bad_luck(&mut self, chance: f64) -> bool {
        self.now < QUIET && self.random.random_bool(chance)
    }

    fn run(mut self) -> Vec<Term> {
        while let Some(Reverse((when, _, event))) = self.events.pop().filter(|event| event.0.0 <= END) {
            self.now = when;
            self.happen(event);
        }
        let holding = self.nodes.iter().filter(|node| node.machine.valid(node.clock(END)).is_some()).count();
        assert_eq!(holding, 1, "the world comes to rest with one holder");
        for node in 0..NODES {
            self.end_term(node);
        }
        self.terms.sort_by_key(|term| term.from);
        self.terms
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Fate(node) => self.fate(node),
            Event::PutLands { node, turn, body, over, reply_after } => {
                let answer = self.put(body, over);
                self.reply(node, turn, answer, reply_after);
            }
            Event::ReadLands { node, turn, reply_after } => {
                let answer = Answer::Object(self.object.clone());
                self.reply(node, turn, answer, reply_after);
            }
            Event::Wake(node, turn) | Event::Replied(node, turn, _) if self.nodes[node].turn != turn => {}
            Event::Wake(node, _) | Event::Replied(node, ..) if self.now < self.nodes[node].frozen_until => {
                let thaw = self.nodes[node].frozen_until;
                self.at(thaw, event);
            }
            Event::Wake(node, _) => self.think(node),
            Event::Replied(node, _, answer) => self.replied(node, answer),
        }
    }

    fn put(&mut self, body: Vec<u8>, over: Option<String>) -> Answer {
        if self.object.as_ref().map(|(_, etag)| etag) != over.as_ref() {
            return Answer::Unmet;
        }
        self.version += 1;
        let etag = format!("v{}", self.version);
        self.object = Some((body, etag.clone()));
        Answer::Done(etag)
    }

    fn reply(&mut self, node: usize, turn: u64, answer: Answer, after: Option<u64>) {
        if let Some(after) = after {
            self.at(self.now + after, Event::Replied(node, turn, answer));
        }
    }

    fn replied(&mut self, node: usize, answer: Answer) {
        let it = &mut self.nodes[node];
        let clock = it.clock(self.now);
        it.in_flight = false;
        match answer {
            Answer::Done(etag) => it.machine.put_replied(clock, PutReply::Done(Etag(etag))),
            Answer::Unmet => it.machine.put_replied(clock, PutReply::Unmet),
            Answer::PutTimedOut => it.machine.put_replied(clock, PutReply::Failed("lost".to_owned())),
            Answer::ReadTimedOut => it.machine.read_replied(clock, Err("lost".to_owned())),
            Answer::Object(found) => {
                it.machine.read_replied(clock, Ok(found.map(|(body, etag)| (body, Etag(etag)))));
            }
        }
        self.think(node);
    }

    /// The node takes its next step and says what it believes.
    fn think(&mut self, node: usize) {
        let it = &mut self.nodes[node];
        it.turn += 1;
        let (turn, clock) = (it.turn, it.clock(self.now));
        let step = it.machine.next(clock);
        self.note_term(node);
        match step {
            Step::Idle => {}
            Step::WaitUntil(moment) => {
                let when = self.nodes[node].world(moment) + 1;
                self.at(when, Event::Wake(node, turn));
            }
            Step::Read => {
                let reply_after = self.reply_after();
                self.send(Event::ReadLands { node, turn, reply_after }, node, Answer::ReadTimedOut);
            }
            Step::Put(body, cond) => {
                let over = match cond {
                    PutCond::IfMatch(etag) => Some(etag.0),
                    PutCond::IfAbsent => None,
                    PutCond::Always => panic!("the lease's object is never put without a condition"),
                };
                let reply_after = self.reply_after();
                let landing = Event::PutLands { node, turn, body, over, reply_after };
                self.send(landing, node, Answer::PutTimedOut);
            }
        }
    }

    fn reply_after(&mut self) -> Option<u64> {
        if self.bad_luck(0.1) { None } else { Some(self.random.random_range(1..60)) }
    }

    fn send(&mut self, landing: Event, node: usize, timed_out: Answer) {
        self.nodes[node].in_flight = true;
        let turn = self.nodes[node].turn;
        if !self.bad_luck(0.08) {
            let late = self.bad_luck(0.1);
            let after = self.random.random_range(1..if late { 40_000 } else { 60 });
            self.at(self.now + after, landing);
        }
        self.at(self.now + TTL.as_millis() as u64 / 6, Event::Replied(node, turn, timed_out));
    }

    fn note_term(&mut self, node: usize) {
        let (now, it) = (self.now, &mut self.nodes[node]);
        let held = it.machine.valid(it.clock(now)).map(|held| (held.epoch, held.until));
        match (held, &mut it.term) {
            (Some((epoch, until)), Some(term)) if term.epoch == epoch => {
                term.until = (until.saturating_sub(it.offset).as_secs_f64() * 1000.0 / it.rate) as u64;
            }
            (Some((epoch, until)), _) => {
                let until = it.world(until);
                self.end_term(node);
                self.nodes[node].term = Some(Term { epoch, from: now, until });
            }
            (None, _) => self.end_term(node),
        }
    }

    fn end_term(&mut self, node: usize) {
        if let Some(term) = self.nodes[node].term.take() {
            self.terms.push(Term { until: term.until.min(self.now), ..term });
        }
    }

    fn fate(&mut self, node: usize) {
        let hold = Want::Hold { after: Epoch::default() };
        if self.now >= QUIET {
            self.nodes[node].machine.want(hold);
        } else {
            let next = self.now + self.random.random_range(1_000..20_000);
            if next < QUIET {
                self.at(next, Event::Fate(node));
            }
            match self.random.random_range(0..10) {
                0..3 => {
                    self.nodes[node].frozen_until = self.now + self.random.random_range(100..40_000);
                    return;
                }
                3 | 4 => {
                    self.end_term(node);
                    let seed = self.random.random();
                    let it = &mut self.nodes[node];
                    it.machine = machine(node, seed);
                    it.machine.want(hold);
                    it.in_flight = false;
                    it.frozen_until = self.now + self.random.random_range(1..20_000);
                    it.turn += 1;
                    let (turn, wake) = (it.turn, it.frozen_until);
                    return self.at(wake, Event::Wake(node, turn));
                }
                // A frozen node decides nothing.
                _ if self.now < self.nodes[node].frozen_until => return,
                5 => self.nodes[node].machine.want(Want::Nothing),
                6 => {
                    let to = NodeId::new(self.random.random_range(1..=NODES as u64));
                    self.nodes[node].machine.want(Want::GiveTo(to));
                }
                7 => self.nodes[node].machine.look(),
                _ => self.nodes[node].machine.want(hold),
            }
        }
        self.note_term(node);
        if !self.nodes[node].in_flight {
            self.think(node);
        }
    }
}

fn check(seed: u64) -> usize {
    let terms = World::new(seed).run();
    for pair in terms.windows(2) {
        assert!(pair[0].until <= pair[1].from, "seed {seed}: two holders at once: {pair:?}");
        assert!(pair[0].epoch < pair[1].epoch, "seed {seed}: epochs do not grow: {pair:?}");
    }
    terms.len()
}

#[test]
fn in_ten_thousand_bad_worlds_one_node_at_a_time_holds_the_lease() {
    let seed = std::env::var("LITEFS_SEED").ok().and_then(|seed| seed.parse().ok());
    let first: u64 = seed.unwrap_or(1);
    println!("LITEFS_SEED={first}");
    let threads = std::thread::available_parallelism().map_or(2, usize::from) as u64;
    let terms: usize = std::thread::scope(|scope| {
        let parts: Vec<_> = (0..threads)
            .map(|part| {
                let seeds = (first + part..first + 10_000).step_by(threads as usize);
                scope.spawn(move || seeds.map(check).sum::<usize>())
            })
            .collect();
        parts.into_iter().map(|part| part.join().expect("a bad world; its seed is above")).sum()
    });
    assert!(terms > 10_000 * 4, "only {terms} terms: the worlds are too quiet to show anything");
    println!("{terms} terms");
}
