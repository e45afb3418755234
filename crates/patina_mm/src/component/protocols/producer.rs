//! Offers the communicator to drivers in C.

mod bridge;
mod entry;

use super::{Communication, Communication2, Communication3};
use crate::component::communicator::Status;
use crate::service::MmCommunication;
use bridge::Bridge;
use mm_comm::c_request::status_for_c;
use mm_wire::message::variable::{self, PayloadSizeMessage};
use patina::BinaryGuid;
use patina::component::component;
use patina::component::service::Service;
use patina::component::service::uefi_services::protocol::{ProtocolError, ProtocolServices};
use patina::component::service::uefi_services::tpl::TplServices;
use patina::error::EfiError;
use patina::protocol::ProtocolInterface;
use zerocopy::IntoBytes;

/// Component: installs `EFI_MM_COMMUNICATION_PROTOCOL`, `...2` and `...3` over [`MmCommunication`].
///
/// A C driver that finds them sends and receives as with a driver of edk2, **until
/// `ExitBootServices`**: after that the protocols' code and data are memory of the operating
/// system, and a driver that kept the interface and calls it jumps there. edk2's variable driver
/// does so for each `GetVariable` and `SetVariable`. Such a driver needs the protocols from a
/// runtime driver: "Calls at runtime" in `docs/protocols.md`.
///
/// What each parameter may be, and what is written back:
///
/// | call | status | written back |
/// |---|---|---|
/// | the buffer is null; protocol 2 and 3: either address is, or they differ | `INVALID_PARAMETER` | nothing |
/// | `*CommSize` is 0 | `BAD_BUFFER_SIZE` | `*CommSize`: the largest buffer with header |
/// | `*CommSize` is less than the header, or than header and message | `INVALID_PARAMETER` | nothing |
/// | `*CommSize` is more than MM takes | `BAD_BUFFER_SIZE` | `*CommSize`: the same |
/// | the message is longer than MM takes (v3: BufferSize counts) | `BAD_BUFFER_SIZE` | MessageLength (v3: MessageSize): the longest message; and `*CommSize` if given |
/// | the message has no bytes, and MM is entered by secure monitor calls | `BAD_BUFFER_SIZE` | the same |
/// | v3: BufferSize is less than header and MessageSize | `INVALID_PARAMETER` | nothing |
/// | protocol 3: the header is not v3 | `INVALID_PARAMETER` | nothing |
/// | the response does not fit into the caller's buffer | `BUFFER_TOO_SMALL` | `*CommSize`: the needed size |
/// | the call interrupted another one through the same comm buffer | `ALREADY_STARTED` | nothing |
/// | no handler, or another error of MM's | MM's status if it is an `EFI_ERROR`; a 32-bit core's error as the same one in 64 bits; `NOT_FOUND` for a warning | nothing |
/// | a response | `SUCCESS` | the response; `*CommSize` with the header |
///
/// "Nothing" is also true if the caller's buffer is the comm buffer: header and message are there
/// as before. After a response the header is there as before, so that a driver which wrote it once
/// can call again. Only a field that MM itself changed to tell the response's length comes back as
/// MM left it: edk2's MM for Arm writes MessageLength or MessageSize, its MM for x86 neither. So on
/// x86 `*CommSize` alone tells the length, and a caller of protocol 3 has to know it from the
/// message, as with edk2.
///
/// BufferSize and MessageSize of a v3 header reach MM as they are. Its Reserved field is zero on
/// the way to MM.
///
/// # Which comm buffer
///
/// If the platform has a comm buffer for C drivers only, that one. Not all of them handle
/// `ALREADY_STARTED`: a variable that a timer's notification sets is lost, for instance. So calls
/// through this buffer run at `TPL_NOTIFY`, those of components in Rust included, and no
/// notification comes in the middle of one. Without the SDK's `TplServices` that is not possible;
/// then a warning says so.
///
/// # Memory
///
/// Room for the longest request and the longest response is set aside when the protocols are
/// installed; a call allocates nothing, with two exceptions: one that puts an announced move of the
/// comm buffer into effect, and the first one through a buffer that is longer than the one before,
/// which makes room for all that the new one can hold.
///
/// The caller's buffer has `*CommSize` bytes or, if that is not given, as many as its header counts
/// (v3: BufferSize). Protocols 1 and 2 take both header formats. A `*CommSize` above header and
/// message is room for the response.
///
/// The component fails with [`EfiError::AlreadyStarted`] if one of the protocols is installed
/// already, and with [`EfiError::NotFound`] if the comm buffer does not exist.
#[derive(Clone, Copy, Debug)]
pub struct MmCommunicationProducer {
    buffer: u8,
    protocol3: bool,
    variable_markers: bool,
}

#[component]
impl MmCommunicationProducer {
    /// Makes the protocols send through this comm buffer.
    #[must_use]
    pub const fn new(buffer: u8) -> Self {
        Self {
            buffer,
            protocol3: true,
            variable_markers: false,
        }
    }

    /// Leaves `EFI_MM_COMMUNICATION3_PROTOCOL` out, for MM that does not know v3 headers: older SMM
    /// cores of edk2, and Project Mu's supervisor before 2026. A driver that finds the protocol
    /// sends v3 headers, edk2's variable driver of 2026 for one, and panics if MM has no handler
    /// for their GUID.
    #[must_use]
    pub const fn without_protocol3(self) -> Self {
        Self {
            protocol3: false,
            ..self
        }
    }

    /// Installs the two marker protocols that edk2's variable driver (`VariableSmmRuntimeDxe`)
    /// waits for, after the others: `gEfiSmmVariableProtocolGuid`
    /// (ed32d533-99e6-4209-9cc0-2d72cdd998a7), after which it reads variables, and
    /// `gSmmVariableWriteGuid` (93ba1826-dffb-45dd-82a7-e7dcaa3bbdf3), after which it writes them.
    /// Without them it offers neither, and a boot without variable services ends in a panic of the
    /// core.
    ///
    /// They are due when MM's variable service serves requests. With Standalone MM that is before
    /// the first DXE driver runs, and a platform has to install them: in edk2
    /// `VariableMmDependency` does, a library that is linked into the communication driver. With
    /// traditional SMM the variable driver in SMRAM installs them itself: leave this out.
    ///
    /// The service is asked first. If it does not respond, the markers are not installed and the
    /// log says so, because the variable driver asserts that it responds.
    #[must_use]
    pub const fn with_variable_markers(self) -> Self {
        Self {
            variable_markers: true,
            ..self
        }
    }

    fn entry_point(
        self,
        mm: Service<dyn MmCommunication>,
        protocols: Service<dyn ProtocolServices>,
        tpl: Option<Service<dyn TplServices>>,
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
            log_line!(
                Error,
                "mm_comm",
                "platform: another driver has installed an MM communication protocol"
            );
            return Err(EfiError::AlreadyStarted);
        }
        let bridge = Bridge::new(mm, self.buffer, tpl)?;
        let bridge = entry::install(&protocols, bridge, self.protocol3).inspect_err(|error| {
            log_line!(
                Error,
                "mm_comm",
                "the MM communication protocols were not installed: {error:?}"
            )
        })?;
        bridge.run_at_notify();
        log_line!(
            Warn,
            "mm_comm",
            "the MM communication protocols serve until ExitBootServices. A C driver that keeps one and calls it later, as edk2's \
             variable driver does for GetVariable and SetVariable, jumps into memory of the operating system: it needs a runtime \
             driver (\"Calls at runtime\" in docs/protocols.md)"
        );
        // Installed last: the driver that waits for the markers calls at once.
        self.mark_variables(*mm, &protocols);
        Ok(())
    }

    /// Installs the markers that edk2's variable driver waits for, or logs what is missing.
    fn mark_variables(self, mm: &dyn MmCommunication, protocols: &Service<dyn ProtocolServices>) {
        if VARIABLE_MARKERS
            .iter()
            .all(|marker| protocols.locate_handles(*marker).is_ok())
        {
            log_line!(
                Info,
                "mm_comm",
                "the markers of MM's variable service are there already"
            );
            return;
        }
        if !self.variable_markers {
            log_line!(
                Info,
                "mm_comm",
                "no marker of MM's variable service is installed: edk2's variable driver waits for them. If MM has the service and \
                 no other driver installs them, the platform does: MmCommunicationProducer::with_variable_markers"
            );
            return;
        }
        match variable_payload_size(mm, self.buffer) {
            Ok(size @ 1..) => {
                log_line!(
                    Info,
                    "mm_comm",
                    "MM's variable service takes {size} bytes; its markers are installed"
                );
                if let Err(error) = install_markers(protocols) {
                    log_line!(
                        Error,
                        "mm_comm",
                        "the markers of MM's variable service were not installed, edk2's variable driver will wait for ever: {error:?}"
                    );
                }
            }
            Ok(0) => log_line!(
                Error,
                "mm_comm",
                "platform: MM's variable service does not say how long a message it takes, so its markers are not installed: they \
                 are due when it serves requests"
            ),
            Err(status) => log_line!(
                Error,
                "mm_comm",
                "platform: MM's variable service does not respond ({status}), so its markers are not installed: they are due when \
                 it serves requests"
            ),
        }
    }
}

/// The markers of MM's variable service, in the order in which they are installed.
const VARIABLE_MARKERS: [BinaryGuid; 2] = [
    BinaryGuid::from_bytes(&variable::GUID.to_bytes()),
    BinaryGuid::from_bytes(&variable::WRITE_READY_GUID.to_bytes()),
];

/// Installs those markers that are not there, on one handle if none is.
fn install_markers(protocols: &Service<dyn ProtocolServices>) -> Result<(), ProtocolError> {
    let mut handle = None;
    for marker in VARIABLE_MARKERS {
        if protocols.locate_handles(marker).is_err() {
            handle = Some(protocols.install_marker(handle, marker)?);
        }
    }
    Ok(())
}

/// Asks MM's variable service how long a message it takes, as edk2's variable driver does when it
/// finds the first marker.
fn variable_payload_size(mm: &dyn MmCommunication, buffer: u8) -> Result<u64, Status> {
    let recipient = patina::Guid::from_bytes(&variable::GUID.to_bytes());
    let request = PayloadSizeMessage::request();
    let mut response = request;
    let expected = size_of_val(&response);
    match mm.communicate_into(buffer, request.as_bytes(), recipient, response.as_mut_bytes())? {
        returned if returned < expected => Err(Status::ResponseSize { expected, returned }),
        _ => response
            .size()
            .map_err(|error| Status::MmReturned(status_for_c(error))),
    }
}

#[cfg(test)]
mod tests {
    use super::bridge::tests::Growing;
    use super::*;
    use crate::component::communicator::Client;
    use crate::component::communicator::MockMmCommunication;
    use alloc::boxed::Box;
    use alloc::rc::Rc;
    use core::cell::{Cell, RefCell};
    use patina::component::service::uefi_services::protocol::{Handle, MockProtocolServices, ProtocolPtr};
    use patina::component::service::uefi_services::tpl::{MockTplServices, PreviousTpl};
    use patina::standard::efi;
    use std::vec::Vec;

    fn producer(protocols: MockProtocolServices) -> patina::error::Result<()> {
        let mm: Box<dyn MmCommunication> = Box::new(MockMmCommunication::new());
        let protocols: Box<dyn ProtocolServices> = Box::new(protocols);
        let protocols = Service::mock(protocols);
        MmCommunicationProducer::new(0).entry_point(Service::mock(mm), protocols, None)
    }

    fn handle() -> Handle {
        Handle::from_raw(core::ptr::dangling_mut()).unwrap()
    }

    fn tpl() -> Service<dyn TplServices> {
        let mut tpl = MockTplServices::new();
        tpl.expect_raise_tpl()
            .returning(|_| PreviousTpl::from_raw(efi::TPL_APPLICATION));
        tpl.expect_restore_tpl().returning(drop);
        let tpl: Box<dyn TplServices> = Box::new(tpl);
        Service::mock(tpl)
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

    /// Firmware in which no driver has installed a protocol yet.
    fn no_protocols() -> MockProtocolServices {
        let mut protocols = MockProtocolServices::new();
        protocols
            .expect_locate_interface()
            .returning(|_| Err(ProtocolError::NotFound));
        protocols
            .expect_locate_handles()
            .returning(|_| Err(ProtocolError::NotFound));
        protocols
    }

    #[test]
    fn calls_run_at_notify_only_if_the_protocols_are_installed() {
        for is_installed in [false, true] {
            let mut protocols = no_protocols();
            protocols
                .expect_install_interface()
                .returning_st(move |_, _, _| is_installed.then(handle).ok_or(ProtocolError::OutOfResources));
            let client = Rc::<Client>::default();
            let mm: Box<dyn MmCommunication> = Box::new(Growing {
                longest: Rc::new(Cell::new(100)),
                client: Rc::clone(&client),
            });
            let protocols: Box<dyn ProtocolServices> = Box::new(protocols);
            let result = MmCommunicationProducer::new(7).entry_point(
                Service::mock(mm),
                Service::mock(protocols),
                Some(tpl()),
            );
            assert_eq!(result.is_ok(), is_installed);
            assert_eq!(client.runs_at_notify(7), is_installed);
            assert!(!client.runs_at_notify(6));
        }
    }

    #[test]
    fn third_protocol_is_installed_unless_it_is_left_out() {
        for producer in [
            MmCommunicationProducer::new(0),
            MmCommunicationProducer::new(0).without_protocol3(),
        ] {
            let mut protocols = no_protocols();
            let installed = Rc::new(RefCell::new(Vec::new()));
            let log = Rc::clone(&installed);
            protocols
                .expect_install_interface()
                .returning_st(move |_, guid, _| {
                    log.borrow_mut().push(guid);
                    Ok(handle())
                });
            let mm: Box<dyn MmCommunication> = Box::new(Variables(Ok(1000)));
            let protocols: Box<dyn ProtocolServices> = Box::new(protocols);
            let result = producer.entry_point(Service::mock(mm), Service::mock(protocols), None);
            assert_eq!(result, Ok(()));
            let has_third = installed.take().contains(&Communication3::PROTOCOL_GUID);
            assert_eq!(has_third, producer.protocol3);
        }
        assert!(!MmCommunicationProducer::new(0).without_protocol3().protocol3);
    }

    #[test]
    fn payload_size_that_is_not_all_there_is_an_error() {
        for len in [0, 16, 23] {
            let mut mm = MockMmCommunication::new();
            mm.expect_communicate().returning(move |_, message, _| {
                let mut response = message.to_vec();
                response.truncate(len);
                Ok(response)
            });
            let error = Status::ResponseSize {
                expected: 24,
                returned: len,
            };
            assert_eq!(variable_payload_size(&mm, 0), Err(error));
        }
        assert_eq!(variable_payload_size(&Variables(Ok(1000)), 0), Ok(1000));
    }

    /// MM whose variable service returns this payload size.
    struct Variables(Result<u64, Status>);

    impl MmCommunication for Variables {
        fn communicate<'a>(
            &self,
            _: u8,
            message: &[u8],
            recipient: patina::Guid<'a>,
        ) -> Result<Vec<u8>, Status> {
            assert_eq!(recipient.as_bytes(), variable::GUID.to_bytes());
            // Function, ReturnStatus, and the size.
            let [function, ..] = message else {
                return Err(Status::InvalidDataBuffer);
            };
            assert_eq!(
                (message.len(), u64::from(*function)),
                (24, variable::function::GET_PAYLOAD_SIZE)
            );
            let mut response = message.to_vec();
            response.truncate(16);
            response.extend_from_slice(&self.0?.to_le_bytes());
            Ok(response)
        }

        fn message_capacity(
            &self,
            _: u8,
            _: crate::component::communicator::CallOptions,
        ) -> Result<usize, Status> {
            Ok(4072)
        }
    }

    #[test]
    fn variable_markers_are_installed_if_wanted_and_due() {
        let run = |producer: MmCommunicationProducer, size, there: &'static [BinaryGuid]| {
            let mut protocols = MockProtocolServices::new();
            protocols
                .expect_locate_interface()
                .returning(|_| Err(ProtocolError::NotFound));
            protocols
                .expect_install_interface()
                .returning_st(|_, _, _| Ok(handle()));
            protocols.expect_locate_handles().returning_st(move |guid| {
                let is_there = there.contains(&guid);
                is_there
                    .then(|| Vec::from([handle()]))
                    .ok_or(ProtocolError::NotFound)
            });
            let installed = Rc::new(RefCell::new(Vec::new()));
            let log = Rc::clone(&installed);
            protocols.expect_install_marker().returning_st(move |at, guid| {
                log.borrow_mut().push((at.is_some(), guid));
                Ok(handle())
            });
            let mm: Box<dyn MmCommunication> = Box::new(Variables(size));
            let protocols: Box<dyn ProtocolServices> = Box::new(protocols);
            let result = producer.entry_point(Service::mock(mm), Service::mock(protocols), None);
            assert_eq!(result, Ok(()));
            installed.take()
        };
        let plain = MmCommunicationProducer::new(0);
        let marking = plain.with_variable_markers();
        let [read, write] = VARIABLE_MARKERS;
        assert_eq!(run(marking, Ok(1000), &[]), [(false, read), (true, write)]);
        assert_eq!(run(marking.without_protocol3(), Ok(1000), &[]).len(), 2);
        assert_eq!(run(plain, Ok(1000), &[]), []);
        // The markers are not installed: MM does not have this service, or the request came back.
        assert_eq!(
            run(marking, Err(Status::MmReturned(efi::Status::NOT_FOUND)), &[]),
            []
        );
        assert_eq!(run(marking, Ok(0), &[]), []);
        // All of them, or one, are installed already.
        static ALL: [BinaryGuid; 2] = VARIABLE_MARKERS;
        assert_eq!(run(marking, Ok(1000), &ALL), []);
        assert_eq!(run(marking, Ok(1000), ALL.split_at(1).0), [(false, write)]);
    }
}
