//! Doubles of two drivers of edk2: one that owns MM, and one that calls it. Both do what the C
//! source does, step by step.

use crate::c_abi;
use crate::lab::{CCall, CProtocol, CReply};
use alloc::boxed::Box;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::RefCell;
use core::ffi::c_void;
use mm_comm::c_request;
use mm_comm::mailbox::Mailbox;
use mm_comm::{Ports, SharedRegion};
use mm_wire::mailbox::VALID_OFFSET;
use mm_wire::message::variable::{self, FunctionHeader, PayloadSize, function};
use mm_wire::{Guid, Header, HeaderFormat};
use patina::BinaryGuid;
use patina::component::service::uefi_services::protocol::{
    ProtocolError, ProtocolPtr, ProtocolServices, Tpl,
};
use patina::protocol::ProtocolInterface;
use patina::standard::efi;
use patina_mm::component::protocols::{Communication, Communication2, Communication3};
use patina_mm_test::protocols::HostProtocols;
use patina_mm_test::tap::Tap;
use zerocopy::IntoBytes;

/// `StandaloneMmPkg/Drivers/MmCommunicationDxe`: one shared buffer with a mailbox, and no
/// protection against a re-entrant call (tianocore/edk2#12463).
pub struct MmCommunicationDxe {
    region: SharedRegion,
    mailbox: Mailbox,
    ports: Tap,
    /// Command port and data port.
    mmi_ports: (u16, u16),
}

/// An interface, and the driver behind it: a caller's `This` points to the first field.
#[repr(C)]
struct Produced<P> {
    interface: P,
    driver: Rc<MmCommunicationDxe>,
}

impl MmCommunicationDxe {
    /// The driver over this shared buffer.
    #[must_use]
    pub fn new(region: SharedRegion, mailbox: Mailbox, ports: Tap, mmi_ports: (u16, u16)) -> Self {
        Self {
            region,
            mailbox,
            ports,
            mmi_ports,
        }
    }

    /// Installs the three protocols.
    ///
    /// # Errors
    ///
    /// That of the database.
    pub fn install(self, protocols: &HostProtocols) -> Result<(), ProtocolError> {
        let driver = Rc::new(self);
        install_one(
            protocols,
            Communication(c_request::Communication { communicate: one }),
            &driver,
        )?;
        install_one(
            protocols,
            Communication2(c_request::Communication2 { communicate: two }),
            &driver,
        )?;
        install_one(
            protocols,
            Communication3(c_request::Communication3 { communicate: three }),
            &driver,
        )
    }

    /// `ProcessCommunicationBuffer`.
    ///
    /// # Safety
    ///
    /// The buffer is as long as its header says, and at least as long as the shared buffer: the
    /// driver copies ReturnBufferSize bytes back, even if the caller has less room. `comm_size` is
    /// null, or valid.
    unsafe fn process(&self, buffer: *mut c_void, comm_size: *mut usize) -> efi::Status {
        if buffer.is_null() {
            return efi::Status::INVALID_PARAMETER;
        }
        let capacity = self.region.len();
        // SAFETY: the caller's promise, and it is reached through volatile accesses only.
        let Ok(caller) = (unsafe { SharedRegion::new(buffer.cast(), capacity) }) else {
            return efi::Status::INVALID_PARAMETER;
        };
        let copied = |from: &SharedRegion, to: &SharedRegion, len: usize| {
            let mut bytes = alloc::vec![0; len];
            from.read(0, &mut bytes) && to.write(0, &bytes)
        };
        let mut start = [0; HeaderFormat::V3.header_len()];
        let header = caller.read(0, &mut start).then(|| Header::parse(&start));
        let Some(Ok(header)) = header else {
            return efi::Status::INVALID_PARAMETER;
        };
        let total = usize::try_from(header.total_len()).unwrap_or(usize::MAX);
        // SAFETY: the caller's promise.
        let given = (!comm_size.is_null()).then(|| unsafe { comm_size.read() });
        if header.message_size() > header.message_len()
            || total > capacity
            || given.is_some_and(|given| given != total)
        {
            return efi::Status::INVALID_PARAMETER;
        }
        let in_place = caller.as_ptr() == self.region.as_ptr();
        if !in_place && !copied(&caller, &self.region, total) {
            return efi::Status::INVALID_PARAMETER;
        }
        let valid = |value: u8| self.mailbox.region().write(VALID_OFFSET, &[value]);
        valid(1);
        let (command, data) = self.mmi_ports;
        self.ports.write_u8(data, 0);
        self.ports.write_u8(command, 0);
        // An MMI may be taken some time after the write; the driver's trigger returns after it.
        for _ in 0..10_000 {
            if !self.mailbox.is_pending() {
                break;
            }
            self.ports.pause();
        }
        let image = self.mailbox.read();
        let returned = usize::try_from(image.return_buffer_size()).unwrap_or(usize::MAX);
        // The driver does not check whether that is more than the caller's buffer has.
        if !in_place && !copied(&self.region, &caller, returned.min(capacity)) {
            return efi::Status::INVALID_PARAMETER;
        }
        if !comm_size.is_null() {
            // SAFETY: the caller's promise.
            unsafe { comm_size.write(returned) };
        }
        valid(0);
        usize::try_from(image.return_status().0).map_or(efi::Status::DEVICE_ERROR, efi::Status::from_usize)
    }
}

fn install_one<P: ProtocolInterface>(
    protocols: &HostProtocols,
    interface: P,
    driver: &Rc<MmCommunicationDxe>,
) -> Result<(), ProtocolError> {
    let driver = Rc::clone(driver);
    let produced = Box::into_raw(Box::new(Produced { interface, driver }));
    produced.expose_provenance();
    let pointer = ProtocolPtr::from_raw(produced.cast()).ok_or(ProtocolError::Internal)?;
    protocols
        .install_interface(None, P::PROTOCOL_GUID, pointer)
        .map(drop)
}

/// The driver behind an interface.
///
/// # Safety
///
/// `this` is an interface that [`install_one`] installed.
unsafe fn driver_of<'a, P>(this: *const P) -> &'a MmCommunicationDxe {
    // By address: the caller has a reference to the interface alone, whose provenance does not
    // cover the driver.
    let produced = core::ptr::with_exposed_provenance::<Produced<P>>(this.addr());
    // SAFETY: it is the first field of a `Produced<P>` that is never freed, and whose provenance
    // was exposed.
    unsafe { &(*produced).driver }
}

unsafe extern "efiapi" fn one(
    this: *const c_request::Communication,
    buffer: *mut c_void,
    size: *mut usize,
) -> efi::Status {
    // SAFETY: `This` is the interface that the function was found in.
    let driver = unsafe { driver_of(this) };
    // SAFETY: the suite's callers pass comm buffers of the shared buffer's length.
    unsafe { driver.process(buffer, size) }
}

unsafe extern "efiapi" fn two(
    this: *const c_request::Communication2,
    _: *mut c_void,
    buffer: *mut c_void,
    size: *mut usize,
) -> efi::Status {
    // SAFETY: `This` is the interface that the function was found in.
    let driver = unsafe { driver_of(this) };
    // SAFETY: the suite's callers pass comm buffers of the shared buffer's length.
    unsafe { driver.process(buffer, size) }
}

unsafe extern "efiapi" fn three(
    this: *const c_request::Communication3,
    _: *mut c_void,
    buffer: *mut c_void,
) -> efi::Status {
    // SAFETY: `This` is the interface that the function was found in.
    let driver = unsafe { driver_of(this) };
    // SAFETY: the suite's callers pass comm buffers of the shared buffer's length; a null size is
    // not used.
    unsafe { driver.process(buffer, core::ptr::null_mut()) }
}

/// Names and replies of calls, in their order.
type Calls = Vec<(Guid, Option<CReply>)>;

/// The part of `MdeModulePkg/Universal/Variable/RuntimeDxe/VariableSmmRuntimeDxe.c` that waits for
/// MM's variable service.
#[derive(Clone, Default)]
pub struct VariableSmmRuntimeDxe(Rc<RefCell<Calls>>);

impl VariableSmmRuntimeDxe {
    /// Waits for the two markers (`VariableSmmRuntimeInitialize`).
    ///
    /// # Errors
    ///
    /// That of the database.
    pub fn start(protocols: &'static dyn ProtocolServices) -> Result<Self, ProtocolError> {
        let driver = Self::default();
        for marker in [variable::GUID, variable::WRITE_READY_GUID] {
            let seen = driver.clone();
            let notified = Box::new(move |_| {
                let reply = (marker == variable::GUID)
                    .then(|| payload_size(protocols))
                    .flatten();
                seen.0.borrow_mut().push((marker, reply));
            });
            let guid = BinaryGuid::from_bytes(&marker.to_bytes());
            protocols.register_install_notify(guid, Tpl::Callback, notified)?;
        }
        Ok(driver)
    }

    /// The markers that it found, in order, and the result of its first call (`SmmVariableReady`).
    #[must_use]
    pub fn seen(&self) -> Vec<(Guid, Option<CReply>)> {
        self.0.borrow().clone()
    }
}

/// `GetVariablePayloadSize`: through protocol 3 if it is there, else through protocol 2.
fn payload_size(protocols: &dyn ProtocolServices) -> Option<CReply> {
    let message = [
        FunctionHeader::new(function::GET_PAYLOAD_SIZE).as_bytes(),
        PayloadSize::default().as_bytes(),
    ]
    .concat();
    let call = |protocol, format: HeaderFormat, has_size: bool| {
        let header = Header::new(format, variable::GUID, message.len() as u64)?;
        let bytes = [header.encode().as_ref(), &message].concat();
        let comm_size = has_size.then_some(bytes.len());
        c_abi::call(
            protocols,
            &CCall {
                protocol,
                bytes: Some(bytes),
                comm_size,
            },
        )
    };
    call(CProtocol::Three, HeaderFormat::V3, false).or_else(|| call(CProtocol::Two, HeaderFormat::V1, true))
}
