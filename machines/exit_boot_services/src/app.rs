//! From the entry point to the end. An unsafe island (`docs/unsafe.md`).

use crate::cpu::{self, Console, Fault};
use crate::requests::{self, Requests};
use crate::site::{self, Client, RuntimeSite};
use crate::variables;
use alloc::boxed::Box;
use alloc::format;
use alloc::rc::Rc;
use alloc::string::String;
use alloc::vec::Vec;
use core::ffi::c_void;
use core::fmt::Write;
use core::panic::PanicInfo;
use core::ptr;
use exit_boot_services::map::{Change, Owner, RUNTIME_SERVICES_CODE, Region, translate};
use exit_boot_services::paging::{PageTables, Use};
use linked_list_allocator::LockedHeap;
#[cfg(target_arch = "x86_64")]
use mm_comm::Channel;
use mm_conformance::Lab;
use mm_conformance::c_abi::{self, Addresses};
use mm_conformance::lab::CProtocol;
use mm_conformance::report::{NotOk, Report, ensure, equal};
use mm_conformance::soak::{self, Through};
use mm_runtime::protocols::{COMMUNICATION, COMMUNICATION2, COMMUNICATION3};
use mm_wire::hob::CommBufferPlace;
use mm_wire::{AddressRange, EfiStatus, PAGE_LEN};
use r_efi::efi;
use variable_driver::files::Volume;
use variable_driver::firmware::{self, Firmware};

/// The memory of this operating system, page tables included.
const HEAP_PAGES: usize = 0x1000;
const STACK_PAGES: usize = 0x40;

#[global_allocator]
static HEAP: LockedHeap = LockedHeap::empty();

/// The value that overwrites boot-services memory.
const OVERWRITTEN: u64 = 0xcccc_cccc_cccc_cccc;

variable_driver::entry_point!(run);

fn run(firmware: Firmware) -> firmware::Result<()> {
    let why = match prepare(firmware) {
        Ok((stack, machine)) => leave(firmware, stack, machine),
        Err(why) => why,
    };
    let _ = writeln!(Console, "exit_boot_services: {why}");
    cpu::end(false)
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    let _ = writeln!(Console, "exit_boot_services: {info}");
    cpu::end(false)
}

/// The facts about the machine, and the report so far. All addresses are physical.
struct Machine {
    system: *mut efi::SystemTable,
    interfaces: [u64; 3],
    buffer: CommBufferPlace,
    requests: Rc<Requests>,
    change: Change,
    /// Whether it makes very many calls in its last life, and no other tests.
    soaks: bool,
    /// The boot services' table, which is gone at the end.
    boot_services: u64,
    map: Vec<Region>,
    report: Report<Console>,
}

/// Does everything that needs boot services, and runs the tests of the first life. Returns the end
/// of a stack for the others.
fn prepare(firmware: Firmware) -> Result<(*mut u8, Machine), String> {
    let failed = |what: &'static str| move |status: efi::Status| format!("{what}: {status:?}");
    let heap = firmware.allocate(efi::LOADER_DATA, HEAP_PAGES, None);
    let heap = heap.map_err(|_no_memory| String::new())?;
    // SAFETY: allocated just now, for this alone; done once.
    unsafe { HEAP.lock().init(heap, HEAP_PAGES.saturating_mul(PAGE_LEN)) };
    let stack = firmware
        .allocate(efi::LOADER_DATA, STACK_PAGES, None)
        .map_err(failed("the stack"))?
        .wrapping_add(STACK_PAGES.saturating_mul(PAGE_LEN));
    let volume = Volume::of_program(firmware).map_err(failed("the volume"))?;
    let word = volume.read("map").map_err(failed("the file `map`"))?;
    let mut words = core::str::from_utf8(word).unwrap_or_default().split_whitespace();
    let change = words
        .next()
        .and_then(Change::of_word)
        .ok_or("the file `map` has no word for a map")?;
    let soaks = words.next() == Some("soak");

    let services = || variables::Services::new(firmware.runtime_services());
    let firmwares_own = services().functions();
    volume
        .start_driver("driver1.efi")
        .map_err(failed("driver1.efi"))?;
    let has_variable_driver = volume
        .start_driver("driver2.efi")
        .map_err(failed("driver2.efi"))?;

    let locate = |guid| firmware.locate(guid).map(|interface| interface.addr() as u64);
    let interface = |guid| locate(guid).map_err(failed("a communication protocol"));
    let interfaces = [
        interface(COMMUNICATION)?,
        interface(COMMUNICATION2)?,
        interface(COMMUNICATION3)?,
    ];
    // SAFETY: the firmware's table, while boot services last.
    let boot_services = unsafe { (*firmware.system).boot_services }.addr() as u64;
    let (buffer, requests) = requests::find(firmware.system)?;
    let mut machine = Machine {
        system: firmware.system,
        interfaces,
        buffer,
        requests: Rc::new(requests),
        change,
        soaks,
        boot_services,
        map: Vec::new(),
        report: Report::new(Console),
    };
    if has_variable_driver {
        let all_are_new = services()
            .functions()
            .iter()
            .zip(firmwares_own)
            .all(|(new, old)| *new != old);
        machine
            .report
            .test("boot.variable_services_are_those_of_our_driver", || {
                ensure(all_are_new, "the driver did not take them over")
            });
    }
    variables::write_before_exit(&services()).map_err(|status| format!("SetVariable: {status:?}"))?;
    play(&mut machine, Life::Boot, &[]);
    Ok((stack, machine))
}

/// Leaves boot services, and continues in [`continue_alone`]. Returns only if that fails, with the
/// reason.
fn leave(firmware: Firmware, stack: *mut u8, mut machine: Machine) -> String {
    // Separates the SMIs before this line from those after it.
    let _ = writeln!(Console, "LEAVING boot services, map {:?}", machine.change);
    // The firmware may change the map while it is called the first time (UEFI 2.11, 7.4.6).
    let mut why = String::new();
    for _ in 0..2 {
        let left = memory_map(firmware).and_then(|(map, key)| {
            machine.map = map;
            exit(firmware, key)
        });
        match left {
            Ok(()) => {
                let machine = Box::into_raw(Box::new(machine));
                // SAFETY: boot services have ended.
                unsafe { cpu::take_over() };
                // SAFETY: the stack was allocated for this, and the function gets its own argument.
                unsafe { cpu::go_on(stack, continue_alone, machine.cast()) };
            }
            Err(status) => why = format!("ExitBootServices: {status:?}"),
        }
    }
    why
}

/// The memory map and its key.
fn memory_map(firmware: Firmware) -> firmware::Result<(Vec<Region>, usize)> {
    // SAFETY: the firmware's tables, while boot services last.
    let get = unsafe { (*firmware.boot_services()).get_memory_map };
    let mut words = alloc::vec![0_u64; 0x4000];
    let (mut size, mut key, mut stride, mut version) = (words.len().saturating_mul(8), 0, 0, 0);
    // SAFETY: a function of the firmware, with room for the map and places to write to.
    firmware::check(unsafe {
        get(
            &raw mut size,
            words.as_mut_ptr().cast(),
            &raw mut key,
            &raw mut stride,
            &raw mut version,
        )
    })?;
    // The descriptors may be longer than those that this program knows; their length is a multiple of 8.
    let used = words.get(..size / 8).unwrap_or_default();
    let map = used
        .chunks_exact((stride / 8).max(5))
        .filter_map(|descriptor| match *descriptor {
            // Type and padding, physical and virtual address, pages, attributes (UEFI 2.11, 7.2.3).
            [kind, start, _, pages, attributes, ..] => Some(Region {
                kind: u32::try_from(kind & 0xffff_ffff).ok()?,
                start,
                pages,
                attributes,
                virt: start,
            }),
            _ => None,
        })
        .collect();
    Ok((map, key))
}

fn exit(firmware: Firmware, key: usize) -> firmware::Result<()> {
    // SAFETY: the firmware's tables, while boot services last.
    let exit = unsafe { (*firmware.boot_services()).exit_boot_services };
    // SAFETY: a function of the firmware; nothing of boot services is used afterwards.
    firmware::check(unsafe { exit(firmware.image.as_raw(), key) })
}

/// How far the operating system has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Life {
    /// Boot services last.
    Boot,
    /// Boot services have ended, and addresses are as they were.
    Left,
    /// Addresses are those of the map.
    Moved,
}

impl Life {
    const fn name(self) -> &'static str {
        match self {
            Self::Boot => "boot",
            Self::Left => "left",
            Self::Moved => "moved",
        }
    }
}

/// The operating system: on its own stack, with interrupts off.
extern "efiapi" fn continue_alone(machine: *mut c_void) -> ! {
    // SAFETY: the pointer that `leave` made of a box.
    let mut machine = unsafe { Box::from_raw(machine.cast::<Machine>()) };
    let machine = &mut *machine;
    let raised_at_boot = machine.requests.raised();
    let mut tables = own_tables(machine.map.iter());
    let boot = || machine.map.iter().filter(|region| region.owner() == Owner::Boot);
    for region in boot() {
        tables.map(region.start, region.start, region.pages, Use::Data);
    }
    // SAFETY: all of this program is mapped where it is, and so is all that is the firmware's.
    unsafe { cpu::use_tables(&tables) };
    for region in boot() {
        // SAFETY: nothing of the firmware's is left in it, and nothing of this program was there.
        unsafe { cpu::fill(region.start, region.len() / 8, OVERWRITTEN) };
    }
    for region in boot() {
        tables.unmap(region.start, region.pages);
    }
    // SAFETY: the same tables, without the memory that was overwritten, which nothing uses.
    unsafe { cpu::use_tables(&tables) };
    let boot_services = machine.boot_services;
    machine
        .report
        .test("left.boot_services_memory_is_not_mapped_any_more", || {
            must_fault(boot_services)
        });
    play(machine, Life::Left, &[]);
    if machine.change != Change::None {
        move_firmware(machine);
    }
    let raised = machine.requests.raised().saturating_sub(raised_at_boot);
    cpu::end(machine.report.finish(raised))
}

/// Page tables with this program and the devices that it uses. They are never freed.
fn own_tables<'a>(map: impl Iterator<Item = &'a Region>) -> Box<PageTables> {
    let mut tables = PageTables::new(cpu::FORMAT);
    for region in map {
        match region.owner() {
            Owner::Ours => tables.map(region.start, region.start, region.pages, Use::Code),
            Owner::Runtime => map_runtime(&mut tables, region),
            Owner::Boot | Owner::Other => {}
        }
    }
    for device in cpu::DEVICES {
        tables.map(*device, *device, 1, Use::Device);
    }
    Box::new(tables)
}

fn map_runtime(tables: &mut PageTables, region: &Region) {
    const MEMORY_MAPPED_IO: [u32; 2] = [11, 12];
    let used = match region.kind {
        RUNTIME_SERVICES_CODE => Use::Code,
        kind if MEMORY_MAPPED_IO.contains(&kind) => Use::Device,
        _ => Use::Data,
    };
    tables.map(region.virt, region.start, region.pages, used);
}

/// Calls `SetVirtualAddressMap`, makes the old addresses fault, and runs the tests of the last
/// life.
fn move_firmware(machine: &mut Machine) {
    let moved = machine.change.apply(&machine.map, moving(machine.buffer));
    // SAFETY: the firmware's table, at its physical address: nothing has moved yet.
    let runtime = unsafe { (*machine.system).runtime_services };
    let mut status = efi::Status::ABORTED;
    machine
        .report
        .test("moved.set_virtual_address_map_is_called", || {
            guarded(Life::Left, &mut || {
                status = set_virtual_address_map(runtime, &moved);
                equal(status, efi::Status::SUCCESS)
            })
        });
    if status != efi::Status::SUCCESS {
        return;
    }
    let ours = machine.map.iter().filter(|region| region.owner() == Owner::Ours);
    let tables = Box::leak(own_tables(ours.chain(&moved)));
    // SAFETY: this program is where it was. The firmware is at its new addresses, and only there.
    unsafe { cpu::use_tables(tables) };
    let stale: Vec<u64> = moved
        .iter()
        .filter(|region| translate_back(&moved, region.start).is_none())
        .map(|region| region.start)
        .collect();
    let (change, interface) = (machine.change, machine.interfaces[1]);
    machine
        .report
        .test("moved.old_addresses_are_not_mapped_any_more", || {
            equal(stale.is_empty(), change == Change::Identity)?;
            stale.iter().try_for_each(|address| must_fault(*address))
        });
    if matches!(change, Change::Up | Change::Shuffled) {
        machine
            .report
            .test("moved.stale_interface_would_end_a_test", || must_fault(interface));
    }
    play(machine, Life::Moved, &moved);
}

/// The physical address behind a virtual one.
fn translate_back(map: &[Region], virt: u64) -> Option<u64> {
    map.iter().find_map(|region| {
        let offset = virt.checked_sub(region.virt)?;
        (offset < region.len()).then(|| region.start.wrapping_add(offset))
    })
}

/// Comm buffer and mailbox, in whole pages.
fn moving(place: CommBufferPlace) -> AddressRange {
    let region = place.region();
    let page = PAGE_LEN as u64;
    let (mut first, mut end) = (region.start(), region.end());
    if let Some(mailbox) = place.mailbox() {
        first = first.min(mailbox & page.wrapping_neg());
        end = end.max((mailbox & page.wrapping_neg()).saturating_add(page));
    }
    AddressRange::new(first, end.saturating_sub(first)).unwrap_or(region)
}

fn set_virtual_address_map(runtime: *mut efi::RuntimeServices, map: &[Region]) -> efi::Status {
    let mut descriptors: Vec<efi::MemoryDescriptor> = map
        .iter()
        .map(|region| efi::MemoryDescriptor {
            r#type: region.kind,
            physical_start: region.start,
            virtual_start: region.virt,
            number_of_pages: region.pages,
            attribute: region.attributes,
        })
        .collect();
    // SAFETY: the firmware's table, where it was.
    let set = unsafe { (*runtime).set_virtual_address_map };
    let size = size_of::<efi::MemoryDescriptor>();
    // SAFETY: a runtime service, called one to one, with descriptors of the length that is said (UEFI 2.11, 8.4.1).
    unsafe {
        set(
            size.saturating_mul(descriptors.len()),
            size,
            efi::MEMORY_DESCRIPTOR_VERSION,
            descriptors.as_mut_ptr(),
        )
    }
}

/// Fails unless nothing is mapped there.
fn must_fault(address: u64) -> Result<(), NotOk> {
    match cpu::probe(address) {
        Err(Fault { address: at, .. }) => equal(at, address),
        Ok(()) => Err(NotOk::Failed(format!("{address:#x} can be read"))),
    }
}

/// Runs a test. Once the firmware's exceptions are gone, one in the test is its failure.
fn guarded(life: Life, test: &mut dyn FnMut() -> Result<(), NotOk>) -> Result<(), NotOk> {
    if life == Life::Boot {
        return test();
    }
    let mut result = Ok(());
    match cpu::guard(&mut || result = test()) {
        Ok(()) => result,
        Err(fault) => Err(NotOk::Failed(format!("{fault}"))),
    }
}

/// Runs the tests that are the same in each life: the suite's scenarios for callers in C, and the
/// variable services. `map` has the addresses; without it they are the physical ones.
fn play(machine: &mut Machine, life: Life, map: &[Region]) {
    let virt = |address: u64| match life {
        Life::Moved => translate(map, address).unwrap_or(0),
        _ => address,
    };
    let at = |address: u64| usize::try_from(virt(address)).unwrap_or(0);
    machine.requests.use_addresses(&virt);
    let site = RuntimeSite {
        life,
        interfaces: machine.interfaces.map(at),
        buffer: machine.buffer,
        buffer_at: at(machine.buffer.region().start()),
        mailbox_at: machine.buffer.mailbox().map(at),
        requests: Rc::clone(&machine.requests),
        client: Client::new(),
    };
    // It allocates from this program's heap.
    let Some(lab) = Lab::new(site) else {
        return;
    };
    if machine.soaks {
        if life == Life::Moved {
            // The firmware cannot allocate any more: this is what the calls take from their caller.
            let free = || Some(HEAP.lock().free() as u64);
            soak::run(&mut machine.report, &lab, Through::Driver, &free);
        }
        return;
    }
    let all = mm_conformance::all();
    for scenario in all.iter().filter(|scenario| site::is_playable(life, scenario)) {
        let verdict = guarded(life, &mut || scenario.run(&lab));
        machine
            .report
            .verdict(&format!("{}.{}", life.name(), scenario.name), verdict);
    }
    let system: *mut efi::SystemTable = ptr::with_exposed_provenance_mut(at(machine.system.addr() as u64));
    // SAFETY: the firmware's table, at its address of now. Its pointer to the runtime services was converted with it.
    let runtime = unsafe { (*system).runtime_services };
    let services = variables::Services::new(runtime);
    for (name, test) in variables::tests(life) {
        let verdict = guarded(life, &mut || test(&services));
        machine
            .report
            .verdict(&format!("{}.{name}", life.name()), verdict);
    }
}

/// Calls the driver's interface at this address.
pub(crate) fn invoke(
    interface: usize,
    protocol: CProtocol,
    buffer: Addresses,
    comm_size: &mut Option<usize>,
) -> EfiStatus {
    let interface = ptr::with_exposed_provenance(interface);
    // SAFETY: the interface of this protocol, at its address of now. The buffer is null, or as long as its header or
    // `comm_size` says; the driver checks both.
    unsafe { c_abi::invoke(interface, protocol, buffer, comm_size) }
}

/// The channel of another comm buffer than the driver's, at its address of now.
#[cfg(target_arch = "x86_64")]
pub(crate) fn channel(address: usize, len: usize, mailbox: Option<usize>) -> Option<Channel> {
    let base = ptr::with_exposed_provenance_mut(address);
    let mailbox = mailbox.map(ptr::with_exposed_provenance_mut);
    // SAFETY: the firmware keeps both, and no component uses them while this program runs.
    unsafe { Channel::new(base, len, mailbox) }.ok()
}

/// The processor's ports.
#[cfg(target_arch = "x86_64")]
pub(crate) fn ports() -> mm_comm::ports::NativePorts {
    // SAFETY: this program runs in ring 0, and its ports are those of MMIs.
    unsafe { mm_comm::ports::NativePorts::new() }
}

/// Looks for a comm buffer in HOBs, while boot services last.
#[cfg(target_arch = "x86_64")]
pub(crate) fn find_hob(
    system: *mut efi::SystemTable,
    source: mm_runtime::hobs::Source,
) -> Result<CommBufferPlace, mm_runtime::hobs::HobError> {
    // SAFETY: what the entry point was called with; `requests::find` is called before boot services end.
    unsafe { mm_runtime::hobs::find(system, source) }
}
