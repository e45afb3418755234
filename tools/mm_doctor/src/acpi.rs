//! The ACPI tables that describe SMM.
//!
//! | table | field (offset) | source |
//! |---|---|---|
//! | FADT | SMI_CMD u32 @48, PM1a_EVT_BLK u32 @56, ARM_BOOT_ARCH u16 @129, X_PM1a_EVT_BLK.Address u64 @152 | ACPI 6.5, 5.2.9 |
//! | WSMT | ProtectionFlags u32 @36 | Microsoft, Windows SMM Security Mitigations Table |
//! | `UEFI` | GUID @36, DataOffset u16 @52, SW SMI number u32 @54, address of the buffer's address u64 @58 | UEFI 2.11, appendix O |

use crate::Memory;
use crate::facts::Acpi;
use alloc::vec::Vec;
use mm_wire::protocol::COMMUNICATION;
use mm_wire::{Guid, guid};

/// The configuration table of ACPI 2.0 and later, which points to the RSDP.
pub const RSDP: Guid = guid!("8868e871-e4f1-11d3-bc22-0080c73c8881");

/// Bytes of a table's header.
const HEADER: u64 = 36;
/// No table that is read here has as many bytes.
const LONGEST: u32 = 1 << 20;

/// Reads the tables behind the RSDP at `rsdp`.
pub fn gather(memory: &impl Memory, rsdp: u64) -> Acpi {
    let mut acpi = Acpi {
        present: true,
        ..Acpi::default()
    };
    for (signature, table) in tables(memory, rsdp).unwrap_or_default() {
        match &signature {
            b"FACP" => {
                acpi.smi_cmd = u32_at(memory, table, 48);
                let extended: Option<u64> = at(memory, table, 152);
                let short = u32_at(memory, table, 56).map(u64::from);
                acpi.pm1a_event = extended.filter(|address| *address != 0).or(short);
                acpi.arm_boot = at(memory, table, 129);
            }
            b"WSMT" => acpi.wsmt = u32_at(memory, table, 36),
            b"UEFI" => {
                let guid: Option<[u8; 16]> = at(memory, table, 36);
                if guid == Some(COMMUNICATION.to_bytes()) {
                    let number = u32_at(memory, table, 54);
                    acpi.smm_communication = number.zip(at::<u64>(memory, table, 58));
                }
            }
            _ => {}
        }
    }
    acpi
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

/// Signatures and addresses of all tables in the XSDT.
fn tables(memory: &impl Memory, rsdp: u64) -> Option<Vec<([u8; 4], u64)>> {
    let signature: [u8; 8] = memory.value(rsdp)?;
    if &signature != b"RSD PTR " {
        return None;
    }
    let xsdt: u64 = memory.value(rsdp.checked_add(24)?)?;
    let len: u32 = memory.value(xsdt.checked_add(4)?)?;
    let entries = u64::from(len.min(LONGEST))
        .saturating_sub(HEADER)
        .checked_div(8)?;
    let tables = (0..entries).filter_map(|index| {
        let entry = xsdt.checked_add(HEADER)?.checked_add(index.checked_mul(8)?)?;
        let table: u64 = memory.value(entry)?;
        Some((memory.value(table)?, table))
    });
    Some(tables.collect())
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
    }

    #[test]
    fn the_fields_are_those_of_the_specification() {
        let mut ram = Ram(vec![0; 0x1000]);
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
        ram.put(0x500 + 54, &3_u32.to_le_bytes());
        ram.put(0x500 + 58, &0x7f00_0000_u64.to_le_bytes());
        assert_eq!(
            gather(&ram, 0),
            Acpi {
                present: true,
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
}
