//! Many transactions of `patina_mm`'s communicator on a simulated machine whose MM side has a fault now and then.

use crate::memory;
use crate::random::Random;
use mm_comm::SharedRegion;
use mm_core::handlers::Echo;
use mm_core::{CommBuffer, MmCore, Mmi, Registration, SystemMemory};
use mm_sim::{Config, Machine};
use patina::BinaryGuid;
use patina::component::component;
use patina::component::service::Service;
use patina_mm::component::communicator::{MmCommunicator, Status};
use patina_mm::component::sw_mmi_manager::SwMmiManager;
use patina_mm::config::{AcpiBase, MmCommunicationConfiguration, MmCommunicationOptions, MmiPort};
use patina_mm::service::MmCommunication;
use patina_mm_test::Dispatcher;
use patina_mm_test::clock::HostClock;
use patina_mm_test::protocols::{HostProtocols, SharedProtocols};
use std::cell::{Cell, RefCell};
use std::fmt;
use std::rc::Rc;

/// Bytes of a comm buffer.
const LEN: usize = 4096;
/// The whole comm buffer is checked once in so many transactions, its start after each.
const WHOLE: u64 = 64;
/// How long the client waits: short, since some requests are not taken.
const POLLS: u32 = 20;

/// What MM does wrong. Most requests meet no fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    None,
    NotTaken,
    Twice,
    /// MM stops after this many writes.
    DiesAfter(u32),
    /// MM is entered only after the client has polled this often.
    Late(u32),
    Status(u64),
    Size(u64),
    StaysAnnounced,
    Guid,
    Length(u64),
    WritesEverywhere,
}

impl Fault {
    fn random(random: &mut Random) -> Self {
        match random.below(40) {
            0 => Self::NotTaken,
            1 => Self::Twice,
            2 => Self::DiesAfter(random.below(4) as u32),
            3 => Self::Late(random.below(2 * POLLS as usize) as u32 + 1),
            4 => Self::Status(random.number() | 1),
            5 => Self::Size(random.number() >> random.below(64)),
            6 => Self::StaysAnnounced,
            7 => Self::Guid,
            8 => Self::Length(random.number() >> random.below(64)),
            9 => Self::WritesEverywhere,
            _ => Self::None,
        }
    }
}

/// The results of all transactions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// How many there were.
    pub transactions: u64,
    /// How many of them met a fault.
    pub faults: u64,
    /// How many ended with an error.
    pub errors: u64,
    /// How many SMIs were taken.
    pub smis: u64,
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            transactions,
            faults,
            errors,
            smis,
        } = self;
        write!(
            f,
            "{transactions} transactions, {faults} with a fault, {errors} errors, {smis} SMIs"
        )
    }
}

/// A machine that runs for a long time.
pub struct Soak {
    machine: Machine,
    buffers: [CommBuffer; 2],
    views: [SharedRegion; 2],
    mm: Service<dyn MmCommunication>,
    /// The comm buffer of the transaction, and what goes wrong with it.
    fault: Rc<Cell<(u8, Fault)>>,
    random: Random,
    count: Count,
}

struct Find(Rc<Cell<Option<Service<dyn MmCommunication>>>>);

#[component]
impl Find {
    #[expect(clippy::unnecessary_wraps, reason = "what a component's entry point returns")]
    fn entry_point(self, mm: Service<dyn MmCommunication>) -> patina::error::Result<()> {
        self.0.set(Some(mm));
        Ok(())
    }
}

impl Soak {
    /// Sets the machine up: a comm buffer with a mailbox, and one without.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let config = Config::default();
        let machine = Machine::new(config);
        let buffers = [true, false].map(|with_mailbox| machine.allocate_buffer(1, with_mailbox).unwrap());
        let fault = Rc::new(Cell::new((0, Fault::None)));
        let scratch: &'static mut [u8] = vec![0; LEN].leak();
        let served: &'static [CommBuffer] = buffers.to_vec().leak();
        let core = RefCell::new(MmCore::new(&[machine.mmram()], served, scratch).unwrap());
        let of_mm = Rc::clone(&fault);
        machine
            .install_mm(move |memory, mmi| enter(&mut core.borrow_mut(), served, memory, mmi, of_mm.get()));
        machine.close_mmram();

        let mut dispatcher = Dispatcher::new();
        let storage = dispatcher.storage();
        let [first, second] = buffers;
        storage.add_config(MmCommunicationConfiguration {
            acpi_base: AcpiBase::Io(config.pm_base),
            cmd_port: MmiPort::Smi(config.command_port),
            data_port: MmiPort::Smi(config.data_port),
            comm_buffers: vec![memory::comm_buffer(first, 0), memory::comm_buffer(second, 1)],
            enable_comm_buffer_updates: false,
            updatable_buffer_id: None,
        });
        storage.add_config(MmCommunicationOptions {
            completion_polls: POLLS,
            ..MmCommunicationOptions::DEFAULT
        });
        let protocols: &'static HostProtocols = Box::leak(Box::default());
        storage.add_service(SharedProtocols(protocols));
        storage.add_service(HostClock::default());
        dispatcher.add(SwMmiManager::with_ports(machine.clone()));
        dispatcher.add(MmCommunicator::new());
        let found = Rc::new(Cell::new(None));
        dispatcher.add(Find(Rc::clone(&found)));
        let outcome = dispatcher.run();
        Self {
            mm: found.take().unwrap_or_else(|| panic!("{outcome:?}")),
            machine,
            views: buffers.map(memory::view),
            buffers,
            fault,
            random: Random::new(seed),
            count: Count::default(),
        }
    }

    /// The results of the transactions so far.
    #[must_use]
    pub fn count(&self) -> Count {
        Count {
            smis: self.machine.smis_taken() as u64,
            ..self.count
        }
    }

    /// Makes this many transactions, and checks each: a response is the one that MM gave, an error
    /// comes only with a fault, and no byte is left behind.
    pub fn run(&mut self, transactions: u64) {
        for _ in 0..transactions {
            self.transaction();
        }
    }

    fn transaction(&mut self) {
        let fault = Fault::random(&mut self.random);
        let id = u8::from(self.random.below(8) == 0);
        let longest = if self.random.below(16) == 0 { LEN - 24 } else { 64 };
        let len = self.random.below(longest) + 1;
        let value = self.random.number().to_le_bytes();
        let message: Vec<u8> = value.iter().copied().cycle().take(len).collect();
        self.fault.set((id, fault));
        self.machine.set_latency(match fault {
            Fault::Late(pauses) => pauses,
            _ => 1,
        });
        let recipient = BinaryGuid::from_bytes(&Echo::GUID.to_bytes());
        let mut room = [0; LEN];
        let result = self
            .mm
            .communicate_into(id, &message, recipient.as_guid(), &mut room);
        match &result {
            Ok(returned) => {
                // A fault may change the length, and the client can only believe MM's length. The
                // bytes that come back are those that were sent.
                let expected = [message.as_slice(), &[0; LEN]].concat();
                let is_echo = room[..*returned] == expected[..*returned];
                assert!(
                    is_echo || fault == Fault::WritesEverywhere,
                    "{fault:?}: another response"
                );
                assert!(
                    fault != Fault::None || *returned == len,
                    "{returned} bytes for {len}"
                );
            }
            Err(status) => assert!(fault != Fault::None, "{status} without a fault"),
        }
        let is_busy = matches!(result, Err(Status::Busy | Status::MailboxInUse));
        assert!(!is_busy, "{fault:?}: {result:?}");
        // A late SMI finds no request.
        while self.machine.is_smi_pending() {
            mm_comm::Ports::pause(&self.machine);
        }
        self.check_clean(id, fault);

        self.count.transactions += 1;
        self.count.faults += u64::from(fault != Fault::None);
        self.count.errors += u64::from(result.is_err());
        if self.count.transactions.is_multiple_of(1000) {
            let _recorded = self.machine.take_writes();
        }
    }

    fn check_clean(&self, id: u8, fault: Fault) {
        let buffer = self.buffers[usize::from(id)];
        let whole = self.count.transactions.is_multiple_of(WHOLE) || fault != Fault::None;
        let mut bytes = vec![0xff; if whole { LEN } else { 64 }];
        assert!(self.views[usize::from(id)].read(0, &mut bytes));
        // The client does not wipe what MM writes when no request is in progress.
        if !matches!(
            fault,
            Fault::WritesEverywhere | Fault::Guid | Fault::Length(_) | Fault::Late(_)
        ) {
            assert!(
                bytes.iter().all(|byte| *byte == 0),
                "{fault:?}: bytes were left in comm buffer {id}"
            );
        }
        if let Some(mailbox) = buffer.mailbox {
            let mut valid = [0xff];
            self.machine.read_outside(mailbox, &mut valid);
            let by_mm = fault == Fault::StaysAnnounced;
            assert!(
                valid == [0] || by_mm,
                "{fault:?}: the mailbox announces a request"
            );
            if by_mm {
                self.machine.write_outside(mailbox, &[0; 24]);
            }
        }
        if matches!(
            fault,
            Fault::WritesEverywhere | Fault::Guid | Fault::Length(_) | Fault::Late(_)
        ) {
            assert!(self.views[usize::from(id)].wipe(0, LEN));
        }
    }
}

/// Memory that accepts a number of writes, and then no more.
struct Dying<'m> {
    memory: &'m mut dyn SystemMemory,
    writes: u32,
}

impl SystemMemory for Dying<'_> {
    fn read(&self, address: u64, out: &mut [u8]) -> bool {
        self.memory.read(address, out)
    }

    fn write(&mut self, address: u64, bytes: &[u8]) -> bool {
        let Some(left) = self.writes.checked_sub(1) else {
            return false;
        };
        self.writes = left;
        self.memory.write(address, bytes)
    }
}

fn enter(
    core: &mut MmCore<'_>,
    buffers: &[CommBuffer],
    memory: &mut dyn SystemMemory,
    mmi: Mmi,
    (id, fault): (u8, Fault),
) {
    let mut writes = u32::MAX;
    let mut times = 1;
    match fault {
        Fault::NotTaken => return,
        Fault::Twice => times = 2,
        Fault::DiesAfter(after) => writes = after,
        _ => {}
    }
    let mut echo = Echo;
    for _ in 0..times {
        let mut handlers: [Registration<'_>; 1] = [(Echo::GUID, &mut echo)];
        core.enter(&mut Dying { memory, writes }, mmi, &mut handlers, &mut []);
    }
    if let Some(buffer) = buffers.get(usize::from(id)) {
        let start = buffer.region.start();
        let mut put = |address: u64, bytes: &[u8]| assert!(memory.write(address, bytes));
        match (fault, buffer.mailbox) {
            (Fault::Status(status), Some(mailbox)) => put(mailbox + 8, &status.to_le_bytes()),
            (Fault::Size(size), Some(mailbox)) => put(mailbox + 16, &size.to_le_bytes()),
            (Fault::StaysAnnounced, Some(mailbox)) => put(mailbox, &[1]),
            (Fault::Guid, _) => put(start, &[0x99; 16]),
            (Fault::Length(len), _) => put(start + 16, &len.to_le_bytes()),
            (Fault::WritesEverywhere, _) => put(start + 24, &[0xdd; LEN - 24]),
            _ => {}
        }
    }
}
