//! Ports, SMIs, and the handle that tests hold.

use crate::memory::{Memory, MmView};
use crate::{SimError, StandardMm};
use mm_comm::{Channel, PortTrigger, Ports, SharedRegion, SmiCheck, SmiEnable, SmiEnableRegister};
use mm_core::{CommBuffer, Mmi, SystemMemory};
use mm_wire::{AddressRange, PAGE_LEN};
use std::cell::{Cell, RefCell};
use std::fmt;
use std::rc::Rc;

/// Offset of SMI_EN from PMBASE.
const SMI_EN_OFFSET: u16 = 0x30;

/// PCI configuration mechanism #1: address and data port.
const PCI_ADDRESS: u16 = 0xcf8;
const PCI_DATA: u16 = 0xcfc;

/// Values of the command port that the chipset handles itself: ACPI enable and disable. They do not
/// raise an SMI.
const ACPI_COMMANDS: [u8; 2] = [0x02, 0x03];

/// The compatible SMRAM segment of Intel chipsets.
const COMPATIBLE_SMRAM: AddressRange = match AddressRange::new(0xa_0000, 0x2_0000) {
    Some(range) => range,
    None => unreachable!(),
};

/// How a machine is wired. The default is Q35 under OVMF, with SMIs on.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// The port whose write raises an SMI.
    pub command_port: u16,
    /// The port whose value MM reads along with the command.
    pub data_port: u16,
    /// The ACPI base in I/O space; SMI_EN is the 32-bit port at +0x30.
    pub pm_base: u16,
    /// The address at which SMI_EN is also memory-mapped.
    pub smi_enable_mmio: Option<usize>,
    /// SMI_EN at reset.
    pub smi_enable: u32,
    /// How many pauses it takes until a pending SMI is taken; 0 is a machine that takes it during
    /// the `out`.
    pub latency: u32,
    /// The addresses of MMRAM.
    pub mmram: AddressRange,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            command_port: 0xb2,
            data_port: 0xb3,
            pm_base: 0x600,
            smi_enable_mmio: None,
            smi_enable: SmiEnable::all().bits(),
            latency: 1,
            mmram: COMPATIBLE_SMRAM,
        }
    }
}

/// A write to I/O, as the chipset saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoWrite {
    /// A byte to a port.
    Byte(u16, u8),
    /// 32 bits to a port.
    Dword(u16, u32),
    /// 32 bits to a memory-mapped register.
    Mmio(usize, u32),
}

type MmSide = Box<dyn FnMut(&mut dyn SystemMemory, Mmi)>;

/// A handle to a simulated machine; clones are handles to the same one.
///
/// It implements [`Ports`]: code under test takes one clone, the test observes through another.
#[derive(Clone)]
pub struct Machine(Rc<Hardware>);

struct Hardware {
    config: Config,
    memory: Memory,
    /// `None` while MM runs.
    mm: RefCell<Option<MmSide>>,
    in_mm: Cell<bool>,
    command: Cell<u8>,
    data: Cell<u8>,
    smi_enable: Cell<u32>,
    smi_enable_fixed: Cell<u32>,
    /// The last value that was written to `PCI_ADDRESS`.
    pci_address: Cell<u32>,
    /// Pauses until an SMI is taken, from now on.
    latency: Cell<u32>,
    /// Pauses until the pending SMI is taken.
    pending: Cell<Option<u32>>,
    taken: Cell<usize>,
    writes: RefCell<Vec<IoWrite>>,
}

impl Machine {
    /// Makes a machine without RAM, with open MMRAM, and with nothing installed in it: an SMI is
    /// taken and returns.
    #[must_use]
    pub fn new(config: Config) -> Self {
        Self(Rc::new(Hardware {
            config,
            memory: Memory::new(config.mmram),
            mm: RefCell::default(),
            in_mm: Cell::new(false),
            command: Cell::new(0),
            data: Cell::new(0),
            smi_enable: Cell::new(config.smi_enable),
            smi_enable_fixed: Cell::new(0),
            pci_address: Cell::new(0),
            latency: Cell::new(config.latency),
            pending: Cell::new(None),
            taken: Cell::new(0),
            writes: RefCell::default(),
        }))
    }

    /// Makes a machine with a comm buffer for each number of pages, each with a mailbox on a
    /// separate page, and with [`StandardMm`] in its closed MMRAM.
    ///
    /// # Errors
    ///
    /// [`SimError::NoPages`] for a buffer of no pages, [`SimError::Setup`] for more buffers than an
    /// MM core serves.
    pub fn with_standard_handlers(
        config: Config,
        pages: &[usize],
    ) -> Result<(Self, Vec<CommBuffer>), SimError> {
        let machine = Self::new(config);
        let buffers = pages
            .iter()
            .map(|pages| machine.allocate_buffer(*pages, true))
            .collect::<Result<Vec<_>, _>>()?;
        let mut mm = StandardMm::new(config.mmram, &buffers)?;
        machine.install_mm(move |memory, mmi| {
            mm.enter(memory, mmi);
        });
        machine.close_mmram();
        Ok((machine, buffers))
    }

    /// Replaces the code that runs on each SMI.
    pub fn install_mm(&self, mm: impl FnMut(&mut dyn SystemMemory, Mmi) + 'static) {
        *self.0.mm.borrow_mut() = Some(Box::new(mm));
    }

    /// Allocates zeroed RAM. The pointer is aligned to 4096 bytes, its address the physical one,
    /// and it stays valid until the process ends. Null for no pages.
    ///
    /// MM changes this memory behind the compiler's back: access it as volatile.
    #[must_use]
    pub fn allocate_pages(&self, pages: usize) -> *mut u8 {
        self.0.memory.allocate(pages)
    }

    /// Adds RAM at a physical address, which MM and bus masters reach through `bytes`. With this a
    /// test can map memory at another address for the code under test, and remove that mapping
    /// again.
    pub fn add_ram(&self, start: u64, bytes: SharedRegion) {
        self.0.memory.add(start, bytes);
    }

    /// Allocates a comm buffer and, on request, a mailbox on a separate page.
    ///
    /// # Errors
    ///
    /// [`SimError::NoPages`] if `pages` is zero.
    pub fn allocate_buffer(&self, pages: usize, with_mailbox: bool) -> Result<CommBuffer, SimError> {
        let start = self.allocate_pages(pages).addr() as u64;
        let len = pages.saturating_mul(PAGE_LEN) as u64;
        Ok(CommBuffer {
            region: AddressRange::new(start, len).ok_or(SimError::NoPages)?,
            mailbox: with_mailbox.then(|| self.allocate_pages(1).addr() as u64),
        })
    }

    /// Makes the client's side of a comm buffer.
    ///
    /// # Errors
    ///
    /// [`SimError::NotRam`] if region or mailbox are not RAM of this machine, [`SimError::Channel`]
    /// if they cannot be a comm buffer.
    pub fn channel(&self, buffer: CommBuffer) -> Result<Channel, SimError> {
        self.0.memory.channel(buffer)
    }

    /// The trigger that fits this machine's ports.
    #[must_use]
    pub fn trigger(&self, check: SmiCheck) -> PortTrigger {
        PortTrigger {
            command_port: self.0.config.command_port,
            data_port: self.0.config.data_port,
            smi_enable: SmiEnableRegister::behind_io_base(self.0.config.pm_base).ok(),
            check,
        }
    }

    /// The addresses of MMRAM.
    #[must_use]
    pub fn mmram(&self) -> AddressRange {
        self.0.config.mmram
    }

    /// Closes MMRAM for processors outside MM, until the machine is switched off.
    pub fn close_mmram(&self) {
        self.0.memory.mmram_open.set(false);
    }

    /// Reads memory like a processor outside MM: 0xFF from closed MMRAM and from addresses without
    /// memory.
    pub fn read_outside(&self, address: u64, out: &mut [u8]) {
        self.0.memory.read_outside(address, out);
    }

    /// Writes memory like a processor outside MM: writes to closed MMRAM and to addresses without
    /// memory are lost.
    pub fn write_outside(&self, address: u64, bytes: &[u8]) {
        self.0.memory.write_outside(address, bytes);
    }

    /// How many SMIs were taken.
    #[must_use]
    pub fn smis_taken(&self) -> usize {
        self.0.taken.get()
    }

    /// Whether an SMI was raised and not taken yet.
    #[must_use]
    pub fn is_smi_pending(&self) -> bool {
        self.0.pending.get().is_some()
    }

    /// Takes the record of all writes to I/O since the last call, oldest first.
    #[must_use]
    pub fn take_writes(&self) -> Vec<IoWrite> {
        self.0.writes.take()
    }

    /// How many pauses it takes until an SMI that is raised from now on is taken. A pending one is
    /// not taken later than that.
    pub fn set_latency(&self, pauses: u32) {
        self.0.latency.set(pauses);
        self.0
            .pending
            .update(|pending| pending.map(|left| left.min(pauses)));
    }

    /// The value of SMI_EN.
    #[must_use]
    pub fn smi_enable(&self) -> u32 {
        self.0.smi_enable.get()
    }

    /// Sets SMI_EN, as firmware did before, with the bits that [`Self::lock_smi_enable`] names.
    pub fn set_smi_enable(&self, value: u32) {
        self.0.smi_enable.set(value);
    }

    /// Locks bits of SMI_EN: writes do not change them any more.
    pub fn lock_smi_enable(&self, bits: u32) {
        self.0.smi_enable_fixed.update(|fixed| fixed | bits);
    }
}

impl fmt::Debug for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Machine")
            .field("config", &self.0.config)
            .field("smis_taken", &self.smis_taken())
            .field("pending", &self.0.pending)
            .finish_non_exhaustive()
    }
}

impl Hardware {
    fn is_smi_enable_port(&self, port: u16) -> bool {
        self.config.pm_base.checked_add(SMI_EN_OFFSET) == Some(port)
    }

    fn write_smi_enable(&self, value: u32) {
        let fixed = self.smi_enable_fixed.get();
        self.smi_enable.update(|old| (old & fixed) | (value & !fixed));
    }

    /// The LPC bridge, 0:1F.0, is the only device on the PCI bus: PMBASE @0x40 and ACPI_CNTL @0x44,
    /// as firmware leaves them.
    fn read_pci(&self) -> u32 {
        match self.pci_address.get() {
            0x8000_f840 => u32::from(self.config.pm_base) | 1,
            0x8000_f844 => 0x80,
            _ => u32::MAX,
        }
    }

    fn write_command(&self, command: u8) {
        self.command.set(command);
        let is_enabled = SmiEnable::from_bits_truncate(self.smi_enable.get()).is_all();
        if !is_enabled || ACPI_COMMANDS.contains(&command) {
            return;
        }
        if self.pending.get().is_none() {
            self.pending.set(Some(self.latency.get()));
        }
        if self.latency.get() == 0 {
            self.take_smi();
        }
    }

    /// Runs MM. While it runs no second SMI is taken: it stays pending.
    fn take_smi(&self) {
        if self.in_mm.replace(true) {
            return;
        }
        self.pending.set(None);
        self.taken.update(|taken| taken.saturating_add(1));
        let mmi = Mmi {
            command: self.command.get(),
            data: self.data.get(),
        };
        let mm = self.mm.borrow_mut().take();
        if let Some(mut mm) = mm {
            mm(&mut MmView(&self.memory), mmi);
            // Unless MM installed other code meanwhile.
            self.mm.borrow_mut().get_or_insert(mm);
        }
        self.in_mm.set(false);
    }
}

impl Ports for Machine {
    fn write_u8(&self, port: u16, value: u8) {
        self.0.writes.borrow_mut().push(IoWrite::Byte(port, value));
        if port == self.0.config.command_port {
            self.0.write_command(value);
        } else if port == self.0.config.data_port {
            self.0.data.set(value);
        }
    }

    fn read_u32(&self, port: u16) -> u32 {
        match port {
            PCI_ADDRESS => self.0.pci_address.get(),
            PCI_DATA => self.0.read_pci(),
            port if self.0.is_smi_enable_port(port) => self.smi_enable(),
            _ => u32::MAX,
        }
    }

    fn write_u32(&self, port: u16, value: u32) {
        self.0.writes.borrow_mut().push(IoWrite::Dword(port, value));
        match port {
            PCI_ADDRESS => self.0.pci_address.set(value),
            port if self.0.is_smi_enable_port(port) => self.0.write_smi_enable(value),
            _ => {}
        }
    }

    fn read_mmio_u32(&self, address: usize) -> u32 {
        if self.0.config.smi_enable_mmio == Some(address) {
            self.smi_enable()
        } else {
            u32::MAX
        }
    }

    fn write_mmio_u32(&self, address: usize, value: u32) {
        self.0.writes.borrow_mut().push(IoWrite::Mmio(address, value));
        if self.0.config.smi_enable_mmio == Some(address) {
            self.0.write_smi_enable(value);
        }
    }

    fn pause(&self) {
        match self.0.pending.get() {
            None => {}
            Some(0 | 1) => self.0.take_smi(),
            Some(left) => self.0.pending.set(Some(left.saturating_sub(1))),
        }
    }
}
