//! Uses everything that the published `patina_mm` 24.1.1 offers, as a platform or a component
//! would, and checks what both crates promise. The same file is compiled against the published
//! crate, so it names nothing that only this tree has.
//!
//! If a test fails here and passes there, this tree breaks code that worked: fix it, or give
//! `docs/migration.md` a row with the reason, and make the test check what remains.
#![expect(clippy::unwrap_used, reason = "tests may panic")]

use mockall::predicate::eq;
use patina::component::service::{IntoService, Service};
use patina::component::{IntoComponent, Storage, component};
use patina::management_mode::MmCommBufferStatus;
use patina::pi::protocol::communication::EfiMmCommunicateHeader;
use patina::{BinaryGuid, Guid};
use patina_mm::component::communicator::{
    MmCommunicator, MmExecutor, MockMmCommunication, MockMmExecutor, RealMmExecutor, Status,
};
use patina_mm::component::sw_mmi_manager::{MockSwMmiTrigger, SwMmiManager};
use patina_mm::config::{
    AcpiBase, CommunicateBuffer, CommunicateBufferStatus, MmCommunicationConfiguration, MmiPort,
};
use patina_mm::service::platform_mm_control::MockPlatformMmControl;
use patina_mm::service::{MmCommunication, PlatformMmControl, SwMmiTrigger};
use std::cell::{Cell, RefCell};
use std::fmt::Debug;
use std::marker::PhantomData;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::pin::Pin;
use std::rc::Rc;

const PAGE: usize = 4096;
const HEADER: usize = 24;
const ECHO: BinaryGuid = BinaryGuid::from_string("3c3c1f6e-8d0b-4f5a-9b8e-2f5d8a6c1e01");
const OTHER: BinaryGuid = BinaryGuid::from_string("3c3c1f6e-8d0b-4f5a-9b8e-2f5d8a6c1e02");

fn echo() -> Guid<'static> {
    Guid::from_ref(&ECHO)
}

/// Whole pages that are never freed.
fn pages(count: usize) -> &'static mut [u8] {
    #[derive(Clone)]
    #[repr(C, align(4096))]
    struct Page([u8; PAGE]);
    let pages = Box::leak(vec![Page([0x5a; PAGE]); count].into_boxed_slice());
    // SAFETY: these are `count` pages in one piece, plain bytes, lent for ever and to this caller
    // alone.
    unsafe { std::slice::from_raw_parts_mut(pages.as_mut_ptr().cast(), count * PAGE) }
}

fn buffer(id: u8) -> CommunicateBuffer {
    CommunicateBuffer::new(Pin::new(pages(1)), id)
}

/// A comm buffer with a mailbox, and the mailbox.
fn buffer_with_mailbox(id: u8) -> (CommunicateBuffer, *mut MmCommBufferStatus) {
    let memory = pages(1).as_mut_ptr();
    let mailbox = pages(1);
    mailbox.fill(0);
    let mailbox = mailbox.as_mut_ptr();
    let (address, mailbox_address) = (memory.expose_provenance(), mailbox.expose_provenance());
    // SAFETY: both are pages that live for ever, and this buffer alone uses them.
    let buffer = unsafe {
        CommunicateBuffer::from_firmware_region(address as u64, PAGE, id, Some(mailbox_address as u64))
    };
    (buffer.unwrap(), mailbox.cast())
}

fn communicator<E: MmExecutor + 'static>(executor: E) -> MmCommunicator<E> {
    let communicator = MmCommunicator::with_executor(executor);
    communicator.set_test_comm_buffers(vec![buffer(0)]);
    communicator
}

/// Any closure as an executor, as tests of components write them.
struct Handler<F>(F);

impl<F: Fn(&mut CommunicateBuffer) -> Result<(), Status>> MmExecutor for Handler<F> {
    fn execute_mm(&self, comm_buffer: &mut CommunicateBuffer) -> Result<(), Status> {
        (self.0)(comm_buffer)
    }
}

// --- names and traits ---------------------------------------------------------------------------------------------------

#[test]
fn each_name_is_in_both_its_places() {
    fn same<T: ?Sized>(_: PhantomData<T>, _: PhantomData<T>) {}
    same(
        PhantomData::<dyn patina_mm::component::communicator::MmCommunication>,
        PhantomData::<dyn MmCommunication>,
    );
    same(
        PhantomData::<dyn patina_mm::component::sw_mmi_manager::SwMmiTrigger>,
        PhantomData::<dyn SwMmiTrigger>,
    );
    same(
        PhantomData::<dyn patina_mm::service::platform_mm_control::PlatformMmControl>,
        PhantomData::<dyn PlatformMmControl>,
    );
}

#[test]
fn types_have_the_traits_that_they_had() {
    fn value<T: Copy + Clone + Debug + PartialEq + Eq + Send + Sync + Unpin + UnwindSafe + RefUnwindSafe>() {}
    value::<Status>();
    value::<CommunicateBufferStatus>();
    fn plain<
        T: Copy + Clone + Debug + std::fmt::Display + Send + Sync + Unpin + UnwindSafe + RefUnwindSafe,
    >() {
    }
    plain::<MmiPort>();
    plain::<AcpiBase>();
    fn owned<T: Clone + Debug + Unpin + UnwindSafe + RefUnwindSafe>() {}
    owned::<CommunicateBuffer>();
    owned::<MmCommunicationConfiguration>();
    fn component<T: Debug + Default + Unpin + UnwindSafe>() {}
    component::<SwMmiManager>();
    fn communicator<T: Debug + Default>() {}
    communicator::<MmCommunicator>();
    struct Plain;
    impl MmExecutor for Plain {
        fn execute_mm(&self, _: &mut CommunicateBuffer) -> Result<(), Status> {
            Ok(())
        }
    }
    fn with_executor<T: Debug + Unpin + UnwindSafe>() {}
    with_executor::<MmCommunicator<Plain>>();
    fn mock<T: Debug + Default>() {}
    mock::<MockMmExecutor>();
    mock::<MockMmCommunication>();
    mock::<MockSwMmiTrigger>();
    mock::<MockPlatformMmControl>();
}

// --- configuration ------------------------------------------------------------------------------------------------------

#[test]
fn a_configuration_is_a_literal_of_six_fields() {
    let configuration = MmCommunicationConfiguration {
        acpi_base: AcpiBase::Io(0x600),
        cmd_port: MmiPort::Smi(0xB2),
        data_port: MmiPort::Smi(0xB3),
        comm_buffers: vec![buffer(3)],
        enable_comm_buffer_updates: true,
        updatable_buffer_id: Some(3),
    };
    let MmCommunicationConfiguration {
        acpi_base,
        cmd_port,
        data_port,
        comm_buffers,
        enable_comm_buffer_updates,
        updatable_buffer_id,
    } = configuration.clone();
    assert!(acpi_base == AcpiBase::Io(0x600));
    assert!(matches!(
        (cmd_port, data_port),
        (MmiPort::Smi(0xB2), MmiPort::Smi(0xB3))
    ));
    assert_eq!((comm_buffers[0].id(), comm_buffers.len()), (3, 1));
    assert_eq!((enable_comm_buffer_updates, updatable_buffer_id), (true, Some(3)));
    let update = MmCommunicationConfiguration {
        cmd_port: MmiPort::Smi(1),
        ..Default::default()
    };
    assert!(matches!(update.cmd_port, MmiPort::Smi(1)));
}

#[test]
fn the_default_configuration_is_the_published_one() {
    let default = MmCommunicationConfiguration::default();
    assert!(default.acpi_base == AcpiBase::Mmio(0));
    assert!(matches!(default.cmd_port, MmiPort::Smi(0xFF)));
    assert!(matches!(default.data_port, MmiPort::Smi(0x00)));
    assert!(default.comm_buffers.is_empty());
    assert!(!default.enable_comm_buffer_updates);
    assert_eq!(default.updatable_buffer_id, None);
}

#[test]
fn a_configuration_prints_the_published_text() {
    let mut configuration = MmCommunicationConfiguration::default();
    let head = "MM Communication Configuration:\r\n  ACPI Base: MMIO(0x0)\r\n  Command Port: SMI(0x00FF)\r\n  \
                Data Port: SMI(0x0000)\r\n  Communication Buffers";
    assert_eq!(
        configuration.to_string(),
        format!("{head} (0):\r\n    <none>\r\n")
    );
    configuration.comm_buffers = vec![buffer(7)];
    let at = configuration.comm_buffers[0].as_ptr();
    assert_eq!(
        configuration.to_string(),
        format!("{head} (1):\r\n    Buffer 0x07: ptr={at:p}, len=0x1000\r\n")
    );
    let debug = format!("{configuration:?}");
    for field in [
        "acpi_base: AcpiBase::Mmio(0x0)",
        "cmd_port: MmiPort::Smi(0x00FF)",
        "updatable_buffer_id: None",
    ] {
        assert!(debug.contains(field), "{debug}");
    }
}

#[test]
fn ports_print_as_published() {
    assert_eq!(MmiPort::Smi(0xB2).to_string(), "SMI(0x00B2)");
    assert_eq!(MmiPort::Smc(0xC400_0041).to_string(), "SMC(0xC4000041)");
    assert_eq!(format!("{:?}", MmiPort::Smi(0xB2)), "MmiPort::Smi(0x00B2)");
    assert_eq!(format!("{:?}", MmiPort::Smc(0x41)), "MmiPort::Smc(0x00000041)");
}

#[test]
fn acpi_bases_convert_as_published() {
    let word: *const u32 = std::ptr::without_provenance(0x1000);
    let long: *const u64 = std::ptr::without_provenance(0x2000);
    assert!(AcpiBase::from(word) == AcpiBase::Mmio(0x1000));
    assert!(AcpiBase::from(long) == AcpiBase::Mmio(0x2000));
    assert!(AcpiBase::from(0x3000_usize) == AcpiBase::Mmio(0x3000));
    assert!(AcpiBase::from(0x600_u16) == AcpiBase::Io(0x600));
    assert_eq!(AcpiBase::Io(0x600).get_io_value(), 0x600);
    assert_eq!(AcpiBase::Mmio(0x600).get_mmio_value(), 0x600);
    assert_eq!(AcpiBase::Io(0x1234).to_string(), "IO(0x1234)");
    assert_eq!(AcpiBase::Mmio(0xfed0).to_string(), "MMIO(0xFED0)");
    assert_eq!(format!("{:?}", AcpiBase::Io(0x1234)), "AcpiBase::Io(0x1234)");
}

// --- comm buffers -------------------------------------------------------------------------------------------------------

#[test]
fn raw_parts_are_checked_in_the_order_that_they_were() {
    let memory = pages(1);
    let try_at = |address: *mut u8, size| {
        // SAFETY: where the parts are accepted they are pages of this test's own.
        unsafe { CommunicateBuffer::from_raw_parts(address, size, 1) }.map(|buffer| buffer.len())
    };
    let null = std::ptr::null_mut();
    let start = memory.as_mut_ptr();
    let last_page = std::ptr::without_provenance_mut(usize::MAX - (PAGE - 1));
    assert_eq!(
        try_at(null, HEADER - 1),
        Err(CommunicateBufferStatus::TooSmallForHeader)
    );
    assert_eq!(try_at(null, HEADER), Err(CommunicateBufferStatus::NoBuffer));
    assert_eq!(
        try_at(start.wrapping_add(8), 100),
        Err(CommunicateBufferStatus::NotAligned)
    );
    assert_eq!(
        try_at(last_page, PAGE + 1),
        Err(CommunicateBufferStatus::AddressValidationFailed)
    );
    assert_eq!(try_at(start, HEADER), Ok(HEADER));
    assert!(memory[..HEADER].iter().all(|byte| *byte == 0), "it is wiped");
    // SAFETY: refused, so nothing is touched.
    let wraps = unsafe { CommunicateBuffer::from_firmware_region(u64::MAX, PAGE, 0, None) };
    assert_eq!(
        wraps.err(),
        Some(CommunicateBufferStatus::AddressValidationFailed)
    );
}

#[test]
fn a_buffers_methods_behave_as_published() {
    let mut buffer = buffer(9);
    assert_eq!((buffer.id(), buffer.len(), buffer.is_empty()), (9, PAGE, false));
    assert_eq!(buffer.message_capacity(), PAGE - HEADER);
    assert_eq!(HEADER, EfiMmCommunicateHeader::size());
    assert!(buffer.is_enabled() && !buffer.has_status_mailbox());
    assert_eq!(
        buffer.set_comm_buffer_valid(),
        Err(CommunicateBufferStatus::NoBuffer)
    );
    assert_eq!(
        buffer.get_mm_return_status(),
        Err(CommunicateBufferStatus::NoBuffer)
    );

    assert_eq!(buffer.get_header_guid(), Ok(None));
    assert_eq!(
        buffer.set_message(b"no recipient yet"),
        Err(CommunicateBufferStatus::InvalidRecipient)
    );
    buffer.set_message_info(echo()).unwrap();
    buffer.set_message(b"hello").unwrap();
    assert_eq!(buffer.get_message(), Ok(b"hello".to_vec()));
    assert_eq!(buffer.get_message_length(), Ok(5));
    assert_eq!(buffer.get_header_guid().unwrap(), Some(echo()));
    assert_eq!(
        buffer.set_message(&[0; PAGE - HEADER + 1]),
        Err(CommunicateBufferStatus::TooSmallForMessage)
    );
    buffer.set_message(&[7; PAGE - HEADER]).unwrap();
    // SAFETY: the memory is one page that lives for ever.
    let memory = unsafe { std::slice::from_raw_parts(buffer.as_ptr(), PAGE) };
    assert_eq!(memory[..16], *ECHO.as_bytes());
    assert_eq!(memory[16..HEADER], u64::to_le_bytes((PAGE - HEADER) as u64));
    assert!(memory[HEADER..].iter().all(|byte| *byte == 7));

    buffer.reset();
    assert_eq!(buffer.get_message(), Ok(vec![]));
    assert_eq!(buffer.get_header_guid(), Ok(None));
    buffer.disable();
    assert!(!buffer.is_enabled());
    assert!(!format!("{buffer:?}").is_empty());
}

#[test]
fn changes_of_a_buffers_header_by_others_are_noticed() {
    let mut buffer = buffer(0);
    buffer.set_message_info(echo()).unwrap();
    buffer.set_message(b"hello").unwrap();
    // SAFETY: the header is in the page that the buffer has for ever.
    unsafe { buffer.as_ptr().write(0xEE) };
    assert_eq!(
        buffer.get_message(),
        Err(CommunicateBufferStatus::InvalidRecipient)
    );
    assert_eq!(
        buffer.get_message_length(),
        Err(CommunicateBufferStatus::InvalidRecipient)
    );
    assert_eq!(
        buffer.get_header_guid(),
        Err(CommunicateBufferStatus::InvalidRecipient)
    );
}

#[test]
fn a_mailbox_is_reached_through_the_buffer() {
    let (mut buffer, mailbox) = buffer_with_mailbox(2);
    assert!(buffer.has_status_mailbox());
    buffer.set_comm_buffer_valid().unwrap();
    // SAFETY: the mailbox is at the start of a page of this test's own.
    let mut written = unsafe { mailbox.read_volatile() };
    assert_eq!(written.is_comm_buffer_valid, 1);
    written.return_status = 0x8000_0000_0000_000E;
    written.return_buffer_size = 77;
    // SAFETY: the mailbox is at the start of a page of this test's own.
    unsafe { mailbox.write_volatile(written) };
    assert_eq!(buffer.get_mm_return_status(), Ok((0x8000_0000_0000_000E, 77)));
}

// --- calls --------------------------------------------------------------------------------------------------------------

#[test]
fn a_custom_executor_responds_through_the_buffer() {
    let seen = Rc::new(RefCell::new(Vec::new()));
    let log = Rc::clone(&seen);
    let mm = communicator(Handler(move |buffer: &mut CommunicateBuffer| {
        let request = buffer.get_message().unwrap();
        let guid = buffer.get_header_guid().unwrap().unwrap().to_efi_guid();
        log.borrow_mut().push((guid, request.clone()));
        let answer: Vec<u8> = request.iter().rev().copied().collect();
        buffer.set_message(&answer).unwrap();
        Ok(())
    }));
    assert_eq!(mm.communicate(0, b"abc", echo()), Ok(b"cba".to_vec()));
    assert_eq!(
        mm.communicate(0, b"de", Guid::from_ref(&OTHER)),
        Ok(b"ed".to_vec())
    );
    let seen = seen.borrow();
    assert_eq!(seen[0], (echo().to_efi_guid(), b"abc".to_vec()));
    assert_eq!(seen[1], (Guid::from_ref(&OTHER).to_efi_guid(), b"de".to_vec()));
}

#[test]
fn an_executor_that_does_nothing_leaves_the_request() {
    let mm = communicator(Handler(|_: &mut CommunicateBuffer| Ok(())));
    assert_eq!(mm.communicate(0, b"request", echo()), Ok(b"request".to_vec()));
}

#[test]
fn an_executor_may_answer_under_another_guid() {
    let mm = communicator(Handler(|buffer: &mut CommunicateBuffer| {
        buffer.set_message_info(Guid::from_ref(&OTHER)).unwrap();
        buffer.set_message(b"from another").unwrap();
        Ok(())
    }));
    assert_eq!(
        mm.communicate(0, b"request", echo()),
        Ok(b"from another".to_vec())
    );
}

#[test]
fn an_executor_that_only_resets_has_an_empty_response() {
    let mm = communicator(Handler(|buffer: &mut CommunicateBuffer| {
        buffer.reset();
        Ok(())
    }));
    assert_eq!(mm.communicate(0, b"request", echo()), Ok(vec![]));
}

#[test]
fn an_executor_may_put_another_buffer_in_the_place_of_its_own() {
    let other = RefCell::new(Some({
        let mut other = buffer(0);
        other.set_message_info(echo()).unwrap();
        other.set_message(b"from the other buffer").unwrap();
        other
    }));
    let mm = communicator(Handler(move |buffer: &mut CommunicateBuffer| {
        *buffer = other.borrow_mut().take().unwrap();
        Ok(())
    }));
    assert_eq!(
        mm.communicate(0, b"request", echo()),
        Ok(b"from the other buffer".to_vec())
    );
}

#[test]
fn an_executors_error_is_the_callers() {
    for status in [
        Status::CommBufferInitError,
        Status::CommBufferNotFound,
        Status::CommBufferTooSmall,
        Status::InvalidDataBuffer,
        Status::InvalidResponse,
        Status::NoCommBuffer,
        Status::SwMmiFailed,
        Status::SwMmiServiceNotAvailable,
    ] {
        let mm = communicator(Handler(move |_: &mut CommunicateBuffer| Err(status)));
        assert_eq!(mm.communicate(0, b"request", echo()), Err(status));
        // Logs and tests compare these names, so they do not change.
        let name = format!("{status:?}");
        assert!(name.chars().all(char::is_alphanumeric), "{name}");
        assert_eq!(name, known(status));
    }
}

/// A match as a consumer writes it, with an arm for what later versions add.
fn known(status: Status) -> &'static str {
    #[allow(unreachable_patterns, reason = "the published enum has no further variants")]
    match status {
        Status::NoCommBuffer => "NoCommBuffer",
        Status::CommBufferNotFound => "CommBufferNotFound",
        Status::CommBufferTooSmall => "CommBufferTooSmall",
        Status::CommBufferInitError => "CommBufferInitError",
        Status::InvalidDataBuffer => "InvalidDataBuffer",
        Status::SwMmiServiceNotAvailable => "SwMmiServiceNotAvailable",
        Status::SwMmiFailed => "SwMmiFailed",
        Status::InvalidResponse => "InvalidResponse",
        _ => "another",
    }
}

#[test]
fn a_call_that_cannot_be_made_says_why() {
    let mm = communicator(Handler(|_: &mut CommunicateBuffer| Ok(())));
    assert_eq!(mm.communicate(0, b"", echo()), Err(Status::InvalidDataBuffer));
    assert_eq!(mm.communicate(1, b"x", echo()), Err(Status::CommBufferNotFound));
    let too_long = [0; PAGE - HEADER + 1];
    assert_eq!(
        mm.communicate(0, &too_long, echo()),
        Err(Status::CommBufferTooSmall)
    );
    assert!(mm.communicate(0, &too_long[1..], echo()).is_ok());
    let none = MmCommunicator::with_executor(Handler(|_: &mut CommunicateBuffer| Ok(())));
    assert_eq!(none.communicate(0, b"x", echo()), Err(Status::NoCommBuffer));
}

#[test]
fn a_disabled_buffer_steps_back_for_an_enabled_one() {
    let (mut disabled, enabled) = (buffer(0), buffer(0));
    disabled.disable();
    let served = enabled.as_ptr();
    let mm = MmCommunicator::with_executor(Handler(move |buffer: &mut CommunicateBuffer| {
        assert_eq!(buffer.as_ptr(), served);
        Ok(())
    }));
    mm.set_test_comm_buffers(vec![disabled, enabled]);
    assert_eq!(mm.communicate(0, b"x", echo()), Ok(b"x".to_vec()));
}

#[test]
fn a_communicator_is_used_through_its_trait_and_prints_itself() {
    let mm: Box<dyn MmCommunication> = Box::new(communicator(Handler(|_: &mut CommunicateBuffer| Ok(()))));
    assert_eq!(mm.communicate(0, b"x", echo()), Ok(b"x".to_vec()));
    let mm = communicator(Handler(|_: &mut CommunicateBuffer| Ok(())));
    assert!(!format!("{mm:?}{:?}", SwMmiManager::new()).is_empty());
}

// --- the trigger --------------------------------------------------------------------------------------------------------

/// A board's own way to raise an MMI.
#[derive(Clone, Default)]
struct BoardTrigger(Rc<Cell<u32>>);

// SAFETY: nothing is raised at all.
unsafe impl SwMmiTrigger for BoardTrigger {
    fn trigger_sw_mmi(&self, cmd_port_value: u8, data_port_value: u8) -> patina::error::Result<()> {
        assert_eq!((cmd_port_value, data_port_value), (0xFF, 0));
        self.0.set(self.0.get() + 1);
        Ok(())
    }
}

#[test]
fn a_boards_trigger_is_raised_once_a_call() {
    let trigger = BoardTrigger::default();
    let raised = Rc::clone(&trigger.0);
    let mm = communicator(RealMmExecutor::new(Service::mock(Box::new(trigger))));
    for call in 1..=3 {
        assert!(mm.communicate(0, b"x", echo()).is_ok());
        assert_eq!(raised.get(), call);
    }
}

#[test]
fn a_mocked_trigger_is_raised_once_even_with_a_mailbox() {
    let mut trigger = MockSwMmiTrigger::new();
    trigger
        .expect_trigger_sw_mmi()
        .with(eq(0xFF), eq(0))
        .times(1)
        .returning(|_, _| Ok(()));
    let mm = MmCommunicator::with_executor(RealMmExecutor::new(Service::mock(Box::new(trigger))));
    mm.set_test_comm_buffers(vec![buffer_with_mailbox(0).0]);
    // No MM clears the mailbox. The result differs from the published crate (`docs/migration.md`),
    // the number of MMIs does not.
    let _either = mm.communicate(0, b"x", echo());
}

#[test]
fn a_trigger_that_fails_is_an_error() {
    let mut trigger = MockSwMmiTrigger::new();
    trigger
        .expect_trigger_sw_mmi()
        .returning(|_, _| Err(patina::error::EfiError::DeviceError));
    let mm = communicator(RealMmExecutor::new(Service::mock(Box::new(trigger))));
    assert_eq!(mm.communicate(0, b"x", echo()), Err(Status::SwMmiFailed));
}

// --- mocks --------------------------------------------------------------------------------------------------------------

#[test]
fn a_mocked_executor_is_called_with_the_request() {
    let mut executor = MockMmExecutor::new();
    let mut sequence = mockall::Sequence::new();
    executor
        .expect_execute_mm()
        .withf(|buffer| buffer.get_message() == Ok(b"first".to_vec()))
        .times(1)
        .in_sequence(&mut sequence)
        .returning(|_| Ok(()));
    executor
        .expect_execute_mm()
        .once()
        .in_sequence(&mut sequence)
        .return_const(Err(Status::SwMmiFailed));
    let mm = communicator(executor);
    assert_eq!(mm.communicate(0, b"first", echo()), Ok(b"first".to_vec()));
    assert_eq!(mm.communicate(0, b"second", echo()), Err(Status::SwMmiFailed));
}

#[test]
fn a_mocked_service_answers_a_component() {
    let mut mm = MockMmCommunication::new();
    mm.expect_communicate()
        .withf(|id, data, guid| *id == 1 && data == b"ping" && *guid == echo())
        .times(2)
        .returning(|_, _, _| Ok(b"pong".to_vec()));
    let service: Service<dyn MmCommunication> = Service::mock(Box::new(mm));
    assert_eq!(service.communicate(1, b"ping", echo()), Ok(b"pong".to_vec()));
    let borrowed: &dyn MmCommunication = *service;
    assert_eq!(borrowed.communicate(1, b"ping", echo()), Ok(b"pong".to_vec()));
}

#[test]
fn a_mocked_platform_control_and_checkpoints_work() {
    let mut control = MockPlatformMmControl::new();
    control.expect_init().once().returning(|| Ok(()));
    control.init().unwrap();
    control.checkpoint();
    control
        .expect_init()
        .return_const(Err(patina::error::EfiError::NotReady));
    assert_eq!(control.init(), Err(patina::error::EfiError::NotReady));
    let mut trigger = MockSwMmiTrigger::default();
    trigger.expect_trigger_sw_mmi().never();
    trigger.checkpoint();
    MockMmExecutor::default().checkpoint();
    MockMmCommunication::default().checkpoint();
}

// --- components ---------------------------------------------------------------------------------------------------------

/// A service that another component asks for, implemented outside.
#[derive(IntoService)]
#[service(dyn MmCommunication)]
struct OwnCommunication;

impl MmCommunication for OwnCommunication {
    fn communicate<'a>(&self, id: u8, data_buffer: &[u8], recipient: Guid<'a>) -> Result<Vec<u8>, Status> {
        if recipient == echo() {
            Ok([&[id], data_buffer].concat())
        } else {
            Err(Status::InvalidResponse)
        }
    }
}

#[derive(Default, IntoService)]
#[service(dyn PlatformMmControl)]
struct OwnControl;

impl PlatformMmControl for OwnControl {
    fn init(&self) -> patina::error::Result<()> {
        Ok(())
    }
}

struct Asks(Rc<RefCell<Vec<u8>>>);

#[component]
impl Asks {
    fn entry_point(self, mm: Service<dyn MmCommunication>) -> patina::error::Result<()> {
        *self.0.borrow_mut() = mm.communicate(5, b"?", echo()).map_err(|status| {
            log::error!("MM: {status:?}");
            patina::error::EfiError::DeviceError
        })?;
        Ok(())
    }
}

fn asked(storage: &mut Storage) -> Vec<u8> {
    let response = Rc::new(RefCell::new(Vec::new()));
    let mut component = Asks(Rc::clone(&response)).into_component();
    component.initialize(storage);
    assert_eq!(component.run(storage), Ok(true));
    response.take()
}

#[test]
fn services_written_elsewhere_serve_components() {
    let mut storage = Storage::new();
    storage.add_service(OwnCommunication);
    assert_eq!(asked(&mut storage), b"\x05?");
}

#[test]
fn a_communicator_is_registered_by_hand() {
    let mm = MmCommunicator::with_executor(Handler(|_: &mut CommunicateBuffer| Ok(())));
    mm.set_test_comm_buffers(vec![buffer(5)]);
    let mut storage = Storage::new();
    storage.add_service(mm);
    assert_eq!(asked(&mut storage), b"?");
}

#[test]
fn the_communicator_waits_for_what_it_needs() {
    let mut storage = Storage::new();
    let mut component = MmCommunicator::new().into_component();
    component.initialize(&mut storage);
    assert_eq!(component.run(&mut storage), Ok(false), "there is no trigger yet");
}

#[test]
fn a_configuration_and_a_control_are_added_as_platforms_do() {
    let mut storage = Storage::new();
    storage.add_config(MmCommunicationConfiguration::default());
    storage.add_service(OwnControl);
    let found = storage.get_config::<MmCommunicationConfiguration>().unwrap();
    assert!(matches!(found.cmd_port, MmiPort::Smi(0xFF)));
}
