//! The ACPI tables that describe SMM.
//!
//! | table | field (offset) | source |
//! |---|---|---|
//! | FADT | SMI_CMD u32 @48, PM1a_EVT_BLK u32 @56, ARM_BOOT_ARCH u16 @129, X_PM1a_EVT_BLK.Address u64 @152 | ACPI 6.5, 5.2.9 |
//! | WSMT | ProtectionFlags u32 @36 | Microsoft, Windows SMM Security Mitigations Table |
//! | `UEFI` | GUID @36, DataOffset u16 @52, SW SMI number u32 @54, address of the buffer's address u64 @58 | UEFI 2.11, appendix O |

use crate::Memory;
use crate::facts::{Acpi, Damage};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use mm_wire::protocol::COMMUNICATION;
use mm_wire::{Guid, guid};

/// The configuration table of ACPI 2.0 and later, which points to the RSDP.
pub const RSDP: Guid = guid!("8868e871-e4f1-11d3-bc22-0080c73c8881");

/// Bytes of a table's header.
const HEADER: u64 = 36;
/// No table that is read here has as many bytes.
const LONGEST: u32 = 1 << 20;
/// Bytes of the RSDP of ACPI 1.0, which have a checksum of their own, and of the whole.
const SHORT_RSDP: u32 = 20;
const WHOLE_RSDP: u32 = 36;
/// Where the table `UEFI` of SMM communication has its data.
const DATA_OFFSET: u16 = 54;

/// Reads the tables behind the RSDP at `rsdp`.
pub fn gather(memory: &impl Memory, rsdp: u64) -> Acpi {
    let mut acpi = Acpi {
        present: true,
        ..Acpi::default()
    };
    let mut has_fadt = false;
    let mut damage = Vec::new();
    let mut wrong = |what: &str, found: String| {
        damage.push(Damage {
            what: what.to_string(),
            found,
        });
    };
    let tables = tables(memory, rsdp, &mut wrong).unwrap_or_else(|found| {
        wrong("ACPI", found);
        Vec::new()
    });
    for (signature, table) in tables {
        let (name, least) = match &signature {
            // The FADT of ACPI 1.0.
            b"FACP" => ("FADT", 116),
            b"WSMT" => ("WSMT", 40),
            b"UEFI" => ("table UEFI", 54),
            _ => continue,
        };
        if let Err(found) = check(memory, table, least) {
            wrong(name, found);
        }
        match name {
            "FADT" => {
                has_fadt = true;
                acpi.smi_cmd = u32_at(memory, table, 48);
                let extended: Option<u64> = at(memory, table, 152);
                let short = u32_at(memory, table, 56).map(u64::from);
                acpi.pm1a_event = extended.filter(|address| *address != 0).or(short);
                acpi.arm_boot = at(memory, table, 129);
            }
            "WSMT" => acpi.wsmt = u32_at(memory, table, 36),
            _ => {
                let guid: Option<[u8; 16]> = at(memory, table, 36);
                if guid == Some(COMMUNICATION.to_bytes()) {
                    let number = u32_at(memory, table, 54);
                    acpi.smm_communication = number.zip(at::<u64>(memory, table, 58));
                    let offset: Option<u16> = at(memory, table, 52);
                    if offset != Some(DATA_OFFSET) {
                        let offset = offset.unwrap_or_default();
                        wrong(
                            "SMM communication table",
                            format!("DataOffset is {offset}, the data is at {DATA_OFFSET}"),
                        );
                    }
                    if acpi.smm_communication.is_none() {
                        wrong("SMM communication table", "it ends before its data".to_string());
                    }
                }
            }
        }
    }
    if !has_fadt {
        wrong("FADT", "the XSDT has none".to_string());
    }
    acpi.damage = damage;
    acpi
}

/// Checks the length of a table, and its checksum.
fn check(memory: &impl Memory, table: u64, least: u32) -> Result<u32, String> {
    let len: Option<u32> = table.checked_add(4).and_then(|at| memory.value(at));
    let len = len.ok_or_else(|| format!("its header at {table:#x} cannot be read"))?;
    if len < least {
        return Err(format!("it has {len} bytes, at least {least} are needed"));
    }
    if len > LONGEST {
        return Err(format!("it has {len} bytes, more than any such table"));
    }
    checksum(memory, table, len)?;
    Ok(len)
}

/// Checks that all bytes add up to zero.
fn checksum(memory: &impl Memory, start: u64, len: u32) -> Result<(), String> {
    let unreadable = || format!("its {len} bytes at {start:#x} cannot all be read");
    let mut bytes = alloc::vec![0; usize::try_from(len).map_err(|_too_many| unreadable())?];
    if !memory.read(start, &mut bytes) {
        return Err(unreadable());
    }
    match bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte)) {
        0 => Ok(()),
        sum => Err(format!(
            "the checksum is wrong: its {len} bytes add up to {sum:#04x}, not to 0"
        )),
    }
}

/// A field of a table, if the table is as long as that.
fn at<T: zerocopy::FromBytes + zerocopy::IntoBytes>(
    memory: &impl Memory,
    table: u64,
    offset: u64,
) -> Option<T> {
    let len: u32 = memory.value(table.checked_add(4)?)?;
    let end = offset.checked_add(size_of::<T>() as u64)?;
    if end > u64::from(len) {
        return None;
    }
    memory.value(table.checked_add(offset)?)
}

fn u32_at(memory: &impl Memory, table: u64, offset: u64) -> Option<u32> {
    at(memory, table, offset)
}

/// Signatures and addresses of all tables in the XSDT. What is wrong, but does not end the reading,
/// goes to `wrong`.
fn tables(
    memory: &impl Memory,
    rsdp: u64,
    wrong: &mut impl FnMut(&str, String),
) -> Result<Vec<([u8; 4], u64)>, String> {
    let signature: Option<[u8; 8]> = memory.value(rsdp);
    if signature.as_ref() != Some(b"RSD PTR ") {
        return Err(format!(
            "the configuration table leads to {rsdp:#x}, where no RSDP can be read"
        ));
    }
    for len in [SHORT_RSDP, WHOLE_RSDP] {
        if let Err(found) = checksum(memory, rsdp, len) {
            wrong("RSDP", found);
        }
    }
    let xsdt: Option<u64> = rsdp.checked_add(24).and_then(|at| memory.value(at));
    let xsdt = xsdt.ok_or("the RSDP cannot be read")?;
    let signature: Option<[u8; 4]> = memory.value(xsdt);
    if signature.as_ref() != Some(b"XSDT") {
        return Err(format!("the RSDP leads to {xsdt:#x}, where no XSDT can be read"));
    }
    if let Err(found) = check(memory, xsdt, WHOLE_RSDP) {
        wrong("XSDT", found);
    }
    let len: Option<u32> = xsdt.checked_add(4).and_then(|at| memory.value(at));
    let entries = u64::from(len.unwrap_or_default().min(LONGEST)).saturating_sub(HEADER);
    if !entries.is_multiple_of(8) {
        wrong(
            "XSDT",
            format!("its entries take {entries} bytes, and each has 8"),
        );
    }
    let mut tables = Vec::new();
    for index in 0..entries.checked_div(8).unwrap_or_default() {
        let entry = index
            .checked_mul(8)
            .and_then(|offset| xsdt.checked_add(HEADER)?.checked_add(offset));
        let table: Option<u64> = entry.and_then(|entry| memory.value(entry));
        match table.and_then(|table| Some((memory.value(table)?, table))) {
            Some(found) => tables.push(found),
            None => {
                let found = match table {
                    Some(table) => format!("its entry {index} leads to {table:#x}, which cannot be read"),
                    None => format!("its entry {index} cannot be read"),
                };
                wrong("XSDT", found);
                // The others are as wrong if the table is longer than it should be.
                break;
            }
        }
    }
    Ok(tables)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec;

    struct Ram(Vec<u8>);

    impl Memory for Ram {
        fn read(&self, address: u64, out: &mut [u8]) -> bool {
            let from = usize::try_from(address).unwrap();
            let bytes = self.0.get(from..from + out.len());
            bytes.map(|bytes| out.copy_from_slice(bytes)).is_some()
        }
    }

    impl Ram {
        fn put(&mut self, at: usize, bytes: &[u8]) {
            self.0[at..at + bytes.len()].copy_from_slice(bytes);
        }

        fn table(&mut self, at: usize, signature: &[u8; 4], len: u32) {
            self.put(at, signature);
            self.put(at + 4, &len.to_le_bytes());
        }

        /// Makes the bytes add up to zero, by the checksum at this place.
        fn seal(&mut self, start: usize, len: usize, checksum: usize) {
            self.0[start + checksum] = 0;
            let sum = self.0[start..start + len]
                .iter()
                .fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
            self.0[start + checksum] = 0_u8.wrapping_sub(sum);
        }

        /// Puts the right checksum into the RSDP at 0, and into these tables.
        fn sealed(mut self, tables: &[(usize, usize)]) -> Self {
            self.seal(0, 20, 8);
            self.seal(0, 36, 32);
            for (table, len) in tables {
                self.seal(*table, *len, 9);
            }
            self
        }

        /// A machine with all tables that are read.
        fn complete() -> Self {
            let mut ram = Self(vec![0; 0x1000]);
            ram.put(0, b"RSD PTR ");
            ram.put(24, &0x100_u64.to_le_bytes());
            ram.table(0x100, b"XSDT", 36 + 24);
            for (index, table) in [0x200_u64, 0x400, 0x500].into_iter().enumerate() {
                ram.put(0x100 + 36 + index * 8, &table.to_le_bytes());
            }
            ram.table(0x200, b"FACP", 244);
            ram.put(0x200 + 48, &0xb2_u32.to_le_bytes());
            ram.put(0x200 + 56, &0x600_u32.to_le_bytes());
            ram.put(0x200 + 129, &1_u16.to_le_bytes());
            ram.table(0x400, b"WSMT", 40);
            ram.put(0x400 + 36, &7_u32.to_le_bytes());
            ram.table(0x500, b"UEFI", 66);
            ram.put(0x500 + 36, &COMMUNICATION.to_bytes());
            ram.put(0x500 + 52, &54_u16.to_le_bytes());
            ram.put(0x500 + 54, &3_u32.to_le_bytes());
            ram.put(0x500 + 58, &0x7f00_0000_u64.to_le_bytes());
            ram.sealed(&[(0x100, 60), (0x200, 244), (0x400, 40), (0x500, 66)])
        }
    }

    #[test]
    fn the_fields_are_those_of_the_specification() {
        let mut ram = Ram::complete();
        assert_eq!(
            gather(&ram, 0),
            Acpi {
                present: true,
                damage: vec![],
                smi_cmd: Some(0xb2),
                pm1a_event: Some(0x600),
                arm_boot: Some(1),
                wsmt: Some(7),
                smm_communication: Some((3, 0x7f00_0000)),
            }
        );
        ram.put(0x200 + 152, &0x1800_u64.to_le_bytes());
        assert_eq!(gather(&ram, 0).pm1a_event, Some(0x1800));
    }

    #[test]
    fn fields_behind_a_tables_end_are_not_read() {
        let mut ram = Ram(vec![0; 0x400]);
        ram.put(0, b"RSD PTR ");
        ram.put(24, &0x100_u64.to_le_bytes());
        ram.table(0x100, b"XSDT", 36 + 8);
        ram.put(0x100 + 36, &0x200_u64.to_le_bytes());
        ram.table(0x200, b"FACP", 116);
        ram.put(0x200 + 129, &[0xff; 2]);
        assert_eq!(gather(&ram, 0).arm_boot, None);
        assert_eq!(gather(&ram, 8).smi_cmd, None);
    }
    /// What is said about the tables of a machine that was changed.
    fn wrong(spoil: impl FnOnce(&mut Ram)) -> Vec<String> {
        let mut ram = Ram::complete();
        spoil(&mut ram);
        let damage = gather(&ram, 0).damage.into_iter();
        damage
            .map(|damage| format!("{}: {}", damage.what, damage.found))
            .collect()
    }

    #[test]
    fn each_wrong_checksum_is_named() {
        assert_eq!(wrong(|_| {}), [""; 0]);
        for (at, table) in [
            (9, "RSDP"),
            (32, "RSDP"),
            (0x100 + 9, "XSDT"),
            (0x200 + 9, "FADT"),
            (0x200 + 243, "FADT"),
            (0x400 + 10, "WSMT"),
            (0x500 + 65, "table UEFI"),
        ] {
            let found = wrong(|ram| ram.0[at] = ram.0[at].wrapping_add(1));
            assert!(
                !found.is_empty()
                    && found.iter().all(|found| found
                        .starts_with(&format!("{table}: the checksum is wrong: its "))
                        && found.ends_with(" add up to 0x01, not to 0")),
                "{found:?}"
            );
        }
    }

    #[test]
    fn tables_that_are_too_short_or_too_long_are_named() {
        let with_len = |table: usize, len: u32| {
            wrong(|ram| {
                ram.put(table + 4, &len.to_le_bytes());
                let sealed = usize::try_from(len).unwrap().clamp(10, 0x800);
                ram.seal(table, sealed, 9);
            })
        };
        assert_eq!(
            with_len(0x400, 39),
            ["WSMT: it has 39 bytes, at least 40 are needed"]
        );
        assert_eq!(
            with_len(0x200, 115),
            ["FADT: it has 115 bytes, at least 116 are needed"]
        );
        assert_eq!(
            with_len(0x500, 61),
            ["SMM communication table: it ends before its data"]
        );
        assert!(with_len(0x200, u32::MAX)[0].contains("FADT: it has 4294967295 bytes, more than any"));
        assert_eq!(
            with_len(0x100, 35),
            [
                "XSDT: it has 35 bytes, at least 36 are needed",
                "FADT: the XSDT has none"
            ]
        );
        assert_eq!(
            with_len(0x100, 61),
            ["XSDT: its entries take 25 bytes, and each has 8"]
        );
        let found = with_len(0x100, 0x7004);
        assert!(
            found.len() == 2 && found[0].contains("cannot all be read"),
            "{found:?}"
        );
        assert!(found[1].starts_with("XSDT: its entry "), "{found:?}");
    }

    #[test]
    fn pointers_that_lead_elsewhere_are_named() {
        let found = wrong(|ram| ram.put(0, b"RSD PTRX"));
        assert_eq!(
            found,
            [
                "ACPI: the configuration table leads to 0x0, where no RSDP can be read",
                "FADT: the XSDT has none"
            ]
        );
        let found = wrong(|ram| ram.put(0x100, b"RSDT"));
        assert!(
            found
                .iter()
                .any(|found| found == "ACPI: the RSDP leads to 0x100, where no XSDT can be read")
        );
        let found = wrong(|ram| {
            ram.put(0x200, b"FACX");
            ram.seal(0x200, 244, 9);
        });
        assert_eq!(found, ["FADT: the XSDT has none"]);
        let found = wrong(|ram| {
            ram.put(0x500 + 52, &52_u16.to_le_bytes());
            ram.seal(0x500, 66, 9);
        });
        assert_eq!(
            found,
            ["SMM communication table: DataOffset is 52, the data is at 54"]
        );
    }
}
