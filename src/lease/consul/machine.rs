//! The Consul lease's rules, without I/O: what to ask next, what a reply means. Must not
//! read a clock or the network.
//!
//! The lease is a key that a session locks; its value says whose term it is and in which
//! epoch. Why two nodes never hold it at once: Consul gives a lock to one session at a
//! time, and ends a session not before its time to live is over since it was renewed; a
//! holder counts that time from before it asked, less a margin. Why an epoch never
//! repeats: the key is locked only on condition that it is as it was read.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use crate::lease::record::{Record, State};
use crate::lease::{Holder, Member, Standing, Want};
use crate::words::Epoch;

/// Part of the time to live that clocks may disagree by.
const MARGIN: u32 = 10;

/// How long one look at the key goes on if it does not change.
const WATCH: Duration = Duration::from_secs(60);

/// What the machine wants of its driver.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Step {
    /// Read the key; with an index, as soon as it has another one, or after this time.
    /// Ends early when something else is wanted.
    Read(Option<u64>, Duration),
    /// Create a session.
    Create,
    /// Renew the session.
    Renew(String),
    /// Lock the key.
    Lock(Lock),
    /// Unlock the key that this session has locked, and leave this value.
    Unlock(String, Vec<u8>),
    /// End a session.
    Destroy(String),
    /// Nothing before this moment, or until something is wanted.
    WaitUntil(Duration),
    /// Nothing until something is wanted.
    Idle,
}

/// Locking the key.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Lock {
    pub session: String,
    pub body: Vec<u8>,
    /// The version that the key must have; `None`: it must not be there.
    pub index: Option<u64>,
}

/// What a read found.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Found {
    /// What a watch goes on from.
    pub index: u64,
    /// The key, if it is there.
    pub entry: Option<Entry>,
}

/// The key.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Entry {
    /// Its version.
    pub index: u64,
    /// The session that has locked it.
    pub session: Option<String>,
    pub value: Vec<u8>,
}

/// What came back.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Reply {
    /// A read.
    Read(Found),
    /// A read was ended early.
    Interrupted,
    /// This session was created.
    Created(String),
    /// Whether the session is still there.
    Renewed(bool),
    /// Whether the key is locked now.
    Locked(bool),
    /// Whether the key was unlocked.
    Unlocked(bool),
    /// The session has ended.
    Destroyed,
    /// The call failed, or its reply was lost; why.
    Failed(String),
}

/// This node's session.
struct Session {
    id: String,
    /// Consul keeps it until then.
    until: Duration,
    renew_at: Duration,
}

/// The key as it was last read.
struct Seen {
    index: u64,
    entry: Option<Entry>,
    record: Option<Record>,
    /// When this version was first seen, after the reply.
    since: Duration,
    /// Whether the session that has locked it was seen to write it again.
    renewed: bool,
}

impl Seen {
    fn locked_by(&self) -> Option<&str> {
        self.entry.as_ref().and_then(|entry| entry.session.as_deref())
    }
}

pub(super) struct Machine {
    me: Member,
    ttl: Duration,
    /// How soon what failed is tried again.
    again: Duration,
    random: StdRng,
    want: Want,
    session: Option<Session>,
    /// The epoch that this node holds, while its session lasts.
    held: Option<Epoch>,
    seen: Option<Seen>,
    /// The last request, and when it was sent.
    sent: (Step, Duration),
    /// A lock whose reply was lost may still land.
    unsure: bool,
    /// Read before anything else.
    read_first: bool,
    /// The session was renewed, which nobody can see: the key is to say so.
    restate: bool,
    /// Whether this run had a term: a lock under this node's id that is not its own is
    /// then not a former run's but a copy's.
    had_term: bool,
    /// The last epoch whose term has ended here; it does not begin again.
    ended: Epoch,
    not_before: Duration,
    trouble: Option<String>,
}

impl Machine {
    pub fn new(me: Member, ttl: Duration, again: Duration, seed: u64) -> Machine {
        Machine {
            me,
            ttl,
            again,
            random: StdRng::seed_from_u64(seed),
            want: Want::Nothing,
            session: None,
            held: None,
            seen: None,
            sent: (Step::Idle, Duration::ZERO),
            unsure: false,
            read_first: false,
            restate: false,
            had_term: false,
            ended: Epoch::default(),
            not_before: Duration::ZERO,
            trouble: None,
        }
    }

    pub fn want(&mut self, want: Want) {
        if !matches!(want, Want::Hold { .. }) {
            self.end_term();
        }
        if want != self.want {
            self.not_before = Duration::ZERO;
        }
        self.want = want;
    }

    pub fn look(&mut self) {
        self.read_first = true;
    }

    pub fn standing(&self, now: Duration) -> Standing {
        let busy = match self.want {
            Want::Hold { .. } => self.valid(now).is_none(),
            Want::Nothing | Want::GiveTo(_) => self.may_have_lock(),
        };
        Standing { holder: self.holder(now), want: self.want, busy, trouble: self.trouble.clone() }
    }

    fn holder(&self, now: Duration) -> Holder {
        if let Some((epoch, until)) = self.valid(now) {
            return Holder::This { epoch, until };
        }
        let Some(seen) = &self.seen else { return Holder::Unknown };
        match (seen.locked_by(), &seen.record) {
            (None, _) => Holder::Nobody,
            (Some(_), None) => Holder::Unknown,
            (Some(_), Some(_)) if self.has_lock() || self.is_former_runs(seen) => Holder::Nobody,
            (Some(_), Some(record)) => {
                Holder::Other { member: record.member.clone(), epoch: record.epoch, alive: seen.renewed }
            }
        }
    }

    fn valid(&self, now: Duration) -> Option<(Epoch, Duration)> {
        let until = self.session.as_ref()?.until;
        self.held.filter(|_| now < until).map(|epoch| (epoch, until))
    }

    /// Whether the key is locked by this node's session.
    fn has_lock(&self) -> bool {
        let own = self.session.as_ref().map(|session| session.id.as_str());
        own.is_some() && self.seen.as_ref().and_then(Seen::locked_by) == own
    }

    fn may_have_lock(&self) -> bool {
        self.has_lock() || (self.unsure && self.session.is_some())
    }

    fn is_former_runs(&self, seen: &Seen) -> bool {
        !self.had_term && seen.record.as_ref().is_some_and(|record| record.member.node == self.me.node)
    }

    /// What to do at `now`; at once.
    pub fn next(&mut self, now: Duration) -> Step {
        self.run_out(now);
        let step = match self.want {
            Want::Hold { after } => self.hold(now, after),
            Want::Nothing => self.end(State::Released),
            Want::GiveTo(to) => self.end(State::Given { to }),
        };
        let step = match step {
            Step::Idle | Step::WaitUntil(_) => step,
            _ if now < self.not_before => Step::WaitUntil(self.not_before),
            step => step,
        };
        if matches!(step, Step::Read(None, _)) {
            // Who asks while it is under way gets another: it may have passed what they want
            // to see.
            self.read_first = false;
        }
        self.sent = (step.clone(), now);
        step
    }

    fn run_out(&mut self, now: Duration) {
        if self.held.is_some() && self.valid(now).is_none() {
            self.end_term();
        }
    }

    fn end_term(&mut self) {
        if let Some(epoch) = self.held.take() {
            self.ended = self.ended.max(epoch);
        }
    }

    fn hold(&mut self, now: Duration, after: Epoch) -> Step {
        if let Some(session) = self.session.as_ref().filter(|session| now >= session.renew_at) {
            return Step::Renew(session.id.clone());
        }
        let Some(seen) = self.seen.as_ref().filter(|_| !self.read_first) else {
            return Step::Read(None, Duration::ZERO);
        };
        if let Some(epoch) = self.held.filter(|epoch| *epoch > after) {
            return if std::mem::take(&mut self.restate) {
                self.lock_in(epoch)
            } else {
                self.watch(now, WATCH)
            };
        }
        match (seen.locked_by(), &seen.record) {
            (Some(_), _) if self.has_lock() => self.lock(after),
            (Some(former), Some(record)) if self.is_former_runs(seen) => {
                let (former, epoch) = (former.to_owned(), record.epoch);
                // Given to itself: who waits for the lease would otherwise be faster.
                Step::Unlock(former, self.record(epoch, State::Given { to: self.me.node }).encode())
            }
            (Some(_), _) => self.watch(now, WATCH),
            (None, None) if seen.entry.is_some() => self.watch(now, WATCH),
            (None, record) => {
                let given = |record: &Record| match record.state {
                    State::Given { to } if to != self.me.node => Some(seen.since + record.ttl()),
                    _ => None,
                };
                match (record.as_ref().and_then(given).filter(|free_at| now < *free_at), &self.session) {
                    (Some(free_at), _) => self.watch(now, free_at - now),
                    (None, None) => Step::Create,
                    (None, Some(_)) => self.lock(after),
                }
            }
        }
    }

    /// Looks at the key until it changes or something is due.
    fn watch(&self, now: Duration, at_most: Duration) -> Step {
        let due = self.session.as_ref().map_or(at_most, |session| session.renew_at.saturating_sub(now));
        // Zero would not wait.
        let index = self.seen.as_ref().map_or(1, |seen| seen.index.max(1));
        Step::Read(Some(index), at_most.min(due).max(Duration::from_millis(1)))
    }

    fn lock(&mut self, after: Epoch) -> Step {
        let last = self.seen.as_ref().and_then(|seen| seen.record.as_ref());
        let last = last.map(|record| record.epoch).unwrap_or_default();
        self.lock_in(last.max(after).max(self.ended).next())
    }

    fn lock_in(&mut self, epoch: Epoch) -> Step {
        let (Some(session), Some(seen)) = (&self.session, &self.seen) else { return Step::Create };
        let (session, index) = (session.id.clone(), seen.entry.as_ref().map(|entry| entry.index));
        Step::Lock(Lock { session, body: self.record(epoch, State::Held).encode(), index })
    }

    fn end(&mut self, state: State) -> Step {
        if let Some(session) = &self.session {
            let session = session.id.clone();
            let last = self.seen.as_ref().and_then(|seen| seen.record.as_ref());
            return match last.map(|record| record.epoch).filter(|_| self.has_lock() && !self.unsure) {
                Some(epoch) => Step::Unlock(session, self.record(epoch, state).encode()),
                // With it goes what it may have locked, or may be about to.
                None => Step::Destroy(session),
            };
        }
        if self.read_first { Step::Read(None, Duration::ZERO) } else { Step::Idle }
    }

    fn record(&mut self, epoch: Epoch, state: State) -> Record {
        Record::new(epoch, self.me.clone(), state, self.ttl, self.random.random())
    }

    /// The reply to the last step.
    pub fn replied(&mut self, now: Duration, reply: Reply) {
        self.run_out(now);
        let (step, sent) = std::mem::replace(&mut self.sent, (Step::Idle, now));
        if !matches!(reply, Reply::Failed(_) | Reply::Interrupted) {
            self.trouble = None;
        }
        match reply {
            Reply::Read(found) => self.read(now, &step, sent, found),
            Reply::Interrupted => self.read_first |= matches!(step, Step::Read(None, _)),
            Reply::Created(id) => self.session = Some(self.session_from(id, sent)),
            Reply::Renewed(true) => {
                if let Some(session) = self.session.take() {
                    self.session = Some(self.session_from(session.id, sent));
                    self.restate = true;
                }
            }
            Reply::Renewed(false) => {
                self.lose_session();
                self.trouble = Some("Consul has ended this node's session".to_owned());
            }
            Reply::Locked(locked) => self.locked(now, step, locked),
            Reply::Unlocked(done) => {
                self.read_first = true;
                // Whoever holds it then is another's.
                if done && let Some(entry) = self.seen.as_mut().and_then(|seen| seen.entry.as_mut()) {
                    entry.session = None;
                } else if !done {
                    self.seen = None;
                }
            }
            Reply::Destroyed => self.lose_session(),
            Reply::Failed(why) => {
                self.unsure |= matches!(step, Step::Lock(_));
                self.read_first = true;
                self.trouble = Some(why);
                self.pause(now);
            }
        }
    }

    fn session_from(&self, id: String, sent: Duration) -> Session {
        Session { id, until: sent + self.ttl - self.ttl / MARGIN, renew_at: sent + self.ttl / 3 }
    }

    /// The session is no more, and with it what it locked.
    fn lose_session(&mut self) {
        self.end_term();
        self.session = None;
        self.unsure = false;
        self.read_first = true;
    }

    fn read(&mut self, now: Duration, step: &Step, sent: Duration, found: Found) {
        let unchanged = self.seen.as_ref().is_some_and(|seen| seen.entry == found.entry);
        // What never waits must not be asked all the time.
        if let Step::Read(Some(_), wait) = step
            && unchanged
            && now.saturating_sub(sent) < *wait / 2
        {
            self.pause(now);
        }
        let record = match found.entry.as_ref().map(|entry| Record::decode(&entry.value)) {
            None => None,
            Some(Ok(record)) => Some(record),
            Some(Err(why)) => {
                self.trouble = Some(format!("the value of the lease's key in Consul cannot be read: {why}"));
                None
            }
        };
        let since = self.seen.as_ref().filter(|_| unchanged).map_or(now, |seen| seen.since);
        let epoch = record.as_ref().map(|record| record.epoch);
        let session = |entry: &Option<Entry>| entry.as_ref().and_then(|entry| entry.session.clone());
        let same =
            |seen: &&Seen| session(&seen.entry).is_some() && session(&seen.entry) == session(&found.entry);
        let renewed = self.seen.as_ref().filter(same).is_some_and(|seen| seen.renewed || !unchanged);
        self.seen = Some(Seen { index: found.index, entry: found.entry, record, since, renewed });
        if !self.has_lock() {
            self.end_term();
        } else if self.held.is_some() {
            // What may still land does not: the key has another version by then.
            self.unsure = false;
        } else if let (Some(epoch), Want::Hold { .. }) = (epoch, self.want)
            && epoch > self.ended
        {
            // Locked by this session, though the reply was lost.
            self.hold_in(epoch);
        }
    }

    fn hold_in(&mut self, epoch: Epoch) {
        self.unsure = false;
        self.had_term = true;
        self.held = Some(epoch);
    }

    fn locked(&mut self, now: Duration, step: Step, locked: bool) {
        // The next read has the version.
        self.read_first = true;
        let Step::Lock(lock) = step else { return };
        if !locked {
            // Another was faster, or the last holder's lock delay is not over.
            self.pause(now);
            return;
        }
        let record = Record::decode(&lock.body).ok();
        let epoch = record.as_ref().map(|record| record.epoch);
        let entry = Entry { index: 0, session: Some(lock.session), value: lock.body };
        let index = self.seen.as_ref().map_or(0, |seen| seen.index);
        self.seen = Some(Seen { index, entry: Some(entry), record, since: now, renewed: false });
        match (epoch, self.want) {
            // A term that ended while it was being restated does not begin again.
            (Some(epoch), Want::Hold { .. }) if self.has_lock() && epoch > self.ended => self.hold_in(epoch),
            _ => self.unsure = false,
        }
    }

    fn pause(&mut self, now: Duration) {
        self.not_before = now + self.again.mul_f64(self.random.random_range(0.5..1.0));
    }
}

#[cfg(test)]
mod tests;
