use patina_dxe_core::*;
use patina_mm::component::communicator::MmCommunicator;
use patina_mm::component::sw_mmi_manager::SwMmiManager;
use patina_mm::config::{AcpiBase, CommunicateBuffer, MmCommunicationConfiguration, MmiPort};

struct Board;

impl ComponentInfo for Board {
    fn configs(mut add: Add<Config>) {
        // SAFETY: the board reserves this region for MM, mapped one to one, and nothing else uses it.
        let buffer = unsafe { CommunicateBuffer::from_firmware_region(0x50000000, 0x800000, 0, None) };
        add.config(MmCommunicationConfiguration {
            acpi_base: AcpiBase::Mmio(0), // no SMI_EN
            cmd_port: MmiPort::Smc(0xC400_0041), // FF-A if there is 1.2 or later, else SPM_MM
            data_port: MmiPort::Smc(0xC400_0041),
            comm_buffers: buffer.into_iter().collect(),
            ..Default::default()
        });
    }

    fn components(mut add: Add<Component>) {
        add.component(SwMmiManager::new());
        add.component(MmCommunicator::new());
    }
}
