//! What a replica says.

use crate::words::{ClusterId, DbName, NodeId, Pos};

use super::decoder::{Fault, Message, frame, put_version, version};
use super::fields::{Input, put_positions, put_text};

const HELLO: u8 = 1;
const AT: u8 = 2;
const READY: u8 = 3;
const BEAT: u8 = 4;

/// Who a replica is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Its cluster.
    pub cluster: ClusterId,
    /// Its id.
    pub node: NodeId,
    /// Its name for people.
    pub hostname: String,
}

/// A frame from a replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Up {
    /// The first.
    Hello(Hello),
    /// Where databases stand: before `Ready` all that the replica has, later those
    /// that moved.
    At(Vec<(DbName, Pos)>),
    /// The beginning is over: the primary may speak.
    Ready,
    /// It is alive.
    Beat,
}

impl Message for Up {
    fn read(kind: u8, payload: &[u8]) -> Result<Option<Up>, Fault> {
        let mut input = Input(payload);
        let frame = match kind {
            HELLO => {
                version(&mut input)?;
                hello(&mut input).map(Up::Hello)
            }
            AT => input.positions().map(Up::At),
            READY => Some(Up::Ready),
            BEAT => Some(Up::Beat),
            other => return Err(Fault::Kind(other)),
        };
        Ok(frame.filter(|_| input.0.is_empty()))
    }

    fn write(&self, out: &mut Vec<u8>) {
        match self {
            Up::Hello(hello) => frame(out, HELLO, |out| {
                put_version(out);
                out.extend_from_slice(&hello.cluster.get().to_be_bytes());
                out.extend_from_slice(&hello.node.get().to_be_bytes());
                put_text(out, &hello.hostname);
            }),
            Up::At(positions) => frame(out, AT, |out| put_positions(out, positions)),
            Up::Ready => frame(out, READY, |_| ()),
            Up::Beat => frame(out, BEAT, |_| ()),
        }
    }
}

fn hello(input: &mut Input<'_>) -> Option<Hello> {
    Some(Hello { cluster: input.cluster()?, node: input.node()?, hostname: input.text()?.to_owned() })
}
