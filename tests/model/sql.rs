//! Random SQL whose effect depends on nothing but the SQL: no random(), no time, row
//! ids given, each worker in tables of its own, so that concurrent workers commute.

/// SplitMix64: seeds must mean the same with every version of every crate.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// 0..n
    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n.max(1)
    }

    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[usize::try_from(self.below(from.len() as u64)).expect("an index")]
    }
}

/// Statements that succeed or fail together.
#[derive(Clone, Debug)]
pub struct Group {
    /// `{other}` stands for the path of the attached database.
    pub sql: Vec<String>,
    /// Whether the plain database gets it too; pragmas of a connection do not.
    pub content: bool,
    /// What `progress` says after it, where it writes that.
    pub serial: Option<u64>,
    /// It writes to the attached database too, `progress` included.
    pub both: bool,
}

impl Group {
    fn pragma(sql: String) -> Group {
        Group::without_effect(vec![sql])
    }

    fn without_effect(sql: Vec<String>) -> Group {
        Group { sql, content: false, serial: None, both: false }
    }

    fn enters_wal(&self) -> bool {
        self.sql.iter().any(|sql| sql == "PRAGMA journal_mode=wal")
    }

    fn content(sql: Vec<String>) -> Group {
        Group { sql, content: true, serial: None, both: false }
    }
}

/// What may be in a script.
#[derive(Clone, Copy, Debug)]
pub struct Allowed {
    /// The connection may spill and roll back to savepoints: SQLite 3.40.1 leaves
    /// broken WALs then (docs: facts, fuse-limits §3), so not with the system's.
    pub spills: bool,
    /// The script runs alone and to its end: statements whose outcome cannot be
    /// read from `progress` are allowed.
    pub alone: bool,
    /// `PRAGMA journal_mode` may change; then nothing that works differently in WAL mode.
    pub switches: bool,
    /// A second database is attached as `other`.
    pub attached: bool,
    /// `locking_mode=EXCLUSIVE` from the second group on, NORMAL again at the end.
    pub exclusive: bool,
}

pub const MODES: [&str; 4] = ["delete", "truncate", "persist", "wal"];
pub const PAGE_SIZES: [u32; 8] = [512, 1024, 2048, 4096, 8192, 16384, 32768, 65536];

/// Writes scripts for one worker.
pub struct Author<'a> {
    pub random: &'a mut Random,
    /// The worker's number: its tables' prefix and its row in `progress`.
    pub who: usize,
    pub serial: &'a mut u64,
    pub allowed: Allowed,
}

impl Author<'_> {
    pub fn script(&mut self, groups: u64) -> Vec<Group> {
        let mut script = Vec::new();
        if self.allowed.attached {
            script.push(Group { content: true, ..Group::pragma("ATTACH '{other}' AS other".to_owned()) });
        }
        if self.allowed.exclusive {
            script.push(Group::pragma("PRAGMA locking_mode=EXCLUSIVE".to_owned()));
        }
        if self.random.one_in(2) {
            self.tables(&mut script);
        }
        for _ in 0..groups {
            self.group(&mut script);
        }
        if self.allowed.exclusive {
            // Where WAL mode was first entered in EXCLUSIVE it has to be left before NORMAL
            // (sqlite.org/pragma.html#pragma_locking_mode); on a plain file, too.
            if script.iter().any(Group::enters_wal) {
                script.push(Group::pragma("PRAGMA journal_mode=delete".to_owned()));
            }
            script.push(Group::pragma("PRAGMA locking_mode=NORMAL".to_owned()));
            script.push(Group::pragma("SELECT count(*) FROM sqlite_schema".to_owned()));
        }
        if self.allowed.attached {
            script.push(Group { content: true, ..Group::pragma("DETACH other".to_owned()) });
        }
        script
    }

    fn group(&mut self, script: &mut Vec<Group>) {
        match self.random.below(100) {
            0..=44 => self.transaction(script),
            45..=49 => {
                let begin = self.begin();
                let mut sql = vec![begin];
                self.statements("", &mut sql);
                sql.push("ROLLBACK".to_owned());
                script.push(Group::without_effect(sql));
            }
            50..=64 if self.allowed.spills => self.savepoints(script),
            65..=74 => self.connection_setting(script),
            75..=84 => {
                let kind = self.random.pick(&["PASSIVE", "FULL", "RESTART", "TRUNCATE"]);
                script.push(Group::pragma(format!("PRAGMA wal_checkpoint({kind})")));
            }
            85..=89 if self.allowed.switches && !self.allowed.attached => {
                let mode = self.random.pick(&MODES);
                script.push(Group::pragma(format!("PRAGMA journal_mode={mode}")));
            }
            90..=95 if self.allowed.alone && !self.allowed.switches && !self.allowed.attached => {
                self.reshape(script)
            }
            96..=99 if self.allowed.alone => {
                let statement = self.statement("");
                script.push(Group::content(vec![statement]));
            }
            _ => self.transaction(script),
        }
    }

    /// All tables there, so that the statements after it have something to do.
    fn tables(&mut self, script: &mut Vec<Group>) {
        let mut sql = vec!["BEGIN IMMEDIATE".to_owned()];
        for schema in if self.allowed.attached { &["", "other."][..] } else { &[""] } {
            sql.extend((0..3).map(|n| create_table(&format!("{schema}w{}_{n}", self.who))));
        }
        self.commit(sql, script);
    }

    fn transaction(&mut self, script: &mut Vec<Group>) {
        let begin = self.begin();
        let mut sql = vec![begin];
        self.statements("", &mut sql);
        if self.allowed.attached {
            self.statements("other.", &mut sql);
        }
        self.commit(sql, script);
    }

    fn savepoints(&mut self, script: &mut Vec<Group>) {
        let begin = self.begin();
        let mut sql = vec![begin];
        self.statements("", &mut sql);
        sql.push("SAVEPOINT one".to_owned());
        self.statements("", &mut sql);
        if self.random.one_in(2) {
            sql.push("SAVEPOINT two".to_owned());
            self.statements("", &mut sql);
            sql.push(self.random.pick(&["ROLLBACK TO two", "RELEASE two"]).to_owned());
            self.statements("", &mut sql);
        }
        sql.push(self.random.pick(&["ROLLBACK TO one", "RELEASE one"]).to_owned());
        self.statements("", &mut sql);
        self.commit(sql, script);
    }

    fn commit(&mut self, mut sql: Vec<String>, script: &mut Vec<Group>) {
        *self.serial += 1;
        let both = self.allowed.attached;
        sql.push(format!("REPLACE INTO progress VALUES({}, {})", self.who, self.serial));
        if both {
            sql.push(format!("REPLACE INTO other.progress VALUES({}, {})", self.who, self.serial));
        }
        sql.push("COMMIT".to_owned());
        script.push(Group { sql, content: true, serial: Some(*self.serial), both });
    }

    fn begin(&mut self) -> String {
        self.random.pick(&["BEGIN", "BEGIN IMMEDIATE", "BEGIN EXCLUSIVE"]).to_owned()
    }

    fn connection_setting(&mut self, script: &mut Vec<Group>) {
        let number = self.random.below(60);
        script.push(Group::pragma(match self.random.below(6) {
            0 if self.allowed.spills => "PRAGMA cache_size=5".to_owned(),
            0 | 1 => format!("PRAGMA synchronous={}", number % 4),
            2 => format!("PRAGMA mmap_size={}", number % 3 * 200_000),
            3 => format!("PRAGMA journal_size_limit={}", [-1, 0, 5000][number as usize % 3]),
            4 => format!("PRAGMA wal_autocheckpoint={number}"),
            _ => format!("PRAGMA secure_delete={}", number % 2),
        }));
    }

    /// VACUUM with or without another shape of the file. `page_size` and
    /// `auto_vacuum` wait in the connection for the next VACUUM, so both are always
    /// given with it.
    fn reshape(&mut self, script: &mut Vec<Group>) {
        match self.random.below(4) {
            0 => {
                script.push(Group::content(vec![format!("PRAGMA user_version={}", self.random.below(1000))]))
            }
            1 => script
                .push(Group::content(vec![format!("PRAGMA incremental_vacuum({})", self.random.below(20))])),
            _ => {
                let auto = self.random.below(3);
                script.push(Group::content(vec![format!("PRAGMA auto_vacuum={auto}")]));
                let size = self.random.pick(&PAGE_SIZES);
                let sql = vec![format!("PRAGMA page_size={size}"), "VACUUM".to_owned()];
                script.push(Group::content(sql));
            }
        }
    }

    fn statements(&mut self, schema: &str, sql: &mut Vec<String>) {
        for _ in 0..=self.random.below(4) {
            let statement = self.statement(schema);
            sql.push(statement);
        }
    }

    fn statement(&mut self, schema: &str) -> String {
        let plain = format!("w{}_{}", self.who, self.random.below(3));
        let table = format!("{schema}{plain}");
        let (a, b) = (self.random.below(1000), self.random.below(300) + 1);
        match self.random.below(20) {
            0..=2 => {
                format!("CREATE TABLE IF NOT EXISTS {table}(id INTEGER PRIMARY KEY, a INT, b TEXT, c BLOB)")
            }
            3 => format!("CREATE INDEX IF NOT EXISTS {table}_i ON {plain}(a, b)"),
            4..=9 => format!(
                "INSERT OR REPLACE INTO {table}(id, a, b) \
                 WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {b}) \
                 SELECT {a} + i, i * {b} % 97, substr(hex(i * 7919 + {a}) || 'abcdefghijklmnopqrstuvwxyz', 1, 1 + i % 30) FROM n"
            ),
            10..=12 => {
                format!("UPDATE {table} SET a = a + {b}, b = b || 'x' WHERE id % {} = {}", b % 13 + 2, a % 3)
            }
            13 | 14 => format!("DELETE FROM {table} WHERE id BETWEEN {a} AND {}", a + b),
            15 | 16 => {
                let size = if self.random.one_in(12) { 400_000 } else { self.random.below(12_000) };
                format!(
                    "INSERT OR REPLACE INTO {table}(id, a, c) VALUES({a}, {b}, \
                     CAST(replace(hex(zeroblob({size})), '00', '{:02x}') AS BLOB))",
                    b % 256
                )
            }
            17 => format!("DELETE FROM {table}"),
            18 if self.random.one_in(3) => format!("DROP TABLE IF EXISTS {table}"),
            _ => format!(
                "UPDATE {table} SET c = zeroblob({}) WHERE id = (SELECT min(id) FROM {table})",
                a * 10
            ),
        }
    }
}

fn create_table(table: &str) -> String {
    format!("CREATE TABLE IF NOT EXISTS {table}(id INTEGER PRIMARY KEY, a INT, b TEXT, c BLOB)")
}
