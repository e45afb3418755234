//! A recorder of a machine's ports.

use mm_comm::Ports;
use std::cell::{Cell, RefCell};
use std::rc::Rc;

/// Records byte writes, runs code before the next one, and plays a chipset that locked SMI_EN. Clones share one record.
#[derive(Clone)]
pub(crate) struct Tap(Rc<Inner>);

struct Inner {
    machine: mm_sim::Machine,
    writes: RefCell<Vec<(u16, u8)>>,
    before_write: Cell<Option<Box<dyn FnOnce()>>>,
    locked: Cell<bool>,
}

impl Tap {
    pub(crate) fn new(machine: mm_sim::Machine) -> Self {
        Self(Rc::new(Inner {
            machine,
            writes: RefCell::default(),
            before_write: Cell::default(),
            locked: Cell::new(false),
        }))
    }

    pub(crate) fn writes(&self) -> Vec<(u16, u8)> {
        self.0.writes.borrow().clone()
    }

    /// Runs `code` once, before the next byte reaches its port: the request is in the comm buffer, and MM was not entered.
    pub(crate) fn before_next_write(&self, code: Box<dyn FnOnce()>) {
        self.0.before_write.set(Some(code));
    }

    pub(crate) fn lock(&self, locked: bool) {
        self.0.locked.set(locked);
    }
}

impl Ports for Tap {
    fn write_u8(&self, port: u16, value: u8) {
        if let Some(code) = self.0.before_write.take() {
            code();
        }
        self.0.writes.borrow_mut().push((port, value));
        self.0.machine.write_u8(port, value);
    }

    fn read_u32(&self, port: u16) -> u32 {
        self.0.machine.read_u32(port)
    }

    fn write_u32(&self, port: u16, value: u32) {
        if !self.0.locked.get() {
            self.0.machine.write_u32(port, value);
        }
    }

    fn read_mmio_u32(&self, address: usize) -> u32 {
        self.0.machine.read_mmio_u32(address)
    }

    fn write_mmio_u32(&self, address: usize, value: u32) {
        self.0.machine.write_mmio_u32(address, value);
    }

    fn pause(&self) {
        self.0.machine.pause();
    }
}
