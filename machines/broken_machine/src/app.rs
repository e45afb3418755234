//! The application. An unsafe island (`docs/unsafe.md`).
//!
//! For each fault: breaks the machine, starts `EFI/BOOT/DOCTOR.EFI`, and repairs the machine.

extern crate alloc;

use alloc::vec::Vec;
use core::ffi::c_void;
use core::ptr;
use mm_comm::ich9::PciRegister;
use mm_comm::ports::NativePorts;
use mm_comm::{SmiEnable, SmiEnableRegister};
use mm_wire::hob::{COMM_REGION_HOB_GUID, CommRegion};
use uefi::boot::{self, LoadImageSource};
use uefi::fs::FileSystem;
use uefi::runtime::{self, ResetType};
use uefi::{CStr16, Guid, Status, cstr16, entry, guid, println, system};

const DOCTOR: &CStr16 = cstr16!("\\EFI\\BOOT\\DOCTOR.EFI");

static HOB_LIST: Guid = guid!("7739f24c-93d7-11d4-9a3a-0090273fc14d");

/// The second byte of PMBASE of the ICH9, and where firmware leaves the base.
const PM_BASE_HIGH: PciRegister = PciRegister::new(0x1f, 0, 0x41);
const PM_BASE: u16 = 0x600;
/// Types of HOBs (PI 1.9, volume 3, 5.2).
const GUID_EXTENSION: u16 = 4;
const END: u16 = 0xffff;
/// The same byte of another base than the FADT's.
const OTHER_BASE_HIGH: u8 = 5;

#[entry]
fn main() -> Status {
    let outcome = run();
    if let Err(why) = outcome {
        println!("CASE failed: {why}");
    }
    runtime::reset(ResetType::SHUTDOWN, Status::SUCCESS, None);
}

fn run() -> Result<(), &'static str> {
    let file_system = boot::get_image_file_system(boot::image_handle()).map_err(|_error| "no volume")?;
    let doctor = FileSystem::new(file_system)
        .read(DOCTOR)
        .map_err(|_error| "no DOCTOR.EFI")?;
    // SAFETY: a UEFI application runs in ring 0; the ports are those of PCI configuration space and of SMI_EN.
    let ports = unsafe { NativePorts::new() };
    let list = configuration_table().ok_or("no HOB list")?;
    let mailbox = mailbox(list).ok_or("no comm-region HOB with a mailbox")?;

    look(&doctor, "none");

    let smi_en = SmiEnableRegister::behind_io_base(PM_BASE).map_err(|_no_port| "no SMI_EN")?;
    let enabled = smi_en.read(&ports);
    smi_en.write(&ports, enabled & !SmiEnable::APMC.bits());
    look(&doctor, "SMIs are off");
    smi_en.write(&ports, enabled);

    // SAFETY: the HOB says that the mailbox is there; its first byte announces a request, and no call is in progress.
    unsafe { mailbox.write_volatile(1) };
    look(&doctor, "stale mailbox");
    // SAFETY: the same byte.
    unsafe { mailbox.write_volatile(0) };

    let base = PM_BASE_HIGH.read_u8(&ports);
    PM_BASE_HIGH.write_u8(&ports, OTHER_BASE_HIGH);
    look(&doctor, "wrong PMBASE");
    PM_BASE_HIGH.write_u8(&ports, base);

    install(ptr::null())?;
    look(&doctor, "no HOB");
    install(list)?;

    look(&doctor, "none any more");
    println!("CASE end");
    Ok(())
}

/// Starts the doctor.
fn look(doctor: &[u8], case: &str) {
    println!("CASE {case}");
    let source = LoadImageSource::FromBuffer {
        buffer: doctor,
        file_path: None,
    };
    let ended = boot::load_image(boot::image_handle(), source).and_then(boot::start_image);
    let status = ended.map_or_else(|error| error.status(), |()| Status::SUCCESS);
    println!("mm_doctor ended with {status:?}");
}

fn configuration_table() -> Option<*const c_void> {
    system::with_config_table(|tables| {
        let found = tables.iter().find(|table| table.guid == HOB_LIST)?;
        Some(found.address)
    })
}

fn install(list: *const c_void) -> Result<(), &'static str> {
    // SAFETY: null removes the table; otherwise it is the list that was there.
    unsafe { boot::install_configuration_table(&HOB_LIST, list) }
        .map_err(|_error| "the HOB list cannot be changed")
}

/// The mailbox of the first comm-region HOB.
fn mailbox(list: *const c_void) -> Option<*mut u8> {
    let mut at = list.cast::<u8>();
    loop {
        // SAFETY: a HOB starts with its type and its length (PI 1.9, volume 3, 5.2).
        let [kind, len] = unsafe { at.cast::<[u16; 2]>().read_unaligned() };
        // SAFETY: the HOB has so many bytes.
        let hob: Vec<u8> = unsafe { core::slice::from_raw_parts(at, len.into()) }.to_vec();
        let found = match (kind, hob.split_at_checked(24)) {
            (END, _) => return None,
            (GUID_EXTENSION, Some((header, data))) if header.ends_with(&COMM_REGION_HOB_GUID.to_bytes()) => {
                CommRegion::of_hob(data)
                    .ok()
                    .and_then(|region| region.place.mailbox())
            }
            _ => None,
        };
        if let Some(address) = found {
            return Some(ptr::with_exposed_provenance_mut(usize::try_from(address).ok()?));
        }
        at = at.wrapping_add(len.into());
    }
}
