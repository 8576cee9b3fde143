//! Runs the exec list: every command but the last to its end, one after another
//! (migrations); the last one for as long as it lives, and its end is the node's.
//! Must not stop the node itself: it says that the list has ended.

use std::io::IsTerminal;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use rustix::process::Signal;

use super::child::{Running, Target};
use super::command::{Command, Standing};

/// How long what a command left behind in its group gets to end by itself.
const LEFTOVERS: Duration = Duration::from_secs(2);

/// The codes a shell gives for a program that cannot be run, and for none.
const NOT_RUNNABLE: u8 = 126;
const NOT_FOUND: u8 = 127;

/// How the list ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// A command ended it: the last one with any code, an earlier one with a
    /// failure. The node stops and exits with this code.
    Code(u8),
    /// Nothing is left to run here, and nothing failed; the node goes on.
    Idle,
}

/// The running list; dropping it kills what still runs.
pub struct Supervisor {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// The command that runs now.
    target: Option<Target>,
    /// No further command is started.
    stopping: bool,
    ended: Option<Ended>,
}

impl Supervisor {
    /// Starts the list on a thread of its own. `standing` is asked when a command's
    /// turn comes; `on_end` is called once, on that thread, when the list has
    /// ended.
    pub fn start(
        commands: Vec<Command>,
        standing: impl Fn() -> Standing + Send + 'static,
        on_end: impl FnOnce(Ended) + Send + 'static,
    ) -> std::io::Result<Supervisor> {
        // A background group that reads from its terminal is stopped by SIGTTIN
        // (termios(3)), so with a terminal the commands stay in the daemon's group.
        Self::start_in(!std::io::stdin().is_terminal(), commands, standing, on_end)
    }

    /// The same, with the commands in process groups of their own or not.
    pub(super) fn start_in(
        own_group: bool,
        commands: Vec<Command>,
        standing: impl Fn() -> Standing + Send + 'static,
        on_end: impl FnOnce(Ended) + Send + 'static,
    ) -> std::io::Result<Supervisor> {
        let shared = Arc::new(Shared { state: Mutex::default(), changed: Condvar::new() });
        let list = List { commands, own_group, shared: shared.clone() };
        let thread = std::thread::Builder::new().name("litefs-exec".to_owned()).spawn(move || {
            let ended = list.run(standing);
            list.shared.state.lock().ended = Some(ended);
            list.shared.changed.notify_all();
            on_end(ended);
        })?;
        Ok(Supervisor { shared, thread: Some(thread) })
    }

    /// Passes a signal on to the command that runs now. SIGTERM and SIGINT also
    /// keep the next one from being started.
    pub fn forward(&self, signal: i32) {
        let Some(signal) = Signal::from_named_raw(signal) else {
            return;
        };
        let mut state = self.shared.state.lock();
        state.stopping |= matches!(signal, Signal::TERM | Signal::INT);
        if let Some(target) = state.target {
            target.signal(signal);
        }
    }

    /// How the list ended, if it has.
    pub fn ended(&self) -> Option<Ended> {
        self.shared.state.lock().ended
    }

    /// Waits for the list to end.
    pub fn wait(&self) -> Ended {
        let mut state = self.shared.state.lock();
        loop {
            if let Some(ended) = state.ended {
                return ended;
            }
            self.shared.changed.wait(&mut state);
        }
    }

    /// Ends the list: SIGTERM (again, if it was forwarded before), and SIGKILL
    /// after `grace`.
    pub fn stop(&self, grace: Duration) -> Ended {
        self.forward(Signal::TERM.as_raw());
        if let Some(ended) = self.wait_until(Instant::now() + grace) {
            return ended;
        }
        tracing::warn!(seconds = grace.as_secs(), "the command did not end in time and is killed");
        if let Some(target) = self.shared.state.lock().target {
            target.signal(Signal::KILL);
        }
        self.wait()
    }

    fn wait_until(&self, deadline: Instant) -> Option<Ended> {
        let mut state = self.shared.state.lock();
        while state.ended.is_none() {
            if self.shared.changed.wait_until(&mut state, deadline).timed_out() {
                break;
            }
        }
        state.ended
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        self.stop(Duration::ZERO);
        if let Some(thread) = self.thread.take()
            && thread.thread().id() != std::thread::current().id()
        {
            // Its panic, if any, was reported by itself.
            let _ = thread.join();
        }
    }
}

struct List {
    commands: Vec<Command>,
    own_group: bool,
    shared: Arc<Shared>,
}

impl List {
    fn run(&self, standing: impl Fn() -> Standing) -> Ended {
        let last = self.commands.len().saturating_sub(1);
        for (at, command) in self.commands.iter().enumerate() {
            if !command.runs_on(standing()) {
                tracing::info!(%command, "command not run: this node is not what it asks for");
                continue;
            }
            match self.run_one(command, at == last) {
                Some(0) if at != last => {}
                Some(code) => return Ended::Code(code),
                None => return Ended::Idle,
            }
        }
        Ended::Idle
    }

    /// Runs a command to its end; `None` if it was not started because the list is
    /// being stopped.
    fn run_one(&self, command: &Command, last: bool) -> Option<u8> {
        let mut running = {
            let mut state = self.shared.state.lock();
            if state.stopping {
                return None;
            }
            match Running::start(command, self.own_group) {
                Ok(running) => {
                    state.target = Some(running.target());
                    running
                }
                Err(error) => return Some(not_started(command, &error)),
            }
        };
        tracing::info!(%command, "command started");
        running.wait_for_end();
        let code = {
            // Under the lock: nobody signals an id that may be another's now.
            let mut state = self.shared.state.lock();
            state.target = None;
            running.reap()
        };
        if last || code != 0 {
            running.sweep(LEFTOVERS);
        }
        tracing::info!(%command, code, "command ended");
        Some(code)
    }
}

fn not_started(command: &Command, error: &std::io::Error) -> u8 {
    tracing::error!(%command, %error, "starting a command failed; check cmd in [[exec]] and PATH");
    if error.kind() == std::io::ErrorKind::NotFound { NOT_FOUND } else { NOT_RUNNABLE }
}
