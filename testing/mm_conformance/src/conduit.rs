//! Secure monitor calls that are counted on their way. An unsafe island (`docs/unsafe.md`).
//!
//! A conduit is a type without a value, so the records are statics: there is one secure world.

use crate::lab::SecureCalls;
use alloc::boxed::Box;
use core::marker::PhantomData;
use core::ptr;
use core::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};
use mm_comm::smc::{Call, Conduit, Counter, ffa, spm_mm};
use patina_mm::component::sw_mmi_manager::SwMmiManager;

/// Code that runs before the next request.
type Code = Box<dyn FnOnce()>;

static REQUESTS: AtomicUsize = AtomicUsize::new(0);
static TOTAL: AtomicUsize = AtomicUsize::new(0);
/// Null, or from `Box::into_raw`; the code that swaps it out owns it.
static BEFORE_REQUEST: AtomicPtr<Code> = AtomicPtr::new(ptr::null_mut());

/// FFA_ERROR and its code for "busy": such a request did not reach MM.
const FFA_ERROR: u64 = 0x8400_0060;
const BUSY: u64 = (-4_i32).cast_unsigned() as u64;

/// Calls through `C`. Counts the requests that reached MM, and runs code before the next one.
pub struct Tapped<C>(PhantomData<fn() -> C>);

impl<C: Call> Call for Tapped<C> {
    fn call32(function: u32, arguments: [u32; 7]) -> [u32; 8] {
        C::call32(function, arguments)
    }

    fn call64(function: u32, arguments: [u64; 17]) -> [u64; 18] {
        let is_request = matches!(
            function,
            spm_mm::MM_COMMUNICATE | ffa::MSG_SEND_DIRECT_REQ | ffa::MSG_SEND_DIRECT_REQ2
        );
        if is_request && let Some(code) = replace_code(None) {
            code();
        }
        let response = C::call64(function, arguments);
        let [x0, _, x2, ..] = response;
        if is_request && (x0, x2) != (FFA_ERROR, BUSY) {
            REQUESTS.fetch_add(1, Ordering::Relaxed);
            TOTAL.fetch_add(1, Ordering::Relaxed);
        }
        response
    }
}

impl<C: Conduit> Conduit for Tapped<C> {
    fn el3_is_implemented() -> bool {
        C::el3_is_implemented()
    }

    fn counter() -> Option<Counter> {
        C::counter()
    }
}

fn replace_code(code: Option<Code>) -> Option<Code> {
    let new = code.map_or(ptr::null_mut(), |code| Box::into_raw(Box::new(code)));
    let old = BEFORE_REQUEST.swap(new, Ordering::AcqRel);
    // SAFETY: a pointer that is not null came from `Box::into_raw` above, and the swap has taken it
    // out of the static, so this is the only one.
    (!old.is_null()).then(|| *unsafe { Box::from_raw(old) })
}

/// How many requests have reached MM since the program started.
#[must_use]
pub fn total_requests() -> usize {
    TOTAL.load(Ordering::Relaxed)
}

/// How MM is entered through `C`.
#[derive(Clone, Copy, Debug)]
pub struct Calls<C> {
    function: u32,
    conduit: PhantomData<fn() -> C>,
}

impl<C> Calls<C> {
    /// Makes the platform configure `function`.
    #[must_use]
    pub const fn new(function: u32) -> Self {
        Self {
            function,
            conduit: PhantomData,
        }
    }
}

impl<C: Conduit + 'static> SecureCalls for Calls<C> {
    fn function(&self) -> u32 {
        self.function
    }

    fn trigger(&self) -> SwMmiManager {
        REQUESTS.store(0, Ordering::Relaxed);
        drop(replace_code(None));
        SwMmiManager::with_conduit::<Tapped<C>>()
    }

    fn requests(&self) -> usize {
        REQUESTS.load(Ordering::Relaxed)
    }

    fn forget_requests(&self) {
        REQUESTS.store(0, Ordering::Relaxed);
    }

    fn before_next_request(&self, code: Code) {
        drop(replace_code(Some(code)));
    }
}
