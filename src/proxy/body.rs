//! The bodies that pass through: never collected, a block at a time. Must not look at
//! their bytes.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};

use super::upstream::Loan;

/// A request's body on its way to the application or the primary.
pub enum Outgoing {
    /// The client's.
    Client(Incoming),
    /// None.
    Empty,
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match &mut *self {
            Outgoing::Client(body) => Pin::new(body).poll_frame(context),
            Outgoing::Empty => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Outgoing::Client(body) => body.is_end_stream(),
            Outgoing::Empty => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Outgoing::Client(body) => body.size_hint(),
            Outgoing::Empty => SizeHint::with_exact(0),
        }
    }
}

/// A reply's body on its way to the client.
pub enum Reply {
    /// The proxy's own words.
    Own(Option<Bytes>),
    /// What the other side sends. Dropped before its end, it ends the connection there:
    /// nobody waits for the rest.
    Passed {
        /// The body.
        body: Incoming,
        /// The connection that it comes by, until its end.
        loan: Option<Loan>,
    },
}

impl Reply {
    /// The body of a reply that came by `loan`.
    pub fn passed(body: Incoming, loan: Loan) -> Reply {
        let mut reply = Reply::Passed { body, loan: Some(loan) };
        // A body that is empty is never asked for.
        reply.give_back_at_end();
        reply
    }

    fn give_back_at_end(&mut self) {
        if let Reply::Passed { body, loan } = self
            && body.is_end_stream()
            && let Some(loan) = loan.take()
        {
            loan.give_back();
        }
    }
}

impl Body for Reply {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = match &mut *self {
            Reply::Own(text) => return Poll::Ready(text.take().map(|text| Ok(Frame::data(text)))),
            Reply::Passed { body, .. } => ready!(Pin::new(body).poll_frame(context)),
        };
        if let (None, Reply::Passed { loan, .. }) = (&frame, &mut *self)
            && let Some(loan) = loan.take()
        {
            loan.give_back();
        }
        self.give_back_at_end();
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Reply::Own(text) => text.is_none(),
            Reply::Passed { body, .. } => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Reply::Own(text) => SizeHint::with_exact(text.as_ref().map_or(0, |text| text.len() as u64)),
            Reply::Passed { body, .. } => body.size_hint(),
        }
    }
}
