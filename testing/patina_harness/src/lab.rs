//! The conformance suite's lab over Patina's components.
//!
//! Each client that a scenario asks for is a fresh `Storage` in which the real [`SwMmiManager`] and [`MmCommunicator`] are
//! dispatched. What differs from place to place, a simulated machine here, firmware there, is behind [`Site`].

mod project_mu;

use crate::c_abi;
use crate::dispatcher::{Dispatcher, Outcome};
use crate::edk2::{MmCommunicationDxe, VariableSmmRuntimeDxe};
use crate::events::SharedEvents;
use crate::protocols::{HostProtocols, SharedProtocols};
use crate::tap::Tap;
use crate::tpl::{HostTpl, SharedTpl};
use alloc::boxed::Box;
use alloc::rc::Rc;
use alloc::string::String;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use mm_comm::mailbox::Mailbox;
use mm_comm::{Ports, SharedRegion, SmiEnable};
use mm_conformance::lab::{
    Abilities, BootEvent, CCall, CProtocol, CReply, Call, Callback, ControlSetup, HobSetup, Lab, LockSetup,
    LogLevel, Machine, MailboxSetup, Move, Piece, PortSetup, Remains, ResponseTo, Setup, SetupFailure,
    SupervisorCall, Update, UpdatePlace,
};
use mm_conformance::mm::Release;
use mm_core::CommBuffer;
use mm_wire::{AddressRange, EfiStatus, Guid, Header, HeaderFormat, MailboxImage, PAGE_LEN};
use patina::BinaryGuid;
use patina::component::params::{Commands, ConfigMut};
use patina::component::service::uefi_services::event::EventServices;
use patina::component::service::uefi_services::protocol::{ProtocolPtr, ProtocolServices};
use patina::component::service::uefi_services::tpl::Tpl;
use patina::component::service::{IntoService, Service};
use patina::component::{IntoComponent, Storage, component};
use patina::error::EfiError;
use patina::management_mode::guid::MM_DXE_READY_TO_LOCK_PROTOCOL_GUID;
use patina::management_mode::protocol::mm_comm_buffer_update::{
    MmCommBuffer, MmCommBufferUpdateProtocol, PROTOCOL_GUID,
};
use patina::pi::event::END_OF_DXE_EVENT_GROUP_GUID;
use patina::standard::efi;
use patina::uefi::event::{EXIT_BOOT_SERVICES_EVENT_GROUP_GUID, READY_TO_BOOT_EVENT_GROUP_GUID};
use patina_mm::component::communicator::{CallOptions, MmCommunicator, Status};
use patina_mm::component::events::{MmEvent, MmEventNotifier};
use patina_mm::component::hob_configuration::{AcpiBaseSource, MmHobConfiguration};
use patina_mm::component::protocols::{FirmwareMmExecutor, MmCommunicationProducer};
use patina_mm::component::supervisor::MmSupervisorClient;
use patina_mm::component::sw_mmi_manager::SwMmiManager;
use patina_mm::config::{
    AcpiBase, CommunicateBuffer, CommunicateBufferStatus, MmCommunicationConfiguration,
    MmCommunicationOptions, MmiPort, SmiCheck,
};
use patina_mm::service::{
    MmCommunication, MmCommunicationExt, MmSupervisor, PlatformMmControl, SupervisorError, SwMmiTrigger,
    UnblockMemory,
};

/// The machine that clients are set up on.
pub trait Site {
    /// What the suite may ask for here.
    fn abilities(&self) -> Abilities;

    /// Prepares for the next client: as fresh a machine as the site can give, on which an MMI is taken `latency` pauses after
    /// it was raised.
    fn power_on(&self, latency: u32) {
        let _ = latency;
    }

    /// Memory, aligned to a page, with anything in it, mapped one to one, and nobody else's until the next [`Self::power_on`]; what is
    /// allocated before the first one stays. `None` where there is no more.
    fn allocate(&self, pages: usize) -> Option<*mut u8>;

    /// Puts back what memory had in it before the client took it over, for what firmware announces after the lab has seen
    /// it. A site with memory that is zero has nothing to do.
    fn make_stale(&self, memory: &SharedRegion) {
        let _ = memory;
    }

    /// The way into MM where it is by secure monitor calls; the x86 ports below are then nobody's.
    fn secure_calls(&self) -> Option<&dyn SecureCalls> {
        None
    }

    /// The processor's ports.
    fn ports(&self) -> Box<dyn Ports> {
        Box::new(NoPorts)
    }

    /// The command port and the data port.
    fn mmi_ports(&self) -> (u16, u16) {
        (0xb2, 0xb3)
    }

    /// The base of the ACPI registers in I/O space.
    fn pm_base(&self) -> u16 {
        0
    }

    /// The protocol database that the client is to use.
    fn protocols(&self) -> &'static dyn ProtocolServices;

    /// The database with the MM communication protocols that the firmware itself installed; the client's own where it did
    /// not.
    fn firmware_protocols(&self) -> &'static dyn ProtocolServices {
        self.protocols()
    }

    /// The events that the client is to use; `None` where the site has none for it.
    fn events(&self) -> Option<&'static dyn EventServices> {
        None
    }

    /// Adds the component that offers [`MmCommunication`].
    fn add_communicator(&self, dispatcher: &mut Dispatcher) {
        dispatcher.add(MmCommunicator::new());
    }

    /// Tells the MM side where the comm buffers are. Where the MM side is not ours there is nothing to tell.
    ///
    /// # Errors
    ///
    /// Why MM would not have them.
    fn tell_mm(&self, buffers: &[CommBuffer]) -> Result<(), String>;

    /// What MM says that it did at the last MMI. Where the MM side is not ours it says nothing.
    fn mm_report(&self) -> Vec<String> {
        Vec::new()
    }

    /// How many calls an endurance scenario makes.
    fn many_calls(&self) -> u32;

    /// Records what is logged while `run` runs.
    fn with_log(&self, level: LogLevel, run: &mut dyn FnMut()) -> String {
        let _ = level;
        run();
        String::new()
    }
}

/// Secure monitor calls, with an ear on them.
pub trait SecureCalls {
    /// The function identifier that the platform configures.
    fn function(&self) -> u32;

    /// Makes the component that offers `SwMmiTrigger`, for a client that comes up now.
    fn trigger(&self) -> SwMmiManager;

    /// How many requests MM has been given since the client came up.
    fn requests(&self) -> usize;

    /// Runs `code` once, before the next request reaches MM.
    fn before_next_request(&self, code: Box<dyn FnOnce()>);
}

/// The ports of a machine that has none: they read as zero.
struct NoPorts;

impl Ports for NoPorts {
    fn write_u8(&self, _: u16, _: u8) {}
    fn read_u32(&self, _: u16) -> u32 {
        0
    }
    fn write_u32(&self, _: u16, _: u32) {}
    fn read_mmio_u32(&self, _: usize) -> u32 {
        0
    }
    fn write_mmio_u32(&self, _: usize, _: u32) {}
    fn pause(&self) {}
}

/// A lab at a site.
pub struct PatinaLab<S> {
    site: Rc<S>,
    scratch: *mut u8,
}

/// The site has no memory left for the buffers of a move.
const OUT_OF_MEMORY: Status = Status::OutOfMemory {
    needed: SCRATCH_PAGES * PAGE_LEN,
};

/// Pages that [`Lab::scratch`] promises.
const SCRATCH_PAGES: usize = 8;

impl<S: Site + 'static> PatinaLab<S> {
    /// Opens the lab; `None` where the site has no memory for it.
    #[must_use]
    pub fn new(site: S) -> Option<Self> {
        let scratch = site.allocate(SCRATCH_PAGES)?;
        Some(Self {
            site: Rc::new(site),
            scratch,
        })
    }
}

impl<S: Site + 'static> Lab for PatinaLab<S> {
    fn abilities(&self) -> Abilities {
        self.site.abilities()
    }

    fn bring_up(&self, setup: &Setup) -> Result<Box<dyn Machine>, SetupFailure> {
        Ok(Box::new(PatinaMachine::bring_up(Rc::clone(&self.site), setup)?))
    }

    fn adopt(&self, address: u64, len: usize, mailbox: Option<u64>) -> Result<(), CommunicateBufferStatus> {
        // SAFETY: the suite passes memory inside `scratch`, which is nobody else's, or addresses that are refused. The
        // buffer is dropped here.
        unsafe { CommunicateBuffer::from_firmware_region(address, len, 0, mailbox) }.map(drop)
    }

    fn scratch(&self) -> u64 {
        self.scratch.expose_provenance() as u64
    }

    fn many_calls(&self) -> u32 {
        self.site.many_calls()
    }

    fn with_log(&self, level: LogLevel, run: &mut dyn FnMut()) -> String {
        self.site.with_log(level, run)
    }
}

/// The memory of one comm buffer, as an observer sees it.
struct Observed {
    id: u8,
    region: SharedRegion,
    mailbox: Option<Mailbox>,
    /// The mailbox that the MM side is told of: a spare one where the client's is shared with another buffer.
    told_mailbox: Option<*mut u8>,
    handle: CommunicateBuffer,
}

impl Observed {
    /// Makes it memory that was never taken over.
    fn make_stale(&self, site: &impl Site) {
        site.make_stale(&self.region);
        if let Some(mailbox) = &self.mailbox {
            site.make_stale(mailbox.region());
        }
    }

    fn place(&self) -> Place {
        let mailbox = self.mailbox.as_ref().map(|mailbox| mailbox.region().as_ptr());
        (self.region.as_ptr(), mailbox)
    }

    fn comm_buffer(&self) -> Option<CommBuffer> {
        Some(CommBuffer {
            region: self.region.range()?,
            mailbox: self
                .told_mailbox
                .map(|mailbox| mailbox.expose_provenance() as u64),
        })
    }
}

/// One dispatched client.
struct PatinaMachine<S>(Rc<Client<S>>);

struct Client<S> {
    site: Rc<S>,
    tap: Tap,
    communication: Service<dyn MmCommunication>,
    buffers: RefCell<Vec<Observed>>,
    control_calls: Rc<Cell<u32>>,
    /// Where the buffers were when the client came up.
    first_places: Vec<(u8, Place)>,
    updatable: Option<u8>,
    supervisor: Option<Service<dyn MmSupervisor>>,
    serves_like: Option<Release>,
    tpl: Rc<HostTpl>,
    variable_driver: Option<VariableSmmRuntimeDxe>,
}

/// A comm buffer's memory, and its mailbox.
type Place = (*mut u8, Option<*mut u8>);

impl<S> Clone for PatinaMachine<S> {
    fn clone(&self) -> Self {
        Self(Rc::clone(&self.0))
    }
}

/// Takes memory from the site and makes a comm buffer of it.
fn observe(id: u8, base: *mut u8, len: usize, mailbox: Option<*mut u8>) -> Result<Observed, SetupFailure> {
    let impossible = SetupFailure::Impossible("the memory of a comm buffer");
    let address = |pointer: *mut u8| pointer.expose_provenance() as u64;
    // SAFETY: the memory is from `Site::allocate`: mapped one to one, valid for good, and nobody else's. The client has
    // it through the handle, the observer through the region; both use volatile accesses only.
    let handle =
        unsafe { CommunicateBuffer::from_firmware_region(address(base), len, id, mailbox.map(address)) };
    let told_mailbox = mailbox;
    // SAFETY: as above.
    let region = unsafe { SharedRegion::new(base, len) };
    // SAFETY: as above.
    let mailbox = mailbox
        .map(|mailbox| unsafe { Mailbox::new(mailbox) })
        .transpose();
    match (handle, region, mailbox) {
        (Ok(handle), Ok(region), Ok(mailbox)) => Ok(Observed {
            id,
            region,
            mailbox,
            told_mailbox,
            handle,
        }),
        _ => Err(impossible),
    }
}

impl<S: Site + 'static> PatinaMachine<S> {
    fn bring_up(site: Rc<S>, setup: &Setup) -> Result<Self, SetupFailure> {
        site.power_on(setup.latency);
        let mut buffers = lay_out(&*site, setup)?;
        let serves_like = setup.project_mu;
        let moved = setup
            .moved_early
            .map(|pages| move_early(&*site, setup, pages))
            .transpose()?;
        let tap = Tap::new(site.ports());
        let variable_driver = setup
            .variable_driver
            .then(|| VariableSmmRuntimeDxe::start(site.protocols()))
            .transpose()
            .map_err(|error| {
                log::error!("the variable driver cannot wait for its markers: {error:?}");
                SetupFailure::Impossible("the variable driver")
            })?;
        if setup.variable_markers {
            // The producer asks for the variable service.
            tell_mm(&*site, serves_like, &buffers, &[])?;
        }
        let control_calls = Rc::new(Cell::new(0));
        let caught = Rc::new(Cell::new(None));
        let offers_mmis = Rc::new(Cell::new(false));

        let mut dispatcher = prepare(&*site, setup, &buffers, &tap);
        let tpl = Rc::new(HostTpl::default());
        dispatcher.storage().add_service(SharedTpl(Rc::clone(&tpl)));
        if let Some(result) = setup.platform_control {
            let control = Control {
                calls: Rc::clone(&control_calls),
                result,
            };
            match setup.control {
                ControlSetup::Early => dispatcher.storage().add_service(control),
                ControlSetup::LateAndDeclared => dispatcher.add(LateControl(control)),
                ControlSetup::MissingAndDeclared => {}
            }
        }
        if let Some(buffer) = setup.produced {
            let producer = MmCommunicationProducer::new(buffer);
            dispatcher.add(match setup.variable_markers {
                true => producer.with_variable_markers(),
                false => producer,
            });
        }
        if let Some(buffer) = setup.events {
            if let Some(events) = site.events() {
                dispatcher.storage().add_service(SharedEvents(events));
            }
            if setup.locked_early {
                install_ready_to_lock(&*site);
                tell_mm(&*site, serves_like, &buffers, &[])?;
            }
            let notifier = MmEventNotifier::new(buffer);
            let notifier = match setup.supervisor_events {
                Some(supervisor) => notifier.with_supervisor_buffer(supervisor),
                None => notifier,
            };
            let left_out = setup.events_left_out.iter();
            dispatcher.add(left_out.fold(notifier, |notifier, event| notifier.without(mm_event(*event))));
        }
        let supervisor = Rc::new(Cell::new(None));
        if setup.supervisors_driver {
            install_marker(&*site, SUPERVISOR_PROTOCOL_GUID);
        }
        if let Some(buffer) = setup.supervisor {
            tell_mm(&*site, serves_like, &buffers, &[])?;
            dispatcher.add(MmSupervisorClient::new(buffer));
            dispatcher.add(SupervisorCatcher(Rc::clone(&supervisor)));
        }
        dispatcher.add(Catcher(Rc::clone(&caught)));
        dispatcher.add(TriggerWitness(Rc::clone(&offers_mmis)));
        if setup.lock == LockSetup::Later {
            dispatcher.add(LateConfiguration(configuration(&*site, setup, &buffers)));
        }

        let outcome = dispatcher.dispatch();
        let communication = caught.take();
        let remains = || Remains {
            offers_mmis: offers_mmis.get(),
            offers_communication: communication.is_some(),
            port_writes: tap.writes(),
        };
        if let Some((component, error)) = outcome.failed.first() {
            return Err(SetupFailure::Refused {
                component: String::from(&**component),
                status: EfiStatus(efi::Status::from(*error).as_usize() as u64),
                remains: remains(),
            });
        }
        let Some(communication) = communication else {
            let component = outcome
                .not_run
                .first()
                .map_or_else(|| String::from("?"), |(name, _)| String::from(&**name));
            return Err(SetupFailure::NotDispatched {
                component,
                remains: remains(),
            });
        };
        let (communication, shared) = match setup.through_firmware {
            true => over_firmware(&*site, setup, &buffers, &tap, &tpl)?,
            false => (communication, None),
        };
        if let Some(moved) = moved {
            buffers.retain(|buffer| buffer.id != moved.id);
            buffers.push(moved);
        }
        let machine = Self(Rc::new(Client {
            site,
            tap,
            communication,
            first_places: buffers.iter().map(|buffer| (buffer.id, buffer.place())).collect(),
            buffers: RefCell::new(buffers),
            control_calls,
            updatable: setup.updatable,
            supervisor: supervisor.take(),
            serves_like,
            tpl,
            variable_driver,
        }));
        let shared: Vec<CommBuffer> = shared.into_iter().collect();
        tell_mm(
            &*machine.0.site,
            serves_like,
            &machine.0.buffers.borrow(),
            &shared,
        )?;
        Ok(machine)
    }

    fn with_buffer<T>(&self, id: u8, look: impl FnOnce(&Observed) -> T) -> Option<T> {
        self.0
            .buffers
            .borrow()
            .iter()
            .find(|buffer| buffer.id == id)
            .map(look)
    }

    fn smi_en(&self) -> u16 {
        self.0.site.pm_base() + 0x30
    }
}

/// Announces a comm buffer's place through the update protocol.
fn install_update(site: &impl Site, version: u64, place: MmCommBuffer) -> Result<(), SetupFailure> {
    let interface = Box::leak(Box::new(MmCommBufferUpdateProtocol {
        version,
        updated_comm_buffer: place,
    }));
    let interface = ProtocolPtr::from_raw((&raw mut *interface).cast())
        .ok_or(SetupFailure::Impossible("a null interface"))?;
    let installed = site.protocols().install_interface(None, PROTOCOL_GUID, interface);
    installed.map(drop).map_err(|error| {
        log::error!("the update protocol was not installed: {error:?}");
        SetupFailure::Impossible("the update protocol was not installed")
    })
}

/// Announces fresh memory for the updatable buffer.
fn move_early(site: &impl Site, setup: &Setup, pages: usize) -> Result<Observed, SetupFailure> {
    let no_memory = || SetupFailure::Impossible("no memory left");
    let id = setup
        .updatable
        .ok_or(SetupFailure::Impossible("no buffer may move"))?;
    let base = site.allocate(pages).ok_or_else(no_memory)?;
    let mailbox = site.allocate(1).ok_or_else(no_memory)?;
    let place = MmCommBuffer {
        physical_start: base.expose_provenance() as u64,
        number_of_pages: pages as u64,
        status: mailbox.expose_provenance() as u64,
    };
    let observed = observe(id, base, pages * PAGE_LEN, Some(mailbox))?;
    observed.make_stale(site);
    install_update(site, 1, place)?;
    Ok(observed)
}

/// `gMmSupervisorCommunicationProtocolGuid`.
const SUPERVISOR_PROTOCOL_GUID: BinaryGuid =
    BinaryGuid::from_bytes(&mm_wire::protocol::SUPERVISOR_COMMUNICATION.to_bytes());

fn install_ready_to_lock(site: &impl Site) {
    install_marker(site, MM_DXE_READY_TO_LOCK_PROTOCOL_GUID);
}

fn install_marker(site: &impl Site, protocol: BinaryGuid) {
    let installed = site.protocols().install_marker(None, protocol);
    if let Err(error) = installed {
        log::error!("the marker was not installed: {error:?}");
    }
}

/// A client of its own, with buffers like these, that sends through the firmware's protocols; and the shared buffer of the
/// firmware's driver, if that is ours.
fn over_firmware(
    site: &impl Site,
    setup: &Setup,
    like: &[Observed],
    tap: &Tap,
    tpl: &Rc<HostTpl>,
) -> Result<(Service<dyn MmCommunication>, Option<CommBuffer>), SetupFailure> {
    let no_memory = || SetupFailure::Impossible("no memory left");
    let (protocols, shared): (&'static dyn ProtocolServices, _) = match setup.firmware_is_edk2 {
        true => {
            let (protocols, shared) = edk2_owns_mm(site, like, tap)?;
            (protocols, Some(shared))
        }
        false if setup.produced.is_some() => (site.firmware_protocols(), None),
        false => (site.protocols(), None),
    };
    let mut storage = Storage::new();
    storage.add_service(SharedProtocols(protocols));
    storage.add_service(SharedTpl(Rc::clone(tpl)));
    let protocols = storage
        .get_service()
        .ok_or(SetupFailure::Impossible("a protocol database"))?;
    let tpl = storage
        .get_service()
        .ok_or(SetupFailure::Impossible("the TPL services"))?;
    let executor = FirmwareMmExecutor::new(protocols).with_tpl(tpl);
    let communicator = MmCommunicator::with_executor(executor);
    let mut buffers = Vec::new();
    for buffer in like {
        let len = buffer.region.len();
        let base = site.allocate(len / PAGE_LEN).ok_or_else(no_memory)?;
        let observed = observe(buffer.id, base, len, None)?;
        buffers.push(observed.handle.with_header(buffer.handle.header()));
    }
    communicator
        .set_comm_buffers(buffers)
        .map_err(|_shared| SetupFailure::Impossible("the comm buffers"))?;
    Ok((Service::mock(Box::new(communicator)), shared))
}

/// A database with the protocols of edk2's driver, and the shared buffer of that: as long as the shortest of these comm buffers,
/// because the driver copies as much back as MM says.
fn edk2_owns_mm(
    site: &impl Site,
    like: &[Observed],
    tap: &Tap,
) -> Result<(&'static HostProtocols, CommBuffer), SetupFailure> {
    let impossible = || SetupFailure::Impossible("edk2's driver");
    let len = like.iter().map(|buffer| buffer.region.len()).min();
    let len = len.ok_or_else(impossible)?;
    let base = site.allocate(len / PAGE_LEN).ok_or_else(impossible)?;
    let mailbox = site.allocate(1).ok_or_else(impossible)?;
    let Observed {
        region,
        mailbox: Some(mailbox),
        ..
    } = observe(u8::MAX, base, len, Some(mailbox))?
    else {
        return Err(impossible());
    };
    let shared = CommBuffer {
        region: region.range().ok_or_else(impossible)?,
        mailbox: Some(mailbox.region().as_ptr().expose_provenance() as u64),
    };
    let protocols: &'static HostProtocols = Box::leak(Box::default());
    MmCommunicationDxe::new(region, mailbox, tap.clone(), site.mmi_ports())
        .install(protocols)
        .map_err(|error| {
            log::error!("edk2's driver was not installed: {error:?}");
            impossible()
        })?;
    Ok((protocols, shared))
}

/// Makes a dispatcher with everything that a client consists of.
fn prepare(site: &impl Site, setup: &Setup, buffers: &[Observed], tap: &Tap) -> Dispatcher {
    let mut dispatcher = Dispatcher::new();
    let storage = dispatcher.storage();
    storage.add_service(SharedProtocols(site.protocols()));
    storage.add_config(options(setup));
    if setup.lock == LockSetup::Before && setup.hobs.is_none() {
        storage.add_config(configuration(site, setup, buffers));
    }
    if let Some(hobs) = &setup.hobs {
        buffers.iter().for_each(|buffer| buffer.make_stale(site));
        add_hob_configuration(&mut dispatcher, setup, hobs, buffers, tap);
    }
    let manager = site
        .secure_calls()
        .map_or_else(|| SwMmiManager::with_ports(tap.clone()), SecureCalls::trigger);
    match setup.control {
        _ if setup.failing_trigger => dispatcher.storage().add_service(FailingTrigger),
        ControlSetup::Early => dispatcher.add(manager),
        _ => dispatcher.add(manager.after_platform_control()),
    }
    site.add_communicator(&mut dispatcher);
    dispatcher
}

/// Adds the component that makes the configuration, and the HOBs that it makes it from.
fn add_hob_configuration(
    dispatcher: &mut Dispatcher,
    setup: &Setup,
    hobs: &[HobSetup],
    buffers: &[Observed],
    tap: &Tap,
) {
    let component = MmHobConfiguration::new().with_ports(tap.clone());
    let component = match setup.acpi_base {
        true => component.with_acpi_base(AcpiBaseSource::Ich9),
        false => component,
    };
    dispatcher.add(match setup.updatable {
        Some(id) => component.with_updatable_buffer(id),
        None => component,
    });
    for hob in hobs {
        let place = buffers.get(hob.of).and_then(Observed::comm_buffer);
        let (address, pages, mailbox) = place.map_or((0, 0, None), |place| {
            let pages = place.region.len() / PAGE_LEN as u64;
            (place.region.start(), pages, place.mailbox)
        });
        let (guid, data) = hob.data(address, pages, mailbox.unwrap_or(0));
        let guid = BinaryGuid::from_bytes(&guid.to_bytes());
        for parse in dispatcher.storage().get_hob_parsers(&guid) {
            parse(&data, dispatcher.storage());
        }
    }
}

/// Dispatches a component beside a client of the default setup.
///
/// # Errors
///
/// [`SetupFailure::Impossible`] where the site lacks memory, or its MM side refuses the comm buffers.
pub fn dispatch_beside<I>(
    site: impl Site,
    component: impl IntoComponent<I>,
) -> Result<Outcome, SetupFailure> {
    let setup = Setup::default();
    site.power_on(setup.latency);
    let buffers = lay_out(&site, &setup)?;
    let mut dispatcher = prepare(&site, &setup, &buffers, &Tap::new(site.ports()));
    dispatcher.add(component);
    tell_mm(&site, None, &buffers, &[])?;
    Ok(dispatcher.dispatch())
}

/// Tells the MM side about all buffers, and those that were there before. It starts anew.
fn tell_mm(
    site: &impl Site,
    serves_like: Option<Release>,
    buffers: &[Observed],
    former: &[CommBuffer],
) -> Result<(), SetupFailure> {
    let mut told: Vec<_> = buffers.iter().filter_map(Observed::comm_buffer).collect();
    told.extend(former);
    site.tell_mm(&told).map_err(|why| {
        log::error!("the MM side refused the comm buffers: {why}");
        SetupFailure::Impossible("the MM side refused the comm buffers")
    })?;
    serves_like.map_or(Ok(()), |release| project_mu::serve_like(site, release, buffers))
}

/// Sets memory aside for the comm buffers of a setup. Each gets more than it needs, so that an overlapping one still lies
/// in memory of ours.
fn lay_out(site: &impl Site, setup: &Setup) -> Result<Vec<Observed>, SetupFailure> {
    let no_memory = || SetupFailure::Impossible("no memory left");
    let mut buffers: Vec<Observed> = Vec::new();
    for buffer in &setup.buffers {
        let base = match buffers.last() {
            Some(previous) if buffer.overlaps_previous => previous.region.as_ptr().wrapping_add(PAGE_LEN),
            _ => site.allocate(buffer.pages * 2).ok_or_else(no_memory)?,
        };
        let mailbox = match buffer.mailbox {
            _ if !site.abilities().contains(Abilities::MAILBOX) => None,
            MailboxSetup::None => None,
            MailboxSetup::OwnPage => Some(site.allocate(1).ok_or_else(no_memory)?),
            MailboxSetup::InFirstBuffer => buffers
                .first()
                .map(|first| first.region.as_ptr().wrapping_add(PAGE_LEN / 2)),
        };
        let mut observed = observe(buffer.id, base, buffer.pages * PAGE_LEN, mailbox)?;
        observed.handle = observed.handle.with_header(buffer.header);
        buffers.push(observed);
    }
    if setup.project_mu == Some(Release::V20ToV23) && buffers.len() > 1 {
        let supervisor = buffers.remove(0);
        let users = buffers.first().ok_or_else(no_memory)?;
        buffers.insert(0, project_mu::share_mailbox(supervisor, users)?);
    }
    Ok(buffers)
}

fn configuration(site: &impl Site, setup: &Setup, buffers: &[Observed]) -> MmCommunicationConfiguration {
    let unset = MmCommunicationConfiguration::default();
    let (command, data) = site.mmi_ports();
    let (cmd_port, data_port) = match setup.ports {
        PortSetup::Machine => match site.secure_calls().map(SecureCalls::function) {
            Some(function) => (MmiPort::Smc(function), MmiPort::Smc(function)),
            None => (MmiPort::Smi(command), MmiPort::Smi(data)),
        },
        PortSetup::Unset => (unset.cmd_port, unset.data_port),
        PortSetup::CommandOnly => (MmiPort::Smi(command), unset.data_port),
        PortSetup::DataOnly => (unset.cmd_port, MmiPort::Smi(data)),
        PortSetup::Same => (MmiPort::Smi(command), MmiPort::Smi(command)),
        PortSetup::Smc => (MmiPort::Smc(0xc400_0041), MmiPort::Smc(0xc400_0041)),
        PortSetup::Mixed => (MmiPort::Smi(command), MmiPort::Smc(0xc400_0041)),
    };
    MmCommunicationConfiguration {
        acpi_base: if setup.acpi_base {
            AcpiBase::Io(site.pm_base())
        } else {
            unset.acpi_base
        },
        cmd_port,
        data_port,
        comm_buffers: buffers.iter().map(|buffer| buffer.handle.clone()).collect(),
        enable_comm_buffer_updates: setup.updatable.is_some(),
        updatable_buffer_id: setup.updatable,
    }
}

fn options(setup: &Setup) -> MmCommunicationOptions {
    let defaults = MmCommunicationOptions::DEFAULT;
    MmCommunicationOptions {
        command_value: setup.command_value.unwrap_or(defaults.command_value),
        data_value: setup.data_value,
        smi_check: if setup.enable_smis {
            SmiCheck::Enable
        } else {
            SmiCheck::Require
        },
        completion_polls: setup.polls,
    }
}

impl<S: Site + 'static> Machine for PatinaMachine<S> {
    fn communicate(&self, buffer: u8, message: &[u8], recipient: Guid) -> Result<Vec<u8>, Status> {
        let recipient = patina::Guid::from_bytes(&recipient.to_bytes());
        self.0.communication.communicate(buffer, message, recipient)
    }

    fn communicate_as(
        &self,
        call: Call,
        buffer: u8,
        message: &[u8],
        recipient: Guid,
    ) -> Result<Vec<u8>, Status> {
        let recipient = patina::Guid::from_bytes(&recipient.to_bytes());
        let mm = &self.0.communication;
        let options = call.header.map_or(CallOptions::new(), |header| {
            CallOptions::new().with_header(header)
        });
        match call.response {
            ResponseTo::Allocation => mm.communicate(buffer, message, recipient),
            ResponseTo::Slice(room) => {
                let mut out = alloc::vec![0; room];
                mm.communicate_into(buffer, message, recipient, &mut out)
                    .map(|len| out.drain(..len).collect())
            }
            ResponseTo::Closure(step) => {
                let mut response = Vec::new();
                let mut chunk = alloc::vec![0; step];
                mm.communicate_with(buffer, message, recipient, options, &mut |reader| {
                    while reader.remaining() > 0 {
                        response.extend_from_slice(reader.read(&mut chunk));
                    }
                })
                .map(|()| response)
            }
            ResponseTo::Type16 => mm
                .request_with(buffer, message, recipient, options)
                .map(|response: [u8; 16]| response.to_vec()),
        }
    }

    fn signal(&self, event: BootEvent) {
        let group = match event {
            BootEvent::EndOfDxe => END_OF_DXE_EVENT_GROUP_GUID,
            BootEvent::ReadyToBoot => READY_TO_BOOT_EVENT_GROUP_GUID,
            BootEvent::ExitBootServices => EXIT_BOOT_SERVICES_EVENT_GROUP_GUID,
            BootEvent::ReadyToLock => return install_ready_to_lock(&*self.0.site),
        };
        let signalled = self.0.site.events().map(|events| events.signal_group(group));
        if signalled != Some(Ok(())) {
            log::error!("{event:?} was not signalled: {signalled:?}");
        }
    }

    fn ask_supervisor(&self, call: &SupervisorCall) -> Result<Vec<u8>, SupervisorError> {
        let supervisor = self.0.supervisor.as_ref().ok_or(Status::Unsupported)?;
        match call {
            SupervisorCall::Version => supervisor.version().map(|version| {
                let level = version.max_request_level.get().to_le_bytes();
                let fields = [version.version.to_bytes(), version.patch_level.to_bytes()];
                [fields.concat().as_slice(), level.get(..4).unwrap_or_default()].concat()
            }),
            SupervisorCall::Unblock(memory) => {
                supervisor.unblock_memory(&(*memory).into()).map(|()| Vec::new())
            }
            SupervisorCall::Move(to) => self.move_both(**supervisor, *to),
            SupervisorCall::MoveMixedUp => {
                let [Some(own), Some(users)] = [self.fresh(0, 4), self.fresh(1, 4)] else {
                    return Err(OUT_OF_MEMORY.into());
                };
                supervisor
                    .move_comm_buffers(users.handle, own.handle)
                    .map(|()| Vec::new())
            }
            SupervisorCall::Policy(room) => {
                let mut out = alloc::vec![0xee; *room];
                supervisor
                    .fetch_policy(&mut out)
                    .map(|len| out.drain(..len).collect())
            }
        }
    }

    fn notify(&self, code: Callback) {
        let machine = self.clone();
        self.0.tpl.notify(Tpl::Callback, Box::new(move || code(&machine)));
    }

    /// edk2, `ProcessCommunicationBuffer` in StandaloneMmPkg/Drivers/MmCommunicationDxe/MmCommunicationDxe.c: the driver does
    /// not look whether its buffer is in use, trusts that the trigger returns after MM, and leaves the message behind.
    fn call_firmware_driver(
        &self,
        buffer: u8,
        message: &[u8],
        recipient: Guid,
    ) -> Result<Vec<u8>, EfiStatus> {
        let header = Header::new(HeaderFormat::V1, recipient, message.len() as u64);
        let sent = [
            header.ok_or(EfiStatus::INVALID_PARAMETER)?.encode().as_ref(),
            message,
        ]
        .concat();
        self.with_buffer(buffer, |buffer| {
            let mailbox = buffer.mailbox.as_ref()?;
            let announced = buffer.region.write(0, &sent) && mailbox.region().write(0, &[1]);
            let (command, data) = self.0.site.mmi_ports();
            self.0.tap.write_u8(data, 0);
            self.0.tap.write_u8(command, 0);
            (0..16).for_each(|_| self.0.tap.pause());
            let result = mailbox.read();
            let len = usize::try_from(result.return_buffer_size()).ok()?;
            let mut received = alloc::vec![0; len];
            let copied = buffer.region.read(0, &mut received) && mailbox.region().write(0, &[0]);
            (announced && copied).then_some(())?;
            Some(match result.return_status() {
                EfiStatus::SUCCESS => Ok(received.split_off(len.min(24))),
                status => Err(status),
            })
        })
        .flatten()
        .unwrap_or(Err(EfiStatus::UNSUPPORTED))
    }

    fn start_project_mus_driver(&self) -> Result<(), Status> {
        project_mu::start_driver(self).ok_or(Status::NotProcessed)
    }

    fn call_c(&self, call: &CCall) -> Option<CReply> {
        let protocols = self.0.site.protocols();
        match call.protocol {
            CProtocol::TwoInPlace(id) | CProtocol::ThreeInPlace(id) => self
                .with_buffer(id, |buffer| c_abi::call_in_place(protocols, &buffer.region, call))
                .flatten(),
            _ => c_abi::call(protocols, call),
        }
    }

    fn variable_driver(&self) -> Vec<(Guid, Option<CReply>)> {
        self.0
            .variable_driver
            .as_ref()
            .map(VariableSmmRuntimeDxe::seen)
            .unwrap_or_default()
    }

    fn communicate_around(
        &self,
        buffer: u8,
        message: &[u8],
        recipient: Guid,
        callback: Callback,
    ) -> Result<Vec<u8>, Status> {
        let inside = self.clone();
        let code = Box::new(move || callback(&inside));
        match self.0.site.secure_calls() {
            Some(calls) => calls.before_next_request(code),
            None => self.0.tap.before_next_write(code),
        }
        self.communicate(buffer, message, recipient)
    }

    fn capacity(&self, buffer: u8) -> usize {
        self.with_buffer(buffer, |buffer| {
            buffer.region.len() - HeaderFormat::V1.header_len()
        })
        .unwrap_or(0)
    }

    fn region(&self, buffer: u8) -> Vec<u8> {
        self.with_buffer(buffer, |buffer| {
            let mut copy = alloc::vec![0; buffer.region.len()];
            if !buffer.region.read(0, &mut copy) {
                copy.clear();
            }
            copy
        })
        .unwrap_or_default()
    }

    fn mailbox(&self, buffer: u8) -> Option<MailboxImage> {
        self.with_buffer(buffer, |buffer| buffer.mailbox.as_ref().map(Mailbox::read))
            .flatten()
    }

    fn write_mailbox(&self, buffer: u8, image: MailboxImage) {
        self.with_buffer(buffer, |buffer| {
            buffer.mailbox.as_ref().map(|mailbox| mailbox.write(&image))
        });
    }

    fn disable(&self, buffer: u8) {
        self.with_buffer(buffer, |buffer| buffer.handle.clone().disable());
    }

    fn port_writes(&self) -> Vec<(u16, u8)> {
        self.0.tap.writes()
    }

    fn ports(&self) -> (u16, u16) {
        self.0.site.mmi_ports()
    }

    fn mmis(&self) -> usize {
        if let Some(calls) = self.0.site.secure_calls() {
            return calls.requests();
        }
        let (command, _) = self.ports();
        let writes = self.0.tap.writes();
        writes.iter().filter(|(port, _)| *port == command).count()
    }

    fn switch_smis(&self, on: bool) {
        let others = self.0.tap.read_u32(self.smi_en()) & !SmiEnable::APMC.bits();
        let bit = if on { SmiEnable::APMC.bits() } else { 0 };
        self.0.tap.write_u32(self.smi_en(), others | bit);
    }

    fn lock_smis(&self, locked: bool) {
        self.0.tap.lock(locked.then(|| self.smi_en()));
    }

    fn smis_are_on(&self) -> bool {
        SmiEnable::from_bits_truncate(self.0.tap.read_u32(self.smi_en())).is_all()
    }

    fn platform_control_calls(&self) -> u32 {
        self.0.control_calls.get()
    }

    fn announce(&self, update: Update) {
        if let Err(failure) = self.move_buffer(update) {
            log::error!("the update could not be announced: {failure}");
        }
    }

    fn describe_buffers(&self) -> Vec<String> {
        let describe = |buffer: &Observed| {
            let mailbox = match &buffer.mailbox {
                Some(mailbox) => alloc::format!("mailbox at {:p}", mailbox.region().as_ptr()),
                None => String::from("no mailbox"),
            };
            let (id, len, at) = (buffer.id, buffer.region.len(), buffer.region.as_ptr());
            alloc::format!("comm buffer {id} {len} bytes at {at:p}, {mailbox}")
        };
        self.0.buffers.borrow().iter().map(describe).collect()
    }

    fn mm_report(&self) -> Vec<String> {
        self.0.site.mm_report()
    }

    fn describe(&self) -> String {
        // The client's own is behind the service, which cannot be printed: one like it, with the same buffers.
        let like = MmCommunicator::new();
        let buffers = self.0.buffers.borrow();
        like.set_test_comm_buffers(buffers.iter().map(|buffer| buffer.handle.clone()).collect());
        alloc::format!("{like:?}")
    }
}

impl<S: Site + 'static> PatinaMachine<S> {
    /// Fresh memory for a comm buffer, with a mailbox.
    fn fresh(&self, id: u8, pages: usize) -> Option<Observed> {
        let base = self.0.site.allocate(pages)?;
        let mailbox = self.0.site.allocate(1)?;
        observe(id, base, pages * PAGE_LEN, Some(mailbox)).ok()
    }

    /// Makes the supervisor move the comm buffers 0, its own, and 1.
    fn move_both(&self, supervisor: &dyn MmSupervisor, to: Move) -> Result<Vec<u8>, SupervisorError> {
        let impossible = |_failure| OUT_OF_MEMORY;
        let new = [self.fresh(0, to.supervisor), self.fresh(1, to.users)];
        let [Some(mut own), Some(users)] = new else {
            return Err(OUT_OF_MEMORY.into());
        };
        if self.0.serves_like == Some(Release::V20ToV23) {
            own = project_mu::share_mailbox(own, &users).map_err(impossible)?;
        }
        if to.is_told {
            let arriving: Vec<_> = [&own, &users]
                .into_iter()
                .filter_map(Observed::comm_buffer)
                .collect();
            let buffers = self.0.buffers.borrow();
            tell_mm(&*self.0.site, self.0.serves_like, &buffers, &arriving).map_err(impossible)?;
        }
        if let Some(piece) = to.refused {
            let memory = match piece {
                Piece::Supervisor => Some(own.region.as_ptr()),
                Piece::Users => Some(users.region.as_ptr()),
                Piece::UsersMailbox => users.told_mailbox,
            };
            let address = memory.map_or(0, |memory| memory.expose_provenance() as u64);
            let memory = UnblockMemory::runtime_data(address, 1, PROTOCOL_GUID);
            supervisor.unblock_memory(&memory)?;
        }
        if to.are_mailboxes_stale {
            let mailboxes = [&own, &users].into_iter().filter_map(|new| new.mailbox.as_ref());
            mailboxes.for_each(|mailbox| mailbox.write(&MailboxImage::armed()));
        }
        let moved = supervisor.move_comm_buffers(own.handle.clone(), users.handle.clone());
        let mut buffers = self.0.buffers.borrow_mut();
        // In part: the memory moved, and the mailboxes stay.
        let (own_moved, users_moved) = match moved {
            Ok(()) => (true, true),
            Err(SupervisorError::MovedInPart { users_moved, .. }) => (true, users_moved),
            Err(_) => (false, false),
        };
        for (mut new, has_moved) in [(own, own_moved), (users, users_moved)] {
            if let Some(old) = buffers.iter_mut().find(|old| old.id == new.id && has_moved) {
                if moved.is_err() {
                    core::mem::swap(&mut old.mailbox, &mut new.mailbox);
                    core::mem::swap(&mut old.told_mailbox, &mut new.told_mailbox);
                }
                *old = new;
            }
        }
        moved.map(|()| Vec::new())
    }

    fn move_buffer(&self, update: Update) -> Result<(), SetupFailure> {
        let no_memory = || SetupFailure::Impossible("no memory left");
        let id = self
            .0
            .updatable
            .ok_or(SetupFailure::Impossible("no buffer may move"))?;
        let taken = match update.place {
            UpdatePlace::Fresh => None,
            UpdatePlace::Over(id) => self.with_buffer(id, Observed::place),
            UpdatePlace::Former(id) => {
                let mut places = self.0.first_places.iter();
                places.find(|(first, _)| *first == id).map(|(_, place)| *place)
            }
        };
        let (base, mailbox) = match taken {
            Some((base, Some(mailbox))) => (base, mailbox),
            Some((base, None)) => (base, self.0.site.allocate(1).ok_or_else(no_memory)?),
            None => (
                self.0.site.allocate(SCRATCH_PAGES).ok_or_else(no_memory)?,
                self.0.site.allocate(1).ok_or_else(no_memory)?,
            ),
        };

        let usable = usize::try_from(update.pages)
            .ok()
            .filter(|pages| (1..=SCRATCH_PAGES).contains(pages));
        let is_correct = update.version == 1 && update.mailbox.is_none() && taken.is_none();
        if let Some(pages) = usable.filter(|_| is_correct) {
            let former: Vec<_> = self
                .0
                .buffers
                .borrow()
                .iter()
                .filter_map(Observed::comm_buffer)
                .collect();
            let moved = observe(id, base, pages * PAGE_LEN, Some(mailbox))?;
            moved.make_stale(&*self.0.site);
            self.0.buffers.borrow_mut().retain(|buffer| buffer.id != id);
            let kept: Vec<AddressRange> = self
                .0
                .buffers
                .borrow()
                .iter()
                .filter_map(|buffer| buffer.region.range())
                .collect();
            self.0.buffers.borrow_mut().push(moved);
            // MM keeps serving the old place too: a call may be under way there.
            let old: Vec<_> = former
                .into_iter()
                .filter(|old| !kept.contains(&old.region))
                .collect();
            tell_mm(&*self.0.site, self.0.serves_like, &self.0.buffers.borrow(), &old)?;
        }
        let place = MmCommBuffer {
            physical_start: base.expose_provenance() as u64,
            number_of_pages: update.pages,
            status: update.mailbox.unwrap_or(mailbox.expose_provenance() as u64),
        };
        install_update(&*self.0.site, update.version, place)
    }
}

/// The notifier's name of an event.
const fn mm_event(event: BootEvent) -> MmEvent {
    match event {
        BootEvent::EndOfDxe => MmEvent::EndOfDxe,
        BootEvent::ReadyToLock => MmEvent::ReadyToLock,
        BootEvent::ReadyToBoot => MmEvent::ReadyToBoot,
        BootEvent::ExitBootServices => MmEvent::ExitBootServices,
    }
}

/// Takes the communication service out of the storage, as any consumer does.
struct Catcher(Rc<Cell<Option<Service<dyn MmCommunication>>>>);

#[component]
impl Catcher {
    fn entry_point(self, service: Service<dyn MmCommunication>) -> patina::error::Result<()> {
        self.0.set(Some(service));
        Ok(())
    }
}

/// Sees that there is a trigger.
struct TriggerWitness(Rc<Cell<bool>>);

#[component]
impl TriggerWitness {
    fn entry_point(self, _: Service<dyn SwMmiTrigger>) -> patina::error::Result<()> {
        self.0.set(true);
        Ok(())
    }
}

/// A platform's own trigger, which does not work.
#[derive(IntoService)]
#[service(dyn SwMmiTrigger)]
struct FailingTrigger;

// SAFETY: MM is never entered.
unsafe impl SwMmiTrigger for FailingTrigger {
    fn trigger_sw_mmi(&self, _: u8, _: u8) -> patina::error::Result<()> {
        Err(EfiError::DeviceError)
    }
}

/// Takes the supervisor's client out of the storage.
struct SupervisorCatcher(Rc<Cell<Option<Service<dyn MmSupervisor>>>>);

#[component]
impl SupervisorCatcher {
    fn entry_point(self, service: Service<dyn MmSupervisor>) -> patina::error::Result<()> {
        self.0.set(Some(service));
        Ok(())
    }
}

/// Fills the configuration in and locks it, after everybody who wants to read it.
struct LateConfiguration(MmCommunicationConfiguration);

#[component]
impl LateConfiguration {
    fn entry_point(self, mut config: ConfigMut<MmCommunicationConfiguration>) -> patina::error::Result<()> {
        *config = self.0;
        config.lock();
        Ok(())
    }
}

/// Offers the platform's hook, in its turn.
struct LateControl(Control);

#[component]
impl LateControl {
    fn entry_point(self, mut commands: Commands) -> patina::error::Result<()> {
        commands.add_service(self.0);
        Ok(())
    }
}

/// A platform's hook that counts its calls.
#[derive(IntoService)]
#[service(dyn PlatformMmControl)]
struct Control {
    calls: Rc<Cell<u32>>,
    result: Result<(), EfiStatus>,
}

impl PlatformMmControl for Control {
    fn init(&self) -> patina::error::Result<()> {
        self.calls.set(self.calls.get() + 1);
        self.result.map_err(|status| {
            let status = usize::try_from(status.0).map_or(efi::Status::ABORTED, efi::Status::from_usize);
            EfiError::status_to_result(status)
                .err()
                .unwrap_or(EfiError::Aborted)
        })
    }
}
