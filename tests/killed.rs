//! kill -9 of the daemon while writers are at work, in every journal mode: what was
//! acknowledged is there after the restart, nothing is there by half, and the archive has
//! the same.

mod support;

use std::collections::BTreeSet;

use support::drivers::{self, Driver};
use support::worker::{Sqlite, Worker};
use support::{Node, PATIENCE, Scratch, Settings, can_mount};

const MODES: [&str; 4] = ["delete", "truncate", "persist", "wal"];
const SYNCS: [&str; 3] = ["off", "normal", "full"];

/// Transactions of one writer in one round.
const EACH: u64 = 120;

/// A writer of one database.
struct Writer {
    name: String,
    worker: Worker,
    /// Numbers whose transaction was acknowledged; those whose transaction failed.
    acknowledged: BTreeSet<u64>,
    failed: BTreeSet<u64>,
}

impl Writer {
    fn new(mode: &str) -> Writer {
        let (name, worker) = (format!("{mode}.db"), Worker::start(Sqlite::System));
        Writer { name, worker, acknowledged: BTreeSet::new(), failed: BTreeSet::new() }
    }

    /// Sends transactions from `first` on; each writes its number twice.
    fn begin(&mut self, node: &Node, mode: &str, sync: &str, first: u64) {
        self.worker = Worker::start(Sqlite::System);
        let open = [format!("PRAGMA journal_mode={mode}"), format!("PRAGMA synchronous={sync}")];
        let open: Vec<&str> =
            open.iter().map(String::as_str).chain(["CREATE TABLE IF NOT EXISTS t(n)"]).collect();
        self.worker.open_with(&node.file(&self.name), PATIENCE, &open).expect("alive").expect("open");
        let insert = |n| format!("INSERT INTO t VALUES({n})");
        let groups: Vec<_> = (first..first + EACH)
            .map(|n| vec!["BEGIN IMMEDIATE".to_owned(), insert(n), insert(n), "COMMIT".to_owned()])
            .collect();
        self.worker.send_groups(&groups).expect("alive");
    }

    /// Takes the reply to transaction `n`; it comes, whatever became of the daemon.
    fn reply(&mut self, n: u64) {
        let reply = self.worker.reply().expect("alive");
        let numbers = if reply["error"].is_null() { &mut self.acknowledged } else { &mut self.failed };
        numbers.insert(n);
    }

    fn check(&self, node: &Node, when: &str) {
        let file = node.file(&self.name);
        let there = Driver::Program.query(&file, "SELECT n, count(*) FROM t GROUP BY n ORDER BY n");
        let mut found = BTreeSet::new();
        for line in there.lines() {
            let (n, count) = line.split_once('|').expect("two columns");
            assert_eq!(count, "2", "{when}, {}: transaction {n} is there by half", self.name);
            found.insert(n.parse::<u64>().expect("a number"));
        }
        let lost: Vec<_> = self.acknowledged.difference(&found).collect();
        assert!(lost.is_empty(), "{when}, {}: acknowledged and lost: {lost:?}", self.name);
        let invented: Vec<_> =
            found.iter().filter(|n| !self.acknowledged.contains(n) && !self.failed.contains(n)).collect();
        assert!(invented.is_empty(), "{when}, {}: never written: {invented:?}", self.name);
        assert_eq!(drivers::integrity(&file), "ok", "{when}, {}", self.name);
    }
}

#[test]
fn a_daemon_killed_under_load_loses_nothing_that_was_acknowledged_in_any_journal_mode() {
    if !can_mount() {
        return;
    }
    for passthrough in [true, false] {
        let scratch = Scratch::new("killed");
        let mut node = Node::new(scratch.path(), Settings { passthrough, ..Settings::default() });
        node.start();
        let mut writers = MODES.map(Writer::new);
        for (round, sync) in (0..).zip(SYNCS) {
            let first = 1 + round * EACH;
            for (writer, mode) in writers.iter_mut().zip(MODES) {
                writer.begin(&node, mode, sync, first);
            }
            let before = 15 + 20 * round;
            for writer in &mut writers {
                (first..first + before).for_each(|n| writer.reply(n));
            }
            node.kill();
            for writer in &mut writers {
                (first + before..first + EACH).for_each(|n| writer.reply(n));
                writer.worker.kill_now();
            }
            node.start();
            for writer in &writers {
                writer.check(&node, &format!("passthrough {passthrough}, {sync}, after the restart"));
            }
        }
        let names: Vec<&str> = writers.iter().map(|writer| writer.name.as_str()).collect();
        node.wait_archived(&names);
        let before: Vec<String> = names.iter().map(|name| node.pos(name)).collect();
        node.kill();
        node.wipe_data();
        node.start();
        let after: Vec<String> = names.iter().map(|name| node.pos(name)).collect();
        assert_eq!(before, after);
        for writer in &writers {
            writer.check(&node, "from the archive");
        }
        node.stop();
    }
}

/// Has that many databases open at once, in every journal mode, and writes to each while
/// all are.
const MANY: &str = "
import resource, sqlite3, sys
_, most = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, 20000), most))
dbs = []
for n in range(int(sys.argv[2])):
    db = sqlite3.connect('%s/%d.db' % (sys.argv[1], n), isolation_level=None)
    db.execute('PRAGMA journal_mode=' + ['delete', 'truncate', 'persist', 'wal'][n % 4]).fetchall()
    db.execute('PRAGMA synchronous=off')
    db.execute('CREATE TABLE t(x)')
    db.execute('INSERT INTO t VALUES(?)', (n,))
    dbs.append(db)
for n, db in enumerate(dbs):
    db.execute('INSERT INTO t VALUES(?)', (n,))
for n, db in enumerate(dbs):
    assert db.execute('SELECT count(*), min(x), max(x) FROM t').fetchall() == [(2, n, n)]
print('ok')
";

#[test]
fn several_hundred_databases_are_open_at_once_whatever_the_soft_limit_of_open_files() {
    const COUNT: usize = 300;
    if !can_mount() {
        return;
    }
    for passthrough in [true, false] {
        let scratch = Scratch::new("many");
        let wrapper = ["sh", "-c", "ulimit -Sn 256; exec \"$@\"", "sh"].map(str::to_owned).to_vec();
        let mut node = Node::new(scratch.path(), Settings { passthrough, wrapper, ..Settings::default() });
        node.start();
        let mut command = std::process::Command::new("python3");
        command.args(["-c", MANY]).arg(node.mount()).arg(COUNT.to_string());
        let output = support::process::run(&mut command);
        assert_eq!(output.stdout.trim(), "ok", "{}", output.stderr);
        node.stop();
        node.wipe_data();
        node.start();
        let rows = node.status()["databases"].as_array().expect("databases").len();
        assert_eq!(rows, COUNT);
        for n in (0..COUNT).step_by(37) {
            let file = node.file(&format!("{n}.db"));
            assert_eq!(
                Driver::Program.query(&file, "SELECT group_concat(x) FROM t").trim(),
                format!("{n},{n}")
            );
        }
        node.stop();
    }
}
