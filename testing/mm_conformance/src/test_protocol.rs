//! A protocol with which an application from the ESP makes the firmware run its tests, or hold the
//! demo's conversation.
//!
//! The components under test are in the DXE core, whose services an application cannot reach; BDS
//! can only start an application. An unsafe island (`docs/unsafe.md`).

use alloc::boxed::Box;
use core::ffi::c_void;
use patina::BinaryGuid;
use patina::protocol::ProtocolInterface;

/// What the firmware does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// Run the tests and write their lines to the serial port.
    Test,
    /// Hold the demo's conversation.
    Demo,
    /// Run the platform's own tests, without the conformance suite.
    PlatformTest,
    /// Make very many calls ([`crate::soak`]).
    Soak,
}

impl Task {
    /// The number that [`TestProtocol::run`] gets.
    #[must_use]
    pub const fn number(self) -> u32 {
        match self {
            Self::Test => 0,
            Self::Demo => 1,
            Self::PlatformTest => 2,
            Self::Soak => 3,
        }
    }

    /// The task that a number means.
    #[must_use]
    pub fn of_number(number: u32) -> Option<Self> {
        [Self::Test, Self::Demo, Self::PlatformTest, Self::Soak]
            .into_iter()
            .find(|task| task.number() == number)
    }
}

/// The protocols of the platform that the application found.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Findings {
    /// The interface of the comm-buffer update protocol, or null.
    pub update: *const c_void,
    /// How many of PI's three MM communication protocols brought a message to MM and its response
    /// back.
    pub answered: u32,
    /// How many bytes of memory the firmware has left, which it does not tell its own components; 0 if that is unknown.
    pub free_memory: extern "efiapi" fn() -> u64,
}

/// The protocol's interface.
#[derive(Debug)]
#[repr(C)]
pub struct TestProtocol {
    /// Does a [`Task`]; returns 1 if all went well, else 0.
    pub run: extern "efiapi" fn(this: *const TestProtocol, task: u32, findings: Findings) -> u32,
}

// SAFETY: this type is the only definition of the protocol, and `repr(C)`.
unsafe impl ProtocolInterface for TestProtocol {
    const PROTOCOL_GUID: BinaryGuid = BinaryGuid::from_string("4c9f2c3b-52f5-4d39-9c25-5b5f6f3f8a6e");
}

type Run = Box<dyn Fn(Task, Findings) -> bool>;

/// The interface, and the code that it calls.
#[repr(C)]
struct Instance {
    /// First, so that a pointer to it is one to the instance.
    protocol: TestProtocol,
    run: Run,
}

impl TestProtocol {
    /// Makes an interface that is never freed.
    #[must_use]
    pub fn publishable(run: impl Fn(Task, Findings) -> bool + 'static) -> &'static Self {
        let instance = Box::into_raw(Box::new(Instance {
            protocol: Self { run: called },
            run: Box::new(run),
        }));
        // SAFETY: just made, never freed, and never changed. The pointer keeps the provenance of
        // all of the instance.
        unsafe { &*instance.cast::<Self>() }
    }
}

extern "efiapi" fn called(this: *const TestProtocol, task: u32, findings: Findings) -> u32 {
    let Some(task) = Task::of_number(task) else {
        return 0;
    };
    // SAFETY: the protocol's contract is that `this` is the interface that the function was found
    // in. The only one with this function is an `Instance`'s first field, and instances are never
    // freed.
    let instance = unsafe { &*this.cast::<Instance>() };
    u32::from((instance.run)(task, findings))
}
