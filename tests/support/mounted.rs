//! A store mounted in this very process, for tests of the mount itself. Applications
//! are other processes: a daemon that maps or locks files of its own mount is another
//! story.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use litefs::fuse::{Mount, MountError, MountOptions, Passthrough};
use litefs::store::{Role, Store, StoreOptions};
use litefs::words::{DbName, Faults, NodeId, SystemClock};

use super::worker::{Sqlite, Worker};
use super::{PATIENCE, Scratch, process};

/// A mounted store; unmounted and gone with the value.
pub struct Mounted {
    /// The mount; before the others, which it uses.
    pub mount: Mount,
    /// What is mounted.
    pub store: Arc<Store>,
    /// Says when the mount has ended.
    pub ended: mpsc::Receiver<()>,
    scratch: Arc<Scratch>,
}

/// A store in `scratch`, as the primary.
pub fn open_store(scratch: &Scratch) -> Arc<Store> {
    let options = StoreOptions {
        dir: scratch.join("data"),
        boot_id: "this boot".to_owned(),
        new_node: NodeId::new(1),
        clock: Arc::new(SystemClock),
        faults: Faults::none(),
    };
    let store = Store::open(options).unwrap_or_else(|error| panic!("open a store: {error}"));
    store.set_role(Role::Primary);
    Arc::new(store)
}

impl Mounted {
    /// A new store, mounted for its owner.
    pub fn new(name: &str, passthrough: Passthrough) -> Mounted {
        Mounted::with(name, passthrough, false)
    }

    /// A new store, mounted for everybody.
    pub fn for_all(name: &str, passthrough: Passthrough) -> Mounted {
        Mounted::with(name, passthrough, true)
    }

    /// A new store whose commits count only once the archive has them.
    pub fn archive_first(name: &str, passthrough: Passthrough) -> Mounted {
        let scratch = Arc::new(Scratch::new(name));
        let store = open_store(&scratch);
        store.set_archive_first(true);
        let mounted = Mounted::mount(scratch, store, passthrough, false);
        mounted.unwrap_or_else(|error| panic!("{error}"))
    }

    fn with(name: &str, passthrough: Passthrough, allow_other: bool) -> Mounted {
        let scratch = Arc::new(Scratch::new(name));
        let store = open_store(&scratch);
        match Mounted::mount(scratch, store, passthrough, allow_other) {
            Ok(mounted) => mounted,
            Err(error) => panic!("{error}"),
        }
    }

    /// Mounts a store at `mnt` in `scratch`.
    pub fn mount(
        scratch: Arc<Scratch>,
        store: Arc<Store>,
        passthrough: Passthrough,
        allow_other: bool,
    ) -> Result<Mounted, MountError> {
        let options = MountOptions { dir: scratch.join("mnt"), allow_other, passthrough };
        let (sender, ended) = mpsc::channel();
        let mount = Mount::start(&options, Arc::clone(&store), move || {
            let _ = sender.send(());
        })?;
        Ok(Mounted { mount, store, ended, scratch })
    }

    /// Where its files are.
    pub fn scratch(&self) -> Arc<Scratch> {
        Arc::clone(&self.scratch)
    }

    /// A path below the mount.
    pub fn path(&self, name: &str) -> PathBuf {
        self.mount.dir().join(name)
    }

    /// A connection of another process.
    pub fn connect(&self, name: &str) -> Client {
        Client::open(&self.path(name))
    }

    /// The TXID up to which a database is captured now, whoever asked for it.
    pub fn txid(&self, name: &str) -> u64 {
        let name = DbName::new(name).expect("a name");
        self.store.database(&name).map_or(0, |db| db.pos().txid.get())
    }

    /// Runs a shell script in which `$M` is the mount; its output and code.
    pub fn sh(&self, script: &str) -> (String, i32) {
        shell(script, self.mount.dir())
    }

    /// Runs a script that must succeed; its output.
    pub fn ok(&self, script: &str) -> String {
        let (said, code) = self.sh(script);
        assert_eq!(code, 0, "{script}\n{said}");
        said
    }
}

/// Runs a shell script in which `$M` is `dir`.
pub fn shell(script: &str, dir: &Path) -> (String, i32) {
    let output = process::run(Command::new("sh").args(["-c", script]).env("M", dir).env("LC_ALL", "C"));
    let code = output.code().unwrap_or(-1);
    ((output.stdout + &output.stderr).trim().to_owned(), code)
}

/// A connection that must work unless the test says otherwise.
pub struct Client(Worker);

impl Client {
    /// Opens a database in a new process; statements that are busy fail at once.
    pub fn open(path: &Path) -> Client {
        let mut worker = Worker::start(Sqlite::System);
        let opened = worker.open(path, Duration::ZERO).expect("the worker lives");
        opened.unwrap_or_else(|failure| panic!("open {}: {failure:?}", path.display()));
        Client(worker)
    }

    /// The rows of a statement, values as texts.
    pub fn rows(&mut self, sql: &str) -> Vec<Vec<String>> {
        self.attempt(sql).unwrap_or_else(|text| panic!("{sql}: {text}"))
    }

    /// The first value of a statement; empty if it has none.
    pub fn value(&mut self, sql: &str) -> String {
        self.rows(sql).into_iter().flatten().next().unwrap_or_default()
    }

    /// The rows, or SQLite's text.
    pub fn attempt(&mut self, sql: &str) -> Result<Vec<Vec<String>>, String> {
        self.0.query(sql).expect("the worker lives").map_err(|failure| failure.text)
    }

    /// Closes the connection.
    pub fn close(mut self) {
        self.0.close().expect("the worker lives");
    }

    /// kill -9.
    pub fn kill(self) {
        self.0.kill();
    }

    /// Begins a statement.
    pub fn begin(&mut self, sql: &str) {
        self.0.send(&serde_json::json!({ "op": "query", "sql": sql })).expect("the worker lives");
    }

    /// Whether the statement that was begun has an answer within a moment.
    pub fn answers(&self) -> bool {
        self.0.reply_within(Duration::from_millis(30)).is_some()
    }

    /// The answer to the statement that was begun, if it is there within `wait`.
    pub fn answer_within(&self, wait: Duration) -> Option<Result<(), String>> {
        let reply = self.0.reply_within(wait)?;
        Some(reply["error"].as_str().map_or(Ok(()), |text| Err(text.to_owned())))
    }

    /// Waits for the answer to the statement that was begun: SQLite's text if it failed.
    pub fn answer(&self) -> Result<(), String> {
        let reply = self.0.reply().expect("the worker lives");
        reply["error"].as_str().map_or(Ok(()), |text| Err(text.to_owned()))
    }
}

/// Both ways for journal, WAL and shm.
pub const BOTH: [Passthrough; 2] = [Passthrough::Auto, Passthrough::Off];

/// How long an end may take.
pub const END: Duration = PATIENCE;
