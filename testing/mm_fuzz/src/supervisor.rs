//! The client of Project Mu's MM supervisor against a supervisor whose responses are any bytes.

use crate::header::number;
use crate::with_patina;
use arbitrary::{Arbitrary, Unstructured};
use mm_wire::EfiStatus;
use patina::component::component;
use patina::component::service::Service;
use patina_mm::component::communicator::Status;
use patina_mm::component::supervisor::{MmSupervisor, MmSupervisorClient, SupervisorError, UnblockMemory};
use std::cell::RefCell;

#[derive(Arbitrary, Debug)]
struct Case {
    calls: Vec<Call>,
}

#[derive(Arbitrary, Debug)]
struct Call {
    request: Request,
    response: Response,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Request {
    Version,
    Unblock { start: u64, pages: u64 },
    UnblockPage { page: u16, pages: u8 },
    Policy { room: u16 },
}

#[derive(Arbitrary, Debug)]
enum Response {
    /// A header of the supervisor's, and anything behind it.
    Header {
        request: u8,
        result: Option<u64>,
        signature: Option<[u8; 4]>,
        body: Vec<u8>,
    },
    Policy {
        size: u32,
        result: bool,
        len: u8,
    },
    Version {
        level: u64,
        cut: u8,
    },
    Bytes(Vec<u8>),
    Fails,
}

impl Response {
    fn bytes(&self) -> Option<Vec<u8>> {
        let header = |signature: [u8; 4], request: u32, result: u64| {
            let numbers = [1, request, 0].map(u32::to_le_bytes).concat();
            [signature.to_vec(), numbers, result.to_le_bytes().to_vec()].concat()
        };
        Some(match self {
            Self::Header {
                request,
                result,
                signature,
                body,
            } => {
                let signature = signature.unwrap_or(*b"MSUP");
                [
                    header(signature, u32::from(request % 6), result.unwrap_or(0)),
                    body.clone(),
                ]
                .concat()
            }
            Self::Policy { size, result, len } => {
                let body = [
                    vec![0, 0, 1, 0],
                    size.to_le_bytes().to_vec(),
                    vec![0x77; usize::from(*len)],
                ]
                .concat();
                [header(*b"MSUP", 2, u64::from(*result)), body].concat()
            }
            Self::Version { level, cut } => {
                let body = [[5, 0, 0, 0, 6, 0, 0, 0], level.to_le_bytes()].concat();
                let mut all = [header(*b"MSUP", 3, 0), body].concat();
                all.truncate(all.len().saturating_sub(usize::from(*cut % 48)));
                all
            }
            Self::Bytes(bytes) => bytes.clone(),
            Self::Fails => return None,
        })
    }
}

thread_local! {
    static CLIENT: RefCell<Option<Service<dyn MmSupervisor>>> = const { RefCell::new(None) };
}

/// Keeps the client for the cases.
struct Keep;

#[component]
impl Keep {
    #[expect(clippy::unnecessary_wraps, reason = "what a component's entry point returns")]
    fn entry_point(self, client: Service<dyn MmSupervisor>) -> patina::error::Result<()> {
        CLIENT.set(Some(client));
        Ok(())
    }
}

/// Runs one input.
pub fn run(data: &[u8]) {
    let Ok(case) = Case::arbitrary_take_rest(Unstructured::new(data)) else {
        return;
    };
    with_patina::with(
        |clients| {
            clients.supervisor_says(Response::Version { level: 4, cut: 0 }.bytes());
            clients.machine.dispatch(MmSupervisorClient::new(0)).unwrap();
            clients.machine.dispatch(Keep).unwrap();
        },
        |clients| {
            for call in case.calls.iter().take(4) {
                let says = call.response.bytes();
                clients.supervisor_says(says.clone());
                let mmis = clients.machine.mmis();
                CLIENT.with_borrow(|client| {
                    check(**client.as_ref().unwrap(), call.request, says, || {
                        clients.machine.mmis() - mmis
                    })
                });
            }
        },
    );
}

fn check(client: &dyn MmSupervisor, request: Request, says: Option<Vec<u8>>, mmis: impl Fn() -> usize) {
    match request {
        Request::Version => {
            let expected = judge(3, says).and_then(|body| {
                if body.len() > 16 {
                    return Err(Fault::TooLong);
                }
                if body.len() < 16 {
                    return Err(Fault::Size);
                }
                Ok((number(&body, 0), number(&body, 8))).and_then(|(version, level)| match level {
                    0..3 => Err(Fault::Level),
                    _ => Ok((version, level)),
                })
            });
            let found = client.version().map(|info| {
                let version = u64::from(info.version.get()) | u64::from(info.patch_level.get()) << 32;
                (version, info.max_request_level.get())
            });
            assert_eq!(found.map_err(Fault::of), expected);
        }
        Request::Unblock { start, pages } => unblock(client, start, pages, says, mmis),
        Request::UnblockPage { page, pages } => {
            unblock(client, u64::from(page) * 4096, pages.into(), says, mmis);
        }
        Request::Policy { room } => {
            let mut out = vec![0x11; usize::from(room) % 600];
            let expected = judge(2, says).and_then(|body| {
                if body.len() < 8 {
                    return Err(Fault::Size);
                }
                let size = u32::from_le_bytes(body[4..8].try_into().unwrap()) as usize;
                if !(8..=body.len()).contains(&size) {
                    return Err(Fault::Policy);
                }
                if size > out.len() {
                    return Err(Fault::TooLong);
                }
                Ok(body[..size].to_vec())
            });
            let found = client.fetch_policy(&mut out);
            let untouched = out.iter().all(|byte| *byte == 0x11);
            match (found, expected) {
                (Ok(len), Ok(policy)) => assert_eq!(out[..len], policy),
                (Err(error), Err(fault)) => {
                    assert_eq!(Fault::of(error), fault);
                    assert!(untouched, "an error left bytes in the caller's slice");
                }
                (found, expected) => panic!("{found:?}, expected {expected:?}"),
            }
        }
    }
}

fn unblock(
    client: &dyn MmSupervisor,
    start: u64,
    pages: u64,
    says: Option<Vec<u8>>,
    mmis: impl Fn() -> usize,
) {
    let memory = UnblockMemory::runtime_data(start, pages, patina::BinaryGuid::from_bytes(&[9; 16]));
    let found = client.unblock_memory(&memory).map_err(Fault::of);
    let end = u128::from(start) + u128::from(pages) * 4096;
    if !start.is_multiple_of(4096) || pages == 0 || end > u128::from(u64::MAX) {
        assert_eq!((found, mmis()), (Err(Fault::Caller), 0));
        return;
    }
    assert_eq!(found, judge(1, says).map(drop));
}

#[derive(Debug, PartialEq, Eq)]
enum Fault {
    NoHandler,
    Size,
    NotAResponse,
    Refused(EfiStatus),
    NotTaken,
    Level,
    Policy,
    TooLong,
    Caller,
    Other,
}

impl Fault {
    fn of(error: SupervisorError) -> Self {
        match error {
            SupervisorError::Communication(Status::MmReturned(_)) => Self::NoHandler,
            SupervisorError::Communication(Status::ResponseSize { .. }) => Self::Size,
            SupervisorError::Communication(Status::ResponseTooLong { .. }) => Self::TooLong,
            SupervisorError::NotAResponse { .. } => Self::NotAResponse,
            SupervisorError::Refused { result, .. } => Self::Refused(result),
            SupervisorError::NotTaken { .. } => Self::NotTaken,
            SupervisorError::RequestLevel { .. } => Self::Level,
            SupervisorError::PolicySize { .. } => Self::Policy,
            SupervisorError::NoWholePages { .. } => Self::Caller,
            _ => Self::Other,
        }
    }
}

/// The result that a client must return for a response: the bytes behind its header, or an error.
fn judge(request: u32, says: Option<Vec<u8>>) -> Result<Vec<u8>, Fault> {
    /// The result field that the client sends in each request; no supervisor returns it.
    const NO_RESULT: u64 = u64::MAX;
    let says = says.ok_or(Fault::NoHandler)?;
    if says.len() < 24 {
        return Err(Fault::Size);
    }
    if says[..4] != *b"MSUP" || says[8..12] != request.to_le_bytes() {
        return Err(Fault::NotAResponse);
    }
    match number(&says, 16) {
        0 => Ok(says[24..].to_vec()),
        NO_RESULT => Err(Fault::NotTaken),
        result => Err(Fault::Refused(EfiStatus(result))),
    }
}
