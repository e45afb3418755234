//! A recorder of a machine's ports.

use alloc::boxed::Box;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use mm_comm::Ports;

/// Records byte writes, runs code before the next one, and can ignore writes to a register, like a
/// chipset with SMI_LOCK. Clones share one record.
#[derive(Clone)]
pub struct Tap(Rc<Inner>);

struct Inner {
    ports: Box<dyn Ports>,
    writes: RefCell<Vec<(u16, u8)>>,
    before_write: Cell<Option<Box<dyn FnOnce()>>>,
    ignored: Cell<Option<u16>>,
}

impl Tap {
    /// Records what is written to `ports`.
    #[must_use]
    pub fn new(ports: Box<dyn Ports>) -> Self {
        Self(Rc::new(Inner {
            ports,
            writes: RefCell::default(),
            before_write: Cell::default(),
            ignored: Cell::default(),
        }))
    }

    /// The bytes written so far, with their ports, in order.
    #[must_use]
    pub fn writes(&self) -> Vec<(u16, u8)> {
        self.0.writes.borrow().clone()
    }

    /// The same, and forgets them: for runs that are so long that the record would not fit into
    /// memory.
    #[must_use]
    pub fn take_writes(&self) -> Vec<(u16, u8)> {
        self.0.writes.take()
    }

    /// Runs `code` once, before the next byte reaches its port: in the middle of a call, when the
    /// request is announced and MM was not entered yet.
    pub fn before_next_write(&self, code: Box<dyn FnOnce()>) {
        self.0.before_write.set(Some(code));
    }

    /// Keeps 32-bit writes to this port from reaching it, until another one is named.
    pub fn lock(&self, port: Option<u16>) {
        self.0.ignored.set(port);
    }
}

impl Ports for Tap {
    fn write_u8(&self, port: u16, value: u8) {
        if let Some(code) = self.0.before_write.take() {
            code();
        }
        self.0.writes.borrow_mut().push((port, value));
        self.0.ports.write_u8(port, value);
    }

    fn read_u32(&self, port: u16) -> u32 {
        self.0.ports.read_u32(port)
    }

    fn write_u32(&self, port: u16, value: u32) {
        if self.0.ignored.get() != Some(port) {
            self.0.ports.write_u32(port, value);
        }
    }

    fn read_mmio_u32(&self, address: usize) -> u32 {
        self.0.ports.read_mmio_u32(address)
    }

    fn write_mmio_u32(&self, address: usize, value: u32) {
        self.0.ports.write_mmio_u32(address, value);
    }

    fn pause(&self) {
        self.0.ports.pause();
    }
}
