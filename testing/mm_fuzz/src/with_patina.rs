//! `patina_mm`'s components on a simulated machine, whose handlers do what a case says.

use crate::header::Name;
use mm_wire::message::supervisor;
use patina::BinaryGuid;
use patina::error::EfiError;
use patina_mm_test::Machine;
use std::cell::{Cell, RefCell};
use std::rc::Rc;

/// A machine is replaced after this many cases, so that none depends on all those before it. This
/// leaks the machine's memory.
const CASES: u32 = 2000;

/// The next responses of the machine's handlers.
#[derive(Default)]
struct Orders {
    len: Cell<usize>,
    fails: Cell<bool>,
    supervisor: RefCell<Vec<u8>>,
}

/// A machine, and the orders of its handlers.
pub struct Clients {
    /// The machine. Its handlers are for [`Name::Known`] 1 and for the MM supervisor.
    pub machine: Machine,
    orders: Rc<Orders>,
    cases: Cell<u32>,
}

thread_local! {
    static CLIENTS: RefCell<Option<Clients>> = const { RefCell::new(None) };
}

/// Runs a case on this thread's machine. A new machine is set up first.
pub(crate) fn with(set_up: impl FnOnce(&Clients), case: impl FnOnce(&Clients)) {
    let clients = CLIENTS.take().filter(|clients| clients.cases.get() < CASES);
    let clients = clients.unwrap_or_else(|| {
        let clients = Clients::new();
        set_up(&clients);
        clients
    });
    clients.cases.update(|cases| cases + 1);
    // The machine is not put back if the case panics.
    case(&clients);
    clients.machine.forget();
    CLIENTS.set(Some(clients));
}

impl Clients {
    fn new() -> Self {
        let orders = Rc::<Orders>::default();
        let (user, supervisor) = (Rc::clone(&orders), Rc::clone(&orders));
        let machine = Machine::new()
            .handler(BinaryGuid::from_bytes(&Name::Known(1).bytes()), move |_| {
                if user.fails.get() {
                    return Err(EfiError::DeviceError);
                }
                Ok(bytes_of(user.len.get()))
            })
            .handler(BinaryGuid::from_bytes(&supervisor::GUID.to_bytes()), move |_| {
                if supervisor.fails.get() {
                    return Err(EfiError::DeviceError);
                }
                Ok(supervisor.supervisor.borrow().clone())
            });
        Self {
            machine,
            orders,
            cases: Cell::new(0),
        }
    }

    /// The next response has this length, or there is none.
    pub(crate) fn respond_with(&self, len: usize, fails: bool) {
        self.orders.len.set(len);
        self.orders.fails.set(fails);
    }

    /// What [`Self::respond_with`] asked for.
    pub(crate) fn response(&self) -> Vec<u8> {
        bytes_of(self.orders.len.get())
    }

    /// The supervisor's next response.
    pub(crate) fn supervisor_says(&self, bytes: Option<Vec<u8>>) {
        self.orders.fails.set(bytes.is_none());
        self.orders.supervisor.replace(bytes.unwrap_or_default());
    }
}

fn bytes_of(len: usize) -> Vec<u8> {
    (0..len).map(|at| at as u8 ^ 0x5b).collect()
}
