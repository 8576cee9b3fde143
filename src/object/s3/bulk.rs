//! Files of any size to S3: one put, or a multipart upload whose parts go in
//! parallel, in memory one by one. Must leave no half uploads behind.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use aws_sdk_s3::types::{CompletedMultipartUpload, CompletedPart};
use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _};

use super::Core;
use super::classify::Attempt;
use super::write::dated;
use crate::object::{ObjectError, ObjectErrorKind, PutCond};
use crate::words::{Clock as _, SystemClock, Timestamp};

/// The size of a part, up and down: large enough that a request's latency does not
/// count, small enough to be sent again. S3 wants at least 5 MiB.
pub(super) const PART: u64 = 8 << 20;
/// S3 allows 10 000 parts.
const MOST_PARTS: u64 = 10_000;
/// Cloudflare R2 answers badly to more than a few parts of one upload at a time.
const PARTS_AT_A_TIME: usize = 3;
/// The name of the metadata that tells one upload's object from another's.
const MARK: &str = "litefs-upload";
/// Half uploads this old belong to nobody who lives; by the server's clock and ours,
/// which may differ by minutes.
const ORPHANED_AFTER: Duration = Duration::from_secs(24 * 3600);

impl Core {
    pub(super) async fn put_file(
        &self,
        key: &str,
        path: &Path,
        made: Option<Timestamp>,
    ) -> Result<(), ObjectError> {
        let attempt = self.writing("writing object", key);
        let unreadable = |error: std::io::Error| {
            attempt.error(ObjectErrorKind::Local, format!("reading {}: {error}", path.display()))
        };
        let file = Arc::new(File::open(path).map_err(unreadable)?);
        let size = file.metadata().map_err(unreadable)?.len();
        if size <= PART {
            let body = read_part(&file, 0, size).await.map_err(unreadable)?;
            return self.put(key, body, PutCond::Always, made).await.map(drop);
        }
        if !self.orphans_seen.swap(true, Ordering::Relaxed) {
            self.abort_orphans().await;
        }
        let mark = format!("{:032x}", rand::random::<u128>());
        let upload = self.begin_upload(&attempt, key, &mark, made).await?;
        let part_size = PART.max(size.div_ceil(MOST_PARTS).next_multiple_of(1 << 20));
        let sent = futures_util::stream::iter((0..size).step_by(part_size as usize).zip(1..))
            .map(|(offset, number)| {
                let (file, upload) = (Arc::clone(&file), &upload);
                async move {
                    let len = part_size.min(size - offset);
                    let body = read_part(&file, offset, len).await.map_err(unreadable)?;
                    self.send_part(&attempt, key, upload, number, body).await
                }
            })
            .buffered(PARTS_AT_A_TIME)
            .try_collect::<Vec<_>>()
            .await;
        let done = match sent {
            Ok(parts) => self.complete(&attempt, key, &upload, parts, &mark).await,
            Err(error) => Err(error),
        };
        if done.is_err() {
            self.abort(key, &upload).await;
        }
        done
    }

    async fn begin_upload(
        &self,
        attempt: &Attempt<'_>,
        key: &str,
        mark: &str,
        made: Option<Timestamp>,
    ) -> Result<String, ObjectError> {
        let clients = self.clients(attempt).await?;
        let request = clients
            .plain
            .create_multipart_upload()
            .bucket(&self.place.bucket)
            .key(self.place.full_key(key))
            .set_metadata(Some(
                [(MARK.to_owned(), mark.to_owned())].into_iter().chain(made.map(dated)).collect(),
            ));
        let output = request.send().await.map_err(|error| attempt.classify(&error))?;
        output.upload_id.ok_or_else(|| {
            attempt.error(
                ObjectErrorKind::Refused,
                "the answer names no upload: this is not S3, check the endpoint",
            )
        })
    }

    async fn send_part(
        &self,
        attempt: &Attempt<'_>,
        key: &str,
        upload: &str,
        number: i32,
        body: Bytes,
    ) -> Result<CompletedPart, ObjectError> {
        let clients = self.clients(attempt).await?;
        let request = clients
            .upload
            .upload_part()
            .bucket(&self.place.bucket)
            .key(self.place.full_key(key))
            .upload_id(upload)
            .part_number(number)
            .body(body.into());
        // A lost part changes nothing: the object appears with the completion.
        let output = request.send().await.map_err(|error| {
            let error = attempt.classify(&error);
            match error.kind {
                ObjectErrorKind::Unknown => ObjectError { kind: ObjectErrorKind::Unreachable, ..error },
                _ => error,
            }
        })?;
        Ok(CompletedPart::builder().part_number(number).set_e_tag(output.e_tag).build())
    }

    async fn complete(
        &self,
        attempt: &Attempt<'_>,
        key: &str,
        upload: &str,
        parts: Vec<CompletedPart>,
        mark: &str,
    ) -> Result<(), ObjectError> {
        let clients = self.clients(attempt).await?;
        let parts = CompletedMultipartUpload::builder().set_parts(Some(parts)).build();
        let request = clients
            .upload
            .complete_multipart_upload()
            .bucket(&self.place.bucket)
            .key(self.place.full_key(key))
            .upload_id(upload)
            .multipart_upload(parts);
        let error = match request.send().await {
            Ok(output) if output.e_tag.is_some() => return Ok(()),
            Ok(_) => attempt.error(ObjectErrorKind::Unknown, "the answer has no ETag"),
            Err(error) => attempt.classify(&error),
        };
        // It may have been carried out though its reply was lost; a retry then finds no
        // upload any more. The object itself tells whose it is.
        let look = clients.plain.head_object().bucket(&self.place.bucket).key(self.place.full_key(key));
        match look.send().await {
            Ok(found) if found.metadata().and_then(|data| data.get(MARK)).is_some_and(|m| m == mark) => {
                Ok(())
            }
            _ => Err(error),
        }
    }

    /// Gives an upload up; if that fails, it is an orphan for later.
    async fn abort(&self, key: &str, upload: &str) {
        let Ok(clients) = self.clients(&self.writing("aborting the upload of object", key)).await else {
            return;
        };
        let request = clients
            .plain
            .abort_multipart_upload()
            .bucket(&self.place.bucket)
            .key(self.place.full_key(key))
            .upload_id(upload);
        if let Err(error) = request.send().await {
            let error = self.writing("aborting the upload of object", key).classify(&error);
            tracing::debug!(%error, "an upload could not be given up; it is tried again another day");
        }
    }

    /// Gives up the uploads below this store's prefix that were begun long ago and never
    /// completed: they cost money and no listing of objects shows them.
    async fn abort_orphans(&self) {
        let attempt = self.reading("listing uploads below", "");
        let Ok(clients) = self.clients(&attempt).await else { return };
        let request =
            clients.plain.list_multipart_uploads().bucket(&self.place.bucket).prefix(self.place.full_key(""));
        let uploads = match request.send().await {
            Ok(output) => output.uploads.unwrap_or_default(),
            Err(error) => {
                let error = attempt.classify(&error);
                tracing::debug!(%error, "old uploads could not be looked for");
                return;
            }
        };
        let horizon = SystemClock.now().before(ORPHANED_AFTER).millis() / 1000;
        for upload in uploads {
            let key = upload.key.as_deref().and_then(|key| self.place.own_key(key));
            if let (Some(key), Some(id), Some(begun)) = (key, &upload.upload_id, upload.initiated)
                && begun.secs() < horizon
            {
                self.abort(key, id).await;
            }
        }
    }
}

async fn read_part(file: &Arc<File>, offset: u64, len: u64) -> std::io::Result<Bytes> {
    let file = Arc::clone(file);
    let read = move || {
        let mut body = vec![0; usize::try_from(len).unwrap_or(usize::MAX)];
        file.read_exact_at(&mut body, offset)?;
        Ok(body.into())
    };
    tokio::task::spawn_blocking(read).await.unwrap_or_else(|error| Err(std::io::Error::other(error)))
}
