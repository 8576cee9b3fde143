//! A writer that is killed between its last frame and the publishing of it leaves a
//! transaction in the WAL that is none as long as others are connected. Whatever they
//! and the mount then do, it is not captured: the next writer overwrites it, and the
//! last one to close throws it away with the WAL.

mod support;

use std::sync::Arc;
use std::time::Duration;

use litefs::db::{Database, FileKind};
use litefs::fuse::{Passthrough, Unmounted};
use litefs::sqlite::wal::{Authority, WalHeader, next_transaction};
use litefs::store::Store;
use litefs::words::{DbName, Pgno};

use support::mounted::{BOTH, Client, Mounted, open_store};
use support::{Scratch, can_mount};

const NAME: &str = "a.db";

/// A database in WAL mode, a connection to it that stays, and beyond what is published
/// the frames of a killed writer, which set user_version.
fn left_behind(name: &str, passthrough: Passthrough) -> (Mounted, Client) {
    let mounted = Mounted::new(name, passthrough);
    let mut stays = mounted.connect(NAME);
    stays.rows("PRAGMA journal_mode = wal");
    stays.rows("CREATE TABLE t (a)");
    stays.rows("PRAGMA user_version = 1");
    append_unpublished(&mounted);
    assert_eq!(stays.value("PRAGMA user_version"), "1");
    (mounted, stays)
}

fn stored(mounted: &Mounted) -> Arc<Database> {
    mounted.store.database(&DbName::new(NAME).expect("a name")).expect("the database")
}

/// The store as the next start opens it, and where it is.
fn open_again(mounted: Mounted) -> (Arc<Store>, Arc<Scratch>) {
    let scratch = mounted.scratch();
    drop(mounted);
    (open_store(&scratch), scratch)
}

fn append_unpublished(mounted: &Mounted) {
    let db = stored(mounted);
    let wal = std::fs::File::open(db.path(FileKind::Wal)).expect("open the WAL");
    let header = WalHeader::read(&wal).expect("read the WAL").expect("a WAL");
    let (mut end, mut last) = (header.start(), None);
    while let Some(transaction) =
        next_transaction(&wal, &header, end, Authority::Chain).expect("scan the WAL")
    {
        end = transaction.end;
        last = Some(transaction);
    }
    let last = last.expect("a transaction");
    let (first, offset) = last.pages.first().copied().expect("a page");
    assert_eq!(first, Pgno::FIRST, "user_version is on the first page");
    let mut page = vec![0; header.page_size.len()];
    std::os::unix::fs::FileExt::read_exact_at(&wal, &mut page, offset).expect("read the page");
    page[60..64].copy_from_slice(&7_u32.to_be_bytes());
    let at = header.frame_offset(end.frames + 1);
    let mut frames = Vec::new();
    header.append_frame(&mut frames, &mut end, (Pgno::FIRST, last.commit), &page);
    std::fs::write(mounted.scratch().join("frames"), frames).expect("write the frames");
    mounted.ok(&format!(
        "dd if=$M/../frames of=$M/{NAME}-wal bs=4096 seek={at} oflag=seek_bytes conv=notrunc status=none"
    ));
}

/// Nothing was captured but what was published, and the files agree with the position.
fn nothing_came_to_life(mounted: Mounted, before: u64) {
    assert_eq!(mounted.txid(NAME), before, "frames that nobody published were captured");
    let (store, _scratch) = open_again(mounted);
    let db = store.database(&DbName::new(NAME).expect("a name")).expect("the database");
    assert_eq!(db.pos().txid.get(), before);
    let reader = std::fs::read(db.path(FileKind::Database)).expect("read the database");
    assert_eq!(reader[60..64], 1_u32.to_be_bytes());
}

#[test]
fn frames_that_a_killed_writer_left_unpublished_are_never_captured() {
    if !can_mount() {
        return;
    }
    for passthrough in BOTH {
        who_asks_for_the_position_sees_only_what_is_published(passthrough);
        the_last_to_close_throws_them_away(passthrough);
        the_last_to_close_while_the_mount_ends_throws_them_away(passthrough);
        the_next_writer_overwrites_them(passthrough);
        an_application_that_stays_commits_nothing_more(passthrough);
        a_commit_under_way_when_the_mount_goes_is_not_lost(passthrough);
    }
}

fn who_asks_for_the_position_sees_only_what_is_published(passthrough: Passthrough) {
    let (mounted, mut stays) = left_behind("unpublished-pos", passthrough);
    let published = mounted.ok(&format!("cat $M/{NAME}-pos"));
    assert_eq!(u64::from_str_radix(&published[..16], 16).expect("a txid"), 3);
    stays.rows("PRAGMA wal_checkpoint(FULL)");
    assert_eq!(mounted.ok(&format!("cat $M/{NAME}-pos")), published);
    stays.close();
    nothing_came_to_life(mounted, 3);
}

fn the_last_to_close_throws_them_away(passthrough: Passthrough) {
    let (mounted, stays) = left_behind("unpublished-close", passthrough);
    stays.close();
    nothing_came_to_life(mounted, 3);
}

fn the_last_to_close_while_the_mount_ends_throws_them_away(passthrough: Passthrough) {
    let (mounted, stays) = left_behind("unpublished-leave", passthrough);
    std::thread::scope(|scope| {
        let (begins, begun) = std::sync::mpsc::channel();
        let mount = &mounted.mount;
        let unmounting = scope.spawn(move || {
            begins.send(()).expect("somebody waits");
            mount.unmount(Duration::from_secs(600))
        });
        begun.recv().expect("it begins");
        stays.close();
        let unmounted = unmounting.join().expect("no panic").expect("unmount");
        assert_eq!(unmounted, Unmounted::Clean);
    });
    nothing_came_to_life(mounted, 3);
}

fn the_next_writer_overwrites_them(passthrough: Passthrough) {
    let (mounted, mut stays) = left_behind("unpublished-next", passthrough);
    stays.rows("INSERT INTO t VALUES (1)");
    assert_eq!(stays.value("PRAGMA user_version"), "1");
    stays.close();
    nothing_came_to_life(mounted, 4);
}

fn an_application_that_stays_commits_nothing_more(passthrough: Passthrough) {
    let (mounted, mut stays) = left_behind("unpublished-forced", passthrough);
    stays.rows("PRAGMA synchronous = normal");
    let unmounted = mounted.mount.unmount(Duration::ZERO).expect("unmount");
    assert_eq!(unmounted, Unmounted::Forced);
    assert_eq!(mounted.txid(NAME), 3, "frames that nobody published were captured");
    assert!(stays.attempt("INSERT INTO t VALUES (1)").is_err(), "the application sees an error");
    assert_eq!(stored(&mounted).current_pos().expect("capture").txid.get(), 3);
    stays.kill();
    // Everybody is gone: SQLite's recovery counts what is whole in the WAL.
    let (store, _scratch) = open_again(mounted);
    let db = store.database(&DbName::new(NAME).expect("a name")).expect("the database");
    assert_eq!(db.pos().txid.get(), 4);
}

/// The mount waits for the commit, which it cannot see; if it comes too late it fails, or
/// it is there at the next start.
fn a_commit_under_way_when_the_mount_goes_is_not_lost(passthrough: Passthrough) {
    let (mounted, mut stays) = left_behind("unpublished-late", passthrough);
    stays.rows("PRAGMA synchronous = normal");
    stays.rows("BEGIN IMMEDIATE");
    stays.rows("INSERT INTO t VALUES (1)");
    let unmounted = mounted.mount.unmount(Duration::ZERO).expect("unmount");
    assert_eq!(unmounted, Unmounted::Forced);
    assert_eq!(stored(&mounted).current_pos().expect("capture").txid.get(), 3);
    let committed = stays.attempt("COMMIT").is_ok();
    stays.kill();
    let (store, scratch) = open_again(mounted);
    let again = Mounted::mount(scratch, store, passthrough, false);
    let again = again.unwrap_or_else(|error| panic!("{error}"));
    let mut client = again.connect(NAME);
    assert_eq!(client.value("SELECT count(*) FROM t") == "1", committed, "{passthrough:?}");
    assert_eq!(client.value("PRAGMA integrity_check"), "ok");
}
