//! Reading the archive's head: manifest, list of the log, segments. A handful of
//! sequential requests for any number of databases. Must not write, but for the
//! manifest of a new archive.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;

use super::error::{ArchiveError, ChainFault};
use super::head::Head;
use super::manifest::Manifest;
use super::segment::{self, Segment, SegmentFault};
use super::{Archive, Options, keys};
use crate::object::{Etag, ObjectErrorKind, ObjectInfo, ObjectStore, PutCond};
use crate::words::{ClusterId, Seq};

/// Segments up to this size are read whole, of larger ones the head only.
const WHOLE: u64 = 256 << 10;
/// What is read first of a larger one.
const FIRST: u64 = 64 << 10;
/// How often reading starts again when upkeep removes segments meanwhile.
const ATTEMPTS: usize = 8;
const LEAST_GRACE: Duration = Duration::from_secs(60);

impl Archive {
    /// Opens the archive in `store`.
    ///
    /// # Errors
    /// `NoArchive` if there is none.
    pub fn open(store: Arc<dyn ObjectStore>, options: Options) -> Result<Archive, ArchiveError> {
        Archive::open_manifest(store, options).map(|(archive, _)| archive)
    }

    /// Opens the archive in `store` and reads its head.
    ///
    /// # Errors
    /// As `open` and `head`.
    pub fn open_at_head(
        store: Arc<dyn ObjectStore>,
        options: Options,
    ) -> Result<(Archive, Head), ArchiveError> {
        let begun = options.clock.elapsed();
        let (archive, manifest) = Archive::open_manifest(store, options)?;
        let head = archive.read_head(None, Some((begun, manifest)))?;
        Ok((archive, head))
    }

    fn open_manifest(
        store: Arc<dyn ObjectStore>,
        options: Options,
    ) -> Result<(Archive, (Manifest, Etag)), ArchiveError> {
        match read_manifest(store.as_ref())? {
            Some(found) => Ok((Archive { store, cluster: found.0.cluster, options }, found)),
            None => match leftover(store.as_ref())? {
                Some(example) => Err(ArchiveError::NoManifest { store: store.describe(), example }),
                None => Err(ArchiveError::NoArchive { store: store.describe() }),
            },
        }
    }

    /// Opens the archive in `store`, or makes one with a new cluster id if the store
    /// is empty.
    ///
    /// # Errors
    /// `NoManifest` if the store has objects of an archive but no manifest.
    pub fn open_or_init(store: Arc<dyn ObjectStore>, options: Options) -> Result<Archive, ArchiveError> {
        match Archive::open(store.clone(), options.clone()) {
            Err(ArchiveError::NoArchive { .. }) => {}
            other => return other,
        }
        let cluster = ClusterId::new((options.random)());
        let manifest = Manifest::new(cluster, (options.random)(), options.clock.now());
        let body = encode(&manifest)?;
        match store.put(keys::MANIFEST, body, PutCond::IfAbsent) {
            Ok(_) => Ok(Archive { store, cluster, options }),
            // Another node was faster, or it was this put and its reply was lost.
            Err(error) if matches!(error.kind, ObjectErrorKind::Precondition | ObjectErrorKind::Unknown) => {
                match read_manifest(store.as_ref())? {
                    Some((manifest, _)) => Ok(Archive { store, cluster: manifest.cluster, options }),
                    None => Err(error.into()),
                }
            }
            Err(error) => Err(error.into()),
        }
    }

    /// The head of the archive now.
    ///
    /// # Errors
    /// `Chain` if the log is not one chain.
    pub fn head(&self) -> Result<Head, ArchiveError> {
        self.read_head(None, None)
    }

    /// Brings `head` up to now; segments that it knows are not read again.
    ///
    /// # Errors
    /// As `head`; the head is as before then.
    pub fn refresh(&self, head: &mut Head) -> Result<(), ArchiveError> {
        *head = self.read_head(Some(head), None)?;
        Ok(())
    }

    /// Adds the next segment to `head`, if there is one: one request, no listing. Whether
    /// the head has moved.
    ///
    /// # Errors
    /// As `head`; the head is as before then.
    pub fn advance(&self, head: &mut Head) -> Result<bool, ArchiveError> {
        let before = head.seq();
        let long_tail = head.tail().len() as u64 > 4 * self.options.max_tail_segments;
        if !long_tail && !self.is_old(head.as_of) {
            let found = self.fetch(before.next(), None)?;
            // A number that was compacted meanwhile may have been taken by a writer that
            // slept through it: only a manifest that is young enough rules that out.
            if !self.is_old(head.as_of) {
                let Some((segment, bytes)) = found else { return Ok(false) };
                head.extend(Arc::new(segment), bytes)?;
                return Ok(true);
            }
        }
        self.refresh(head)?;
        Ok(head.seq() != before)
    }

    /// Whether segments after a manifest that was read at `as_of` may be deleted by now.
    /// Upkeep deletes compacted segments after a time of grace. Had this machine slept
    /// that long since it read the manifest, the end of the log might be one that was
    /// compacted away.
    fn is_old(&self, as_of: Duration) -> bool {
        let age = self.options.clock.elapsed().saturating_sub(as_of);
        age >= self.options.grace.max(LEAST_GRACE) / 2
    }

    /// The head. `known` is an older one, `read` a manifest that was just read, and
    /// since when, by the clock.
    fn read_head(
        &self,
        known: Option<&Head>,
        mut read: Option<(Duration, (Manifest, Etag))>,
    ) -> Result<Head, ArchiveError> {
        let mut fault = None;
        let clock = &self.options.clock;
        for _ in 0..ATTEMPTS {
            let (begun, (manifest, etag)) = match read.take() {
                Some(read) => read,
                None => (clock.elapsed(), self.manifest()?),
            };
            if manifest.cluster != self.cluster {
                let (expected, found) = (self.cluster, manifest.cluster);
                let seq = manifest.horizon.seq;
                return Err(ChainFault::OtherCluster { seq, expected, found }.into());
            }
            let horizon = manifest.horizon.seq;
            let manifest = Arc::new(manifest);
            let start = known.and_then(|head| head.rebase(manifest.clone(), etag.clone()));
            match self.follow(start.unwrap_or_else(|| Head::new(manifest, etag)))? {
                Ok(mut head) if !self.is_old(begun) => {
                    head.as_of = begun;
                    return Ok(head);
                }
                Ok(_) => {}
                // A missing segment is no fault if upkeep took it away meanwhile:
                // the manifest's horizon is beyond it then.
                Err(missing) if fault == Some((missing, horizon)) => {
                    return Err(ChainFault::Gap(missing).into());
                }
                Err(missing) => fault = Some((missing, horizon)),
            }
        }
        match fault {
            Some((missing, _)) => Err(ChainFault::Gap(missing).into()),
            None => Err(ArchiveError::Conflict),
        }
    }

    fn manifest(&self) -> Result<(Manifest, Etag), ArchiveError> {
        read_manifest(self.store.as_ref())?.ok_or_else(|| ArchiveError::NoManifest {
            store: self.store.describe(),
            example: keys::MANIFEST.to_owned(),
        })
    }

    /// Adds the segments after the head, up to the end of the log. The inner error
    /// is a segment that is missing in between.
    fn follow(&self, mut head: Head) -> Result<Result<Head, Seq>, ArchiveError> {
        loop {
            let from = head.seq();
            let listed = self.store.list(keys::LOG, Some(&keys::segment(from)))?;
            let listed: Vec<(Seq, u64)> = listed
                .iter()
                .filter_map(|info: &ObjectInfo| Some((keys::parse_segment(&info.key)?, info.size)))
                .filter(|(seq, _)| *seq > from)
                .collect();
            // Listings of some stores lag behind (facts: R2): so the end of the log
            // is a segment that was asked for and is not there.
            let mut wanted = Vec::new();
            let mut next = from.next();
            let end = listed.last().map_or(from, |(seq, _)| *seq);
            for (seq, size) in listed {
                if seq != next {
                    break;
                }
                wanted.push((seq, Some(size)));
                next = next.next();
            }
            wanted.push((next, None));
            let goes_on = end > next;
            let fetched = in_parallel(self.options.parallel, &wanted, |(seq, size)| self.fetch(*seq, *size));
            let mut ended = false;
            for ((seq, size), fetched) in wanted.into_iter().zip(fetched) {
                match fetched? {
                    Some((segment, bytes)) => head.extend(Arc::new(segment), bytes)?,
                    None if size.is_some() => return Ok(Err(seq)),
                    None => ended = true,
                }
            }
            if ended {
                return Ok(if goes_on { Err(next) } else { Ok(head) });
            }
        }
    }

    /// Reads one segment; `None` if it is not there.
    fn fetch(&self, seq: Seq, size: Option<u64>) -> Result<Option<(Segment, Option<Bytes>)>, ArchiveError> {
        let key = keys::segment(seq);
        let damaged = |fault: SegmentFault| ArchiveError::damaged(&key, fault);
        let Some(size) = size.filter(|size| *size > WHOLE) else {
            let Some(object) = self.store.get(&key)? else { return Ok(None) };
            let segment = segment::decode(&object.body).map_err(damaged)?;
            return Ok(Some((segment, Some(object.body))));
        };
        let mut len = FIRST;
        loop {
            let bytes = match self.store.get_range(&key, 0, len) {
                Ok(bytes) => bytes,
                Err(error) if error.kind == ObjectErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(error.into()),
            };
            match segment::decode_head(&bytes) {
                Ok(segment) if segment.size == size => return Ok(Some((segment, None))),
                Ok(_) => return Err(damaged(SegmentFault::Body)),
                Err(SegmentFault::Short(need)) if need > len && need <= size => len = need,
                Err(fault) => return Err(damaged(fault)),
            }
        }
    }
}

/// The manifest and its version; `None` if there is none.
pub(super) fn read_manifest(store: &dyn ObjectStore) -> Result<Option<(Manifest, Etag)>, ArchiveError> {
    let Some(object) = store.get(keys::MANIFEST)? else { return Ok(None) };
    let manifest =
        Manifest::decode(&object.body).map_err(|fault| ArchiveError::damaged(keys::MANIFEST, fault))?;
    Ok(Some((manifest, object.etag)))
}

pub(super) fn encode(manifest: &Manifest) -> Result<Bytes, ArchiveError> {
    let bytes = manifest.encode().map_err(|fault| ArchiveError::damaged(keys::MANIFEST, fault))?;
    Ok(bytes.into())
}

/// An object of an archive without a manifest.
fn leftover(store: &dyn ObjectStore) -> Result<Option<String>, ArchiveError> {
    for prefix in [keys::LOG, keys::DATABASES] {
        if let Some(info) = store.list(prefix, None)?.into_iter().next() {
            return Ok(Some(info.key));
        }
    }
    Ok(None)
}

/// Does `work` for each item, on up to `threads` threads; results in the items' order.
pub(crate) fn in_parallel<T: Sync, R: Send>(
    threads: usize,
    items: &[T],
    work: impl Fn(&T) -> R + Sync,
) -> Vec<R> {
    let threads = threads.min(items.len());
    if threads <= 1 {
        return items.iter().map(work).collect();
    }
    let next = AtomicUsize::new(0);
    let done = Mutex::new(Vec::with_capacity(items.len()));
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let Some(item) = items.get(at) else { break };
                    let result = work(item);
                    done.lock().push((at, result));
                }
            });
        }
    });
    let mut done = done.into_inner();
    done.sort_by_key(|(at, _)| *at);
    done.into_iter().map(|(_, result)| result).collect()
}
