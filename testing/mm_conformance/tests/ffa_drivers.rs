//! `SwMmiManager` beside other FF-A drivers, over a partition manager that does what TF-A's at EL3
//! does (`el3_spmc/spmc_main.c`): it lacks FFA_PARTITION_INFO_GET_REGS, and denies FFA_RXTX_MAP
//! while buffers are mapped (`rxtx_map_handler`).

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "this is a test: what is not there fails it"
)]

use mm_comm::SharedRegion;
use mm_comm::smc::{Call, Conduit};
use mm_conformance::lab::LogLevel;
use mm_conformance::lab::Site;
use mm_conformance::sim::SimSite;
use mm_wire::hob::FFA_RX_TX_HOB_GUID;
use patina::BinaryGuid;
use patina::component::component;
use patina::component::service::Service;
use patina_mm::component::sw_mmi_manager::{SwMmiManager, SwMmiTrigger};
use patina_mm::config::{AcpiBase, MmCommunicationConfiguration, MmiPort, SmcOptions};
use patina_mm_test::Dispatcher;
use std::cell::RefCell;

const ID_GET: u32 = 0x8400_0069;
const RXTX_MAP: u32 = 0xc400_0066;
const INFO_GET: u32 = 0x8400_0068;
const RX_RELEASE: u32 = 0x8400_0065;
const DIRECT_REQ: u32 = 0xc400_006f;
const DIRECT_REQ2: u32 = 0xc400_008d;

/// The MM partition.
const MM: u64 = 0x8001;
const BUFFER: u64 = 0x4000_0000;

std::thread_local! {
    /// The calls, but for FFA_VERSION.
    static CALLS: RefCell<Vec<u32>> = const { RefCell::new(vec![]) };
}

struct El3Spmc;

impl Call for El3Spmc {
    fn call32(_: u32, _: [u32; 7]) -> [u32; 8] {
        unreachable!("calls are made with all registers")
    }

    fn call64(function: u32, arguments: [u64; 17]) -> [u64; 18] {
        const SUCCESS: u64 = 0x8400_0061;
        let error = |code: i32| [0x8400_0060, 0, u64::from(code.cast_unsigned()), 0];
        let first = match function {
            0x8400_0063 => [0x1_0002, 0, 0, 0],
            ID_GET | RX_RELEASE => [SUCCESS, 0, 0, 0],
            RXTX_MAP => error(-6),
            // One descriptor of 24 bytes.
            INFO_GET => [SUCCESS, 0, 1, 24],
            DIRECT_REQ | DIRECT_REQ2 if arguments[0] == MM => [u64::from(function) + 1, MM << 16, 0, 0],
            DIRECT_REQ | DIRECT_REQ2 => error(-2),
            _ => error(-1),
        };
        if function != 0x8400_0063 {
            CALLS.with_borrow_mut(|calls| calls.push(function));
        }
        let mut registers = [0; 18];
        registers[..4].copy_from_slice(&first);
        registers
    }
}

impl Conduit for El3Spmc {
    fn el3_is_implemented() -> bool {
        true
    }
}

/// The RX buffer that another driver has mapped, filled with the MM partition's descriptor, and the
/// HOB that names it.
fn announced(remap_required: u8) -> Vec<u8> {
    #[repr(C, align(4096))]
    struct Page([u8; 4096]);
    let rx = SharedRegion::over_static(&mut Box::leak(Box::new(Page([0; 4096]))).0);
    // Identifier, one virtual processor, AArch64 and direct requests.
    let descriptor = MM | 1 << 16 | 0x101 << 32;
    assert!(rx.write(0, &descriptor.to_le_bytes()));
    let address = rx.as_ptr().expose_provenance() as u64;
    let fields = [
        address + 0x1000,
        0x1000,
        address,
        0x1000,
        remap_required.into(),
        0,
    ];
    fields.into_iter().flat_map(u64::to_le_bytes).collect()
}

/// Enters MM once.
struct Enters;

#[component]
impl Enters {
    fn entry_point(self, mm: Service<dyn SwMmiTrigger>) -> patina::error::Result<()> {
        mm.enter_mm(BUFFER, 0, 0).map(drop).map_err(Into::into)
    }
}

/// Dispatches the component beside a HOB, and returns its log and the calls that it made.
fn dispatch(function: u32, partition: Option<u16>, hob: Option<&[u8]>) -> (String, Vec<u32>) {
    let mut dispatcher = Dispatcher::new();
    let storage = dispatcher.storage();
    storage.add_config(MmCommunicationConfiguration {
        acpi_base: AcpiBase::Mmio(0),
        cmd_port: MmiPort::Smc(function),
        data_port: MmiPort::Smc(function),
        ..Default::default()
    });
    storage.add_config(SmcOptions {
        partition,
        ..Default::default()
    });
    dispatcher.add(SwMmiManager::with_conduit::<El3Spmc>());
    dispatcher.add(Enters);
    if let Some(hob) = hob {
        let guid = BinaryGuid::from_bytes(&FFA_RX_TX_HOB_GUID.to_bytes());
        let parsers: Vec<_> = dispatcher.storage().get_hob_parsers(&guid).into_iter().collect();
        assert!(!parsers.is_empty(), "the component asks for the HOB");
        for parse in parsers {
            parse(hob, dispatcher.storage());
        }
    }
    CALLS.take();
    let mut dispatcher = Some(dispatcher);
    let log = SimSite::new().with_log(LogLevel::Debug, &mut || {
        dispatcher.take().map(Dispatcher::dispatch);
    });
    (log, CALLS.take())
}

#[test]
fn the_rx_buffer_of_the_hob_is_read() {
    let (log, calls) = dispatch(0xc400_0041, None, Some(&announced(0)));
    assert!(
        log.contains("FF-A, partition 0x8001 by FFA_MSG_SEND_DIRECT_REQ"),
        "{log}"
    );
    let [found @ .., info, release, request] = &calls[..] else {
        panic!("{calls:x?}")
    };
    assert!(found.contains(&RXTX_MAP));
    assert_eq!([*info, *release, *request], [INFO_GET, RX_RELEASE, DIRECT_REQ]);
}

#[test]
fn without_a_hob_the_error_says_what_to_do() {
    // Also if the buffer was in temporary memory when the HOB was made.
    for hob in [None, Some(announced(1))] {
        let (log, calls) = dispatch(0xc400_0041, None, hob.as_deref());
        assert!(
            log.contains("FFA_RXTX_MAP: DENIED (-6)") && log.contains("name the MM partition in SmcOptions"),
            "{log}"
        );
        assert_eq!(calls.last(), Some(&RXTX_MAP));
    }
}

#[test]
fn a_partition_that_the_platform_names_is_asked_without_buffers() {
    for (function, request) in [
        (0xc400_0041, DIRECT_REQ),
        (DIRECT_REQ, DIRECT_REQ),
        (DIRECT_REQ2, DIRECT_REQ2),
    ] {
        let (log, calls) = dispatch(function, Some(0x8001), None);
        assert_eq!(calls, [ID_GET, request], "{log}");
    }
}
