//! Reads the registers of Intel's chipsets for SMIs and SMRAM. It writes only the address port of
//! PCI configuration space.
//!
//! | register | place | source |
//! |---|---|---|
//! | PMBASE, ACPI_CNTL | PCI 0:1F.0 0x40, 0x44 | ICH9 data sheet, 13.1.13, 13.1.14 |
//! | ABASE, ACTL | PCI 0:1F.2 0x40, 0x44 | 100 Series PCH data sheet, volume 2, PMC |
//! | GEN_PMCON_1 (SMI_LOCK: bit 4) | the same device, 0xA0 | the same |
//! | SMI_EN, SMI_STS | PMBASE + 0x30, + 0x34 | ICH9 data sheet, 13.8.3.8, 13.8.3.9 |
//! | SMRAM, ESMRAMC | PCI 0:0.0 0x9D, 0x9E | Q35 data sheet |
//! | TSEGMB | PCI 0:0.0 0xAC | Q35 data sheet |
//! | size of the extended TSEG, MiB | PCI 0:0.0 0x50 | QEMU, `mch_update_ext_tseg_mbytes` in hw/pci-host/q35.c |

use crate::facts::{Acpi, Chipset, Range};
use alloc::string::ToString;
use mm_comm::ich9::PciRegister;
use mm_comm::{Ports, SmiEnableRegister};

const INTEL: u16 = 0x8086;
const AMD: u16 = 0x1022;
/// The host bridge of Q35.
const Q35: u16 = 0x29c0;

const SMI_STS_OFFSET: u16 = 0x34;

/// The alignment of an ACPI base.
const BASE_MASK: u32 = 0xff80;
/// Lowest bits of TSEGMB: a MiB is the granularity.
const TSEG_MASK: u32 = 0xfff0_0000;

/// A device on PCI bus 0, and its function.
type Device = (u8, u8);

const HOST_BRIDGE: Device = (0, 0);
const LPC: Device = (0x1f, 0);
const PMC: Device = (0x1f, 2);

fn config(ports: &dyn Ports, (device, function): Device, register: u8) -> u32 {
    PciRegister::new(device, function, register).read_dword(ports)
}

fn identity(ports: &dyn Ports, device: Device) -> Option<(u16, u16)> {
    let [a, b, c, d] = config(ports, device, 0).to_le_bytes();
    let vendor = u16::from_le_bytes([a, b]);
    (vendor != 0xffff).then_some((vendor, u16::from_le_bytes([c, d])))
}

/// Reads the chipset's registers. `acpi` has the ACPI base of chipsets that do not show it.
///
/// The caller makes sure that no other code uses ports 0xCF8 and 0xCFC meanwhile.
pub fn gather(ports: &dyn Ports, acpi: &Acpi) -> Chipset {
    let mut chipset = Chipset {
        host_bridge: identity(ports, HOST_BRIDGE),
        lpc: identity(ports, LPC),
        ..Chipset::default()
    };
    let pm_base = |device| {
        let value = config(ports, device, 0x40);
        // Bit 0 says that it is in I/O space, and is wired to 1.
        let base = u16::try_from(value & BASE_MASK).ok()?;
        (value & 1 == 1 && value >> 16 == 0 && base != 0).then_some(base)
    };
    let pmc = if chipset.lpc.is_some_and(|(vendor, _)| vendor == INTEL) {
        [
            (LPC, "PMBASE, PCI 0:1F.0 0x40", 7),
            (PMC, "ABASE, PCI 0:1F.2 0x40", 7),
        ]
        .into_iter()
        .find_map(|(device, place, bit)| Some((device, place, bit, pm_base(device)?)))
    } else {
        None
    };
    if let Some((device, place, enable_bit, base)) = pmc {
        chipset.acpi_base = Some(base);
        chipset.acpi_base_from = place.to_string();
        chipset.acpi_enabled = Some(config(ports, device, 0x44) >> enable_bit & 1 == 1);
        chipset.smi_lock = Some(config(ports, device, 0xa0) >> 4 & 1 == 1);
    } else if let Some(base) = acpi
        .pm1a_event
        .and_then(|base| u16::try_from(base).ok())
        .filter(|base| *base != 0)
    {
        chipset.acpi_base = Some(base);
        chipset.acpi_base_from = "FADT, PM1a_EVT_BLK".to_string();
    }
    chipset.name = match (chipset.host_bridge, chipset.lpc) {
        (Some((INTEL, Q35)), _) => "Intel Q35, as QEMU has it",
        (_, Some((INTEL, _))) => "Intel",
        (Some((AMD, _)), _) => crate::findings::AMD,
        _ => "",
    }
    .to_string();
    let is_intel = chipset.lpc.is_some_and(|(vendor, _)| vendor == INTEL);
    if let Some(base) = chipset.acpi_base.filter(|_| is_intel) {
        if let Ok(register) = SmiEnableRegister::behind_io_base(base) {
            chipset.smi_en = Some(register.read(ports));
        }
        chipset.smi_sts = base.checked_add(SMI_STS_OFFSET).map(|port| ports.read_u32(port));
    }
    if let Some((INTEL, Q35)) = chipset.host_bridge {
        let [_, smram, esmramc, _] = config(ports, HOST_BRIDGE, 0x9c).to_le_bytes();
        chipset.smram = Some(smram);
        chipset.tseg = q35_tseg(ports, esmramc);
    }
    chipset
}

/// TSEG of Q35: TSEG_EN and TSEG_SZ in ESMRAMC; its start in TSEGMB.
fn q35_tseg(ports: &dyn Ports, esmramc: u8) -> Option<Range> {
    const MIB: u64 = 1 << 20;
    if esmramc & 1 == 0 {
        return None;
    }
    let start = u64::from(config(ports, HOST_BRIDGE, 0xac) & TSEG_MASK);
    // 11b is reserved; QEMU then has the size in another register, which is all ones or zero on
    // other machines.
    let len = match esmramc >> 1 & 0b11 {
        0b00 => MIB,
        0b01 => 2 * MIB,
        0b10 => 8 * MIB,
        _ => match config(ports, HOST_BRIDGE, 0x50) & 0xffff {
            0xffff => 0,
            mib => u64::from(mib).saturating_mul(MIB),
        },
    };
    Some(Range { start, len })
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::cell::Cell;
    use std::collections::BTreeMap;
    use std::string::String;

    const CONFIG_ADDRESS: u16 = 0xcf8;
    const CONFIG_DATA: u16 = 0xcfc;

    /// A chipset by its registers: PCI by address, ports by number. Everything else reads as all
    /// ones.
    #[derive(Default)]
    struct Fake {
        pci: BTreeMap<u32, u32>,
        ports: BTreeMap<u16, u32>,
        address: Cell<u32>,
        written: Cell<bool>,
    }

    impl Ports for Fake {
        fn write_u8(&self, _: u16, _: u8) {
            self.written.set(true);
        }

        fn read_u32(&self, port: u16) -> u32 {
            let pci = self.pci.get(&self.address.get());
            let value = if port == CONFIG_DATA {
                pci
            } else {
                self.ports.get(&port)
            };
            value.copied().unwrap_or(u32::MAX)
        }

        fn write_u32(&self, port: u16, value: u32) {
            if port == CONFIG_ADDRESS {
                self.address.set(value);
            } else {
                self.written.set(true);
            }
        }

        fn read_mmio_u32(&self, _: usize) -> u32 {
            u32::MAX
        }

        fn write_mmio_u32(&self, _: usize, _: u32) {
            self.written.set(true);
        }

        fn pause(&self) {}
    }

    fn read(pci: &[(u32, u32)], ports: &[(u16, u32)], acpi: &Acpi) -> Chipset {
        let fake = Fake {
            pci: pci.iter().copied().collect(),
            ports: ports.iter().copied().collect(),
            ..Fake::default()
        };
        let chipset = gather(&fake, acpi);
        assert!(!fake.written.get(), "something was written");
        chipset
    }

    #[test]
    fn q35_shows_its_registers() {
        let chipset = read(
            &[
                (0x8000_0000, 0x29c0_8086),
                (0x8000_009c, 0x0001_1a00),
                (0x8000_00ac, 0x7f00_0000),
                (0x8000_f800, 0x2918_8086),
                (0x8000_f840, 0x601),
                (0x8000_f844, 0x80),
                (0x8000_f8a0, 0x10),
            ],
            &[(0x630, 0x21), (0x634, 5)],
            &Acpi::default(),
        );
        assert_eq!(chipset.name, "Intel Q35, as QEMU has it");
        assert_eq!(
            (chipset.acpi_base, chipset.acpi_enabled),
            (Some(0x600), Some(true))
        );
        assert_eq!((chipset.smi_en, chipset.smi_sts), (Some(0x21), Some(5)));
        assert_eq!((chipset.smi_lock, chipset.smram), (Some(true), Some(0x1a)));
        assert_eq!(
            chipset.tseg,
            Some(Range {
                start: 0x7f00_0000,
                len: 1 << 20
            })
        );
        // OVMF with SMM uses QEMU's extended TSEG, of 16 MiB.
        let tseg = |size| {
            let bridge = [
                (0x8000_0000, 0x29c0_8086),
                (0x8000_0050, size),
                (0x8000_009c, 0x0007_1a00),
                (0x8000_00ac, 0x0f00_0000),
            ];
            read(&bridge, &[], &Acpi::default()).tseg.unwrap().len
        };
        assert_eq!((tseg(16), tseg(0xffff)), (16 << 20, 0));
    }

    #[test]
    fn a_later_pch_has_its_base_in_the_pmc_or_in_acpi() {
        let lpc = (0x8000_f800, 0xa143_8086);
        let pmc = read(
            &[lpc, (0x8000_fa40, 0x1801), (0x8000_fa44, 0x80)],
            &[(0x1830, 0x33)],
            &Acpi::default(),
        );
        assert_eq!((pmc.acpi_base, pmc.smi_en), (Some(0x1800), Some(0x33)));
        assert_eq!(pmc.acpi_base_from, "ABASE, PCI 0:1F.2 0x40");
        let acpi = Acpi {
            pm1a_event: Some(0x1800),
            ..Acpi::default()
        };
        let hidden = read(&[lpc], &[(0x1830, 0x33)], &acpi);
        assert_eq!(
            (hidden.acpi_base, hidden.smi_en, hidden.smi_lock),
            (Some(0x1800), Some(0x33), None)
        );
    }

    #[test]
    fn other_vendors_are_named_and_nothing_of_intels_is_read() {
        let acpi = Acpi {
            pm1a_event: Some(0x400),
            ..Acpi::default()
        };
        let amd = read(&[(0x8000_0000, 0x1450_1022)], &[], &acpi);
        assert_eq!(
            (amd.name.as_str(), amd.acpi_base, amd.smi_en),
            ("AMD", Some(0x400), None)
        );
        let none = read(&[], &[], &Acpi::default());
        assert_eq!((none.name, none.acpi_base), (String::new(), None));
    }

    #[test]
    fn a_simulated_machine_is_read_as_the_client_sees_it() {
        let machine = mm_sim::Machine::new(mm_sim::Config::default());
        let acpi = Acpi {
            pm1a_event: Some(0x600),
            ..Acpi::default()
        };
        // It has PMBASE, but no vendor and device.
        assert_eq!(gather(&machine, &acpi).acpi_base, Some(0x600));
    }
}
