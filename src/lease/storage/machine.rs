//! The storage lease's rules, without I/O: what to send next, what a reply means.
//! Must not read a clock or a store; simulated as it is in sim.rs.
//!
//! Why two nodes never hold it at once: a holder counts its term from before it sent
//! the put that began or renewed it, less a margin; another waits, from after it first
//! saw that object, for the whole term by its own clock, and then puts on condition
//! that the object has not changed. No two clocks are compared; only their rates must
//! agree within the margin.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use crate::lease::record::{Record, State};
use crate::lease::{Holder, Member, Standing, Want};
use crate::object::{Etag, PutCond};
use crate::words::Epoch;

/// Part of the time to live that clocks may disagree by.
const MARGIN: u32 = 10;

/// What the machine wants of its driver.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Step {
    /// Read the lease's object.
    Read,
    /// Put it.
    Put(Vec<u8>, PutCond),
    /// Nothing before this moment, or until something is wanted.
    WaitUntil(Duration),
    /// Nothing until something is wanted.
    Idle,
}

/// What to do, before it is decided whether now.
enum Plan {
    Read,
    Put(Record),
    WaitUntil(Duration),
    Idle,
}

/// What came back from a put.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum PutReply {
    /// Done.
    Done(Etag),
    /// The condition did not hold.
    Unmet,
    /// It failed, or its reply was lost; why.
    Failed(String),
}

/// What came back from a read.
pub(super) type ReadReply = Result<Option<(Vec<u8>, Etag)>, String>;

/// A term that this node holds.
struct Held {
    epoch: Epoch,
    until: Duration,
    renew_at: Duration,
}

/// The object as it was last seen.
struct Seen {
    /// Its version; `None`: there was none.
    etag: Option<Etag>,
    /// What it says; `None`: nothing readable.
    record: Option<Record>,
    /// Whether the term is this node's: put by this run, or by a run before it.
    own: bool,
    /// When this version was first seen, after the reply.
    since: Duration,
    /// Whether another version was seen before: whoever put this one is at work.
    renewed: bool,
}

/// A put whose reply has not come, or was lost.
struct Pending {
    record: Record,
    sent: Duration,
}

pub(super) struct Machine {
    me: Member,
    ttl: Duration,
    poll: Duration,
    random: StdRng,
    want: Want,
    held: Option<Held>,
    seen: Option<Seen>,
    pending: Vec<Pending>,
    /// Read before anything else: an outcome is unknown, or someone asked.
    read_first: bool,
    /// The read under way is that one. Who asks while it is gets another: it may have
    /// passed what they want to see.
    reads_first: bool,
    /// The last put met a changed object, or so the store said.
    unmet: bool,
    /// Whether this run had a term: another one under this node's id is then not a
    /// former run's but a copy's (a cloned machine), and another node's like any.
    had_term: bool,
    /// The last epoch whose term has ended here. It does not begin again, even if a
    /// late renewal is found to have landed: who was told of the end has acted on it.
    ended: Epoch,
    not_before: Duration,
    next_read: Duration,
    trouble: Option<String>,
}

/// How soon a lease that was given to another node is looked at again.
const GIVEN: Duration = Duration::from_millis(20);

impl Machine {
    pub(super) fn new(me: Member, ttl: Duration, poll: Duration, seed: u64) -> Machine {
        Machine {
            me,
            ttl,
            poll,
            random: StdRng::seed_from_u64(seed),
            want: Want::Nothing,
            held: None,
            seen: None,
            pending: Vec::new(),
            read_first: false,
            reads_first: false,
            unmet: false,
            had_term: false,
            ended: Epoch::default(),
            not_before: Duration::ZERO,
            next_read: Duration::ZERO,
            trouble: None,
        }
    }

    pub(super) fn want(&mut self, want: Want) {
        if !matches!(want, Want::Hold { .. }) {
            // The put that says so may land at any moment from now on.
            self.end_term();
        }
        if want != self.want {
            self.not_before = Duration::ZERO;
        }
        self.want = want;
    }

    pub(super) fn look(&mut self) {
        self.read_first = true;
    }

    pub(super) fn standing(&self, now: Duration) -> Standing {
        let busy = match self.want {
            Want::Hold { .. } => self.valid(now).is_none(),
            Want::Nothing | Want::GiveTo(_) => self.has_own_term(),
        };
        Standing { holder: self.holder(now), want: self.want, busy, trouble: self.trouble.clone() }
    }

    fn holder(&self, now: Duration) -> Holder {
        if let Some(held) = self.valid(now) {
            return Holder::This { epoch: held.epoch, until: held.until };
        }
        let Some(seen) = &self.seen else { return Holder::Unknown };
        match &seen.record {
            Some(record) if record.state == State::Held && !seen.own => {
                Holder::Other { member: record.member.clone(), epoch: record.epoch, alive: seen.renewed }
            }
            None if seen.etag.is_some() => Holder::Unknown,
            _ => Holder::Nobody,
        }
    }

    fn valid(&self, now: Duration) -> Option<&Held> {
        self.held.as_ref().filter(|held| now < held.until)
    }

    /// This node's term that goes on, as the object says.
    fn own_term(&self) -> Option<&Record> {
        let seen = self.seen.as_ref().filter(|seen| seen.own)?;
        seen.record.as_ref().filter(|record| record.state == State::Held)
    }

    /// Whether the object says that this node's term goes on, or may come to say so.
    fn has_own_term(&self) -> bool {
        self.own_term().is_some() || self.pending.iter().any(|pending| pending.record.state == State::Held)
    }

    /// What to do at `now`. A put must be sent at once.
    pub(super) fn next(&mut self, now: Duration) -> Step {
        self.run_out(now);
        let plan = match self.want {
            _ if self.read_first => Plan::Read,
            Want::Hold { after } => self.hold(now, after),
            Want::Nothing => self.end(now, State::Released),
            Want::GiveTo(to) => self.end(now, State::Given { to }),
        };
        match plan {
            Plan::Read | Plan::Put(_) if now < self.not_before => Step::WaitUntil(self.not_before),
            Plan::Put(record) => self.put(now, record),
            Plan::Read => {
                self.reads_first = std::mem::take(&mut self.read_first);
                Step::Read
            }
            Plan::WaitUntil(moment) => Step::WaitUntil(moment),
            Plan::Idle => Step::Idle,
        }
    }

    fn run_out(&mut self, now: Duration) {
        if self.held.as_ref().is_some_and(|held| now >= held.until) {
            self.end_term();
        }
    }

    fn end_term(&mut self) {
        if let Some(held) = self.held.take() {
            self.ended = held.epoch;
        }
    }

    fn hold(&mut self, now: Duration, after: Epoch) -> Plan {
        if let Some(held) = &self.held {
            return match held.epoch {
                epoch if epoch <= after => Plan::Put(self.record(after.next(), State::Held)),
                epoch if now >= held.renew_at => Plan::Put(self.record(epoch, State::Held)),
                _ => Plan::WaitUntil(held.renew_at),
            };
        }
        match self.free_at() {
            None => self.read_at_poll(now, None),
            Some(free_at) if now < free_at => self.read_at_poll(now, Some(free_at)),
            Some(_) => {
                let last = self.seen.as_ref().and_then(|seen| seen.record.as_ref());
                let last = last.map(|record| record.epoch).unwrap_or_default();
                Plan::Put(self.record(last.max(after).next(), State::Held))
            }
        }
    }

    fn end(&mut self, now: Duration, state: State) -> Plan {
        match self.own_term().map(|record| record.epoch) {
            Some(epoch) => Plan::Put(self.record(epoch, state)),
            // A put of a term whose reply was lost may still land.
            None if self.has_own_term() => self.read_at_poll(now, None),
            None => Plan::Idle,
        }
    }

    fn read_at_poll(&self, now: Duration, or_at: Option<Duration>) -> Plan {
        if now >= self.next_read {
            return Plan::Read;
        }
        Plan::WaitUntil(or_at.map_or(self.next_read, |at| at.min(self.next_read)))
    }

    /// From when on this node may take the lease over, if the object does not change.
    fn free_at(&self) -> Option<Duration> {
        let seen = self.seen.as_ref()?;
        let Some(record) = &seen.record else {
            // No object: free. One that cannot be read: never.
            return seen.etag.is_none().then_some(seen.since);
        };
        match record.state {
            State::Released => Some(seen.since),
            State::Given { to } if to == self.me.node => Some(seen.since),
            State::Held if seen.own => Some(seen.since),
            State::Held | State::Given { .. } => Some(seen.since.saturating_add(record.ttl())),
        }
    }

    fn record(&mut self, epoch: Epoch, state: State) -> Record {
        Record::new(epoch, self.me.clone(), state, self.ttl, self.random.random())
    }

    /// Puts a record, on condition that the object is as it was seen.
    fn put(&mut self, now: Duration, record: Record) -> Step {
        let etag = self.seen.as_ref().and_then(|seen| seen.etag.clone());
        let body = record.encode();
        self.pending.push(Pending { record, sent: now });
        Step::Put(body, etag.map_or(PutCond::IfAbsent, PutCond::IfMatch))
    }

    /// The reply to the last put.
    pub(super) fn put_replied(&mut self, now: Duration, reply: PutReply) {
        self.run_out(now);
        match reply {
            PutReply::Done(etag) => {
                if let Some(pending) = self.pending.pop() {
                    self.adopt(now, pending, etag);
                }
            }
            // Perhaps against this node's own put, whose reply was lost.
            PutReply::Unmet => {
                self.read_first = true;
                self.unmet = true;
            }
            PutReply::Failed(why) => {
                self.read_first = true;
                self.fail(now, why);
            }
        }
    }

    /// The reply to a read.
    pub(super) fn read_replied(&mut self, now: Duration, reply: ReadReply) {
        self.run_out(now);
        let found = match reply {
            Ok(found) => found,
            Err(why) => {
                self.read_first |= self.reads_first;
                return self.fail(now, why);
            }
        };
        self.trouble = None;
        let unmet = std::mem::take(&mut self.unmet);
        let (etag, record) = match found {
            None => (None, None),
            Some((body, etag)) => match Record::decode(&body) {
                Ok(record) => (Some(etag), Some(record)),
                Err(why) => {
                    self.trouble = Some(format!("the lease's object cannot be read: {why}"));
                    (Some(etag), None)
                }
            },
        };
        let pause = self.pause(now, etag.as_ref(), record.as_ref());
        self.next_read = now + pause.mul_f64(self.random.random_range(0.8..1.2));
        let own =
            |pending: &Pending| record.as_ref().is_some_and(|found| found.nonce == pending.record.nonce);
        if let (Some(n), Some(etag)) = (self.pending.iter().position(own), &etag) {
            let pending = self.pending.swap_remove(n);
            return self.adopt(now, pending, etag.clone());
        }
        if self.seen.as_ref().is_some_and(|seen| seen.etag == etag) {
            // Unchanged. A put whose reply was lost may still land; it is not forgotten
            // before it would be too late for it to give a term.
            self.pending.retain(|pending| now < pending.sent + self.ttl);
            if unmet {
                self.fail(
                    now,
                    "the store says that the lease's object has changed, and that it has not".to_owned(),
                );
            }
            return;
        }
        // Changed by another: puts on condition of the former version cannot land any more.
        self.pending.clear();
        self.end_term();
        let own = !self.had_term && record.as_ref().is_some_and(|found| found.member.node == self.me.node);
        let renewed = self.seen.is_some();
        self.seen = Some(Seen { etag, record, own, since: now, renewed });
    }

    /// How long until it is worth while to read again what was found now. A lease that was
    /// given away is about to be taken, and writers wait to hear by whom; but perhaps it
    /// never is.
    fn pause(&self, now: Duration, etag: Option<&Etag>, found: Option<&Record>) -> Duration {
        if !found.is_some_and(|record| matches!(record.state, State::Given { .. })) {
            return self.poll;
        }
        let seen = self.seen.as_ref().filter(|seen| seen.etag.as_ref() == etag);
        let since = seen.map_or(now, |seen| seen.since);
        now.saturating_sub(since).max(GIVEN).min(self.poll)
    }

    /// A put of this node is the object now.
    fn adopt(&mut self, now: Duration, pending: Pending, etag: Etag) {
        self.pending.clear();
        self.trouble = None;
        self.unmet = false;
        self.had_term = true;
        let held = pending.record.state == State::Held && pending.record.epoch > self.ended;
        if held && matches!(self.want, Want::Hold { .. }) {
            self.held = Some(Held {
                epoch: pending.record.epoch,
                until: pending.sent + self.ttl - self.ttl / MARGIN,
                renew_at: pending.sent + self.ttl / 3,
            });
        }
        self.seen = Some(Seen {
            etag: Some(etag),
            record: Some(pending.record),
            own: true,
            since: now,
            renewed: true,
        });
    }

    fn fail(&mut self, now: Duration, why: String) {
        self.trouble = Some(why);
        let pause = if self.held.is_some() { self.ttl / 30 } else { self.poll };
        self.not_before = now + pause.mul_f64(self.random.random_range(0.5..1.0));
    }
}

#[cfg(test)]
mod sim;
#[cfg(test)]
mod tests;
