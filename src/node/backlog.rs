//! The backlog while it is full: says so once, and keeps writers from the databases whose
//! WAL passes the daemon by, where a write cannot be refused. Must not decide when it is
//! full.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::db::Brake;
use crate::store::Store;
use crate::words::DbName;

/// How often, while it is full, a database is looked for that has a WAL since.
const AGAIN: Duration = Duration::from_millis(100);

/// The thread that watches the backlog.
pub(super) struct Backlog {
    store: Arc<Store>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Backlog {
    pub fn start(store: &Arc<Store>) -> std::io::Result<Backlog> {
        let stop = Arc::new(AtomicBool::new(false));
        let (inner, ends) = (Arc::clone(store), Arc::clone(&stop));
        let thread = std::thread::Builder::new()
            .name("litefs-backlog".to_owned())
            .spawn(move || run(&inner, &ends))?;
        Ok(Backlog { store: Arc::clone(store), stop, thread: Some(thread) })
    }
}

impl Drop for Backlog {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        self.store.commits().wake();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn run(store: &Store, stop: &AtomicBool) {
    let commits = store.commits();
    let stopping = || stop.load(Ordering::Acquire);
    let is_full = || commits.backlog().full;
    while !stopping() {
        commits.wait_full(true, None, stopping);
        if stopping() || !is_full() {
            continue;
        }
        let backlog = commits.backlog();
        tracing::error!(
            count = backlog.count,
            bytes = backlog.bytes,
            "the backlog is full: writes are refused until the archive has some of it (storage.backlog)"
        );
        let mut brakes: HashMap<DbName, Brake> = HashMap::new();
        while !stopping() && is_full() {
            // On the way to being a replica the daemon itself takes the locks.
            brakes.retain(|_, brake| store.is_writable() && brake.holds());
            for database in store.databases() {
                if brakes.contains_key(database.name()) || !store.is_writable() {
                    continue;
                }
                match database.brake() {
                    Ok(Some(brake)) => drop(brakes.insert(database.name().clone(), brake)),
                    Ok(None) => {}
                    Err(error) => tracing::debug!(%error, "a writer cannot be kept out"),
                }
            }
            commits.wait_full(false, Some(AGAIN), stopping);
        }
        drop(brakes);
        if !is_full() {
            tracing::info!("the backlog has room again: writes go on");
        }
    }
}
