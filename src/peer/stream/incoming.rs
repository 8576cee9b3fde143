//! The replica's half of a stream: what comes, as whole change sets.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures_util::FutureExt as _;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::connect::{Follow, StreamError};
use super::spool::{ReceivedChange, Spool};
use crate::peer::wire::{Beat, Decoder, Down, Ending, Up, Welcome};
use crate::words::{ClusterId, DbName, NodeId, Pos};

/// What came.
#[derive(Debug)]
pub enum Received {
    /// A change set.
    Change(ReceivedChange),
    /// Everything committed before was said before.
    Beat(Beat),
    /// Where databases stand in the archive.
    Archived(Vec<(DbName, Pos)>),
    /// The archive knows what lies between the position here and this; see
    /// [`Down::Settle`].
    Settle {
        /// The database.
        db: DbName,
        /// The primary's position.
        pos: Pos,
    },
    /// The primary ends the stream.
    End(Ending),
}

/// A stream that a replica follows; it ends when this is dropped.
pub struct Following<'a> {
    runtime: &'a tokio::runtime::Runtime,
    url: String,
    cluster: ClusterId,
    node: NodeId,
    deadline: std::time::Duration,
    spool: PathBuf,
    cancel: CancellationToken,
    says: mpsc::Sender<Up>,
    body: Incoming,
    decoder: Decoder,
    coming: Option<Spool>,
    welcome: Option<Welcome>,
}

static SPOOLED: AtomicU64 = AtomicU64::new(0);

impl<'a> Following<'a> {
    pub(super) fn new(
        runtime: &'a tokio::runtime::Runtime,
        follow: &Follow,
        cancel: CancellationToken,
        says: mpsc::Sender<Up>,
        body: Incoming,
    ) -> Following<'a> {
        let unique = SPOOLED.fetch_add(1, Ordering::Relaxed);
        Following {
            runtime,
            url: follow.url.clone(),
            cluster: follow.hello.cluster,
            node: follow.hello.node,
            deadline: follow.pace.deadline,
            spool: follow.spool.join(format!("stream-{unique}.ltx")),
            cancel,
            says,
            body,
            decoder: Decoder::new(),
            coming: None,
            welcome: None,
        }
    }

    /// The first frame says who answers.
    pub(super) fn welcomed(mut self) -> Result<Following<'a>, StreamError> {
        let Down::Welcome(welcome) = self.frame()? else {
            return Err(self.disorder("it does not begin with a welcome"));
        };
        if welcome.cluster != self.cluster {
            let (expected, found) = (self.cluster, welcome.cluster);
            return Err(StreamError::OtherCluster { url: self.url.clone(), expected, found });
        }
        if welcome.node == self.node {
            return Err(self.disorder("it is this node's own: check lease.advertise-url"));
        }
        self.welcome = Some(welcome);
        Ok(self)
    }

    /// Who the primary is.
    pub fn welcome(&self) -> Option<&Welcome> {
        self.welcome.as_ref()
    }

    /// Tells the primary where databases stand here.
    pub fn at(&self, positions: Vec<(DbName, Pos)>) -> Result<(), StreamError> {
        for some in positions.chunks(crate::peer::wire::MAX_POSITIONS) {
            self.says.blocking_send(Up::At(some.to_vec())).map_err(|_| self.broken("it is closed"))?;
        }
        Ok(())
    }

    /// Waits for what comes next, as long as the primary is alive.
    ///
    /// # Errors
    /// The stream is over.
    pub fn receive(&mut self) -> Result<Received, StreamError> {
        loop {
            let frame = self.frame()?;
            if let Some(received) = self.take(frame)? {
                return Ok(received);
            }
        }
    }

    /// What has come already, if anything has as a whole.
    ///
    /// # Errors
    /// The stream is over.
    pub fn receive_at_once(&mut self) -> Result<Option<Received>, StreamError> {
        loop {
            while let Some(frame) = self.decoded()? {
                if let Some(received) = self.take(frame)? {
                    return Ok(Some(received));
                }
            }
            match self.body.frame().now_or_never() {
                Some(Some(Ok(frame))) => self.decoder.push(&frame.into_data().unwrap_or_default()),
                Some(Some(Err(error))) => return Err(self.broken(&error.to_string())),
                // Whoever waits for more is told of an end.
                Some(None) | None => return Ok(None),
            }
        }
    }

    fn take(&mut self, frame: Down) -> Result<Option<Received>, StreamError> {
        match (frame, self.coming.take()) {
            (Down::Change(head), None) => {
                self.coming = Some(Spool::new(head));
                Ok(None)
            }
            (Down::Data(data), Some(mut coming)) => {
                coming.push(&data, &self.spool).map_err(StreamError::Spool)?;
                self.coming = Some(coming);
                Ok(None)
            }
            (Down::Done(len), Some(coming)) => match coming.finish(len) {
                Some(change) => {
                    // A file of the last one may still be there.
                    let unique = SPOOLED.fetch_add(1, Ordering::Relaxed);
                    self.spool.set_file_name(format!("stream-{unique}.ltx"));
                    Ok(Some(Received::Change(change)))
                }
                None => Err(self.disorder("a change set has another length than it says")),
            },
            (Down::Beat(beat), None) => Ok(Some(Received::Beat(beat))),
            // It is only a sign of life.
            (Down::Archived(positions), None) if positions.is_empty() => Ok(None),
            (Down::Archived(positions), None) => Ok(Some(Received::Archived(positions))),
            (Down::Settle { db, pos }, None) => Ok(Some(Received::Settle { db, pos })),
            (Down::End(ending), None) => Ok(Some(Received::End(ending))),
            (Down::Welcome(_), _) => Err(self.disorder("it begins anew")),
            (Down::Data(_) | Down::Done(_), None) => Err(self.disorder("pages of no change set")),
            (_, Some(_)) => Err(self.disorder("a change set is cut off")),
        }
    }

    fn frame(&mut self) -> Result<Down, StreamError> {
        loop {
            if let Some(frame) = self.decoded()? {
                return Ok(frame);
            }
            let block = self.block()?;
            self.decoder.push(&block);
        }
    }

    fn decoded(&mut self) -> Result<Option<Down>, StreamError> {
        let url = &self.url;
        self.decoder.take_frame().map_err(|fault| StreamError::Fault { url: url.clone(), fault })
    }

    fn block(&mut self) -> Result<Bytes, StreamError> {
        let (body, cancel, deadline) = (&mut self.body, &self.cancel, self.deadline);
        let came = self.runtime.block_on(async {
            tokio::select! {
                () = cancel.cancelled() => None,
                came = timeout(deadline, body.frame()) => Some(came),
            }
        });
        match came {
            None => Err(StreamError::Cancelled),
            Some(Err(_)) => Err(self.broken(&format!("nothing came for {} ms", deadline.as_millis()))),
            Some(Ok(None)) => Err(self.broken("the primary closed it")),
            Some(Ok(Some(Err(error)))) => Err(self.broken(&error.to_string())),
            Some(Ok(Some(Ok(frame)))) => Ok(frame.into_data().unwrap_or_default()),
        }
    }

    fn broken(&self, why: &str) -> StreamError {
        StreamError::Broken { url: self.url.clone(), why: why.to_owned() }
    }

    fn disorder(&self, why: &'static str) -> StreamError {
        StreamError::Disorder { url: self.url.clone(), why }
    }
}
