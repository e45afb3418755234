//! What a UEFI above the monitor has to be told: which RAM is left, and that PSCI is called by `smc`.
//!
//! QEMU describes the machine in a flattened device tree (Devicetree specification 0.4, chapter 5) for a firmware that owns
//! all of it. Changed are `/memory`, which ends where UEFI's own image lies; `/secram`, which is not for UEFI to use as
//! memory; and `/psci`.

use crate::layout::{RAM, UEFI};
use mm_comm::SharedRegion;

const MAGIC: u32 = 0xd00d_feed;
const BEGIN_NODE: u32 = 1;
const END_NODE: u32 = 2;
const PROPERTY: u32 = 3;
const NOP: u32 = 4;
const END: u32 = 9;

/// Header words, by index.
const STRUCT_OFFSET: usize = 2;
const STRINGS_OFFSET: usize = 3;
const RESERVATIONS_OFFSET: usize = 4;
const STRINGS_LEN: usize = 8;
const STRUCT_LEN: usize = 9;
const HEADER_WORDS: usize = 10;
/// One entry of zeroes: nothing is reserved.
const RESERVATIONS_LEN: usize = 16;

/// Why a tree was not changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TreeError {
    /// It lies outside RAM, or is larger than the memory to work in.
    NoRoom,
    /// It is none, or is damaged.
    Malformed,
    /// Something is reserved in it, which QEMU does not do.
    Reservations,
}

/// Bytes that are read from the front.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], TreeError> {
        let (taken, rest) = self.0.split_at_checked(len).ok_or(TreeError::Malformed)?;
        self.0 = rest;
        Ok(taken)
    }

    fn word(&mut self) -> Result<u32, TreeError> {
        let (word, rest) = self.0.split_first_chunk().ok_or(TreeError::Malformed)?;
        self.0 = rest;
        Ok(u32::from_be_bytes(*word))
    }

    fn len(&mut self) -> Result<usize, TreeError> {
        usize::try_from(self.word()?).map_err(|_too_large| TreeError::Malformed)
    }

    /// Takes `len` bytes, and those that fill the last word.
    fn padded(&mut self, len: usize) -> Result<&'a [u8], TreeError> {
        let padded = len.checked_next_multiple_of(4).ok_or(TreeError::Malformed)?;
        self.take(padded)?.get(..len).ok_or(TreeError::Malformed)
    }

    /// Takes a name and its NUL.
    fn name(&mut self) -> Result<&'a [u8], TreeError> {
        let len = self
            .0
            .iter()
            .position(|byte| *byte == 0)
            .ok_or(TreeError::Malformed)?;
        let name = self.padded(len.saturating_add(1))?;
        name.get(..len).ok_or(TreeError::Malformed)
    }
}

/// Bytes that are written to the front.
struct Writer<'a> {
    memory: &'a mut [u8],
    len: usize,
}

impl Writer<'_> {
    fn bytes(&mut self, bytes: &[u8]) -> Result<(), TreeError> {
        let end = self.len.checked_add(bytes.len()).ok_or(TreeError::NoRoom)?;
        self.memory
            .get_mut(self.len..end)
            .ok_or(TreeError::NoRoom)?
            .copy_from_slice(bytes);
        self.len = end;
        Ok(())
    }

    fn word(&mut self, word: u32) -> Result<(), TreeError> {
        self.bytes(&word.to_be_bytes())
    }

    fn length(&mut self, len: usize) -> Result<(), TreeError> {
        self.word(u32::try_from(len).map_err(|_too_large| TreeError::NoRoom)?)
    }

    fn padded(&mut self, bytes: &[u8]) -> Result<(), TreeError> {
        self.bytes(bytes)?;
        while !self.len.is_multiple_of(4) {
            self.bytes(&[0])?;
        }
        Ok(())
    }

    fn begin(&mut self, name: &[u8]) -> Result<(), TreeError> {
        self.word(BEGIN_NODE)?;
        self.bytes(name)?;
        self.padded(&[0])
    }

    fn property(&mut self, name_offset: usize, value: &[u8]) -> Result<(), TreeError> {
        self.word(PROPERTY)?;
        self.length(value.len())?;
        self.length(name_offset)?;
        self.padded(value)
    }
}

/// The names that the new node needs, appended to those that are there.
const NEW_STRINGS: &[u8] = b"compatible\0method\0";
const COMPATIBLE: usize = 0;
const METHOD: usize = 11;
const PSCI_COMPATIBLE: &[u8] = b"arm,psci-1.0\0arm,psci-0.2\0";
const SMC: &[u8] = b"smc\0";

/// Changes the tree at `address`. `work` is memory for two copies of it.
///
/// # Errors
///
/// [`TreeError`]; the tree stays as it was.
pub fn prepare(ram: &SharedRegion, address: u64, work: &mut [u8]) -> Result<(), TreeError> {
    let start = ram
        .range()
        .and_then(|range| address.checked_sub(range.start()))
        .and_then(|start| usize::try_from(start).ok())
        .ok_or(TreeError::NoRoom)?;
    let mut header = [0; HEADER_WORDS * 4];
    if !ram.read(start, &mut header) {
        return Err(TreeError::NoRoom);
    }
    let mut words = [0; HEADER_WORDS];
    let mut reader = Reader(&header);
    for word in &mut words {
        *word = reader.word()?;
    }
    let word = |index: usize| {
        let word = words.get(index).copied().ok_or(TreeError::Malformed)?;
        usize::try_from(word).map_err(|_too_large| TreeError::Malformed)
    };
    if words.first() != Some(&MAGIC) {
        return Err(TreeError::Malformed);
    }
    let at = |offset: usize| start.checked_add(offset).ok_or(TreeError::Malformed);
    let mut reservations = [0; RESERVATIONS_LEN];
    if !ram.read(at(word(RESERVATIONS_OFFSET)?)?, &mut reservations) || reservations != [0; RESERVATIONS_LEN]
    {
        return Err(TreeError::Reservations);
    }

    let half = work.len() / 2;
    let (old, new) = work.split_at_mut_checked(half).ok_or(TreeError::NoRoom)?;
    let (structure, rest) = old
        .split_at_mut_checked(word(STRUCT_LEN)?)
        .ok_or(TreeError::NoRoom)?;
    let strings = rest.get_mut(..word(STRINGS_LEN)?).ok_or(TreeError::NoRoom)?;
    if !ram.read(at(word(STRUCT_OFFSET)?)?, structure) || !ram.read(at(word(STRINGS_OFFSET)?)?, strings) {
        return Err(TreeError::NoRoom);
    }

    // The new tree: header, reservations, structure, strings.
    let structure_at = header.len().saturating_add(8).saturating_add(RESERVATIONS_LEN);
    let mut writer = Writer {
        memory: new,
        len: structure_at,
    };
    change(Reader(structure), strings, &mut writer)?;
    let strings_at = writer.len;
    writer.bytes(strings)?;
    writer.bytes(NEW_STRINGS)?;
    let len = writer.len;
    let changed = [
        (STRUCT_OFFSET, structure_at),
        (STRINGS_OFFSET, strings_at),
        (RESERVATIONS_OFFSET, structure_at.saturating_sub(RESERVATIONS_LEN)),
        (STRUCT_LEN, strings_at.saturating_sub(structure_at)),
        (STRINGS_LEN, len.saturating_sub(strings_at)),
    ];
    for (index, value) in changed {
        if let Some(word) = words.get_mut(index) {
            *word = u32::try_from(value).map_err(|_too_large| TreeError::NoRoom)?;
        }
    }
    writer.len = 0;
    for word in words {
        writer.word(word)?;
    }
    writer.bytes(&[0; 8 + RESERVATIONS_LEN])?;
    let tree = new.get(..len).ok_or(TreeError::NoRoom)?;
    if ram.write(start, tree) {
        Ok(())
    } else {
        Err(TreeError::NoRoom)
    }
}

/// Copies the structure and changes it on the way.
fn change(mut from: Reader<'_>, strings: &[u8], to: &mut Writer<'_>) -> Result<(), TreeError> {
    let mut depth: usize = 0;
    // The node below the root that the walk is in.
    let mut node: &[u8] = &[];
    loop {
        match from.word()? {
            BEGIN_NODE => {
                let name = from.name()?;
                depth = depth.saturating_add(1);
                if depth == 2 {
                    node = name;
                }
                if !is_psci(depth, node) {
                    to.begin(name)?;
                }
            }
            END_NODE => {
                if depth == 1 {
                    psci(strings.len(), to)?;
                }
                if !is_psci(depth, node) {
                    to.word(END_NODE)?;
                }
                depth = depth.checked_sub(1).ok_or(TreeError::Malformed)?;
            }
            PROPERTY => {
                let len = from.len()?;
                let name_offset = from.len()?;
                let value = from.padded(len)?;
                let name = Reader(strings.get(name_offset..).ok_or(TreeError::Malformed)?);
                let is = |wanted: &[u8]| name.0.starts_with(wanted);
                if is_psci(depth, node) || depth == 2 && node.starts_with(b"secram") && is(b"device_type\0") {
                    continue;
                }
                if depth == 2 && node.starts_with(b"memory@") && is(b"reg\0") {
                    let [start, len] =
                        [RAM.start(), UEFI.start().saturating_sub(RAM.start())].map(u64::to_be_bytes);
                    let mut range = [0; 16];
                    let (first, second) = range.split_at_mut(8);
                    first.copy_from_slice(&start);
                    second.copy_from_slice(&len);
                    to.property(name_offset, &range)?;
                } else {
                    to.property(name_offset, value)?;
                }
            }
            NOP => {}
            END if depth == 0 => return to.word(END),
            _ => return Err(TreeError::Malformed),
        }
    }
}

/// Whether this is QEMU's own `/psci`, which is left out.
fn is_psci(depth: usize, node: &[u8]) -> bool {
    depth >= 2 && node == b"psci"
}

fn psci(old_strings_len: usize, to: &mut Writer<'_>) -> Result<(), TreeError> {
    to.begin(b"psci")?;
    to.property(old_strings_len.saturating_add(COMPATIBLE), PSCI_COMPATIBLE)?;
    to.property(old_strings_len.saturating_add(METHOD), SMC)?;
    to.word(END_NODE)
}
