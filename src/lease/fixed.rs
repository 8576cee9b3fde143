//! The static lease: the configuration says who holds it, for ever. Must not ask or
//! change anything outside.

use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::{Holder, Lease, Member, Standing, Want};
use crate::words::Epoch;

/// A lease that the configuration gives to one node for ever.
pub struct StaticLease {
    /// The node that holds it; `None`: this one.
    primary: Option<Member>,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    want: Want,
    held: Option<Epoch>,
}

impl StaticLease {
    /// The lease of the node that is primary.
    pub fn primary() -> StaticLease {
        StaticLease::of(None)
    }

    /// The lease of a node that follows `primary`.
    pub fn replica(primary: Member) -> StaticLease {
        StaticLease::of(Some(primary))
    }

    fn of(primary: Option<Member>) -> StaticLease {
        let state = Mutex::new(State { want: Want::Nothing, held: None });
        StaticLease { primary, state, changed: Condvar::new() }
    }

    fn read(&self, state: &State) -> Standing {
        let (holder, trouble) = match (&self.primary, state.held) {
            (Some(member), _) => (
                Holder::Other { member: member.clone(), epoch: Epoch::default(), alive: true },
                matches!(state.want, Want::Hold { .. }).then(|| {
                    format!(
                        "the configuration makes {} the primary (lease.type = \"static\")",
                        member.hostname
                    )
                }),
            ),
            (None, Some(epoch)) => (Holder::This { epoch, until: Duration::MAX }, None),
            (None, None) => (Holder::Nobody, None),
        };
        let busy = trouble.is_some();
        Standing { holder, want: state.want, busy, trouble }
    }
}

impl Lease for StaticLease {
    fn want(&self, want: Want) {
        let mut state = self.state.lock();
        state.held = match (want, &self.primary, state.held) {
            // A new epoch for every term, so that a former run of this node is fenced.
            (Want::Hold { after }, None, held) => {
                Some(held.filter(|held| *held > after).unwrap_or_else(|| after.next()))
            }
            _ => None,
        };
        state.want = want;
        self.changed.notify_all();
    }

    fn standing(&self) -> Standing {
        self.read(&self.state.lock())
    }

    fn look(&self) {}

    fn wait(&self, timeout: Duration, enough: &mut dyn FnMut(&Standing) -> bool) -> Option<Standing> {
        let deadline = std::time::Instant::now().checked_add(timeout);
        let mut state = self.state.lock();
        loop {
            let standing = self.read(&state);
            if enough(&standing) {
                return Some(standing);
            }
            match deadline {
                Some(deadline) if self.changed.wait_until(&mut state, deadline).timed_out() => return None,
                Some(_) => {}
                None => self.changed.wait(&mut state),
            }
        }
    }
}
