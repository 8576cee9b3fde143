//! The real program, without a mount: usage, exit codes, configuration, files.

use std::path::Path;
use std::process::{Command, Output, Stdio};

fn litefs(dir: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_litefs"))
        .args(args)
        .current_dir(dir)
        .env_remove("LITEFS_TOKEN")
        .env("HOME", dir)
        .stdin(Stdio::null())
        .output()
        .expect("run litefs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs it, checks the exit code, returns standard output and standard error.
fn run(dir: &Path, args: &[&str], code: i32) -> (String, String) {
    let output = litefs(dir, args);
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "litefs {args:?}\n{out}\n{err}");
    (out, err)
}

fn scratch() -> tempfile::TempDir {
    tempfile::tempdir().expect("a directory")
}

#[test]
fn version_help_and_completions_need_nothing() {
    let dir = scratch();
    assert_eq!(run(dir.path(), &["version"], 0).0, format!("litefs {}\n", env!("CARGO_PKG_VERSION")));
    assert!(run(dir.path(), &["--help"], 0).0.contains("restore"));
    for shell in ["bash", "zsh", "fish"] {
        assert!(run(dir.path(), &["completions", shell], 0).0.contains("litefs"), "{shell}");
    }
}

#[test]
fn wrong_usage_exits_with_2() {
    let dir = scratch();
    for args in [
        &["no-such-command"][..],
        &["status", "--no-such-flag"],
        &["restore", "--storage", "file:///x"],
        &["restore", "--name", "a.db", "--all", "-o", "x"],
        &["restore", "--name", "../a", "-o", "x", "--storage", "file:///x"],
        &["restore", "--name", "a", "-o", "x", "--timestamp", "soon", "--storage", "file:///x"],
        &["restore", "--name", "a", "-o", "x", "--storage", "ftp://x"],
        &["restore", "--name", "a", "-o", "x"],
        &["status", "--url", "localhost:20202"],
        &["export", "--name", "a-wal", "x"],
        &["run"],
        &["config", "check"],
    ] {
        let (_, err) = run(dir.path(), args, 2);
        assert!(!err.is_empty(), "{args:?}");
    }
}

#[test]
fn config_check_names_file_line_and_remedy() {
    let dir = scratch();
    let file = dir.path().join("litefs.toml");
    std::fs::write(&file, "[storage]\nurl = \"file://./archive\"\nsync_interval = \"1s\"\n").expect("write");
    let (_, err) = run(dir.path(), &["config", "check"], 2);
    assert_eq!(
        err,
        "litefs: ./litefs.toml:3: unknown key storage.sync_interval; did you mean storage.sync-interval?\n"
    );
    std::fs::write(&file, "[storage]\nurl = \"file://./archive\"\n").expect("write");
    let (out, _) = run(dir.path(), &["config", "check", "litefs.toml"], 0);
    let real = dir.path().canonicalize().expect("a path");
    assert!(out.contains(&format!("file://{}/archive", real.display())), "{out}");
    let (_, err) = run(dir.path(), &["config", "check", "none.toml"], 2);
    assert!(err.contains("none.toml") && err.matches("No such file").count() == 1, "{err}");
}

#[test]
fn the_repositorys_configuration_is_good() {
    run(Path::new(env!("CARGO_MANIFEST_DIR")), &["config", "check"], 0);
}

#[test]
fn without_a_node_the_error_says_where_it_was_looked_for() {
    let dir = scratch();
    // A port that nothing listens on: bound, and closed again.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    drop(listener);
    for args in [
        &["status", "--url", &url][..],
        &["promote", "--url", &url],
        &["handoff", "other", "--url", &url],
        &["export", "--name", "a.db", "--url", &url, "out.db"],
        &["run", "--if-primary", "--url", &url, "--", "true"],
    ] {
        let (_, err) = run(dir.path(), args, 1);
        assert!(err.contains(&url) && err.contains("no litefs node"), "{err}");
    }
    assert_eq!(std::fs::read_dir(dir.path()).expect("list").count(), 0);
}

#[test]
fn run_passes_the_commands_exit_code_on() {
    let dir = scratch();
    run(dir.path(), &["run", "--", "sh", "-c", "exit 7"], 7);
    assert_eq!(run(dir.path(), &["run", "--", "echo", "a b"], 0).0, "a b\n");
    let (_, err) = run(dir.path(), &["run", "--", "/no/such/program"], 1);
    assert!(err.contains("/no/such/program"), "{err}");
}

#[test]
fn an_import_of_what_cannot_be_read_says_so() {
    let dir = scratch();
    let (_, err) = run(dir.path(), &["import", "--name", "a.db", "none.db"], 1);
    assert!(err.contains("none.db"), "{err}");
    std::fs::write(dir.path().join("a.db"), "SQLite").expect("write");
    std::fs::write(dir.path().join("a.db-wal"), "frames").expect("write");
    let (_, err) = run(dir.path(), &["import", "--name", "a.db", "a.db"], 1);
    assert!(err.contains("a.db-wal") && err.contains("wal_checkpoint"), "{err}");
}

#[test]
fn a_missing_archive_is_an_error_that_names_it() {
    let dir = scratch();
    let url = format!("file://{}/archive", dir.path().display());
    let (_, err) = run(dir.path(), &["restore", "--name", "a.db", "-o", "a.db", "--storage", &url], 1);
    assert!(err.contains("archive"), "{err}");
    assert_eq!(std::fs::read_dir(dir.path()).expect("list").count(), 0, "nothing was made");
}

#[test]
fn ltx_commands_look_into_files_and_apply_them() {
    let dir = scratch();
    let (one, two) = change_sets();
    std::fs::write(dir.path().join("1.ltx"), &one).expect("write");
    std::fs::write(dir.path().join("2.ltx"), &two).expect("write");
    let both = ["1.ltx", "2.ltx"];

    let (out, _) = run(dir.path(), &[&["ltx", "list"], &both[..]].concat(), 0);
    assert_eq!(out.lines().count(), 3, "{out}");
    let (out, _) = run(dir.path(), &["ltx", "dump", "1.ltx"], 0);
    assert!(out.contains("transactions 0000000000000001-0000000000000001"), "{out}");
    run(dir.path(), &[&["ltx", "verify"], &both[..]].concat(), 0);

    run(dir.path(), &[&["ltx", "apply", "--db", "a.db"], &both[..]].concat(), 0);
    let applied = std::fs::read(dir.path().join("a.db")).expect("read");
    assert_eq!((applied.len(), applied[600]), (1024, 3));
    // Once more does not fit: the database stands after it already.
    let (_, err) = run(dir.path(), &["ltx", "apply", "--db", "a.db", "2.ltx"], 1);
    assert!(err.contains("2.ltx"), "{err}");
    assert_eq!(std::fs::read(dir.path().join("a.db")).expect("read"), applied);

    run(dir.path(), &["ltx", "convert", "1.ltx", "--encoding", "zstd", "--tracked", "-o", "1z.ltx"], 0);
    let (out, _) = run(dir.path(), &["ltx", "list", "1z.ltx"], 0);
    assert!(out.contains("zstd"), "{out}");
    run(dir.path(), &["ltx", "convert", "1z.ltx", "-o", "1l.ltx"], 0);
    run(dir.path(), &["ltx", "apply", "--db", "b.db", "1l.ltx", "2.ltx"], 0);
    assert_eq!(std::fs::read(dir.path().join("b.db")).expect("read"), applied);
    run(dir.path(), &["ltx", "convert", "1.ltx", "2.ltx", "-o", "x.ltx"], 2);

    let mut damaged = two.clone();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    std::fs::write(dir.path().join("2.ltx"), &damaged).expect("write");
    let (out, _) = run(dir.path(), &[&["ltx", "verify"], &both[..]].concat(), 1);
    assert!(out.starts_with("1.ltx: ok") && out.contains("\n2.ltx: "), "{out}");
    let (_, err) = run(dir.path(), &["ltx", "list", "none.ltx"], 1);
    assert!(err.contains("none.ltx"), "{err}");
}

#[test]
fn parked_branches_are_listed_and_taken_out() {
    let dir = scratch();
    std::fs::write(
        dir.path().join("litefs.toml"),
        "[data]\ndir = \"data\"\n[storage]\nurl = \"file:///x\"\n",
    )
    .expect("write");
    assert!(run(dir.path(), &["parked", "list"], 0).0.contains("no branch"));
    let branch = dir.path().join("data/parked/a.db-1");
    std::fs::create_dir_all(&branch).expect("create");
    let what = r#"{"db": "a.db", "pos": "0000000000000002/8000000000000001", "at": 1700000000000}"#;
    std::fs::write(branch.join("parked.json"), what).expect("write");
    std::fs::write(branch.join("database"), "content").expect("write");
    let (out, _) = run(dir.path(), &["parked", "list"], 0);
    assert!(out.contains("a.db-1") && out.contains("0000000000000002/8000000000000001"), "{out}");
    run(dir.path(), &["parked", "export", "a.db-1", "-o", "out.db"], 0);
    assert_eq!(std::fs::read(dir.path().join("out.db")).expect("read"), b"content");
    let (_, err) = run(dir.path(), &["parked", "export", "none", "-o", "x.db"], 2);
    assert!(err.contains("parked list"), "{err}");
    assert!(branch.join("database").exists());
}

/// An archive in `dir/archive` with one database of two transactions; its URL.
fn archive(dir: &Path) -> String {
    use litefs::archive::{Archive, ChangeSet, Options, Writer};
    use litefs::words::{DbName, Epoch, NodeId};

    let url = format!("file://{}/archive", dir.display());
    let store = litefs::object::from_url(&url, &litefs::object::Options::default()).expect("a store");
    let archive = Archive::open_or_init(store, Options::default()).expect("an archive");
    let writer = Writer::seal(&archive, Epoch::new(1), NodeId::new(1)).expect("a writer");
    let (one, two) = change_sets();
    let db = DbName::new("dir/a.db").expect("a name");
    for ltx in [one, two] {
        let set = ChangeSet::new(db.clone(), ltx.into()).expect("a change set");
        writer.put(&[set]).expect("put");
    }
    url
}

#[test]
fn history_and_restore_give_every_point_without_a_node() {
    let dir = scratch();
    let url = archive(dir.path());
    let at = |args: &[&str], code| run(dir.path(), &[args, &["--storage", &url]].concat(), code);

    let (out, _) = at(&["history"], 0);
    assert!(out.contains("dir/a.db") && out.contains("0000000000000002/"), "{out}");
    let (out, _) = at(&["history", "--name", "dir/a.db", "--json"], 0);
    let points: serde_json::Value = serde_json::from_str(&out).expect("json");
    assert_eq!(points.as_array().map(Vec::len), Some(2), "{out}");
    assert_eq!(points[0]["txid"], "0000000000000001");
    let (out, _) = at(&["history", "--name", "dir/a.db", "--from", "1h"], 0);
    assert!(out.contains("no restore points"), "{out}");
    let (_, err) = at(&["history", "--name", "none.db"], 1);
    assert!(err.contains("none.db"), "{err}");

    let byte = |file: &str| std::fs::read(dir.path().join(file)).expect(file)[600];
    at(&["restore", "--name", "dir/a.db", "-o", "latest.db"], 0);
    at(&["restore", "--name", "dir/a.db", "-o", "first.db", "--txid", "1"], 0);
    at(&["restore", "--name", "dir/a.db", "-o", "then.db", "--timestamp", "2023-11-14T22:13:20Z"], 0);
    assert_eq!((byte("latest.db"), byte("first.db"), byte("then.db")), (3, 2, 3));
    let (_, err) = at(&["restore", "--name", "dir/a.db", "-o", "no.db", "--txid", "9"], 1);
    assert!(err.contains("history"), "{err}");
    let (_, err) =
        at(&["restore", "--name", "dir/a.db", "-o", "no.db", "--timestamp", "2020-01-01T00:00:00Z"], 1);
    assert!(err.contains("2020-01-01"), "{err}");
    assert!(!dir.path().join("no.db").exists());

    let (_, err) = at(&["restore", "--name", "dir/a.db", "-o", "latest.db", "--txid", "1"], 2);
    assert!(err.contains("--force") && byte("latest.db") == 3, "{err}");
    at(&["restore", "--name", "dir/a.db", "-o", "latest.db", "--txid", "1", "--force"], 0);
    assert_eq!(byte("latest.db"), 2);
    at(&["restore", "--all", "-o", "out"], 0);
    assert_eq!(byte("out/dir/a.db"), 3);
}

#[test]
fn verify_exits_with_1_and_names_what_is_damaged() {
    let dir = scratch();
    let url = archive(dir.path());
    let at = |args: &[&str], code| run(dir.path(), &[args, &["--storage", &url]].concat(), code);
    at(&["verify"], 0);
    let (out, _) = at(&["verify", "--deep"], 0);
    assert!(out.starts_with("1 database: "), "{out}");
    at(&["verify", "--name", "none.db"], 1);

    let last = dir.path().join("archive/log/0000000000000003");
    let mut bytes = std::fs::read(&last).expect("the last segment");
    let inside = bytes.len() - 30;
    bytes[inside] ^= 1;
    std::fs::write(&last, &bytes).expect("damage it");
    let (out, err) = at(&["verify", "--deep"], 1);
    assert!(out.contains("0000000000000003") && err.contains("1 fault"), "{out}\n{err}");
    let (_, err) = at(&["restore", "--name", "dir/a.db", "-o", "a.db"], 1);
    assert!(err.contains("0000000000000003"), "{err}");
    assert!(!dir.path().join("a.db").exists());
}

#[test]
fn ltx_commands_take_segments_of_the_log() {
    let dir = scratch();
    archive(dir.path());
    let segments = ["archive/log/0000000000000002", "archive/log/0000000000000003"];
    let (out, _) = run(dir.path(), &[&["ltx", "list"], &segments[..]].concat(), 0);
    assert!(out.contains("[dir/a.db 0000000000000001-0000000000000001]"), "{out}");
    run(dir.path(), &[&["ltx", "apply", "--db", "a.db"], &segments[..]].concat(), 0);
    assert_eq!(std::fs::read(dir.path().join("a.db")).expect("read")[600], 3);
    let other = ["ltx", "list", "--name", "other.db", segments[0]];
    assert_eq!(run(dir.path(), &other, 0).0.lines().count(), 1);
}

/// Two pages of 512 bytes, and a change of the second.
fn change_sets() -> (Vec<u8>, Vec<u8>) {
    use litefs::ltx::{Codec, Encoder, Form, Header};
    use litefs::words::{Checksum, PageSize, PageSum, Pgno, Timestamp, Txid};

    let two = Pgno::new(2).expect("not zero");
    let mut first = vec![0; 512];
    first[..16].copy_from_slice(b"SQLite format 3\0");
    first[16..24].copy_from_slice(&[2, 0, 1, 1, 0, 64, 32, 32]);
    let (old, new) = (vec![2; 512], vec![3; 512]);
    let sum = |second: &[u8]| {
        Checksum::EMPTY.toggle(PageSum::of(Pgno::FIRST, &first)).toggle(PageSum::of(two, second))
    };
    let make = |txid: u64, pre: Checksum, pages: &[(Pgno, &[u8])], post: Checksum| {
        let header = Header {
            page_size: PageSize::new(512).expect("a page size"),
            commit: 2,
            min: Txid::new(txid),
            max: Txid::new(txid),
            timestamp: Timestamp::from_millis(1_700_000_000_000),
            pre,
            wal: None,
            node: 1,
            form: Form::Tracked,
            codec: Codec::Lz4,
        };
        let mut encoder = Encoder::new(Vec::new(), header).expect("an encoder");
        for (pgno, data) in pages {
            encoder.page(*pgno, data).expect("a page");
        }
        encoder.finish(post).expect("finish").writer
    };
    (
        make(1, Checksum::EMPTY, &[(Pgno::FIRST, &first), (two, &old)], sum(&old)),
        make(2, sum(&old), &[(two, &new)], sum(&new)),
    )
}
