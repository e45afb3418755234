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

#[cfg(test)]
mod tests {
    use super::*;
    use std::boxed::Box;
    use std::string::String;
    use std::vec;
    use std::vec::Vec;

    const STRINGS: &[u8] = b"reg\0device_type\0status\0";
    const REG: usize = 0;
    const DEVICE_TYPE: usize = 4;
    const STATUS: usize = 16;

    /// Memory at an address of its own, with a tree at its start.
    fn ram(structure: impl FnOnce(&mut Writer<'_>)) -> SharedRegion {
        let memory: &'static mut [u8] = Box::leak(vec![0; 0x4000].into_boxed_slice());
        let mut writer = Writer { memory, len: 56 };
        structure(&mut writer);
        let strings_at = writer.len;
        writer.bytes(STRINGS).unwrap();
        let len = writer.len;
        writer.len = 0;
        writer.word(MAGIC).unwrap();
        for value in [
            0x4000,
            56,
            strings_at,
            40,
            17,
            16,
            0,
            STRINGS.len(),
            strings_at - 56,
        ] {
            writer.length(value).unwrap();
        }
        assert!(len < 0x4000);
        SharedRegion::over_static(memory)
    }

    fn qemu_like(to: &mut Writer<'_>) {
        to.begin(b"").unwrap();
        to.begin(b"psci").unwrap();
        to.property(STATUS, b"hvc\0").unwrap();
        to.word(END_NODE).unwrap();
        to.word(NOP).unwrap();
        for name in [&b"memory@40000000"[..], b"secram@e000000"] {
            to.begin(name).unwrap();
            to.property(DEVICE_TYPE, b"memory\0").unwrap();
            to.property(REG, &[1; 16]).unwrap();
            to.begin(b"inner").unwrap();
            to.property(REG, &[2; 3]).unwrap();
            to.word(END_NODE).unwrap();
            to.word(END_NODE).unwrap();
        }
        to.word(END_NODE).unwrap();
        to.word(END).unwrap();
    }

    /// A tree as lines: nodes by depth, properties by name and value.
    fn describe(ram: &SharedRegion) -> Vec<String> {
        let mut all = vec![0; ram.len()];
        assert!(ram.read(0, &mut all));
        let word = |index: usize| {
            let word = all.get(index * 4..).and_then(|rest| rest.first_chunk()).unwrap();
            usize::try_from(u32::from_be_bytes(*word)).unwrap()
        };
        let strings = all.get(word(STRINGS_OFFSET)..).unwrap();
        let strings = strings.get(..word(STRINGS_LEN)).unwrap();
        let structure = all.get(word(STRUCT_OFFSET)..).unwrap();
        let mut reader = Reader(structure.get(..word(STRUCT_LEN)).unwrap());
        let mut lines = Vec::new();
        loop {
            match reader.word().unwrap() {
                BEGIN_NODE => lines.push(std::format!(
                    "{{ {}",
                    String::from_utf8_lossy(reader.name().unwrap())
                )),
                END_NODE => lines.push(String::from("}")),
                PROPERTY => {
                    let (len, name) = (reader.len().unwrap(), reader.len().unwrap());
                    let name = Reader(strings.get(name..).unwrap()).0;
                    let name = name.split(|byte| *byte == 0).next().unwrap();
                    let value = reader.padded(len).unwrap();
                    lines.push(std::format!("{} = {value:x?}", String::from_utf8_lossy(name)));
                }
                END => {
                    assert!(reader.0.is_empty());
                    return lines;
                }
                other => unreachable!("{other}"),
            }
        }
    }

    fn prepare_at(ram: &SharedRegion, work: usize) -> Result<(), TreeError> {
        prepare(ram, ram.range().unwrap().start(), &mut vec![0; work])
    }

    #[test]
    fn uefi_is_told_of_its_memory_and_of_psci() {
        let ram = ram(qemu_like);
        prepare_at(&ram, 0x4000).unwrap();
        let method: Vec<u8> = b"smc\0".to_vec();
        let compatible = PSCI_COMPATIBLE;
        assert_eq!(
            describe(&ram),
            [
                "{ ",
                "{ memory@40000000",
                "device_type = [6d, 65, 6d, 6f, 72, 79, 0]",
                "reg = [0, 0, 0, 0, 40, 0, 0, 0, 0, 0, 0, 0, 3c, 0, 0, 0]",
                "{ inner",
                "reg = [2, 2, 2]",
                "}",
                "}",
                "{ secram@e000000",
                "reg = [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]",
                "{ inner",
                "reg = [2, 2, 2]",
                "}",
                "}",
                "{ psci",
                &std::format!("compatible = {compatible:x?}"),
                &std::format!("method = {method:x?}"),
                "}",
                "}",
            ]
        );
    }

    #[test]
    fn a_damaged_tree_stays_as_it_was() {
        type Damage = fn(&mut Writer<'_>);
        let damages: [(Damage, TreeError); 5] = [
            (|_| {}, TreeError::Malformed),
            (|to| to.word(7).unwrap(), TreeError::Malformed),
            (|to| to.word(END_NODE).unwrap(), TreeError::Malformed),
            (
                |to| {
                    to.begin(b"").unwrap();
                    to.word(END).unwrap();
                },
                TreeError::Malformed,
            ),
            (
                |to| {
                    to.word(PROPERTY).unwrap();
                    to.word(u32::MAX).unwrap();
                    to.word(0).unwrap();
                },
                TreeError::Malformed,
            ),
        ];
        for (damage, expected) in damages {
            let ram = ram(damage);
            let mut before = vec![0; ram.len()];
            assert!(ram.read(0, &mut before));
            assert_eq!(prepare_at(&ram, 0x4000), Err(expected));
            let mut after = vec![0; ram.len()];
            assert!(ram.read(0, &mut after));
            assert_eq!(after, before);
        }
        assert_eq!(prepare_at(&ram(qemu_like), 0x200), Err(TreeError::NoRoom));
        assert_eq!(prepare(&ram(qemu_like), 0, &mut [0; 64]), Err(TreeError::NoRoom));
    }
}
