//! The nodes of a cluster, and what can be done to them.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::Value;

use crate::network::Network;
use crate::support::{Node, Scratch, Settings, wait_for};

/// The term of the lease.
pub const TTL: Duration = Duration::from_secs(4);

/// A cluster on an archive in a directory.
pub struct Cluster {
    pub nodes: Vec<Node>,
    pub network: Option<Network>,
    _scratch: Scratch,
}

impl Cluster {
    /// So many nodes, none started; `each` changes their settings.
    pub fn new(label: &str, count: usize, each: impl Fn(usize, &mut Settings)) -> Cluster {
        let scratch = Scratch::new(label);
        let network = match Network::new(count) {
            Ok(network) => Some(network),
            Err(why) => {
                eprintln!("WITHOUT NETWORKS: {why}; nodes are on the loopback and never cut off");
                None
            }
        };
        let node = |number: usize| {
            let mut settings = Settings {
                lease: "type = \"storage\"\nttl = \"4s\"",
                token: Some("a shared secret".to_owned()),
                wrapper: network.as_ref().map_or(Vec::new(), |network| network.wrapper(number)),
                ..Settings::default()
            };
            settings.more = String::new();
            each(number, &mut settings);
            let dir = scratch.join(&format!("node-{number}"));
            std::fs::create_dir_all(&dir).expect("create the node's directory");
            let node = Node::new(&dir, settings).with_archive(&scratch.join("archive")).advertised();
            match &network {
                Some(network) => node.at(network.addr(number)),
                None => node,
            }
        };
        let nodes = (0..count).map(node).collect();
        Cluster { nodes, network, _scratch: scratch }
    }

    /// Starts all, the first one first.
    pub fn start(&mut self) {
        for node in &mut self.nodes {
            node.start();
        }
        self.wait_primary();
    }

    /// Which node says that it is the primary, if one does.
    pub fn primary(&self) -> Option<usize> {
        let says =
            |node: &Node| node.is_running() && node.try_status().is_some_and(|it| it["role"] == "primary");
        self.nodes.iter().position(says)
    }

    /// Waits for a primary.
    pub fn wait_primary(&self) -> usize {
        wait_for("there is a primary", || self.primary())
    }

    /// Where a database stands on a node.
    fn pos(&self, node: usize, db: &str) -> Option<String> {
        let status = self.nodes[node].try_status()?;
        let rows = status["databases"].as_array()?;
        let row = rows.iter().find(|row| row["name"] == db)?;
        row["pos"].as_str().map(str::to_owned)
    }

    /// Waits until all nodes have the same bytes of these databases.
    pub fn wait_equal(&self, databases: &[String]) {
        for db in databases {
            wait_for(&format!("{db} is the same everywhere"), || {
                let positions: Option<BTreeSet<String>> =
                    (0..self.nodes.len()).map(|node| self.pos(node, db)).collect();
                positions.filter(|positions| positions.len() == 1)
            });
            let bytes = |node: &Node| node.get(&format!("/export?name={db}")).body;
            let first = bytes(&self.nodes[0]);
            assert!(first.len() >= 512, "{db} is empty");
            for node in &self.nodes[1..] {
                assert!(bytes(node) == first, "bytes of {db} differ");
            }
        }
    }

    /// How many replicas the primary says that it has.
    pub fn replicas(&self, primary: usize) -> usize {
        let status = self.nodes[primary].try_status().unwrap_or(Value::Null);
        status["replicas"].as_array().map_or(0, Vec::len)
    }

    /// Stops every node that runs, in order.
    pub fn stop(&mut self) {
        for node in self.nodes.iter_mut().filter(|node| node.is_running()) {
            node.stop();
        }
    }
}
