//! Writing to S3: puts with and without conditions, deletes. Must not retry a
//! conditional put whose reply was lost.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use aws_sdk_s3::operation::put_object::builders::PutObjectFluentBuilder;
use bytes::Bytes;

use super::Core;
use crate::object::{Etag, ObjectError, ObjectErrorKind, PutCond};
use crate::words::Timestamp;

/// How often a conditional put is sent again that met another request on the same
/// key (409: it was not carried out).
const CONFLICT_TRIES: u32 = 5;

/// In which form the server wants ETags back in `If-Match`: as it sent them, or (the
/// Ceph family) without their quotes. Learned from the first success.
#[derive(Debug, Default)]
pub(super) struct Quoting(AtomicU8);

impl Quoting {
    const AS_IS: u8 = 1;
    const STRIPPED: u8 = 2;

    fn get(&self) -> u8 {
        self.0.load(Ordering::Relaxed)
    }

    fn learn(&self, form: u8) {
        self.0.store(form, Ordering::Relaxed);
    }
}

/// What is put.
#[derive(Clone)]
struct Content {
    body: Bytes,
    made: Option<Timestamp>,
}

/// The metadata in which Litestream's restore by time looks for when a file was made.
pub(super) fn dated(made: Timestamp) -> (String, String) {
    ("litestream-timestamp".to_owned(), made.to_string())
}

/// A put that failed.
struct FailedPut {
    /// It met another request on the same key and was not carried out.
    conflict: bool,
    error: ObjectError,
}

impl Core {
    pub(super) async fn put(
        &self,
        key: &str,
        body: Bytes,
        cond: PutCond,
        made: Option<Timestamp>,
    ) -> Result<Etag, ObjectError> {
        let content = Content { body, made };
        match cond {
            PutCond::Always => {
                let attempt = self.writing("writing object", key);
                let clients = self.clients(&attempt).await?;
                self.send_put(key, clients.upload.put_object(), content).await.map_err(|failed| failed.error)
            }
            PutCond::IfAbsent => self.put_once(key, content, |put| put.if_none_match("*")).await,
            PutCond::IfMatch(etag) => self.put_if_match(key, content, etag).await,
        }
    }

    async fn put_if_match(&self, key: &str, content: Content, etag: Etag) -> Result<Etag, ObjectError> {
        let stripped = etag.0.trim_matches('"').to_owned();
        if self.quoting.get() == Quoting::STRIPPED {
            return self.put_once(key, content, |put| put.if_match(stripped.clone())).await;
        }
        let quoted = self.put_once(key, content.clone(), |put| put.if_match(etag.0.clone())).await;
        let unmet = match quoted {
            Ok(new) => {
                self.quoting.learn(Quoting::AS_IS);
                return Ok(new);
            }
            Err(error) if error.kind == ObjectErrorKind::Precondition => error,
            Err(error) => return Err(error),
        };
        if self.quoting.get() == Quoting::AS_IS || stripped == etag.0 {
            return Err(unmet);
        }
        // The first conditional put on this server, and its condition is said not to
        // hold. If the object still has this ETag, the server compares it without quotes.
        match self.head(key).await {
            Ok(Some((_, current))) if current == etag => {
                let new = self.put_once(key, content, |put| put.if_match(stripped.clone())).await?;
                self.quoting.learn(Quoting::STRIPPED);
                Ok(new)
            }
            Ok(_) => Err(unmet),
            Err(error) => Err(ObjectError { kind: ObjectErrorKind::Unreachable, ..error }),
        }
    }

    /// Sends a put with a condition, once; again only while the server says that it
    /// was not carried out because of another request.
    async fn put_once(
        &self,
        key: &str,
        content: Content,
        condition: impl Fn(PutObjectFluentBuilder) -> PutObjectFluentBuilder,
    ) -> Result<Etag, ObjectError> {
        let attempt = self.writing("writing object", key);
        let clients = self.clients(&attempt).await?;
        let mut pause = Duration::from_millis(20);
        for _ in 1..CONFLICT_TRIES {
            match self.send_put(key, condition(clients.once.put_object()), content.clone()).await {
                Err(failed) if failed.conflict => {
                    tokio::time::sleep(pause.mul_f64(rand::random_range(0.5..1.5))).await;
                    pause *= 2;
                }
                other => return other.map_err(|failed| failed.error),
            }
        }
        self.send_put(key, condition(clients.once.put_object()), content).await.map_err(|failed| failed.error)
    }

    async fn send_put(
        &self,
        key: &str,
        put: PutObjectFluentBuilder,
        content: Content,
    ) -> Result<Etag, FailedPut> {
        let attempt = self.writing("writing object", key);
        let put = put.bucket(&self.place.bucket).key(self.place.full_key(key));
        let put = put.set_metadata(content.made.map(|made| HashMap::from([dated(made)])));
        let output = put.body(content.body.into()).send().await.map_err(|error| {
            let status = error.raw_response().map(|answer| answer.status().as_u16());
            let error = attempt.classify(&error);
            FailedPut { conflict: status == Some(409) && error.kind == ObjectErrorKind::Unreachable, error }
        })?;
        // S3 may answer 200 with an error in the body.
        output.e_tag.map(Etag).ok_or_else(|| FailedPut {
            conflict: false,
            error: attempt
                .error(ObjectErrorKind::Unknown, "the answer has no ETag: the put failed, or this is not S3"),
        })
    }

    pub(super) async fn delete(&self, key: &str) -> Result<(), ObjectError> {
        let attempt = self.writing("deleting object", key);
        let clients = self.clients(&attempt).await?;
        let request = clients.upload.delete_object().bucket(&self.place.bucket).key(self.place.full_key(key));
        match request.send().await {
            Ok(_) => Ok(()),
            Err(error) => match attempt.classify(&error) {
                // There was no such object.
                error if error.kind == ObjectErrorKind::Precondition => Ok(()),
                error => Err(error),
            },
        }
    }
}
