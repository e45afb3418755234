//! The MM core, its handlers and its comm buffers.

use crate::fault;
use crate::hardware::{self, Exclusive, Outside, Serial};
use core::cell::Cell;
use core::fmt::Write;
use mm_core::handlers::{Echo, Supervisor, VariableStore};
use mm_core::{CommBuffer, MmCore, Mmi, Request, SetupError, setup};
use mm_wire::message::{supervisor, variable};
use mm_wire::{AddressRange, EfiStatus};
use q35_mm::control::{self, StateOfMm};
use q35_mm::handoff::{self, State};
use q35_mm::layout::{SCRATCH_LEN, SMRAM, reaches};
use zerocopy::IntoBytes;

/// Bytes of the variable store, and of one variable's name and data.
const STORE_LEN: usize = if cfg!(feature = "conformance") {
    0x1800
} else {
    0x5000
};
const MAX_VARIABLE_LEN: usize = if cfg!(feature = "conformance") {
    0x800
} else {
    0x2000
};

static STORE: Exclusive<[u8; STORE_LEN]> = Exclusive::new([0; STORE_LEN]);
static MM: Exclusive<Mm> = Exclusive::new(Mm::new());

/// MM's state.
struct Mm {
    /// `None` before the hand-off.
    variables: Option<VariableStore<'static>>,
    buffers: Buffers<{ handoff::MAX_BUFFERS }>,
    /// Where a message is while it is being handled.
    scratch: [u8; SCRATCH_LEN],
    smis: u64,
    root: Cell<Root>,
    #[cfg(feature = "conformance")]
    suite: crate::suite::Suite,
}

/// What the root handler saw.
#[derive(Clone, Copy)]
struct Root {
    calls: u64,
    last: Mmi,
}

/// Up to `N` comm buffers.
pub(crate) struct Buffers<const N: usize> {
    entries: [CommBuffer; N],
    count: usize,
}

impl<const N: usize> Buffers<N> {
    /// Fills the entries that are not used.
    const NONE: CommBuffer = CommBuffer {
        region: SMRAM,
        mailbox: None,
    };

    pub(crate) const fn new() -> Self {
        Self {
            entries: [Self::NONE; N],
            count: 0,
        }
    }

    /// Collects buffers; `None` if they are more than `N`.
    pub(crate) fn collect(buffers: impl Iterator<Item = CommBuffer>) -> Option<Self> {
        let mut collected = Self::new();
        for buffer in buffers {
            *collected.entries.get_mut(collected.count)? = buffer;
            collected.count = collected.count.saturating_add(1);
        }
        Some(collected)
    }

    /// The buffers without those for which `is_other` is true.
    #[cfg(feature = "conformance")]
    fn without(&self, is_other: impl Fn(&CommBuffer) -> bool) -> Self {
        let kept = self.as_slice().iter().filter(|buffer| !is_other(buffer));
        // Never more than `N`.
        Self::collect(kept.copied()).unwrap_or(Self::new())
    }

    pub(crate) fn as_slice(&self) -> &[CommBuffer] {
        self.entries.get(..self.count).unwrap_or_default()
    }
}

/// Serves an SMI.
pub(crate) fn serve() {
    let mmi = hardware::mmi();
    if fault::has_stopped() {
        fault::refuse_requests();
        return;
    }
    // SMIs do not nest, and what a fault left taken was seen above.
    let _ = MM.with(|mm| {
        mm.smis = mm.smis.saturating_add(1);
        if mm.variables.is_some() {
            mm.enter(mmi);
        } else {
            mm.start();
        }
    });
}

impl Mm {
    const fn new() -> Self {
        Self {
            variables: None,
            buffers: Buffers::new(),
            scratch: [0; SCRATCH_LEN],
            smis: 0,
            root: Cell::new(Root {
                calls: 0,
                last: Mmi { command: 0, data: 0 },
            }),
            #[cfg(feature = "conformance")]
            suite: crate::suite::Suite::new(),
        }
    }

    /// Takes over the hand-off at the first SMI, while SMRAM is still open.
    fn start(&mut self) {
        let state = match self.take_over() {
            Some(()) => State::Ready,
            None => State::Refused,
        };
        hardware::respond_to_hand_off(state);
    }

    fn take_over(&mut self) -> Option<()> {
        let buffers = Buffers::collect(hardware::hand_off().comm_buffers()?)?;
        if let Err(unfit) = check(buffers.as_slice()) {
            // The launcher learns it too, but not why.
            let _ = writeln!(Serial, "MM refused the hand-off: {unfit}");
            return None;
        }
        self.variables = Some(VariableStore::new(STORE.take()?, MAX_VARIABLE_LEN));
        self.buffers = buffers;
        self.remember_mailboxes();
        Some(())
    }

    fn remember_mailboxes(&self) {
        let all = self.buffers.as_slice().iter();
        #[cfg(feature = "conformance")]
        let all = all.chain(self.suite.buffers());
        fault::remember(all.filter_map(|buffer| buffer.mailbox));
    }

    fn enter(&mut self, mmi: Mmi) {
        let Some(variables) = &mut self.variables else {
            return;
        };
        let served = &self.buffers;
        #[cfg(feature = "conformance")]
        let served = &served.without(|buffer| self.suite.has(buffer));
        // Each SMI checks them again; `take_over` would have refused them.
        let Ok(mut core) = MmCore::new(&[SMRAM], served.as_slice(), &mut self.scratch) else {
            return;
        };
        let (smis, root) = (self.smis, &self.root);
        let mut supervisor = Supervisor {
            version: 1,
            patch_level: 0,
        };
        #[cfg(feature = "conformance")]
        let mut test = crate::suite::Control::new(&self.suite, self.buffers.as_slice());
        let mut control = |request: &mut Request<'_>| match control::split(request.message()) {
            Some((control::STATE, _)) => response_state(request, smis, root.get()),
            #[cfg(feature = "conformance")]
            Some((function, _)) => test.handle(function, request),
            _ => Err(EfiStatus::UNSUPPORTED),
        };
        let mut count = |mmi| {
            let calls = root.get().calls.saturating_add(1);
            root.set(Root { calls, last: mmi });
        };
        core.enter(
            &mut Outside,
            mmi,
            &mut [
                (control::GUID, &mut control),
                (Echo::GUID, &mut Echo),
                (supervisor::GUID, &mut supervisor),
                (variable::GUID, variables),
            ],
            &mut [&mut count],
        );
        #[cfg(feature = "conformance")]
        {
            if let Some(buffers) = test.into_new_buffers() {
                self.suite.set_buffers(buffers);
                self.remember_mailboxes();
            }
            if let Some(variables) = &mut self.variables {
                self.suite.enter(&mut self.scratch, variables, mmi);
            }
        }
    }
}

fn response_state(request: &mut Request<'_>, smis: u64, root: Root) -> Result<(), EfiStatus> {
    let state = StateOfMm {
        smis: smis.into(),
        root_calls: root.calls.into(),
        last_command: u64::from(root.last.command).into(),
        last_data: u64::from(root.last.data).into(),
        constant_hash: hardware::constant_hash().into(),
    };
    respond(request, state.as_bytes())
}

pub(crate) fn respond(request: &mut Request<'_>, response: &[u8]) -> Result<(), EfiStatus> {
    request
        .respond(response)
        .map_err(|_no_room| EfiStatus::BUFFER_TOO_SMALL)
}

/// Why comm buffers cannot be served.
pub(crate) enum Unfit {
    /// The error of every MM core.
    Setup(SetupError),
    /// They are in memory that this MM core cannot access.
    OutOfReach(AddressRange),
}

impl core::fmt::Display for Unfit {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Setup(error) => error.fmt(f),
            Self::OutOfReach(range) => write!(f, "platform: MM has no access to {range}"),
        }
    }
}

/// Checks that comm buffers can be served beside each other.
pub(crate) fn check(buffers: &[CommBuffer]) -> Result<(), Unfit> {
    setup::check(&[SMRAM], buffers, SCRATCH_LEN).map_err(Unfit::Setup)?;
    let mailbox = |address| AddressRange::new(address, mm_wire::mailbox::MAILBOX_LEN as u64);
    let ranges = buffers
        .iter()
        .flat_map(|buffer| core::iter::once(buffer.region).chain(buffer.mailbox.and_then(mailbox)));
    for range in ranges {
        if !reaches(range) {
            return Err(Unfit::OutOfReach(range));
        }
    }
    Ok(())
}
