//! Child processes with a deadline: a hung mount must fail a test, not hang it.

use std::io::{Read, Write};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Instant;

use super::PATIENCE;

/// How a child ended.
#[derive(Debug)]
pub struct Output {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

impl Output {
    /// Its exit code; a child killed by a signal has none.
    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }
}

/// Runs a command to its end with `input` as its standard input; kills it and
/// panics after [`PATIENCE`].
pub fn run_with(command: &mut Command, input: &str) -> Output {
    let shown = format!("{command:?}");
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("start {shown}: {error}"));
    let mut stdin = child.stdin.take().expect("its standard input");
    let input = input.to_owned();
    let writer = std::thread::spawn(move || drop(stdin.write_all(input.as_bytes())));
    let stdout = collect(child.stdout.take().expect("its standard output"));
    let stderr = collect(child.stderr.take().expect("its standard error"));
    let status = wait(&mut child).unwrap_or_else(|| {
        let _ = child.kill();
        panic!("{shown} did not end within {PATIENCE:?}");
    });
    writer.join().expect("the thread that feeds it");
    Output {
        status,
        stdout: stdout.join().expect("the thread that reads it"),
        stderr: stderr.join().expect("the thread that reads it"),
    }
}

/// [`run_with`] without input.
pub fn run(command: &mut Command) -> Output {
    run_with(command, "")
}

/// Waits for a child; `None` after [`PATIENCE`].
pub fn wait(child: &mut Child) -> Option<ExitStatus> {
    let start = Instant::now();
    let mut pause = std::time::Duration::from_millis(1);
    loop {
        if let Some(status) = child.try_wait().expect("wait for a child") {
            return Some(status);
        }
        if start.elapsed() > PATIENCE {
            return None;
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(std::time::Duration::from_millis(20));
    }
}

fn collect(mut from: impl Read + Send + 'static) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = from.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// The program under test.
pub fn litefs() -> Command {
    Command::new(env!("CARGO_BIN_EXE_litefs"))
}
