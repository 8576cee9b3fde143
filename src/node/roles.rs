//! How a running node changes its role: the lease decides, the mount stays. Up: the
//! archive's head again, the seal, then writers. Down, by one's own will: writers wait,
//! everything goes to the archive, the lease is given away. Down, because the lease is
//! lost: writers are refused first. Where a branch has to be parked, or applications do
//! not let go, the program starts over instead. Must not publish or apply anything
//! itself.

use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use crate::archive::PutError;
use crate::db::DbError;
use crate::lease::{
    ConsulLease, ConsulLeaseOptions, Holder, Lease, Member, Standing, StaticLease, StorageLease,
    StorageLeaseOptions, Want,
};
use crate::peer::wire::Ending;
use crate::peer::{Client, Event, PrimaryData, ServiceError, Timeouts};
use crate::proxy::Proxy;
use crate::store::Role;
use crate::words::{Epoch, NodeId};

use super::align::How;
use super::follow::{Following, Pace, READERS};
use super::join::Joined;
use super::run::{Node, Notice, Outcome, Part, RELEASE, Serving};
use super::{LeaseChoice, NodeError};

/// How seldom a node that waits for the lease looks at it, at the most: a lease that was
/// released without a word (no stream to its holder) is to be had within a second.
const LONGEST_POLL: Duration = Duration::from_millis(500);

/// Longer than any term: whatever happens to a lease wakes who waits for it.
const A_LONG_TIME: Duration = Duration::from_secs(1 << 30);

/// How long a planned change of the primary waits for transactions under way, and for
/// the archive.
const WRITERS: Duration = Duration::from_secs(5);
const ARCHIVE: Duration = Duration::from_secs(15);

/// How long it waits for requests that write, which the proxy has given to the
/// application. Longer than any should take, and shorter than clients wait.
const REQUESTS: Duration = Duration::from_secs(2);

/// How long the next primary may take to have everything from the stream.
const HEIR: Duration = Duration::from_secs(2);

/// How long a node that has the lease tries to get past applications that read.
const ASCENT: Duration = Duration::from_secs(30);

/// How long it takes at most until an idle node that still has to publish looks again.
const AGAIN: Duration = Duration::from_secs(1);

/// Where the answer to a request goes.
pub(super) type Reply = mpsc::SyncSender<Result<(), ServiceError>>;

/// Who waits for this node to be the primary, and whom it asked for that.
#[derive(Default)]
pub(super) struct Waiting {
    replies: Vec<Reply>,
    /// The configuration wants it, once.
    promote: bool,
    asked: Option<(NodeId, Epoch)>,
}

impl Node {
    /// The lease that the configuration chose.
    pub(super) fn lease(&self) -> Result<Arc<dyn Lease>, NodeError> {
        let member = Member {
            node: self.store.node_id(),
            hostname: self.options.hostname.clone(),
            advertise_url: self.options.advertise_url.clone(),
            proxy_url: self.proxy_url(),
        };
        Ok(match &self.options.lease {
            LeaseChoice::Static if self.options.candidate => Arc::new(StaticLease::primary()),
            LeaseChoice::Static => Arc::new(StaticLease::replica(self.static_primary())),
            LeaseChoice::Storage { store, ttl } => {
                let (poll, clock) = ((*ttl / 15).min(LONGEST_POLL), Arc::clone(&self.options.clock));
                let options = StorageLeaseOptions { member, ttl: *ttl, poll, clock };
                let lease = StorageLease::new(Arc::clone(store), options);
                Arc::new(lease.map_err(NodeError::io("starting the lease"))?)
            }
            LeaseChoice::Consul { place, ttl, lock_delay } => {
                let (ttl, lock_delay, clock) = (*ttl, *lock_delay, Arc::clone(&self.options.clock));
                let options = ConsulLeaseOptions { member, place: place.clone(), ttl, lock_delay, clock };
                Arc::new(ConsulLease::new(options).map_err(NodeError::io("starting the lease"))?)
            }
        })
    }

    /// With a static lease, `lease.advertise-url` of a node that is not the primary is
    /// the primary's.
    fn static_primary(&self) -> Member {
        let url = self.options.advertise_url.clone();
        let host = url.as_deref().and_then(|url| url::Url::parse(url).ok());
        let host = host.and_then(|url| url.host_str().map(str::to_owned));
        Member {
            node: NodeId::new(0),
            hostname: host.unwrap_or_else(|| "the primary".to_owned()),
            advertise_url: url,
            proxy_url: self.proxy_url(),
        }
    }

    /// Where the other nodes' proxies reach this one's; with a static lease on a node that
    /// is not the primary, the primary's.
    fn proxy_url(&self) -> Option<String> {
        let address = self.options.proxy.as_ref().and_then(|proxy| proxy.advertise.as_ref());
        address.map(|address| format!("http://{address}"))
    }

    fn is_static(&self) -> bool {
        matches!(self.options.lease, LeaseChoice::Static)
    }

    /// Whether this node holds the lease only while there is something to write.
    fn rests(&self) -> bool {
        !self.options.release_on_idle.is_zero() && !self.is_static()
    }

    /// Tells the node of every change of the lease; takes the right to write away at the
    /// moment at which it is lost.
    pub(super) fn watch_lease(&self, lease: &Arc<dyn Lease>, held: Option<Epoch>) -> Result<(), NodeError> {
        let (lease, store, notices) = (Arc::clone(lease), Arc::clone(&self.store), self.notices.clone());
        let watch = move || {
            let (mut held, mut seen) = (held, None);
            loop {
                let mut changed = |standing: &Standing| Some(&standing.holder) != seen.as_ref();
                let Some(standing) = lease.wait(A_LONG_TIME, &mut changed) else { continue };
                let this = standing.holder.this();
                if held.is_some() && this != held {
                    store.set_role(Role::Replica { primary: None });
                }
                (held, seen) = (this, Some(standing.holder));
                // The node may have ended.
                if notices.send(Notice::Lease).is_err() {
                    return;
                }
            }
        };
        let thread = std::thread::Builder::new().name("litefs-step-down".to_owned());
        thread.spawn(watch).map(drop).map_err(NodeError::io("watching the lease"))
    }

    /// What a node at the head wants of the lease.
    pub(super) fn aspire(self: &Arc<Node>, serving: &mut Serving) -> Result<(), NodeError> {
        self.service.update(|parts| {
            parts.stale = matches!(&serving.part, Part::Replica(follow) if follow.is_blind())
        });
        if self.service.parts(|parts| parts.stale) {
            return Ok(());
        }
        serving.waiting.promote = self.options.promote && matches!(serving.part, Part::Replica(_));
        let wants = self.options.candidate && (!self.rests() || serving.waiting.promote);
        if wants {
            serving.lease.want(Want::Hold { after: Epoch::default() });
        } else if matches!(serving.part, Part::Replica(_)) {
            serving.lease.want(Want::Nothing);
            serving.lease.look();
        }
        Ok(())
    }

    /// Whether it is settled what this node is: the commands may ask for it.
    pub(super) fn settled(&self, serving: &Serving) -> bool {
        match &serving.part {
            Part::Primary(_) => true,
            Part::Replica(follow) if follow.is_blind() => true,
            // What stands in the lease may be of a node that died: then this one is next.
            Part::Replica(_) if self.options.candidate && !self.rests() => {
                matches!(serving.lease.standing().holder, Holder::Other { alive: true, .. })
            }
            Part::Replica(_) => true,
            Part::None => false,
        }
    }

    /// The lease stands otherwise than before.
    pub(super) fn follow_lease(
        self: &Arc<Node>,
        serving: &mut Serving,
    ) -> Result<Option<Outcome>, NodeError> {
        let holder = serving.lease.standing().holder;
        match (&serving.part, &holder) {
            (Part::Replica(_), Holder::This { epoch, .. }) => return self.ascend(serving, *epoch),
            (Part::Primary(reign), holder) if holder.this() != Some(reign.epoch()) => {
                tracing::error!("the lease ran out or was taken over: this node is a replica now");
                return self.fall(serving);
            }
            (Part::Replica(following), Holder::Other { member, epoch, .. }) => {
                self.know_primary(Some(member));
                following.nudge();
                self.ask(serving, &member.clone(), *epoch);
            }
            (Part::Replica(following), Holder::Nobody | Holder::Unknown) => {
                self.know_primary(None);
                following.nudge();
            }
            (Part::Primary(_) | Part::None, _) => {}
        }
        Ok(None)
    }

    /// A replica knows who the primary is.
    fn know_primary(&self, member: Option<&Member>) {
        let hostname = member.map(|member| member.hostname.clone());
        let role = Role::Replica { primary: hostname.clone() };
        self.service.update(|parts| parts.primary = member.cloned());
        self.holder.only_from(member.map(|member| member.node));
        if self.store.role() != role {
            self.store.set_role(role);
            self.tell_primary(false, hostname);
        }
    }

    fn tell_primary(&self, is_primary: bool, hostname: Option<String>) {
        self.service.events.publish(Event::PrimaryChange { data: PrimaryData { is_primary, hostname } });
    }

    /// A part of the node cannot go on.
    pub(super) fn failed(
        self: &Arc<Node>,
        serving: &mut Serving,
        error: NodeError,
    ) -> Result<Option<Outcome>, NodeError> {
        match error {
            NodeError::Put(PutError::Fenced { by }) if self.is_static() => Err(NodeError::NotAlone { by }),
            NodeError::Put(PutError::Fenced { by }) => {
                tracing::error!(%by, "another node writes the archive now: this node is a replica now");
                match serving.part {
                    Part::Primary(_) => self.fall(serving),
                    Part::Replica(_) | Part::None => Ok(None),
                }
            }
            error @ NodeError::Diverged { .. } => {
                tracing::error!(%error, "starting over as a replica");
                Ok(Some(Outcome::Rejoin))
            }
            error => Err(error),
        }
    }

    /// From replica to primary.
    fn ascend(self: &Arc<Node>, serving: &mut Serving, epoch: Epoch) -> Result<Option<Outcome>, NodeError> {
        let Part::Replica(following) = std::mem::replace(&mut serving.part, Part::None) else {
            return Ok(None);
        };
        // What is applied from here on is not this node's own.
        self.holder.end_all(READERS);
        let Some(mut joined) = following.stop() else {
            // Never blind.
            serving.lease.want(Want::Nothing);
            serving.part = Part::Replica(self.begin_following(&serving.lease, None)?);
            return Ok(None);
        };
        let deadline = Instant::now() + ASCENT;
        let taken = loop {
            match self.take(&mut joined, serving.lease.as_ref(), epoch, How::Live(READERS)) {
                Err(NodeError::Database(error @ DbError::Busy { .. })) if Instant::now() < deadline => {
                    tracing::warn!(%error, "applications are in the way of becoming the primary");
                }
                taken => break taken,
            }
        };
        match taken {
            Ok(Some(writer)) => {
                self.store.set_role(Role::Primary);
                self.store.release_writers()?;
                serving.part = Part::Primary(self.begin_reign(writer)?);
                self.service.update(|parts| parts.primary = None);
                self.tell_primary(true, None);
                tracing::info!(%epoch, "this node is the primary now");
                (serving.waiting.promote, serving.waiting.asked) = (false, None);
                for reply in serving.waiting.replies.drain(..) {
                    let _ = reply.try_send(Ok(()));
                }
                // The lease may have gone meanwhile.
                self.follow_lease(serving)
            }
            Ok(None) => {
                serving.part = Part::Replica(self.begin_following(&serving.lease, Some(joined))?);
                Ok(None)
            }
            Err(error @ (NodeError::Diverged { .. } | NodeError::Database(DbError::Busy { .. }))) => {
                tracing::error!(%error, "starting over to become the primary");
                Ok(Some(Outcome::Rejoin))
            }
            Err(error) => Err(error),
        }
    }

    /// From primary to replica, because the lease or the archive is another node's.
    fn fall(self: &Arc<Node>, serving: &mut Serving) -> Result<Option<Outcome>, NodeError> {
        self.store.set_role(Role::Replica { primary: None });
        self.tell_primary(false, None);
        let Part::Primary(reign) = std::mem::replace(&mut serving.part, Part::None) else { return Ok(None) };
        let joined = reign.joined();
        reign.feeds.end(Ending::NotPrimary);
        self.end_reign(reign);
        if let Err(error) = self.store.hold_writers(READERS) {
            tracing::error!(%error, "starting over as a replica");
            return Ok(Some(Outcome::Rejoin));
        }
        serving.part = Part::Replica(self.begin_following(&serving.lease, Some(joined))?);
        self.aspire(serving)?;
        self.follow_lease(serving)
    }

    /// Follows the archive; at leisure where this node itself let the lease go.
    pub(super) fn begin_following(
        self: &Arc<Node>,
        lease: &Arc<dyn Lease>,
        joined: Option<Joined>,
    ) -> Result<Following, NodeError> {
        if let Err(error) = self.store.hold_writers(READERS) {
            tracing::warn!(%error, "held as soon as there is something to apply");
        }
        let pace = if self.rests() { Pace::WhenAsked } else { Pace::Steady };
        Following::start(self, joined, pace, Arc::clone(lease))
    }

    /// Someone wants this node to be the primary.
    pub(super) fn promote(&self, serving: &mut Serving, reply: Reply) {
        let answer = match &serving.part {
            Part::Primary(_) => Ok(()),
            Part::Replica(follow) if follow.is_blind() => Err(ServiceError::NotReady(
                "this node does not stand at the archive's head: it could not read the archive since it started"
                    .to_owned(),
            )),
            Part::Replica(_) | Part::None => {
                serving.waiting.replies.push(reply);
                serving.waiting.asked = None;
                serving.lease.want(Want::Hold { after: Epoch::default() });
                serving.lease.look();
                if let Holder::Other { member, epoch, .. } = serving.lease.standing().holder {
                    self.ask(serving, &member, epoch);
                }
                return;
            }
        };
        let _ = reply.try_send(answer);
    }

    /// Asks the primary for the lease, if someone wants it here.
    fn ask(&self, serving: &mut Serving, member: &Member, epoch: Epoch) {
        let wanted = serving.waiting.promote || !serving.waiting.replies.is_empty();
        let asked = serving.waiting.asked == Some((member.node, epoch));
        let (true, false, Some(url)) = (wanted, asked, member.advertise_url.clone()) else { return };
        serving.waiting.asked = Some((member.node, epoch));
        let (token, node) = (self.options.http.1.clone(), self.store.node_id());
        let (lease, hostname) = (Arc::clone(&serving.lease), member.hostname.clone());
        let ask = move || {
            let asked = Client::new(&url, token, Timeouts::default())
                .and_then(|client| client.handoff(&node.to_string()));
            match asked {
                Ok(()) => lease.look(),
                Err(error) => {
                    tracing::warn!(primary = hostname, %error, "the primary does not give the lease away: waiting for it");
                }
            }
        };
        if let Err(error) = std::thread::Builder::new().name("litefs-ask".to_owned()).spawn(ask) {
            tracing::warn!(%error, "the primary cannot be asked for the lease: waiting for it");
        }
    }

    /// Someone wants another node to be the primary.
    pub(super) fn handoff(
        self: &Arc<Node>,
        serving: &mut Serving,
        to: NodeId,
        reply: &Reply,
    ) -> Result<Option<Outcome>, NodeError> {
        let answer = match &serving.part {
            Part::Replica(_) | Part::None => Err(ServiceError::NotPrimary { primary: None }),
            Part::Primary(_) if to == self.store.node_id() => Ok(()),
            Part::Primary(_) => self.hand_over(serving, Some(to))?,
        };
        let _ = reply.try_send(answer);
        Ok(None)
    }

    /// From primary to replica by one's own will: nothing is left behind, and writers
    /// wait rather than fail.
    fn hand_over(
        self: &Arc<Node>,
        serving: &mut Serving,
        to: Option<NodeId>,
    ) -> Result<Result<(), ServiceError>, NodeError> {
        let Part::Primary(reign) = &serving.part else { return Ok(Ok(())) };
        let began = Instant::now();
        reign.halts.close();
        // An application that came after writers are made to wait would wait in vain: in WAL
        // mode nobody can tell it that this node is a replica.
        let _held = serving.proxy.as_ref().map(|proxy| proxy.hold_writes(REQUESTS));
        let paused = self.store.pause_writers(WRITERS);
        if paused.is_ok() {
            self.store.set_role(Role::Replica { primary: None });
        }
        let trouble = match &paused {
            Err(error) => Some(error.to_string()),
            Ok(_) if reign.publisher.drain(ARCHIVE) => None,
            Ok(_) => {
                Some(reign.publisher.standing().error.unwrap_or_else(|| "the archive is slow".to_owned()))
            }
        };
        if let Some(why) = trouble {
            reign.publisher.resume();
            self.store.set_role(Role::Primary);
            self.store.release_writers()?;
            reign.halts.reopen();
            return Ok(Err(ServiceError::NotReady(format!("this node stays the primary: {why}"))));
        }
        let (joined, feeds) = (reign.joined(), reign.feeds.clone());
        // So that it has nothing to fetch when the lease is its own.
        if let Some(heir) = to.and_then(|to| feeds.replica(to))
            && !heir.wait_caught_up(HEIR)
        {
            tracing::warn!(
                to = heir.hostname(),
                "the next primary has not everything yet: it reads the archive"
            );
        }
        if let Part::Primary(reign) = std::mem::replace(&mut serving.part, Part::None) {
            self.end_reign(reign);
        }
        serving.lease.want(to.map_or(Want::Nothing, Want::GiveTo));
        serving.lease.wait(RELEASE, &mut |standing| !standing.busy);
        feeds.end(Ending::Handoff);
        drop(paused);
        tracing::info!(ms = began.elapsed().as_millis() as u64, ?to, "gave the lease away");
        self.tell_primary(false, None);
        serving.part = Part::Replica(self.begin_following(&serving.lease, Some(joined))?);
        if to.is_some() && !self.rests() {
            serving.lease.want(Want::Hold { after: Epoch::default() });
        }
        Ok(Ok(()))
    }

    /// When this node gives the lease away if nothing is written until then.
    pub(super) fn rest_due(&self, serving: &Serving) -> Option<Instant> {
        let Part::Primary(reign) = &serving.part else { return None };
        if !self.rests() {
            return None;
        }
        let commits = self.store.commits();
        let last = commits.last().map_or(reign.since(), |last| last.max(reign.since()));
        let due = last + self.options.release_on_idle;
        let writes = serving.proxy.as_ref().is_some_and(Proxy::is_writing);
        let used = writes || commits.unpublished() > 0 || reign.halts.is_used();
        Some(if used { due.max(Instant::now() + AGAIN) } else { due })
    }

    /// Gives the lease away if it is time.
    pub(super) fn rest(self: &Arc<Node>, serving: &mut Serving) -> Result<Option<Outcome>, NodeError> {
        if self.rest_due(serving).is_some_and(|due| due <= Instant::now()) {
            tracing::info!("nothing was written for lease.release-on-idle: letting the lease go");
            if let Err(error) = self.hand_over(serving, None)? {
                tracing::warn!(%error, "the lease is kept for now");
                if let Part::Primary(reign) = &mut serving.part {
                    reign.begin_again();
                }
            }
        }
        Ok(None)
    }

    /// An application is about to write, or may be: a node that rests takes the lease.
    pub(super) fn wanted(&self, serving: &Serving) {
        let Part::Replica(following) = &serving.part else { return };
        following.nudge();
        if self.rests() && self.options.candidate && !following.is_blind() {
            serving.lease.want(Want::Hold { after: Epoch::default() });
            serving.lease.look();
        }
    }
}
