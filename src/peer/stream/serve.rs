//! `POST /stream`: a replica says who it is and where it stands, and gets a reply
//! without end. Its request stays open, too: a replica that says nothing for too long
//! is given up.

use std::io;
use std::sync::Arc;

use axum::body::{Body, BodyDataStream};
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use futures_util::{StreamExt, stream};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::feed::Feed;
use super::outgoing::Outgoing;
use crate::peer::handlers::{Refusal, Shared, ask};
use crate::peer::service::ServiceError;
use crate::peer::wire::{Decoder, Fault, Hello, Message, Up};
use crate::words::{DbName, Pos};

/// What a stream is called in `Content-Type`.
pub(super) const MEDIA_TYPE: &str = "application/x-litefs-stream";

/// So many blocks wait for a peer at most.
const IN_FLIGHT: usize = 4;

/// More than the positions of a hundred thousand databases with names of usual length.
const MAX_GREETING: usize = 16 << 20;

/// The handler.
pub async fn stream(State(shared): State<Shared>, body: Body) -> Result<Response, Refusal> {
    let mut frames = Frames { body: body.into_data_stream(), decoder: Decoder::new(), received: 0 };
    let greeting = timeout(shared.patience.stall, frames.greeting()).await;
    let (hello, positions) = greeting.map_err(|_| bad("the stream's beginning took too long"))??;
    let feed = ask(&shared, move |service| service.feed(&hello, positions)).await?;
    let gone = CancellationToken::new();
    tokio::spawn(listen(frames, Arc::clone(&feed), gone.clone(), shared.pace.deadline));
    let (blocks, reply) = mpsc::channel(IN_FLIGHT);
    let outgoing = Outgoing {
        blocks,
        runtime: tokio::runtime::Handle::current(),
        patience: shared.patience.clone(),
        gone: gone.clone(),
        bytes: Vec::new(),
    };
    let (stopping, beat) = (shared.stopping.clone(), shared.pace.beat);
    tokio::task::spawn_blocking(move || {
        outgoing.run(feed.as_ref(), &stopping, beat);
        feed.close();
        // The other half ends, too: a replica that goes on talking holds up no stop.
        gone.cancel();
    });
    let reply =
        stream::unfold(reply, |mut reply| async move { reply.recv().await.map(|block| (block, reply)) });
    Ok(([(header::CONTENT_TYPE, MEDIA_TYPE)], Body::from_stream(reply)).into_response())
}

/// Takes in what the replica says until it says nothing any more.
async fn listen(
    mut frames: Frames,
    feed: Arc<dyn Feed>,
    gone: CancellationToken,
    deadline: std::time::Duration,
) {
    let why = loop {
        let came = tokio::select! {
            () = gone.cancelled() => break "the stream is over".to_owned(),
            came = timeout(deadline, frames.next()) => came,
        };
        match came {
            Ok(Ok(Some(Up::Beat))) => {}
            Ok(Ok(Some(Up::At(positions)))) => feed.at(positions),
            Ok(Ok(Some(Up::Hello(_) | Up::Ready))) => break "it began anew within a stream".to_owned(),
            Ok(Ok(None)) => break "it ended the stream".to_owned(),
            Ok(Err(error)) => break error.to_string(),
            Err(_) => break format!("nothing came from it for {} ms", deadline.as_millis()),
        }
    };
    tracing::debug!(why, "a replica is gone");
    gone.cancel();
    feed.close();
}

/// What a replica sends.
struct Frames {
    body: BodyDataStream,
    decoder: Decoder,
    received: usize,
}

#[derive(Debug, thiserror::Error)]
enum Unread {
    #[error(transparent)]
    Fault(#[from] Fault),
    #[error("the connection broke off: {0}")]
    Io(#[from] io::Error),
}

impl Frames {
    /// The next frame; `None` if the replica ended its half.
    async fn next(&mut self) -> Result<Option<Up>, Unread> {
        loop {
            if let Some(frame) = self.decoder.take_frame()? {
                return Ok(Some(frame));
            }
            match self.body.next().await {
                None => return Ok(None),
                Some(block) => {
                    let block = block.map_err(io::Error::other)?;
                    self.received = self.received.saturating_add(block.len());
                    self.decoder.push(&block);
                }
            }
        }
    }

    /// Everything up to `Ready`.
    async fn greeting(&mut self) -> Result<(Hello, Vec<(DbName, Pos)>), Refusal> {
        let Some(Up::Hello(hello)) = self.one().await? else {
            return Err(bad("a stream begins with a hello"));
        };
        let mut positions = Vec::new();
        loop {
            match self.one().await? {
                Some(Up::At(some)) => positions.extend(some),
                Some(Up::Ready) => return Ok((hello, positions)),
                Some(Up::Hello(_) | Up::Beat) => return Err(bad("a stream begins with positions")),
                None => return Err(bad("the stream ended before it began")),
            }
            if self.received > MAX_GREETING {
                return Err(bad(&format!("a stream's beginning has at most {MAX_GREETING} bytes")));
            }
        }
    }

    async fn one(&mut self) -> Result<Option<Up>, Refusal> {
        self.next().await.map_err(|unread| match unread {
            Unread::Fault(fault @ Fault::Version(_)) => {
                Refusal(ServiceError::NotSupported(fault.to_string()))
            }
            other => bad(&other.to_string()),
        })
    }
}

fn bad(text: &str) -> Refusal {
    Refusal(ServiceError::BadInput(text.to_owned()))
}

/// Appends a replica's beginning.
pub(super) fn greet(hello: &Hello, positions: &[(DbName, Pos)], out: &mut Vec<u8>) {
    Up::Hello(hello.clone()).write(out);
    for some in positions.chunks(crate::peer::wire::MAX_POSITIONS) {
        Up::At(some.to_vec()).write(out);
    }
    Up::Ready.write(out);
}
