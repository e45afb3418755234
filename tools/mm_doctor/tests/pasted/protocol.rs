use patina_dxe_core::*;
use patina_mm::component::protocols::FirmwareMmCommunication;

struct Board;

impl ComponentInfo for Board {
    fn components(mut add: Add<Component>) {
        // The firmware's own driver carries messages: comm buffer 0 of 16 pages is for them.
        add.component(FirmwareMmCommunication::new(0, 16));
    }
}
