//! How many requests MM took, as MM counts them.

#[cfg(target_arch = "aarch64")]
pub(crate) use aarch64::{Requests, find};
#[cfg(target_arch = "x86_64")]
pub(crate) use x86_64::{Requests, find};

/// MM in SMRAM: it is asked through the comm buffer of the Patina components, not the driver's.
#[cfg(target_arch = "x86_64")]
mod x86_64 {
    use crate::app;
    use alloc::format;
    use alloc::string::String;
    use core::cell::{Cell, RefCell};
    use mm_comm::{Channel, PortTrigger, SmiCheck};
    use mm_runtime::hobs::Source;
    use mm_wire::hob::{CommBufferPlace, Owner};
    use mm_wire::{Guid, HeaderFormat};
    use q35_mm::chipset::{COMMAND, COMMAND_PORT, DATA_PORT};
    use q35_mm::control::{self, StateOfMm};
    use q35_mm::handoff::{BufferEntry, RUNTIME_BUFFER_HOB};
    use r_efi::efi;
    use zerocopy::{FromBytes, IntoBytes};

    pub(crate) struct Requests {
        users: CommBufferPlace,
        channel: RefCell<Option<Channel>>,
        /// Requests of this module, which MM counts as well.
        own: Cell<u64>,
    }

    impl Requests {
        /// Uses the comm buffer at its address of now.
        pub(crate) fn use_addresses(&self, virt: &dyn Fn(u64) -> u64) {
            let at = |address| usize::try_from(virt(address)).unwrap_or(0);
            let region = self.users.region();
            let len = usize::try_from(region.len()).unwrap_or(0);
            let mailbox = self.users.mailbox().map(at);
            self.channel
                .replace(app::channel(at(region.start()), len, mailbox));
        }

        /// How many SMIs MM took so far, without those of this module.
        pub(crate) fn taken(&self) -> u64 {
            self.ask(&control::STATE.to_le_bytes())
                .map_or(0, |smis| smis.saturating_sub(self.own.get()))
        }

        /// How many SMIs MM took so far, with those of this module.
        pub(crate) fn raised(&self) -> u64 {
            self.taken().saturating_add(self.own.get())
        }

        fn ask(&self, message: &[u8]) -> Option<u64> {
            let mut room = [0; size_of::<StateOfMm>()];
            room.iter_mut().zip(message).for_each(|(to, from)| *to = *from);
            self.send(control::GUID, &mut room)?;
            Some(StateOfMm::read_from_bytes(&room).ok()?.smis.get())
        }

        /// Sends a message, and overwrites it with the response.
        fn send(&self, recipient: Guid, message: &mut [u8]) -> Option<usize> {
            let channel = self.channel.borrow();
            let channel = channel.as_ref()?;
            let staged = channel
                .begin_sized(HeaderFormat::V1, recipient, message, None)
                .ok()?;
            let trigger = PortTrigger {
                command_port: COMMAND_PORT,
                data_port: DATA_PORT,
                smi_enable: None,
                check: SmiCheck::Off,
            };
            self.own.set(self.own.get().saturating_add(1));
            trigger.raise(&app::ports(), COMMAND, 0).ok()?;
            let response = staged.finish().ok()?;
            Some(response.copy_to(message)?.len())
        }
    }

    /// The driver's comm buffer, which the suite's MM side serves from now on, and MM's count.
    pub(crate) fn find(system: *mut efi::SystemTable) -> Result<(CommBufferPlace, Requests), String> {
        let hob = |source| app::find_hob(system, source).map_err(|error| format!("{error}"));
        let buffer = hob(Source::Buffer(RUNTIME_BUFFER_HOB))?;
        let requests = Requests {
            users: hob(Source::Region(Owner::User))?,
            channel: RefCell::new(None),
            own: Cell::new(0),
        };
        requests.use_addresses(&|address| address);
        let entry = BufferEntry {
            start: buffer.region().start().into(),
            len: buffer.region().len().into(),
            mailbox: buffer.mailbox().unwrap_or(0).into(),
        };
        let mut message = [control::BUFFERS.to_le_bytes().as_slice(), entry.as_bytes()].concat();
        requests
            .send(control::GUID, &mut message)
            .ok_or("MM does not take a message to itself")?;
        match message.first_chunk() {
            Some([0, 0, 0, 0, 0, 0, 0, 0]) => Ok((buffer, requests)),
            _ => Err(format!(
                "the suite's MM side does not take the buffer: {message:02x?}"
            )),
        }
    }
}

/// MM in the secure world: a call of the monitor's own tells it.
#[cfg(target_arch = "aarch64")]
mod aarch64 {
    use aarch64_monitor::layout::COUNT_REQUESTS;
    use alloc::string::{String, ToString};
    use mm_comm::smc::{Call, Smc};
    use mm_wire::hob::CommBufferPlace;
    use r_efi::efi;
    use variable_driver::{SHARED, SHARED_PAGES};

    pub(crate) struct Requests;

    impl Requests {
        #[expect(clippy::unused_self, reason = "the other machine's has a comm buffer")]
        pub(crate) fn use_addresses(&self, _: &dyn Fn(u64) -> u64) {}

        /// How many requests MM took so far.
        #[expect(clippy::unused_self, reason = "the other machine's has a comm buffer")]
        pub(crate) fn taken(&self) -> u64 {
            let [count, ..] = Smc::call64(COUNT_REQUESTS, [0; 17]);
            count
        }

        pub(crate) fn raised(&self) -> u64 {
            self.taken()
        }
    }

    /// The driver's comm buffer, and MM's count.
    pub(crate) fn find(_: *mut efi::SystemTable) -> Result<(CommBufferPlace, Requests), String> {
        let buffer = CommBufferPlace::new(SHARED, SHARED_PAGES as u64, None);
        Ok((buffer.map_err(|error| error.to_string())?, Requests))
    }
}
