//! The firmware's variable services, as an operating system calls them. An unsafe island (`docs/unsafe.md`).

use crate::app::Life;
use alloc::format;
use alloc::vec::Vec;
use mm_conformance::report::{NotOk, ensure, equal, failed};
use r_efi::efi;

/// The vendor of the variables of these tests.
const VENDOR: efi::Guid = efi::Guid::from_fields(
    0x5c1d_7e4a,
    0x93a2,
    0x4b6f,
    0x8e,
    0x0d,
    &[0x1a, 0x6b, 0x52, 0xf0, 0x3c, 0x97],
);

const LASTING: u32 = efi::VARIABLE_NON_VOLATILE | BOTH;
const BOTH: u32 = efi::VARIABLE_BOOTSERVICE_ACCESS | efi::VARIABLE_RUNTIME_ACCESS;

/// A variable that is written before `ExitBootServices`, and read later.
const BEFORE: &str = "Before";
/// A variable that only boot services see.
const BOOT_ONLY: &str = "BootOnly";
/// The variable that the tests change.
const NAME: &str = "Changing";

/// The runtime services, at their address of now.
#[derive(Clone, Copy)]
pub(crate) struct Services(*mut efi::RuntimeServices);

/// A function of the runtime services.
macro_rules! service {
    ($services:ident.$function:ident) => {
        // SAFETY: the firmware's table, at its address of now.
        unsafe { (*$services.0).$function }
    };
}

fn units(name: &str) -> Vec<u16> {
    name.encode_utf16().chain([0]).collect()
}

fn check(status: efi::Status) -> Result<(), efi::Status> {
    match status {
        efi::Status::SUCCESS => Ok(()),
        status => Err(status),
    }
}

impl Services {
    pub(crate) const fn new(table: *mut efi::RuntimeServices) -> Self {
        Self(table)
    }

    /// The addresses of the four functions for variables.
    pub(crate) fn functions(self) -> [usize; 4] {
        [
            service!(self.get_variable) as *const () as usize,
            service!(self.get_next_variable_name) as *const () as usize,
            service!(self.set_variable) as *const () as usize,
            service!(self.query_variable_info) as *const () as usize,
        ]
    }

    fn set(self, name: &str, attributes: u32, data: &[u8]) -> Result<(), efi::Status> {
        let (mut name, mut vendor, mut data) = (units(name), VENDOR, data.to_vec());
        let set = service!(self.set_variable);
        let (size, data) = (data.len(), data.as_mut_ptr().cast());
        // SAFETY: a runtime service, with a name that ends in a NUL and as much data as is said.
        check(unsafe { set(name.as_mut_ptr(), &raw mut vendor, attributes, size, data) })
    }

    fn get(self, name: &str) -> Result<(u32, Vec<u8>), efi::Status> {
        let (mut name, mut vendor) = (units(name), VENDOR);
        let (mut attributes, mut size) = (0, 64);
        let mut data = alloc::vec![0; size];
        let get = service!(self.get_variable);
        // SAFETY: a runtime service, with a name that ends in a NUL, room for as much data as is said, and places to
        // write to.
        check(unsafe {
            get(
                name.as_mut_ptr(),
                &raw mut vendor,
                &raw mut attributes,
                &raw mut size,
                data.as_mut_ptr().cast(),
            )
        })?;
        data.truncate(size);
        Ok((attributes, data))
    }

    /// The names of this vendor's variables.
    fn names(self) -> Result<Vec<Vec<u16>>, efi::Status> {
        let mut names = Vec::new();
        let (mut name, mut vendor) = (alloc::vec![0_u16; 512], VENDOR);
        let next = service!(self.get_next_variable_name);
        // No store of these machines has as many variables.
        for _ in 0..1000 {
            let mut size = name.len().saturating_mul(2);
            // SAFETY: a runtime service, with a name that ends in a NUL, and as much room as is said.
            match unsafe { next(&raw mut size, name.as_mut_ptr(), &raw mut vendor) } {
                efi::Status::NOT_FOUND => return Ok(names),
                status => check(status)?,
            }
            if vendor == VENDOR {
                names.push(name.iter().copied().take_while(|unit| *unit != 0).collect());
            }
        }
        Err(efi::Status::ABORTED)
    }

    fn query(self) -> Result<[u64; 3], efi::Status> {
        let [mut maximum, mut remaining, mut largest] = [0; 3];
        let query = service!(self.query_variable_info);
        // SAFETY: a runtime service, with places to write to.
        check(unsafe { query(LASTING, &raw mut maximum, &raw mut remaining, &raw mut largest) })?;
        Ok([maximum, remaining, largest])
    }
}

/// Writes the variables that later tests read.
pub(crate) fn write_before_exit(services: &Services) -> Result<(), efi::Status> {
    services.set(BEFORE, LASTING, b"before")?;
    services.set(
        BOOT_ONLY,
        efi::VARIABLE_NON_VOLATILE | efi::VARIABLE_BOOTSERVICE_ACCESS,
        b"boot",
    )
}

type Test = fn(&Services) -> Result<(), NotOk>;

/// The tests of one life, in their order.
pub(crate) fn tests(life: Life) -> impl Iterator<Item = (&'static str, Test)> {
    let always: [(&str, Test); 7] = [
        ("variable_from_boot_is_read", from_boot),
        ("variable_is_created_and_read", create),
        ("variable_is_overwritten", overwrite),
        ("variable_is_appended_to", append),
        ("variable_names_are_walked", walk),
        ("variable_storage_is_told", storage),
        ("variable_is_deleted", delete),
    ];
    let later: [(&str, Test); 2] = [
        ("variable_of_boot_services_is_hidden", hidden),
        ("attributes_of_boot_services_are_refused", refused),
    ];
    let later = later.into_iter().filter(move |_| life != Life::Boot);
    always.into_iter().chain(later)
}

fn is(services: &Services, name: &str, data: &[u8]) -> Result<(), NotOk> {
    equal(services.get(name), Ok((LASTING, data.to_vec())))
}

fn set(services: &Services, attributes: u32, data: &[u8]) -> Result<(), NotOk> {
    equal(services.set(NAME, attributes, data), Ok(()))
}

fn from_boot(services: &Services) -> Result<(), NotOk> {
    is(services, BEFORE, b"before")
}

fn create(services: &Services) -> Result<(), NotOk> {
    equal(services.get(NAME), Err(efi::Status::NOT_FOUND))?;
    set(services, LASTING, b"first")?;
    is(services, NAME, b"first")
}

fn overwrite(services: &Services) -> Result<(), NotOk> {
    set(services, LASTING, b"another one")?;
    is(services, NAME, b"another one")
}

fn append(services: &Services) -> Result<(), NotOk> {
    set(services, LASTING | efi::VARIABLE_APPEND_WRITE, b", and more")?;
    is(services, NAME, b"another one, and more")
}

fn walk(services: &Services) -> Result<(), NotOk> {
    let names = services.names().map_err(failed)?;
    for name in [BEFORE, NAME] {
        let expected: Vec<u16> = name.encode_utf16().collect();
        ensure(
            names.contains(&expected),
            format!("{name} is not among the names"),
        )?;
    }
    Ok(())
}

fn storage(services: &Services) -> Result<(), NotOk> {
    let [maximum, remaining, largest] = services.query().map_err(failed)?;
    ensure(
        largest > 0 && remaining <= maximum && remaining > 0,
        format!("maximum {maximum}, remaining {remaining}, largest {largest}"),
    )
}

fn delete(services: &Services) -> Result<(), NotOk> {
    set(services, LASTING, b"")?;
    equal(services.get(NAME), Err(efi::Status::NOT_FOUND))
}

fn hidden(services: &Services) -> Result<(), NotOk> {
    equal(services.get(BOOT_ONLY), Err(efi::Status::NOT_FOUND))
}

/// After boot services neither a volatile variable nor one for boot services alone can be written.
fn refused(services: &Services) -> Result<(), NotOk> {
    let boot = efi::VARIABLE_NON_VOLATILE | efi::VARIABLE_BOOTSERVICE_ACCESS;
    for attributes in [boot, BOTH] {
        let status = services.set("Refused", attributes, b"no");
        equal(status, Err(efi::Status::INVALID_PARAMETER))?;
    }
    equal(services.get("Refused"), Err(efi::Status::NOT_FOUND))
}
