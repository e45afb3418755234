//! Offers the communicator to drivers in C. An unsafe island (`docs/unsafe.md`): it reads and writes what they point to.
//!
//! The caller's buffer may be the comm buffer itself, as with some of edk2's drivers. So it is only ever reached through
//! [`SharedRegion`], the request is copied out before the transaction, and the answer copied in after it.

use super::{Communication, Communication2, Communication3};
use crate::component::communicator::{CallOptions, Status};
use crate::config::HeaderFormat;
use crate::service::MmCommunication;
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::ffi::c_void;
use mm_comm::SharedRegion;
use mm_wire::header::MAX_HEADER_LEN;
use mm_wire::{Header, HeaderError};
use patina::BinaryGuid;
use patina::component::component;
use patina::component::service::Service;
use patina::component::service::uefi_services::protocol::{
    Handle, ProtocolError, ProtocolPtr, ProtocolServices,
};
use patina::error::EfiError;
use patina::protocol::ProtocolInterface;
use patina::standard::efi;

/// Component: installs `EFI_MM_COMMUNICATION_PROTOCOL`, `...2` and `...3` over [`MmCommunication`].
///
/// A C driver that finds them sends and receives as with a driver of edk2, for as long as boot services last. What each
/// parameter may be, and what is written back:
///
/// | call | status | written back |
/// |---|---|---|
/// | the buffer is null; protocol 2 and 3: either address is, or they differ | `INVALID_PARAMETER` | nothing |
/// | `*CommSize` is 0 | `BAD_BUFFER_SIZE` | `*CommSize`: the largest buffer with header |
/// | `*CommSize` is less than the header, or than header and message | `INVALID_PARAMETER` | nothing |
/// | `*CommSize` is more than MM takes | `BAD_BUFFER_SIZE` | `*CommSize`, as above |
/// | the message's length is 0 or more than MM takes | `BAD_BUFFER_SIZE` | MessageLength (v3: MessageSize): the longest message; and `*CommSize` where given |
/// | v3: BufferSize is less than header and MessageSize | `INVALID_PARAMETER` | nothing |
/// | protocol 3: the header is not v3 | `INVALID_PARAMETER` | nothing |
/// | the answer does not fit into the caller's buffer | `BUFFER_TOO_SMALL` | `*CommSize`: what it would take |
/// | no handler, or another refusal of MM's | MM's status | nothing |
/// | an answer | `SUCCESS` | the answer; `*CommSize` with the header. Without `CommSize`: MessageLength (v3: MessageSize) |
///
/// The caller's buffer has `*CommSize` bytes or, where that is not given, as many as its header counts (v3: BufferSize).
/// Both header formats are taken by protocols 1 and 2. A `*CommSize` above header and message is room for the answer.
///
/// The component fails with [`EfiError::AlreadyStarted`] where one of the protocols is installed already.
#[derive(Clone, Copy, Debug)]
pub struct MmCommunicationProducer {
    buffer: u8,
}

#[component]
impl MmCommunicationProducer {
    /// Has the protocols send through this comm buffer.
    #[must_use]
    pub const fn new(buffer: u8) -> Self {
        Self { buffer }
    }

    fn entry_point(
        self,
        mm: Service<dyn MmCommunication>,
        protocols: Service<dyn ProtocolServices>,
    ) -> patina::error::Result<()> {
        let installed = [
            Communication::PROTOCOL_GUID,
            Communication2::PROTOCOL_GUID,
            Communication3::PROTOCOL_GUID,
        ];
        if installed
            .iter()
            .any(|guid| protocols.locate_interface(*guid).is_ok())
        {
            log::error!(target: "mm_comm", "platform: another driver has installed an MM communication protocol");
            return Err(EfiError::AlreadyStarted);
        }
        let bridge = Bridge {
            mm,
            buffer: self.buffer,
        };
        let result = install(&protocols, bridge);
        Ok(result.inspect_err(
            |error| log::error!(target: "mm_comm", "the MM communication protocols were not installed: {error:?}"),
        )?)
    }
}

/// What stands behind an installed interface.
#[derive(Clone, Copy)]
struct Bridge {
    mm: Service<dyn MmCommunication>,
    buffer: u8,
}

/// An interface as it is installed. The caller's `This` points to the first field, and so to all of it.
#[repr(C)]
struct Produced<P> {
    interface: P,
    bridge: Bridge,
}

/// Installs the three protocols on one handle, or none.
fn install(protocols: &Service<dyn ProtocolServices>, bridge: Bridge) -> Result<(), ProtocolError> {
    let first = Communication {
        communicate: communicate1,
    };
    let second = Communication2 {
        communicate: communicate2,
    };
    let third = Communication3 {
        communicate: communicate3,
    };
    let (handle, installed1) = install_one(protocols, None, first, bridge)?;
    let (_, installed2) = install_one(protocols, Some(handle), second, bridge)
        .inspect_err(|_| uninstall(protocols, handle, Communication::PROTOCOL_GUID, installed1))?;
    install_one(protocols, Some(handle), third, bridge).inspect_err(|_| {
        uninstall(protocols, handle, Communication2::PROTOCOL_GUID, installed2);
        uninstall(protocols, handle, Communication::PROTOCOL_GUID, installed1);
    })?;
    Ok(())
}

fn install_one<P: ProtocolInterface>(
    protocols: &Service<dyn ProtocolServices>,
    handle: Option<Handle>,
    interface: P,
    bridge: Bridge,
) -> Result<(Handle, ProtocolPtr), ProtocolError> {
    let produced = Box::into_raw(Box::new(Produced { interface, bridge }));
    produced.expose_provenance();
    let pointer = ProtocolPtr::from_raw(produced.cast()).ok_or(ProtocolError::Internal)?;
    match protocols.install_interface(handle, P::PROTOCOL_GUID, pointer) {
        // Never freed: a caller may keep the interface for as long as it lives.
        Ok(handle) => Ok((handle, pointer)),
        Err(error) => {
            // SAFETY: from `Box::into_raw` above, and nobody was given it.
            drop(unsafe { Box::from_raw(produced) });
            Err(error)
        }
    }
}

fn uninstall(
    protocols: &Service<dyn ProtocolServices>,
    handle: Handle,
    guid: BinaryGuid,
    pointer: ProtocolPtr,
) {
    if let Err(error) = protocols.uninstall_interface(handle, guid, pointer) {
        log::error!(target: "mm_comm", "protocol {guid} stays installed: {error:?}");
    }
}

/// The bridge behind an interface.
///
/// # Safety
///
/// `this` is null, or an interface that [`install_one`] installed.
unsafe fn bridge_of<P>(this: *const P) -> Option<Bridge> {
    if this.is_null() {
        return None;
    }
    // By address: a caller in Rust may have come here from a reference to the interface, and no further.
    let produced = core::ptr::with_exposed_provenance::<Produced<P>>(this.addr());
    // SAFETY: the caller's promise: `this` is the first field of a `Produced<P>` that is never freed and never changed,
    // and whose provenance was exposed.
    Some(unsafe { (*produced).bridge })
}

unsafe extern "efiapi" fn communicate1(
    this: *const Communication,
    comm_buffer: *mut c_void,
    comm_size: *mut usize,
) -> efi::Status {
    // SAFETY: `This` is the interface that the function was found in (UEFI 2.11, 2.5.1).
    let bridge = unsafe { bridge_of(this) };
    // SAFETY: the protocol's caller passes a buffer and its size, as PI 1.9 describes them.
    unsafe { serve(bridge, comm_buffer, comm_size, None) }
}

unsafe extern "efiapi" fn communicate2(
    this: *const Communication2,
    comm_buffer_physical: *mut c_void,
    comm_buffer_virtual: *mut c_void,
    comm_size: *mut usize,
) -> efi::Status {
    if comm_buffer_physical != comm_buffer_virtual {
        return efi::Status::INVALID_PARAMETER;
    }
    // SAFETY: `This` is the interface that the function was found in (UEFI 2.11, 2.5.1).
    let bridge = unsafe { bridge_of(this) };
    // SAFETY: the protocol's caller passes a buffer and its size, as PI 1.9 describes them.
    unsafe { serve(bridge, comm_buffer_virtual, comm_size, None) }
}

unsafe extern "efiapi" fn communicate3(
    this: *const Communication3,
    comm_buffer_physical: *mut c_void,
    comm_buffer_virtual: *mut c_void,
) -> efi::Status {
    if comm_buffer_physical != comm_buffer_virtual {
        return efi::Status::INVALID_PARAMETER;
    }
    // SAFETY: `This` is the interface that the function was found in (UEFI 2.11, 2.5.1).
    let bridge = unsafe { bridge_of(this) };
    let no_size = core::ptr::null_mut();
    // SAFETY: the protocol's caller passes a buffer, as PI 1.9 describes it. A null size is not used.
    unsafe { serve(bridge, comm_buffer_virtual, no_size, Some(HeaderFormat::V3)) }
}

/// What is to be written back, and returned.
#[derive(Debug, PartialEq, Eq)]
struct Reply {
    status: efi::Status,
    /// To `CommSize`, where the caller gave it.
    comm_size: Option<usize>,
    /// To the header's length field: its offset, and the value.
    length_field: Option<(usize, u64)>,
}

impl Reply {
    const fn status(status: efi::Status) -> Self {
        Self {
            status,
            comm_size: None,
            length_field: None,
        }
    }

    const INVALID: Self = Self::status(efi::Status::INVALID_PARAMETER);
}

/// Serves a call of any of the three protocols.
///
/// # Safety
///
/// `comm_size` is null, or valid for reads and writes. `comm_buffer` is null, or valid for reads and writes of `*comm_size`
/// bytes; without `comm_size`, of as many as the header there counts, and of the header.
unsafe fn serve(
    bridge: Option<Bridge>,
    comm_buffer: *mut c_void,
    comm_size: *mut usize,
    only: Option<HeaderFormat>,
) -> efi::Status {
    let Some(bridge) = bridge.filter(|_| !comm_buffer.is_null()) else {
        return efi::Status::INVALID_PARAMETER;
    };
    let given = match comm_size.is_null() {
        true => None,
        // SAFETY: the caller's promise for a pointer that is not null.
        false => Some(unsafe { comm_size.read_unaligned() }),
    };
    // SAFETY: the caller's promise: that many bytes are valid, and nobody has a reference to them while the call lasts.
    let memory = |len| unsafe { SharedRegion::new(comm_buffer.cast(), len) }.ok();
    let reply = answer(bridge, given, only, &memory);
    if let Some(size) = reply.comm_size.filter(|_| !comm_size.is_null()) {
        // SAFETY: the caller's promise for a pointer that is not null.
        unsafe { comm_size.write_unaligned(size) };
    }
    reply.status
}

/// Serves a call, with `memory` to reach as many bytes of the caller's buffer as it is asked for.
fn answer(
    bridge: Bridge,
    comm_size: Option<usize>,
    only: Option<HeaderFormat>,
    memory: &dyn Fn(usize) -> Option<SharedRegion>,
) -> Reply {
    let request = match Request::read(bridge, comm_size, only, memory) {
        Ok(request) => request,
        Err(reply) => {
            if let Some((offset, value)) = reply.length_field {
                // The field is in the header, which was read.
                let _ = memory(offset.saturating_add(size_of::<u64>()))
                    .map(|header| header.write(offset, &value.to_le_bytes()));
            }
            return reply;
        }
    };
    let mut answer = Ok(Vec::new());
    let recipient = patina::Guid::from_bytes(&request.header.recipient().to_bytes());
    let options = CallOptions::new().with_header(request.header.format());
    let sent = bridge.mm.communicate_with(
        bridge.buffer,
        &request.message,
        recipient,
        options,
        &mut |reader| {
            answer = reader.read_to_vec();
        },
    );
    match sent.and(answer) {
        Ok(answer) => request.reply(&answer, comm_size.is_some()),
        Err(Status::MmReturned(status)) => Reply::status(status),
        Err(status) => Reply::status(EfiError::from(status).into()),
    }
}

/// A request whose numbers were checked, copied out of the caller's buffer.
struct Request {
    header: Header,
    message: Vec<u8>,
    /// The caller's buffer.
    region: SharedRegion,
}

/// Where the length of the message stands in a header: MessageLength, or MessageSize.
const fn length_offset(format: HeaderFormat) -> usize {
    match format {
        HeaderFormat::V1 => 16,
        HeaderFormat::V3 => 48,
    }
}

impl Request {
    fn read(
        bridge: Bridge,
        comm_size: Option<usize>,
        only: Option<HeaderFormat>,
        memory: &dyn Fn(usize) -> Option<SharedRegion>,
    ) -> Result<Self, Reply> {
        let capacity = |format| {
            let options = CallOptions::new().with_header(format);
            bridge
                .mm
                .message_capacity(bridge.buffer, options)
                .map_err(|status| Reply::status(EfiError::from(status).into()))
        };
        let largest = capacity(HeaderFormat::V1)?.saturating_add(HeaderFormat::V1.header_len());
        let bad_comm_size = Reply {
            comm_size: Some(largest),
            ..Reply::status(efi::Status::BAD_BUFFER_SIZE)
        };
        match comm_size {
            Some(0) => return Err(bad_comm_size),
            Some(size) if size > largest => return Err(bad_comm_size),
            Some(size) if size < HeaderFormat::V1.header_len() => return Err(Reply::INVALID),
            _ => {}
        }

        let (header, message_size) = read_header(comm_size, memory)?;
        let format = match header {
            Ok(header) => header.format(),
            // A length beyond 64 bits.
            Err(HeaderError::LengthOverflows { .. }) => HeaderFormat::V1,
            // BufferSize below the header, or a CommSize that ends inside it.
            Err(_) => return Err(Reply::INVALID),
        };
        if only.is_some_and(|only| only != format) {
            return Err(Reply::INVALID);
        }
        let longest = capacity(format)?;
        let header = header.ok().filter(|header| {
            let fits = usize::try_from(header.message_len()).is_ok_and(|len| len <= longest);
            fits && message_size != 0
        });
        let header = header.ok_or(Reply {
            length_field: Some((length_offset(format), longest as u64)),
            ..bad_comm_size
        })?;
        // Neither loses anything: `longest` is a `usize`.
        let message_len = usize::try_from(header.message_len()).unwrap_or(longest);
        let total = usize::try_from(header.total_len()).unwrap_or(largest);
        if message_size > header.message_len() || comm_size.is_some_and(|size| size < total) {
            return Err(Reply::INVALID);
        }

        let region = memory(comm_size.unwrap_or(total)).ok_or(Reply::INVALID)?;
        let mut message = Vec::new();
        if message.try_reserve_exact(message_len).is_err() {
            return Err(Reply::status(efi::Status::OUT_OF_RESOURCES));
        }
        message.resize(message_len, 0);
        if !region.read(format.header_len(), &mut message) {
            return Err(Reply::INVALID);
        }
        Ok(Self {
            header,
            message,
            region,
        })
    }

    /// Writes the answer into the caller's buffer.
    fn reply(&self, answer: &[u8], has_comm_size: bool) -> Reply {
        let format = self.header.format();
        let total = format.header_len().saturating_add(answer.len());
        let comm_size = Some(total);
        if total > self.region.len() || !self.region.write(format.header_len(), answer) {
            return Reply {
                comm_size,
                ..Reply::status(efi::Status::BUFFER_TOO_SMALL)
            };
        }
        if !has_comm_size {
            let len = (answer.len() as u64).to_le_bytes();
            let written = self.region.write(length_offset(format), &len);
            debug_assert!(written, "the field is in the header, which was read from there");
        }
        Reply {
            comm_size,
            ..Reply::status(efi::Status::SUCCESS)
        }
    }
}

/// Copies the header. With it comes the length of the message: MessageLength or MessageSize.
fn read_header(
    comm_size: Option<usize>,
    memory: &dyn Fn(usize) -> Option<SharedRegion>,
) -> Result<(Result<Header, HeaderError>, u64), Reply> {
    let mut bytes = [0; MAX_HEADER_LEN];
    let mut copy = |len: usize| {
        let len = len.min(comm_size.unwrap_or(len));
        let copy = bytes.get_mut(..len).unwrap_or_default();
        let is_read = memory(len).is_some_and(|header| header.read(0, copy));
        is_read.then_some((bytes, len)).ok_or(Reply::INVALID)
    };
    // No more than a v1 header, until its GUID says that there is more.
    let (mut bytes, mut len) = copy(HeaderFormat::V1.header_len())?;
    let mut format = HeaderFormat::V1;
    if bytes.starts_with(&mm_wire::header::V3_MARKER.to_bytes()) {
        (bytes, len) = copy(MAX_HEADER_LEN)?;
        format = HeaderFormat::V3;
    }
    let field = bytes.get(length_offset(format)..).and_then(<[u8]>::first_chunk);
    let header = Header::parse(bytes.get(..len).unwrap_or_default());
    Ok((header, field.map_or(0, |field| u64::from_le_bytes(*field))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::component::communicator::MockMmCommunication;
    use patina::component::service::uefi_services::protocol::MockProtocolServices;

    fn producer(protocols: MockProtocolServices) -> patina::error::Result<()> {
        let mm: Box<dyn MmCommunication> = Box::new(MockMmCommunication::new());
        MmCommunicationProducer::new(0).entry_point(Service::mock(mm), Service::mock(Box::new(protocols)))
    }

    fn handle() -> Handle {
        Handle::from_raw(core::ptr::dangling_mut()).unwrap()
    }

    #[test]
    fn protocols_of_another_driver_are_left_alone() {
        let mut protocols = MockProtocolServices::new();
        protocols.expect_locate_interface().returning(|guid| {
            (guid == Communication3::PROTOCOL_GUID)
                .then(|| ProtocolPtr::from_raw(core::ptr::dangling_mut()))
                .flatten()
                .ok_or(ProtocolError::NotFound)
        });
        assert_eq!(producer(protocols), Err(EfiError::AlreadyStarted));
    }

    #[test]
    fn all_three_are_installed_or_none() {
        for failing in 0..=3 {
            let mut protocols = MockProtocolServices::new();
            protocols
                .expect_locate_interface()
                .returning(|_| Err(ProtocolError::NotFound));
            let mut installed = 0;
            protocols
                .expect_install_interface()
                .returning_st(move |at, _, _| {
                    assert_eq!(at, (installed > 0).then(handle));
                    installed += 1;
                    (installed - 1 != failing)
                        .then(handle)
                        .ok_or(ProtocolError::OutOfResources)
                });
            let taken_back = if failing == 3 { 0 } else { failing };
            protocols
                .expect_uninstall_interface()
                .times(taken_back)
                .returning(|_, _, _| Ok(()));
            let expected = if failing == 3 {
                Ok(())
            } else {
                Err(EfiError::OutOfResources)
            };
            assert_eq!(producer(protocols), expected);
        }
    }

    #[test]
    fn a_null_this_is_refused() {
        let mut bytes = [0_u8; 32];
        let buffer = (&raw mut bytes).cast();
        // SAFETY: the buffer is valid; a null `This` is what the function has to notice.
        let status = unsafe { communicate1(core::ptr::null(), buffer, core::ptr::null_mut()) };
        assert_eq!(status, efi::Status::INVALID_PARAMETER);
    }
}
