//! The suite in a process: the conduit calls the monitor's secure world as a library.

use aarch64_monitor::mm::Mm;
use aarch64_monitor::{Interface, Mode, World};
use aarch64_payload::Place;
use libtest_mimic::{Arguments, Failed, Trial};
use mm_comm::SharedRegion;
use mm_comm::smc::{Call, Conduit};
use mm_conformance::report::Report;
use mm_core::handlers::VariableStore;
use mm_wire::AddressRange;
use std::cell::RefCell;

const SHARED_LEN: usize = 0x8_0000;

#[repr(C, align(4096))]
struct Memory([u8; SHARED_LEN]);

std::thread_local! {
    static WORLD: RefCell<Option<World<'static>>> = const { RefCell::new(None) };
}

/// The conduit to the secure world of this thread.
struct InProcess;

impl Call for InProcess {
    fn call32(_: u32, _: [u32; 7]) -> [u32; 8] {
        unreachable!("calls are made with all registers")
    }

    fn call64(function: u32, arguments: [u64; 17]) -> [u64; 18] {
        let mut registers = [0; 18];
        registers[0] = function.into();
        registers[1..].copy_from_slice(&arguments);
        WORLD.with_borrow_mut(|world| match world {
            Some(world) => world.call(&mut registers),
            None => unreachable!("a call that would trap"),
        });
        registers
    }
}

impl Conduit for InProcess {
    fn el3_is_implemented() -> bool {
        WORLD.with_borrow(|world| world.is_some())
    }
}

/// The secure world's view of this process, and the part of it that is shared.
fn world(interface: Interface) -> Option<SharedRegion> {
    let memory = Box::leak(Box::new(Memory([0; SHARED_LEN])));
    let base = memory.0.as_mut_ptr();
    let range = AddressRange::new(base.expose_provenance() as u64, SHARED_LEN as u64)?;
    let first_page = std::ptr::with_exposed_provenance_mut(0x1000);
    // SAFETY: of all these addresses the secure world reaches only those that it checked to be the
    // shared memory, and the RX page while it is mapped; both are memory of this process without
    // references to it then.
    let ram = unsafe { SharedRegion::new(first_page, isize::MAX as usize - 0x1000) }.ok()?;
    let mm = Mm::new(
        ram,
        range,
        AddressRange::new(1, 0xfff)?,
        vec![0; SHARED_LEN].leak(),
        VariableStore::new(vec![0; 0x1_0000].leak(), 0x2000),
    );
    let mode = Mode {
        interface,
        uefi: false,
        demo: false,
        soak: false,
    };
    WORLD.set(Some(World::new(mode, mm)));
    // SAFETY: the memory is leaked, and reached through such regions only.
    unsafe { SharedRegion::new(base, SHARED_LEN) }.ok()
}

fn run(interface: Interface) -> Result<(), Failed> {
    let shared = world(interface).ok_or("no memory")?;
    if interface == Interface::NoEl3 {
        WORLD.take();
    }
    let (base, len) = (shared.as_ptr(), shared.len());
    let place = Place {
        interface,
        // SAFETY: a copy of the first region: leaked memory that is reached through such regions
        // only.
        shared: &move || unsafe { SharedRegion::new(base, len) }.ok(),
        protocols: None,
        vectors: None,
    };
    let mut out = String::new();
    if aarch64_payload::run::<InProcess>(&place, &mut Report::new(&mut out)) {
        print!("{}", out.lines().last().unwrap_or_default());
        Ok(())
    } else {
        let failed: Vec<&str> = out.lines().filter(|line| line.contains(" FAILED: ")).collect();
        Err(Failed::from(failed.join("\n")))
    }
}

fn main() {
    let mut arguments = Arguments::from_args();
    // The tap on the conduit counts for one secure world.
    arguments.test_threads = Some(1);
    let trials = [
        ("spm_mm", Interface::SpmMm),
        ("ffa", Interface::Ffa),
        ("ffa_without_get_regs", Interface::FfaWithoutRegs),
        ("no_mm", Interface::NoMm),
        ("no_el3", Interface::NoEl3),
        ("standalone_mm", Interface::StandaloneMm),
    ]
    .map(|(name, interface)| Trial::test(name, move || run(interface)));
    libtest_mimic::run(&arguments, trials.into()).exit();
}
