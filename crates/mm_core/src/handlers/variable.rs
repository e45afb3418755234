use crate::request::{Handler, Request};
use core::iter;
use mm_wire::EfiStatus;
use mm_wire::message::variable::{
    AccessVariable, Attributes, FunctionHeader, NextName, PayloadSize, QueryInfo, function,
};
use zerocopy::little_endian::U32;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Serves edk2's SMM variable protocol, from memory that it gets from its owner.
///
/// It knows get, get next name, set (create, replace, append, delete), query info, payload size,
/// ready to boot and exit boot services. Other functions get `EFI_UNSUPPORTED`, as edk2's handler
/// returns for a function that it does not know: statistics, locks and properties of variables, and
/// the runtime cache, which a driver in DXE can do without.
///
/// Statuses and sizes are those of edk2 (`MdeModulePkg/Universal/Variable/RuntimeDxe`,
/// `VariableSmm.c` and `Variable.c`), without authentication and without hardware error records.
/// They are written into the message, whose length does not change; a message of an impossible
/// length is returned unchanged. One store holds volatile and non-volatile variables, and lasts as
/// long as its memory.
#[derive(Debug)]
pub struct VariableStore<'a> {
    /// Records without gaps up to `used`: [`Record`], name with its NUL, data.
    arena: &'a mut [u8],
    used: usize,
    max_variable_len: usize,
    /// Whether boot services have ended: `mAtRuntime` of `VariableSmm.c`.
    at_runtime: bool,
}

/// The fields before a variable's name in the arena.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Record {
    vendor: [u8; 16],
    attributes: U32,
    name_len: U32,
    data_len: U32,
}

const RECORD_LEN: usize = size_of::<Record>();

/// The bytes that edk2 adds to the size of a variable: the longest of its payloads up to the name
/// (`SMM_VARIABLE_COMMUNICATE_VAR_CHECK_VARIABLE_PROPERTY`).
const PAYLOAD_OVERHEAD: usize = 48;

/// A variable in the arena.
struct Stored<'s> {
    start: usize,
    record: &'s Record,
    name: &'s [u8],
    data: &'s [u8],
}

impl Stored<'_> {
    fn len(&self) -> usize {
        record_len(self.name.len(), self.data.len())
    }

    fn is(&self, vendor: [u8; 16], name: &[u8]) -> bool {
        self.record.vendor == vendor && self.name == name
    }
}

/// Saturates for lengths that no memory has.
const fn record_len(name_len: usize, data_len: usize) -> usize {
    RECORD_LEN.saturating_add(name_len).saturating_add(data_len)
}

impl<'a> VariableStore<'a> {
    /// Makes an empty store in `arena`. A variable may have `max_variable_len` bytes of name and
    /// data, at most 4 GiB.
    #[must_use]
    pub fn new(arena: &'a mut [u8], max_variable_len: usize) -> Self {
        Self {
            arena,
            used: 0,
            max_variable_len: max_variable_len.min(u32::MAX as usize),
            at_runtime: false,
        }
    }

    /// The most bytes that may follow a message's function header.
    #[must_use]
    pub const fn payload_len(&self) -> usize {
        self.max_variable_len.saturating_add(PAYLOAD_OVERHEAD)
    }

    fn free(&self) -> usize {
        self.arena.len().saturating_sub(self.used)
    }

    fn variables(&self) -> impl Iterator<Item = Stored<'_>> {
        let all = self.arena.get(..self.used).unwrap_or_default();
        let mut rest = all;
        iter::from_fn(move || {
            let start = all.len().saturating_sub(rest.len());
            let (record, tail) = Record::ref_from_prefix(rest).ok()?;
            let (name, tail) = tail.split_at_checked(usize::try_from(record.name_len.get()).ok()?)?;
            let (data, tail) = tail.split_at_checked(usize::try_from(record.data_len.get()).ok()?)?;
            rest = tail;
            Some(Stored {
                start,
                record,
                name,
                data,
            })
        })
    }

    fn find(&self, vendor: [u8; 16], name: &[u8]) -> Option<Stored<'_>> {
        self.variables().find(|variable| variable.is(vendor, name))
    }

    /// Variables for boot services alone are hidden from the operating system.
    fn is_visible(&self, variable: &Stored<'_>) -> bool {
        let attributes = Attributes::from_bits_retain(variable.record.attributes.get());
        !self.at_runtime || attributes.contains(Attributes::RUNTIME)
    }

    fn get(&self, access: &mut AccessVariable, rest: &mut [u8]) -> Result<(), EfiStatus> {
        let (name, room) = name_and_data(access, rest)?;
        let variable = self
            .find(access.vendor, name)
            .filter(|variable| self.is_visible(variable))
            .ok_or(EfiStatus::NOT_FOUND)?;
        access.data_size = (variable.data.len() as u64).into();
        access.attributes = variable.record.attributes;
        copy(room, variable.data).ok_or(EfiStatus::BUFFER_TOO_SMALL)
    }

    fn get_next_name(&self, next: &mut NextName, rest: &mut [u8]) -> Result<(), EfiStatus> {
        let room = usize::try_from(next.name_size.get())
            .ok()
            .filter(|len| *len <= rest.len() && ends_in_nul(rest))
            .and_then(|len| rest.get_mut(..len))
            .ok_or(EfiStatus::ACCESS_DENIED)?;
        let name = up_to_nul(room).ok_or(EfiStatus::INVALID_PARAMETER)?;

        let mut variables = self.variables().filter(|variable| self.is_visible(variable));
        if !is_empty(name) && !variables.any(|variable| variable.is(next.vendor, name)) {
            return Err(EfiStatus::INVALID_PARAMETER);
        }
        let variable = variables.next().ok_or(EfiStatus::NOT_FOUND)?;
        next.name_size = (variable.name.len() as u64).into();
        copy(room, variable.name).ok_or(EfiStatus::BUFFER_TOO_SMALL)?;
        next.vendor = variable.record.vendor;
        Ok(())
    }

    fn set(&mut self, access: &AccessVariable, rest: &mut [u8]) -> Result<(), EfiStatus> {
        let (name, data) = name_and_data(access, rest)?;
        let attributes = Attributes::from_bits_retain(access.attributes.get());
        if is_empty(name) {
            return Err(EfiStatus::INVALID_PARAMETER);
        }
        check_writable(attributes)?;
        let append = attributes.contains(Attributes::APPEND);
        let fits = |data_len: usize| name.len().saturating_add(data_len) <= self.max_variable_len;
        if !fits(data.len()) {
            return Err(EfiStatus::INVALID_PARAMETER);
        }
        let is_deletion = (data.is_empty() && !append) || !attributes.intersects(access_attributes());

        let Some(old) = self.find(access.vendor, name) else {
            let may_create = Attributes::RUNTIME.union(Attributes::NON_VOLATILE);
            if self.at_runtime && !is_deletion && !data.is_empty() && !attributes.contains(may_create) {
                return Err(EfiStatus::INVALID_PARAMETER);
            }
            return match (data.is_empty() && append, is_deletion) {
                (true, _) => Ok(()),
                (false, true) => Err(EfiStatus::NOT_FOUND),
                (false, false) => self.create(access.vendor, attributes, name, data),
            };
        };
        let stored = Attributes::from_bits_retain(old.record.attributes.get());
        if !self.is_visible(&old) {
            return Err(EfiStatus::WRITE_PROTECTED);
        }
        if !attributes.is_empty() && attributes.difference(Attributes::APPEND) != stored {
            return Err(EfiStatus::INVALID_PARAMETER);
        }
        if self.at_runtime && !stored.contains(Attributes::NON_VOLATILE) {
            return Err(EfiStatus::WRITE_PROTECTED);
        }
        let (start, old_len, old_data_len) = (old.start, old.len(), old.data.len());
        if is_deletion {
            self.remove(start, old_len);
            return Ok(());
        }
        if append {
            if !fits(old_data_len.saturating_add(data.len())) {
                return Err(EfiStatus::INVALID_PARAMETER);
            }
            return self.append(start, old_len, data);
        }
        if old.data == data {
            return Ok(());
        }
        if record_len(name.len(), data.len()) > self.free().saturating_add(old_len) {
            return Err(EfiStatus::OUT_OF_RESOURCES);
        }
        self.remove(start, old_len);
        self.create(access.vendor, attributes, name, data)
    }

    fn query_info(&self, info: &mut QueryInfo) -> Result<(), EfiStatus> {
        let attributes = Attributes::from_bits_retain(info.attributes.get());
        check_queryable(attributes)?;
        if self.at_runtime && !attributes.contains(Attributes::RUNTIME) {
            return Err(EfiStatus::INVALID_PARAMETER);
        }
        let largest = self.max_variable_len.min(self.free().saturating_sub(RECORD_LEN));
        info.maximum_storage = (self.arena.len() as u64).into();
        info.remaining_storage = (self.free() as u64).into();
        info.maximum_variable = (largest as u64).into();
        Ok(())
    }

    fn create(
        &mut self,
        vendor: [u8; 16],
        attributes: Attributes,
        name: &[u8],
        data: &[u8],
    ) -> Result<(), EfiStatus> {
        let (Ok(name_len), Ok(data_len)) = (u32::try_from(name.len()), u32::try_from(data.len())) else {
            return Err(EfiStatus::OUT_OF_RESOURCES);
        };
        let record = Record {
            vendor,
            attributes: attributes.difference(Attributes::APPEND).bits().into(),
            name_len: name_len.into(),
            data_len: data_len.into(),
        };
        self.write_at_end(&[record.as_bytes(), name, data])
    }

    /// Adds to the data of the variable of `len` bytes at `start`, which becomes the last one.
    fn append(&mut self, start: usize, len: usize, data: &[u8]) -> Result<(), EfiStatus> {
        if data.len() > self.free() {
            return Err(EfiStatus::OUT_OF_RESOURCES);
        }
        self.move_to_end(start, len);
        self.write_at_end(&[data])?;
        let moved_to = self.used.saturating_sub(len).saturating_sub(data.len());
        let moved = self.arena.get_mut(moved_to..).unwrap_or_default();
        if let (Ok((record, _)), Ok(added)) = (Record::mut_from_prefix(moved), u32::try_from(data.len())) {
            record.data_len = record.data_len.get().saturating_add(added).into();
        }
        Ok(())
    }

    fn remove(&mut self, start: usize, len: usize) {
        self.move_to_end(start, len);
        let left = self.used.saturating_sub(len);
        self.arena.get_mut(left..self.used).unwrap_or_default().fill(0);
        self.used = left;
    }

    /// Makes the variable of `len` bytes at `start` the last one.
    fn move_to_end(&mut self, start: usize, len: usize) {
        let tail = self.arena.get_mut(start..self.used).unwrap_or_default();
        // Three reversals are a rotation; `rotate_left` has a panic in it.
        let Some((variable, others)) = tail.split_at_mut_checked(len) else {
            return;
        };
        variable.reverse();
        others.reverse();
        tail.reverse();
    }

    fn write_at_end(&mut self, parts: &[&[u8]]) -> Result<(), EfiStatus> {
        let len = parts.iter().map(|part| part.len()).fold(0, usize::saturating_add);
        if len > self.free() {
            return Err(EfiStatus::OUT_OF_RESOURCES);
        }
        for part in parts {
            let free = self.arena.get_mut(self.used..).unwrap_or_default();
            copy(free, part).ok_or(EfiStatus::OUT_OF_RESOURCES)?;
            self.used = self.used.saturating_add(part.len());
        }
        Ok(())
    }
}

impl Handler for VariableStore<'_> {
    fn handle(&mut self, request: &mut Request<'_>) -> Result<(), EfiStatus> {
        let Ok((header, payload)) = FunctionHeader::mut_from_prefix(request.message_mut()) else {
            return Ok(());
        };
        if payload.len() > self.payload_len() {
            return Ok(());
        }
        // `None`: too short for its function, and returned unchanged.
        let done = match header.function.get() {
            function::GET_VARIABLE => AccessVariable::mut_from_prefix(payload)
                .ok()
                .map(|(access, rest)| self.get(access, rest)),
            function::GET_NEXT_VARIABLE_NAME => NextName::mut_from_prefix(payload)
                .ok()
                .map(|(next, rest)| self.get_next_name(next, rest)),
            function::SET_VARIABLE => AccessVariable::mut_from_prefix(payload)
                .ok()
                .map(|(access, rest)| self.set(access, rest)),
            function::QUERY_VARIABLE_INFO => QueryInfo::mut_from_prefix(payload)
                .ok()
                .map(|(info, _)| self.query_info(info)),
            function::READY_TO_BOOT if self.at_runtime => Some(Err(EfiStatus::UNSUPPORTED)),
            // This store has no variables that become read-only.
            function::READY_TO_BOOT => Some(Ok(())),
            function::EXIT_BOOT_SERVICE => {
                self.at_runtime = true;
                Some(Ok(()))
            }
            function::GET_PAYLOAD_SIZE => PayloadSize::mut_from_prefix(payload).ok().map(|(response, _)| {
                response.size = (self.payload_len() as u64).into();
                Ok(())
            }),
            _ => Some(Err(EfiStatus::UNSUPPORTED)),
        };
        if let Some(result) = done {
            let status = result.err().unwrap_or(EfiStatus::SUCCESS);
            header.return_status = status.0.into();
        }
        Ok(())
    }
}

/// The name up to its first NUL, and the bytes of the data or the room for it.
fn name_and_data<'m>(
    access: &AccessVariable,
    rest: &'m mut [u8],
) -> Result<(&'m [u8], &'m mut [u8]), EfiStatus> {
    let sizes = usize::try_from(access.name_size.get())
        .ok()
        .zip(usize::try_from(access.data_size.get()).ok());
    let (name, data) = sizes
        .and_then(|(name_len, data_len)| {
            let (name, behind) = rest.split_at_mut_checked(name_len)?;
            Some((&*name, behind.get_mut(..data_len)?))
        })
        .filter(|(name, _)| ends_in_nul(name))
        .ok_or(EfiStatus::ACCESS_DENIED)?;
    Ok((up_to_nul(name).ok_or(EfiStatus::ACCESS_DENIED)?, data))
}

/// Copies `bytes` to the start of `room`; `None` if they do not fit.
fn copy(room: &mut [u8], bytes: &[u8]) -> Option<()> {
    let room = room.get_mut(..bytes.len())?;
    room.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
    Some(())
}

/// Whether the last whole UTF-16 unit is a NUL.
fn ends_in_nul(name: &[u8]) -> bool {
    name.as_chunks::<2>().0.last() == Some(&[0, 0])
}

/// The UTF-16 units up to and with the first NUL; `None` if there is no NUL.
fn up_to_nul(name: &[u8]) -> Option<&[u8]> {
    let units = name.as_chunks::<2>().0;
    let (text, _) = units.split_at(units.iter().position(|unit| *unit == [0, 0])?);
    name.get(..text.as_flattened().len().saturating_add(2))
}

/// Whether a name is only its NUL.
fn is_empty(name: &[u8]) -> bool {
    name.len() <= 2
}

/// A variable has at least one of these.
const fn access_attributes() -> Attributes {
    Attributes::BOOT_SERVICE.union(Attributes::RUNTIME)
}

/// Whether the combination is always wrong: runtime without boot services, or only non-volatile.
fn is_inconsistent(attributes: Attributes) -> bool {
    attributes.intersection(access_attributes()) == Attributes::RUNTIME
        || attributes.intersection(Attributes::all().difference(Attributes::AUTHENTICATED))
            == Attributes::NON_VOLATILE
}

fn check_writable(attributes: Attributes) -> Result<(), EfiStatus> {
    let unsupported = Attributes::AUTHENTICATED
        .union(Attributes::TIME_BASED_AUTHENTICATED)
        .union(Attributes::HARDWARE_ERROR_RECORD);
    if !Attributes::all().contains(attributes) {
        Err(EfiStatus::INVALID_PARAMETER)
    } else if is_inconsistent(attributes) && attributes.contains(Attributes::AUTHENTICATED) {
        Err(EfiStatus::UNSUPPORTED)
    } else if is_inconsistent(attributes) || attributes.intersects(unsupported) {
        Err(EfiStatus::INVALID_PARAMETER)
    } else {
        Ok(())
    }
}

fn check_queryable(attributes: Attributes) -> Result<(), EfiStatus> {
    let known = Attributes::all().difference(Attributes::AUTHENTICATED);
    let lasting_error_record = Attributes::NON_VOLATILE.union(Attributes::HARDWARE_ERROR_RECORD);
    if attributes.is_empty() {
        Err(EfiStatus::INVALID_PARAMETER)
    } else if attributes.contains(Attributes::AUTHENTICATED) || !attributes.intersects(known) {
        Err(EfiStatus::UNSUPPORTED)
    } else if is_inconsistent(attributes)
        || attributes.intersection(lasting_error_record) == Attributes::HARDWARE_ERROR_RECORD
    {
        Err(EfiStatus::INVALID_PARAMETER)
    } else if attributes
        .intersects(Attributes::TIME_BASED_AUTHENTICATED.union(Attributes::HARDWARE_ERROR_RECORD))
    {
        Err(EfiStatus::UNSUPPORTED)
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::ask;
    use super::*;
    use proptest::prelude::*;
    use std::vec;
    use std::vec::Vec;

    const VENDOR: [u8; 16] = [0x11; 16];
    /// Non-volatile, boot services, runtime.
    const NV_BS_RT: u32 = 7;
    const APPEND: u32 = 0x40;
    const SUCCESS: EfiStatus = EfiStatus::SUCCESS;
    const UNANSWERED: EfiStatus = EfiStatus(0x77);

    fn utf16(name: &str) -> Vec<u8> {
        name.encode_utf16()
            .chain([0])
            .flat_map(u16::to_le_bytes)
            .collect()
    }

    fn message(function: u64, parts: &[&[u8]]) -> Vec<u8> {
        // A status that no function returns: it shows whether there was a response at all.
        let header = FunctionHeader {
            return_status: UNANSWERED.0.into(),
            ..FunctionHeader::new(function)
        };
        let mut message = header.as_bytes().to_vec();
        parts.iter().for_each(|part| message.extend_from_slice(part));
        message
    }

    /// Sends a message; returns the status in the response, and what follows it.
    fn send(store: &mut VariableStore<'_>, message: &[u8]) -> (EfiStatus, Vec<u8>) {
        let (result, response) = ask(store, message, message.len());
        assert_eq!(result, Ok(()));
        assert_eq!(response.len(), message.len());
        let (header, payload) = FunctionHeader::ref_from_prefix(&response).unwrap();
        (EfiStatus(header.return_status.get()), payload.to_vec())
    }

    fn access(name_size: usize, data_size: usize, attributes: u32) -> AccessVariable {
        AccessVariable {
            vendor: VENDOR,
            data_size: (data_size as u64).into(),
            name_size: (name_size as u64).into(),
            attributes: attributes.into(),
        }
    }

    fn set(store: &mut VariableStore<'_>, name: &str, attributes: u32, data: &[u8]) -> EfiStatus {
        let name = utf16(name);
        let access = access(name.len(), data.len(), attributes);
        let sent = message(function::SET_VARIABLE, &[access.as_bytes(), &name, data]);
        let (status, response) = send(store, &sent);
        assert_eq!(response, sent[16..], "nothing but the status changes");
        status
    }

    /// Status, attributes, the data size in the response, and the room with its content.
    fn get(store: &mut VariableStore<'_>, name: &str, room: usize) -> (EfiStatus, u32, u64, Vec<u8>) {
        let name = utf16(name);
        let sent = message(
            function::GET_VARIABLE,
            &[access(name.len(), room, 0).as_bytes(), &name, &vec![0xee; room]],
        );
        let (status, response) = send(store, &sent);
        let (access, rest) = AccessVariable::ref_from_prefix(&response).unwrap();
        let data = rest[name.len()..].to_vec();
        (status, access.attributes.get(), access.data_size.get(), data)
    }

    fn value(store: &mut VariableStore<'_>, name: &str) -> Option<Vec<u8>> {
        let (status, _, len, data) = get(store, name, 24);
        (status == SUCCESS).then(|| data[..usize::try_from(len).unwrap()].to_vec())
    }

    /// Asks for the name behind `name`, with room for `room` bytes of it.
    fn next(store: &mut VariableStore<'_>, name: &str, room: usize) -> (EfiStatus, u64, Vec<u8>) {
        let next = NextName {
            vendor: VENDOR,
            name_size: (room as u64).into(),
        };
        let mut area = utf16(name);
        area.resize(area.len().max(room), 0);
        let (status, response) = send(
            store,
            &message(function::GET_NEXT_VARIABLE_NAME, &[next.as_bytes(), &area]),
        );
        let (next, name) = NextName::ref_from_prefix(&response).unwrap();
        (status, next.name_size.get(), name.to_vec())
    }

    fn names(store: &mut VariableStore<'_>) -> Vec<Vec<u8>> {
        let mut names = vec![];
        let mut last = std::string::String::new();
        loop {
            let (status, len, name) = next(store, &last, 32);
            if status != SUCCESS {
                assert_eq!(status, EfiStatus::NOT_FOUND);
                return names;
            }
            let name = name[..usize::try_from(len).unwrap()].to_vec();
            let units: Vec<u16> = name
                .as_chunks()
                .0
                .iter()
                .map(|unit| u16::from_le_bytes(*unit))
                .collect();
            last = std::string::String::from_utf16(&units[..units.len() - 1]).unwrap();
            names.push(name);
        }
    }

    fn query(store: &mut VariableStore<'_>, attributes: u32) -> (EfiStatus, [u64; 3]) {
        let info = QueryInfo {
            attributes: attributes.into(),
            ..QueryInfo::default()
        };
        let (status, response) = send(store, &message(function::QUERY_VARIABLE_INFO, &[info.as_bytes()]));
        let info = QueryInfo::read_from_bytes(&response).unwrap();
        let sizes = [
            info.maximum_storage,
            info.remaining_storage,
            info.maximum_variable,
        ];
        (status, sizes.map(zerocopy::little_endian::U64::get))
    }

    #[test]
    fn variable_is_created_read_replaced_and_deleted() {
        let mut arena = [0; 512];
        let store = &mut VariableStore::new(&mut arena, 256);
        assert_eq!(get(store, "Boot0001", 8).0, EfiStatus::NOT_FOUND);
        assert_eq!(set(store, "Boot0001", NV_BS_RT, b"one"), SUCCESS);
        assert_eq!(
            get(store, "Boot0001", 5),
            (SUCCESS, NV_BS_RT, 3, b"one\xee\xee".to_vec())
        );
        assert_eq!(set(store, "Boot0001", NV_BS_RT, b"longer than one"), SUCCESS);
        assert_eq!(value(store, "Boot0001").unwrap(), b"longer than one");
        assert_eq!(set(store, "Boot0001", NV_BS_RT, b""), SUCCESS);
        assert_eq!(value(store, "Boot0001"), None);
        assert_eq!(set(store, "Boot0001", NV_BS_RT, b""), EfiStatus::NOT_FOUND);

        assert_eq!(set(store, "Boot0001", NV_BS_RT, b"again"), SUCCESS);
        assert_eq!(set(store, "Boot0001", 0, b"attributes 0 delete"), SUCCESS);
        assert_eq!(value(store, "Boot0001"), None);
        assert_eq!(query(store, NV_BS_RT).1[1], 512);
        assert!(arena.iter().all(|byte| *byte == 0), "deleted data stays behind");
    }

    #[test]
    fn short_buffer_gets_the_needed_size() {
        let mut arena = [0; 512];
        let store = &mut VariableStore::new(&mut arena, 256);
        set(store, "V", NV_BS_RT, b"12345");
        assert_eq!(
            get(store, "V", 4),
            (EfiStatus::BUFFER_TOO_SMALL, NV_BS_RT, 5, vec![0xee; 4])
        );
        assert_eq!(get(store, "V", 5), (SUCCESS, NV_BS_RT, 5, b"12345".to_vec()));
    }

    #[test]
    fn append_adds_to_the_data() {
        let mut arena = [0; 512];
        let store = &mut VariableStore::new(&mut arena, 16);
        assert_eq!(set(store, "A", NV_BS_RT | APPEND, b""), SUCCESS);
        assert_eq!(value(store, "A"), None);
        assert_eq!(set(store, "A", NV_BS_RT | APPEND, b"one"), SUCCESS);
        assert_eq!(set(store, "B", NV_BS_RT, b"other"), SUCCESS);
        assert_eq!(set(store, "A", NV_BS_RT | APPEND, b", two"), SUCCESS);
        assert_eq!(set(store, "A", NV_BS_RT | APPEND, b""), SUCCESS);
        assert_eq!(get(store, "A", 8), (SUCCESS, NV_BS_RT, 8, b"one, two".to_vec()));
        assert_eq!(value(store, "B").unwrap(), b"other");
        // Four bytes of name and twelve of data are the limit.
        assert_eq!(
            set(store, "A", NV_BS_RT | APPEND, b"three"),
            EfiStatus::INVALID_PARAMETER
        );
        assert_eq!(set(store, "A", NV_BS_RT | APPEND, b"four"), SUCCESS);
    }

    #[test]
    fn append_may_fill_the_store_to_its_last_byte() {
        // A variable takes 28 bytes besides its data and its name, which has four here: 10 are left.
        let mut arena = [0; 84];
        let store = &mut VariableStore::new(&mut arena, 64);
        assert_eq!(set(store, "A", NV_BS_RT, b"first"), SUCCESS);
        assert_eq!(set(store, "B", NV_BS_RT, b"other"), SUCCESS);
        assert_eq!(query(store, NV_BS_RT).1[1], 10);
        let too_long = set(store, "A", NV_BS_RT | APPEND, &[b'+'; 11]);
        assert_eq!(too_long, EfiStatus::OUT_OF_RESOURCES);
        assert_eq!(value(store, "A").unwrap(), b"first");
        assert_eq!(set(store, "A", NV_BS_RT | APPEND, &[b'+'; 10]), SUCCESS);
        assert_eq!(value(store, "A").unwrap(), b"first++++++++++");
        assert_eq!(value(store, "B").unwrap(), b"other");
        assert_eq!(query(store, NV_BS_RT), (SUCCESS, [84, 0, 0]));
    }

    #[test]
    fn walk_visits_each_name_once_and_ends_in_not_found() {
        let mut arena = [0; 512];
        let store = &mut VariableStore::new(&mut arena, 256);
        assert_eq!(next(store, "", 64).0, EfiStatus::NOT_FOUND);
        for name in ["A", "Bb", "Ccc"] {
            set(store, name, NV_BS_RT, b"x");
        }
        assert_eq!(names(store), [utf16("A"), utf16("Bb"), utf16("Ccc")]);
        set(store, "A", NV_BS_RT, b"replaced");
        assert_eq!(names(store), [utf16("Bb"), utf16("Ccc"), utf16("A")]);
        assert_eq!(next(store, "Unknown", 64).0, EfiStatus::INVALID_PARAMETER);
        let (status, needed, name) = next(store, "Bb", 6);
        assert_eq!((status, needed), (EfiStatus::BUFFER_TOO_SMALL, 8));
        assert_eq!(name, utf16("Bb"));
    }

    #[test]
    fn inconsistent_names_and_sizes_have_the_statuses_of_edk2() {
        let mut arena = [0; 512];
        let store = &mut VariableStore::new(&mut arena, 256);
        let name = utf16("Name");
        for function in [function::GET_VARIABLE, function::SET_VARIABLE] {
            let status_of = |store: &mut _, access: AccessVariable, rest: &[u8]| {
                send(store, &message(function, &[access.as_bytes(), rest])).0
            };
            for (name_size, data_size, rest) in [
                (10, 1, name.as_slice()),
                (11, 0, &name),
                (usize::MAX, 2, &name),
                (10, usize::MAX, &name),
                (8, 0, &name),
                (1, 0, &name),
                (0, 0, &name),
            ] {
                let access = access(name_size, data_size, NV_BS_RT);
                assert_eq!(
                    status_of(store, access, rest),
                    EfiStatus::ACCESS_DENIED,
                    "function {function}, name {name_size}, data {data_size}"
                );
            }
        }
        assert_eq!(set(store, "", NV_BS_RT, b"x"), EfiStatus::INVALID_PARAMETER);
        assert_eq!(get(store, "", 4).0, EfiStatus::NOT_FOUND);

        let status_of = |store: &mut _, name_size: u64, rest: &[u8]| {
            let next = NextName {
                vendor: VENDOR,
                name_size: name_size.into(),
            };
            send(
                store,
                &message(function::GET_NEXT_VARIABLE_NAME, &[next.as_bytes(), rest]),
            )
            .0
        };
        assert_eq!(status_of(store, 11, &name), EfiStatus::ACCESS_DENIED);
        assert_eq!(status_of(store, u64::MAX, &name), EfiStatus::ACCESS_DENIED);
        assert_eq!(status_of(store, 8, &name[..8]), EfiStatus::ACCESS_DENIED);
        assert_eq!(status_of(store, 0, &[]), EfiStatus::ACCESS_DENIED);
        assert_eq!(status_of(store, 8, &name), EfiStatus::INVALID_PARAMETER);
        assert_eq!(status_of(store, 1, &name), EfiStatus::INVALID_PARAMETER);
    }

    #[test]
    fn attributes_have_the_statuses_of_edk2() {
        let mut arena = [0; 512];
        let store = &mut VariableStore::new(&mut arena, 256);
        let invalid = EfiStatus::INVALID_PARAMETER;
        let unsupported = EfiStatus::UNSUPPORTED;
        // Attributes, status of set, status of query.
        for (attributes, setting, querying) in [
            (0x02, SUCCESS, SUCCESS),
            (0x03, SUCCESS, SUCCESS),
            (0x06, SUCCESS, SUCCESS),
            (0x07, SUCCESS, SUCCESS),
            (0x47, SUCCESS, SUCCESS),
            (0x00, EfiStatus::NOT_FOUND, invalid),
            (0x01, invalid, invalid),
            (0x04, invalid, invalid),
            (0x05, invalid, invalid),
            (0x0a, invalid, invalid),
            (0x0f, invalid, unsupported),
            (0x14, unsupported, unsupported),
            (0x17, invalid, unsupported),
            (0x27, invalid, unsupported),
            (0x87, invalid, SUCCESS),
            (0x80, invalid, unsupported),
        ] {
            let name = std::format!("{attributes:02x}");
            assert_eq!(
                set(store, &name, attributes, b"x"),
                setting,
                "set {attributes:#x}"
            );
            assert_eq!(query(store, attributes).0, querying, "query {attributes:#x}");
        }
        set(store, "V", 0x07, b"old");
        for changed in [0x03, 0x43, APPEND] {
            assert_eq!(set(store, "V", changed, b"new"), invalid);
        }
        assert_eq!(get(store, "V", 3), (SUCCESS, 0x07, 3, b"old".to_vec()));
    }

    #[test]
    fn full_store_keeps_its_variables() {
        // A variable takes 28 bytes besides its data and its name, which has four here.
        let mut arena = [0; 100];
        let store = &mut VariableStore::new(&mut arena, 64);
        assert_eq!(set(store, "A", NV_BS_RT, &[1; 20]), SUCCESS);
        assert_eq!(query(store, NV_BS_RT), (SUCCESS, [100, 48, 20]));
        assert_eq!(set(store, "B", NV_BS_RT, &[2; 20]), EfiStatus::OUT_OF_RESOURCES);
        assert_eq!(set(store, "B", NV_BS_RT, &[2; 16]), SUCCESS);
        assert_eq!(query(store, NV_BS_RT), (SUCCESS, [100, 0, 0]));
        assert_eq!(set(store, "A", NV_BS_RT, &[3; 21]), EfiStatus::OUT_OF_RESOURCES);
        assert_eq!(
            set(store, "A", NV_BS_RT | APPEND, &[3]),
            EfiStatus::OUT_OF_RESOURCES
        );
        assert_eq!(names(store), [utf16("A"), utf16("B")]);
        assert_eq!(value(store, "A").unwrap(), [1; 20]);
        assert_eq!(value(store, "B").unwrap(), [2; 16]);
        assert_eq!(set(store, "A", NV_BS_RT, &[4; 20]), SUCCESS);
        assert_eq!(value(store, "A").unwrap(), [4; 20]);
    }

    proptest! {
        /// Compares with a plain list of variables, in the order of their last change.
        #[test]
        fn any_order_of_changes_leaves_the_same_as_in_a_list(
            changes in prop::collection::vec(
                (0..3usize, prop_oneof![Just(7), Just(3), Just(0x47), Just(0)], 0..12usize),
                // Miri takes too long for more.
                0..if cfg!(miri) { 8 } else { 40 },
            ),
        ) {
            let mut arena = [0; 160];
            let store = &mut VariableStore::new(&mut arena, 20);
            let mut model: Vec<(&str, u32, Vec<u8>)> = vec![];
            for (round, (name, attributes, len)) in changes.into_iter().enumerate() {
                let name = ["A", "Bb", "Ccc"][name];
                let data = vec![u8::try_from(round).unwrap(); len];
                let status = set(store, name, attributes, &data);
                let old = model.iter().position(|variable| variable.0 == name);
                if status == SUCCESS {
                    let old = old.map(|at| model.remove(at));
                    let is_append = attributes & APPEND != 0;
                    let mut value = old.filter(|_| is_append).map_or(vec![], |old| old.2);
                    value.extend_from_slice(&data);
                    if attributes != 0 && !value.is_empty() {
                        model.push((name, attributes & !APPEND, value));
                    }
                }
                let used: usize = model.iter().map(|(name, _, data)| record_len(utf16(name).len(), data.len())).sum();
                prop_assert_eq!(query(store, NV_BS_RT).1[1], 160 - used as u64);
                let expected: Vec<_> = model.iter().map(|variable| utf16(variable.0)).collect();
                prop_assert_eq!(names(store), expected);
                for (name, attributes, data) in &model {
                    prop_assert_eq!(get(store, name, data.len()), (SUCCESS, *attributes, data.len() as u64, data.clone()));
                }
            }
        }
    }

    #[test]
    fn other_functions_are_unsupported_and_impossible_lengths_are_returned_unchanged() {
        let mut arena = [0; 512];
        let store = &mut VariableStore::new(&mut arena, 256);
        assert_eq!(send(store, &message(99, &[])).0, EfiStatus::UNSUPPORTED);
        let (status, size) = send(store, &message(function::GET_PAYLOAD_SIZE, &[&[0; 8]]));
        assert_eq!((status, size), (SUCCESS, 304u64.to_le_bytes().to_vec()));

        for (function, payload) in [
            (function::GET_VARIABLE, 35),
            (function::SET_VARIABLE, 35),
            (function::GET_NEXT_VARIABLE_NAME, 23),
            (function::QUERY_VARIABLE_INFO, 31),
            (function::GET_PAYLOAD_SIZE, 7),
            (99, 305),
        ] {
            let sent = message(function, &[&vec![0; payload]]);
            assert_eq!(ask(store, &sent, sent.len()), (Ok(()), sent.clone()));
        }
        // The longest payload is 304 bytes.
        let longest = message(99, &[&[0; 304]]);
        assert_eq!(send(store, &longest).0, EfiStatus::UNSUPPORTED);
        assert_eq!(ask(store, &[1; 15], 15), (Ok(()), vec![1; 15]));
        assert_eq!(set(store, "A", NV_BS_RT, &[0; 256]), EfiStatus::INVALID_PARAMETER);
    }

    /// edk2's driver takes an error here for "MM has no cache", and asks MM each time
    /// (`SmmVariableReady` in VariableSmmRuntimeDxe.c; a DEBUG build asserts, so such a platform
    /// switches the cache off).
    #[test]
    fn runtime_cache_is_refused() {
        // SMM_VARIABLE_FUNCTION_INIT_RUNTIME_VARIABLE_CACHE_CONTEXT, ..SYNC_RUNTIME_CACHE,
        // ..GET_RUNTIME_CACHE_INFO.
        for function in [12, 13, 14] {
            let mut arena = [0; 512];
            let store = &mut VariableStore::new(&mut arena, 256);
            let sent = message(function, &[&[0xa5; 56]]);
            assert_eq!(
                send(store, &sent),
                (EfiStatus::UNSUPPORTED, vec![0xa5; 56]),
                "function {function}"
            );
        }
    }

    /// `VariableServiceSetVariable`, `UpdateVariable`, `FindVariableEx` and
    /// `VariableServiceQueryVariableInfo` in edk2's Variable.c and VariableParsing.c.
    #[test]
    fn operating_system_sees_and_changes_runtime_variables_only() {
        const BS: u32 = 2;
        const BS_RT: u32 = 6;
        let mut arena = vec![0; 1024];
        let mut store = VariableStore::new(&mut arena, 256);
        for (name, attributes) in [("firmware", 3), ("volatile", BS_RT), ("lasting", NV_BS_RT)] {
            assert_eq!(set(&mut store, name, attributes, name.as_bytes()), SUCCESS);
        }
        let tell = |store: &mut VariableStore<'_>, event| send(store, &message(event, &[])).0;
        assert_eq!(tell(&mut store, function::READY_TO_BOOT), SUCCESS);
        assert_eq!(names(&mut store).len(), 3);
        assert_eq!(tell(&mut store, function::EXIT_BOOT_SERVICE), SUCCESS);
        assert_eq!(tell(&mut store, function::READY_TO_BOOT), EfiStatus::UNSUPPORTED);

        assert_eq!(names(&mut store), [utf16("volatile"), utf16("lasting")]);
        assert_eq!(value(&mut store, "firmware"), None);
        assert_eq!(value(&mut store, "volatile").unwrap(), b"volatile");
        assert_eq!(value(&mut store, "lasting").unwrap(), b"lasting");
        for (name, attributes, expected) in [
            ("firmware", 3, EfiStatus::WRITE_PROTECTED),
            ("firmware", 0, EfiStatus::WRITE_PROTECTED),
            ("volatile", BS_RT, EfiStatus::WRITE_PROTECTED),
            ("volatile", 0, EfiStatus::WRITE_PROTECTED),
            ("lasting", BS_RT, EfiStatus::INVALID_PARAMETER),
            ("new", BS, EfiStatus::INVALID_PARAMETER),
            ("new", BS_RT, EfiStatus::INVALID_PARAMETER),
            ("new", 3, EfiStatus::INVALID_PARAMETER),
            ("new", 0, EfiStatus::NOT_FOUND),
            ("lasting", NV_BS_RT | APPEND, SUCCESS),
            ("new", NV_BS_RT, SUCCESS),
            ("new", 0, SUCCESS),
        ] {
            assert_eq!(
                set(&mut store, name, attributes, b"+"),
                expected,
                "{name}, {attributes:#x}"
            );
        }
        assert_eq!(value(&mut store, "lasting").unwrap(), b"lasting+");
        for (attributes, expected) in [(NV_BS_RT, SUCCESS), (3, EfiStatus::INVALID_PARAMETER)] {
            let info = QueryInfo {
                attributes: attributes.into(),
                ..QueryInfo::default()
            };
            let asked = message(function::QUERY_VARIABLE_INFO, &[info.as_bytes()]);
            assert_eq!(send(&mut store, &asked).0, expected);
        }
    }
}
