//! Asks Arm's secure world for its interfaces, and finds out how PSCI is called.
//!
//! | call | source |
//! |---|---|
//! | FFA_VERSION, FFA_PARTITION_INFO_GET_REGS, FFA_PARTITION_INFO_GET | Arm DEN0077A (FF-A 1.2), 13.2, 13.9, 13.8 |
//! | MM_VERSION | Arm DEN0060A, 2.2 |
//! | ARM_BOOT_ARCH | ACPI 6.5, 5.2.9.4 |
//! | `/psci`, property `method` | Linux, Documentation/devicetree/bindings/arm/psci.yaml |

use crate::facts::{Arm, Partition};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use dtoolkit::fdt::Fdt;
use dtoolkit::{Node, Property};
use mm_comm::SharedRegion;
use mm_comm::smc::{self, Conduit, PsciConduit, Setup};

/// The configuration table that points to the device tree.
pub const DEVICE_TREE: mm_wire::Guid = mm_wire::guid!("b1b621d5-f19c-41a5-830b-d9152c69aae0");

const FFA_VERSION: u32 = 0x8400_0063;
const FFA_RX_RELEASE: u32 = 0x8400_0065;
const FFA_RXTX_MAP: u32 = 0xc400_0066;
const FFA_RXTX_UNMAP: u32 = 0x8400_0067;
const FFA_PARTITION_INFO_GET: u32 = 0x8400_0068;
const FFA_PARTITION_INFO_GET_REGS: u32 = 0xc400_008b;
const MM_VERSION: u32 = 0x8400_0040;

const FFA_SUCCESS: u32 = 0x8400_0061;
const FFA_SUCCESS_64: u32 = 0xc400_0061;
const FFA_ERROR: u32 = 0x8400_0060;
const NOT_SUPPORTED: i32 = -1;

/// The version that patina_mm asks for. A request for less would settle an older version for all
/// later callers.
const VERSION_1_2: u64 = 0x1_0002;
/// A descriptor of FF-A 1.2 has 24 bytes; newer ones are longer.
const DESCRIPTOR_LEN: usize = 24;
/// No partition manager has a list of as many parts.
const MOST_PARTS: u16 = 64;

const PSCI_COMPLIANT: u16 = 1 << 0;
const PSCI_USE_HVC: u16 = 1 << 1;

/// How PSCI is called and what says so, by the FADT's ARM_BOOT_ARCH or by the device tree.
#[must_use]
pub fn psci(arm_boot: Option<u16>, device_tree: Option<&[u8]>) -> (&'static str, &'static str) {
    match arm_boot {
        Some(flags) if flags & PSCI_COMPLIANT != 0 => {
            let conduit = if flags & PSCI_USE_HVC != 0 { "hvc" } else { "smc" };
            return (conduit, "FADT");
        }
        _ => {}
    }
    let method = device_tree
        .and_then(|bytes| Fdt::new(bytes).ok())
        .and_then(|tree| tree.find_node("/psci"))
        .and_then(|node| node.property("method"));
    match method.as_ref().map(Property::value) {
        Some(b"smc\0") => ("smc", "device tree"),
        Some(b"hvc\0") => ("hvc", "device tree"),
        _ => ("", ""),
    }
}

/// The setting of patina_mm for how PSCI is called.
#[must_use]
pub fn conduit_setting(conduit: &str) -> PsciConduit {
    match conduit {
        "smc" => PsciConduit::Smc,
        "hvc" => PsciConduit::Hvc,
        _ => PsciConduit::Unknown,
    }
}

/// Asks the secure world. Without an EL3 no call is made unless PSCI is called by `smc`, as in
/// patina_mm.
///
/// `pages` returns the two pages for FF-A's RX and TX buffers; they are the doctor's again when
/// this returns.
pub fn ask<C: Conduit>(arm: &mut Arm, pages: &mut dyn FnMut() -> Option<SharedRegion>) {
    arm.el3 = C::el3_is_implemented();
    let psci = conduit_setting(arm.conduit);
    if arm.el3 || psci == PsciConduit::Smc {
        // patina_mm's discovery comes first: FFA_VERSION settles a version, which must be the one
        // that patina_mm asks for.
        let setup = Setup {
            psci,
            ..Setup::default()
        };
        let found = smc::connect::<C>(setup, &mut || pages());
        arm.mm = Some(match &found {
            Ok(connection) => Ok(connection.to_string()),
            Err(error) => Err(error.to_string()),
        });
        arm.ffa = Some(version::<C>(FFA_VERSION, VERSION_1_2));
        arm.spm_mm = Some(version::<C>(MM_VERSION, 0));
        if let Some(Ok(_)) = arm.ffa {
            arm.partitions = Some(partitions::<C>(pages));
        }
    }
}

fn call<C: Conduit, const N: usize>(function: u32, arguments: [u64; N]) -> [u64; 18] {
    let mut all = [0; 17];
    all.iter_mut()
        .zip(arguments)
        .for_each(|(argument, value)| *argument = value);
    C::call64(function, all)
}

const fn low(value: u64) -> u32 {
    let [a, b, c, d, ..] = value.to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}

fn version<C: Conduit>(function: u32, argument: u64) -> Result<(u16, u16), String> {
    let [version, ..] = call::<C, 1>(function, [argument]).map(low);
    if version & 1 << 31 != 0 {
        return Err(format!(
            "function {function:#x} returned {}",
            version.cast_signed()
        ));
    }
    let [a, b, c, d] = version.to_le_bytes();
    Ok((u16::from_le_bytes([c, d]), u16::from_le_bytes([a, b])))
}

/// Whether a call succeeded, or the code that FFA_ERROR has.
fn success(call: &str, results: &[u64; 18]) -> Result<(), (String, i32)> {
    let [function, _, code, ..] = results.map(low);
    match function {
        FFA_SUCCESS | FFA_SUCCESS_64 => Ok(()),
        FFA_ERROR => Err((format!("{call}: {}", code.cast_signed()), code.cast_signed())),
        other => Err((format!("{call}: {}", other.cast_signed()), other.cast_signed())),
    }
}

/// All partitions: in registers, or else in the RX page.
fn partitions<C: Conduit>(pages: &mut dyn FnMut() -> Option<SharedRegion>) -> Result<Vec<Partition>, String> {
    match by_registers::<C>() {
        Err((_, NOT_SUPPORTED)) => by_page::<C>(pages),
        found => found.map_err(|(why, _)| why),
    }
}

fn by_registers<C: Conduit>() -> Result<Vec<Partition>, (String, i32)> {
    const CALL: &str = "FFA_PARTITION_INFO_GET_REGS";
    let mut all = Vec::new();
    let (mut start, mut tag) = (0_u16, 0_u16);
    for _ in 0..MOST_PARTS {
        // x1 and x2 are the UUID: nil, for all partitions.
        let index = u64::from(start) | u64::from(tag) << 16;
        let results = call::<C, 3>(FFA_PARTITION_INFO_GET_REGS, [0, 0, index]);
        success(CALL, &results)?;
        let [_, _, metadata, descriptors @ ..] = results;
        let [a, b, c, d, e, f, g, h] = metadata.to_le_bytes();
        let [last, current, next_tag, len] = [[a, b], [c, d], [e, f], [g, h]].map(u16::from_le_bytes);
        let bytes = descriptors.map(u64::to_le_bytes);
        let count = current
            .checked_sub(start)
            .map(|before| usize::from(before).saturating_add(1));
        let listed = count.and_then(|count| list(bytes.as_flattened(), count, len.into()));
        all.extend(listed.ok_or_else(|| (format!("{CALL}: the list contradicts itself"), 0))?);
        match current.checked_add(1) {
            Some(next) if next <= last => (start, tag) = (next, next_tag),
            _ => return Ok(all),
        }
    }
    Err((format!("{CALL}: the list has no end"), 0))
}

fn by_page<C: Conduit>(pages: &mut dyn FnMut() -> Option<SharedRegion>) -> Result<Vec<Partition>, String> {
    let why = |(why, _): (String, i32)| why;
    let pages = pages().ok_or("no two pages for FF-A's RX and TX buffers")?;
    let rx = pages.as_ptr().expose_provenance() as u64;
    let tx = rx.saturating_add(mm_wire::PAGE_LEN as u64);
    success("FFA_RXTX_MAP", &call::<C, 3>(FFA_RXTX_MAP, [tx, rx, 1])).map_err(why)?;
    let results = call::<C, 5>(FFA_PARTITION_INFO_GET, [0; 5]);
    let listed = success("FFA_PARTITION_INFO_GET", &results)
        .map_err(why)
        .and_then(|()| {
            let mut copy = [0; mm_wire::PAGE_LEN];
            let is_read = pages.read(0, &mut copy);
            success("FFA_RX_RELEASE", &call::<C, 1>(FFA_RX_RELEASE, [0])).map_err(why)?;
            let [_, _, count, len, ..] = results.map(low);
            let [count, len] = [count, len].map(|number| usize::try_from(number).unwrap_or(usize::MAX));
            let listed = if is_read { list(&copy, count, len) } else { None };
            listed.ok_or_else(|| String::from("FFA_PARTITION_INFO_GET: the list contradicts itself"))
        });
    success("FFA_RXTX_UNMAP", &call::<C, 1>(FFA_RXTX_UNMAP, [0])).map_err(why)?;
    listed
}

/// The descriptors at the start of `bytes`; `None` if they do not fit.
fn list(bytes: &[u8], count: usize, len: usize) -> Option<Vec<Partition>> {
    let total = count.checked_mul(len)?;
    if len < DESCRIPTOR_LEN || total > bytes.len() {
        return None;
    }
    bytes.chunks_exact(len).take(count).map(partition).collect()
}

fn partition(descriptor: &[u8]) -> Option<Partition> {
    let ([a, b, c, d, e, f, g, h], rest) = descriptor.split_first_chunk::<8>()?;
    let uuid = rest.first_chunk::<16>()?;
    // The registers have the UUID's bytes in the order of its text (FF-A 1.2, 18.8).
    let hex: String = uuid.iter().map(|byte| format!("{byte:02x}")).collect();
    let parts = [
        hex.get(..8),
        hex.get(8..12),
        hex.get(12..16),
        hex.get(16..20),
        hex.get(20..),
    ];
    Some(Partition {
        id: u16::from_le_bytes([*a, *b]),
        contexts: u16::from_le_bytes([*c, *d]),
        properties: u32::from_le_bytes([*e, *f, *g, *h]),
        uuid: parts.map(Option::unwrap_or_default).join("-"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::cell::RefCell;
    use mm_comm::smc::Call;
    use std::boxed::Box;

    type Secure = Box<dyn FnMut(u32, [u64; 17]) -> [u64; 18]>;

    std::thread_local! {
        static WORLD: RefCell<Option<(bool, Secure)>> = const { RefCell::new(None) };
    }

    /// A conduit to a simulated secure world.
    struct Fake;

    impl Call for Fake {
        fn call32(_: u32, _: [u32; 7]) -> [u32; 8] {
            unreachable!("64-bit calls are made")
        }

        fn call64(function: u32, arguments: [u64; 17]) -> [u64; 18] {
            WORLD.with_borrow_mut(|world| world.as_mut().unwrap().1(function, arguments))
        }
    }

    impl Conduit for Fake {
        fn el3_is_implemented() -> bool {
            WORLD.with_borrow(|world| world.as_ref().unwrap().0)
        }
    }

    fn result(first: &[u64]) -> [u64; 18] {
        let mut all = [0; 18];
        all[..first.len()].copy_from_slice(first);
        all
    }

    fn ask_world(
        el3: bool,
        world: impl FnMut(u32, [u64; 17]) -> [u64; 18] + 'static,
        conduit: &'static str,
    ) -> Arm {
        WORLD.set(Some((el3, Box::new(world))));
        let mut arm = Arm {
            conduit,
            ..Arm::default()
        };
        ask::<Fake>(&mut arm, &mut || None);
        arm
    }

    /// MM's service, as two registers have it.
    const MM: [u64; 2] = [0x4644_6bf0_dcae_8d37, 0xa387_3c93_ab40_1483];

    #[test]
    fn partitions_are_listed_part_by_part() {
        let arm = ask_world(
            true,
            |function, [x1, _, x3, ..]| match (function, x1, x3) {
                (FFA_VERSION, ..) => result(&[0x1_0003]),
                (0x8400_0069, ..) => result(&[FFA_SUCCESS.into()]),
                // patina_mm looks for its own service.
                (FFA_PARTITION_INFO_GET_REGS, 1.., _) => {
                    result(&[FFA_SUCCESS_64.into(), 0, 24 << 48, 0x101_0001_8002, 0, 0])
                }
                (FFA_PARTITION_INFO_GET_REGS, 0, 0) => result(&[
                    FFA_SUCCESS_64.into(),
                    0,
                    1 | 7 << 32 | 24 << 48,
                    0x101_0001_8001,
                    1,
                    2,
                ]),
                (FFA_PARTITION_INFO_GET_REGS, 0, 0x7_0001) => result(&[
                    FFA_SUCCESS_64.into(),
                    0,
                    1 | 1 << 16 | 24 << 48,
                    0x101_0003_8002,
                    MM[0],
                    MM[1],
                ]),
                _ => result(&[u64::from(u32::MAX)]),
            },
            "",
        );
        assert_eq!(arm.ffa, Some(Ok((1, 3))));
        assert_eq!(
            arm.spm_mm,
            Some(Err("function 0x84000040 returned -1".to_string()))
        );
        let partitions = arm.partitions.unwrap().unwrap();
        assert_eq!(partitions.len(), 2);
        assert_eq!(
            (partitions[1].id, partitions[1].contexts, partitions[1].properties),
            (0x8002, 3, 0x101)
        );
        assert_eq!(partitions[1].uuid, "378daedc-f06b-4446-8314-40ab933c87a3");
        assert!(arm.mm.unwrap().unwrap().contains("partition 0x8002"));
    }

    #[test]
    fn a_list_that_contradicts_itself_is_an_error() {
        assert_eq!(list(&[0; 48], 3, 24), None);
        assert_eq!(list(&[0; 48], 2, 16), None);
        assert_eq!(list(&[0; 48], 2, 24).map(|list| list.len()), Some(2));
        for metadata in [9 << 48, 24 << 48 | 5 << 16] {
            let arm = ask_world(
                true,
                move |function, _| match function {
                    FFA_VERSION => result(&[VERSION_1_2]),
                    _ => result(&[FFA_SUCCESS_64.into(), 0, metadata]),
                },
                "",
            );
            assert!(arm.partitions.unwrap().unwrap_err().contains("contradicts"));
        }
    }

    #[test]
    fn without_el3_no_call_is_made() {
        let arm = ask_world(false, |_, _| panic!("it would trap"), "hvc");
        assert_eq!(
            arm,
            Arm {
                conduit: "hvc",
                ..Arm::default()
            }
        );
    }

    #[test]
    fn psci_is_in_the_fadt_or_in_the_device_tree() {
        assert_eq!(psci(Some(1), None), ("smc", "FADT"));
        assert_eq!(psci(Some(3), None), ("hvc", "FADT"));
        assert_eq!(psci(Some(0), None), ("", ""));
        let tree = |method: &str| {
            let word = |word: u32| word.to_be_bytes().to_vec();
            let name = b"\0\0\0\x01psci\0\0\0\0".to_vec();
            let property = [word(3), word(4), word(0), [method.as_bytes(), b"\0"].concat()].concat();
            let body = [word(1), word(0), name, property, word(2), word(2), word(9)].concat();
            let strings = b"method\0".to_vec();
            let at = 40 + 16;
            let strings_at = at + u32::try_from(body.len()).unwrap();
            let total = strings_at + 7;
            let header = [
                0xd00d_feed,
                total,
                at,
                strings_at,
                40,
                17,
                16,
                0,
                7,
                strings_at - at,
            ];
            [
                header.map(u32::to_be_bytes).as_flattened(),
                &[0; 16],
                &body,
                &strings,
            ]
            .concat()
        };
        assert_eq!(psci(None, Some(&tree("smc"))), ("smc", "device tree"));
        assert_eq!(psci(Some(0), Some(&tree("hvc"))), ("hvc", "device tree"));
        assert_eq!(psci(None, Some(&tree("foo"))), ("", ""));
        assert_eq!(psci(None, Some(&[1, 2, 3])), ("", ""));
    }
}
