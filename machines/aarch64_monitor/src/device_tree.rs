//! Tells a UEFI above the monitor which RAM is left, and that PSCI is called by `smc`.
//!
//! QEMU describes the machine in a flattened device tree (Devicetree specification 0.4, chapter 5)
//! for a firmware that owns all of it. Changed are `/memory`, which ends where UEFI's own image
//! starts; `/secram`, which is not for UEFI to use as memory; and `/psci`. If there are several
//! memory nodes, as with NUMA, the first one stays: it describes all RAM that UEFI gets.

use crate::layout::{RAM, UEFI};
use alloc::string::String;
use alloc::vec::Vec;
use core::ops::Range;
use dtoolkit::Node;
use dtoolkit::fdt::{Fdt, FdtNode};
use dtoolkit::model::{DeviceTree, DeviceTreeNode, DeviceTreeProperty};
use mm_comm::SharedRegion;

/// The header's first two words: the magic number and `totalsize`.
const START_LEN: usize = 8;

/// Where the header has the physical identifier of the processor that boots, and its length.
const BOOT_CPU: Range<usize> = 28..32;

/// How deep nodes can be nested. QEMU's tree has four levels; the parser's calls are nested like the
/// tree.
const DEEPEST: usize = 32;

const PSCI_COMPATIBLE: &[u8] = b"arm,psci-1.0\0arm,psci-0.2\0";
const SMC: &[u8] = b"smc\0";

/// Why a tree was not changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TreeError {
    /// It lies outside RAM, is larger than the memory to work in, or the changed tree is larger
    /// than `totalsize`.
    NoRoom,
    /// It is not a tree, is damaged, or has nodes that are nested too deep.
    Malformed,
}

/// Changes the tree at `address`, which has `totalsize` bytes of its own there. `work` is memory
/// for a copy of it. The changed tree is made in memory that is allocated.
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
    let mut header = [0; START_LEN];
    if !ram.read(start, &mut header) {
        return Err(TreeError::NoRoom);
    }
    let [.., a, b, c, d] = header;
    let total = usize::try_from(u32::from_be_bytes([a, b, c, d])).map_err(|_too_large| TreeError::NoRoom)?;
    let copy = work.get_mut(..total).ok_or(TreeError::NoRoom)?;
    if !ram.read(start, copy) {
        return Err(TreeError::NoRoom);
    }
    let fdt = Fdt::new(copy).map_err(|_error| TreeError::Malformed)?;
    if !is_shallow(&fdt.root(), DEEPEST) {
        return Err(TreeError::Malformed);
    }
    let mut tree = DeviceTree::from_fdt(&fdt);
    change(&mut tree).ok_or(TreeError::Malformed)?;
    let mut changed = tree.to_dtb();
    // The model of the tree does not have it.
    if let Some((to, from)) = changed.get_mut(BOOT_CPU).zip(copy.get(BOOT_CPU)) {
        to.copy_from_slice(from);
    }
    if changed.len() <= total && ram.write(start, &changed) {
        Ok(())
    } else {
        Err(TreeError::NoRoom)
    }
}

/// Whether there are not more levels than this.
fn is_shallow(node: &FdtNode<'_>, levels: usize) -> bool {
    let below = levels.checked_sub(1);
    below.is_some_and(|below| node.children().all(|child| is_shallow(&child, below)))
}

/// Makes the changes. `None` if a name is refused, which these are not.
fn change(tree: &mut DeviceTree) -> Option<()> {
    let is_memory = |node: &DeviceTreeNode| {
        let name = node.name().split('@').next();
        name == Some("memory") && node.property("reg").is_some()
    };
    let memory = tree.root.children().filter(|node| is_memory(node));
    let others: Vec<String> = memory.skip(1).map(|node| node.name().into()).collect();
    for name in others {
        tree.root.remove_child(&name);
    }
    for node in tree.root.children_mut() {
        if is_memory(node) {
            let range = [RAM.start(), UEFI.start().saturating_sub(RAM.start())].map(u64::to_be_bytes);
            node.add_property(DeviceTreeProperty::new("reg", range.as_flattened()).ok()?);
        }
        if node.name().starts_with("secram") {
            node.remove_property("device_type");
        }
    }
    let _qemus = tree.root.remove_child("psci");
    let psci = DeviceTreeNode::builder("psci")
        .ok()?
        .property(DeviceTreeProperty::new("compatible", PSCI_COMPATIBLE).ok()?)
        .property(DeviceTreeProperty::new("method", SMC).ok()?)
        .build();
    tree.root.add_child(psci);
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use dtoolkit::memreserve::MemoryReservation;
    use std::boxed::Box;
    use std::string::ToString;
    use std::vec;

    fn property(name: &str, value: &[u8]) -> DeviceTreeProperty {
        DeviceTreeProperty::new(name, value).unwrap()
    }

    fn node(name: &str) -> dtoolkit::model::DeviceTreeNodeBuilder {
        DeviceTreeNode::builder(name).unwrap()
    }

    /// A tree with the nodes of QEMU's tree that are changed.
    fn qemu_like() -> DeviceTree {
        let mut tree = DeviceTree::new();
        tree.memory_reservations = vec![MemoryReservation::new(0x4010_0000, 0x1000)];
        let psci = node("psci").property(property("method", b"hvc\0")).build();
        tree.root.add_child(psci);
        for name in ["memory@40000000", "secram@e000000", "other@1"] {
            let inner = node("inner").property(property("reg", &[2; 3])).build();
            let described = node(name)
                .property(property("device_type", b"memory\0"))
                .property(property("reg", &[1; 16]))
                .child(inner)
                .build();
            tree.root.add_child(described);
        }
        tree
    }

    /// Memory with a tree at its start and bytes of 0xEE behind. `spare` is what `totalsize` leaves
    /// for the tree to grow.
    fn ram(tree: &DeviceTree, spare: usize) -> SharedRegion {
        let mut bytes = tree.to_dtb();
        bytes.resize(bytes.len() + spare, 0);
        let total = u32::try_from(bytes.len()).unwrap();
        bytes[4..8].copy_from_slice(&total.to_be_bytes());
        over(&bytes)
    }

    fn over(tree: &[u8]) -> SharedRegion {
        let memory: &'static mut [u8] = Box::leak(vec![0xee; 0x2000].into_boxed_slice());
        memory[..tree.len()].copy_from_slice(tree);
        SharedRegion::over_static(memory)
    }

    fn contents(ram: &SharedRegion) -> Vec<u8> {
        let mut all = vec![0; ram.len()];
        assert!(ram.read(0, &mut all));
        all
    }

    fn prepare_at(ram: &SharedRegion, work: usize) -> Result<(), TreeError> {
        prepare(ram, ram.range().unwrap().start(), &mut vec![0; work])
    }

    /// The tree in memory as source text, without the spaces.
    fn describe(ram: &SharedRegion) -> String {
        let all = contents(ram);
        let total = u32::from_be_bytes(all[4..8].try_into().unwrap()) as usize;
        let tree = DeviceTree::from_fdt(&Fdt::new(&all[..total]).unwrap());
        tree.to_string().split_whitespace().collect()
    }

    #[test]
    fn uefi_gets_its_memory_and_psci() {
        let ram = ram(&qemu_like(), 0x400);
        prepare_at(&ram, 0x2000).unwrap();
        let mut expected = qemu_like();
        let memory = expected.root.child_mut("memory@40000000").unwrap();
        memory.add_property(property(
            "reg",
            &[0, 0, 0, 0, 0x40, 0, 0, 0, 0, 0, 0, 0, 0x3c, 0, 0, 0],
        ));
        let secram = expected.root.child_mut("secram@e000000").unwrap();
        secram.remove_property("device_type").unwrap();
        expected.root.remove_child("psci").unwrap();
        let psci = node("psci")
            .property(property("compatible", PSCI_COMPATIBLE))
            .property(property("method", b"smc\0"))
            .build();
        expected.root.add_child(psci);
        let expected: String = expected.to_string().split_whitespace().collect();
        assert_eq!(describe(&ram), expected);
        assert!(expected.contains("/memreserve/"), "{expected}");
    }

    #[test]
    fn a_tree_that_does_not_fit_into_its_totalsize_stays_as_it_was() {
        // As tight as a tree can be, and with room for all but the last bytes of /psci.
        let needed = {
            let ram = ram(&DeviceTree::new(), 0x400);
            prepare_at(&ram, 0x2000).unwrap();
            let all = contents(&ram);
            u32::from_be_bytes(all[4..8].try_into().unwrap()) as usize
        };
        let own = DeviceTree::new().to_dtb().len();
        for (spare, expected) in [
            (0, Err(TreeError::NoRoom)),
            (needed - own - 1, Err(TreeError::NoRoom)),
            (needed - own, Ok(())),
        ] {
            let ram = ram(&DeviceTree::new(), spare);
            let before = contents(&ram);
            assert_eq!(prepare_at(&ram, 0x2000), expected, "{spare} spare bytes");
            let after = contents(&ram);
            assert!(after[own + spare..].iter().all(|byte| *byte == 0xee));
            assert_eq!(after == before, expected.is_err());
        }
    }

    #[test]
    fn a_damaged_tree_stays_as_it_was() {
        let good = contents(&ram(&qemu_like(), 0x400));
        let total = u32::from_be_bytes(good[4..8].try_into().unwrap()) as usize;
        let mut refused = 0;
        for at in 0..total - 0x400 {
            for value in [0x00, 0x01, 0x7f, 0x80, 0xff] {
                let mut damaged = good[..total].to_vec();
                damaged[at] = value;
                let ram = over(&damaged);
                let before = contents(&ram);
                match prepare_at(&ram, 0x2000) {
                    Ok(()) => assert!(contents(&ram)[total..].iter().all(|byte| *byte == 0xee)),
                    Err(_) => {
                        refused += 1;
                        assert_eq!(contents(&ram), before, "byte {at} as {value:#x}");
                    }
                }
            }
        }
        assert!(refused > 200, "{refused}");
        let no_tree = over(&[0; 64]);
        assert_eq!(prepare_at(&no_tree, 0x2000), Err(TreeError::Malformed));
    }

    #[test]
    fn all_ram_is_described_once() {
        for names in [
            ["memory@40000000", "memory@60000000"],
            ["memory", "memory@60000000"],
        ] {
            let mut tree = qemu_like();
            tree.root.remove_child("memory@40000000");
            for name in names {
                let described = node(name).property(property("reg", &[1; 16])).build();
                tree.root.add_child(described);
            }
            let ram = ram(&tree, 0x400);
            prepare_at(&ram, 0x2000).unwrap();
            let text = describe(&ram);
            let [first, second] = names;
            let expected = std::format!("{first}{{reg=<0x000x400000000x000x3c000000>;}};");
            assert!(text.contains(&expected), "{text}");
            assert!(!text.contains(second), "{text}");
        }
    }

    #[test]
    fn the_processor_that_boots_stays_the_same() {
        let before = contents(&ram(&qemu_like(), 0x400));
        let mut tree = before[..0x1000].to_vec();
        tree[BOOT_CPU].copy_from_slice(&[0, 0, 0x81, 3]);
        let ram = over(&tree);
        prepare_at(&ram, 0x2000).unwrap();
        assert_eq!(contents(&ram)[BOOT_CPU], [0, 0, 0x81, 3]);
    }

    /// A tree of nodes inside each other.
    fn nested(levels: usize) -> Vec<u8> {
        let node = [[0, 0, 0, 1], *b"n\0\0\0"].concat();
        let root = [0, 0, 0, 1, 0, 0, 0, 0];
        let ends = [0, 0, 0, 2].repeat(levels);
        let body = [&root[..], &node.repeat(levels - 1), &ends, &[0, 0, 0, 9]].concat();
        let strings_at = 56 + u32::try_from(body.len()).unwrap();
        let header = [
            0xd00d_feed,
            strings_at,
            56,
            strings_at,
            40,
            17,
            16,
            0,
            0,
            strings_at - 56,
        ];
        let header = header.map(u32::to_be_bytes);
        [header.as_flattened(), &[0; 16], &body].concat()
    }

    #[test]
    fn a_tree_that_is_nested_without_end_stays_as_it_was() {
        for levels in [DEEPEST + 1, 1000, 80_000] {
            let tree = nested(levels);
            let memory = vec![0; tree.len() + 0x400].leak();
            memory[..tree.len()].copy_from_slice(&tree);
            let ram = SharedRegion::over_static(memory);
            let before = contents(&ram);
            assert_eq!(
                prepare_at(&ram, 0x10_0000),
                Err(TreeError::Malformed),
                "{levels} levels"
            );
            assert_eq!(contents(&ram), before);
        }
        let mut deepest = nested(DEEPEST);
        let room = deepest.len() + 0x100;
        deepest.resize(room, 0);
        deepest[4..8].copy_from_slice(&u32::try_from(room).unwrap().to_be_bytes());
        assert_eq!(prepare_at(&over(&deepest), 0x2000), Ok(()));
    }

    #[test]
    fn memory_that_is_too_small_is_refused() {
        let ram = ram(&qemu_like(), 0x400);
        assert_eq!(prepare_at(&ram, 0x200), Err(TreeError::NoRoom));
        assert_eq!(prepare(&ram, 0, &mut [0; 64]), Err(TreeError::NoRoom));
        let end = ram.range().unwrap().end();
        assert_eq!(prepare(&ram, end - 4, &mut [0; 64]), Err(TreeError::NoRoom));
    }
}
