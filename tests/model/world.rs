//! The databases twice: in the mount of a node, used by worker processes, and as
//! plain files on ext4, used by this process. What succeeded in the mount is done to
//! the plain ones; then both must hold the same, and so must the archive.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::Connection;

use crate::sql::{Allowed, Author, Group, MODES, PAGE_SIZES, Random};
use crate::support::worker::{Failure, Gone, Sqlite, Worker};
use crate::support::{Node, PATIENCE, Scratch, Settings, content, process, wait_for};

/// The databases.
pub const NAMES: [&str; 2] = ["a.db", "sub/b.db"];
/// How long a writer waits for a lock: short, for a writer that fails is no fault.
const BUSY: Duration = Duration::from_millis(150);

const SQLITE_BUSY: i64 = 5;

/// A connection's process.
pub struct Hand {
    worker: Option<Worker>,
    sqlite: Sqlite,
    /// Which database it has open.
    pub db: usize,
}

/// Where a step is cut off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// Nowhere.
    No,
    /// The writer of the first script is killed after this many of its groups.
    Writer { after: usize, pause: Duration },
    /// The daemon is killed after as many, and then every writer.
    Daemon { after: usize, pause: Duration },
}

/// Everything of one run.
pub struct World {
    pub random: Random,
    pub node: Node,
    scratch: Scratch,
    plain: Vec<Connection>,
    pub hands: Vec<Hand>,
    readers: Vec<Worker>,
    /// A read transaction left open: its reader, its database, what it saw.
    snapshot: Option<(Worker, usize, String)>,
    serial: u64,
    /// Commits of a killed writer that nobody sees, by database and hand: their frames
    /// may be whole in the WAL, and then SQLite's next recovery publishes them, unless
    /// another commit comes first.
    uncertain: Vec<(usize, usize, Group)>,
    /// Groups that succeeded and that did not.
    pub done: (u64, u64),
}

impl World {
    /// A node and two databases of random shape, in the mount and beside it.
    pub fn new(seed: u64) -> World {
        let mut random = Random::new(seed);
        let scratch = Scratch::new(&format!("model-{seed}"));
        let settings = Settings { passthrough: seed.is_multiple_of(2), ..Settings::default() };
        let mut node = Node::new(scratch.path(), settings);
        node.start();
        mkdir(&node.file("sub"));
        std::fs::create_dir_all(scratch.join("plain/sub")).expect("create the plain directory");
        let hands = [Sqlite::Bundled, Sqlite::Bundled, Sqlite::System];
        let hands = hands
            .map(|sqlite| Hand { worker: None, sqlite, db: random.below(2) as usize })
            .into_iter()
            .collect();
        let mut world = World {
            random,
            node,
            scratch,
            plain: Vec::new(),
            hands,
            readers: Vec::new(),
            snapshot: None,
            serial: 0,
            uncertain: Vec::new(),
            done: (0, 0),
        };
        for db in 0..NAMES.len() {
            world.create(db);
        }
        world.connect();
        world
    }

    fn mounted(&self, db: usize) -> PathBuf {
        self.node.file(NAMES[db])
    }

    fn beside(&self, db: usize) -> PathBuf {
        self.scratch.join("plain").join(NAMES[db])
    }

    /// Creates a database in both places.
    pub fn create(&mut self, db: usize) {
        let shape = [
            format!("PRAGMA page_size={}", self.random.pick(&PAGE_SIZES)),
            format!("PRAGMA auto_vacuum={}", self.random.below(3)),
            format!("PRAGMA journal_mode={}", self.random.pick(&MODES)),
            "CREATE TABLE progress(who INTEGER PRIMARY KEY, n INT)".to_owned(),
        ];
        let mut worker = Worker::start(Sqlite::Bundled);
        worker.open_with(&self.mounted(db), PATIENCE, &[]).expect("alive").expect("create a database");
        for outcome in worker.groups(&[shape.to_vec()]).expect("alive") {
            outcome.expect("give a new database its shape");
        }
        worker.close().expect("alive");
        let plain = Connection::open(self.beside(db)).expect("create a plain database");
        for sql in &shape {
            on_plain(&plain, sql);
        }
        if db < self.plain.len() {
            self.plain[db] = plain;
        } else {
            self.plain.push(plain);
        }
    }

    /// Gives every hand and reader a process and a connection, if it has none.
    pub fn connect(&mut self) {
        let files: Vec<_> = (0..NAMES.len()).map(|db| self.mounted(db)).collect();
        for hand in &mut self.hands {
            if hand.worker.is_none() {
                let mut worker = Worker::start(hand.sqlite);
                open(&mut worker, &files[hand.db], &["PRAGMA user_version"]);
                hand.worker = Some(worker);
            }
        }
        if self.readers.is_empty() {
            for file in &files {
                let mut reader = Worker::start(Sqlite::Bundled);
                reader.open(file, PATIENCE).expect("alive").expect("open a database");
                self.readers.push(reader);
            }
        }
    }

    /// Ends every connection; by kill, or in the proper way.
    pub fn disconnect(&mut self, kill: bool) {
        self.end_snapshot();
        let workers = self.hands.iter_mut().filter_map(|hand| hand.worker.take());
        for mut worker in workers.chain(self.readers.drain(..)) {
            if !kill {
                worker.close().expect("alive");
            }
            worker.kill();
        }
    }

    /// Gives one hand a new connection, to either database.
    pub fn reconnect(&mut self, hand: usize, first: &[&str]) {
        let db = self.random.below(2) as usize;
        let file = self.mounted(db);
        let hand = &mut self.hands[hand];
        hand.db = db;
        let worker = hand.worker.as_mut().expect("a connected hand");
        open(worker, &file, first);
    }

    /// Whether a database is in WAL mode.
    pub fn is_wal(&mut self, db: usize) -> bool {
        // A connection notices a change of mode when it reads the database.
        let mut ask = |sql: &str| self.readers[db].query(sql).expect("alive").expect("ask for the mode");
        ask("SELECT count(*) FROM sqlite_schema");
        ask("PRAGMA journal_mode")[0][0] == "wal"
    }

    /// Opens a read transaction that stays open over the next steps (WAL only:
    /// elsewhere it would keep every writer out).
    pub fn begin_snapshot(&mut self) {
        let db = self.random.below(2) as usize;
        if self.snapshot.is_some() || !self.is_wal(db) {
            return;
        }
        let mut reader = Worker::start(Sqlite::Bundled);
        reader.open(&self.mounted(db), PATIENCE).expect("alive").expect("open a database");
        reader.query("BEGIN").expect("alive").expect("begin");
        let (seen, _) = reader.content().expect("alive").expect("read");
        self.snapshot = Some((reader, db, seen));
    }

    /// Ends it: it must still see what it saw.
    pub fn end_snapshot(&mut self) {
        let Some((mut reader, db, seen)) = self.snapshot.take() else { return };
        let (now, _) = reader.content().expect("alive").expect("read in an open transaction");
        if let Some(difference) = content::first_difference(&seen, &now) {
            panic!("an open read transaction of {} saw a change: {difference}", NAMES[db]);
        }
        reader.close().expect("alive");
    }

    /// A script for a hand.
    pub fn script(&mut self, hand: usize, groups: u64, allowed: Allowed) -> Vec<Group> {
        let bundled = self.hands[hand].sqlite == Sqlite::Bundled;
        // SQLite 3.40.1 in WAL mode keeps the PENDING lock for good when EXCLUSIVE was
        // refused because others are connected.
        let exclusive = allowed.exclusive && bundled;
        let allowed = Allowed { spills: allowed.spills && bundled, exclusive, ..allowed };
        let mut author = Author { random: &mut self.random, who: hand, serial: &mut self.serial, allowed };
        author.script(groups)
    }

    /// Runs scripts at the same time, one a hand; afterwards the plain databases
    /// have what happened.
    pub fn run(&mut self, scripts: &[(usize, Vec<Group>)], cut: Cut) {
        for (hand, script) in scripts {
            let other = self.mounted(1 - self.hands[*hand].db).display().to_string();
            let groups: Vec<Vec<String>> = script
                .iter()
                .map(|group| group.sql.iter().map(|sql| sql.replace("{other}", &other)).collect())
                .collect();
            let worker = self.hands[*hand].worker.as_mut().expect("a connected hand");
            worker.send_groups(&groups).expect("alive");
        }
        let mut replies: Vec<Vec<Result<(), Failure>>> = scripts.iter().map(|_| Vec::new()).collect();
        if let (Cut::Writer { after, pause } | Cut::Daemon { after, pause }, Some((hand, script))) =
            (cut, scripts.first())
        {
            let worker = self.hands[*hand].worker.as_ref().expect("a connected hand");
            for _ in 0..after.min(script.len()) {
                replies[0].push(reply(worker).expect("alive"));
            }
            // Any moment is as good as any other: nothing waits for this.
            std::thread::sleep(pause);
            if matches!(cut, Cut::Daemon { .. }) {
                self.node.kill();
            }
            self.hands[*hand].worker.as_mut().expect("a connected hand").kill_now();
        }
        for (n, (hand, script)) in scripts.iter().enumerate() {
            let worker = self.hands[*hand].worker.as_mut().expect("a connected hand");
            if matches!(cut, Cut::Daemon { .. }) {
                worker.kill_now();
            }
            while replies[n].len() < script.len() {
                match reply(worker) {
                    Ok(reply) => replies[n].push(reply),
                    Err(Gone) => break,
                }
            }
        }
        let killed: Vec<_> = match cut {
            Cut::No => Vec::new(),
            Cut::Writer { .. } => scripts.iter().take(1).map(|(hand, _)| *hand).collect(),
            Cut::Daemon { .. } => {
                self.readers.clear();
                self.snapshot = None;
                self.hands.iter_mut().for_each(|hand| hand.worker = None);
                Vec::new()
            }
        };
        for hand in killed {
            self.hands[hand].worker = None;
        }
        if matches!(cut, Cut::Daemon { .. }) {
            self.node.start();
        }
        self.connect();
        if std::env::var_os("LITEFS_MODEL_TRACE").is_some() {
            for ((hand, script), replies) in scripts.iter().zip(&replies) {
                eprintln!("hand {hand} in {}, {cut:?}:", NAMES[self.hands[*hand].db]);
                for (n, group) in script.iter().enumerate() {
                    eprintln!("  {:?} {:?}", replies.get(n), group.sql);
                }
            }
        }
        for ((hand, script), replies) in scripts.iter().zip(&replies) {
            self.follow(*hand, script, replies, matches!(cut, Cut::Daemon { .. }));
        }
        self.follow_modes();
    }

    /// Does to the plain database what a script did to the mounted one.
    fn follow(&mut self, hand: usize, script: &[Group], replies: &[Result<(), Failure>], daemon_died: bool) {
        let db = self.hands[hand].db;
        let other = self.beside(1 - db).display().to_string();
        for (n, group) in script.iter().enumerate() {
            let happened = match replies.get(n) {
                Some(Ok(())) => true,
                // What the last call says that a dead mount failed tells nothing: of a COMMIT
                // the ROLLBACK's failure is what comes back.
                Some(Err(_)) if daemon_died => self.progress_reached(hand, group),
                Some(Err(failure)) if harmless(failure) => false,
                Some(Err(failure)) => panic!("{:?} failed in {}: {failure:?}", group.sql, NAMES[db]),
                None => self.progress_reached(hand, group),
            };
            if happened {
                self.done.0 += 1;
            } else {
                self.done.1 += 1;
                if replies.get(n).is_none_or(|_| daemon_died) && group.serial.is_some() && !group.both {
                    self.uncertain.push((db, hand, group.clone()));
                }
            }
            if happened && group.content {
                for sql in &group.sql {
                    on_plain(&self.plain[db], &sql.replace("{other}", &other));
                }
            }
        }
        if script.iter().any(|group| group.both) {
            // A script that was cut off has not detached it.
            let _ = self.plain[db].execute_batch("DETACH other");
        }
    }

    /// Whether a group whose reply was lost was committed; in both databases or in
    /// none.
    fn progress_reached(&mut self, hand: usize, group: &Group) -> bool {
        let Some(serial) = group.serial else { return false };
        let db = self.hands[hand].db;
        let reached = self.progress(db, hand) == Some(serial);
        if group.both {
            let there = self.progress(1 - db, hand) == Some(serial);
            assert_eq!(reached, there, "a commit over two files is in one of them: {serial}");
        }
        reached
    }

    fn progress(&mut self, db: usize, hand: usize) -> Option<u64> {
        let sql = format!("SELECT n FROM progress WHERE who = {hand}");
        let rows = self.readers[db].query(&sql).expect("alive").expect("read the progress");
        rows.first().map(|row| row[0].parse().expect("a number"))
    }

    fn follow_modes(&mut self) {
        for db in 0..NAMES.len() {
            let mode = if self.is_wal(db) { "wal" } else { "delete" };
            on_plain(&self.plain[db], &format!("PRAGMA journal_mode={mode}"));
        }
    }

    /// Does to the plain databases what a recovery has published since.
    fn follow_recoveries(&mut self) {
        for (db, hand, group) in std::mem::take(&mut self.uncertain) {
            if self.progress(db, hand) == group.serial {
                group.sql.iter().for_each(|sql| on_plain(&self.plain[db], sql));
            } else {
                self.uncertain.push((db, hand, group));
            }
        }
    }

    /// Decides what is uncertain: a commit takes the place of such frames.
    fn settle(&mut self) {
        self.follow_recoveries();
        self.serial += 1;
        let sql = format!("REPLACE INTO progress VALUES(99, {})", self.serial);
        for (db, _, _) in std::mem::take(&mut self.uncertain) {
            self.readers[db].query(&sql).expect("alive").expect("commit");
            on_plain(&self.plain[db], &sql);
        }
    }

    /// Mounted and plain databases hold the same and are sound.
    pub fn compare(&mut self) {
        self.follow_recoveries();
        for (db, name) in NAMES.into_iter().enumerate() {
            let (mounted, integrity) =
                self.readers[db].content().expect("alive").expect("read a mounted database");
            assert_eq!(integrity, "ok", "integrity of {name}");
            let plain = content::describe(&self.plain[db]).expect("read a plain database");
            if let Some(difference) = content::first_difference(&plain, &mounted) {
                panic!("{name}: plain {difference} in the mount");
            }
        }
    }

    /// The archive's chain, replayed from zero, gives the same databases.
    pub fn replay(&mut self) {
        self.node.wait_archived(&NAMES);
        for (db, name) in NAMES.into_iter().enumerate() {
            let file = self.scratch.join("restored.db");
            restore(&self.node, name, &file);
            // A checkpoint would wait for a read transaction that is left open.
            let checkpointed = match (self.is_wal(db), &self.snapshot) {
                (false, _) => true,
                (true, Some(_)) => false,
                (true, None) => {
                    let rows = self.readers[db].query("PRAGMA wal_checkpoint(TRUNCATE)").expect("alive");
                    rows.is_ok_and(|rows| rows[0][0] == "0")
                }
            };
            if checkpointed {
                let mounted = std::fs::read(self.mounted(db)).expect("read the mounted file");
                let restored = std::fs::read(&file).expect("read the restored file");
                same_pages(name, &mounted, &restored);
            }
            let plain = content::describe(&self.plain[db]).expect("read a plain database");
            if let Some(difference) = content::first_difference(&plain, &content::of_file(&file)) {
                panic!("{name}: plain {difference} in the archive");
            }
            for suffix in ["", "-wal", "-shm"] {
                let _ = std::fs::remove_file(self.scratch.join(&format!("restored.db{suffix}")));
            }
        }
    }

    /// Removes a database in both places and creates it anew: TXIDs go on.
    pub fn recreate(&mut self) {
        let db = self.random.below(2) as usize;
        self.settle();
        self.disconnect(false);
        let before = self.node.pos(NAMES[db]);
        let file = self.mounted(db);
        let removed = process::run(std::process::Command::new("rm").arg(&file));
        assert!(removed.status.success(), "remove {}: {}", file.display(), removed.stderr);
        for suffix in ["-journal", "-wal", "-shm"] {
            let beside = format!("{}{suffix}", file.display());
            process::run(std::process::Command::new("rm").args(["-f", &beside]));
        }
        assert!(!file.exists(), "{} is still there after it was removed", file.display());
        self.plain[db] = Connection::open_in_memory().expect("an empty database");
        for suffix in ["", "-journal", "-wal", "-shm"] {
            let _ = std::fs::remove_file(format!("{}{suffix}", self.beside(db).display()));
        }
        self.create(db);
        self.connect();
        let after = self.node.pos(NAMES[db]);
        assert!(after.get(..16) > before.get(..16), "{}: {after} after {before}", NAMES[db]);
    }

    /// Stops the node, as it should be or by kill -9 once everything is archived,
    /// perhaps destroys its disk, and starts it.
    pub fn restart(&mut self, kill: bool, wipe: bool) {
        self.settle();
        if kill && wipe {
            self.node.wait_archived(&NAMES);
        }
        if !kill || self.random.one_in(2) {
            let killed = self.random.one_in(2);
            self.disconnect(killed);
        }
        // A WAL that a killed application left behind is captured when something asks.
        let before = NAMES.map(|name| self.node.pos(name));
        if kill {
            if wipe {
                self.node.wait_archived(&NAMES);
            }
            self.node.kill();
        } else {
            self.node.stop();
        }
        self.snapshot = None;
        self.readers.clear();
        self.hands.iter_mut().for_each(|hand| hand.worker = None);
        if wipe {
            self.node.wipe_data();
        }
        self.node.start();
        let after = NAMES.map(|name| self.node.pos(name));
        assert_eq!(before, after, "a restart moved the position");
        self.connect();
    }
}

/// Opens a database; another writer may have it locked for longer than writers wait.
fn open(worker: &mut Worker, file: &Path, first: &[&str]) {
    wait_for("a database can be opened", || match worker.open_with(file, BUSY, first).expect("alive") {
        Err(failure) if failure.code == SQLITE_BUSY => None,
        outcome => Some(outcome),
    })
    .expect("open a database");
}

fn reply(worker: &Worker) -> Result<Result<(), Failure>, Gone> {
    let reply = worker.reply()?;
    Ok(match reply["error"].as_str() {
        Some(text) => Err(Failure { code: reply["code"].as_i64().unwrap_or(1), text: text.to_owned() }),
        None => Ok(()),
    })
}

/// Failures that SQLite gives on any file system: an SQL error (no such table; the schema,
/// if others change it twice while the statement is prepared), a lock that another
/// connection has.
fn harmless(failure: &Failure) -> bool {
    const ERROR: i64 = 1;
    const LOCKED: i64 = 6;
    const SCHEMA: i64 = 17;
    matches!(failure.code, ERROR | SQLITE_BUSY | LOCKED | SCHEMA)
}

fn on_plain(db: &Connection, sql: &str) {
    let run = || {
        let mut statement = db.prepare(sql)?;
        let mut rows = statement.query([])?;
        while rows.next()?.is_some() {}
        Ok(())
    };
    run().unwrap_or_else(|error: rusqlite::Error| panic!("only the mount accepted {sql:?}: {error}"));
}

fn mkdir(path: &Path) {
    let output = process::run(std::process::Command::new("mkdir").arg(path));
    assert!(output.status.success(), "create {}: {}", path.display(), output.stderr);
}

/// Restores a database from the node's archive into a new file.
fn restore(node: &Node, name: &str, file: &Path) {
    let mut command = process::litefs();
    command.args(["restore", "--storage", &node.archive_url(), "--name", name, "-o"]).arg(file);
    let output = process::run(&mut command);
    assert!(output.status.success(), "restore {name}: {}{}", output.stdout, output.stderr);
}

/// Both images have the same pages, but for free leaf pages, whose bytes SQLite
/// never reads.
fn same_pages(name: &str, mounted: &[u8], restored: &[u8]) {
    assert_eq!(mounted.len(), restored.len(), "size of {name} in the mount and restored");
    if mounted.len() < 100 {
        return;
    }
    let word = |at: usize| u32::from_be_bytes(restored[at..at + 4].try_into().expect("four bytes")) as usize;
    let size = match u16::from_be_bytes([restored[16], restored[17]]) {
        1 => 65536,
        size => usize::from(size),
    };
    let mut free = std::collections::HashSet::new();
    let mut trunk = word(32);
    while trunk != 0 {
        let at = (trunk - 1) * size;
        free.extend((0..word(at + 4)).map(|n| word(at + 8 + 4 * n)));
        trunk = word(at);
    }
    for (n, (left, right)) in mounted.chunks(size).zip(restored.chunks(size)).enumerate() {
        assert!(left == right || free.contains(&(n + 1)), "page {} of {name} differs in the archive", n + 1);
    }
}
