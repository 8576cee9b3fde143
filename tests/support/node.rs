//! A node: the real program with its own directories. Stopped, unmounted and its log
//! shown when a test fails, whatever way the test ends.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use serde_json::Value;

use super::{PATIENCE, api, process, wait_for};

/// A node that is alive this long has hung: it is killed, which ends every call
/// that waits for its mount, and the test fails instead of hanging.
const WATCHDOG: Duration = Duration::from_secs(900);

/// What differs from node to node.
#[derive(Clone, Debug)]
pub struct Settings {
    pub passthrough: bool,
    pub allow_other: bool,
    /// `[storage] sync-interval`.
    pub sync_interval: &'static str,
    /// `[log] level`.
    pub log: &'static str,
    /// The lines of `[lease]`.
    pub lease: &'static str,
    /// More lines of `[storage]`.
    pub storage: String,
    /// More lines of `[data]`.
    pub data: String,
    /// `[http] token`.
    pub token: Option<String>,
    /// More lines of litefs.toml, appended.
    pub more: String,
    /// Environment of the process, such as LITEFS_FAULTS.
    pub env: Vec<(String, String)>,
    /// Program and arguments that run litefs (such as strace), before its own.
    pub wrapper: Vec<String>,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            passthrough: true,
            allow_other: false,
            sync_interval: "20ms",
            log: "debug",
            lease: "type = \"static\"",
            storage: String::new(),
            data: String::new(),
            token: None,
            more: String::new(),
            env: Vec::new(),
            wrapper: Vec::new(),
        }
    }
}

/// A node and its directories.
#[derive(Debug)]
pub struct Node {
    base: PathBuf,
    data: PathBuf,
    archive: PathBuf,
    url: Option<String>,
    pub settings: Settings,
    addr: SocketAddr,
    advertised: bool,
    child: Option<Running>,
    starts: u32,
}

#[derive(Debug)]
struct Running {
    child: Child,
    _watchdog: mpsc::Sender<()>,
}

impl Node {
    /// A node with all its directories below `base`; not started.
    pub fn new(base: &Path, settings: Settings) -> Node {
        let node = Node {
            base: base.to_path_buf(),
            data: base.join("data"),
            archive: base.join("archive"),
            url: None,
            settings,
            addr: free_addr(),
            advertised: false,
            child: None,
            starts: 0,
        };
        std::fs::create_dir_all(node.mount()).expect("create the mount point");
        node
    }

    /// Another data directory than `base/data`.
    pub fn with_data(mut self, data: &Path) -> Node {
        self.data = data.to_path_buf();
        self
    }

    /// Another archive directory than `base/archive`.
    pub fn with_archive(mut self, archive: &Path) -> Node {
        self.archive = archive.to_path_buf();
        self
    }

    /// An archive that is no directory.
    pub fn with_archive_url(mut self, url: &str) -> Node {
        self.url = Some(url.to_owned());
        self
    }

    /// Its API is at this address.
    pub fn at(mut self, addr: SocketAddr) -> Node {
        self.addr = addr;
        self
    }

    fn token(&self) -> Option<&str> {
        self.settings.token.as_deref()
    }

    /// Tells other nodes where its API is.
    pub fn advertised(mut self) -> Node {
        self.advertised = true;
        self
    }

    /// From the next start on, whether it tells other nodes where its API is.
    pub fn set_advertised(&mut self, advertised: bool) {
        self.advertised = advertised;
    }

    /// From the next start on, another archive.
    pub fn set_archive_url(&mut self, url: &str) {
        self.url = Some(url.to_owned());
    }

    /// Where it mounts.
    pub fn mount(&self) -> PathBuf {
        self.base.join("mnt")
    }

    /// A file in its mount.
    pub fn file(&self, name: &str) -> PathBuf {
        self.mount().join(name)
    }

    /// Its data directory.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// Its archive's directory.
    pub fn archive(&self) -> &Path {
        &self.archive
    }

    /// Its archive's address.
    pub fn archive_url(&self) -> String {
        self.url.clone().unwrap_or_else(|| format!("file://{}", self.archive.display()))
    }

    /// Its configuration file.
    pub fn config(&self) -> PathBuf {
        self.base.join("litefs.toml")
    }

    /// Its log.
    pub fn log(&self) -> String {
        let bytes = std::fs::read(self.base.join("log")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("a node that runs").child.id()
    }

    /// Writes its configuration file.
    pub fn write_config(&self) {
        let Settings { passthrough, allow_other, sync_interval, log, lease, storage, data, more, .. } =
            &self.settings;
        let advertise = match self.advertised {
            true => format!("advertise-url = \"http://{}\"\n", self.addr),
            false => String::new(),
        };
        let token = self.token().map_or(String::new(), |token| format!("token = \"{token}\"\n"));
        let text = format!(
            "[fuse]\ndir = {:?}\nallow-other = {allow_other}\npassthrough = \"{}\"\n\
             [data]\ndir = {:?}\n{data}\n\
             [storage]\nurl = \"{}\"\nsync-interval = \"{sync_interval}\"\n{storage}\n\
             [lease]\n{lease}\n{advertise}\
             [http]\naddr = \"{}\"\n{token}\
             [log]\nlevel = \"{log}\"\n{more}",
            self.mount(),
            if *passthrough { "auto" } else { "off" },
            self.data,
            self.archive_url(),
            self.addr,
        );
        std::fs::write(self.config(), text).expect("write litefs.toml");
    }

    /// Starts it without waiting for anything.
    pub fn spawn(&mut self) {
        assert!(self.child.is_none(), "the node runs already");
        self.write_config();
        self.starts += 1;
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.base.join("log"));
        let log = log.expect("open the node's log");
        let program = env!("CARGO_BIN_EXE_litefs").to_owned();
        let mut words = self.settings.wrapper.clone();
        words.push(program);
        let (first, rest) = words.split_first().expect("at least the program");
        let child = Command::new(first)
            .args(rest)
            .args(["mount", "--config"])
            .arg(self.config())
            .envs(self.settings.env.iter().cloned())
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("duplicate the log"))
            .stderr(log)
            .spawn();
        let child = child.unwrap_or_else(|error| panic!("start {words:?}: {error}"));
        let watchdog = watch(child.id(), self.base.clone());
        self.child = Some(Running { child, _watchdog: watchdog });
    }

    /// Starts it and waits until it serves. Another program may have taken the free
    /// port in the meantime: then another one is tried.
    pub fn start(&mut self) {
        for _ in 0..5 {
            let before = self.log().len();
            self.spawn();
            match self.wait_ready() {
                Ok(()) => return,
                Err(code) => {
                    let log = self.log();
                    let said = log.get(before..).unwrap_or(&log).to_lowercase();
                    assert!(
                        said.contains("in use") && said.contains(&self.addr.port().to_string()),
                        "the node ended with {code:?} instead of starting"
                    );
                    self.addr = free_addr();
                }
            }
        }
        panic!("found no free port for the node");
    }

    /// Waits until it serves; `Err` if it ended first.
    pub fn wait_ready(&mut self) -> Result<(), Option<i32>> {
        let addr = self.addr;
        let child = &mut self.child.as_mut().expect("a node that was spawned").child;
        let ended = wait_for("the node is ready", || {
            if let Some(status) = child.try_wait().expect("ask for the node's state") {
                return Some(Err(status.code()));
            }
            let reply = api::request(addr, "GET", "/health", b"").ok()?;
            (reply.status == 200).then_some(Ok(()))
        });
        if ended.is_err() {
            self.child = None;
        }
        ended
    }

    /// Waits until it is the primary; `Err` if it ended first.
    pub fn wait_primary(&mut self) -> Result<(), Option<i32>> {
        self.wait_ready()?;
        self.wait_role("primary");
        Ok(())
    }

    /// Waits until it serves in this role.
    pub fn wait_role(&self, role: &str) {
        wait_for(&format!("the node is {role}"), || {
            let reply = api::request_with(self.addr, self.token(), "GET", "/status", b"").ok()?;
            let status: Value = serde_json::from_slice(&reply.body).ok()?;
            (status["role"] == role).then_some(())
        });
    }

    /// Waits until the process ends by itself.
    pub fn wait_end(&mut self) -> ExitStatus {
        let mut running = self.child.take().expect("a node that runs");
        let status = process::wait(&mut running.child);
        if status.is_none() {
            let threads = threads_of(running.child.id());
            self.child = Some(running);
            panic!("the node does not end by itself; its threads:\n{threads}");
        }
        status.expect("the node has ended")
    }

    /// A request to its API.
    pub fn get(&self, path: &str) -> api::Reply {
        api::request_with(self.addr, self.token(), "GET", path, b"")
            .unwrap_or_else(|error| panic!("GET {path}: {error}"))
    }

    /// The same, if it answers.
    pub fn try_get(&self, path: &str) -> Option<api::Reply> {
        api::request_with(self.addr, self.token(), "GET", path, b"").ok()
    }

    /// A request to its API that changes something.
    pub fn post(&self, path: &str) -> api::Reply {
        api::request_with(self.addr, self.token(), "POST", path, b"")
            .unwrap_or_else(|error| panic!("POST {path}: {error}"))
    }

    /// The same with a body.
    pub fn post_bytes(&self, path: &str, body: &[u8]) -> api::Reply {
        api::request_with(self.addr, self.token(), "POST", path, body)
            .unwrap_or_else(|error| panic!("POST {path}: {error}"))
    }

    /// Where its API is.
    pub fn api(&self) -> SocketAddr {
        self.addr
    }

    /// Its API's address.
    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// What `GET /status` says.
    pub fn status(&self) -> Value {
        let reply = self.get("/status");
        let text = String::from_utf8_lossy(&reply.body).into_owned();
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("status {}: {error}: {text}", reply.status))
    }

    /// What `GET /status` says, if it answers.
    pub fn try_status(&self) -> Option<Value> {
        let reply = api::request_with(self.addr, self.token(), "GET", "/status", b"").ok()?;
        serde_json::from_slice(&reply.body).ok()
    }

    /// Its role, if it answers.
    pub fn try_role(&self) -> Option<String> {
        Some(self.try_status()?["role"].as_str()?.to_owned())
    }

    /// A request to its API that changes something, if it answers; its status.
    pub fn try_post(&self, path: &str) -> Option<u16> {
        let reply = api::request_with(self.addr, self.token(), "POST", path, b"");
        reply.ok().map(|reply| reply.status)
    }

    /// Whether it is the primary, as far as it knows.
    pub fn is_primary(&self) -> bool {
        self.try_status().is_some_and(|status| status["role"] == "primary")
    }

    /// A database's position as its `-pos` file gives it, without the newline. Read
    /// by another process: one that hangs must not take the test with it.
    pub fn pos(&self, db: &str) -> String {
        let output = process::run(Command::new("cat").arg(self.file(&format!("{db}-pos"))));
        assert!(output.status.success(), "read {db}-pos: {}", output.stderr);
        assert_eq!(output.stdout.len(), 34, "-pos is 34 bytes, this is {:?}", output.stdout);
        output.stdout.trim_end().to_owned()
    }

    /// Waits until the archive has every transaction of every database, the ones
    /// included that are committed when this is called.
    pub fn wait_archived(&self, databases: &[&str]) {
        let positions: Vec<_> = databases.iter().map(|db| (*db, self.pos(db))).collect();
        wait_for("everything is in the archive", || {
            let status = self.status();
            let rows = status["databases"].as_array()?.clone();
            let has = |name: &str, pos: &str| {
                rows.iter().any(|row| row["name"] == name && reached(&row["archived"], pos))
            };
            positions.iter().all(|(name, pos)| has(name, pos)).then_some(())
        });
    }

    /// SIGTERM; waits for the end and expects exit code 0 and nothing mounted.
    pub fn stop(&mut self) {
        self.signal(rustix::process::Signal::TERM);
        let status = self.wait_end();
        assert_eq!(status.code(), Some(0), "after SIGTERM the node ended with {status:?}");
        assert!(!self.is_mounted(), "the mount is still there after SIGTERM");
    }

    /// SIGTERM; waits for the end, whatever its code.
    pub fn stop_whatever(&mut self) {
        self.signal(rustix::process::Signal::TERM);
        self.wait_end();
    }

    /// Sends a signal.
    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = i32::try_from(self.pid()).ok().and_then(rustix::process::Pid::from_raw);
        rustix::process::kill_process(pid.expect("a process id"), signal).expect("signal the node");
    }

    /// kill -9; waits until the process is gone. The dead mount stays, as it would.
    pub fn kill(&mut self) {
        self.signal(rustix::process::Signal::KILL);
        let status = self.wait_end();
        assert_eq!(status.signal(), Some(9), "the node ended with {status:?} before it was killed");
    }

    /// Whether the process runs.
    pub fn is_running(&self) -> bool {
        self.child.is_some()
    }

    /// Whether the process has ended by itself.
    pub fn has_ended(&mut self) -> bool {
        let running = self.child.as_mut().expect("a node that was started");
        running.child.try_wait().expect("ask for the node's state").is_some()
    }

    /// Destroys its disk: everything but the archive.
    pub fn wipe_data(&self) {
        assert!(self.child.is_none(), "the node runs");
        match std::fs::remove_dir_all(&self.data) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                panic!("wipe {}: {error}", self.data.display())
            }
            _ => {}
        }
    }

    /// Whether something is mounted on its mount point.
    pub fn is_mounted(&self) -> bool {
        let mounts = std::fs::read_to_string("/proc/self/mounts").expect("read /proc/self/mounts");
        let dir = self.mount();
        mounts.lines().any(|line| line.split(' ').nth(1).is_some_and(|at| Path::new(at) == dir))
    }
}

/// Whether position `archived` (JSON) is at `pos` or after it.
fn reached(archived: &Value, pos: &str) -> bool {
    // The TXIDs have a fixed width, so they compare as texts.
    archived.as_str().is_some_and(|archived| archived.get(..16) >= pos.get(..16))
}

impl Drop for Node {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<_> = log.lines().collect();
            let from = lines.len().saturating_sub(60);
            eprintln!("--- the node's last lines ({} starts):", self.starts);
            lines.iter().skip(from).for_each(|line| eprintln!("{line}"));
            eprintln!("---");
        }
        if let Some(mut running) = self.child.take() {
            let _ = running.child.kill();
            let _ = running.child.wait();
        }
        unmount(&self.mount());
    }
}

/// Takes a dead mount away.
pub fn unmount(dir: &Path) {
    for _ in 0..4 {
        if rustix::mount::unmount(dir, rustix::mount::UnmountFlags::DETACH).is_err() {
            return;
        }
    }
}

/// A port of the loopback that nobody listens on now, given to no other node of this
/// program: the ports are below those that the kernel gives out by itself
/// (ip_local_port_range, 32768 and more), where it soon gives the same one again.
pub fn free_addr() -> SocketAddr {
    const PORTS: std::ops::Range<u32> = 10_000..32_000;
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let count = PORTS.end - PORTS.start;
    let first = std::process::id().wrapping_mul(7919);
    for _ in 0..count {
        let next = first.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
        let port = u16::try_from(PORTS.start + next % count).expect("a port");
        if let Ok(listener) = TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
            return listener.local_addr().expect("the port that was found");
        }
    }
    panic!("every port of {PORTS:?} is in use");
}

/// Kills process `pid` when the returned sender still lives after [`WATCHDOG`].
fn watch(pid: u32, base: PathBuf) -> mpsc::Sender<()> {
    let (alive, ended) = mpsc::channel::<()>();
    std::thread::spawn(move || {
        if ended.recv_timeout(WATCHDOG) == Err(mpsc::RecvTimeoutError::Timeout) {
            eprintln!(
                "the node in {} runs for {WATCHDOG:?} (patience is {PATIENCE:?}): killed",
                base.display()
            );
            if let Some(pid) = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
    });
    alive
}

/// What each thread of a process waits for in the kernel.
fn threads_of(pid: u32) -> String {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let of = |task: std::fs::DirEntry| {
        let read = |name: &str| std::fs::read_to_string(task.path().join(name)).unwrap_or_default();
        format!("{} {}\n{}", read("comm").trim(), read("wchan"), read("stack"))
    };
    tasks.map(of).collect()
}
