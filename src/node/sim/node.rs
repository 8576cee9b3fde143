//! A simulated node: what `join`, `publish` and `run` do, with the real lease, writer
//! and decisions, one step at a time. Must not do what they would not.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use super::list::{List, Pages};
use super::world::{TTL, World};
use crate::archive::{Archive, ArchiveError, ChangeSet, Head, Occasion, Options, PutError, Target, Writer};
use crate::lease::{Member, SteppedLease, Want};
use crate::node::align::{Action, Local, decide};
use crate::words::{Clock as _, DbName, Epoch, NodeId, Pos};

/// How often a node looks at a lease that another holds.
const POLL: Duration = Duration::from_millis(700);

pub(super) fn database() -> DbName {
    DbName::new("a.db").expect("a name")
}

/// What a process does.
enum Phase {
    Down,
    Opening,
    Waiting { archive: Archive, head: Head },
    Primary { writer: Writer, then: Then },
}

/// What a primary is on its way to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Then {
    Serve,
    /// To nothing, once everything is in the archive.
    Stop,
    /// To another node's turn.
    GiveTo(NodeId),
}

/// A machine: its disk, and the process on it.
pub(super) struct Node {
    pub id: NodeId,
    list: List,
    queue: VecDeque<ChangeSet>,
    /// So many of the queue are being put: a batch is put again as it was.
    taken: usize,
    phase: Phase,
}

impl Node {
    pub fn new(id: u64) -> Node {
        let (list, queue) = (List::default(), VecDeque::new());
        Node { id: NodeId::new(id), list, queue, taken: 0, phase: Phase::Down }
    }

    pub fn is_down(&self) -> bool {
        matches!(self.phase, Phase::Down)
    }

    pub fn is_primary(&self) -> bool {
        matches!(self.phase, Phase::Primary { .. })
    }

    pub fn has_published(&self) -> bool {
        self.queue.is_empty()
    }

    pub fn numbers(&self) -> &[u64] {
        &self.list.numbers
    }

    pub fn start(&mut self, world: &World, at: usize) {
        if self.is_down() {
            self.start_over(world, at);
        }
    }

    fn start_over(&mut self, world: &World, at: usize) {
        let member =
            Member { node: self.id, hostname: self.id.to_string(), advertise_url: None, proxy_url: None };
        let (store, clock) = (world.store(at), Arc::clone(&world.slots[at].clock));
        let lease = SteppedLease::new(store, clock, member, (TTL, POLL), world.number());
        *world.slots[at].lease.lock() = Some(Arc::new(lease));
        self.taken = 0;
        self.phase = Phase::Opening;
    }

    /// Asks it to stop; it flushes first.
    pub fn stop(&mut self, world: &World, at: usize) {
        match &mut self.phase {
            Phase::Primary { then, .. } => *then = Then::Stop,
            _ => self.die(world, at),
        }
    }

    pub fn hand_over(&mut self, to: NodeId) {
        if let Phase::Primary { then, .. } = &mut self.phase {
            *then = Then::GiveTo(to);
        }
    }

    /// kill -9.
    pub fn die(&mut self, world: &World, at: usize) {
        self.phase = Phase::Down;
        *world.slots[at].lease.lock() = None;
    }

    /// The disk is gone, and with it what only it had.
    pub fn wipe(&mut self, world: &World) {
        if self.is_down() {
            world.facts.lock().wiped.append(&mut self.list.numbers);
            *self = Node::new(world.number());
        }
    }

    /// One step.
    pub fn act(&mut self, world: &World, at: usize) {
        let phase = std::mem::replace(&mut self.phase, Phase::Opening);
        self.phase = match phase {
            Phase::Down => Phase::Down,
            Phase::Opening => self.open(world, at).unwrap_or(Phase::Opening),
            Phase::Waiting { archive, head } => self.wait(world, at, archive, head),
            Phase::Primary { writer, then } => self.serve(world, at, writer, then),
        };
    }

    fn lease(&self, world: &World, at: usize) -> Arc<SteppedLease> {
        world.slots[at].lease.lock().clone().expect("a process has a lease")
    }

    fn open(&mut self, world: &World, at: usize) -> Result<Phase, ArchiveError> {
        let options = Options {
            max_tail_segments: 6,
            fan_in: 3,
            grace: Duration::from_secs(60),
            parallel: 1,
            clock: Arc::clone(&world.slots[at].clock) as _,
            random: world.numbers(),
            ..Options::default()
        };
        let archive = Archive::open_or_init(world.store(at), options)?;
        let head = archive.head()?;
        self.align(world, &archive, &head)?;
        self.lease(world, at).want(Want::Hold { after: head.epoch() });
        Ok(Phase::Waiting { archive, head })
    }

    /// What `node::align` does for the one database.
    fn align(&mut self, world: &World, archive: &Archive, head: &Head) -> Result<(), ArchiveError> {
        let db = database();
        self.queue.retain(|set| set.change.post.txid > head.pos(&db).txid);
        let standing = head.standing(&db);
        let local = Local {
            pos: self.list.pos,
            exists: self.list.pos != Pos::ZERO,
            incomplete: false,
            waiting_from: self.queue.front().map(|set| set.change.pre),
            overruled: false,
        };
        let relation = match standing {
            Some(_) if local.pos != Pos::ZERO => archive.relate(head, &db, local.pos)?,
            _ => crate::archive::Relation::Unknown,
        };
        match decide(local, standing, relation) {
            Action::Stay => self.queue.clear(),
            Action::Publish => {}
            Action::CatchUp | Action::Restore => self.restore(archive, head)?,
            Action::Park => {
                let parked = std::mem::take(&mut self.list);
                world.facts.lock().parked.extend(parked.numbers);
                self.restore(archive, head)?;
            }
            Action::PublishWhole | Action::Drop => {
                panic!("seed {}: the archive has lost the database", world.seed)
            }
        }
        Ok(())
    }

    fn restore(&mut self, archive: &Archive, head: &Head) -> Result<(), ArchiveError> {
        // As an install does that is cut off: from here on it stands nowhere.
        self.queue.clear();
        self.list = List::default();
        let plan = archive.plan(head, &database(), Target::Latest)?;
        let pages = Pages::default();
        archive.restore(&plan, &pages, &())?;
        self.list = pages.list(plan.pos);
        Ok(())
    }

    fn wait(&mut self, world: &World, at: usize, archive: Archive, head: Head) -> Phase {
        let lease = self.lease(world, at);
        lease.step();
        let Some(epoch) = lease.standing().holder.this() else { return Phase::Waiting { archive, head } };
        match self.seal(world, at, &archive, head, epoch) {
            Ok(Ok(writer)) => Phase::Primary { writer, then: Then::Serve },
            Ok(Err(head)) => {
                lease.want(Want::Hold { after: head.epoch() });
                Phase::Waiting { archive, head }
            }
            // It tries again from the beginning.
            Err(_) => Phase::Opening,
        }
    }

    /// Becomes the writer; or the head that there is instead.
    fn seal(
        &mut self,
        world: &World,
        at: usize,
        archive: &Archive,
        mut head: Head,
        epoch: Epoch,
    ) -> Result<Result<Writer, Head>, PutError> {
        // A node that had to wait reads the head again, one that had not seals at once.
        if world.chance(50) {
            head = archive.head()?;
            self.align(world, archive, &head)?;
        }
        if head.epoch() >= epoch || self.lease(world, at).standing().holder.this() != Some(epoch) {
            return Ok(Err(head));
        }
        let writer = match Writer::seal_after(archive, head.clone(), epoch, self.id) {
            Ok(writer) => writer,
            Err(PutError::Fenced { .. }) => {
                let head = archive.head()?;
                self.align(world, archive, &head)?;
                return Ok(Err(head));
            }
            Err(error) => return Err(error),
        };
        if writer.with_head(|found| found.databases() != head.databases()) {
            let head = archive.head()?;
            self.align(world, archive, &head)?;
        }
        if self.lease(world, at).standing().holder.this() == Some(epoch) {
            self.check_whole(world);
        }
        Ok(Ok(writer))
    }

    /// A primary has everything that the archive has ever acknowledged.
    fn check_whole(&self, world: &World) {
        let facts = world.facts.lock();
        let missing = facts.archived.iter().find(|number| !self.list.numbers.contains(number));
        assert_eq!(missing, None, "seed {}: a node became primary without it", world.seed);
    }

    fn serve(&mut self, world: &World, at: usize, writer: Writer, then: Then) -> Phase {
        let lease = self.lease(world, at);
        lease.step();
        if lease.standing().holder.this() != Some(writer.epoch()) {
            self.start_over(world, at);
            return Phase::Opening;
        }
        if then == Then::Serve && world.chance(60) {
            for _ in 0..=world.draw(3) {
                self.commit(world, at);
            }
        }
        if then != Then::Serve || world.chance(60) {
            if self.taken == 0 {
                self.taken = self.queue.len();
            }
            let batch: Vec<ChangeSet> = self.queue.iter().take(self.taken).cloned().collect();
            match writer.put(&batch) {
                Ok(_) => self.published(world),
                Err(PutError::Fenced { .. }) => {
                    self.start_over(world, at);
                    return Phase::Opening;
                }
                Err(PutError::Unreachable(_)) => {}
                Err(error) => panic!("seed {}: {error}", world.seed),
            }
        }
        if world.chance(15) {
            // Whatever comes of it, it is tried again.
            let _ = writer.upkeep(Occasion::Running, &());
        }
        if then == Then::Serve || !self.queue.is_empty() {
            return Phase::Primary { writer, then };
        }
        self.leave(world, at, &writer, then)
    }

    /// Everything is in the archive: it goes.
    fn leave(&mut self, world: &World, at: usize, writer: &Writer, then: Then) -> Phase {
        let lease = self.lease(world, at);
        match then {
            Then::GiveTo(to) => lease.want(Want::GiveTo(to)),
            Then::Stop | Then::Serve => {
                let _ = writer.upkeep(Occasion::Stopping, &());
                lease.want(Want::Nothing);
            }
        }
        for _ in 0..3 {
            lease.step();
        }
        if then == Then::Stop {
            self.die(world, at);
            return Phase::Down;
        }
        self.start_over(world, at);
        Phase::Opening
    }

    fn commit(&mut self, world: &World, at: usize) {
        let number = {
            let committed = &mut world.facts.lock().committed;
            committed.push(committed.len() as u64 + 1);
            committed.len() as u64
        };
        self.queue.push_back(self.list.push(&database(), number, world.slots[at].clock.now()));
    }

    fn published(&mut self, world: &World) {
        let numbers = &self.list.numbers;
        let from = numbers.len().saturating_sub(self.queue.len());
        world.facts.lock().archived.extend(&numbers[from..from + self.taken]);
        self.queue.drain(..self.taken);
        self.taken = 0;
    }
}
