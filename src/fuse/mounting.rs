//! mount(2) and umount(2), and fusermount3 where those are not allowed. Must never touch
//! a live mount of another process.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::mount::{MountFlags, UnmountFlags};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, SocketType,
};

use super::error::MountError;

const TYPE: &str = "fuse.litefs";
const HELPER: &str = "fusermount3";

/// Makes sure that `dir` can be mounted on: there, a directory, empty, free; what a
/// killed litefs left mounted there is removed. Gives its real path.
pub(super) fn prepare(dir: &Path) -> Result<PathBuf, MountError> {
    let dir = std::path::absolute(dir).map_err(MountError::io("find", dir))?;
    // A stack of them, if several were killed.
    for _ in 0..32 {
        match std::fs::metadata(&dir) {
            Err(error) if error.raw_os_error() == Some(libc::ENOTCONN) => clear_stale(&dir)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                std::fs::create_dir_all(&dir).map_err(MountError::io("create the mount point", &dir))?;
            }
            Err(source) => return Err(MountError::io("use the mount point", &dir)(source)),
            Ok(metadata) if !metadata.is_dir() => return Err(MountError::NotADirectory { dir }),
            Ok(_) if is_dead(&dir)? => clear_stale(&dir)?,
            Ok(_) => break,
        }
    }
    let dir = dir.canonicalize().map_err(MountError::io("find", &dir))?;
    if let Some(kind) = mounted(&dir)?.filter(|kind| kind.starts_with("fuse")) {
        return Err(MountError::Occupied { dir, kind });
    }
    let mut entries = std::fs::read_dir(&dir).map_err(MountError::io("list the mount point", &dir))?;
    if entries.next().is_some() {
        return Err(MountError::NotEmpty { dir });
    }
    Ok(dir)
}

/// Whether a litefs mounted at `dir` has died. The kernel answers a stat from its cache
/// for as long as an application keeps the mount's root in use; a statfs always asks.
fn is_dead(dir: &Path) -> Result<bool, MountError> {
    let real = dir.canonicalize().map_err(MountError::io("find", dir))?;
    if mounted(&real)?.is_none_or(|kind| kind != TYPE) {
        return Ok(false);
    }
    match rustix::fs::statfs(&real) {
        Err(rustix::io::Errno::NOTCONN | rustix::io::Errno::CONNABORTED) => Ok(true),
        Err(_) | Ok(_) => Ok(false),
    }
}

fn clear_stale(dir: &Path) -> Result<(), MountError> {
    // The parent's real path: the mount point itself cannot be looked at.
    let real = match (dir.parent().map(Path::canonicalize), dir.file_name()) {
        (Some(Ok(parent)), Some(name)) => parent.join(name),
        _ => dir.to_owned(),
    };
    match mounted(&real)? {
        Some(kind) if kind != TYPE => return Err(MountError::Occupied { dir: real, kind }),
        Some(_) | None => {}
    }
    tracing::warn!("clearing the mount that a killed litefs left at {}", real.display());
    unmount(&real, true).map_err(MountError::io("clear the stale mount", &real))
}

/// The type of the file system mounted at `dir`, the topmost if several.
fn mounted(dir: &Path) -> Result<Option<String>, MountError> {
    let path = "/proc/self/mountinfo";
    let table = std::fs::read(path).map_err(MountError::io("read", path))?;
    Ok(type_at(&String::from_utf8_lossy(&table), &dir.to_string_lossy()))
}

/// proc(5): `36 35 98:0 /root /point options fields… - type source options`.
fn type_at(mountinfo: &str, dir: &str) -> Option<String> {
    let at = |line: &str| {
        let point = unescape(line.split(' ').nth(4)?);
        let kind = line.split_once(" - ")?.1.split(' ').next()?;
        (point == dir).then(|| kind.to_owned())
    };
    mountinfo.lines().filter_map(at).next_back()
}

/// The kernel writes space, tab, newline and backslash as `\040` and so on.
fn unescape(text: &str) -> String {
    let mut plain = text.to_owned();
    for (escaped, character) in [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")] {
        plain = plain.replace(escaped, character);
    }
    plain
}

/// Mounts; the device's descriptor is the connection.
pub(super) fn mount(dir: &Path, allow_other: bool) -> Result<OwnedFd, MountError> {
    match direct(dir, allow_other) {
        Ok(device) => Ok(device),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err(MountError::NoDevice { dir: dir.to_owned() })
        }
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            tracing::debug!("mount(2) at {} is not permitted ({error}): trying {HELPER}", dir.display());
            helped(dir, allow_other, &error)
        }
        Err(source) => Err(MountError::io("mount", dir)(source)),
    }
}

fn direct(dir: &Path, allow_other: bool) -> io::Result<OwnedFd> {
    let device = File::options().read(true).write(true).open("/dev/fuse")?;
    let metadata = std::fs::metadata(dir)?;
    let mut data = format!(
        "fd={},rootmode={:o},user_id={},group_id={}",
        device.as_raw_fd(),
        metadata.mode() & libc::S_IFMT,
        rustix::process::getuid().as_raw(),
        rustix::process::getgid().as_raw(),
    );
    if allow_other {
        data.push_str(",allow_other");
    }
    let data = CString::new(data)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    match rustix::mount::mount("litefs", dir, TYPE, flags, Some(data.as_c_str())) {
        Ok(()) => Ok(device.into()),
        // ENODEV here is "unknown file system type".
        Err(rustix::io::Errno::NODEV) => Err(io::ErrorKind::NotFound.into()),
        Err(error) => Err(error.into()),
    }
}

/// Lets the set-user-id helper mount: it passes the device back over a socket, which is
/// its standard input.
fn helped(dir: &Path, allow_other: bool, direct: &io::Error) -> Result<OwnedFd, MountError> {
    let refused = |why: String| MountError::NotPermitted { dir: dir.to_owned(), why };
    let pair = rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None);
    let (ours, theirs) = pair.map_err(|error| MountError::io("mount", dir)(error.into()))?;
    let mut options = "fsname=litefs,subtype=litefs,nosuid,nodev".to_owned();
    if allow_other {
        options.push_str(",allow_other");
    }
    let mut command = Command::new(HELPER);
    command.args(["-o", &options, "--"]).arg(dir).env("_FUSE_COMMFD", "0");
    command.stdin(Stdio::from(theirs)).stdout(Stdio::null()).stderr(Stdio::piped());
    let child = command.spawn().map_err(|error| refused(format!("{direct}, and {HELPER}: {error}")))?;
    // The command keeps the other end open, and a helper that fails would not be seen.
    drop(command);
    let device = receive_device(&ours);
    let output = child.wait_with_output().map_err(MountError::io("mount", dir))?;
    match device {
        Ok(Some(device)) if output.status.success() => Ok(device),
        _ => {
            let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            if said.contains("user_allow_other") {
                return Err(MountError::AllowOther { dir: dir.to_owned() });
            }
            Err(refused(if said.is_empty() { direct.to_string() } else { said }))
        }
    }
}

fn receive_device(socket: &OwnedFd) -> rustix::io::Result<Option<OwnedFd>> {
    let mut byte = [0];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    loop {
        let mut bytes = [IoSliceMut::new(&mut byte)];
        match rustix::net::recvmsg(socket, &mut bytes, &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error),
            Ok(_) => break,
        }
    }
    Ok(ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    }))
}

/// Unmounts; `lazy`: from sight at once, in fact when the last user leaves.
pub(super) fn unmount(dir: &Path, lazy: bool) -> io::Result<()> {
    let flags = UnmountFlags::NOFOLLOW | if lazy { UnmountFlags::DETACH } else { UnmountFlags::empty() };
    match rustix::mount::unmount(dir, flags) {
        Err(rustix::io::Errno::PERM) => {
            let mut command = Command::new(HELPER);
            command.arg("-u").args(lazy.then_some("-z")).arg("--").arg(dir).stdin(Stdio::null());
            let output = command.output()?;
            let failed = || io::Error::from_raw_os_error(libc::EBUSY);
            if output.status.success() { Ok(()) } else { Err(failed()) }
        }
        done => Ok(done?),
    }
}

/// Ends the connection, whoever uses it, and unmounts: applications that still have
/// files open get ENOTCONN.
pub(super) fn abort(dir: &Path) -> io::Result<()> {
    // MNT_FORCE ends the connection even where the unmounting itself then finds users.
    match rustix::mount::unmount(dir, UnmountFlags::NOFOLLOW | UnmountFlags::FORCE) {
        Ok(()) => Ok(()),
        Err(_) => unmount(dir, true),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_topmost_mount_counts_and_escapes_are_undone() {
        let table = "\
            25 1 254:0 / / rw - ext4 /dev/vda rw\n\
            40 25 0:40 / /mnt/a\\040b rw shared:1 - tmpfs tmpfs rw\n\
            41 25 0:41 / /mnt/a\\040b rw - fuse.litefs litefs rw,user_id=0\n";
        assert_eq!(type_at(table, "/mnt/a b").as_deref(), Some("fuse.litefs"));
        assert_eq!(type_at(table, "/").as_deref(), Some("ext4"));
        assert_eq!(type_at(table, "/mnt"), None);
    }

    #[test]
    fn a_mount_point_must_be_an_empty_directory_and_is_made_if_missing() {
        let dir = tempfile::tempdir().expect("a directory");
        let point = dir.path().join("deep").join("mnt");
        assert_eq!(prepare(&point).expect("made"), point.canonicalize().expect("there"));
        std::fs::write(point.join("x"), b"").expect("write");
        let error = prepare(&point).expect_err("not empty");
        assert!(matches!(error, MountError::NotEmpty { .. }), "{error}");
        let error = prepare(&point.join("x")).expect_err("a file");
        assert!(matches!(error, MountError::NotADirectory { .. }), "{error}");
    }
}
