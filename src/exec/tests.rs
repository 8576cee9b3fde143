//! The supervisor with real processes. Waits are for events: a pipe or a file that
//! a command writes.

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use super::*;

const PATIENCE: Duration = Duration::from_secs(60);
const HERE: Standing = Standing { candidate: true, primary: true };

fn sh(script: &str) -> Command {
    Command::from_words(vec!["sh".to_owned(), "-c".to_owned(), script.to_owned()]).expect("a command")
}

fn start(commands: Vec<Command>, standing: Standing) -> Supervisor {
    Supervisor::start_in(true, commands, move || standing, |_| {}).expect("a thread")
}

fn wait_for(what: &str, mut holds: impl FnMut() -> bool) {
    let since = Instant::now();
    while !holds() {
        assert!(since.elapsed() < PATIENCE, "{what} never happened");
        std::thread::yield_now();
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

fn written(path: &Path) -> String {
    let mut text = String::new();
    wait_for("the file's last line", || {
        text = std::fs::read_to_string(path).unwrap_or_default();
        text.ends_with('\n')
    });
    text
}

fn lives(pid: &str) -> bool {
    // A zombie no longer runs: it waits for whoever inherited it to look.
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit(')').next().unwrap_or("").trim_start().starts_with('Z'))
}

#[test]
fn commands_run_in_order_and_the_last_ones_code_is_the_nodes() {
    let dir = tempfile::tempdir().expect("a directory");
    let out = dir.path().join("out");
    let add = |what: &str| sh(&format!("echo {what} >> {}", out.display()));
    let mut replicas_only = add("never");
    replicas_only.if_primary = true;
    let list = vec![add("one"), replicas_only, add("two"), sh("exit 7")];
    let standing = Standing { candidate: true, primary: false };
    assert_eq!(start(list, standing).wait(), Ended::Code(7));
    assert_eq!(written(&out), "one\ntwo\n");
}

#[test]
fn a_failing_migration_ends_the_list() {
    let dir = tempfile::tempdir().expect("a directory");
    let out = dir.path().join("out");
    let list = vec![sh("exit 3"), sh(&format!("echo never > {}", out.display()))];
    assert_eq!(start(list, HERE).wait(), Ended::Code(3));
    assert!(!out.exists());
}

#[test]
fn nothing_to_run_is_no_end_of_the_node() {
    assert_eq!(start(Vec::new(), HERE).wait(), Ended::Idle);
    let mut app = sh("exit 9");
    app.if_candidate = true;
    assert_eq!(start(vec![app], Standing { candidate: false, primary: false }).wait(), Ended::Idle);
}

#[test]
fn a_program_that_is_not_there_has_a_shells_code() {
    let none = Command::from_line("/no/such/program").expect("a command");
    assert_eq!(start(vec![none], HERE).wait(), Ended::Code(127));
    let no_program = Command::from_line("/").expect("a command");
    assert_eq!(start(vec![no_program], HERE).wait(), Ended::Code(126));
}

#[test]
fn signals_reach_the_command_and_its_code_comes_back() {
    let dir = tempfile::tempdir().expect("a directory");
    let out = dir.path().join("out");
    let script = format!(
        "trap 'echo hup >> {0}' HUP; trap 'exit 5' TERM; echo ready >> {0}; while :; do sleep 0.01; done",
        out.display()
    );
    let supervisor = start(vec![sh(&script)], HERE);
    written(&out);
    supervisor.forward(libc::SIGHUP);
    wait_for("the signal", || written(&out).contains("hup"));
    supervisor.forward(libc::SIGTERM);
    assert_eq!(supervisor.wait(), Ended::Code(5));
}

#[test]
fn a_command_that_ignores_the_request_is_killed_in_time() {
    let dir = tempfile::tempdir().expect("a directory");
    let out = dir.path().join("out");
    let script = format!("trap '' TERM; echo ready > {}; while :; do sleep 0.01; done", out.display());
    let supervisor = start(vec![sh(&script), sh("exit 0")], HERE);
    written(&out);
    assert_eq!(supervisor.stop(Duration::from_millis(20)), Ended::Code(128 + 9));
}

#[test]
fn stopping_keeps_the_next_command_from_starting() {
    let dir = tempfile::tempdir().expect("a directory");
    let out = dir.path().join("out");
    let script = format!("trap 'exit 0' TERM; echo ready > {}; while :; do sleep 0.01; done", out.display());
    let never = dir.path().join("never");
    let supervisor = start(vec![sh(&script), sh(&format!("echo x > {}", never.display()))], HERE);
    written(&out);
    assert_eq!(supervisor.stop(PATIENCE), Ended::Idle);
    assert!(!never.exists());
}

#[test]
fn what_a_command_leaves_behind_ends_with_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let out = dir.path().join("out");
    let supervisor = start(vec![sh(&format!("sleep 1000 & echo $! > {}; exit 0", out.display()))], HERE);
    assert_eq!(supervisor.wait(), Ended::Code(0));
    assert!(!lives(written(&out).trim()));
}

#[test]
fn dropping_the_supervisor_ends_the_command() {
    let dir = tempfile::tempdir().expect("a directory");
    let out = dir.path().join("out");
    let supervisor = start(vec![sh(&format!("echo $$ > {}; exec sleep 1000", out.display()))], HERE);
    let pid = written(&out);
    drop(supervisor);
    assert!(!lives(pid.trim()));
}

/// The daemon of the next test: this very program, started again for this test.
#[test]
fn daemon_for_the_test_of_kill_nine() {
    let Ok(script) = std::env::var("LITEFS_TEST_EXEC") else {
        return;
    };
    start(vec![sh(&script)], HERE).wait();
}

#[test]
fn kill_nine_of_the_daemon_leaves_no_process_behind() {
    let script = "sh -c 'echo $$; exec sleep 1000' & echo $$; wait";
    let mut daemon = std::process::Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", "exec::tests::daemon_for_the_test_of_kill_nine", "--nocapture"])
        .env("LITEFS_TEST_EXEC", script)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .process_group(0)
        .spawn()
        .expect("a daemon");
    let lines = BufReader::new(daemon.stdout.take().expect("a pipe")).lines();
    let is_pid = |line: &String| !line.is_empty() && line.bytes().all(|byte| byte.is_ascii_digit());
    let pids: Vec<String> = lines.map(|line| line.expect("a line")).filter(is_pid).take(2).collect();
    assert_eq!(pids.len(), 2);
    assert!(pids.iter().all(|pid| lives(pid)));
    daemon.kill().expect("kill");
    daemon.wait().expect("wait");
    wait_for("the end of both", || !pids.iter().any(|pid| lives(pid)));
}
