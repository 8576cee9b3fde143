//! One child process: started so that it does not outlive the daemon, signalled as
//! a group, waited for without losing its id before the last signal. Must not
//! decide when to stop it.

use std::io;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command as Process, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions};

use super::command::Command;

/// A child that runs.
pub struct Running {
    child: Child,
    pid: Pid,
    /// Whether it leads a process group of its own.
    own_group: bool,
    watcher: Option<Child>,
}

/// Where signals to a child go.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    pid: Pid,
    own_group: bool,
}

impl Running {
    /// Starts a command. Must be called on a thread that lives as long as the
    /// child: the parent-death signal is sent when the *thread* that forked ends
    /// (prctl(2), PR_SET_PDEATHSIG).
    pub fn start(command: &Command, own_group: bool) -> io::Result<Running> {
        let mut process = Process::new(command.program());
        process.args(command.arguments());
        if own_group {
            process.process_group(0);
        }
        let parent = rustix::process::getpid();
        // SAFETY: between fork and exec only system calls are made, no allocation
        // and no lock.
        unsafe {
            process.pre_exec(move || {
                rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
                // The parent may have died before the call above.
                if rustix::process::getppid() == Some(parent) {
                    Ok(())
                } else {
                    Err(io::ErrorKind::Other.into())
                }
            });
        }
        let child = process.spawn()?;
        let pid = Pid::from_child(&child);
        let watcher = own_group.then(|| watch(pid)).flatten();
        Ok(Running { child, pid, own_group, watcher })
    }

    /// Where signals go.
    pub fn target(&self) -> Target {
        Target { pid: self.pid, own_group: self.own_group }
    }

    /// Waits until it has ended, but keeps its id: it can still be signalled.
    pub fn wait_for_end(&self) {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        while let Err(rustix::io::Errno::INTR) = rustix::process::waitid(WaitId::Pid(self.pid), options) {}
    }

    /// Takes its exit code, after it has ended: 128 + the signal if one killed it,
    /// as a shell has it.
    pub fn reap(&mut self) -> u8 {
        let code = self.child.wait().map_or(1, |status| code_of(&status));
        if let Some(mut watcher) = self.watcher.take() {
            // Both fail only if it is gone already.
            let _ = watcher.kill();
            let _ = watcher.wait();
        }
        code
    }

    /// Ends what is left of the group after its leader was reaped: asked first,
    /// killed after `grace`. Processes that hold files in the mount would keep it
    /// busy.
    pub fn sweep(&self, grace: Duration) {
        if !self.own_group {
            return;
        }
        let since = Instant::now();
        let mut signal = Signal::TERM;
        while rustix::process::kill_process_group(self.pid, signal).is_ok() {
            if signal == Signal::KILL {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
            if since.elapsed() >= grace {
                signal = Signal::KILL;
            }
        }
    }
}

impl Target {
    /// Sends a signal to the child and, if it has one, its group.
    pub fn signal(self, signal: Signal) {
        // With a shared group the terminal sends these to the child itself.
        if !self.own_group && matches!(signal, Signal::INT | Signal::QUIT) {
            return;
        }
        let sent = if self.own_group {
            rustix::process::kill_process_group(self.pid, signal)
        } else {
            rustix::process::kill_process(self.pid, signal)
        };
        if let Err(error) = sent {
            tracing::debug!(%error, pid = self.pid.as_raw_nonzero(), "signalling the command failed");
        }
    }
}

fn code_of(status: &ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1);
    u8::try_from(code).unwrap_or(u8::MAX)
}

/// A process that kills the group when the daemon is gone, whatever killed it: the
/// parent-death signal reaches the child, not what the child started. It reads
/// from a pipe whose other end only the daemon holds. Without a shell on this
/// machine there is none.
fn watch(group: Pid) -> Option<Child> {
    Process::new("/bin/sh")
        .args(["-c", "read _; kill -s KILL -- \"-$0\"", &group.as_raw_nonzero().to_string()])
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .inspect_err(|error| tracing::debug!(%error, "no watcher for the command's process group"))
        .ok()
}
