//! SQLite as programs of several languages use it, each in a process of its own:
//! the sqlite3 program, Python's sqlite3, and better-sqlite3 of Node.js (or Perl's
//! DBD::SQLite where that is not to be had).

use std::path::{Path, PathBuf};
use std::process::Command;

use super::process;

/// A language's driver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Driver {
    /// The sqlite3 program.
    Program,
    /// Python's standard library.
    Python,
    /// better-sqlite3, from this node_modules directory.
    Node(PathBuf),
    /// DBD::SQLite.
    Perl,
}

const PYTHON: &str = r"
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=30)
if sys.argv[2] == 'exec':
    db.executescript(sys.stdin.read())
else:
    for row in db.execute(sys.stdin.read()):
        print('|'.join('' if v is None else str(v) for v in row))
db.close()
";

const NODE: &str = r"
const db = new (require('better-sqlite3'))(process.argv[1], { timeout: 30000 });
const sql = require('fs').readFileSync(0, 'utf8');
if (process.argv[2] === 'exec') db.exec(sql);
else for (const row of db.prepare(sql).raw().all())
  console.log(row.map((v) => (v === null ? '' : String(v))).join('|'));
db.close();
";

const PERL: &str = r#"
use DBI;
my $db = DBI->connect("dbi:SQLite:dbname=$ARGV[0]", "", "", { RaiseError => 1, sqlite_allow_multiple_statements => 1 });
$db->sqlite_busy_timeout(30000);
my $sql = do { local $/; <STDIN> };
if ($ARGV[1] eq 'exec') { $db->do($sql) }
else { for my $row (@{ $db->selectall_arrayref($sql) }) { print join('|', map { defined $_ ? $_ : '' } @$row), "\n" } }
$db->disconnect;
"#;

impl Driver {
    /// Every driver there is here; at least three, of which the program is the first.
    pub fn all() -> Vec<Driver> {
        let mut found = vec![Driver::Program, Driver::Python];
        let modules = std::env::var_os("LITEFS_TEST_NODE_MODULES").map_or_else(
            || Path::new(env!("CARGO_MANIFEST_DIR")).join("target/test-tools/node/node_modules"),
            PathBuf::from,
        );
        found.push(Driver::Node(modules));
        found.push(Driver::Perl);
        found.retain(Driver::works);
        assert!(found.len() >= 3, "only {found:?} work here: run scripts/test once, it installs the others");
        found
    }

    fn works(&self) -> bool {
        let mut command = self.command(Path::new(":memory:"), "exec");
        command.stdin(std::process::Stdio::null()).output().is_ok_and(|output| output.status.success())
    }

    fn command(&self, db: &Path, what: &str) -> Command {
        let (program, code) = match self {
            Driver::Program => {
                let mut command = Command::new("sqlite3");
                command.args(["-batch", "-bail", "-init", "/dev/null", "-cmd", ".timeout 30000"]).arg(db);
                return command;
            }
            Driver::Python => ("python3", ["-c", PYTHON]),
            Driver::Node(_) => ("node", ["-e", NODE]),
            Driver::Perl => ("perl", ["-e", PERL]),
        };
        let mut command = Command::new(program);
        command.args(code).arg(db).arg(what);
        if let Driver::Node(modules) = self {
            command.env("NODE_PATH", modules);
        }
        command
    }

    /// Runs statements that give no rows that matter.
    pub fn exec(&self, db: &Path, sql: &str) {
        self.try_exec(db, sql).unwrap_or_else(|error| panic!("{self:?} on {}: {error}", db.display()));
    }

    /// Runs statements; the error is what the driver printed.
    pub fn try_exec(&self, db: &Path, sql: &str) -> Result<(), String> {
        let output = process::run_with(&mut self.command(db, "exec"), sql);
        if output.status.success() { Ok(()) } else { Err(output.stderr) }
    }

    /// The rows of one SELECT, a line each.
    pub fn query(&self, db: &Path, sql: &str) -> String {
        let output = process::run_with(&mut self.command(db, "query"), sql);
        assert!(output.status.success(), "{self:?} on {}: {}", db.display(), output.stderr);
        output.stdout
    }
}

/// The whole content as SQL, by the sqlite3 program.
pub fn dump(db: &Path) -> String {
    let output = process::run_with(&mut Driver::Program.command(db, ""), ".dump\n");
    assert!(output.status.success(), "dump {}: {}", db.display(), output.stderr);
    output.stdout
}

/// What `PRAGMA integrity_check` says; `ok` if all is well.
pub fn integrity(db: &Path) -> String {
    Driver::Program.query(db, "PRAGMA integrity_check").trim().to_owned()
}
