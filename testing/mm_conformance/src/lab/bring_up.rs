//! How a client comes up: memory, configuration, components, and the drivers of the firmware.

use super::client::{Client, Inner, Sender};
use super::components::{
    Catcher, Control, FailingTrigger, LateConfiguration, LateControl, SupervisorCatcher, TriggerWitness,
    mm_event,
};
use super::observed::Observed;
use super::site::SecureCalls;
use super::{
    Abilities, ControlSetup, HobSetup, LockSetup, MailboxSetup, PortSetup, Remains, Setup, SetupFailure,
    Site, project_mu,
};
use crate::edk2::{MmCommunicationDxe, VariableSmmRuntimeDxe};
use crate::mm::Release;
use alloc::boxed::Box;
use alloc::rc::Rc;
use alloc::string::String;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use mm_core::CommBuffer;
use mm_wire::{EfiStatus, PAGE_LEN};
use patina::BinaryGuid;
use patina::component::Storage;
use patina::component::service::Service;
use patina::component::service::uefi_services::protocol::{ProtocolPtr, ProtocolServices};
use patina::management_mode::guid::MM_DXE_READY_TO_LOCK_PROTOCOL_GUID;
use patina::management_mode::protocol::mm_comm_buffer_update::{
    MmCommBuffer, MmCommBufferUpdateProtocol, PROTOCOL_GUID,
};
use patina::standard::efi;
use patina_mm::component::communicator::MmCommunicator;
use patina_mm::component::events::MmEventNotifier;
use patina_mm::component::hob_configuration::{AcpiBaseSource, MmHobConfiguration};
use patina_mm::component::protocols::{FirmwareMmExecutor, MmCommunicationProducer};
use patina_mm::component::supervisor::MmSupervisorClient;
use patina_mm::component::sw_mmi_manager::SwMmiManager;
use patina_mm::config::{AcpiBase, MmCommunicationConfiguration, MmCommunicationOptions, MmiPort, SmiCheck};
use patina_mm::service::{MmCommunication, MmSupervisor};
use patina_mm_test::Dispatcher;
use patina_mm_test::events::SharedEvents;
use patina_mm_test::protocols::{HostProtocols, SharedProtocols};
use patina_mm_test::tap::Tap;
use patina_mm_test::tpl::{HostTpl, SharedTpl};

impl Client {
    pub(super) fn bring_up(site: Rc<dyn Site>, setup: &Setup) -> Result<Self, SetupFailure> {
        site.power_on(setup.latency);
        let mut buffers = lay_out(&*site, setup)?;
        let serves_like = setup.project_mu;
        let moved = setup
            .moved_early
            .map(|pages| move_early(&*site, setup, pages))
            .transpose()?;
        let tap = Tap::new(site.ports());
        let tpl = Rc::new(HostTpl::default());
        let variable_driver = setup
            .variable_driver
            .then(|| VariableSmmRuntimeDxe::start(site.protocols()))
            .transpose()
            .map_err(|error| {
                log::error!("the variable driver cannot wait for its markers: {error:?}");
                SetupFailure::Impossible("the variable driver")
            })?;
        let control_calls = Rc::new(Cell::new(0));
        let (sender, supervisor) = match install_driver(&*site, setup, &buffers, &tap)? {
            true => (Sender::Driver, None),
            false => {
                let (mm, supervisor) = dispatch(&*site, setup, &buffers, &tap, &tpl, &control_calls)?;
                (Sender::Components(mm), supervisor)
            }
        };
        let (sender, shared) = match setup.through_firmware {
            true => over_firmware(&*site, setup, &buffers, &tap, &tpl)?,
            false => (sender, None),
        };
        if let Some(moved) = moved {
            buffers.retain(|buffer| buffer.id != moved.id);
            buffers.push(moved);
        }
        let shared: Vec<CommBuffer> = shared.into_iter().collect();
        tell_mm(&*site, serves_like, &buffers, &shared)?;
        Ok(Self(Rc::new(Inner {
            site,
            tap,
            sender,
            first_places: buffers.iter().map(|buffer| (buffer.id, buffer.place())).collect(),
            buffers: RefCell::new(buffers),
            control_calls,
            updatable: setup.updatable,
            supervisor,
            serves_like,
            tpl,
            variable_driver,
        })))
    }
}

/// Installs the site's own driver, if it has one, for the first comm buffer.
fn install_driver(
    site: &dyn Site,
    setup: &Setup,
    buffers: &[Observed],
    tap: &Tap,
) -> Result<bool, SetupFailure> {
    let Some(first) = buffers.first().and_then(Observed::comm_buffer) else {
        return Ok(false);
    };
    // The driver may call MM while it is installed.
    let installed = site.install_driver(setup, first, tap);
    installed.map_or(Ok(false), |installed| installed.map(|()| true))
}

type MmServices = (Service<dyn MmCommunication>, Option<Service<dyn MmSupervisor>>);

/// Dispatches Patina's components, as the setup wants them.
fn dispatch(
    site: &dyn Site,
    setup: &Setup,
    buffers: &[Observed],
    tap: &Tap,
    tpl: &Rc<HostTpl>,
    control_calls: &Rc<Cell<u32>>,
) -> Result<MmServices, SetupFailure> {
    let caught = Rc::new(Cell::new(None));
    let supervisor = Rc::new(Cell::new(None));
    let offers_mmis = Rc::new(Cell::new(false));
    let serves_like = setup.project_mu;
    if setup.variable_markers {
        // The producer sends a request to the variable service.
        tell_mm(site, serves_like, buffers, &[])?;
    }
    let mut dispatcher = prepare(site, setup, buffers, tap);
    dispatcher.storage().add_service(SharedTpl(Rc::clone(tpl)));
    if let Some(result) = setup.platform_control {
        let control = Control {
            calls: Rc::clone(control_calls),
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
            install_ready_to_lock(site);
            tell_mm(site, serves_like, buffers, &[])?;
        }
        let notifier = MmEventNotifier::new(buffer);
        let notifier = match setup.supervisor_events {
            Some(supervisor) => notifier.with_supervisor_buffer(supervisor),
            None => notifier,
        };
        let left_out = setup.events_left_out.iter();
        dispatcher.add(left_out.fold(notifier, |notifier, event| notifier.without(mm_event(*event))));
    }
    if setup.supervisors_driver {
        install_marker(site, SUPERVISOR_PROTOCOL_GUID);
    }
    if let Some(buffer) = setup.supervisor {
        tell_mm(site, serves_like, buffers, &[])?;
        dispatcher.add(MmSupervisorClient::new(buffer));
        dispatcher.add(SupervisorCatcher(Rc::clone(&supervisor)));
    }
    dispatcher.add(Catcher(Rc::clone(&caught)));
    dispatcher.add(TriggerWitness(Rc::clone(&offers_mmis)));
    if setup.lock == LockSetup::Later {
        dispatcher.add(LateConfiguration(configuration(site, setup, buffers)));
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
    Ok((communication, supervisor.take()))
}

/// Announces a comm buffer's place through the update protocol.
pub(super) fn install_update(site: &dyn Site, version: u64, place: MmCommBuffer) -> Result<(), SetupFailure> {
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
fn move_early(site: &dyn Site, setup: &Setup, pages: usize) -> Result<Observed, SetupFailure> {
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
    let observed = Observed::new(site, id, base, pages * PAGE_LEN, Some(mailbox))?;
    observed.make_stale(site);
    install_update(site, 1, place)?;
    Ok(observed)
}

/// `gMmSupervisorCommunicationProtocolGuid`.
pub(super) const SUPERVISOR_PROTOCOL_GUID: BinaryGuid =
    BinaryGuid::from_bytes(&mm_wire::protocol::SUPERVISOR_COMMUNICATION.to_bytes());

pub(super) fn install_ready_to_lock(site: &dyn Site) {
    install_marker(site, MM_DXE_READY_TO_LOCK_PROTOCOL_GUID);
}

pub(super) fn install_marker(site: &dyn Site, protocol: BinaryGuid) {
    let installed = site.protocols().install_marker(None, protocol);
    if let Err(error) = installed {
        log::error!("the marker was not installed: {error:?}");
    }
}

/// Makes another client, with buffers like these, which sends through the firmware's protocols.
/// Also returns the shared buffer of the firmware's driver, if that is ours.
fn over_firmware(
    site: &dyn Site,
    setup: &Setup,
    like: &[Observed],
    tap: &Tap,
    tpl: &Rc<HostTpl>,
) -> Result<(Sender, Option<CommBuffer>), SetupFailure> {
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
        let observed = Observed::new(site, buffer.id, base, len, None)?;
        buffers.push(observed.handle.with_header(buffer.handle.header()));
    }
    communicator
        .set_comm_buffers(buffers)
        .map_err(|_shared| SetupFailure::Impossible("the comm buffers"))?;
    let mm: Service<dyn MmCommunication> = Service::mock(Box::new(communicator));
    Ok((Sender::Components(mm), shared))
}

/// A database with the protocols of edk2's driver, and that driver's shared buffer. It is as long
/// as the shortest of these comm buffers, because the driver copies back as many bytes as MM says.
fn edk2_owns_mm(
    site: &dyn Site,
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
    } = Observed::new(site, u8::MAX, base, len, Some(mailbox))?
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

/// Makes a dispatcher with all components of a client.
pub(super) fn prepare(site: &dyn Site, setup: &Setup, buffers: &[Observed], tap: &Tap) -> Dispatcher {
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

/// Adds the component that reads the configuration from HOBs, and the HOBs.
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

/// Passes all buffers to the MM side, and the `former` ones. MM starts again.
pub(super) fn tell_mm(
    site: &dyn Site,
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

/// Allocates the comm buffers of a setup. If others overlap one, it has room for them behind it.
pub(super) fn lay_out(site: &dyn Site, setup: &Setup) -> Result<Vec<Observed>, SetupFailure> {
    let no_memory = || SetupFailure::Impossible("no memory left");
    let mut buffers: Vec<Observed> = Vec::new();
    for (index, buffer) in setup.buffers.iter().enumerate() {
        let following = setup.buffers.iter().skip(index + 1);
        let overlapping = following.take_while(|buffer| buffer.overlaps_previous);
        let pages = buffer.pages + overlapping.map(|buffer| buffer.pages).sum::<usize>();
        let base = match buffers.last() {
            Some(previous) if buffer.overlaps_previous => previous.place().0.wrapping_add(PAGE_LEN),
            _ => site.allocate(pages).ok_or_else(no_memory)?,
        };
        let mailbox = match buffer.mailbox {
            _ if !site.abilities().contains(Abilities::MAILBOX) => None,
            MailboxSetup::None => None,
            MailboxSetup::OwnPage => Some(site.allocate(1).ok_or_else(no_memory)?),
            MailboxSetup::InFirstBuffer => buffers
                .first()
                .map(|first| first.place().0.wrapping_add(PAGE_LEN / 2)),
        };
        let mut observed = Observed::new(site, buffer.id, base, buffer.pages * PAGE_LEN, mailbox)?;
        observed.handle = observed.handle.with_header(buffer.header);
        buffers.push(observed);
    }
    if setup.project_mu == Some(Release::V20ToV23) && buffers.len() > 1 {
        let supervisor = buffers.remove(0);
        let users = buffers.first().ok_or_else(no_memory)?;
        buffers.insert(0, project_mu::share_mailbox(site, supervisor, users)?);
    }
    Ok(buffers)
}

fn configuration(site: &dyn Site, setup: &Setup, buffers: &[Observed]) -> MmCommunicationConfiguration {
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
