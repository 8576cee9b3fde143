//! Reading from S3: whole objects and ranges, large ones in parallel parts, listings.
//! Must not change anything there.

use aws_sdk_s3::error::{ProvideErrorMetadata as _, SdkError};
use aws_sdk_s3::operation::get_object::GetObjectOutput;
use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt as _, TryStreamExt as _};

use super::bulk::PART;
use super::classify::Attempt;
use super::{Core, READS_AT_A_TIME};
use crate::object::{Etag, Object, ObjectError, ObjectErrorKind, ObjectInfo, key};

/// Beyond the largest object that any provider allows; a position after it is after
/// the object's end, and some servers cannot parse larger numbers.
const BEYOND: u64 = 1 << 60;

/// One answered request for content.
struct Part {
    body: Bytes,
    etag: Etag,
    /// The size of the whole object.
    total: u64,
}

/// An answer that holds no content.
enum Nothing {
    NoObject,
    /// The range begins at or after the object's end.
    PastEnd,
}

impl Core {
    pub(super) async fn get(&self, key: &str) -> Result<Option<Object>, ObjectError> {
        match self.content(key, 0, BEYOND).await? {
            Ok((body, etag)) => Ok(Some(Object { body, etag })),
            Err(Nothing::NoObject) => Ok(None),
            // An empty object has no byte 0.
            Err(Nothing::PastEnd) => match self.part(key, None).await? {
                Ok(part) => Ok(Some(Object { body: part.body, etag: part.etag })),
                Err(_) => Ok(None),
            },
        }
    }

    pub(super) async fn get_range(&self, key: &str, offset: u64, len: u64) -> Result<Bytes, ObjectError> {
        let missing = || {
            self.reading("reading object", key).error(ObjectErrorKind::NotFound, "there is no such object")
        };
        if len == 0 || offset >= BEYOND {
            return self.head(key).await?.map(|_| Bytes::new()).ok_or_else(missing);
        }
        match self.content(key, offset, offset.saturating_add(len).min(BEYOND)).await? {
            Ok((body, _)) => Ok(body),
            Err(Nothing::PastEnd) => Ok(Bytes::new()),
            Err(Nothing::NoObject) => Err(missing()),
        }
    }

    /// The bytes from `begin` to `end` or the object's end: the first part tells how
    /// many there are, the others follow in parallel.
    async fn content(
        &self,
        key: &str,
        begin: u64,
        end: u64,
    ) -> Result<Result<(Bytes, Etag), Nothing>, ObjectError> {
        let attempt = self.reading("reading object", key);
        for _ in 0..3 {
            let first = match self.part(key, Some((begin, end.min(begin.saturating_add(PART))))).await? {
                Ok(part) => part,
                Err(nothing) => return Ok(Err(nothing)),
            };
            let end = end.min(first.total);
            let have = begin + first.body.len() as u64;
            if have >= end {
                return Ok(Ok((first.body, first.etag)));
            }
            let ranges = (have..end).step_by(PART as usize).map(|from| (from, end.min(from + PART)));
            let parts: Vec<_> = futures_util::stream::iter(ranges)
                .map(|range| self.part(key, Some(range)))
                .buffered(READS_AT_A_TIME)
                .try_collect()
                .await?;
            let mut body = BytesMut::with_capacity((end - begin) as usize);
            body.extend_from_slice(&first.body);
            for part in parts.into_iter().flatten().filter(|part| part.etag == first.etag) {
                body.extend_from_slice(&part.body);
            }
            if body.len() as u64 == end - begin {
                return Ok(Ok((body.freeze(), first.etag)));
            }
            // Overwritten between two parts: begin again.
        }
        Err(attempt
            .error(ObjectErrorKind::Unreachable, "it was overwritten again and again while it was read"))
    }

    /// One request for content, again if the answer breaks off (the SDK retries only
    /// until the answer begins).
    async fn part(&self, key: &str, range: Option<(u64, u64)>) -> Result<Result<Part, Nothing>, ObjectError> {
        let attempt = self.reading("reading object", key);
        let mut tries = self.patience.attempts;
        loop {
            tries -= 1;
            match self.part_once(&attempt, key, range).await {
                Err(error) if tries > 0 && error.kind == ObjectErrorKind::Damaged => {}
                Err(error) if error.kind == ObjectErrorKind::Damaged => {
                    return Err(ObjectError { kind: ObjectErrorKind::Unreachable, ..error });
                }
                other => return other,
            }
        }
    }

    async fn part_once(
        &self,
        attempt: &Attempt<'_>,
        key: &str,
        range: Option<(u64, u64)>,
    ) -> Result<Result<Part, Nothing>, ObjectError> {
        let clients = self.clients(attempt).await?;
        let _permit = self.reads.acquire().await;
        let request = clients
            .plain
            .get_object()
            .bucket(&self.place.bucket)
            .key(self.place.full_key(key))
            .set_range(range.map(|(begin, end)| format!("bytes={begin}-{}", end - 1)));
        let output = match request.send().await {
            Ok(output) => output,
            Err(SdkError::ServiceError(service)) if service.raw().status().as_u16() == 416 => {
                return Ok(Err(Nothing::PastEnd));
            }
            Err(error) => {
                let error = attempt.classify(&error);
                return match error.kind {
                    ObjectErrorKind::NotFound => Ok(Err(Nothing::NoObject)),
                    _ => Err(error),
                };
            }
        };
        self.receive(attempt, output, range).await.map(Ok)
    }

    /// Takes an answer's content in, checked against what the answer announced.
    async fn receive(
        &self,
        attempt: &Attempt<'_>,
        output: GetObjectOutput,
        range: Option<(u64, u64)>,
    ) -> Result<Part, ObjectError> {
        let not_s3 = || {
            attempt
                .error(ObjectErrorKind::Refused, "the answer has no ETag: this is not S3, check the endpoint")
        };
        let etag = Etag(output.e_tag.clone().ok_or_else(not_s3)?);
        let announced = output.content_length.and_then(|length| u64::try_from(length).ok());
        let total = output.content_range.as_deref().and_then(|text| text.rsplit('/').next()?.parse().ok());
        let whole = output.content_range.is_none();
        let body = tokio::time::timeout(self.patience.answer, output.body.collect())
            .await
            .map_err(|_| attempt.error(ObjectErrorKind::Damaged, "the content did not arrive in time"))?
            .map_err(|error| {
                let text = super::classify::chain_text(&error);
                attempt.error(ObjectErrorKind::Damaged, format!("the answer broke off: {text}"))
            })?
            .into_bytes();
        if announced.is_some_and(|announced| announced != body.len() as u64) {
            return Err(attempt.error(ObjectErrorKind::Damaged, "the answer is shorter than announced"));
        }
        match (range, total) {
            (Some(_), Some(total)) => Ok(Part { body, etag, total }),
            // A server that ignores the range sends the whole object.
            (Some((begin, end)), None) if whole => {
                let total = body.len() as u64;
                let (begin, end) = (begin.min(total) as usize, end.min(total) as usize);
                Ok(Part { body: body.slice(begin..end), etag, total })
            }
            (None, _) => Ok(Part { total: body.len() as u64, body, etag }),
            (Some(_), None) => Err(attempt.error(
                ObjectErrorKind::Refused,
                "the answer does not tell the object's size: this is not S3, check the endpoint",
            )),
        }
    }

    /// Size and version of an object.
    pub(super) async fn head(&self, key: &str) -> Result<Option<(u64, Etag)>, ObjectError> {
        let attempt = self.reading("looking up object", key);
        let clients = self.clients(&attempt).await?;
        let request = clients.plain.head_object().bucket(&self.place.bucket).key(self.place.full_key(key));
        match request.send().await {
            Ok(output) => {
                let size = output.content_length.and_then(|length| u64::try_from(length).ok());
                Ok(size.zip(output.e_tag.map(Etag)))
            }
            // The answer to a HEAD has no body, so a 404 has no code to tell what is missing.
            Err(SdkError::ServiceError(service)) if service.raw().status().as_u16() == 404 => Ok(None),
            Err(error) => Err(attempt.classify(&error)),
        }
    }

    pub(super) async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
    ) -> Result<Vec<ObjectInfo>, ObjectError> {
        let attempt = self.reading("listing objects", prefix);
        let clients = self.clients(&attempt).await?;
        let mut pages = clients
            .plain
            .list_objects_v2()
            .bucket(&self.place.bucket)
            .prefix(self.place.full_key(prefix))
            .set_start_after(after.map(|after| self.place.full_key(after)))
            .into_paginator()
            .send();
        let mut found = Vec::new();
        while let Some(page) = pages.next().await {
            let page = page.map_err(|error| match &error {
                SdkError::ServiceError(service) if service.err().code() == Some("NoSuchKey") => attempt
                    .error(ObjectErrorKind::Refused, "the server does not know listings: check the endpoint"),
                _ => attempt.classify(&error),
            })?;
            for object in page.contents.unwrap_or_default() {
                let name = object.key.as_deref().and_then(|name| self.place.own_key(name));
                // Markers of directories and the like are not ours.
                if let Some(name) = name.filter(|name| key::fault(name).is_none()) {
                    let size = object.size.and_then(|size| u64::try_from(size).ok()).unwrap_or(0);
                    found.push(ObjectInfo { key: name.to_owned(), size });
                }
            }
        }
        // Directory buckets list in no order.
        found.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        Ok(found)
    }
}
