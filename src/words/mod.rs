//! The words of the project: a type for every number and name that means
//! something, so that a wrong argument does not compile, and the seams (clock,
//! faults) that tests replace. Must not know any format, file layout or protocol.

mod checksum;
mod clock;
mod faults;
mod name;
mod numbers;
mod writeback;

pub use checksum::{Checksum, PageSum};
pub use clock::{Clock, ManualClock, SystemClock, Timestamp};
pub use faults::{FaultAction, Faults};
pub use name::{BadDbName, ClusterId, DbName, HaltId, NodeId};
pub use numbers::{BadPageSize, Epoch, PageSize, Pgno, Pos, Seq, Txid};
pub use writeback::start_writing;
