//! What a failed S3 request means to the caller and what a person can do about it:
//! the one map from the SDK's errors. Must not retry or decide anything else.

use std::error::Error;
use std::fmt::Write as _;

use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};

use crate::object::{ObjectError, ObjectErrorKind, S3Location};

/// What is being attempted.
#[derive(Clone, Copy)]
pub(super) struct Attempt<'a> {
    pub(super) what: &'static str,
    pub(super) key: &'a str,
    pub(super) place: &'a S3Location,
    /// Whether it changes the store: then a lost reply leaves it unknown.
    pub(super) writes: bool,
}

impl Attempt<'_> {
    pub(super) fn error(&self, kind: ObjectErrorKind, why: impl Into<String>) -> ObjectError {
        let Attempt { what, key, place, .. } = self;
        ObjectError { kind, attempt: format!("{what} {key} in {place}"), why: why.into() }
    }

    /// The kind of a failure after which the request may have been carried out.
    fn lost(&self) -> ObjectErrorKind {
        if self.writes { ObjectErrorKind::Unknown } else { ObjectErrorKind::Unreachable }
    }

    /// No answer within the time allowed.
    pub(super) fn timed_out(&self) -> ObjectError {
        self.error(self.lost(), "no answer in time")
    }

    pub(super) fn classify<E>(&self, error: &SdkError<E, HttpResponse>) -> ObjectError
    where
        E: ProvideErrorMetadata + Error + 'static,
    {
        match error {
            SdkError::TimeoutError(_) => self.timed_out(),
            SdkError::DispatchFailure(failure) => {
                let text = chain_text(error);
                let kind = match failure.as_connector_error() {
                    Some(connector) if never_sent(connector) => ObjectErrorKind::Unreachable,
                    Some(_) => self.lost(),
                    // Credentials that could not be refreshed; nothing was sent.
                    None => ObjectErrorKind::Unreachable,
                };
                let remedy = if text.contains("certificate") {
                    "; the endpoint's certificate is not trusted: add its authority to the system's"
                } else {
                    ""
                };
                self.error(kind, format!("{text}{remedy}"))
            }
            SdkError::ServiceError(service) => {
                self.answered(service.raw().status().as_u16(), service.err().code(), service.err().message())
            }
            SdkError::ResponseError(response) => {
                let status = response.raw().status().as_u16();
                if (200..300).contains(&status) {
                    let text = chain_text(error);
                    return self.error(self.lost(), format!("the answer ended early or is not S3's: {text}"));
                }
                self.answered(status, None, None)
            }
            other => self.error(ObjectErrorKind::Refused, chain_text(other)),
        }
    }

    /// What the server's answer means.
    fn answered(&self, status: u16, code: Option<&str>, message: Option<&str>) -> ObjectError {
        let (kind, remedy) = self.meaning(status, code.unwrap_or_default());
        let mut why = format!("the server answered {status}");
        for part in [code, message].into_iter().flatten() {
            let _ = write!(why, " {part}");
        }
        self.error(kind, format!("{}{remedy}", why.trim_end_matches('.')))
    }

    fn meaning(&self, status: u16, code: &str) -> (ObjectErrorKind, &'static str) {
        use ObjectErrorKind::{NotFound, Precondition, Refused, Unreachable, Unsupported};
        match (status, code) {
            (_, "NoSuchBucket") => (Refused, ": create the bucket, or correct its name in the storage URL"),
            (_, "ExpiredToken" | "TokenRefreshRequired" | "ExpiredTokenException") => {
                (Refused, ": the session's credentials have expired, provide new ones")
            }
            (_, "InvalidAccessKeyId" | "InvalidToken" | "NotSignedUp") => {
                (Refused, ": the server does not know these credentials, check AWS_ACCESS_KEY_ID")
            }
            (_, "SignatureDoesNotMatch") => (Refused, ": check AWS_SECRET_ACCESS_KEY, and the region"),
            (_, "RequestTimeTooSkewed" | "RequestExpired") => {
                (Refused, ": this machine's clock is off, set it (NTP)")
            }
            (
                _,
                "PermanentRedirect" | "AuthorizationHeaderMalformed" | "IllegalLocationConstraintException",
            )
            | (301 | 302 | 307 | 308, _) => {
                (Refused, ": the bucket is in another region, set storage.region")
            }
            (412, _) | (409, "ObjectAlreadyExists") => (Precondition, ""),
            (409, _) => (Unreachable, ": another request on this object was in the way"),
            // If-Match on an object that is gone.
            (404, "NoSuchKey") if self.writes => (Precondition, ""),
            (404, "NoSuchKey" | "NotFound") => (NotFound, ""),
            (404, "NoSuchUpload") => (Unreachable, ": the upload was aborted by someone else"),
            (401 | 403, _) => (
                Refused,
                ": these credentials may not do it, grant s3:GetObject, s3:PutObject, s3:DeleteObject, s3:ListBucket and s3:AbortMultipartUpload",
            ),
            (501, _) | (400, "NotImplemented") => (Unsupported, ": the server cannot do this"),
            (408 | 429, _) | (_, "SlowDown" | "Throttling" | "ThrottlingException" | "TooManyRequests") => {
                (self.lost(), ": it is overloaded")
            }
            (500.., _) => (self.lost(), ""),
            (400, "RequestTimeout" | "IncompleteBody") => (Unreachable, ""),
            (_, "") => (Refused, ": this is not how S3 answers, check the endpoint"),
            _ => (Refused, ""),
        }
    }
}

/// Whether a connection failed before anything was sent on it.
fn never_sent(error: &(dyn Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if error.downcast_ref::<hyper_util::client::legacy::Error>().is_some_and(|error| error.is_connect()) {
            return true;
        }
        next = error.source();
    }
    false
}

/// An error and its causes in one line, without repetitions.
pub(super) fn chain_text(error: &(dyn Error + 'static)) -> String {
    let mut text = String::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let part = error.to_string();
        if !part.is_empty() && !text.contains(&part) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&part);
        }
        next = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place() -> S3Location {
        S3Location {
            bucket: "b".to_owned(),
            prefix: String::new(),
            endpoint: None,
            region: None,
            force_path_style: None,
            credentials: None,
        }
    }

    #[test]
    fn answers_mean_what_the_protocol_says() {
        use ObjectErrorKind as K;
        let place = place();
        for (writes, status, code, kind) in [
            (true, 412, "PreconditionFailed", K::Precondition),
            (true, 404, "NoSuchKey", K::Precondition),
            (false, 404, "NoSuchKey", K::NotFound),
            (true, 404, "NoSuchBucket", K::Refused),
            (false, 404, "", K::Refused),
            (true, 409, "ConditionalRequestConflict", K::Unreachable),
            (true, 501, "NotImplemented", K::Unsupported),
            (false, 403, "ExpiredToken", K::Refused),
            (false, 403, "RequestTimeTooSkewed", K::Refused),
            (false, 503, "SlowDown", K::Unreachable),
            (true, 503, "SlowDown", K::Unknown),
            (true, 500, "InternalError", K::Unknown),
            (false, 500, "", K::Unreachable),
            (false, 400, "InvalidBucketName", K::Refused),
        ] {
            let attempt = Attempt { what: "writing object", key: "k", place: &place, writes };
            let error = attempt.answered(status, Some(code), Some("Words."));
            assert_eq!(error.kind, kind, "{status} {code}: {error}");
            assert!(error.to_string().starts_with("writing object k in s3://b failed: the server answered"));
        }
    }
}
