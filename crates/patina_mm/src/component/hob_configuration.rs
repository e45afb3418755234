//! Builds the configuration from the HOBs of earlier boot phases.
//!
//! With [`MmHobConfiguration`] a platform does not need its own MM code:
//!
//! ```
//! use patina_dxe_core::*;
//! use patina_mm::component::communicator::MmCommunicator;
//! use patina_mm::component::hob_configuration::{AcpiBaseSource, MmHobConfiguration};
//! use patina_mm::component::sw_mmi_manager::SwMmiManager;
//!
//! struct Q35;
//!
//! impl ComponentInfo for Q35 {
//!     fn components(mut add: Add<Component>) {
//!         add.component(MmHobConfiguration::new().with_acpi_base(AcpiBaseSource::Ich9));
//!         add.component(SwMmiManager::new());
//!         add.component(MmCommunicator::new());
//!     }
//! }
//! ```

pub use mm_comm::ich9::Ich9Error;
pub use mm_wire::hob::PlaceError;

use crate::config::{
    AcpiBase, CommunicateBuffer, CommunicateBufferStatus, ConfigurationError, MmCommunicationConfiguration,
    MmiPort, check_buffers,
};
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;
use mm_comm::Ports;
use mm_wire::hob::{COMM_BUFFER_HOB_GUID, COMM_REGION_HOB_GUID, CommBufferPlace, CommRegion, Owner};
use mm_wire::{AddressRange, PAGE_LEN};
use patina::BinaryGuid;
use patina::component::component;
use patina::component::hob::{FromHob, Hob, HobParseError};
use patina::component::params::ConfigMut;
use patina::error::EfiError;
use thiserror::Error;

/// The command and data ports of Intel chipsets, APM_CNT and APM_STS.
const INTEL_PORTS: (MmiPort, MmiPort) = (MmiPort::Smi(0xb2), MmiPort::Smi(0xb3));

/// The source of the ACPI base. SMI_EN is 0x30 above it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AcpiBaseSource {
    /// The base in the configuration. Its default is none: SMI_EN is not checked.
    #[default]
    Configuration,
    /// This base.
    Fixed(AcpiBase),
    /// PMBASE of an Intel ICH9, as on Q35: register 0x40 of PCI device 0:1F.0, read through ports
    /// 0xCF8 and 0xCFC.
    Ich9,
}

/// Why the HOBs give no configuration. The platform's fault.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum HobConfigurationError {
    /// There is neither a comm-buffer HOB nor a comm-region HOB.
    #[error(
        "platform: there is no HOB that announces a comm buffer: neither edk2's comm-buffer HOB {comm_buffer} nor \
         Project Mu's comm-region HOB {comm_region}; add the buffers to MmCommunicationConfiguration by hand, or let \
         the PEI phase build one",
        comm_buffer = mm_wire::hob::COMM_BUFFER_HOB_GUID, comm_region = mm_wire::hob::COMM_REGION_HOB_GUID
    )]
    NoHob,
    /// A HOB announces memory that cannot be a comm buffer.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// Two HOBs announce the same comm buffer with different mailboxes.
    #[error("platform: comm buffer {region} is announced with mailboxes at {first:#x} and at {second:#x}")]
    TwoMailboxes {
        /// The comm buffer.
        region: AddressRange,
        /// One mailbox.
        first: u64,
        /// The other one.
        second: u64,
    },
    /// The memory cannot be used as a comm buffer.
    #[error("platform: comm buffer {region} cannot be used: {status}")]
    Buffer {
        /// The comm buffer.
        region: AddressRange,
        /// What is wrong.
        status: CommunicateBufferStatus,
    },
    /// The comm buffers have one identifier twice, or share memory.
    #[error(transparent)]
    Configuration(#[from] ConfigurationError),
    /// The chipset does not tell its ACPI base.
    #[error(transparent)]
    AcpiBase(#[from] Ich9Error),
}

impl From<HobConfigurationError> for EfiError {
    fn from(error: HobConfigurationError) -> Self {
        match error {
            HobConfigurationError::NoHob => Self::NotFound,
            HobConfigurationError::Configuration(error) => error.into(),
            HobConfigurationError::AcpiBase(Ich9Error::NoPortIo) => Self::Unsupported,
            HobConfigurationError::AcpiBase(_) => Self::DeviceError,
            HobConfigurationError::Place(_)
            | HobConfigurationError::TwoMailboxes { .. }
            | HobConfigurationError::Buffer { .. } => Self::InvalidParameter,
        }
    }
}

/// The comm-buffer HOB, `gMmCommBufferHobGuid`, or why it is not valid. The component logs that.
#[derive(Clone, Copy, Debug)]
pub struct CommBufferHob(Result<CommBufferPlace, PlaceError>);

impl FromHob for CommBufferHob {
    const HOB_GUID: BinaryGuid = BinaryGuid::from_bytes(&COMM_BUFFER_HOB_GUID.to_bytes());

    fn parse(data: &[u8]) -> Result<Self, HobParseError> {
        Ok(Self(CommBufferPlace::of_buffer_hob(data)))
    }
}

/// A comm-region HOB of Project Mu, or why it is not valid.
#[derive(Clone, Copy, Debug)]
pub struct CommRegionHob(Result<CommRegion, PlaceError>);

impl FromHob for CommRegionHob {
    const HOB_GUID: BinaryGuid = BinaryGuid::from_bytes(&COMM_REGION_HOB_GUID.to_bytes());

    fn parse(data: &[u8]) -> Result<Self, HobParseError> {
        Ok(Self(CommRegion::of_hob(data)))
    }
}

/// Component: fills [`MmCommunicationConfiguration`] in from HOBs, checks all of it, and locks it.
///
/// | HOB | comm buffer |
/// |---|---|
/// | comm-region HOB of four fields | identifier 0 for the supervisor's region, 1 for the user's |
/// | the same of three fields, for the supervisor | identifier 0; its mailbox is the comm-buffer HOB's, which it shares ([`CommunicateBuffer::with_shared_mailbox`]); without a comm-buffer HOB it has none |
/// | the same of three fields, for the user | identifier 1, without a mailbox |
/// | comm-buffer HOB | identifier 1 beside a supervisor's region, else 0, or [`Self::with_comm_buffer_id`]; if it announces the same memory as a region HOB, the two are one buffer |
///
/// So Project Mu's MM supervisor has comm buffer 0 and its users have 1, from the HOBs of its
/// releases v20.0.0 to v23.0.3 (three fields, one mailbox) and from those of `main` since May 2026
/// (four fields, two mailboxes).
///
/// Values that the platform set stay: its comm buffers, and each port that differs from the
/// default. A command port that was not set becomes 0xB2, a data port 0xB3.
///
/// # Errors
///
/// If a HOB is missing or wrong the component fails, the log has a [`HobConfigurationError`]
/// (target `mm_comm`), and the configuration stays as it was.
pub struct MmHobConfiguration {
    ports: Option<Box<dyn Ports>>,
    acpi_base: AcpiBaseSource,
    comm_buffer_id: Option<u8>,
    movable: Option<u8>,
    is_exclusive: bool,
}

#[component]
impl MmHobConfiguration {
    /// Makes the component for the processor that it runs on.
    #[must_use]
    pub fn new() -> Self {
        Self {
            ports: super::sw_mmi_manager::native_ports(),
            acpi_base: AcpiBaseSource::Configuration,
            comm_buffer_id: None,
            movable: None,
            is_exclusive: false,
        }
    }

    /// Reads chipset registers through ports of the caller's choice, such as those of a simulated
    /// machine.
    #[must_use]
    pub fn with_ports(self, ports: impl Ports + 'static) -> Self {
        Self {
            ports: Some(Box::new(ports)),
            ..self
        }
    }

    /// Sets the source of the ACPI base.
    #[must_use]
    pub fn with_acpi_base(self, acpi_base: AcpiBaseSource) -> Self {
        Self { acpi_base, ..self }
    }

    /// Gives the comm-buffer HOB's buffer this identifier, instead of 0 or, beside an MM
    /// supervisor's region, 1.
    #[must_use]
    pub fn with_comm_buffer_id(self, comm_buffer_id: u8) -> Self {
        Self {
            comm_buffer_id: Some(comm_buffer_id),
            ..self
        }
    }

    /// Lets the comm buffer with this identifier move during boot.
    #[must_use]
    pub fn with_updatable_buffer(self, id: u8) -> Self {
        Self {
            movable: Some(id),
            ..self
        }
    }

    /// Declares that no driver of the firmware uses the announced buffers. Without this they count
    /// as [shared with the firmware](CommunicateBuffer::shared_with_firmware), and calls through
    /// them run at `TPL_NOTIFY`, because edk2's MmCommunicationDxe and Project Mu's MmDxeSupport
    /// use the buffers of these HOBs.
    #[must_use]
    pub fn with_exclusive_buffers(self) -> Self {
        Self {
            is_exclusive: true,
            ..self
        }
    }

    fn entry_point(
        self,
        buffers: Option<Hob<CommBufferHob>>,
        regions: Option<Hob<CommRegionHob>>,
        mut config: ConfigMut<MmCommunicationConfiguration>,
    ) -> patina::error::Result<()> {
        let buffers = buffers.iter().flat_map(|hobs| hobs.iter()).map(|hob| hob.0);
        let regions = regions.iter().flat_map(|hobs| hobs.iter()).map(|hob| hob.0);
        let configured = self
            .configure(&config, buffers, regions)
            .inspect_err(|error| log_line!(Error, "mm_comm", "no MM configuration: {error}"))?;
        *config = configured;
        config.lock();
        Ok(())
    }

    fn configure(
        &self,
        given: &MmCommunicationConfiguration,
        buffers: impl Iterator<Item = Result<CommBufferPlace, PlaceError>>,
        regions: impl Iterator<Item = Result<CommRegion, PlaceError>>,
    ) -> Result<MmCommunicationConfiguration, HobConfigurationError> {
        let places = self.places(buffers, regions)?;
        if places.is_empty() {
            return Err(HobConfigurationError::NoHob);
        }
        let acpi_base = match self.acpi_base {
            AcpiBaseSource::Configuration => given.acpi_base,
            AcpiBaseSource::Fixed(base) => base,
            AcpiBaseSource::Ich9 => AcpiBase::Io(mm_comm::ich9::pm_base(self.ports.as_deref())?),
        };
        let mut announced = Vec::new();
        for Announced { id, place, is_shared } in places {
            // SAFETY:
            // 1. The HOB's producer set this memory aside for MM communication, and gave it to the
            //    owner of this HOB.
            // 2. In DXE all memory is mapped one to one.
            let buffer = unsafe { CommunicateBuffer::at_place(place, id) };
            let buffer = buffer.map_err(|status| HobConfigurationError::Buffer {
                region: place.region(),
                status,
            })?;
            let buffer = match is_shared {
                true => buffer.with_shared_mailbox(),
                false => buffer,
            };
            announced.push(match self.is_exclusive {
                true => buffer,
                false => buffer.shared_with_firmware(),
            });
        }
        let comm_buffers = [given.comm_buffers.as_slice(), &announced].concat();
        check_buffers(&comm_buffers)?;
        // The memory is written after all checks: if the announcement is wrong, it may belong to
        // other code.
        announced.iter().for_each(CommunicateBuffer::take_over);
        let unset = MmCommunicationConfiguration::default();
        let given_or = |given: MmiPort, unset, intel| if given == unset { intel } else { given };
        Ok(MmCommunicationConfiguration {
            acpi_base,
            cmd_port: given_or(given.cmd_port, unset.cmd_port, INTEL_PORTS.0),
            data_port: given_or(given.data_port, unset.data_port, INTEL_PORTS.1),
            comm_buffers,
            enable_comm_buffer_updates: given.enable_comm_buffer_updates || self.movable.is_some(),
            updatable_buffer_id: self.movable.or(given.updatable_buffer_id),
        })
    }

    /// The announced comm buffers, each once.
    fn places(
        &self,
        buffers: impl Iterator<Item = Result<CommBufferPlace, PlaceError>>,
        regions: impl Iterator<Item = Result<CommRegion, PlaceError>>,
    ) -> Result<Vec<Announced>, HobConfigurationError> {
        let mut places: Vec<Announced> = Vec::new();
        for region in regions {
            let CommRegion { owner, place } = region?;
            places.push(Announced::new(owner.number(), place));
        }
        let supervisors = Owner::Supervisor.number();
        let has_supervisor = places.iter().any(|region| region.id == supervisors);
        let users = if has_supervisor { Owner::User.number() } else { 0 };
        let mut users_mailbox = None;
        for buffer in buffers {
            let buffer = buffer?;
            let known = places
                .iter_mut()
                .find(|region| region.place.region() == buffer.region());
            let id = match known {
                Some(region) => {
                    region.place = same_buffer(region.place, buffer)?;
                    region.id
                }
                None => {
                    let id = self.comm_buffer_id.unwrap_or(users);
                    places.push(Announced::new(id, buffer));
                    id
                }
            };
            if id != supervisors {
                users_mailbox = users_mailbox.or(buffer.mailbox());
            }
        }
        // A supervisor without its own mailbox shares that of its users.
        if let Some(supervisor) = places
            .iter_mut()
            .find(|region| region.id == supervisors && has_supervisor)
            && supervisor.place.mailbox().is_none()
            && users_mailbox.is_some()
        {
            let region = supervisor.place.region();
            let pages = region.len().div_ceil(PAGE_LEN as u64);
            supervisor.place = CommBufferPlace::new(region.start(), pages, users_mailbox)?;
            supervisor.is_shared = true;
            log_line!(
                Info,
                "mm_comm",
                "comm buffer {supervisors} is that of an MM supervisor without a mailbox of its own (v20.0.0 to v23.0.3): it \
                 shares that of its users"
            );
        }
        Ok(places)
    }
}

/// A comm buffer that HOBs announce.
struct Announced {
    id: u8,
    place: CommBufferPlace,
    /// Whether its mailbox is that of the users of the MM supervisor.
    is_shared: bool,
}

impl Announced {
    const fn new(id: u8, place: CommBufferPlace) -> Self {
        Self {
            id,
            place,
            is_shared: false,
        }
    }
}

/// Merges what two HOBs say about one comm buffer.
fn same_buffer(
    region: CommBufferPlace,
    buffer: CommBufferPlace,
) -> Result<CommBufferPlace, HobConfigurationError> {
    match (region.mailbox(), buffer.mailbox()) {
        (None, _) => Ok(buffer),
        (Some(first), Some(second)) if first != second => Err(HobConfigurationError::TwoMailboxes {
            region: region.region(),
            first,
            second,
        }),
        (Some(_), _) => Ok(region),
    }
}

impl Default for MmHobConfiguration {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for MmHobConfiguration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MmHobConfiguration")
            .field("acpi_base", &self.acpi_base)
            .field("comm_buffer_id", &self.comm_buffer_id)
            .field("movable", &self.movable)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hobs_have_the_guids_of_edk2_and_project_mu() {
        for (guid, published) in [
            (CommBufferHob::HOB_GUID, "6c2a2520-0131-4aee-a750-cc384aace8c6"),
            (CommRegionHob::HOB_GUID, "d4ffc718-fb82-4274-9afc-aa8b1eef5293"),
        ] {
            assert_eq!(guid, BinaryGuid::from_string(published));
        }
    }

    #[test]
    fn two_mailboxes_of_one_buffer_are_refused_with_both() {
        let place = |mailbox| CommBufferPlace::new(0x1000, 1, mailbox).unwrap();
        assert_eq!(
            same_buffer(place(None), place(Some(0x2000))),
            Ok(place(Some(0x2000)))
        );
        assert_eq!(
            same_buffer(place(Some(0x2000)), place(Some(0x2000))),
            Ok(place(Some(0x2000)))
        );
        let error = same_buffer(place(Some(0x2000)), place(Some(0x3000))).unwrap_err();
        assert!(matches!(
            error,
            HobConfigurationError::TwoMailboxes {
                first: 0x2000,
                second: 0x3000,
                ..
            }
        ));
        assert_eq!(EfiError::from(error), EfiError::InvalidParameter);
    }

    #[repr(C, align(4096))]
    struct Page([u8; 4096]);

    #[test]
    fn memory_is_wiped_once_everything_was_found_right() {
        let page = Box::leak(Box::new(Page([0xee; 4096])));
        let memory = mm_comm::SharedRegion::over_static(&mut page.0);
        let address = memory.as_ptr().expose_provenance() as u64;
        let place = CommBufferPlace::new(address, 1, None).unwrap();
        // Half of the address space, which is not memory.
        let impossible = CommBufferPlace::new(4096, 1 << 51, None).unwrap();
        let configure = |places: &[CommBufferPlace]| {
            MmHobConfiguration::new().configure(
                &MmCommunicationConfiguration::default(),
                places.iter().map(|place| Ok(*place)),
                [].into_iter(),
            )
        };
        let contents = || {
            let mut copy = [0x77; 4096];
            assert!(memory.read(0, &mut copy));
            copy
        };
        assert!(matches!(
            configure(&[place, impossible]),
            Err(HobConfigurationError::Buffer { .. })
        ));
        assert_eq!(contents(), [0xee; 4096]);
        let overlapping = CommBufferPlace::new(address, 2, None).unwrap();
        assert!(matches!(
            configure(&[place, overlapping]),
            Err(HobConfigurationError::Configuration(_))
        ));
        assert_eq!(contents(), [0xee; 4096]);
        assert!(configure(&[place]).is_ok());
        assert_eq!(contents(), [0; 4096]);
    }

    /// The address of so many pages of memory.
    fn pages(count: usize) -> u64 {
        let memory = Box::leak(alloc::vec![0_u8; (count + 1) * PAGE_LEN].into_boxed_slice());
        (memory.as_ptr().expose_provenance() as u64).next_multiple_of(PAGE_LEN as u64)
    }

    #[test]
    fn buffers_count_as_shared_with_the_firmware_unless_they_are_exclusive() {
        for is_exclusive in [false, true] {
            let place = CommBufferPlace::new(pages(1), 1, None).unwrap();
            let component = match is_exclusive {
                true => MmHobConfiguration::new().with_exclusive_buffers(),
                false => MmHobConfiguration::new(),
            };
            let given = MmCommunicationConfiguration::default();
            let configured = component.configure(&given, [Ok(place)].into_iter(), [].into_iter());
            let [buffer] = &configured.unwrap().comm_buffers[..] else {
                panic!("one HOB, one comm buffer")
            };
            assert_eq!(buffer.is_shared_with_firmware(), !is_exclusive);
        }
    }

    #[test]
    fn supervisor_shares_the_mailbox_of_its_users_whichever_hob_comes_first() {
        let address = pages(3);
        let [own, theirs, mailbox] = [0, 1, 2].map(|page| address + page * PAGE_LEN as u64);
        let region = |owner, address| CommRegion {
            owner,
            place: CommBufferPlace::new(address, 1, None).unwrap(),
        };
        let supervisors = region(Owner::Supervisor, own);
        let users = region(Owner::User, theirs);
        let buffer = CommBufferPlace::new(theirs, 1, Some(mailbox)).unwrap();
        for regions in [[supervisors, users], [users, supervisors]] {
            let places = MmHobConfiguration::new()
                .places([Ok(buffer)].into_iter(), regions.into_iter().map(Ok))
                .unwrap();
            assert_eq!(places.len(), 2);
            for Announced { id, place, is_shared } in places {
                assert_eq!(place.mailbox(), Some(mailbox), "comm buffer {id}");
                assert_eq!(is_shared, id == 0, "comm buffer {id}");
            }
        }
    }

    #[test]
    fn values_that_the_platform_set_stay() {
        let given = MmCommunicationConfiguration {
            cmd_port: MmiPort::Smi(0x72),
            acpi_base: AcpiBase::Io(0x400),
            updatable_buffer_id: Some(3),
            ..Default::default()
        };
        let memory = Box::leak(Box::new([0_u64; 1024]));
        let address = (memory.as_ptr().expose_provenance() as u64).next_multiple_of(4096);
        let place = CommBufferPlace::new(address, 1, None).unwrap();
        let configured = MmHobConfiguration::new()
            .with_comm_buffer_id(7)
            .configure(&given, [Ok(place)].into_iter(), [].into_iter())
            .unwrap();
        assert_eq!(configured.cmd_port, MmiPort::Smi(0x72));
        assert_eq!(configured.data_port, MmiPort::Smi(0xb3));
        assert_eq!(configured.acpi_base, AcpiBase::Io(0x400));
        assert_eq!(configured.updatable_buffer_id, Some(3));
        assert!(!configured.enable_comm_buffer_updates);
        assert_eq!(configured.comm_buffers.len(), 1);
        assert_eq!(configured.comm_buffers[0].id(), 7);
    }
}
