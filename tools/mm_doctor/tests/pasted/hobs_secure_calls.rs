use patina_dxe_core::*;
use patina_mm::component::communicator::MmCommunicator;
use patina_mm::component::hob_configuration::MmHobConfiguration;
use patina_mm::component::sw_mmi_manager::SwMmiManager;
use patina_mm::config::{MmCommunicationConfiguration, MmiPort};

struct Board;

impl ComponentInfo for Board {
    fn configs(mut add: Add<Config>) {
        add.config(MmCommunicationConfiguration {
            cmd_port: MmiPort::Smc(0xC400_0041), // FF-A if there is 1.2 or later, else SPM_MM
            data_port: MmiPort::Smc(0xC400_0041),
            ..Default::default()
        });
    }

    fn components(mut add: Add<Component>) {
        // Takes the comm buffers from the HOBs.
        add.component(MmHobConfiguration::new());
        add.component(SwMmiManager::new());
        add.component(MmCommunicator::new());
    }
}
