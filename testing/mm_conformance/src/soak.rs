//! Many calls on a machine, of which a quarter meets a fault: `cargo xtask soak --machine NAME`.
//!
//! The simulated machine has more faults and a hundred times as many calls (`cargo xtask soak`). What this adds is the real
//! thing: the processor, SMIs or secure monitor calls, the firmware's memory, and an MM in an address space of its own.

use crate::lab::{Abilities, Client, Lab, Setup};
use crate::mm::{self, Lie};
use crate::report::{NotOk, Report};
use crate::scenarios::{NO_HANDLER, ensure_clean, look_during, pattern, payload_size_request, up};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Write;
use fastrand::Rng;
use mm_wire::message::variable;
use mm_wire::{Guid, HeaderFormat};
use patina_mm::component::communicator::Status;

/// How many MMIs are raised.
pub const MMIS: u64 = 100_000;
/// They are divided into so many parts. Memory is looked at after each.
const PARTS: u64 = 20;
/// What the faults are chosen by: the same on each machine and in each run.
const SEED: u64 = 20_261_126;
/// How much less memory may be free at the end than after the first part: what a firmware's own timers take.
const MOST_BYTES: u64 = 64 * 1024;
/// Bytes of the header of each call.
const HEADER_LEN: u64 = HeaderFormat::V1.header_len() as u64;
/// How often the whole comm buffer is looked at after a call without a fault.
const WHOLE: u32 = 64;
/// How long the client waits: short, since some requests are not taken.
const POLLS: u32 = 100;

/// What came of the calls.
#[derive(Clone, Copy, Debug, Default)]
struct Count {
    calls: u32,
    faults: u32,
    mmis: u64,
}

/// What carries the messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Through {
    /// Patina's components.
    Components,
    /// The machine's own driver, through protocol 2. It has one comm buffer, which a setup does not
    /// configure: [`Site::install_driver`](crate::Site::install_driver).
    Driver,
}

/// Makes calls until [`MMIS`] were raised, and writes two lines of tests to the report. `free_memory` is how many bytes the machine has left.
/// Returns how many MMIs were raised.
pub fn run(
    report: &mut Report<impl Write>,
    lab: &Lab,
    through: Through,
    free_memory: &dyn Fn() -> Option<u64>,
) -> u64 {
    until(report, lab, through, free_memory, MMIS)
}

/// The same with another number of MMIs.
pub fn until(
    report: &mut Report<impl Write>,
    lab: &Lab,
    through: Through,
    free_memory: &dyn Fn() -> Option<u64>,
    mmis: u64,
) -> u64 {
    let mut count = Count::default();
    let mut free = Vec::new();
    let result = work(lab, through, mmis, &mut count, &mut |count| {
        let now = free_memory();
        free.extend(now);
        let Count { calls, faults, mmis } = count;
        let bytes = now.map_or_else(|| String::from("unknown"), |bytes| format!("{bytes}"));
        report.line(format_args!(
            "SOAK {calls} calls, {faults} with a fault, {mmis} MMIs, bytes of free memory: {bytes}"
        ));
    });
    report.test("soak.each_call_has_its_result_and_leaves_nothing_behind", || {
        result.map_err(NotOk::Failed)
    });
    report.test("soak.memory_is_constant", || match free[..] {
        [] => Err(NotOk::Skipped(
            "this machine does not tell how much memory is free".into(),
        )),
        [first, .., last] if first.saturating_sub(last) > MOST_BYTES => {
            Err(NotOk::Failed(format!("free after each part: {free:?}")))
        }
        [..] => Ok(()),
    });
    count.mmis
}

fn work(
    lab: &Lab,
    through: Through,
    mmis: u64,
    count: &mut Count,
    look: &mut dyn FnMut(Count),
) -> Result<(), String> {
    let mut setup = Setup::default();
    if through == Through::Components {
        setup.polls = POLLS;
    }
    let client = up(lab, &setup)?;
    let soak = Soak::new(lab.abilities(), through, &client)?;
    let mut rng = Rng::with_seed(SEED);
    let _of_the_setup = client.take_mmis();
    for part in 1..=PARTS {
        let end = mmis * part / PARTS;
        while count.mmis < end {
            let fault = soak.choose(&mut rng);
            let number = count.calls;
            let mut meet = || {
                let due = soak.meet(fault, &mut rng, number.is_multiple_of(WHOLE))?;
                let raised = client.take_mmis();
                ensure_eq!(raised, due);
                Ok(raised)
            };
            let raised = meet().map_err(|why: String| format!("call {number}, {fault:?}: {why}"))?;
            count.calls += 1;
            count.faults += u32::from(fault != Fault::None);
            count.mmis += raised as u64;
        }
        look(*count);
    }
    Ok(())
}

/// What goes wrong in a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    None,
    Empty,
    TooLarge,
    UnknownBuffer,
    NoHandler,
    SmisOff,
    /// A notification makes a call in the middle of this one.
    Interrupted,
    /// MM makes its response wrong.
    Lie(Lie),
    /// MM ends the next request with the response to this one.
    Late,
}

/// A client that has come up.
struct Soak<'c> {
    client: &'c Client,
    faults: Vec<Fault>,
    /// What edk2's variable service responds, if there is no other MM.
    payload_size: Option<Vec<u8>>,
}

impl<'c> Soak<'c> {
    fn new(abilities: Abilities, through: Through, client: &'c Client) -> Result<Self, String> {
        let every: [(Abilities, &[Fault]); 6] = [
            (
                Abilities::MM,
                &[Fault::Empty, Fault::TooLarge, Fault::UnknownBuffer],
            ),
            (Abilities::NO_HANDLER_STATUS, &[Fault::NoHandler]),
            (Abilities::SMI_SWITCH, &[Fault::SmisOff]),
            (Abilities::CALLBACKS, &[Fault::Interrupted]),
            (
                Abilities::CONTROLLED_MM,
                &[
                    Fault::Lie(Lie::Recipient),
                    Fault::Lie(Lie::WipeHeader),
                    Fault::Lie(Lie::OtherFormat),
                    Fault::Lie(Lie::MessageLength(0)),
                ],
            ),
            (
                Abilities::CONTROLLED_MM.union(Abilities::MAILBOX),
                &[
                    Fault::Lie(Lie::Ignore),
                    Fault::Lie(Lie::Status(0)),
                    Fault::Lie(Lie::Size(0)),
                    Fault::Late,
                ],
            ),
        ];
        let able = every.iter().filter(|(need, _)| abilities.contains(*need));
        let mut faults: Vec<Fault> = able.flat_map(|(_, faults)| *faults).copied().collect();
        if through == Through::Driver {
            // It sends empty messages, too, and has no number for a comm buffer.
            faults.retain(|fault| !matches!(fault, Fault::Empty | Fault::UnknownBuffer));
        }
        let payload_size = if abilities.contains(Abilities::CONTROLLED_MM) {
            None
        } else {
            let response = client.communicate(0, &payload_size_request(), variable::GUID);
            Some(response.map_err(|status| format!("the variable service: {status}"))?)
        };
        Ok(Self {
            client,
            faults,
            payload_size,
        })
    }

    /// Three of four calls meet no fault.
    fn choose(&self, rng: &mut Rng) -> Fault {
        let mut number = || rng.u64(..) >> rng.u32(..64);
        let (is_good, value) = (number() % 4 != 0, number());
        if is_good {
            return Fault::None;
        }
        match rng.choice(&self.faults).copied().unwrap_or(Fault::None) {
            Fault::Lie(Lie::MessageLength(_)) => Fault::Lie(Lie::MessageLength(value)),
            Fault::Lie(Lie::Status(_)) => Fault::Lie(Lie::Status(value | 1)),
            Fault::Lie(Lie::Size(_)) => {
                let most = HEADER_LEN + self.client.capacity(0) as u64;
                let is_possible = (HEADER_LEN..=most).contains(&value);
                Fault::Lie(Lie::Size(if is_possible { value + most } else { value }))
            }
            fault => fault,
        }
    }

    /// Makes a call that meets this fault. Returns how many MMIs it has to raise.
    fn meet(&self, fault: Fault, rng: &mut Rng, look_at_whole: bool) -> Result<usize, String> {
        let client = self.client;
        let mmis = match fault {
            Fault::None => {
                let (recipient, message, expected) = self.good(rng);
                ensure_eq!(client.communicate(0, &message, recipient), Ok(expected));
                1
            }
            Fault::Empty => {
                ensure_eq!(
                    client.communicate(0, &[], NO_HANDLER),
                    Err(Status::InvalidDataBuffer)
                );
                0
            }
            Fault::TooLarge => {
                let message = pattern(client.capacity(0) + 1);
                ensure_eq!(
                    client.communicate(0, &message, NO_HANDLER),
                    Err(Status::CommBufferTooSmall)
                );
                0
            }
            Fault::UnknownBuffer => {
                ensure_eq!(
                    client.communicate(77, b"x", NO_HANDLER),
                    Err(Status::CommBufferNotFound)
                );
                0
            }
            Fault::NoHandler => {
                let response = client.communicate(0, b"x", NO_HANDLER);
                ensure!(
                    matches!(response, Err(Status::MmReturned(_))),
                    "the response is {response:?}"
                );
                1
            }
            Fault::SmisOff => {
                client.switch_smis(false);
                let response = client.communicate(0, b"x", NO_HANDLER);
                client.switch_smis(true);
                ensure!(
                    matches!(response, Err(Status::MmiNotRaised(_))),
                    "the response is {response:?}"
                );
                0
            }
            Fault::Interrupted => {
                let (recipient, message, expected) = self.good(rng);
                let (inner, outer) = look_during(client, &message, recipient, |client| {
                    client.communicate(0, b"inner", NO_HANDLER)
                });
                ensure_eq!(inner, Some(Err(Status::Busy)));
                ensure_eq!(outer, Ok(expected));
                1
            }
            Fault::Lie(lie) => {
                let response = client.communicate(0, &lie.request(), mm::LIAR);
                // Less than the whole message is a response that an honest MM can give.
                let may_be_true = matches!(lie, Lie::MessageLength(len) if len <= client.capacity(0) as u64);
                ensure!(response.is_err() || may_be_true, "the response is {response:?}");
                // The client raises another MMI if MM does not take the request for long.
                if lie == Lie::Ignore { 2 } else { 1 }
            }
            Fault::Late => {
                let response = client.communicate(0, &Lie::Late.request(), mm::LIAR);
                ensure_eq!(response, Err(Status::NotProcessed));
                ensure_eq!(
                    client.communicate(0, b"next", mm::ECHO),
                    Err(Status::InvalidResponse)
                );
                3
            }
        };
        if look_at_whole || fault != Fault::None {
            ensure_clean(client, 0)?;
        }
        Ok(mmis)
    }

    /// A message that MM has a response to: recipient, message, response.
    fn good(&self, rng: &mut Rng) -> (Guid, Vec<u8>, Vec<u8>) {
        if let Some(response) = &self.payload_size {
            return (variable::GUID, payload_size_request(), response.clone());
        }
        let longest = if rng.u8(..16) == 0 {
            self.client.capacity(0)
        } else {
            64
        };
        let message = pattern(rng.usize(1..=longest));
        (mm::ECHO, message.clone(), message)
    }
}
