//! Device trees that the monitor changes or refuses: whatever the tree says, nothing behind its
//! `totalsize` is written, and a tree that is refused stays as it was.

use crate::memory::{Block, Purpose};
use aarch64_monitor::device_tree::prepare;

/// RAM of the case: the tree, and memory behind it.
const RAM_LEN: usize = 0x1800;

/// Runs one input: its first byte places the tree, the second says how much memory there is to work
/// in, the others are the tree.
pub fn run(data: &[u8]) {
    let [place, work, tree @ ..] = data else { return };
    let ram = Block::of(Purpose::Other, RAM_LEN, 0xee);
    let start = match place % 4 {
        0 => 0,
        1 => 8,
        2 => RAM_LEN - tree.len().min(RAM_LEN),
        _ => usize::from(*place) * 16,
    };
    ram.put(start, tree);
    let before = ram.bytes();
    let mut work = vec![0; usize::from(*work) * 32];
    let changed = prepare(ram.shared(), ram.address() + start as u64, &mut work);
    let after = ram.bytes();
    ram.check_guards();
    if changed.is_err() {
        assert_eq!(before, after, "a tree that was refused has changed");
        return;
    }
    let word = |bytes: &[u8], at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
    let total = word(&before, start + 4);
    assert_eq!(before[..start], after[..start], "bytes before the tree");
    assert_eq!(
        before[start + total..],
        after[start + total..],
        "bytes behind the tree"
    );
    assert!(
        total <= work.len() && word(&after, start + 4) <= total,
        "the tree has grown"
    );
    // The result is a tree that can be changed again, which changes nothing.
    ram.put(0, &after);
    let again = prepare(ram.shared(), ram.address() + start as u64, &mut work);
    assert_eq!(again, Ok(()), "the changed tree is refused");
    let total = word(&after, start + 4);
    assert_eq!(ram.bytes()[start..start + total], after[start..start + total]);
}
