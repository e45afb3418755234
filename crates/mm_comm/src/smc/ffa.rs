//! FF-A 1.2: MM in a secure partition that is found by the UUID of its service.
//!
//! | call | why |
//! |---|---|
//! | FFA_VERSION, FFA_ID_GET, FFA_PARTITION_INFO_GET_REGS and others | see [`discovery`] |
//! | FFA_MSG_SEND_DIRECT_REQ or _REQ2 | a request; x3 or x4 is the buffer's physical address |
//! | FFA_RUN | resumes the partition that was interrupted or yielded |
//!
//! Registers are encoded and decoded by `arm-ffa`, which panics on some inputs. `invoke` passes
//! only inputs that cannot trigger those panics: calls of FF-A 1.2 or older, and results of the
//! kinds that a caller can get.

pub mod discovery;
#[cfg(test)]
mod tests;

pub use super::codes::{FfaCode, OtherVersion};
use super::conduit::{call, low};
use super::limit::Limits;
use super::spm_mm::SpmMmCode;
use super::{Conduit, SmcError};
use arm_ffa::interface_args::{DirectMsg2Args, DirectMsgArgs, TargetInfo};
use arm_ffa::{Error, FuncId, Interface, Uuid, Version};
use core::fmt;
use core::sync::atomic::{AtomicU32, Ordering};

/// The version that is asked for first. All calls are encoded as this version has them, also for a
/// newer minor version.
const VERSION: Version = Version(1, 2);

/// The MM communication service: the GUID of `EFI_MM_COMMUNICATION2_PROTOCOL` (PI 1.9, volume 4,
/// 5.7.6) in the byte order of RFC 4122.
pub const MM_SERVICE: Uuid = Uuid::from_bytes_le(mm_wire::protocol::COMMUNICATION2.to_bytes());

/// FFA_MSG_SEND_DIRECT_REQ with 64-bit registers.
pub const MSG_SEND_DIRECT_REQ: u32 = FuncId::MsgSendDirectReq64 as u32;
/// FFA_MSG_SEND_DIRECT_REQ2.
pub const MSG_SEND_DIRECT_REQ2: u32 = FuncId::MsgSendDirectReq64_2 as u32;

/// The call by which the MM partition takes requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DirectRequest {
    /// FFA_MSG_SEND_DIRECT_REQ, as edk2 sends it.
    Req,
    /// FFA_MSG_SEND_DIRECT_REQ2, which names the service: for partitions that take nothing else.
    Req2,
}

impl DirectRequest {
    /// The call's name.
    const fn call(self) -> &'static str {
        match self {
            Self::Req => "FFA_MSG_SEND_DIRECT_REQ",
            Self::Req2 => "FFA_MSG_SEND_DIRECT_REQ2",
        }
    }
}

/// An MM partition that the platform names, so that it need not be looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NamedPartition {
    /// Its identifier, such as 0x8001.
    pub id: u16,
    /// The call by which it takes requests.
    pub request: DirectRequest,
}

/// The MM partition, our identifier, and its request that was given up.
#[derive(Debug)]
pub(super) struct Partition {
    own_id: u16,
    id: u16,
    request: DirectRequest,
    /// What FFA_RUN has to name to end a request that was given up: an endpoint and its virtual
    /// processor, as INTERRUPT and YIELD gave them. [`IDLE`] if there is no such request. Changed
    /// in calls only, of which there is one at a time.
    in_request: AtomicU32,
}

/// No endpoint: the identifier 0 is the hypervisor's, which FFA_RUN does not take.
const IDLE: u32 = 0;

impl fmt::Display for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "partition {:#06x} by {}", self.id, self.request.call())
    }
}

/// Why a call did not return a result of its kind.
enum Failure {
    /// FFA_ERROR, or the calling convention's "unknown function".
    Code(FfaCode),
    /// A function identifier that no result has.
    Foreign(u32),
}

/// Makes a call and decodes its result. Also returns w1, which in INTERRUPT and YIELD names what
/// has to be resumed: `arm-ffa` leaves it out of YIELD.
fn invoke<C: Conduit>(request: &Interface) -> Result<(Interface, u32), Failure> {
    let mut registers = [0; 18];
    request.to_regs(VERSION, &mut registers);
    let response = call::<C>(registers);
    let [function, target, ..] = response;
    let function = low(function);
    match FuncId::try_from(function) {
        Ok(
            FuncId::Error32
            | FuncId::Success32
            | FuncId::Success64
            | FuncId::Interrupt32
            | FuncId::Yield32
            | FuncId::MsgSendDirectResp32
            | FuncId::MsgSendDirectResp64
            | FuncId::MsgSendDirectResp64_2,
        ) => {}
        _ if function.cast_signed() == FfaCode::NOT_SUPPORTED.0 => {
            return Err(Failure::Code(FfaCode::NOT_SUPPORTED));
        }
        _ => return Err(Failure::Foreign(function)),
    }
    match Interface::from_regs(VERSION, &response) {
        Ok(Interface::Error { error_code, .. }) => Err(Failure::Code(FfaCode(error_code.into()))),
        // Such as -10, which `arm-ffa` does not know.
        Err(Error::UnrecognisedErrorCode(code)) => Err(Failure::Code(FfaCode(code))),
        Ok(response) => Ok((response, low(target))),
        Err(_) => Err(Failure::Foreign(function)),
    }
}

/// Repeats a call while it fails with BUSY, until the limit is reached.
fn insist<C: Conduit>(
    call: &'static str,
    request: &Interface,
    limits: Limits,
) -> Result<Interface, SmcError> {
    let limit = limits.busy::<C>();
    let mut made: u32 = 0;
    loop {
        made = made.saturating_add(1);
        match invoke::<C>(request) {
            Ok((response, _)) => return Ok(response),
            Err(Failure::Code(FfaCode::BUSY)) if limit.is_reached::<C>(made) => {
                return Err(SmcError::Timeout { call, attempts: made });
            }
            Err(Failure::Code(FfaCode::BUSY)) => core::hint::spin_loop(),
            Err(Failure::Code(code)) => return Err(SmcError::Ffa { call, code }),
            Err(Failure::Foreign(response)) => return Err(SmcError::Protocol { call, response }),
        }
    }
}

/// The error for a result that this call cannot have.
fn unexpected(call: &'static str, response: &Interface) -> SmcError {
    SmcError::Protocol {
        call,
        response: response.function_id().map_or(0, u32::from),
    }
}

const RUN: &str = "FFA_RUN";

/// FFA_RUN of an endpoint's virtual processor.
fn resume(target: u32) -> Interface {
    Interface::Run {
        target_info: TargetInfo::from(target),
        is_32bit: true,
    }
}

/// The outcome of a call that makes the partition run.
enum Progress {
    /// The partition has responded, and this is the status in its response.
    Responded(Result<(), SpmMmCode>),
    /// It was interrupted or yields. FFA_RUN must name this endpoint, if the result named one.
    Stopped(Option<u32>),
}

/// The status that StandaloneMm puts into the registers of a direct response, from the first that
/// the partition may fill.
///
/// | | register | next register |
/// |---|---|---|
/// | edk2 until January 2025, and edk2#13078 | MM_SP_EVENT_COMPLETE | the status |
/// | edk2's `SetEventCompleteSvcArgs` | MM_SP_EVENT_COMPLETE or 0 | 0; failures are FFA_ERROR |
/// | U-Boot's client (`ffa_notify_mm_sp`) expects of other partitions | the status | |
///
/// Only the low 32 bits count. A number between -65536 and -1 is a status; others, such as an
/// address, are not.
fn status_in([first, second]: [u64; 2]) -> Result<(), SpmMmCode> {
    const EVENT_COMPLETE: [u32; 2] = [0xc400_0061, 0x8400_0061];
    const LOWEST_STATUS: u32 = 0xffff_0000;
    let [first, second] = [first, second].map(low);
    let status = if EVENT_COMPLETE.contains(&first) {
        second
    } else {
        let status = [first, second]
            .into_iter()
            .find(|status| *status >= LOWEST_STATUS);
        status.unwrap_or(0)
    };
    match status {
        0 => Ok(()),
        failure => Err(SpmMmCode(failure.cast_signed())),
    }
}

impl Partition {
    const fn new(own_id: u16, id: u16, request: DirectRequest) -> Self {
        Self {
            own_id,
            id,
            request,
            in_request: AtomicU32::new(IDLE),
        }
    }

    /// Makes the partition process the request at `buffer`, and resumes it as often as it is
    /// interrupted.
    ///
    /// If the limit is reached in the middle of a request, the partition keeps it and goes on as
    /// soon as it is resumed, reading and writing shared memory. So it is resumed before anything
    /// else is asked of it. By then it may have changed the new request, which is in shared memory
    /// now, so that is not sent.
    pub(super) fn communicate<C: Conduit>(&self, buffer: u64, limits: Limits) -> Result<(), SmcError> {
        match self.in_request.load(Ordering::Relaxed) {
            IDLE => self.run::<C>(self.request.call(), self.request(buffer), limits),
            target => match self.run::<C>(RUN, resume(target), limits) {
                Err(SmcError::Timeout { attempts, .. }) => Err(SmcError::EarlierUnfinished { attempts }),
                // It has responded, or there is nothing to resume any more.
                Ok(()) | Err(SmcError::Ffa { .. } | SmcError::Refused { .. }) => Err(SmcError::EarlierEnded),
                result => result,
            },
        }
    }

    /// Makes a call that lets the partition run, and resumes the partition until it has responded.
    fn run<C: Conduit>(
        &self,
        mut call: &'static str,
        mut next: Interface,
        limits: Limits,
    ) -> Result<(), SmcError> {
        let request_limit = limits.resumes::<C>();
        let mut busy_limit = None;
        let mut busy: u32 = 0;
        let mut resumes = u32::from(matches!(next, Interface::Run { .. }));
        loop {
            let named = match self.progress(call, invoke::<C>(&next)) {
                Ok(Progress::Responded(status)) => {
                    self.in_request.store(IDLE, Ordering::Relaxed);
                    let call = self.request.call();
                    return status.map_err(|code| SmcError::Refused { call, code });
                }
                Ok(Progress::Stopped(named)) => named,
                Err(SmcError::Ffa {
                    code: FfaCode::BUSY, ..
                }) => {
                    busy = busy.saturating_add(1);
                    let limit = *busy_limit.get_or_insert_with(|| limits.busy::<C>());
                    if limit.is_reached::<C>(busy) {
                        return Err(SmcError::Timeout { call, attempts: busy });
                    }
                    core::hint::spin_loop();
                    continue;
                }
                Err(error) => {
                    if let SmcError::Ffa { .. } = error {
                        // The partition has crashed, or the partition manager has nothing to
                        // resume.
                        self.in_request.store(IDLE, Ordering::Relaxed);
                    }
                    return Err(error);
                }
            };
            let target = self.stopped_at(named);
            self.in_request.store(target, Ordering::Relaxed);
            if request_limit.is_reached::<C>(resumes) {
                return Err(SmcError::Timeout {
                    call: RUN,
                    attempts: resumes,
                });
            }
            resumes = resumes.saturating_add(1);
            // The partition has run, so the time for which it may be busy starts again.
            busy_limit = None;
            (call, next) = (RUN, resume(target));
        }
    }

    /// Reads the result of a call that lets the partition run.
    fn progress(
        &self,
        call: &'static str,
        result: Result<(Interface, u32), Failure>,
    ) -> Result<Progress, SmcError> {
        let (response, target) = match result {
            Ok(result) => result,
            Err(Failure::Code(FfaCode::INTERRUPTED)) => return Ok(Progress::Stopped(None)),
            Err(Failure::Code(code)) => return Err(SmcError::Ffa { call, code }),
            Err(Failure::Foreign(response)) => return Err(SmcError::Protocol { call, response }),
        };
        let (from, payload) = match (self.request, &response) {
            (_, Interface::Interrupt { .. } | Interface::Yield { .. }) => {
                return Ok(Progress::Stopped(Some(target)));
            }
            (DirectRequest::Req, Interface::MsgSendDirectResp { src_id, dst_id, args }) => {
                let payload = match *args {
                    DirectMsgArgs::Args32([first, second, ..]) => Some([first, second].map(u64::from)),
                    DirectMsgArgs::Args64([first, second, ..]) => Some([first, second]),
                    // A framework message is not a response.
                    _ => None,
                };
                ((*src_id, *dst_id), payload)
            }
            (DirectRequest::Req2, Interface::MsgSendDirectResp2 { src_id, dst_id, args }) => {
                let DirectMsg2Args([first, second, ..]) = *args;
                ((*src_id, *dst_id), Some([first, second]))
            }
            _ => return Err(unexpected(call, &response)),
        };
        match payload {
            Some(payload) if from == (self.id, self.own_id) => Ok(Progress::Responded(status_in(payload))),
            _ => Err(unexpected(call, &response)),
        }
    }

    /// What FFA_RUN has to name: what INTERRUPT or YIELD named, which is another partition if MM
    /// was waiting for it. If a result names none, it is the virtual processor that ran last; at
    /// first that is MM's number 0.
    fn stopped_at(&self, named: Option<u32>) -> u32 {
        let last = match self.in_request.load(Ordering::Relaxed) {
            IDLE => TargetInfo {
                endpoint_id: self.id,
                vcpu_id: 0,
            }
            .into(),
            last => last,
        };
        named
            .filter(|named| TargetInfo::from(*named).endpoint_id != 0)
            .unwrap_or(last)
    }

    fn request(&self, buffer: u64) -> Interface {
        let (src_id, dst_id) = (self.own_id, self.id);
        match self.request {
            DirectRequest::Req => {
                let mut args = [0; 15];
                let [first, ..] = &mut args;
                *first = buffer;
                let args = DirectMsgArgs::Args64(args);
                Interface::MsgSendDirectReq { src_id, dst_id, args }
            }
            DirectRequest::Req2 => {
                let mut args = [0; 14];
                let [first, ..] = &mut args;
                *first = buffer;
                Interface::MsgSendDirectReq2 {
                    src_id,
                    dst_id,
                    uuid: MM_SERVICE,
                    args: DirectMsg2Args(args),
                }
            }
        }
    }
}
