//! The scenarios, a file per subject. Each is named after what it shows.

use crate::lab::{Abilities, Client, Lab, LogLevel, Remains, Setup, SetupFailure};
use crate::report::NotOk;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use mm_wire::EfiStatus;
use patina::standard::efi;

/// Fails the scenario unless the condition holds.
macro_rules! ensure {
    ($condition:expr, $($text:tt)+) => {
        if !$condition {
            return Err(alloc::format!($($text)+));
        }
    };
}

/// Fails the scenario unless both sides are equal, and shows both.
macro_rules! ensure_eq {
    ($left:expr, $right:expr) => {
        match (&$left, &$right) {
            (left, right) => ensure!(left == right, "{} is {left:?}, not {right:?}", stringify!($left)),
        }
    };
}

/// Lists a file's scenarios: name, needed abilities, what it shows.
macro_rules! scenarios {
    ($($name:ident: $($need:ident)|*, $shows:literal;)+) => {
        /// The scenarios of this file.
        pub(super) const ALL: &[crate::scenarios::Scenario] = &[$(crate::scenarios::Scenario {
            name: stringify!($name),
            shows: $shows,
            needs: crate::lab::Abilities::empty()$(.union(crate::lab::Abilities::$need))*,
            run: $name,
        }),+];
    };
}

pub(crate) use nesting::look_during;
pub(crate) use refusals::NO_HANDLER;
pub(crate) use variables::payload_size_request;

mod c_consumer;
mod c_producer;
mod calls;
mod events;
mod headers;
mod hobs;
mod lies;
mod logs;
mod mmi;
mod moves;
mod nesting;
mod platform_control;
mod refusals;
mod responses;
mod setup;
mod supervisor;
mod variables;

/// What a scenario returns: nothing, or what it saw instead of what it expected.
pub(crate) type Seen = Result<(), String>;

/// One scenario.
#[derive(Clone, Copy, Debug)]
pub struct Scenario {
    /// Its name, which says what it shows.
    pub name: &'static str,
    /// The same in a sentence.
    pub shows: &'static str,
    /// What the machine must be able to do.
    pub needs: Abilities,
    run: fn(&Lab) -> Seen,
}

impl Scenario {
    /// Runs the scenario in a lab.
    ///
    /// # Errors
    ///
    /// What it saw instead of what it expected, or which abilities the machine lacks.
    pub fn run(&self, lab: &Lab) -> Result<(), NotOk> {
        let missing = self.needs.difference(lab.abilities());
        if !missing.is_empty() {
            return Err(NotOk::Skipped(format!("needs {}", missing.names().join(", "))));
        }
        (self.run)(lab).map_err(|seen| NotOk::Failed(format!("{}, but {seen}", self.shows)))
    }
}

/// All scenarios, in the order of their subjects.
#[must_use]
pub fn all() -> Vec<&'static Scenario> {
    [
        responses::ALL,
        calls::ALL,
        headers::ALL,
        variables::ALL,
        refusals::ALL,
        mmi::ALL,
        lies::ALL,
        nesting::ALL,
        supervisor::ALL,
        events::ALL,
        c_producer::ALL,
        c_consumer::ALL,
        setup::ALL,
        platform_control::ALL,
        hobs::ALL,
        moves::ALL,
        logs::ALL,
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// A status of MM, as `Status::MmReturned` has it.
pub(crate) fn efi_status(status: EfiStatus) -> efi::Status {
    usize::try_from(status.0).map_or(efi::Status::DEVICE_ERROR, efi::Status::from_usize)
}

/// Brings up a client that is expected to work.
pub(crate) fn up(lab: &Lab, setup: &crate::lab::Setup) -> Result<Client, String> {
    lab.bring_up(setup)
        .map_err(|failure| format!("the client did not come up: {failure}"))
}

/// Brings up a client with the default setup.
fn ready(lab: &Lab) -> Result<Client, String> {
    up(lab, &crate::lab::Setup::default())
}

/// How a client is expected to refuse a setup.
struct Refused {
    /// A part of the name of the component that refuses.
    by: &'static str,
    status: EfiStatus,
    /// A part of its log, if the log can be read.
    because: &'static str,
}

/// Fails unless the setup is refused in this way, the refused service does not exist, and no port
/// was written.
fn ensure_refused(lab: &Lab, setup: &Setup, expected: &Refused) -> Seen {
    let Refused { by, status, because } = *expected;
    let mut failure = None;
    let mut bring_up = || failure = lab.bring_up(setup).err();
    let log = if lab.abilities().contains(Abilities::LOGS) {
        Some(lab.with_log(LogLevel::Debug, &mut bring_up))
    } else {
        bring_up();
        None
    };
    let remains = match failure {
        Some(SetupFailure::Refused {
            component,
            status: found,
            remains,
        }) if found == status && component.contains(by) => remains,
        Some(other) => return Err(format!("{by} should refuse with {status}, not: {other}")),
        None => return Err(format!("{by} should refuse with {status}, the client came up")),
    };
    // The components before the one that refused have come up.
    let offers_mmis = by == COMMUNICATOR;
    ensure_eq!(
        remains,
        Remains {
            offers_mmis,
            ..Remains::default()
        }
    );
    if let Some(log) = log {
        ensure!(
            log.contains(because),
            "the log does not say {because:?}, but: {log}"
        );
    }
    Ok(())
}

/// A part of the name of every component that carries messages.
const COMMUNICATOR: &str = "Communicator";

/// Fails unless neither buffer nor mailbox holds anything of a message.
pub(crate) fn ensure_clean(client: &Client, buffer: u8) -> Seen {
    let region = client.region(buffer);
    let first = region.iter().position(|byte| *byte != 0);
    ensure!(
        first.is_none(),
        "byte {first:?} of comm buffer {buffer} is not zero"
    );
    let pending = client.mailbox(buffer).is_some_and(|mailbox| mailbox.is_pending());
    ensure!(
        !pending,
        "the mailbox of comm buffer {buffer} still announces a request"
    );
    Ok(())
}

/// Bytes that differ from each other and from zero.
pub(crate) fn pattern(len: usize) -> Vec<u8> {
    (1..=251).cycle().take(len).collect()
}
