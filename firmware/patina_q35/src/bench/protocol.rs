//! The protocol's interface, with what it does behind it. An unsafe island (`docs/unsafe.md`).

use alloc::boxed::Box;
use patina_harness::bench::{Bench, Findings, Task};

type Run = Box<dyn Fn(Task, Findings) -> bool>;

/// The interface, and the code that it calls.
#[repr(C)]
pub(super) struct Instance {
    /// First, so that a pointer to it is one to the instance.
    protocol: Bench,
    run: Run,
}

impl Instance {
    /// Makes an interface that lasts for good.
    pub(super) fn publishable(run: impl Fn(Task, Findings) -> bool + 'static) -> &'static Bench {
        let protocol = Bench { run: called };
        let instance = Box::into_raw(Box::new(Self {
            protocol,
            run: Box::new(run),
        }));
        // SAFETY: just made, never freed, and nobody changes it. The pointer keeps the provenance of all of the instance.
        unsafe { &*instance.cast::<Bench>() }
    }
}

extern "efiapi" fn called(this: *const Bench, task: u32, findings: Findings) -> u32 {
    let Some(task) = Task::of_number(task) else {
        return 0;
    };
    // SAFETY: the protocol's contract is that `this` is the interface that the function was found in. The only one with
    // this function is an `Instance`'s first field, and instances are never freed.
    let instance = unsafe { &*this.cast::<Instance>() };
    u32::from((instance.run)(task, findings))
}
