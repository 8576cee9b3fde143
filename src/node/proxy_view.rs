//! The node as its proxy sees it: its role and who the primary is, the positions that
//! readers see. Must not change anything but say that a primary is wanted.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::peer::{Health, Service};
use crate::proxy::{Address, Primary, Role, View};
use crate::store;
use crate::words::{DbName, Pos};

use super::service::NodeService;

/// The node behind its proxy.
pub(super) struct ProxyView {
    service: Arc<NodeService>,
    max_lag: Duration,
    changes: watch::Sender<()>,
}

impl ProxyView {
    /// A view that follows the node from now on.
    pub fn new(service: &Arc<NodeService>, max_lag: Duration) -> Arc<ProxyView> {
        let changes = watch::Sender::new(());
        let told = changes.clone();
        service.store.on_change(move || told.send_replace(()));
        Arc::new(ProxyView { service: Arc::clone(service), max_lag, changes })
    }
}

impl View for ProxyView {
    fn role(&self) -> Role {
        if self.service.store.role() == store::Role::Primary {
            return Role::Primary;
        }
        let primary = self.service.parts(|parts| parts.primary.clone());
        let primary = primary.map(|member| Primary {
            proxy: member.proxy_url.as_deref().and_then(|url| Address::parse(url).ok()),
            hostname: member.hostname,
        });
        Role::Replica { primary }
    }

    fn pos(&self, db: &DbName) -> Pos {
        self.service.store.known(db).map_or(Pos::ZERO, |database| database.readable_pos())
    }

    fn settled_pos(&self, db: &DbName) -> Result<Pos, String> {
        match self.service.store.known(db) {
            Some(database) => database.current_pos().map_err(|error| error.to_string()),
            None => Ok(Pos::ZERO),
        }
    }

    fn changes(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }

    fn health(&self) -> Result<(), String> {
        if let Health::NotReady(why) = self.service.health() {
            return Err(why);
        }
        let lag = match self.service.store.role() {
            store::Role::Primary => None,
            store::Role::Replica { .. } => self.service.store.lag(),
        };
        match lag {
            Some(lag) if !self.max_lag.is_zero() && lag > self.max_lag => Err(format!(
                "this node is {} ms behind the primary, more than proxy.max-lag allows",
                lag.as_millis()
            )),
            _ => Ok(()),
        }
    }

    fn want_primary(&self) {
        self.service.store.wanted();
    }
}
