//! A machine's ports with an ear on them.

use alloc::boxed::Box;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use mm_comm::Ports;

/// Records byte writes, and runs code at the next pause. Clones share one record.
#[derive(Clone)]
pub struct Tap(Rc<Inner>);

struct Inner {
    ports: Box<dyn Ports>,
    writes: RefCell<Vec<(u16, u8)>>,
    at_pause: Cell<Option<Box<dyn FnOnce()>>>,
}

impl Tap {
    /// Listens at `ports`.
    #[must_use]
    pub fn new(ports: Box<dyn Ports>) -> Self {
        Self(Rc::new(Inner {
            ports,
            writes: RefCell::default(),
            at_pause: Cell::default(),
        }))
    }

    /// The bytes written so far, with their ports, in order.
    #[must_use]
    pub fn writes(&self) -> Vec<(u16, u8)> {
        self.0.writes.borrow().clone()
    }

    /// Runs `code` once, at the next pause: in the middle of a call, before MM is given its chance.
    pub fn at_next_pause(&self, code: Box<dyn FnOnce()>) {
        self.0.at_pause.set(Some(code));
    }
}

impl Ports for Tap {
    fn write_u8(&self, port: u16, value: u8) {
        self.0.writes.borrow_mut().push((port, value));
        self.0.ports.write_u8(port, value);
    }

    fn read_u32(&self, port: u16) -> u32 {
        self.0.ports.read_u32(port)
    }

    fn write_u32(&self, port: u16, value: u32) {
        self.0.ports.write_u32(port, value);
    }

    fn read_mmio_u32(&self, address: usize) -> u32 {
        self.0.ports.read_mmio_u32(address)
    }

    fn write_mmio_u32(&self, address: usize, value: u32) {
        self.0.ports.write_mmio_u32(address, value);
    }

    fn pause(&self) {
        if let Some(code) = self.0.at_pause.take() {
            code();
        }
        self.0.ports.pause();
    }
}
