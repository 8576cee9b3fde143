//! The server's bucket: objects, conditions, uploads, and the trouble it is told to
//! make. Must decide every condition under one lock.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::StreamExt as _;
use litefs::words::Clock as _;
use s3s::dto::*;
use s3s::{S3, S3Request, S3Response, S3Result, s3_error};

use super::{BUCKET, Quirks, State, Trouble};

#[derive(Clone)]
struct Stored {
    body: Bytes,
    etag: String,
    metadata: Option<Metadata>,
}

struct Upload {
    key: String,
    begun: SystemTime,
    metadata: Option<Metadata>,
    parts: BTreeMap<i32, (String, Bytes)>,
}

#[derive(Default)]
struct Content {
    objects: BTreeMap<String, Stored>,
    uploads: BTreeMap<String, Upload>,
    next_upload: u64,
}

/// One bucket; clones share it.
#[derive(Clone)]
pub struct Buckets {
    state: Arc<Mutex<State>>,
    content: Arc<Mutex<Content>>,
}

/// The condition of a write as it came over the wire.
struct Condition {
    if_none_match: Option<IfNoneMatch>,
    if_match: Option<IfMatch>,
    quoted: bool,
}

fn etag_of(body: &[u8]) -> String {
    let sum = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, body);
    format!("{sum:016x}{:016x}", body.len())
}

fn blob(body: Bytes) -> StreamingBlob {
    StreamingBlob::wrap(futures_util::stream::once(async move { Ok::<_, std::io::Error>(body) }))
}

fn broken_blob(body: &Bytes) -> StreamingBlob {
    let half = body.slice(..body.len() / 2);
    let broken = std::io::Error::from(std::io::ErrorKind::ConnectionReset);
    StreamingBlob::wrap(futures_util::stream::iter([Ok(half), Err(broken)]))
}

async fn read(body: Option<StreamingBlob>) -> S3Result<Bytes> {
    let mut content = Vec::new();
    let Some(mut body) = body else { return Ok(Bytes::new()) };
    while let Some(chunk) = body.next().await {
        content.extend_from_slice(&chunk.map_err(|_| s3_error!(IncompleteBody))?);
    }
    Ok(content.into())
}

impl Buckets {
    pub fn new(state: Arc<Mutex<State>>) -> Buckets {
        Buckets { state, content: Arc::default() }
    }

    pub fn open_uploads(&self) -> usize {
        self.content().uploads.len()
    }

    pub fn leave_upload(&self, key: &str, age: Duration) {
        let begun = SystemTime::now() - age;
        self.content().begin(key.to_owned(), begun, None);
    }

    pub fn metadata(&self, key: &str, name: &str) -> Option<String> {
        self.content().objects.get(key)?.metadata.as_ref()?.get(name).cloned()
    }

    fn content(&self) -> MutexGuard<'_, Content> {
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn quirks(&self) -> Quirks {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).quirks
    }

    /// Notes a request and finds the trouble it is to have.
    async fn enter(&self, op: &'static str, bucket: &str, key: &str) -> S3Result<Option<Trouble>> {
        let (latency, trouble) = {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            state.requests.push(format!("{op} {key}"));
            let rule = state.rules.iter_mut().find(|rule| rule.meets(op, key));
            let trouble = rule.map(|rule| {
                rule.times -= 1;
                rule.trouble
            });
            (state.latency, trouble)
        };
        if !latency.is_zero() {
            tokio::time::sleep(latency).await;
        }
        if bucket != BUCKET {
            return Err(s3_error!(NoSuchBucket, "there is no bucket {bucket}"));
        }
        Ok(trouble)
    }

    /// Carries a request out, with its trouble.
    async fn perform<T>(
        &self,
        trouble: Option<Trouble>,
        deed: impl Future<Output = S3Result<T>>,
    ) -> S3Result<S3Response<T>> {
        match trouble {
            None | Some(Trouble::Truncate) => deed.await.map(S3Response::new),
            Some(Trouble::Refuse) => Err(s3_error!(SlowDown)),
            Some(Trouble::Conflict) => Err(s3_error!(ConditionalRequestConflict)),
            Some(Trouble::Deny(code)) => {
                let code = s3s::S3ErrorCode::from_bytes(code.as_bytes()).expect("a code of S3");
                Err(s3s::S3Error::new(code))
            }
            Some(Trouble::DoThenFail) => {
                deed.await?;
                Err(s3_error!(InternalError))
            }
            Some(Trouble::DoThenHang) => {
                deed.await?;
                std::future::pending().await
            }
            Some(Trouble::Hang) => std::future::pending().await,
            Some(Trouble::Hold) => {
                self.healed().await;
                deed.await.map(S3Response::new)
            }
        }
    }

    /// Waits until all trouble is taken away.
    async fn healed(&self) {
        let held = || {
            let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            state.rules.iter().any(|rule| rule.trouble == Trouble::Hold)
        };
        while held() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Counts a read as long as the result lives.
    fn reading(&self) -> Reading {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.reads += 1;
        state.most_reads = state.most_reads.max(state.reads);
        Reading(Arc::clone(&self.state))
    }

    fn stored(&self, key: &str) {
        let now = litefs::words::SystemClock.elapsed();
        self.state.lock().unwrap_or_else(PoisonError::into_inner).stored.push((key.to_owned(), now));
    }
}

struct Reading(Arc<Mutex<State>>);

impl Drop for Reading {
    fn drop(&mut self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).reads -= 1;
    }
}

impl Content {
    fn begin(&mut self, key: String, begun: SystemTime, metadata: Option<Metadata>) -> String {
        self.next_upload += 1;
        let id = format!("upload-{}", self.next_upload);
        self.uploads.insert(id.clone(), Upload { key, begun, metadata, parts: BTreeMap::new() });
        id
    }

    fn check(&self, key: &str, condition: &Condition, quirks: Quirks) -> S3Result<()> {
        if condition.if_none_match.is_none() && condition.if_match.is_none() || quirks.ignores_conditions {
            return Ok(());
        }
        if quirks.refuses_conditions {
            return Err(s3_error!(NotImplemented));
        }
        let current = self.objects.get(key);
        if condition.if_none_match.is_some() && current.is_some() {
            return Err(s3_error!(PreconditionFailed));
        }
        match (&condition.if_match, current) {
            (None, _) => Ok(()),
            (Some(_), None) => Err(s3_error!(NoSuchKey)),
            (Some(_), Some(_)) if quirks.unquoted_etags && condition.quoted => {
                Err(s3_error!(PreconditionFailed))
            }
            (Some(ETagCondition::ETag(etag)), Some(current)) if etag.value() != current.etag => {
                Err(s3_error!(PreconditionFailed))
            }
            (Some(_), Some(_)) => Ok(()),
        }
    }
}

fn quoted<T>(request: &S3Request<T>) -> bool {
    request.headers.get("if-match").is_some_and(|value| value.as_bytes().starts_with(b"\""))
}

#[async_trait::async_trait]
impl S3 for Buckets {
    async fn put_object(&self, request: S3Request<PutObjectInput>) -> S3Result<S3Response<PutObjectOutput>> {
        let quoted = quoted(&request);
        let input = request.input;
        let trouble = self.enter("PutObject", &input.bucket, &input.key).await?;
        let body = read(input.body).await?;
        let condition = Condition { if_none_match: input.if_none_match, if_match: input.if_match, quoted };
        self.perform(trouble, async {
            let quirks = self.quirks();
            let mut content = self.content();
            content.check(&input.key, &condition, quirks)?;
            let etag = etag_of(&body);
            let stored = Stored { body, etag: etag.clone(), metadata: input.metadata };
            self.stored(&input.key);
            content.objects.insert(input.key, stored);
            Ok(PutObjectOutput { e_tag: Some(ETag::Strong(etag)), ..PutObjectOutput::default() })
        })
        .await
    }

    async fn get_object(&self, request: S3Request<GetObjectInput>) -> S3Result<S3Response<GetObjectOutput>> {
        let input = request.input;
        let _reading = self.reading();
        let trouble = self.enter("GetObject", &input.bucket, &input.key).await?;
        self.perform(trouble, async {
            let stored =
                self.content().objects.get(&input.key).cloned().ok_or_else(|| s3_error!(NoSuchKey))?;
            let total = stored.body.len() as u64;
            let mut content_range = None;
            let mut body = stored.body;
            if let Some(range) = input.range.filter(|_| !self.quirks().ignores_ranges) {
                let range = range.check(total).map_err(|_| s3_error!(InvalidRange))?;
                content_range = Some(format!("bytes {}-{}/{total}", range.start, range.end - 1));
                body = body.slice(range.start as usize..range.end as usize);
            }
            Ok(GetObjectOutput {
                content_length: Some(body.len() as i64),
                content_range,
                e_tag: Some(ETag::Strong(stored.etag)),
                body: Some(if trouble == Some(Trouble::Truncate) { broken_blob(&body) } else { blob(body) }),
                metadata: stored.metadata,
                ..GetObjectOutput::default()
            })
        })
        .await
    }

    async fn head_object(
        &self,
        request: S3Request<HeadObjectInput>,
    ) -> S3Result<S3Response<HeadObjectOutput>> {
        let input = request.input;
        let trouble = self.enter("HeadObject", &input.bucket, &input.key).await?;
        self.perform(trouble, async {
            let stored =
                self.content().objects.get(&input.key).cloned().ok_or_else(|| s3_error!(NoSuchKey))?;
            Ok(HeadObjectOutput {
                content_length: Some(stored.body.len() as i64),
                e_tag: Some(ETag::Strong(stored.etag)),
                metadata: stored.metadata,
                ..HeadObjectOutput::default()
            })
        })
        .await
    }

    async fn delete_object(
        &self,
        request: S3Request<DeleteObjectInput>,
    ) -> S3Result<S3Response<DeleteObjectOutput>> {
        let input = request.input;
        let trouble = self.enter("DeleteObject", &input.bucket, &input.key).await?;
        self.perform(trouble, async {
            self.content().objects.remove(&input.key);
            Ok(DeleteObjectOutput::default())
        })
        .await
    }

    async fn list_objects_v2(
        &self,
        request: S3Request<ListObjectsV2Input>,
    ) -> S3Result<S3Response<ListObjectsV2Output>> {
        let input = request.input;
        let prefix = input.prefix.unwrap_or_default();
        let trouble = self.enter("ListObjectsV2", &input.bucket, &prefix).await?;
        self.perform(trouble, async {
            let after = input.continuation_token.or(input.start_after);
            let page = usize::try_from(input.max_keys.unwrap_or(1000)).unwrap_or(1000).min(1000);
            let content = self.content();
            let mut found = content.objects.iter().filter(|(key, _)| {
                key.starts_with(&prefix) && after.as_ref().is_none_or(|after| *key > after)
            });
            let objects: Vec<Object> = found
                .by_ref()
                .take(page)
                .map(|(key, stored)| Object {
                    key: Some(key.clone()),
                    size: Some(stored.body.len() as i64),
                    e_tag: Some(ETag::Strong(stored.etag.clone())),
                    ..Object::default()
                })
                .collect();
            let more = found.next().is_some();
            let last = objects.last().and_then(|object| object.key.clone()).filter(|_| more);
            Ok(ListObjectsV2Output {
                key_count: Some(objects.len() as i32),
                contents: Some(objects),
                is_truncated: Some(more),
                next_continuation_token: last,
                ..ListObjectsV2Output::default()
            })
        })
        .await
    }

    async fn create_multipart_upload(
        &self,
        request: S3Request<CreateMultipartUploadInput>,
    ) -> S3Result<S3Response<CreateMultipartUploadOutput>> {
        let input = request.input;
        let trouble = self.enter("CreateMultipartUpload", &input.bucket, &input.key).await?;
        self.perform(trouble, async {
            let id = self.content().begin(input.key, SystemTime::now(), input.metadata);
            Ok(CreateMultipartUploadOutput { upload_id: Some(id), ..CreateMultipartUploadOutput::default() })
        })
        .await
    }

    async fn upload_part(
        &self,
        request: S3Request<UploadPartInput>,
    ) -> S3Result<S3Response<UploadPartOutput>> {
        let input = request.input;
        let trouble = self.enter("UploadPart", &input.bucket, &input.key).await?;
        let body = read(input.body).await?;
        self.perform(trouble, async {
            let etag = etag_of(&body);
            let mut content = self.content();
            let upload = content.uploads.get_mut(&input.upload_id).ok_or_else(|| s3_error!(NoSuchUpload))?;
            upload.parts.insert(input.part_number, (etag.clone(), body));
            Ok(UploadPartOutput { e_tag: Some(ETag::Strong(etag)), ..UploadPartOutput::default() })
        })
        .await
    }

    async fn complete_multipart_upload(
        &self,
        request: S3Request<CompleteMultipartUploadInput>,
    ) -> S3Result<S3Response<CompleteMultipartUploadOutput>> {
        let input = request.input;
        let trouble = self.enter("CompleteMultipartUpload", &input.bucket, &input.key).await?;
        self.perform(trouble, async {
            let mut content = self.content();
            let upload = content.uploads.get(&input.upload_id).ok_or_else(|| s3_error!(NoSuchUpload))?;
            let named = input.multipart_upload.and_then(|upload| upload.parts).unwrap_or_default();
            let mut body = Vec::new();
            for (n, part) in named.iter().enumerate() {
                let number = part.part_number.ok_or_else(|| s3_error!(InvalidPart))?;
                let (etag, bytes) = upload.parts.get(&number).ok_or_else(|| s3_error!(InvalidPart))?;
                if part.e_tag.as_ref().is_none_or(|named| named.value() != etag) {
                    return Err(s3_error!(InvalidPart));
                }
                if n + 1 < named.len() && bytes.len() < 5 << 20 {
                    return Err(s3_error!(EntityTooSmall));
                }
                body.extend_from_slice(bytes);
            }
            let etag = format!("{}-{}", etag_of(&body), named.len());
            let stored = Stored { body: body.into(), etag: etag.clone(), metadata: upload.metadata.clone() };
            content.objects.insert(input.key, stored);
            content.uploads.remove(&input.upload_id);
            Ok(CompleteMultipartUploadOutput {
                e_tag: Some(ETag::Strong(etag)),
                ..CompleteMultipartUploadOutput::default()
            })
        })
        .await
    }

    async fn abort_multipart_upload(
        &self,
        request: S3Request<AbortMultipartUploadInput>,
    ) -> S3Result<S3Response<AbortMultipartUploadOutput>> {
        let input = request.input;
        let trouble = self.enter("AbortMultipartUpload", &input.bucket, &input.key).await?;
        self.perform(trouble, async {
            match self.content().uploads.remove(&input.upload_id) {
                Some(_) => Ok(AbortMultipartUploadOutput::default()),
                None => Err(s3_error!(NoSuchUpload)),
            }
        })
        .await
    }

    async fn list_multipart_uploads(
        &self,
        request: S3Request<ListMultipartUploadsInput>,
    ) -> S3Result<S3Response<ListMultipartUploadsOutput>> {
        let input = request.input;
        let prefix = input.prefix.unwrap_or_default();
        let trouble = self.enter("ListMultipartUploads", &input.bucket, &prefix).await?;
        self.perform(trouble, async {
            let content = self.content();
            let uploads = content
                .uploads
                .iter()
                .filter(|(_, upload)| upload.key.starts_with(&prefix))
                .map(|(id, upload)| MultipartUpload {
                    key: Some(upload.key.clone()),
                    upload_id: Some(id.clone()),
                    initiated: Some(Timestamp::from(upload.begun)),
                    ..MultipartUpload::default()
                })
                .collect();
            Ok(ListMultipartUploadsOutput {
                uploads: Some(uploads),
                is_truncated: Some(false),
                ..ListMultipartUploadsOutput::default()
            })
        })
        .await
    }
}
