//! What users and disks do wrong: each time a clear error that says what to do, the
//! right exit code, nothing lost, and no application that hangs.

mod support;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use support::drivers::{self, Driver};
use support::process::{self, Output};
use support::worker::{Sqlite, Worker};
use support::{Node, PATIENCE, Scratch, Settings, can_mount, is_root, wait_for};

/// Runs `litefs mount` to its end; it must fail with `code` and say each of `says`.
fn refused(node: &Node, code: i32, says: &[&str]) -> String {
    node.write_config();
    let mut command = process::litefs();
    command.args(["mount", "--config"]).arg(node.config());
    expect_failure(process::run(&mut command), code, says)
}

fn expect_failure(output: Output, code: i32, says: &[&str]) -> String {
    let said = format!("{}{}", output.stdout, output.stderr);
    assert_eq!(output.code(), Some(code), "{said}");
    for word in says {
        assert!(said.contains(word), "{word:?} is not in: {said}");
    }
    assert!(!said.contains("panicked"), "{said}");
    said
}

fn node(scratch: &Scratch) -> Node {
    Node::new(scratch.path(), Settings::default())
}

/// A node that has run: database a.db with rows 1 to 3 in each of two modes.
fn used(scratch: &Scratch) -> Node {
    let mut node = node(scratch);
    node.start();
    for (db, mode) in [("a.db", "delete"), ("w.db", "wal")] {
        let sql = format!("PRAGMA journal_mode={mode}; CREATE TABLE t(x); INSERT INTO t VALUES(1),(2),(3);");
        Driver::Program.exec(&node.file(db), &sql);
    }
    node.stop();
    node
}

fn rows(node: &Node, db: &str) -> String {
    Driver::Program.query(&node.file(db), "SELECT group_concat(x, ' ') FROM t").trim().to_owned()
}

#[test]
fn an_unknown_key_is_named_with_its_line() {
    let scratch = Scratch::new("unknown-key");
    let mut node = node(&scratch);
    node.settings.more = "\n[storrage]\nurl = \"file:///x\"\n".to_owned();
    refused(&node, 2, &["litefs.toml", "storrage", "storage"]);
}

#[test]
fn a_broken_value_is_named_with_its_line() {
    let scratch = Scratch::new("broken-value");
    let mut node = node(&scratch);
    node.settings.sync_interval = "soon";
    refused(&node, 2, &["litefs.toml", "sync-interval", "soon"]);
}

#[test]
fn a_missing_configuration_file_is_named() {
    let scratch = Scratch::new("no-config");
    let mut command = process::litefs();
    command.args(["mount", "--config"]).arg(scratch.join("none.toml"));
    expect_failure(process::run(&mut command), 2, &["none.toml"]);
}

#[test]
fn a_mount_point_with_files_in_it_is_refused() {
    if !can_mount() {
        return;
    }
    let scratch = Scratch::new("not-empty");
    let node = node(&scratch);
    std::fs::write(node.file("mine"), "precious").expect("write a file");
    refused(&node, 1, &["not empty", "mnt"]);
    assert_eq!(std::fs::read(node.file("mine")).expect("read it back"), b"precious");
}

#[test]
fn a_mount_point_that_is_a_file_is_refused() {
    if !can_mount() {
        return;
    }
    let scratch = Scratch::new("file-mount");
    let node = node(&scratch);
    std::fs::remove_dir(node.mount()).expect("remove the mount point");
    std::fs::write(node.mount(), "").expect("write a file");
    refused(&node, 1, &["not a directory", "fuse.dir"]);
}

#[test]
fn a_mount_point_in_use_is_refused_and_its_user_goes_on() {
    if !can_mount() {
        return;
    }
    let scratch = Scratch::new("busy-mount");
    let mut first = node(&scratch);
    first.start();
    Driver::Program.exec(&first.file("a.db"), "CREATE TABLE t(x); INSERT INTO t VALUES(1);");
    let other = Scratch::new("busy-mount-other");
    let second = node(&other);
    second.write_config();
    let config = std::fs::read_to_string(second.config()).expect("read the configuration");
    let stolen = config.replace(&*second.mount().to_string_lossy(), &first.mount().to_string_lossy());
    std::fs::write(second.config(), stolen).expect("write the configuration");
    let mut command = process::litefs();
    command.args(["mount", "--config"]).arg(second.config());
    expect_failure(process::run(&mut command), 1, &["mounted", "stop it first"]);
    assert_eq!(rows(&first, "a.db"), "1");
    first.stop();
}

#[test]
fn a_data_directory_in_use_is_refused_and_its_user_goes_on() {
    if !can_mount() {
        return;
    }
    let scratch = Scratch::new("busy-data");
    let mut first = node(&scratch);
    first.start();
    Driver::Program.exec(&first.file("a.db"), "CREATE TABLE t(x); INSERT INTO t VALUES(1);");
    let other = Scratch::new("busy-data-other");
    let second = node(&other).with_data(first.data()).with_archive(first.archive());
    refused(&second, 1, &["data", "another"]);
    Driver::Program.exec(&first.file("a.db"), "INSERT INTO t VALUES(2);");
    assert_eq!(rows(&first, "a.db"), "1 2");
    first.stop();
    first.wipe_data();
    first.start();
    assert_eq!(rows(&first, "a.db"), "1 2", "the second node has not touched the archive");
    first.stop();
}

#[test]
fn without_a_fuse_device_the_error_says_how_to_get_one() {
    if !can_mount() || !is_root() {
        return;
    }
    let scratch = Scratch::new("no-device");
    let node = node(&scratch);
    node.write_config();
    // A device directory without fuse, in a mount namespace of its own.
    let script = "mount -t tmpfs none /dev && exec \"$0\" mount --config \"$1\"";
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-c", script, env!("CARGO_BIN_EXE_litefs")]).arg(node.config());
    expect_failure(process::run(&mut command), 1, &["/dev/fuse", "--device"]);
}

#[test]
fn without_rights_the_error_says_which() {
    if !can_mount() || !is_root() {
        return;
    }
    let scratch = Scratch::new("no-rights");
    let node = node(&scratch);
    node.write_config();
    // The tests' directory may lie where nobody may go: the program gets a place of its own.
    let place = tempfile::Builder::new().prefix("litefs-rights-").tempdir_in("/tmp").expect("a directory");
    let open = std::fs::Permissions::from_mode(0o777);
    std::fs::set_permissions(place.path(), open.clone()).expect("open it to all");
    let program = place.path().join("litefs");
    std::fs::copy(env!("CARGO_BIN_EXE_litefs"), &program).expect("copy the program");
    let config = std::fs::read_to_string(node.config()).expect("read the configuration");
    let config = config.replace(&*scratch.path().to_string_lossy(), &place.path().to_string_lossy());
    std::fs::write(place.path().join("litefs.toml"), config).expect("write the configuration");
    std::fs::create_dir(place.path().join("mnt")).expect("create the mount point");
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--no-new-privs"]);
    command.arg(&program).args(["mount", "--config"]).arg(place.path().join("litefs.toml"));
    expect_failure(process::run(&mut command), 1, &["cannot mount", "root"]);
}

#[test]
fn a_data_directory_that_cannot_be_written_is_named() {
    if !can_mount() || !is_root() {
        return;
    }
    let scratch = Scratch::new("read-only-data");
    let node = node(&scratch).with_data(Path::new("/proc/litefs"));
    refused(&node, 1, &["/proc/litefs"]);
}

/// Flips one byte in the middle of each file below `dir`; how many.
fn damage(dir: &Path) -> usize {
    let mut count = 0;
    for entry in std::fs::read_dir(dir).expect("list").map(|entry| entry.expect("an entry")) {
        let path = entry.path();
        if path.is_dir() {
            count += damage(&path);
            continue;
        }
        let mut bytes = std::fs::read(&path).expect("read");
        let middle = bytes.len() / 2;
        if let Some(byte) = bytes.get_mut(middle) {
            *byte ^= 0x5a;
            std::fs::write(&path, bytes).expect("write");
            count += 1;
        }
    }
    count
}

#[test]
fn a_damaged_change_set_is_refused_by_every_reader_and_never_served() {
    if !can_mount() {
        return;
    }
    let scratch = Scratch::new("corrupt-archive");
    let node = used(&scratch);
    let mut damaged = 0;
    for part in ["log", "db"] {
        let dir = node.archive().join(part);
        if dir.exists() {
            damaged += damage(&dir);
        }
    }
    assert!(damaged > 0, "the archive has objects below log/ or db/");
    let verify = |deep: bool| {
        let mut command = process::litefs();
        command.args(["verify", "--storage", &node.archive_url()]);
        if deep {
            command.arg("--deep");
        }
        process::run(&mut command)
    };
    expect_failure(verify(true), 1, &[]);
    let mut command = process::litefs();
    command.args(["restore", "--storage", &node.archive_url(), "--name", "a.db", "-o"]);
    command.arg(scratch.join("restored.db"));
    let output = process::run(&mut command);
    assert!(!output.status.success(), "a damaged archive was restored: {}{}", output.stdout, output.stderr);
    assert!(!scratch.join("restored.db").exists(), "a half-restored file was left under the final name");

    node.wipe_data();
    let said = {
        let mut command = process::litefs();
        node.write_config();
        command.args(["mount", "--config"]).arg(node.config());
        let output = process::run(&mut command);
        assert_eq!(output.code(), Some(99), "{}{}", output.stdout, output.stderr);
        output.stderr
    };
    assert!(said.contains("verify") || said.contains("restore") || said.contains("damaged"), "{said}");
}

#[test]
fn a_damaged_manifest_stops_the_node_and_nothing_is_overwritten() {
    if !can_mount() {
        return;
    }
    let scratch = Scratch::new("corrupt-manifest");
    let node = used(&scratch);
    let manifest = node.archive().join("manifest.json");
    let good = std::fs::read(&manifest).expect("read the manifest");
    for bad in [&good[..good.len() / 2], b"{}".as_slice(), b"".as_slice(), b"\x00\xff garbage".as_slice()] {
        std::fs::write(&manifest, bad).expect("write the manifest");
        refused(&node, 99, &["manifest"]);
        assert_eq!(std::fs::read(&manifest).expect("read the manifest"), bad, "it was overwritten");
    }
    std::fs::write(&manifest, &good).expect("write the manifest");
    let mut node = node;
    node.start();
    assert_eq!(rows(&node, "a.db"), "1 2 3");
    assert_eq!(rows(&node, "w.db"), "1 2 3");
    node.stop();
}

#[test]
fn an_archive_that_is_gone_is_waited_for_and_not_founded_anew() {
    if !can_mount() {
        return;
    }
    let scratch = Scratch::new("archive-gone");
    let mut node = used(&scratch);
    let away = scratch.join("archive-elsewhere");
    for (lease, empty) in [("static", false), ("static", true), ("storage", false), ("storage", true)] {
        node.settings.lease = if lease == "static" { "type = \"static\"" } else { "type = \"storage\"" };
        std::fs::rename(node.archive(), &away).expect("take the archive away");
        if empty {
            std::fs::create_dir(node.archive()).expect("a mount point without its disk");
        }
        let before = node.log().len();
        node.spawn();
        wait_for("the node says that the archive is out of reach", || {
            node.log()[before..].contains("the archive cannot be used: waiting for it").then_some(())
        });
        assert!(!node.is_mounted(), "the node serves without its archive");
        if empty {
            // This fails where something is in it.
            std::fs::remove_dir(node.archive()).expect("take the mount point away");
        }
        std::fs::rename(&away, node.archive()).expect("bring the archive back");
        node.wait_primary().expect("it starts once the archive is back");
        assert_eq!(rows(&node, "a.db"), "1 2 3");
        node.stop();
    }
}

#[test]
fn an_archive_that_vanishes_at_run_time_loses_nothing() {
    if !can_mount() {
        return;
    }
    let scratch = Scratch::new("archive-vanishes");
    let mut node = used(&scratch);
    node.start();
    let away = scratch.join("archive-elsewhere");
    std::fs::rename(node.archive(), &away).expect("take the archive away");
    for (db, value) in [("a.db", 4), ("w.db", 4), ("a.db", 5), ("w.db", 5)] {
        Driver::Program.exec(&node.file(db), &format!("INSERT INTO t VALUES({value})"));
    }
    wait_for("status says that the archive is out of reach", || {
        let status = node.status();
        (status["archive"]["state"] != "synced" && status["archive"]["error"].is_string()).then_some(())
    });
    assert_eq!(rows(&node, "a.db"), "1 2 3 4 5");
    let before = [node.pos("a.db"), node.pos("w.db")];
    let _ = std::fs::remove_dir_all(node.archive());
    std::fs::rename(&away, node.archive()).expect("bring the archive back");
    node.wait_archived(&["a.db", "w.db"]);
    node.kill();
    node.wipe_data();
    node.start();
    assert_eq!([node.pos("a.db"), node.pos("w.db")], before);
    assert_eq!(rows(&node, "w.db"), "1 2 3 4 5");
    node.stop();
}

#[test]
fn a_stop_without_the_archive_says_what_is_missing_and_keeps_it() {
    if !can_mount() {
        return;
    }
    let scratch = Scratch::new("stop-without");
    let mut node = used(&scratch);
    node.settings.more = "\n".to_owned();
    node.start();
    let away = scratch.join("archive-elsewhere");
    std::fs::rename(node.archive(), &away).expect("take the archive away");
    Driver::Program.exec(&node.file("a.db"), "INSERT INTO t VALUES(4)");
    let before = node.pos("a.db");
    node.signal(rustix::process::Signal::TERM);
    let status = node.wait_end();
    assert_eq!(status.code(), Some(1), "a stop that could not drain says so");
    assert!(node.log().contains("does not have"), "the log says what is missing");
    let _ = std::fs::remove_dir_all(node.archive());
    std::fs::rename(&away, node.archive()).expect("bring the archive back");
    node.start();
    assert_eq!(node.pos("a.db"), before);
    node.stop();
    node.wipe_data();
    node.start();
    assert_eq!(rows(&node, "a.db"), "1 2 3 4");
    node.stop();
}

/// A small file system of its own to fill, where root may make one.
struct SmallDisk<'a>(&'a Scratch);

/// What a small disk is: ext4 finds out that it is full only some time after a write.
const DISKS: [&str; 2] = ["tmpfs", "ext4"];

impl<'a> SmallDisk<'a> {
    fn new(scratch: &'a Scratch, kind: &str, bytes: u64) -> SmallDisk<'a> {
        std::fs::create_dir_all(scratch.join("small")).expect("create a mount point");
        let run = |command: &mut Command| {
            let output = process::run(command);
            assert!(output.status.success(), "make a small {kind}: {}", output.stderr);
        };
        let mut mount = Command::new("mount");
        match kind {
            "tmpfs" => mount.args(["-t", "tmpfs", "-o", &format!("size={bytes}"), "small"]),
            _ => {
                let image = scratch.join("small.img");
                let file = std::fs::File::create(&image).expect("create an image");
                file.set_len(bytes).expect("size the image");
                run(Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0"]).arg(&image));
                mount.args(["-o", "loop"]).arg(&image)
            }
        };
        run(mount.arg(scratch.join("small")));
        SmallDisk(scratch)
    }

    fn fill(&self) {
        let mut file = std::fs::File::create(self.0.join("small/ballast")).expect("create ballast");
        let block = [1u8; 4096];
        while std::io::Write::write_all(&mut file, &block).is_ok() {}
    }

    fn remount(&self, how: &str) {
        let mut command = Command::new("mount");
        command.args(["-o", &format!("remount,{how}")]).arg(self.0.join("small"));
        let output = process::run(&mut command);
        assert!(output.status.success(), "remount {how}: {}", output.stderr);
    }

    fn free(&self) {
        std::fs::remove_file(self.0.join("small/ballast")).expect("throw the ballast out");
    }
}

impl Drop for SmallDisk<'_> {
    fn drop(&mut self) {
        support::node::unmount(&self.0.join("small"));
    }
}

#[test]
fn a_full_disk_is_an_error_to_the_application_and_loses_nothing() {
    if !can_mount() || !is_root() {
        return;
    }
    let modes = [(true, "delete"), (true, "wal"), (false, "truncate"), (false, "wal")];
    for (kind, (passthrough, mode)) in DISKS.iter().flat_map(|kind| modes.map(|mode| (kind, mode))) {
        let scratch = Scratch::new("full-disk");
        let disk = SmallDisk::new(&scratch, kind, 32 << 20);
        let settings = Settings { passthrough, ..Settings::default() };
        let mut node = Node::new(scratch.path(), settings).with_data(&scratch.join("small/data"));
        node.start();
        let file = node.file("a.db");
        let create = format!("PRAGMA journal_mode={mode}; CREATE TABLE t(x, y);");
        Driver::Program.exec(&file, &create);
        let mut worker = Worker::start(Sqlite::System);
        worker.open(&file, PATIENCE).expect("alive").expect("open");
        disk.fill();
        let mut committed = 0;
        // A group may fail, and then says so; it may not hang.
        let groups: Vec<_> =
            (1..=40).map(|x| vec![format!("INSERT INTO t VALUES({x}, zeroblob(20000))")]).collect();
        let outcomes = worker.groups(&groups).expect("alive");
        let mut expected = Vec::new();
        for (x, outcome) in (1..).zip(&outcomes) {
            match outcome {
                Ok(()) => {
                    committed += 1;
                    expected.push(x);
                }
                Err(failure) => assert!(
                    // FULL, IOERR, or a lock that the failed one still has.
                    matches!(failure.code, 13 | 10 | 5),
                    "{mode}: a full disk gave {failure:?}"
                ),
            }
        }
        assert!(committed < 40, "{mode}: the disk was not full");
        disk.free();
        let insert = vec![vec!["INSERT INTO t VALUES(1000, 'after')".to_owned()]];
        wait_for("writing works again", || {
            worker.groups(&insert).expect("alive").first().and_then(|outcome| outcome.clone().ok())
        });
        expected.push(1000);
        let listed = "SELECT x FROM t ORDER BY x";
        let there = Driver::Program.query(&file, listed);
        let wanted: String = expected.iter().map(|x| format!("{x}\n")).collect();
        assert_eq!(there, wanted, "{mode}: what was acknowledged is there, and nothing else");
        assert_eq!(drivers::integrity(&file), "ok", "{mode}");
        drop(worker);
        let pos = node.pos("a.db");
        node.stop();
        node.wipe_data();
        node.start();
        assert_eq!(node.pos("a.db"), pos, "{mode}");
        assert_eq!(Driver::Program.query(&file, listed), wanted, "{mode}: and in the archive");
        node.stop();
        drop(node);
        drop(disk);
    }
}

#[test]
fn a_disk_that_fills_up_before_a_checkpoint_is_an_error_and_loses_nothing() {
    if !can_mount() || !is_root() {
        return;
    }
    for (kind, passthrough) in DISKS.iter().flat_map(|kind| [true, false].map(|on| (kind, on))) {
        let scratch = Scratch::new("full-checkpoint");
        let disk = SmallDisk::new(&scratch, kind, 32 << 20);
        let settings = Settings { passthrough, ..Settings::default() };
        let mut node = Node::new(scratch.path(), settings).with_data(&scratch.join("small/data"));
        node.start();
        let file = node.file("a.db");
        Driver::Program.exec(&file, "PRAGMA journal_mode=wal; CREATE TABLE t(x, y);");
        let mut worker = Worker::start(Sqlite::System);
        worker.open(&file, PATIENCE).expect("alive").expect("open");
        let mut run = |sql: &str| worker.query(sql).expect("it does not hang");
        run("PRAGMA wal_autocheckpoint=0").expect("a setting");
        for x in 1..=100 {
            run(&format!("INSERT INTO t VALUES({x}, zeroblob(20000))")).expect("there is room");
        }
        node.wait_archived(&["a.db"]);
        let pos = node.pos("a.db");
        disk.fill();
        for kind in ["PASSIVE", "FULL", "TRUNCATE"] {
            let failure = run(&format!("PRAGMA wal_checkpoint({kind})")).expect_err("the disk is full");
            assert!(matches!(failure.code, 13 | 10), "{kind}: {failure:?}");
            assert_eq!(run("SELECT count(*) FROM t").expect("reads go on"), [["100"]], "{kind}");
        }
        assert_eq!(node.pos("a.db"), pos, "a checkpoint is no transaction");
        disk.free();
        assert_eq!(run("PRAGMA wal_checkpoint(TRUNCATE)").expect("there is room again")[0][0], "0");
        run("INSERT INTO t VALUES(101, 'after')").expect("and for more");
        drop(worker);
        let (pos, integrity) = (node.pos("a.db"), drivers::integrity(&file));
        assert_eq!(integrity, "ok");
        node.kill();
        node.start();
        assert_eq!(node.pos("a.db"), pos, "after a kill");
        node.stop();
        node.wipe_data();
        node.start();
        assert_eq!(node.pos("a.db"), pos, "from the archive");
        assert_eq!(Driver::Program.query(&file, "SELECT count(*), max(x) FROM t").trim(), "101|101");
        node.stop();
        drop(node);
        drop(disk);
    }
}

#[test]
fn a_read_only_archive_is_waited_for_and_nothing_is_lost() {
    if !can_mount() || !is_root() {
        return;
    }
    let scratch = Scratch::new("read-only-archive");
    let disk = SmallDisk::new(&scratch, "tmpfs", 64 << 20);
    let mut node =
        Node::new(scratch.path(), Settings::default()).with_archive(&scratch.join("small/archive"));
    node.start();
    let file = node.file("a.db");
    Driver::Program.exec(&file, "CREATE TABLE t(x); INSERT INTO t VALUES(1);");
    node.wait_archived(&["a.db"]);
    disk.remount("ro");
    Driver::Program.exec(&file, "INSERT INTO t VALUES(2)");
    wait_for("status says what is wrong and what to do", || {
        let error = node.status()["archive"]["error"].as_str()?.to_owned();
        (error.contains("Read-only") && error.contains("remount")).then_some(())
    });
    let pos = node.pos("a.db");
    node.kill();
    node.spawn();
    wait_for("the node says that it waits", || node.log().contains("waiting for it").then_some(()));
    assert!(!node.is_mounted() || rows_of_dead(&file), "the node serves though it cannot hold its place");
    disk.remount("rw");
    node.wait_ready().expect("it goes on once the archive can be written");
    assert_eq!(node.pos("a.db"), pos);
    node.stop();
    node.wipe_data();
    node.start();
    assert_eq!(node.pos("a.db"), pos);
    assert_eq!(rows(&node, "a.db"), "1 2");
    node.stop();
    drop(node);
    drop(disk);
}

/// Whether what is mounted is but what a killed daemon left.
fn rows_of_dead(file: &Path) -> bool {
    std::fs::File::open(file).is_err()
}

/// A fault of the disk at a named step: the statement fails or succeeds, the next
/// ones too; after a restart without the fault everything acknowledged is there.
fn faulty_step(fault: &str, mode: &str) {
    let scratch = Scratch::new("faulty-step");
    let mut node = node(&scratch);
    node.start();
    let file = node.file("a.db");
    Driver::Program.exec(
        &file,
        &format!(
            "PRAGMA journal_mode={mode}; CREATE TABLE t(x INTEGER PRIMARY KEY); INSERT INTO t VALUES(0);"
        ),
    );
    node.stop();
    node.settings.env = vec![("LITEFS_FAULTS".to_owned(), fault.to_owned())];
    node.start();
    let mut worker = Worker::start(Sqlite::System);
    let mut acknowledged = vec![0];
    let mut uncertain = Vec::new();
    if let Ok(Ok(())) = worker.open(&file, PATIENCE) {
        let first = vec![vec!["PRAGMA synchronous=FULL".to_owned()]];
        let _ = worker.groups(&first);
        let groups: Vec<_> = (1..=12)
            .map(|x| vec![format!("INSERT INTO t VALUES({x})")])
            .chain([vec!["PRAGMA wal_checkpoint(TRUNCATE)".to_owned()]])
            .chain((13..=16).map(|x| vec![format!("INSERT INTO t VALUES({x})")]))
            .collect();
        let outcomes = worker.groups(&groups).expect("alive");
        let numbers: Vec<_> = (1..=12).chain([-1]).chain(13..=16).collect();
        for (x, outcome) in numbers.into_iter().zip(outcomes) {
            match outcome {
                Ok(()) if x > 0 => acknowledged.push(x),
                Err(_) if x > 0 => uncertain.push(x),
                _ => {}
            }
        }
    }
    drop(worker);
    node.settings.env.clear();
    if node.has_ended() {
        node.wait_end();
    } else {
        node.kill();
    }
    node.start();
    let there = Driver::Program.query(&file, "SELECT x FROM t ORDER BY x");
    let there: Vec<i32> = there.lines().map(|line| line.parse().expect("a number")).collect();
    for x in &acknowledged {
        assert!(there.contains(x), "{fault}, {mode}: {x} was acknowledged and is lost; there: {there:?}");
    }
    for x in &there {
        assert!(
            acknowledged.contains(x) || uncertain.contains(x),
            "{fault}, {mode}: {x} was never written; there: {there:?}"
        );
    }
    assert_eq!(drivers::integrity(&file), "ok", "{fault}, {mode}");
    let pos = node.pos("a.db");
    node.stop();
    node.wipe_data();
    node.start();
    assert_eq!(node.pos("a.db"), pos, "{fault}, {mode}");
    let again = Driver::Program.query(&file, "SELECT x FROM t ORDER BY x");
    assert_eq!(again.lines().count(), there.len(), "{fault}, {mode}: from the archive");
    node.stop();
}

#[test]
fn a_failing_disk_at_any_step_loses_nothing_that_was_acknowledged() {
    if !can_mount() {
        return;
    }
    let points = ["log.append", "log.sync", "capture.wal", "capture.commit", "capture.committed", "db.sync"];
    for point in points {
        for (action, mode) in
            [("enospc@3", "delete"), ("eio@2", "wal"), ("kill@4", "persist"), ("kill@3", "wal")]
        {
            faulty_step(&format!("{point}={action}"), mode);
        }
    }
}

#[test]
fn a_truncated_journal_on_start_is_recovered_from() {
    if !can_mount() {
        return;
    }
    let scratch = Scratch::new("truncated-journal");
    let lengths = [0u64, 7, 28, 300, 512, 600];
    for (passthrough, keep) in [true, false].into_iter().flat_map(|on| lengths.map(|keep| (on, keep))) {
        let mut node = used(&scratch);
        node.settings.passthrough = passthrough;
        node.start();
        let pos = node.pos("a.db");
        // A transaction under way, its journal on disk and pages spilled to the file.
        let mut worker = Worker::start(Sqlite::System);
        worker.open(&node.file("a.db"), PATIENCE).expect("alive").expect("open");
        let open: Vec<_> = ["PRAGMA cache_size=2", "BEGIN IMMEDIATE", "UPDATE t SET x = x + 100"]
            .iter()
            .map(|sql| vec![(*sql).to_owned()])
            .collect();
        for outcome in worker.groups(&open).expect("alive") {
            outcome.expect("begin a transaction");
        }
        node.kill();
        drop(worker);
        // As after a power failure: the journal's tail never reached the disk.
        let journal = node.data().join("dbs/f.a.db/journal");
        let file = std::fs::OpenOptions::new().write(true).open(&journal).expect("open the journal");
        file.set_len(keep).expect("truncate the journal");
        node.start();
        assert_eq!(rows(&node, "a.db"), "1 2 3", "{keep} bytes left");
        assert_eq!(drivers::integrity(&node.file("a.db")), "ok", "{keep} bytes left");
        assert_eq!(node.pos("a.db"), pos, "{keep} bytes left");
        node.stop();
        drop(node);
        for part in ["data", "archive"] {
            std::fs::remove_dir_all(scratch.join(part)).expect("begin anew");
        }
    }
}
