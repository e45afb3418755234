//! A firmware: as much of the boot and runtime services as a runtime driver uses. An unsafe island
//! (`docs/unsafe.md`).
//!
//! It does what edk2's does: `CoreRaiseTpl` and `CoreRestoreTpl`
//! (MdeModulePkg/Core/Dxe/Event/Tpl.c) assert that a raise does not lower the level, and dispatch
//! what is pending on a restore; `RuntimeDriverConvertPointer` and
//! `RuntimeDriverSetVirtualAddressMap` (MdeModulePkg/Core/RuntimeDxe/Runtime.c) convert only inside
//! of the event, and call the events' functions with the context that they were created with. After
//! `ExitBootServices`, the table of boot services cannot be accessed: a call of one faults.

use super::memory::Block;
use mm_wire::hob::{COMM_BUFFER_HOB_GUID, CommBufferPlace, HOB_LIST_GUID};
use mm_wire::{Guid, PAGE_LEN};
use r_efi::efi;
use std::cell::{Cell, RefCell};
use std::ffi::c_void;
use std::mem::offset_of;
use std::ptr;
use std::rc::Rc;

thread_local! {
    /// The firmware whose functions are called: they cannot get it as an argument.
    static FIRMWARE: RefCell<Option<Rc<Firmware>>> = const { RefCell::new(None) };
}

type Waiting = (efi::Tpl, Box<dyn FnOnce()>);

/// What the functions work on.
pub(crate) struct Firmware {
    pub(crate) blocks: RefCell<Vec<Rc<Block>>>,
    protocols: RefCell<Vec<(efi::Guid, usize)>>,
    events: RefCell<Vec<(u32, efi::EventNotify, usize)>>,
    level: Cell<efi::Tpl>,
    waiting: RefCell<Vec<Waiting>>,
    converting: Cell<bool>,
    /// The functions that will fail.
    pub(crate) failing: RefCell<Vec<&'static str>>,
    /// Attributes and capabilities of the page that a register is in.
    pub(crate) register_page: Cell<(u64, u64)>,
    system: Block,
    boot: Block,
    runtime: Block,
    /// The configuration tables, and behind them the DXE services.
    tables: Block,
}

/// Where the DXE services are behind the configuration tables; the functions' places are those of
/// PI 1.9, volume 2, 3.3.1.
const DXE_SERVICES_TABLE_GUID: Guid = mm_wire::guid!("05ad34ba-6f02-4214-952e-4da0398e2bb9");
const DXE_SERVICES_AT: usize = 0x100;
/// Where the HOB list is, in the same block.
const HOBS_AT: usize = 0x400;
const GET_DESCRIPTOR_AT: usize = 24 + 4 * 8;
const SET_ATTRIBUTES_AT: usize = 24 + 5 * 8;
const SET_CAPABILITIES_AT: usize = 24 + 17 * 8;

/// Writes a table's field through its outside view.
fn put(block: &Block, offset: usize, value: usize) {
    assert!(block.seen_from_outside().write(offset, &value.to_ne_bytes()));
}

/// Writes functions of this file to the fields of a table that have their names.
macro_rules! functions {
    ($block:expr, $table:ty { $($name:ident),+ $(,)? }) => {
        $(put(&$block, offset_of!($table, $name), $name as *const () as usize);)+
    };
}

impl Firmware {
    /// Makes it the firmware of this thread.
    pub(crate) fn boot() -> Rc<Self> {
        let firmware = Rc::new(Self {
            blocks: RefCell::default(),
            protocols: RefCell::default(),
            events: RefCell::default(),
            level: Cell::new(efi::TPL_APPLICATION),
            waiting: RefCell::default(),
            converting: Cell::new(false),
            failing: RefCell::default(),
            register_page: Cell::new((0, 0)),
            system: Block::new(1),
            boot: Block::new(1),
            runtime: Block::new(1),
            tables: Block::new(1),
        });
        functions!(
            firmware.boot,
            efi::BootServices {
                raise_tpl,
                restore_tpl,
                allocate_pages,
                free_pages,
                create_event,
                close_event,
                install_protocol_interface,
                uninstall_protocol_interface,
                locate_protocol,
            }
        );
        functions!(firmware.runtime, efi::RuntimeServices { convert_pointer });
        let system = |offset, value| put(&firmware.system, offset, value);
        system(
            offset_of!(efi::SystemTable, boot_services),
            firmware.boot.physical,
        );
        system(
            offset_of!(efi::SystemTable, runtime_services),
            firmware.runtime.physical,
        );
        FIRMWARE.set(Some(Rc::clone(&firmware)));
        firmware
    }

    /// Publishes DXE services, whose memory space has one page: that of a register.
    pub(crate) fn publish_dxe_services(&self, attributes: u64, capabilities: u64) {
        self.register_page.set((attributes, capabilities));
        let tables = |offset, value| put(&self.tables, offset, value);
        for (offset, function) in [
            (GET_DESCRIPTOR_AT, get_memory_space_descriptor as *const ()),
            (SET_ATTRIBUTES_AT, set_memory_space_attributes as *const ()),
            (SET_CAPABILITIES_AT, set_memory_space_capabilities as *const ()),
        ] {
            tables(DXE_SERVICES_AT + offset, function as usize);
        }
        self.publish(DXE_SERVICES_TABLE_GUID, DXE_SERVICES_AT);
    }

    /// Publishes a HOB list with edk2's comm-buffer HOB for each of these places.
    pub(crate) fn publish_hobs(&self, places: &[CommBufferPlace]) {
        let mut list = Vec::new();
        let mut hob = |kind: u16, data: &[u8]| {
            let len = u16::try_from(8 + data.len()).unwrap();
            list.extend([kind.to_le_bytes(), len.to_le_bytes()].concat());
            list.extend([0; 4]);
            list.extend(data);
        };
        for place in places {
            let (region, mailbox) = (place.region(), place.mailbox().unwrap());
            let pages = region.len() / PAGE_LEN as u64;
            let fields = [region.start(), pages, mailbox].map(u64::to_le_bytes);
            // A GUID HOB (PI 1.9, volume 3, 5.7).
            hob(
                4,
                &[&COMM_BUFFER_HOB_GUID.to_bytes(), fields.as_flattened()].concat(),
            );
        }
        // The end of the list.
        hob(0xffff, &[]);
        assert!(self.tables.seen_from_outside().write(HOBS_AT, &list));
        self.publish(HOB_LIST_GUID, HOBS_AT);
    }

    /// Publishes the contents of the block at `at` as the only configuration table.
    fn publish(&self, guid: Guid, at: usize) {
        let tables = |offset, value| put(&self.tables, offset, value);
        assert!(self.tables.seen_from_outside().write(0, &guid.to_bytes()));
        tables(16, self.tables.physical + at);
        let system = |offset, value| put(&self.system, offset, value);
        system(offset_of!(efi::SystemTable, number_of_table_entries), 1);
        system(
            offset_of!(efi::SystemTable, configuration_table),
            self.tables.physical,
        );
    }

    pub(crate) fn system_table(&self) -> *mut efi::SystemTable {
        ptr::with_exposed_provenance_mut(self.system.physical)
    }

    /// Allocates runtime memory.
    pub(crate) fn allocate(&self, pages: usize) -> Rc<Block> {
        let block = Rc::new(Block::new(pages));
        self.blocks.borrow_mut().push(Rc::clone(&block));
        block
    }

    /// Where an interface is now; `None` if the protocol is not installed.
    pub(crate) fn interface(&self, guid: efi::Guid) -> Option<usize> {
        let protocols = self.protocols.borrow();
        let (_, interface) = protocols.iter().find(|(installed, _)| *installed == guid)?;
        let blocks = self.blocks.borrow();
        Some(
            blocks
                .iter()
                .find_map(|block| block.translate(*interface))
                .unwrap_or(*interface),
        )
    }

    pub(crate) fn event_count(&self) -> usize {
        self.events.borrow().len()
    }

    /// Runs a notification at its level: at once, or as soon as the level is below that.
    pub(crate) fn notify(&self, level: efi::Tpl, code: Box<dyn FnOnce()>) {
        self.waiting.borrow_mut().push((level, code));
        self.run_waiting();
    }

    fn run_waiting(&self) {
        loop {
            let level = self.level.get();
            let next = self.waiting.borrow().iter().position(|(at, _)| *at > level);
            let Some(next) = next else {
                return;
            };
            let (at, code) = self.waiting.borrow_mut().remove(next);
            self.level.set(at);
            code();
            self.level.set(level);
        }
    }

    fn signal(&self, kind: u32) {
        let events = self.events.borrow().clone();
        for (_, function, context) in events.iter().filter(|(of, ..)| *of == kind) {
            // SAFETY: the driver's function, with its context.
            unsafe { function(ptr::null_mut(), ptr::with_exposed_provenance_mut(*context)) };
        }
    }

    /// Ends boot services: a later use faults.
    pub(crate) fn exit_boot_services(&self) {
        self.signal(efi::EVT_SIGNAL_EXIT_BOOT_SERVICES);
        self.boot.forbid();
        self.system.forbid();
    }

    /// Moves those blocks that `moves` picks; what was at the old addresses is gone.
    pub(crate) fn set_virtual_address_map(&self, moves: impl Fn(&Block) -> bool) {
        let blocks: Vec<_> = self
            .blocks
            .borrow()
            .iter()
            .filter(|block| moves(block))
            .cloned()
            .collect();
        blocks.iter().for_each(|block| {
            block.announce_move();
        });
        self.signal_address_change();
        blocks.iter().for_each(|block| block.finish_move());
        self.runtime.forbid();
    }

    /// Signals the event alone, as if in the middle of a call.
    pub(crate) fn signal_address_change(&self) {
        self.converting.set(true);
        self.signal(efi::EVT_SIGNAL_VIRTUAL_ADDRESS_CHANGE);
        self.converting.set(false);
    }

    /// Makes ConvertPointer fail for a block.
    pub(crate) fn forget(&self, block: &Rc<Block>) {
        self.blocks.borrow_mut().retain(|known| !Rc::ptr_eq(known, block));
    }

    fn fails(&self, function: &'static str) -> bool {
        self.failing.borrow().contains(&function)
    }
}

fn with<T>(use_it: impl FnOnce(&Firmware) -> T) -> T {
    let firmware = FIRMWARE.with_borrow(|firmware| firmware.clone());
    use_it(&firmware.unwrap())
}

unsafe extern "efiapi" fn raise_tpl(tpl: efi::Tpl) -> efi::Tpl {
    with(|firmware| {
        let old = firmware.level.get();
        assert!(tpl >= old, "raised from TPL {old} to {tpl}");
        firmware.level.replace(tpl)
    })
}

unsafe extern "efiapi" fn restore_tpl(tpl: efi::Tpl) {
    with(|firmware| {
        let old = firmware.level.get();
        assert!(tpl <= old, "restored from TPL {old} to {tpl}");
        firmware.level.set(tpl);
        firmware.run_waiting();
    });
}

unsafe extern "efiapi" fn allocate_pages(
    _: efi::AllocateType,
    kind: efi::MemoryType,
    pages: usize,
    address: *mut efi::PhysicalAddress,
) -> efi::Status {
    with(|firmware| {
        if firmware.fails("AllocatePages") {
            return efi::Status::OUT_OF_RESOURCES;
        }
        assert_eq!(
            kind,
            efi::RUNTIME_SERVICES_DATA,
            "memory that the operating system does not keep"
        );
        let block = firmware.allocate(pages);
        // SAFETY: the caller's place.
        unsafe { address.write(block.physical as u64) };
        efi::Status::SUCCESS
    })
}

unsafe extern "efiapi" fn free_pages(address: efi::PhysicalAddress, _: usize) -> efi::Status {
    with(|firmware| {
        let mut blocks = firmware.blocks.borrow_mut();
        let at = blocks
            .iter()
            .position(|block| block.physical as u64 == address)
            .unwrap();
        blocks.remove(at).forbid();
        efi::Status::SUCCESS
    })
}

unsafe extern "efiapi" fn create_event(
    kind: u32,
    _: efi::Tpl,
    function: Option<efi::EventNotify>,
    context: *mut c_void,
    event: *mut efi::Event,
) -> efi::Status {
    with(|firmware| {
        let name = match kind {
            efi::EVT_SIGNAL_EXIT_BOOT_SERVICES => "CreateEvent ExitBootServices",
            _ => "CreateEvent SetVirtualAddressMap",
        };
        if firmware.fails(name) {
            return efi::Status::OUT_OF_RESOURCES;
        }
        let mut events = firmware.events.borrow_mut();
        events.push((kind, function.unwrap(), context.expose_provenance()));
        // SAFETY: the caller's place. The number of an event is its kind.
        unsafe { event.write(ptr::without_provenance_mut(kind as usize)) };
        efi::Status::SUCCESS
    })
}

unsafe extern "efiapi" fn close_event(event: efi::Event) -> efi::Status {
    with(|firmware| {
        let mut events = firmware.events.borrow_mut();
        events.retain(|(kind, ..)| *kind as usize != event.addr());
        efi::Status::SUCCESS
    })
}

unsafe extern "efiapi" fn install_protocol_interface(
    handle: *mut efi::Handle,
    guid: *mut efi::Guid,
    _: efi::InterfaceType,
    interface: *mut c_void,
) -> efi::Status {
    with(|firmware| {
        let mut protocols = firmware.protocols.borrow_mut();
        if firmware.fails("InstallProtocolInterface") && protocols.len() == 2 {
            return efi::Status::OUT_OF_RESOURCES;
        }
        // SAFETY: the caller's pointers.
        let guid = unsafe { guid.read() };
        protocols.push((guid, interface.expose_provenance()));
        // SAFETY: the caller's place.
        unsafe { handle.write(ptr::without_provenance_mut(1)) };
        efi::Status::SUCCESS
    })
}

unsafe extern "efiapi" fn uninstall_protocol_interface(
    _: efi::Handle,
    guid: *mut efi::Guid,
    interface: *mut c_void,
) -> efi::Status {
    with(|firmware| {
        // SAFETY: the caller's pointer.
        let gone = (unsafe { guid.read() }, interface.addr());
        firmware
            .protocols
            .borrow_mut()
            .retain(|installed| *installed != gone);
        efi::Status::SUCCESS
    })
}

unsafe extern "efiapi" fn locate_protocol(
    guid: *mut efi::Guid,
    _: *mut c_void,
    interface: *mut *mut c_void,
) -> efi::Status {
    with(|firmware| {
        // SAFETY: the caller's pointer.
        match firmware.interface(unsafe { guid.read() }) {
            None => efi::Status::NOT_FOUND,
            Some(address) => {
                // SAFETY: the caller's place.
                unsafe { interface.write(ptr::with_exposed_provenance_mut(address)) };
                efi::Status::SUCCESS
            }
        }
    })
}

unsafe extern "efiapi" fn convert_pointer(_: usize, address: *mut *mut c_void) -> efi::Status {
    with(|firmware| {
        if !firmware.converting.get() {
            return efi::Status::UNSUPPORTED;
        }
        // SAFETY: the caller's place.
        let physical = unsafe { address.read() }.addr();
        let blocks = firmware.blocks.borrow();
        let converted = blocks.iter().find_map(|block| block.translate(physical));
        // Code keeps its address: this process does not move.
        let is_code = physical.abs_diff(convert_pointer as *const () as usize) < 1 << 30;
        match converted.or(is_code.then_some(physical)) {
            None => efi::Status::NOT_FOUND,
            Some(converted) => {
                // SAFETY: the caller's place.
                unsafe { address.write(ptr::with_exposed_provenance_mut(converted)) };
                efi::Status::SUCCESS
            }
        }
    })
}

/// The page that the tests' register is in.
pub(crate) const REGISTER_PAGE: u64 = 0xfed0_0000;

unsafe extern "efiapi" fn get_memory_space_descriptor(base: u64, descriptor: *mut u64) -> efi::Status {
    with(|firmware| {
        assert_eq!(base, REGISTER_PAGE);
        let (attributes, capabilities) = firmware.register_page.get();
        // EFI_GCD_MEMORY_SPACE_DESCRIPTOR: base, length, capabilities, attributes.
        for (index, value) in [base, PAGE_LEN as u64, capabilities, attributes]
            .into_iter()
            .enumerate()
        {
            // SAFETY: the caller's place.
            unsafe { descriptor.wrapping_add(index).write(value) };
        }
        efi::Status::SUCCESS
    })
}

unsafe extern "efiapi" fn set_memory_space_attributes(base: u64, len: u64, new: u64) -> efi::Status {
    with(|firmware| {
        assert_eq!((base, len), (REGISTER_PAGE, PAGE_LEN as u64));
        let (_, capabilities) = firmware.register_page.get();
        // `CoreConvertSpace` (MdeModulePkg/Core/Dxe/Gcd/Gcd.c) refuses what the memory is not
        // capable of.
        if new & !capabilities != 0 {
            return efi::Status::UNSUPPORTED;
        }
        firmware.register_page.set((new, capabilities));
        efi::Status::SUCCESS
    })
}

unsafe extern "efiapi" fn set_memory_space_capabilities(base: u64, len: u64, new: u64) -> efi::Status {
    with(|firmware| {
        assert_eq!((base, len), (REGISTER_PAGE, PAGE_LEN as u64));
        let (attributes, _) = firmware.register_page.get();
        firmware.register_page.set((attributes, new));
        efi::Status::SUCCESS
    })
}

const _: () = assert!(size_of::<efi::BootServices>() < PAGE_LEN);
