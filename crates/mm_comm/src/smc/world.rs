//! A secure world for tests: its responses are fields, the calls to it are recorded.

use super::{Call, Conduit, Counter};
use crate::region::SharedRegion;
use std::boxed::Box;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::vec::Vec;

pub(super) type Arguments = [u64; 17];
pub(super) type Response = [u64; 18];

/// Responds to FF-A calls: identifier, arguments, how often this identifier was called before.
type Ffa = dyn Fn(u32, &Arguments, usize) -> Option<Response>;

/// How the secure world responds.
#[derive(Clone)]
pub(super) struct World {
    /// Whether there is an EL3.
    pub(super) el3: bool,
    /// The processor's counter.
    pub(super) counter: Rc<dyn Fn() -> Option<Counter>>,
    /// FFA_VERSION's response.
    pub(super) ffa_version: u64,
    /// The only version that FFA_VERSION takes, since another caller has settled it; NOT_SUPPORTED
    /// for others (Hafnium, `api_ffa_version`).
    pub(super) settled: Option<u64>,
    /// MM_VERSION's response.
    pub(super) mm_version: u64,
    /// MM_COMMUNICATE's response.
    pub(super) communicate: Rc<dyn Fn(&Arguments) -> Response>,
    /// The response of an FF-A call; `None` for the usual one.
    pub(super) ffa: Rc<Ffa>,
}

/// A secure world without MM.
impl Default for World {
    fn default() -> Self {
        Self {
            el3: true,
            counter: Rc::new(|| None),
            ffa_version: u64::MAX,
            settled: None,
            mm_version: u64::MAX,
            communicate: Rc::new(|_| answer(&[u64::MAX])),
            ffa: Rc::new(|_, _, _| None),
        }
    }
}

/// The calls that were made, in order.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    pub(super) calls: Vec<(u32, Arguments)>,
}

impl Seen {
    /// Their identifiers.
    pub(super) fn functions(&self) -> Vec<u32> {
        self.calls.iter().map(|(function, _)| *function).collect()
    }
}

/// A world, what it saw, and how often each identifier was called.
type Here = (World, Seen, BTreeMap<u32, usize>);

std::thread_local! {
    static HERE: RefCell<Option<Here>> = const { RefCell::new(None) };
}

/// Runs code above a secure world.
pub(super) fn with<T>(world: World, run: impl FnOnce() -> T) -> (T, Seen) {
    HERE.set(Some((world, Seen::default(), BTreeMap::new())));
    let result = run();
    let (_, seen, _) = HERE.take().unwrap();
    (result, seen)
}

/// The first registers of a response; the rest is zero.
pub(super) fn answer(registers: &[u64]) -> Response {
    let mut response = [0; 18];
    response[..registers.len()].copy_from_slice(registers);
    response
}

/// FFA_ERROR.
pub(super) fn error(code: i32) -> Response {
    answer(&[0x8400_0060, 0, u64::from(code.cast_unsigned())])
}

/// Two pages for RX and TX.
pub(super) fn two_pages() -> Option<SharedRegion> {
    #[repr(C, align(4096))]
    struct Pages([u8; 8192]);
    Some(SharedRegion::over_static(
        &mut Box::leak(Box::new(Pages([0; 8192]))).0,
    ))
}

/// The conduit to the world of this thread.
pub(super) struct FakeConduit;

impl Call for FakeConduit {
    fn call32(_: u32, _: [u32; 7]) -> [u32; 8] {
        unreachable!("calls are made with all registers")
    }

    fn call64(function: u32, arguments: Arguments) -> Response {
        let (world, before) = HERE.with_borrow_mut(|here| {
            let (world, seen, counts) = here.as_mut().unwrap();
            seen.calls.push((function, arguments));
            let count = counts.entry(function).or_default();
            *count += 1;
            (world.clone(), *count - 1)
        });
        match function {
            0x8400_0063 if world.settled.is_some_and(|version| version != arguments[0]) => {
                answer(&[0xffff_ffff])
            }
            0x8400_0063 => answer(&[world.ffa_version]),
            0x8400_0040 => answer(&[world.mm_version]),
            0xc400_0041 => (world.communicate)(&arguments),
            _ => (world.ffa)(function, &arguments, before).unwrap_or_else(|| match function {
                0x8400_0069 => answer(&[0x8400_0061, 0, 0x1234]),
                0xc400_008b => error(-2),
                _ => error(-1),
            }),
        }
    }
}

impl Conduit for FakeConduit {
    fn el3_is_implemented() -> bool {
        HERE.with_borrow(|here| here.as_ref().unwrap().0.el3)
    }

    fn counter() -> Option<Counter> {
        let counter = HERE.with_borrow(|here| Rc::clone(&here.as_ref().unwrap().0.counter));
        counter()
    }
}
