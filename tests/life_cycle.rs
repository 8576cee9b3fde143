//! A node's life on a real mount: the commands that it runs, signals, exit codes,
//! kill -9, and the commands that talk to it.

mod support;

use std::path::Path;
use std::process::Command;

use support::{Node, Outside, Scratch, Settings, can_mount, drivers, process, wait_for};

/// A node whose `[[exec]]` are shell scripts; `MNT` in them is the mount.
fn node(scratch: &Scratch, scripts: &[&str]) -> Node {
    let mount = scratch.path().join("mnt");
    let section = |script: &&str| {
        let script = script.replace("MNT", &mount.display().to_string());
        format!("[[exec]]\ncmd = [\"sh\", \"-c\", '''{script}''']\n")
    };
    // A lone $ is an error in litefs.toml, so the scripts write it twice.
    let more = scripts.iter().map(section).collect::<String>().replace('$', "$$");
    Node::new(scratch.path(), Settings { more, ..Settings::default() })
}

fn text(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

fn litefs(node: &Node, args: &[&str]) -> process::Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_litefs"));
    process::run(command.args(args).args(["--config"]).arg(node.config()))
}

#[test]
fn commands_run_in_order_once_the_databases_are_there() {
    if !can_mount() {
        return;
    }
    let scratch = Scratch::new("exec");
    let out = scratch.join("out");
    let count = format!("sqlite3 MNT/app.db 'select count(*) from t' > {}; exit 5", out.display());
    let migrate = "sqlite3 MNT/app.db 'create table if not exists t(x); insert into t values (1)'";
    let mut node = node(&scratch, &[migrate, &count]);
    for start in 1..=3 {
        node.spawn();
        assert_eq!(node.wait_end().code(), Some(5), "the last command's code is the node's");
        assert_eq!(text(&out).trim(), start.to_string(), "what was committed before was there again");
        assert!(!node.is_mounted());
        node.wipe_data();
    }
}

#[test]
fn a_failing_migration_ends_the_node_with_its_code() {
    if !can_mount() {
        return;
    }
    let scratch = Scratch::new("migration");
    let never = scratch.join("never");
    let mut node = node(&scratch, &["exit 3", &format!("touch {}", never.display())]);
    node.spawn();
    assert_eq!(node.wait_end().code(), Some(3));
    assert!(!never.exists() && !node.is_mounted());
}

#[test]
fn what_a_command_writes_on_sigterm_is_archived() {
    if !can_mount() {
        return;
    }
    let scratch = Scratch::new("sigterm");
    let ready = scratch.join("ready");
    let script = format!(
        "sqlite3 MNT/a.db 'create table t(x)'; trap \"sqlite3 MNT/a.db 'insert into t values (7)'; exit 4\" TERM; \
         echo ready > {}; while :; do sleep 0.02; done",
        ready.display()
    );
    let mut node = node(&scratch, &[&script]);
    node.start();
    wait_for("the command is ready", || (text(&ready) == "ready\n").then_some(()));
    node.signal(rustix::process::Signal::TERM);
    assert_eq!(node.wait_end().code(), Some(4), "the command's code is the node's");
    assert!(!node.is_mounted());
    node.wipe_data();

    let restored = scratch.join("restored.db");
    let restore = ["restore", "--name", "a.db", "-o", &restored.display().to_string()];
    let output = litefs(&node, &restore);
    assert_eq!(output.code(), Some(0), "{}", output.stderr);
    assert!(drivers::dump(&restored).contains("VALUES(7)"), "{}", drivers::dump(&restored));
}

#[test]
fn after_kill_nine_no_command_is_left_and_the_next_start_works() {
    if !can_mount() {
        return;
    }
    let scratch = Scratch::new("kill");
    let pids = scratch.join("pids");
    let script = format!(
        "sqlite3 MNT/a.db 'create table if not exists t(x); insert into t values (1)'; \
         sh -c 'echo $$ >> {0}; exec sleep 1000' & echo $$ >> {0}; wait",
        pids.display()
    );
    let mut node = node(&scratch, &[&script]);
    node.start();
    let listed = wait_for("both processes are there", || {
        let listed = text(&pids);
        (listed.lines().count() == 2).then_some(listed)
    });
    node.kill();
    wait_for("both processes are gone", || listed.lines().all(|pid| !lives(pid)).then_some(()));
    // Same directories, same port, the dead mount still in place.
    node.start();
    let rows = wait_for("the second insert", || {
        let output =
            process::run(Command::new("sqlite3").arg(node.file("a.db")).arg("select count(*) from t"));
        (output.stdout.trim() == "2").then_some(output.stdout)
    });
    assert_eq!(rows.trim(), "2");
    node.kill();
}

/// Whether a process runs; a zombie does not.
fn lives(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
    stat.is_ok_and(|stat| !stat.rsplit(')').next().unwrap_or("").trim_start().starts_with('Z'))
}

#[test]
fn the_commands_talk_to_the_node_of_the_configuration() {
    if !can_mount() {
        return;
    }
    let scratch = Scratch::new("commands");
    let mut node = node(&scratch, &[]);
    node.start();
    let (plain, out) = (scratch.join("plain.db"), scratch.join("out.db"));
    let source = rusqlite::Connection::open(&plain).expect("open");
    source.execute_batch("create table t(x); insert into t values ('imported')").expect("write");
    drop(source);
    let (plain_name, out_name) = (plain.display().to_string(), out.display().to_string());

    let import = litefs(&node, &["import", "--name", "dir/b.db", &plain_name]);
    assert_eq!(import.code(), Some(0), "{}", import.stderr);
    assert!(drivers::dump(&node.file("dir/b.db")).contains("imported"));
    let status = litefs(&node, &["status"]);
    assert!(status.stdout.contains("primary") && status.stdout.contains("dir/b.db"), "{}", status.stdout);
    let status = litefs(&node, &["status", "--json"]).stdout;
    let status: serde_json::Value = serde_json::from_str(&status).expect("json");
    assert_eq!(status["databases"][0]["name"], "dir/b.db");

    let export = litefs(&node, &["export", "--name", "dir/b.db", &out_name]);
    assert_eq!(export.code(), Some(0), "{}", export.stderr);
    assert_eq!(drivers::dump(&out), drivers::dump(&plain));
    assert_eq!(litefs(&node, &["export", "--name", "dir/b.db", &out_name]).code(), Some(2));
    assert_eq!(litefs(&node, &["export", "--name", "none.db", "--force", &out_name]).code(), Some(1));
    assert_eq!(drivers::dump(&out), drivers::dump(&plain), "a failed export leaves the file as it was");

    let junk = scratch.join("junk.db");
    std::fs::write(&junk, vec![7; 100_000]).expect("write");
    let refused = litefs(&node, &["import", "--name", "dir/b.db", &junk.display().to_string()]);
    assert!(refused.code() == Some(1) && refused.stderr.contains("no SQLite database"), "{}", refused.stderr);
    assert!(drivers::dump(&node.file("dir/b.db")).contains("imported"));

    assert_eq!(litefs(&node, &["promote"]).code(), Some(0));
    let handoff = litefs(&node, &["handoff", "other"]);
    assert!(handoff.code() == Some(1) && handoff.stderr.contains("static"), "{}", handoff.stderr);
    let mut run = Command::new(env!("CARGO_BIN_EXE_litefs"));
    let run =
        process::run(run.args(["run", "--if-primary", "--url", &node.url(), "--", "sh", "-c", "exit 6"]));
    assert_eq!(run.code(), Some(6));
    node.stop();
}

/// A node with the litefs.toml in `dir`; killed when dropped.
struct Plain {
    child: std::process::Child,
    mount: std::path::PathBuf,
}

impl Plain {
    fn start(dir: &Path, env: &[(&str, String)]) -> Plain {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(dir.join("log")).expect("a log");
        let child = Command::new(env!("CARGO_BIN_EXE_litefs"))
            .arg("mount")
            .current_dir(dir)
            .envs(env.iter().map(|(name, value)| (name, value)))
            .stdin(std::process::Stdio::null())
            .stdout(log.try_clone().expect("duplicate the log"))
            .stderr(log)
            .spawn();
        let mut node = Plain { child: child.expect("start litefs"), mount: dir.join("run/mnt") };
        wait_for("the node serves", || {
            let ended = node.child.try_wait().expect("ask for its state");
            assert!(ended.is_none(), "the node ended: {}", text(&dir.join("log")));
            text(&dir.join("log")).contains(" serving dir=").then_some(())
        });
        node
    }

    fn stop(mut self) {
        let pid = i32::try_from(self.child.id()).ok().and_then(rustix::process::Pid::from_raw);
        let pid = pid.expect("a process id");
        rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("signal the node");
        assert_eq!(process::wait(&mut self.child).and_then(|status| status.code()), Some(0));
    }
}

impl Drop for Plain {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        support::node::unmount(&self.mount);
    }
}

#[test]
fn the_readmes_commands_do_what_it_says() {
    if !can_mount() {
        return;
    }
    let repository = Path::new(env!("CARGO_MANIFEST_DIR"));
    let scratch = Scratch::new("readme");
    let config = text(&repository.join("litefs.toml"));
    assert!(config.contains("127.0.0.1:20202"));
    // The port may be taken on this machine.
    std::fs::write(scratch.join("litefs.toml"), config.replace(":20202", ":0")).expect("write");
    let readme = text(&repository.join("README.md"));
    let section = readme.split("## Two commands").nth(1).and_then(|rest| rest.split("\n## On").next());
    let mut commands: Vec<&str> =
        section.expect("the sections").lines().filter_map(|l| l.strip_prefix("    ")).collect();
    assert_eq!(commands.len(), 6, "{commands:?}");
    // That is what runs now.
    assert_eq!(commands.remove(1), "scripts/test");

    let (mut node, mut last) = (None, String::new());
    for command in commands {
        if command.starts_with("cargo run --release -- mount") {
            std::fs::write(scratch.join("log"), "").expect("empty the log");
            node = Some(Plain::start(scratch.path(), &[]));
            continue;
        }
        if command.starts_with("rm ")
            && let Some(node) = node.take()
        {
            node.stop();
        }
        let output = process::run(Command::new("sh").args(["-c", command]).current_dir(scratch.path()));
        assert_eq!(output.code(), Some(0), "{command}: {}", output.stderr);
        last = output.stdout;
    }
    assert_eq!(last, "1\n", "the row is back");
    node.expect("a node").stop();
}

#[test]
fn the_readmes_commands_for_s3_do_what_it_says() {
    if Outside::minio().is_none() || !can_mount() {
        return;
    }
    let repository = Path::new(env!("CARGO_MANIFEST_DIR"));
    let scratch = Scratch::new("readme-s3");
    let config = text(&repository.join("litefs.toml")).replace(":20202", ":0");
    std::fs::write(scratch.join("litefs.toml"), config).expect("write");
    for dir in ["scripts", "target"] {
        std::os::unix::fs::symlink(repository.join(dir), scratch.join(dir)).expect("link");
    }
    // `cargo run --release --` would build for minutes: what runs is this build's program.
    std::fs::create_dir(scratch.join("bin")).expect("create");
    let shim = format!(
        "#!/bin/sh\n[ \"$1 $2 $3\" = 'run --release --' ] || exit 9\nshift 3\n\
         [ \"$1\" != mount ] || echo $$ > pid\nexec {} \"$@\"\n",
        env!("CARGO_BIN_EXE_litefs")
    );
    std::fs::write(scratch.join("bin/cargo"), shim).expect("write");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(scratch.join("bin/cargo"), mode).expect("make it a program");

    let readme = text(&repository.join("README.md"));
    let section = readme.split("## On S3").nth(1).and_then(|rest| rest.split("\n## ").next());
    let commands: Vec<&str> =
        section.expect("the section").lines().filter_map(|l| l.strip_prefix("    ")).collect();
    assert_eq!(commands.len(), 11, "{commands:?}");
    let mut script = "set -eu; exec 2>>log\n\
        serving() { for i in $(seq 2400); do [ \"$(grep -c ' serving dir' log)\" != $1 ] || return 0; sleep 0.05; done; exit 7; }\n\
        stop() { kill -INT $(cat pid); wait; }\n\
        trap 'scripts/minio.sh stop' EXIT\n"
        .to_owned();
    let (mut mounts, mut is_up) = (0, false);
    for command in commands {
        // What the text around the commands says.
        let ends = command.starts_with("rm ") || command.ends_with("minio.sh stop");
        if ends && std::mem::take(&mut is_up) {
            script.push_str("stop\n");
        }
        script.push_str(command);
        script.push('\n');
        if command.ends_with('&') {
            (mounts, is_up) = (mounts + 1, true);
            script.push_str(&format!("serving {mounts}\n"));
        }
    }
    script.push_str("sqlite3 restored.db 'select sum(x) from t'\n");
    let path = format!("{}:{}", scratch.join("bin").display(), std::env::var("PATH").unwrap_or_default());
    let mut command = Command::new("bash");
    command.args(["-c", &script]).current_dir(scratch.path());
    let output = process::run(command.env("PATH", path).env("LITEFS_MINIO_DIR", scratch.join("minio")));
    support::node::unmount(&scratch.join("run/mnt"));
    assert_eq!(output.code(), Some(0), "{script}\n{}\n{}", output.stdout, text(&scratch.join("log")));
    let lines: Vec<&str> = output.stdout.lines().collect();
    assert_eq!((lines.first(), lines.last()), (Some(&"2"), Some(&"3")), "{lines:?}");
}

#[test]
fn a_node_on_s3_comes_back_onto_an_empty_disk() {
    let Some(server) = Outside::minio() else { return };
    if !can_mount() {
        return;
    }
    let scratch = Scratch::new("s3");
    // A part of the bucket of its own: the directory's name is unique.
    let prefix = scratch.path().file_name().expect("a name").to_string_lossy().into_owned();
    let url = server.url_of(&prefix);
    let config = format!(
        "[fuse]\ndir = \"./run/mnt\"\n[data]\ndir = \"./run/data\"\n[storage]\nurl = \"{url}\"\n\
         [http]\naddr = \"127.0.0.1:0\"\n"
    );
    std::fs::write(scratch.join("litefs.toml"), config).expect("write");
    let env = server.environment();
    let env = env.each_ref().map(|(name, value)| (name.as_str(), value.clone()));
    let sqlite3 = |sql: &str| {
        let output = process::run(Command::new("sqlite3").arg(scratch.join("run/mnt/app.db")).arg(sql));
        assert_eq!(output.code(), Some(0), "{sql}: {}", output.stderr);
        output.stdout
    };
    for start in 1..=3 {
        std::fs::write(scratch.join("log"), "").expect("empty the log");
        let node = Plain::start(scratch.path(), &env);
        sqlite3("create table if not exists t(x); insert into t values (randomblob(5000))");
        assert_eq!(sqlite3("select count(*) from t").trim(), start.to_string());
        node.stop();
        std::fs::remove_dir_all(scratch.join("run/data")).expect("wipe the disk");
    }
    let litefs = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_litefs"));
        let command = command.args(args).current_dir(scratch.path());
        process::run(command.envs(env.iter().map(|(name, value)| (name, value))))
    };
    let verify = litefs(&["verify", "--deep"]);
    assert_eq!(verify.code(), Some(0), "{}{}", verify.stdout, verify.stderr);
    let restore = litefs(&["restore", "--name", "app.db", "-o", "restored.db"]);
    assert_eq!(restore.code(), Some(0), "{}", restore.stderr);
    assert_eq!(drivers::integrity(&scratch.join("restored.db")).trim(), "ok");
}

#[test]
fn a_node_with_a_token_answers_only_to_it() {
    if !can_mount() {
        return;
    }
    let scratch = Scratch::new("token");
    let config = "[fuse]\ndir = \"./run/mnt\"\n[data]\ndir = \"./run/data\"\n\
                  [storage]\nurl = \"file://./run/archive\"\n[http]\naddr = \"127.0.0.1:0\"\ntoken = \"${SECRET}\"\n";
    std::fs::write(scratch.join("litefs.toml"), config).expect("write");
    let node = Plain::start(scratch.path(), &[("SECRET", "s3cret".to_owned())]);
    let log = text(&scratch.join("log"));
    assert!(!log.contains("s3cret"), "{log}");
    let addr = log.split("serving the api addr=").nth(1).and_then(|rest| rest.split_whitespace().next());
    let url = format!("http://{}", addr.expect("the API's address in the log"));
    let status = |token: &[&str], env: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_litefs"));
        process::run(command.args(["status", "--url", &url]).args(token).env("LITEFS_TOKEN", env))
    };
    let refused = status(&["--token", "wrong"], "s3cret");
    assert!(refused.code() == Some(1) && refused.stderr.contains("token"), "{}", refused.stderr);
    assert_eq!(status(&["--token", "s3cret"], "").code(), Some(0));
    assert_eq!(status(&[], "s3cret").code(), Some(0));
    node.stop();
}
