use patina_dxe_core::*;
use patina_mm::component::communicator::MmCommunicator;
use patina_mm::component::hob_configuration::{AcpiBaseSource, MmHobConfiguration};
use patina_mm::component::sw_mmi_manager::SwMmiManager;

struct Board;

impl ComponentInfo for Board {
    fn components(mut add: Add<Component>) {
        // Takes the comm buffers from the HOBs, and checks SMI_EN behind the ACPI base, 0x600 here.
        add.component(MmHobConfiguration::new().with_acpi_base(AcpiBaseSource::Ich9));
        add.component(SwMmiManager::new());
        add.component(MmCommunicator::new());
    }
}
