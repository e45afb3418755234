//! A comm buffer that moves during boot.

use super::nesting::look_during;
use super::{Seen, ensure_clean, up};
use crate::lab::{Failure, Lab, Setup, Update};
use crate::mm;

scenarios! {
    moved_buffer_is_used: CONTROLLED_MM | UPDATES, "after an update, messages go through the new memory";
    update_of_unknown_version_is_ignored: CONTROLLED_MM | UPDATES, "an update of another version changes nothing";
    update_of_impossible_size_is_ignored: CONTROLLED_MM | UPDATES, "pages whose bytes exceed the address space change nothing";
    update_during_call_takes_effect_after_it: CONTROLLED_MM | UPDATES | CALLBACKS, "a call finishes in the buffer it started in";
    last_of_many_updates_counts: CONTROLLED_MM | UPDATES, "the newest of several updates is the one that is used";
}

fn setup() -> Setup {
    Setup {
        updatable: Some(0),
        ..Setup::default()
    }
}

fn moved_buffer_is_used(lab: &dyn Lab) -> Seen {
    let machine = up(lab, &setup())?;
    ensure_eq!(
        machine.communicate(0, b"before", mm::ECHO),
        Ok(b"before".to_vec())
    );
    machine.announce(Update { version: 1, pages: 6 });
    ensure_eq!(machine.communicate(0, b"after", mm::ECHO), Ok(b"after".to_vec()));
    let large = super::pattern(6 * 4096 - 24);
    ensure!(
        machine.communicate(0, &large, mm::ECHO) == Ok(large),
        "the new buffer does not carry its 6 pages"
    );
    ensure_eq!(machine.communicate(1, b"other", mm::ECHO), Ok(b"other".to_vec()));
    ensure_clean(&*machine, 0)
}

fn update_of_unknown_version_is_ignored(lab: &dyn Lab) -> Seen {
    let machine = up(lab, &setup())?;
    for version in [0, 2, u64::MAX] {
        machine.announce(Update { version, pages: 6 });
        ensure_eq!(machine.communicate(0, b"same", mm::ECHO), Ok(b"same".to_vec()));
        let large = super::pattern(5 * 4096);
        ensure_eq!(
            machine.communicate(0, &large, mm::ECHO),
            Err(Failure::MessageTooLarge)
        );
    }
    Ok(())
}

fn update_of_impossible_size_is_ignored(lab: &dyn Lab) -> Seen {
    let machine = up(lab, &setup())?;
    for pages in [0, 1 << 52, u64::MAX / 4096 + 1, u64::MAX] {
        machine.announce(Update { version: 1, pages });
        ensure_eq!(machine.communicate(0, b"same", mm::ECHO), Ok(b"same".to_vec()));
    }
    Ok(())
}

fn update_during_call_takes_effect_after_it(lab: &dyn Lab) -> Seen {
    let machine = up(lab, &setup())?;
    let (announced, outer) = look_during(&*machine, b"outer", mm::ECHO, |machine| {
        machine.announce(Update { version: 1, pages: 6 });
    });
    ensure_eq!(announced, Some(()));
    ensure_eq!(outer, Ok(b"outer".to_vec()));
    let large = super::pattern(6 * 4096 - 24);
    ensure!(
        machine.communicate(0, &large, mm::ECHO) == Ok(large),
        "the update was lost"
    );
    Ok(())
}

fn last_of_many_updates_counts(lab: &dyn Lab) -> Seen {
    let machine = up(lab, &setup())?;
    for pages in [2, 3, 8, 5, 7] {
        machine.announce(Update { version: 1, pages });
    }
    let large = super::pattern(7 * 4096 - 24);
    ensure!(
        machine.communicate(0, &large, mm::ECHO) == Ok(large),
        "the last update is not the one in use"
    );
    ensure_eq!(
        machine.communicate(0, &super::pattern(7 * 4096), mm::ECHO),
        Err(Failure::MessageTooLarge)
    );
    Ok(())
}
