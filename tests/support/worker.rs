//! Connections in processes of their own, so that they can be killed and so that a
//! hung mount cannot hang the test: one process, one connection, commands as JSON
//! lines. Served by this test program itself ([`serve`], SQLite as bundled) or by
//! Python (the system's SQLite).

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use rusqlite::Connection;
use serde_json::{Value, json};

use super::{PATIENCE, content};

/// Which SQLite the worker uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sqlite {
    /// rusqlite's, in this very program.
    Bundled,
    /// Python's.
    System,
}

/// The other end of a worker process.
#[derive(Debug)]
pub struct Worker {
    child: Child,
    stdin: ChildStdin,
    replies: mpsc::Receiver<String>,
    /// The last command.
    told: String,
    /// Which SQLite it uses.
    pub sqlite: Sqlite,
}

/// A statement that failed: SQLite's primary code and its text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub code: i64,
    pub text: String,
}

/// The worker died before it replied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gone;

const PYTHON: &str = r#"
import sqlite3, sys, json
db = None
def say(x):
    print(json.dumps(x), flush=True)
def text(v):
    return '' if v is None else v.decode('latin-1') if isinstance(v, bytes) else str(v)
for line in sys.stdin:
    c = json.loads(line)
    try:
        if c['op'] == 'open':
            if db: db.close()
            uri = c['path'].startswith('file:')
            db = sqlite3.connect(c['path'], isolation_level=None, timeout=c['timeout'] / 1000, uri=uri)
            for sql in c['first']:
                db.execute(sql).fetchall()
            say({'ok': True})
        elif c['op'] == 'close':
            if db: db.close()
            db = None
            say({'ok': True})
        elif c['op'] == 'query':
            rows = [[text(v) for v in row] for row in db.execute(c['sql'])]
            say({'rows': rows})
        elif c['op'] == 'groups':
            for n, group in enumerate(c['groups']):
                try:
                    for sql in group:
                        db.execute(sql).fetchall()
                    say({'n': n, 'ok': True})
                except sqlite3.Error as e:
                    if db.in_transaction:
                        db.execute('rollback')
                    say({'n': n, 'code': getattr(e, 'sqlite_errorcode', 1) & 255, 'error': str(e)})
    except sqlite3.Error as e:
        say({'code': getattr(e, 'sqlite_errorcode', 1) & 255, 'error': str(e)})
"#;

impl Worker {
    /// A new process. [`Sqlite::Bundled`] needs a test program whose `main` calls
    /// [`serve`] when its first argument is `worker`.
    pub fn start(sqlite: Sqlite) -> Worker {
        let mut command = match sqlite {
            Sqlite::Bundled => {
                let mut command = Command::new(std::env::current_exe().expect("this program's path"));
                command.arg("worker");
                command
            }
            Sqlite::System => {
                let mut command = Command::new("python3");
                command.args(["-u", "-c", PYTHON]);
                command
            }
        };
        let spawned = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut child = spawned.unwrap_or_else(|error| panic!("start {command:?}: {error}"));
        let stdin = child.stdin.take().expect("its standard input");
        let stdout = BufReader::new(child.stdout.take().expect("its standard output"));
        let (sender, replies) = mpsc::channel();
        std::thread::spawn(move || {
            for line in stdout.lines() {
                let Ok(line) = line else { break };
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        Worker { child, stdin, replies, told: String::new(), sqlite }
    }

    /// Sends a command.
    pub fn send(&mut self, command: &Value) -> Result<(), Gone> {
        let mut line = command.to_string();
        self.told = line.chars().take(300).collect();
        line.push('\n');
        self.stdin.write_all(line.as_bytes()).map_err(|_| Gone)
    }

    /// Its next reply.
    pub fn reply(&self) -> Result<Value, Gone> {
        match self.replies.recv_timeout(PATIENCE) {
            Ok(line) => Ok(serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"))),
            Err(mpsc::RecvTimeoutError::Disconnected) => Err(Gone),
            Err(mpsc::RecvTimeoutError::Timeout) => panic!(
                "worker {} gave no reply within {PATIENCE:?}; it was told {}; locks:\n{}",
                self.child.id(),
                self.told,
                std::fs::read_to_string("/proc/locks").unwrap_or_default()
            ),
        }
    }

    /// Its next reply, if one is there within `wait`.
    pub fn reply_within(&self, wait: Duration) -> Option<Value> {
        self.replies.recv_timeout(wait).ok().and_then(|line| serde_json::from_str(&line).ok())
    }

    fn call(&mut self, command: &Value) -> Result<Result<Value, Failure>, Gone> {
        self.send(command)?;
        Ok(judge(self.reply()?))
    }

    /// Opens a database; busy statements wait for `timeout`.
    pub fn open(&mut self, path: &Path, timeout: Duration) -> Result<Result<(), Failure>, Gone> {
        self.open_with(path, timeout, &["PRAGMA user_version"])
    }

    /// Opens a database and runs `first` on the new connection. [`Sqlite::System`] takes a
    /// `file:` URI too.
    pub fn open_with(
        &mut self,
        path: &Path,
        timeout: Duration,
        first: &[&str],
    ) -> Result<Result<(), Failure>, Gone> {
        let timeout = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
        let command = json!({ "op": "open", "path": path, "timeout": timeout, "first": first });
        Ok(self.call(&command)?.map(drop))
    }

    /// Closes it.
    pub fn close(&mut self) -> Result<(), Gone> {
        self.call(&json!({ "op": "close" })).map(drop)
    }

    /// The rows of one statement, values as texts.
    pub fn query(&mut self, sql: &str) -> Result<Result<Vec<Vec<String>>, Failure>, Gone> {
        let reply = self.call(&json!({ "op": "query", "sql": sql }))?;
        Ok(reply.map(|reply| serde_json::from_value(reply["rows"].clone()).expect("rows of texts")))
    }

    /// The whole content ([`content::describe`]) and `integrity_check`; only of a
    /// [`Sqlite::Bundled`] worker.
    pub fn content(&mut self) -> Result<Result<(String, String), Failure>, Gone> {
        let reply = self.call(&json!({ "op": "content" }))?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        Ok(reply.map(|reply| (text(&reply["content"]), text(&reply["integrity"]))))
    }

    /// Runs groups of statements; a group that fails is rolled back and the next
    /// one runs. Gives each group's outcome.
    pub fn groups(&mut self, groups: &[Vec<String>]) -> Result<Vec<Result<(), Failure>>, Gone> {
        self.send_groups(groups)?;
        groups.iter().map(|_| Ok(judge(self.reply()?).map(drop))).collect()
    }

    /// Begins [`Worker::groups`] without waiting.
    pub fn send_groups(&mut self, groups: &[Vec<String>]) -> Result<(), Gone> {
        self.send(&json!({ "op": "groups", "groups": groups }))
    }

    /// kill -9; what it has replied can still be read.
    pub fn kill_now(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// kill -9.
    pub fn kill(mut self) {
        self.kill_now();
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.kill_now();
    }
}

fn judge(reply: Value) -> Result<Value, Failure> {
    match reply["error"].as_str() {
        Some(text) => Err(Failure { code: reply["code"].as_i64().unwrap_or(1), text: text.to_owned() }),
        None => Ok(reply),
    }
}

/// The worker's side: serves commands until its input ends.
pub fn serve() {
    let mut db = None;
    for line in std::io::stdin().lines() {
        let Ok(line) = line else { return };
        let command: Value = serde_json::from_str(&line).expect("a command");
        if let Err(error) = obey(&mut db, &command) {
            say(&failure(&error));
        }
    }
}

fn obey(db: &mut Option<Connection>, command: &Value) -> rusqlite::Result<()> {
    match command["op"].as_str() {
        Some("open") => {
            *db = None;
            let opened = Connection::open(command["path"].as_str().unwrap_or_default())?;
            opened.busy_timeout(Duration::from_millis(command["timeout"].as_u64().unwrap_or(0)))?;
            for sql in command["first"].as_array().into_iter().flatten() {
                run(&opened, sql.as_str().unwrap_or_default())?;
            }
            *db = Some(opened);
            say(&json!({ "ok": true }));
        }
        Some("close") => {
            *db = None;
            say(&json!({ "ok": true }));
        }
        Some("query") => {
            let rows = run(open(db)?, command["sql"].as_str().unwrap_or_default())?;
            say(&json!({ "rows": rows }));
        }
        Some("content") => {
            let integrity = run(open(db)?, "PRAGMA integrity_check(3)")?;
            let integrity: Vec<_> = integrity.into_iter().flatten().collect();
            say(&json!({ "content": content::describe(open(db)?)?, "integrity": integrity.join("; ") }));
        }
        _ => {
            let groups: Vec<Vec<String>> =
                serde_json::from_value(command["groups"].clone()).expect("groups of statements");
            for (n, group) in groups.iter().enumerate() {
                match group.iter().try_for_each(|sql| run(open(db)?, sql).map(drop)) {
                    Ok(()) => say(&json!({ "n": n, "ok": true })),
                    Err(error) => {
                        let db = open(db)?;
                        if !db.is_autocommit() {
                            run(db, "ROLLBACK")?;
                        }
                        say(&failure(&error));
                    }
                }
            }
        }
    }
    Ok(())
}

fn open(db: &Option<Connection>) -> rusqlite::Result<&Connection> {
    db.as_ref().ok_or_else(|| rusqlite::Error::InvalidParameterName("no database is open".to_owned()))
}

fn run(db: &Connection, sql: &str) -> rusqlite::Result<Vec<Vec<String>>> {
    let mut statement = db.prepare(sql)?;
    let columns = statement.column_count();
    let mut rows = statement.query([])?;
    let mut all = Vec::new();
    while let Some(row) = rows.next()? {
        let mut texts = Vec::with_capacity(columns);
        for column in 0..columns {
            texts.push(match row.get_ref(column)? {
                rusqlite::types::ValueRef::Null => String::new(),
                rusqlite::types::ValueRef::Integer(number) => number.to_string(),
                rusqlite::types::ValueRef::Real(number) => number.to_string(),
                rusqlite::types::ValueRef::Text(bytes) | rusqlite::types::ValueRef::Blob(bytes) => {
                    String::from_utf8_lossy(bytes).into_owned()
                }
            });
        }
        all.push(texts);
    }
    Ok(all)
}

fn failure(error: &rusqlite::Error) -> Value {
    let code = match error {
        rusqlite::Error::SqliteFailure(failure, _) => i64::from(failure.extended_code & 255),
        rusqlite::Error::SqlInputError { error, .. } => i64::from(error.extended_code & 255),
        _ => 1,
    };
    json!({ "code": code, "error": error.to_string() })
}

fn say(reply: &Value) {
    let mut line = reply.to_string();
    line.push('\n');
    // The other end may be gone; then this process is about to be killed.
    let _ = std::io::stdout().lock().write_all(line.as_bytes());
}
