//! Runtime variable services by messages to MM. An unsafe island (`docs/unsafe.md`): it is called
//! by the operating system, and calls the driver that reaches MM.
#![cfg_attr(target_os = "uefi", no_std, no_main)]

#[cfg(target_os = "uefi")]
mod driver {
    use core::ffi::c_void;
    use core::ptr;
    use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};
    use mm_comm::SharedRegion;
    use mm_runtime::protocols::{COMMUNICATION2, Communication2};
    use mm_wire::message::variable::{self, AccessVariable, FunctionHeader, NextName, QueryInfo, function};
    use mm_wire::{Header, HeaderFormat, PAGE_LEN};
    use r_efi::efi;
    use variable_driver::firmware::{Firmware, Result, check};
    use zerocopy::{FromBytes, FromZeros, IntoBytes};

    /// Pages of the buffer in which messages are made: as many as the comm buffers of these machines have.
    const PAGES: usize = 4;
    const LEN: usize = PAGES * PAGE_LEN;

    /// Where the payload starts: behind the communicate header and the function header.
    const PAYLOAD: usize = HeaderFormat::V1.header_len() + size_of::<FunctionHeader>();

    /// The longest name, in UTF-16 units.
    const LONGEST_NAME: usize = 512;

    // Two pointers that are converted when addresses change, one that is not, and one that is used for that.
    static PROTOCOL: AtomicPtr<Communication2> = AtomicPtr::new(ptr::null_mut());
    static BUFFER: AtomicPtr<u8> = AtomicPtr::new(ptr::null_mut());
    static PHYSICAL: AtomicUsize = AtomicUsize::new(0);
    static RUNTIME: AtomicPtr<efi::RuntimeServices> = AtomicPtr::new(ptr::null_mut());
    /// Whether a message is in the buffer: then another call is refused.
    static BUSY: AtomicBool = AtomicBool::new(false);

    variable_driver::entry_point!(run);

    fn run(firmware: Firmware) -> Result<()> {
        let protocol = firmware.locate(COMMUNICATION2)?;
        let buffer = firmware.allocate(efi::RUNTIME_SERVICES_DATA, PAGES, None)?;
        PROTOCOL.store(protocol.cast(), Ordering::SeqCst);
        PHYSICAL.store(buffer.expose_provenance(), Ordering::SeqCst);
        BUFFER.store(buffer, Ordering::SeqCst);
        let runtime = firmware.runtime_services();
        RUNTIME.store(runtime, Ordering::SeqCst);
        firmware.on_event(efi::EVT_SIGNAL_VIRTUAL_ADDRESS_CHANGE, on_address_change)?;
        firmware.on_event(efi::EVT_SIGNAL_EXIT_BOOT_SERVICES, on_exit_boot_services)?;
        // SAFETY: the firmware's table, whose functions a runtime driver may replace while boot services last.
        unsafe { (*runtime).get_variable = get_variable };
        // SAFETY: the same table.
        unsafe { (*runtime).get_next_variable_name = get_next_variable_name };
        // SAFETY: the same table.
        unsafe { (*runtime).set_variable = set_variable };
        // SAFETY: the same table.
        unsafe { (*runtime).query_variable_info = query_variable_info };
        firmware.renew_checksum()
    }

    unsafe extern "efiapi" fn on_exit_boot_services(_: efi::Event, _: *mut c_void) {
        // Nothing can be done if MM refuses.
        let _ = Message::begin().and_then(|message| message.send(function::EXIT_BOOT_SERVICE, 0));
    }

    unsafe extern "efiapi" fn on_address_change(_: efi::Event, _: *mut c_void) {
        let runtime = RUNTIME.load(Ordering::SeqCst);
        // SAFETY: the firmware's table; its address has not changed yet.
        let convert = unsafe { (*runtime).convert_pointer };
        let new = |old: *mut c_void| {
            let mut pointer = old;
            // SAFETY: within the event of the address change.
            let _ = unsafe { convert(0, &raw mut pointer) };
            pointer
        };
        let protocol = PROTOCOL.load(Ordering::SeqCst);
        PROTOCOL.store(new(protocol.cast()).cast(), Ordering::SeqCst);
        BUFFER.store(new(BUFFER.load(Ordering::SeqCst).cast()).cast(), Ordering::SeqCst);
    }

    /// A message that is being made; the buffer is free again when it is dropped.
    struct Message(SharedRegion);

    impl Drop for Message {
        fn drop(&mut self) {
            BUSY.store(false, Ordering::SeqCst);
        }
    }

    impl Message {
        fn begin() -> Result<Self> {
            if BUSY.swap(true, Ordering::SeqCst) {
                return Err(efi::Status::NOT_READY);
            }
            // SAFETY: allocated by `run`, mapped by the owner of the address space, and only
            // accessed by the holder of `BUSY`.
            let region = unsafe { SharedRegion::new(BUFFER.load(Ordering::SeqCst), LEN) };
            region.map(Self).map_err(|_null| {
                BUSY.store(false, Ordering::SeqCst);
                efi::Status::NOT_READY
            })
        }

        /// Writes to the payload.
        fn put(&self, offset: usize, bytes: &[u8]) -> Result<()> {
            let written = self.0.write(PAYLOAD.saturating_add(offset), bytes);
            written.then_some(()).ok_or(efi::Status::INVALID_PARAMETER)
        }

        fn get(&self, offset: usize, out: &mut [u8]) -> Result<()> {
            let read = self.0.read(PAYLOAD.saturating_add(offset), out);
            read.then_some(()).ok_or(efi::Status::DEVICE_ERROR)
        }

        /// Reads a structure of the payload.
        fn get_as<T: FromZeros + FromBytes + IntoBytes>(&self) -> Result<T> {
            let mut value = T::new_zeroed();
            self.get(0, value.as_mut_bytes())?;
            Ok(value)
        }

        /// Sends a message with a payload of this length; the status is that of the variable service.
        fn send(&self, function: u64, payload: usize) -> Result<efi::Status> {
            let len = size_of::<FunctionHeader>().saturating_add(payload);
            let header = Header::new(HeaderFormat::V1, variable::GUID, len as u64)
                .ok_or(efi::Status::INVALID_PARAMETER)?;
            let header = header.encode();
            let header_len = HeaderFormat::V1.header_len();
            if !self.0.write(0, header.as_ref())
                || !self.0.write(header_len, FunctionHeader::new(function).as_bytes())
            {
                return Err(efi::Status::INVALID_PARAMETER);
            }
            let mut size = header_len.saturating_add(len);
            let protocol = PROTOCOL.load(Ordering::SeqCst);
            // SAFETY: the driver's interface, at its address of now.
            let communicate = unsafe { (*protocol).communicate };
            let physical = ptr::with_exposed_provenance_mut(PHYSICAL.load(Ordering::SeqCst));
            // SAFETY: the interface that the function belongs to, and a buffer of `size` bytes.
            let status = unsafe { communicate(protocol, physical, self.0.as_ptr().cast(), &raw mut size) };
            check(status).map_err(|_mm_did_not_answer| efi::Status::DEVICE_ERROR)?;
            let mut answered = FunctionHeader::new(0);
            if !self.0.read(header_len, answered.as_mut_bytes()) {
                return Err(efi::Status::DEVICE_ERROR);
            }
            let status = usize::try_from(answered.return_status.get());
            Ok(status.map_or(efi::Status::DEVICE_ERROR, efi::Status::from_usize))
        }
    }

    /// A name, copied out of the caller's memory, with its NUL.
    struct Name {
        bytes: [u8; 2 * LONGEST_NAME],
        len: usize,
    }

    impl Name {
        /// # Safety
        ///
        /// `name` is null, or a string that ends in a NUL.
        unsafe fn copy(name: *const efi::Char16) -> Result<Self> {
            if name.is_null() {
                return Err(efi::Status::INVALID_PARAMETER);
            }
            let mut copy = Self {
                bytes: [0; 2 * LONGEST_NAME],
                len: 0,
            };
            let (units, _) = copy.bytes.as_chunks_mut::<2>();
            for (index, to) in units.iter_mut().enumerate() {
                // SAFETY: the string has not ended before.
                let unit = unsafe { name.wrapping_add(index).read() };
                *to = unit.to_le_bytes();
                copy.len = copy.len.saturating_add(2);
                if unit == 0 {
                    return Ok(copy);
                }
            }
            Err(efi::Status::INVALID_PARAMETER)
        }

        fn bytes(&self) -> &[u8] {
            self.bytes.get(..self.len).unwrap_or_default()
        }
    }

    /// # Safety
    ///
    /// `guid` is null or valid.
    unsafe fn vendor(guid: *const efi::Guid) -> Result<[u8; 16]> {
        if guid.is_null() {
            return Err(efi::Status::INVALID_PARAMETER);
        }
        // SAFETY: the caller's promise.
        Ok(*unsafe { guid.read() }.as_bytes())
    }

    /// # Safety
    ///
    /// `pointer` is null or valid.
    unsafe fn read<T: Copy>(pointer: *const T) -> Result<T> {
        if pointer.is_null() {
            return Err(efi::Status::INVALID_PARAMETER);
        }
        // SAFETY: the caller's promise.
        Ok(unsafe { pointer.read_unaligned() })
    }

    /// # Safety
    ///
    /// `pointer` is null or valid.
    unsafe fn write<T>(pointer: *mut T, value: T) {
        if !pointer.is_null() {
            // SAFETY: the caller's promise.
            unsafe { pointer.write_unaligned(value) };
        }
    }

    /// The caller's data; `None` for none at all.
    ///
    /// # Safety
    ///
    /// `data` is null, or valid for `len` bytes.
    unsafe fn memory(data: *mut c_void, len: usize) -> Option<SharedRegion> {
        // SAFETY: the caller's promise, for as long as its call lasts.
        unsafe { SharedRegion::new(data.cast(), len) }.ok()
    }

    /// Copies between two regions, piece by piece.
    fn copy(from: &SharedRegion, from_at: usize, to: &SharedRegion, to_at: usize, len: usize) -> Result<()> {
        let mut piece = [0; 256];
        let mut done = 0_usize;
        while done < len {
            let next = len.saturating_sub(done).min(piece.len());
            let piece = piece.get_mut(..next).unwrap_or_default();
            let moved =
                from.read(from_at.saturating_add(done), piece) && to.write(to_at.saturating_add(done), piece);
            if !moved {
                return Err(efi::Status::INVALID_PARAMETER);
            }
            done = done.saturating_add(next);
        }
        Ok(())
    }

    /// What a function returns.
    fn returned(result: Result<efi::Status>) -> efi::Status {
        result.unwrap_or_else(|status| status)
    }

    unsafe extern "efiapi" fn get_variable(
        name: *mut efi::Char16,
        guid: *mut efi::Guid,
        attributes: *mut u32,
        size: *mut usize,
        data: *mut c_void,
    ) -> efi::Status {
        let get = || {
            // SAFETY: the caller of a runtime service passes valid pointers (UEFI 2.11, 8.2).
            let name = unsafe { Name::copy(name) }?;
            // SAFETY: a pointer of the caller (UEFI 2.11, 8.2).
            let vendor = unsafe { vendor(guid) }?;
            // SAFETY: a pointer of the caller (UEFI 2.11, 8.2).
            let room = unsafe { read(size) }?;
            let data_at = size_of::<AccessVariable>().saturating_add(name.len);
            // Data that does not fit into a message cannot be in a variable.
            let room = room.min(LEN.saturating_sub(PAYLOAD).saturating_sub(data_at));
            let message = Message::begin()?;
            let access = AccessVariable {
                vendor,
                data_size: (room as u64).into(),
                name_size: (name.len as u64).into(),
                attributes: 0.into(),
            };
            message.put(0, access.as_bytes())?;
            message.put(size_of::<AccessVariable>(), name.bytes())?;
            let status = message.send(function::GET_VARIABLE, data_at.saturating_add(room))?;
            let access: AccessVariable = message.get_as()?;
            let found = usize::try_from(access.data_size.get()).unwrap_or(usize::MAX);
            if matches!(status, efi::Status::SUCCESS | efi::Status::BUFFER_TOO_SMALL) {
                // SAFETY: a pointer of the caller (UEFI 2.11, 8.2).
                unsafe { write(size, found) };
                // SAFETY: a pointer of the caller (UEFI 2.11, 8.2).
                unsafe { write(attributes, access.attributes.get()) };
            }
            if status == efi::Status::SUCCESS && found > 0 {
                if found > room {
                    return Err(efi::Status::DEVICE_ERROR);
                }
                // SAFETY: `found` is no more than the room that the caller has.
                let to = unsafe { memory(data, found) }.ok_or(efi::Status::INVALID_PARAMETER)?;
                copy(&message.0, PAYLOAD.saturating_add(data_at), &to, 0, found)?;
            }
            Ok(status)
        };
        returned(get())
    }

    unsafe extern "efiapi" fn set_variable(
        name: *mut efi::Char16,
        guid: *mut efi::Guid,
        attributes: u32,
        size: usize,
        data: *mut c_void,
    ) -> efi::Status {
        let set = || {
            // SAFETY: a pointer of the caller (UEFI 2.11, 8.2).
            let name = unsafe { Name::copy(name) }?;
            // SAFETY: a pointer of the caller (UEFI 2.11, 8.2).
            let vendor = unsafe { vendor(guid) }?;
            let data_at = size_of::<AccessVariable>().saturating_add(name.len);
            if size > LEN.saturating_sub(PAYLOAD).saturating_sub(data_at) {
                return Err(efi::Status::INVALID_PARAMETER);
            }
            let message = Message::begin()?;
            let access = AccessVariable {
                vendor,
                data_size: (size as u64).into(),
                name_size: (name.len as u64).into(),
                attributes: attributes.into(),
            };
            message.put(0, access.as_bytes())?;
            message.put(size_of::<AccessVariable>(), name.bytes())?;
            if size > 0 {
                // SAFETY: a pointer of the caller (UEFI 2.11, 8.2).
                let from = unsafe { memory(data, size) }.ok_or(efi::Status::INVALID_PARAMETER)?;
                copy(&from, 0, &message.0, PAYLOAD.saturating_add(data_at), size)?;
            }
            message.send(function::SET_VARIABLE, data_at.saturating_add(size))
        };
        returned(set())
    }

    unsafe extern "efiapi" fn get_next_variable_name(
        size: *mut usize,
        name: *mut efi::Char16,
        guid: *mut efi::Guid,
    ) -> efi::Status {
        let next = || {
            // SAFETY: a pointer of the caller (UEFI 2.11, 8.2).
            let before = unsafe { Name::copy(name) }?;
            // SAFETY: a pointer of the caller (UEFI 2.11, 8.2).
            let vendor = unsafe { vendor(guid) }?;
            // SAFETY: a pointer of the caller (UEFI 2.11, 8.2).
            let room = unsafe { read(size) }?.min(2 * LONGEST_NAME);
            let message = Message::begin()?;
            let next = NextName {
                vendor,
                name_size: (room as u64).into(),
            };
            let name_at = size_of::<NextName>();
            let area = room.max(before.len);
            message.put(0, next.as_bytes())?;
            message.put(name_at, before.bytes.get(..area).unwrap_or_default())?;
            let status = message.send(function::GET_NEXT_VARIABLE_NAME, name_at.saturating_add(area))?;
            let next: NextName = message.get_as()?;
            let found = usize::try_from(next.name_size.get()).unwrap_or(usize::MAX);
            if matches!(status, efi::Status::SUCCESS | efi::Status::BUFFER_TOO_SMALL) {
                // SAFETY: a pointer of the caller (UEFI 2.11, 8.2).
                unsafe { write(size, found) };
            }
            if status == efi::Status::SUCCESS {
                if found > room {
                    return Err(efi::Status::DEVICE_ERROR);
                }
                // SAFETY: a pointer of the caller (UEFI 2.11, 8.2).
                let to = unsafe { memory(name.cast(), found) }.ok_or(efi::Status::INVALID_PARAMETER)?;
                copy(&message.0, PAYLOAD.saturating_add(name_at), &to, 0, found)?;
                // SAFETY: a pointer of the caller (UEFI 2.11, 8.2).
                unsafe { write(guid, efi::Guid::from_bytes(&next.vendor)) };
            }
            Ok(status)
        };
        returned(next())
    }

    unsafe extern "efiapi" fn query_variable_info(
        attributes: u32,
        maximum_storage: *mut u64,
        remaining_storage: *mut u64,
        maximum_variable: *mut u64,
    ) -> efi::Status {
        let query = || {
            let message = Message::begin()?;
            let info = QueryInfo {
                attributes: attributes.into(),
                ..QueryInfo::default()
            };
            message.put(0, info.as_bytes())?;
            let status = message.send(function::QUERY_VARIABLE_INFO, size_of::<QueryInfo>())?;
            if status == efi::Status::SUCCESS {
                let info: QueryInfo = message.get_as()?;
                // SAFETY: a pointer of the caller (UEFI 2.11, 8.2).
                unsafe { write(maximum_storage, info.maximum_storage.get()) };
                // SAFETY: a pointer of the caller (UEFI 2.11, 8.2).
                unsafe { write(remaining_storage, info.remaining_storage.get()) };
                // SAFETY: a pointer of the caller (UEFI 2.11, 8.2).
                unsafe { write(maximum_variable, info.maximum_variable.get()) };
            }
            Ok(status)
        };
        returned(query())
    }
}

#[cfg(target_os = "uefi")]
variable_driver::wait_at_a_panic!();

#[cfg(not(target_os = "uefi"))]
fn main() {
    variable_driver::main();
}
