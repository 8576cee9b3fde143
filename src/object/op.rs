//! The kinds of calls on a store, for counting them and making them fail.

/// A kind of call on an object store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    /// A whole object is read.
    Get,
    /// A part of an object is read.
    GetRange,
    /// An object's size is asked for.
    Head,
    /// An object is written.
    Put,
    /// A file is written as an object.
    PutFile,
    /// An object is deleted.
    Delete,
    /// Keys are listed.
    List,
}

impl Op {
    /// Every kind, in the order of `index`.
    pub const ALL: [Op; 7] = [Op::Get, Op::GetRange, Op::Head, Op::Put, Op::PutFile, Op::Delete, Op::List];

    /// Its place in `ALL`.
    pub(super) fn index(self) -> usize {
        self as usize
    }

    /// Whether it changes the store.
    pub fn writes(self) -> bool {
        matches!(self, Op::Put | Op::PutFile | Op::Delete)
    }
}
