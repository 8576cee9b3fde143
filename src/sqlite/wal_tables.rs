//! The tables of a wal-index in memory, for a writer of the WAL: which page each frame
//! holds, and the hash tables by which readers find a page's newest frame (file format
//! §4.5, wal.c: walIndexAppend). Must not touch files.

use crate::words::Pgno;

/// A wal-index grows by blocks of this many bytes (WALINDEX_PGSZ).
pub const BLOCK: usize = 32_768;

/// Frames of a block; of the first, less what the header takes (HASHTABLE_NPAGE,
/// HASHTABLE_NPAGE_ONE).
const FRAMES: u32 = 4096;
const FRAMES_FIRST: u32 = FRAMES - (super::wal_index::LEN as u32) / 4;

/// Slots of a block's hash table (HASHTABLE_NSLOT), two bytes each, after the frames.
const SLOTS: usize = 8192;
const SLOTS_AT: usize = BLOCK - 2 * SLOTS;

/// More changed slots than this, and a block is written as a whole.
const FEW: usize = 16;

/// Bytes to be written at an offset of `-shm`.
pub type Change = (u64, Vec<u8>);

/// The tables of one generation of a WAL.
#[derive(Debug, Default)]
pub struct Tables {
    frames: u32,
    blocks: Vec<Block>,
}

#[derive(Debug)]
struct Block {
    bytes: Box<[u8]>,
    /// Nothing of it is in the file, or more than a few slots changed.
    whole: bool,
    slots: Vec<usize>,
    /// Entries from here on (counted from 0) are not in the file.
    fresh_from: usize,
    entries: usize,
}

impl Block {
    fn new() -> Block {
        let bytes = vec![0; BLOCK].into_boxed_slice();
        Block { bytes, whole: true, slots: Vec::new(), fresh_from: 0, entries: 0 }
    }

    fn u16_at(&self, at: usize) -> u16 {
        self.bytes.get(at..at + 2).and_then(|two| two.first_chunk()).map_or(0, |two| u16::from_ne_bytes(*two))
    }

    fn put(&mut self, at: usize, value: &[u8]) {
        if let Some(place) = self.bytes.get_mut(at..at + value.len()) {
            place.copy_from_slice(value);
        }
    }

    fn push(&mut self, number: usize, pgno: Pgno) {
        let at = first_entry(number) + 4 * self.entries;
        self.put(at, &pgno.get().to_ne_bytes());
        self.entries += 1;
        let mut slot = pgno.get().wrapping_mul(383) as usize & (SLOTS - 1);
        while self.u16_at(SLOTS_AT + 2 * slot) != 0 {
            slot = (slot + 1) & (SLOTS - 1);
        }
        let index = u16::try_from(self.entries).unwrap_or(u16::MAX);
        self.put(SLOTS_AT + 2 * slot, &index.to_ne_bytes());
        if self.slots.len() < FEW {
            self.slots.push(SLOTS_AT + 2 * slot);
        } else {
            self.whole = true;
        }
    }

    fn changes(&mut self, number: usize) -> Vec<Change> {
        let base = (number * BLOCK) as u64;
        let slice = |from: usize, to: usize| {
            (base + from as u64, self.bytes.get(from..to).unwrap_or_default().to_vec())
        };
        let start = first_entry(number);
        let changes = if self.whole {
            vec![slice(start, BLOCK)]
        } else {
            let mut changes = Vec::with_capacity(self.slots.len() + 1);
            if self.fresh_from < self.entries {
                changes.push(slice(start + 4 * self.fresh_from, start + 4 * self.entries));
            }
            changes.extend(self.slots.iter().map(|slot| slice(*slot, slot + 2)));
            changes
        };
        (self.whole, self.fresh_from) = (false, self.entries);
        self.slots.clear();
        changes
    }
}

/// Where the entries of a block begin in it.
fn first_entry(number: usize) -> usize {
    if number == 0 { super::wal_index::LEN } else { 0 }
}

/// The block of a frame and its place in the block, from 0.
fn place(frame: u32) -> (usize, usize) {
    let zero = frame.saturating_sub(1);
    if zero < FRAMES_FIRST {
        (0, zero as usize)
    } else {
        let rest = zero - FRAMES_FIRST;
        (1 + (rest / FRAMES) as usize, (rest % FRAMES) as usize)
    }
}

impl Tables {
    /// How many frames there are.
    pub fn frames(&self) -> u32 {
        self.frames
    }

    /// Adds a frame, which holds this page.
    pub fn push(&mut self, pgno: Pgno) {
        let (number, _) = place(self.frames + 1);
        if number == self.blocks.len() {
            self.blocks.push(Block::new());
        }
        if let Some(block) = self.blocks.get_mut(number) {
            block.push(number, pgno);
            self.frames += 1;
        }
    }

    /// The page that a frame holds.
    pub fn page(&self, frame: u32) -> Option<Pgno> {
        let (number, entry) = place(frame);
        let block = self.blocks.get(number).filter(|_| frame > 0 && frame <= self.frames)?;
        let at = first_entry(number) + 4 * entry;
        Pgno::new(u32::from_ne_bytes(*block.bytes.get(at..at + 4)?.first_chunk()?))
    }

    /// Takes out every frame after the first `frames`.
    pub fn truncate(&mut self, frames: u32) {
        if frames >= self.frames {
            return;
        }
        let (number, _) = place(frames + 1);
        let before = number.checked_sub(1).map_or(0, |last| FRAMES_FIRST + last as u32 * FRAMES);
        let kept: Vec<Pgno> = (before + 1..=frames).filter_map(|frame| self.page(frame)).collect();
        self.blocks.truncate(number);
        self.frames = before;
        for pgno in kept {
            self.push(pgno);
        }
    }

    /// Says that the file may have other content: the next changes are all of it.
    pub fn forget_written(&mut self) {
        for block in &mut self.blocks {
            block.whole = true;
        }
    }

    /// What was not in the file at the last call, blocks in order. A block's first
    /// change is all of it, to its end: the file is then as long as SQLite makes it.
    pub fn take_changes(&mut self) -> Vec<Change> {
        self.blocks.iter_mut().enumerate().flat_map(|(number, block)| block.changes(number)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(number: u32) -> Pgno {
        Pgno::new(number).expect("not zero")
    }

    #[test]
    fn taking_frames_out_leaves_the_tables_that_never_had_them() {
        for (keep, all) in [(0, 10), (5, 30), (4062, 4063), (4062, 9000), (8158, 8159), (5000, 20_000)] {
            let (mut cut, mut never) = (Tables::default(), Tables::default());
            (1..=keep).for_each(|number| never.push(page(number * 7 % 1000 + 1)));
            (1..=all).for_each(|number| cut.push(page(number * 7 % 1000 + 1)));
            cut.take_changes();
            cut.truncate(keep);
            assert_eq!(cut.frames(), keep);
            let bytes =
                |tables: &Tables| tables.blocks.iter().map(|block| block.bytes.clone()).collect::<Vec<_>>();
            assert_eq!(bytes(&cut), bytes(&never), "{keep} of {all}");
        }
    }

    #[test]
    fn changes_written_one_by_one_make_the_same_file() {
        let (mut steps, mut file) = (Tables::default(), Vec::new());
        for number in 1..=9000 {
            steps.push(page(number * 31 % 3000 + 1));
            if number % 3 == 0 || number % 100 > 60 {
                for (at, bytes) in steps.take_changes() {
                    let at = usize::try_from(at).expect("small");
                    file.resize(file.len().max(at + bytes.len()), 0);
                    file[at..at + bytes.len()].copy_from_slice(&bytes);
                }
            }
        }
        let whole: Vec<u8> = steps.blocks.iter().flat_map(|block| block.bytes.to_vec()).collect();
        assert!(file == whole);
        assert_eq!(steps.page(4063), Some(page(4063 * 31 % 3000 + 1)));
        assert_eq!(steps.page(9001), None);
    }
}
