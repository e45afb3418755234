use patina_dxe_core::*;
use patina_mm::component::communicator::MmCommunicator;
use patina_mm::component::hob_configuration::MmHobConfiguration;
use patina_mm::component::sw_mmi_manager::SwMmiManager;
use patina_mm::config::{MmCommunicationConfiguration, MmiPort};

struct Board;

impl ComponentInfo for Board {
    fn configs(mut add: Add<Config>) {
        add.config(MmCommunicationConfiguration {
            cmd_port: MmiPort::Smi(0xb0), // SMI_CMD of the FADT
            data_port: MmiPort::Smi(0xb1),
            ..Default::default()
        });
    }

    fn components(mut add: Add<Component>) {
        // Takes the comm buffers from the HOBs. This chipset's SMI_EN is not known, so it is not checked.
        add.component(MmHobConfiguration::new());
        add.component(SwMmiManager::new());
        add.component(MmCommunicator::new());
    }
}
