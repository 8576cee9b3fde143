//! A network of its own for each node: a namespace, a pair of interfaces, a bridge. So
//! one can be cut off without its knowing. Needs root and iproute2; taken down on drop.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

static NETWORKS: AtomicU32 = AtomicU32::new(0);

/// The port of every node's API.
const PORT: u16 = 20202;

/// A bridge and some namespaces.
#[derive(Debug)]
pub struct Network {
    id: u32,
    nodes: usize,
}

fn ip(words: &str) -> Result<(), String> {
    let output = Command::new("ip").args(words.split(' ')).output().map_err(|error| error.to_string())?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("ip {words}: {}", String::from_utf8_lossy(&output.stderr).trim())),
    }
}

impl Network {
    /// For so many nodes; `Err` says why this machine cannot.
    pub fn new(nodes: usize) -> Result<Network, String> {
        let id = std::process::id() % 8000 * 8 + NETWORKS.fetch_add(1, Ordering::Relaxed) % 8;
        let network = Network { id, nodes };
        network.remove();
        let host = network.host();
        ip(&format!("link add lfb{id} type bridge"))?;
        ip(&format!("addr add {host}/24 dev lfb{id}"))?;
        ip(&format!("link set lfb{id} up"))?;
        for node in 0..nodes {
            let (name, addr) = (network.name(node), network.addr(node).ip());
            ip(&format!("netns add {name}"))?;
            ip(&format!("link add {name} type veth peer name eth0 netns {name}"))?;
            ip(&format!("link set {name} master lfb{id}"))?;
            ip(&format!("link set {name} up"))?;
            ip(&format!("-n {name} addr add {addr}/24 dev eth0"))?;
            ip(&format!("-n {name} link set eth0 up"))?;
            ip(&format!("-n {name} link set lo up"))?;
        }
        Ok(network)
    }

    fn name(&self, node: usize) -> String {
        format!("lf{}n{node}", self.id)
    }

    fn octets(&self) -> (u8, u8) {
        (100 + (self.id >> 8 & 127) as u8, (self.id & 255) as u8)
    }

    /// The address of this machine in it.
    pub fn host(&self) -> Ipv4Addr {
        let (a, b) = self.octets();
        Ipv4Addr::new(10, a, b, 1)
    }

    /// Where a node's API is.
    pub fn addr(&self, node: usize) -> SocketAddr {
        let (a, b) = self.octets();
        SocketAddr::new(Ipv4Addr::new(10, a, b, node as u8 + 2).into(), PORT)
    }

    /// What runs a program in a node's namespace. Only the network is another one:
    /// `ip netns exec` would hide the mounts.
    pub fn wrapper(&self, node: usize) -> Vec<String> {
        let path = format!("/run/netns/{}", self.name(node));
        ["nsenter", &format!("--net={path}"), "--"].map(str::to_owned).into()
    }

    /// Takes a node's cable out: what it sends is lost, and nobody is told.
    pub fn cut(&self, node: usize) {
        ip(&format!("link set {} down", self.name(node))).expect("cut a node off");
    }

    /// Puts it in again.
    pub fn heal(&self, node: usize) {
        ip(&format!("link set {} up", self.name(node))).expect("connect a node again");
    }

    fn remove(&self) {
        // What was never made is no loss.
        for node in 0..self.nodes {
            let _ = ip(&format!("link del {}", self.name(node)));
            let _ = ip(&format!("netns del {}", self.name(node)));
        }
        let _ = ip(&format!("link del lfb{}", self.id));
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.remove();
    }
}
