//! Three nodes with a proxy and an application each, in networks of their own where that
//! is possible, and what can happen to them.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Mutex;

use rand::RngExt as _;
use rand::rngs::StdRng;
use rustix::process::Signal;

use crate::bank::BANKS;
use crate::network::Network;
use crate::support::line::Line;
use crate::support::node::free_addr;
use crate::support::{Node, Outside, Scratch, Settings, api, wait_for};

/// The port of a proxy and of an application, where a node has them to itself.
const PROXY: u16 = 20203;
const APP: u16 = 20204;

const TOKEN: &str = "a shared secret";

/// Where the archive is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    Directory,
    Minio,
}

/// Who says which node may write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseIn {
    Storage,
    Consul,
}

/// A cluster's kind.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    pub storage: Storage,
    pub lease: LeaseIn,
    /// `storage.durability = "archive"`.
    pub archived: bool,
    /// `storage.sync-interval`: the longer, the more branches lose.
    pub sync_interval: &'static str,
}

pub struct Cluster {
    pub nodes: Vec<Node>,
    kind: Kind,
    proxies: Vec<SocketAddr>,
    up: Vec<bool>,
    frozen: Vec<bool>,
    cut: Vec<bool>,
    network: Option<Network>,
    /// What leads out of the networks.
    _lines: Vec<Line>,
}

/// What the nodes share.
struct Surroundings {
    archive: String,
    env: Vec<(String, String)>,
    lease: &'static str,
    lines: Vec<Line>,
}

/// `None`, with a word, where there is no such server.
fn surroundings(kind: Kind, network: Option<&Network>, scratch: &Scratch) -> Option<Surroundings> {
    let host = network.map_or(Ipv4Addr::LOCALHOST, Network::host);
    let mut lines = Vec::new();
    let (archive, env) = match kind.storage {
        Storage::Directory => (format!("file://{}", scratch.join("archive").display()), Vec::new()),
        Storage::Minio => {
            let minio = Outside::minio()?;
            let prefix = scratch.path().file_name().expect("a name").to_string_lossy().into_owned();
            let url = minio.url_of(&prefix);
            let line = Line::from(host, &Line::end_of(&url));
            let url = line.url(&url);
            lines.push(line);
            (url, minio.environment().to_vec())
        }
    };
    let lease = match kind.lease {
        LeaseIn::Storage => "type = \"storage\"\nttl = \"2s\"",
        LeaseIn::Consul => {
            let Ok(agent) = std::env::var("LITEFS_TEST_CONSUL") else {
                eprintln!("SKIPPED: LITEFS_TEST_CONSUL is not set; scripts/consul.sh sets it");
                return None;
            };
            let line = Line::from(host, agent.trim_start_matches("http://"));
            let key = format!("litefs-chaos/{:016x}", rand::random::<u64>());
            let place =
                format!("{{ url = \"http://{}\", key = \"{key}\", lock-delay = \"1s\" }}", line.address());
            lines.push(line);
            format!("type = \"consul\"\nconsul = {place}").leak()
        }
    };
    Some(Surroundings { archive, env, lease, lines })
}

impl Cluster {
    /// None of the nodes runs yet.
    pub fn new(kind: Kind, scratch: &Scratch) -> Option<Cluster> {
        let network = match Network::new(3) {
            Ok(network) => Some(network),
            Err(why) => {
                eprintln!("WITHOUT NETWORKS: {why}; nodes are on the loopback and never cut off");
                None
            }
        };
        let around = surroundings(kind, network.as_ref(), scratch)?;
        let script = scratch.join("bank.py");
        std::fs::write(&script, include_str!("bank.py")).expect("write the application");
        let (mut nodes, mut proxies) = (Vec::new(), Vec::new());
        for number in 0..3 {
            let dir = scratch.join(&format!("node-{number}"));
            std::fs::create_dir_all(&dir).expect("create the node's directory");
            let (proxy, app) = match &network {
                Some(network) => (SocketAddr::new(network.addr(number).ip(), PROXY), APP),
                None => (free_addr(), free_addr().port()),
            };
            let banks = BANKS.map(|(bank, _)| format!("{bank:?}")).join(", ");
            let more = format!(
                "[proxy]\naddr = \"{proxy}\"\nadvertise-url = \"http://{proxy}\"\ntarget = \"127.0.0.1:{app}\"\n\
                 db = [{banks}]\nwait-timeout = \"2s\"\n\
                 [[exec]]\ncmd = [\"python3\", {script:?}, {:?}, \"{app}\"]\n",
                dir.join("mnt")
            );
            let durability = if kind.archived { "archive" } else { "async" };
            let settings = Settings {
                lease: around.lease,
                sync_interval: kind.sync_interval,
                token: Some(TOKEN.to_owned()),
                wrapper: network.as_ref().map_or(Vec::new(), |network| network.wrapper(number)),
                storage: format!("durability = \"{durability}\"\nshutdown-timeout = \"8s\""),
                env: around.env.clone(),
                more,
                ..Settings::default()
            };
            let node = Node::new(&dir, settings).with_archive_url(&around.archive).advertised();
            nodes.push(match &network {
                Some(network) => node.at(network.addr(number)),
                None => node,
            });
            proxies.push(proxy);
        }
        let no = || vec![false; 3];
        let (up, frozen, cut) = (no(), no(), no());
        Some(Cluster { nodes, kind, proxies, up, frozen, cut, network, _lines: around.lines })
    }

    fn answers(&self, at: usize) -> bool {
        self.up[at] && !self.frozen[at] && !self.cut[at]
    }

    fn primary_now(&self) -> Option<usize> {
        let role = |at: usize| self.nodes[at].try_role().is_some_and(|role| role == "primary");
        (0..self.nodes.len()).find(|at| self.answers(*at) && role(*at))
    }

    /// Asks something of the node that is the primary, if there is one.
    pub fn primary<T>(cluster: &Mutex<Cluster>, ask: impl FnOnce(&Node) -> T) -> Option<T> {
        let cluster = cluster.lock().expect("the cluster");
        cluster.primary_now().map(|at| ask(&cluster.nodes[at]))
    }

    /// The proxy of some node that runs.
    pub fn any_proxy(&self, random: &mut StdRng) -> Option<SocketAddr> {
        let running: Vec<usize> = (0..3).filter(|at| self.up[*at]).collect();
        let at = running.get(random.random_range(0..running.len().max(1)))?;
        Some(self.proxies[*at])
    }

    /// Starts a node that does not run.
    pub fn start(&mut self, at: usize) {
        if !self.up[at] {
            self.nodes[at].spawn();
            self.up[at] = true;
        }
    }

    /// Lets a frozen node go on.
    pub fn thaw(&mut self, at: usize) {
        if std::mem::take(&mut self.frozen[at]) {
            self.nodes[at].signal(Signal::CONT);
        }
    }

    /// Connects a node again that was cut off.
    pub fn mend(&mut self, at: usize) {
        if std::mem::take(&mut self.cut[at])
            && let Some(network) = &self.network
        {
            network.heal(at);
        }
    }

    fn stop(&mut self, at: usize) {
        self.nodes[at].signal(Signal::TERM);
        let _ = self.nodes[at].wait_end();
        self.up[at] = false;
    }

    /// One thing that goes wrong, or is done on purpose; what it was. Where one node at
    /// most answers, something is mended, mostly.
    pub fn disturb(&mut self, random: &mut StdRng) -> String {
        let out: Vec<usize> = (0..self.nodes.len()).filter(|at| !self.answers(*at)).collect();
        if out.len() > 1 && random.random_range(0..4) > 0 {
            let at = out[random.random_range(0..out.len())];
            self.restore(at);
            return format!("restore {at}");
        }
        let at = random.random_range(0..self.nodes.len());
        let running = self.up[at] && !self.frozen[at];
        let said = match random.random_range(0..16) {
            0 | 1 if running => {
                self.nodes[at].kill();
                self.up[at] = false;
                "kill"
            }
            2 if running => {
                self.stop(at);
                "stop"
            }
            3 | 4 if running => {
                self.nodes[at].signal(Signal::STOP);
                self.frozen[at] = true;
                "freeze"
            }
            5 | 6 if self.answers(at) => {
                // It may wait for its turn for longer than this.
                let addr = self.nodes[at].api();
                std::thread::spawn(move || api::request_with(addr, Some(TOKEN), "POST", "/promote", b""));
                "promote"
            }
            7 | 8 if self.network.is_some() && !self.cut[at] => {
                self.cut[at] = true;
                self.network.iter().for_each(|network| network.cut(at));
                "cut"
            }
            9..11 if self.cut[at] => {
                self.mend(at);
                "mend"
            }
            11..14 if self.frozen[at] => {
                self.thaw(at);
                "thaw"
            }
            // What was acknowledged is in the archive, or the disk must not be lost.
            14 if !self.up[at] && self.kind.archived => {
                self.nodes[at].wipe_data();
                "wipe"
            }
            _ if !self.up[at] => {
                self.start(at);
                "start"
            }
            _ => return "nothing".to_owned(),
        };
        format!("{said} {at}")
    }

    /// Makes a node one that runs and is reached.
    fn restore(&mut self, at: usize) {
        self.thaw(at);
        self.mend(at);
        self.start(at);
    }

    /// Everybody is back, one is the primary, all are where it is.
    pub fn heal(&mut self) {
        (0..self.nodes.len()).for_each(|at| self.restore(at));
        wait_for("all nodes are where the primary is, and the archive has it", || {
            for at in 0..self.nodes.len() {
                assert!(!self.nodes[at].has_ended(), "node {at} has ended by itself");
            }
            self.primary_now()?;
            let all: Option<Vec<_>> = self.nodes.iter().map(positions).collect();
            let all = all?;
            let archived =
                all[0].len() == BANKS.len() && all[0].iter().all(|(_, _, lacks)| *lacks == Some(0));
            (all.iter().all(|node| *node == all[0]) && archived).then_some(())
        });
    }
}

/// The databases of a node, where they stand, and how much of each the archive lacks.
fn positions(node: &Node) -> Option<Vec<(String, String, Option<u64>)>> {
    let status = node.try_status()?;
    let databases = status["databases"].as_array()?.clone();
    let at = |database: &serde_json::Value| {
        (database["name"].to_string(), database["pos"].to_string(), database["unarchived"].as_u64())
    };
    Some(databases.iter().map(at).collect())
}
