//! The secure world of machine `aarch64`, as a library behind secure monitor calls: one for each
//! thread.
//!
//! It has its own view of a comm buffer's memory, under another address. The conduit replaces the
//! physical address in a request with that address. Another address in a request stays as it is,
//! and the secure world denies it.

use super::memory::{Block, all_memory};
use aarch64_monitor::layout::SET_BUFFER;
use aarch64_monitor::mm::Mm;
use aarch64_monitor::{Interface, Mode, World};
use mm_comm::SharedRegion;
use mm_comm::smc::{Call, Conduit, ffa, spm_mm};
use mm_conformance::lab::SecureCalls;
use mm_core::handlers::VariableStore;
use mm_sim::{MAX_VARIABLE_LEN, VARIABLE_STORE_LEN};
use mm_wire::AddressRange;
use patina_mm::component::sw_mmi_manager::SwMmiManager;
use std::cell::RefCell;
use std::rc::Rc;

type Code = Box<dyn FnOnce()>;

/// A secure world, and what was seen of the calls to it.
struct Secure {
    world: World<'static>,
    buffer: Rc<Block>,
    /// The buffer addresses of the requests that reached MM, as they were in the registers.
    requests: Vec<u64>,
    before_request: Option<Code>,
}

thread_local! {
    static SECURE: RefCell<Option<Secure>> = const { RefCell::new(None) };
}

/// FFA_ERROR, and its code for a request that did not reach MM.
const FFA_ERROR: u64 = 0x8400_0060;
const BUSY: u64 = (-4_i32).cast_unsigned() as u64;

/// Switches on a secure world that shares one comm buffer.
pub(crate) fn switch_on(interface: Interface, buffer: &Rc<Block>) {
    let outside = buffer.seen_from_outside();
    let shared = outside.range().unwrap();
    let mm = Mm::new(
        all_memory(),
        shared,
        AddressRange::new(1, 0xfff).unwrap(),
        vec![0; outside.len()].leak(),
        VariableStore::new(vec![0; VARIABLE_STORE_LEN].leak(), MAX_VARIABLE_LEN),
    );
    let mode = Mode {
        interface,
        uefi: false,
        demo: false,
        soak: false,
    };
    let mut world = World::new(mode, mm);
    let mut registers = [0; 18];
    registers[..4].copy_from_slice(&[SET_BUFFER.into(), 0, shared.start(), shared.len()]);
    world.call(&mut registers);
    assert_eq!(registers[0], 0, "the secure world refuses the comm buffer");
    SECURE.set(Some(Secure {
        world,
        buffer: Rc::clone(buffer),
        requests: Vec::new(),
        before_request: None,
    }));
}

/// The buffer addresses of the requests so far.
pub(crate) fn requests() -> Vec<u64> {
    SECURE.with_borrow(|secure| {
        secure
            .as_ref()
            .map(|secure| secure.requests.clone())
            .unwrap_or_default()
    })
}

/// Two pages for FF-A's RX and TX buffers.
pub(crate) fn two_pages() -> Option<SharedRegion> {
    Some(Block::new(2).seen_from_outside())
}

/// The conduit to the secure world of this thread.
pub(crate) struct InProcess;

impl Call for InProcess {
    fn call32(_: u32, _: [u32; 7]) -> [u32; 8] {
        unreachable!("calls are made with all registers")
    }

    fn call64(function: u32, mut arguments: [u64; 17]) -> [u64; 18] {
        // Where a request has the buffer's address: x2, x3 or x4.
        let register = match function {
            spm_mm::MM_COMMUNICATE => Some(1),
            ffa::MSG_SEND_DIRECT_REQ => Some(2),
            ffa::MSG_SEND_DIRECT_REQ2 => Some(3),
            _ => None,
        };
        if register.is_some()
            && let Some(code) = SECURE.with_borrow_mut(|secure| secure.as_mut()?.before_request.take())
        {
            code();
        }
        SECURE.with_borrow_mut(|secure| {
            let secure = secure.as_mut().unwrap();
            let given = register.map(|register| arguments[register]);
            if let Some(register) = register
                && given == Some(secure.buffer.physical as u64)
            {
                arguments[register] = secure.buffer.seen_from_outside().as_ptr().addr() as u64;
            }
            let mut registers = [0; 18];
            registers[0] = function.into();
            registers[1..].copy_from_slice(&arguments);
            secure.world.call(&mut registers);
            let is_busy = (registers[0], registers[2]) == (FFA_ERROR, BUSY);
            secure.requests.extend(given.filter(|_| !is_busy));
            registers
        })
    }
}

impl Conduit for InProcess {
    fn el3_is_implemented() -> bool {
        SECURE.with_borrow(Option::is_some)
    }
}

/// The secure monitor calls of the lab.
pub(crate) struct Calls;

impl SecureCalls for Calls {
    fn function(&self) -> u32 {
        spm_mm::MM_COMMUNICATE
    }

    fn trigger(&self) -> SwMmiManager {
        SwMmiManager::with_conduit::<InProcess>()
    }

    fn requests(&self) -> usize {
        requests().len()
    }

    fn forget_requests(&self) {
        SECURE.with_borrow_mut(|secure| {
            if let Some(secure) = secure {
                secure.requests.clear();
            }
        });
    }

    fn before_next_request(&self, code: Code) {
        SECURE.with_borrow_mut(|secure| {
            if let Some(secure) = secure {
                secure.before_request = Some(code);
            }
        });
    }
}
