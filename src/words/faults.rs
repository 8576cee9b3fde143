//! Named fail points between the steps that must survive a crash. In a normal run
//! nothing is armed and a point costs one load. `LITEFS_FAULTS` arms them for the
//! tests' nodes: `name=kill|enospc|eio[@n]`, comma separated; `@n` fires at the
//! n-th pass (default the first) and, but for `kill`, at every later one.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// What an armed point does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultAction {
    /// The process dies at once, as by kill -9.
    Kill,
    /// The operation fails with this errno.
    Errno(i32),
}

#[derive(Debug)]
struct Armed {
    action: FaultAction,
    at: u64,
    passed: u64,
}

/// The fail points of one node; clones share them.
#[derive(Clone, Debug, Default)]
pub struct Faults(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    any: AtomicBool,
    armed: Mutex<HashMap<String, Armed>>,
    observer: OnceLock<Observer>,
}

struct Observer(Box<dyn Fn(&str) + Send + Sync>);

impl std::fmt::Debug for Observer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Observer")
    }
}

impl Faults {
    /// Nothing armed.
    pub fn none() -> Faults {
        Faults::default()
    }

    /// Points armed by a text such as `log.append=enospc@3,capture.commit=kill`.
    pub fn parse(text: &str) -> Result<Faults, String> {
        let faults = Faults::default();
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let bad = || format!("fail point {part:?} is not name=kill|enospc|eio[@n]");
            let (name, action) = part.split_once('=').ok_or_else(bad)?;
            let (action, at) = match action.split_once('@') {
                Some((action, at)) => (action, at.parse().map_err(|_| bad())?),
                None => (action, 1),
            };
            let action = match action {
                "kill" => FaultAction::Kill,
                "enospc" => FaultAction::Errno(libc::ENOSPC),
                "eio" => FaultAction::Errno(libc::EIO),
                _ => return Err(bad()),
            };
            faults.arm(name, action, at);
        }
        Ok(faults)
    }

    /// Arms `name` to act at its `at`-th pass from now.
    pub fn arm(&self, name: &str, action: FaultAction, at: u64) {
        let mut armed = self.0.armed.lock().unwrap_or_else(PoisonError::into_inner);
        armed.insert(name.to_owned(), Armed { action, at, passed: 0 });
        self.0.any.store(true, Ordering::Release);
    }

    /// Sets who is told the name of every point that is passed, once; called by the
    /// passing thread, which may hold locks.
    pub fn observe(&self, observer: impl Fn(&str) + Send + Sync + 'static) {
        let _ = self.0.observer.set(Observer(Box::new(observer)));
        self.0.any.store(true, Ordering::Release);
    }

    /// Disarms every point.
    pub fn clear(&self) {
        self.0.any.store(self.0.observer.get().is_some(), Ordering::Release);
        self.0.armed.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Passes the point `name`.
    ///
    /// # Errors
    /// The errno that the point is armed with.
    pub fn pass(&self, name: &str) -> io::Result<()> {
        if !self.0.any.load(Ordering::Acquire) {
            return Ok(());
        }
        self.pass_armed(name)
    }

    #[cold]
    fn pass_armed(&self, name: &str) -> io::Result<()> {
        if let Some(observer) = self.0.observer.get() {
            (observer.0)(name);
        }
        let mut armed = self.0.armed.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(point) = armed.get_mut(name) else { return Ok(()) };
        point.passed += 1;
        match point.action {
            FaultAction::Kill if point.passed == point.at => {
                let _ =
                    rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
                Ok(())
            }
            FaultAction::Errno(errno) if point.passed >= point.at => Err(io::Error::from_raw_os_error(errno)),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_point_fires_at_the_pass_it_is_armed_for() {
        let faults = Faults::parse("a=enospc@2, b=eio").expect("well-formed");
        assert!(faults.pass("a").is_ok());
        assert_eq!(faults.pass("a").map_err(|e| e.raw_os_error()), Err(Some(libc::ENOSPC)));
        assert_eq!(faults.pass("b").map_err(|e| e.raw_os_error()), Err(Some(libc::EIO)));
        assert!(faults.pass("c").is_ok());
        for bad in ["a", "a=b", "a=kill@x"] {
            assert!(Faults::parse(bad).is_err());
        }
    }
}
