//! The connection to MM in the secure world.

use super::conduit::Conduit;
use super::error::SmcError;
use super::ffa::discovery::RxTxMemory;
use super::ffa::{self, NamedPartition};
use super::in_call::InCall;
use super::limit::Limits;
use super::patience::{Patience, TimeLimit};
use super::sync::AtomicBool;
use super::{PsciConduit, spm_mm};
use core::fmt;
use core::marker::PhantomData;
use core::sync::atomic::{Ordering, fence};

/// Which interface to use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Interface {
    /// FF-A if FFA_VERSION says 1.2 or later, else SPM_MM.
    #[default]
    Discover,
    /// FF-A or nothing.
    Ffa,
}

/// What a platform says about its secure world.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setup {
    /// How PSCI is called.
    pub psci: PsciConduit,
    /// Which interface to use.
    pub interface: Interface,
    /// How long to wait on a processor without a counter.
    pub patience: Patience,
    /// How long to wait on a processor with a counter. `None` to count calls there, too.
    pub time_limit: Option<TimeLimit>,
    /// The partition that offers MM over FF-A; `None` to look for it.
    pub partition: Option<NamedPartition>,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            psci: PsciConduit::default(),
            interface: Interface::default(),
            patience: Patience::default(),
            time_limit: Some(TimeLimit::default()),
            partition: None,
        }
    }
}

/// An MM environment that is entered by secure monitor calls.
pub trait SecureMm: fmt::Debug + fmt::Display {
    /// Makes MM process the request in the comm buffer at a physical address. When it returns, MM
    /// has responded there or has said why not.
    ///
    /// Success does not mean that a handler ran: for a GUID without a handler StandaloneMm returns
    /// success, too, and leaves the request as it was.
    ///
    /// # Errors
    ///
    /// [`SmcError`] with what the secure world said; [`SmcError::Busy`], with no call made, inside
    /// another call; [`SmcError::EarlierUnfinished`] or [`SmcError::EarlierEnded`], with the
    /// request not sent, after [`SmcError::Timeout`] in the middle of a request.
    fn communicate(&self, buffer: u64) -> Result<(), SmcError>;
}

/// The interface that was found, and how to talk to it.
#[derive(Debug)]
enum Found {
    SpmMm(spm_mm::Version),
    Ffa(ffa::Partition),
}

/// MM behind the conduit `C`. Transactions are serial: the MM partition has one processor.
pub struct Connection<C> {
    found: Found,
    pub(super) limits: Limits,
    in_call: InCall,
    conduit: PhantomData<fn() -> C>,
}

/// Finds MM in the secure world.
///
/// `rx_tx` is asked for memory if an FF-A without PARTITION_INFO_GET_REGS makes it necessary. A
/// closure that returns two pages of shared memory, mapped one to one, will do. They belong to the
/// secure world until it has unmapped them, which the call does before it returns; if that fails
/// they must never be used for anything else.
///
/// # Errors
///
/// [`SmcError::NoConduit`] if no call can be made. Every other [`SmcError`], except those of
/// requests: `Busy`, `SpmMm`, `Refused`, `EarlierUnfinished`, `EarlierEnded`.
pub fn connect<C: Conduit>(setup: Setup, rx_tx: &mut dyn RxTxMemory) -> Result<Connection<C>, SmcError> {
    if !C::el3_is_implemented() && setup.psci != PsciConduit::Smc {
        return Err(SmcError::NoConduit);
    }
    let limits = Limits {
        patience: setup.patience,
        time: setup.time_limit,
    };
    let found = match (ffa::discovery::version::<C>(), setup.interface) {
        (Ok(()), _) => Found::Ffa(ffa::discovery::find_mm::<C>(setup.partition, limits, rx_tx)?),
        (Err(ffa_version), Interface::Ffa) => return Err(SmcError::NoFfa(ffa_version)),
        (Err(ffa_version), Interface::Discover) => Found::SpmMm(spm_mm::version::<C>(ffa_version)?),
    };
    Ok(Connection {
        found,
        limits,
        in_call: InCall::of(AtomicBool::new(false)),
        conduit: PhantomData,
    })
}

impl<C: Conduit> SecureMm for Connection<C> {
    fn communicate(&self, buffer: u64) -> Result<(), SmcError> {
        let _call = self.in_call.begin().ok_or(SmcError::Busy)?;
        // The request must be in shared memory before MM reads it.
        fence(Ordering::SeqCst);
        let result = match &self.found {
            Found::SpmMm(_) => spm_mm::communicate::<C>(buffer),
            Found::Ffa(partition) => partition.communicate::<C>(buffer, self.limits),
        };
        fence(Ordering::SeqCst);
        result
    }
}

impl<C> fmt::Debug for Connection<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.found.fmt(f)
    }
}

/// What was found, for a log.
impl<C> fmt::Display for Connection<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.found {
            Found::SpmMm(version) => write!(f, "SPM_MM {version}"),
            Found::Ffa(partition) => write!(f, "FF-A, {partition}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::smc::OtherVersion;
    use crate::smc::SpmMmCode;
    use crate::smc::conduit::low;
    use crate::smc::world::{self, FakeConduit, Seen, World};
    use mm_wire::EfiStatus;
    use std::string::ToString;
    use std::vec;

    const VERSION: u32 = 0x8400_0063;
    const MM_VERSION: u32 = 0x8400_0040;

    fn connect_to(world: World, setup: Setup) -> (Result<Connection<FakeConduit>, SmcError>, Seen) {
        world::with(world, || connect::<FakeConduit>(setup, &mut world::two_pages))
    }

    #[test]
    fn without_el3_no_call_is_made_unless_psci_is_called_by_smc() {
        for (psci, calls) in [
            (PsciConduit::Unknown, 0),
            (PsciConduit::Hvc, 0),
            (PsciConduit::Smc, 5),
        ] {
            let world = World {
                el3: false,
                ..World::default()
            };
            let setup = Setup {
                psci,
                ..Setup::default()
            };
            let (result, seen) = connect_to(world, setup);
            let expected = match calls {
                0 => SmcError::NoConduit,
                _ => SmcError::NoMm {
                    ffa_version: OtherVersion::refused(u32::MAX),
                    mm_version: SpmMmCode(-1),
                },
            };
            assert_eq!(result.unwrap_err(), expected);
            assert_eq!(expected.status(), EfiStatus::UNSUPPORTED);
            assert_eq!(seen.calls.len(), calls, "{psci:?}");
        }
    }

    #[test]
    fn ffa_is_tried_first_then_spm_mm() {
        // FF-A is absent, too old, of another major version, or returns an error other than -1:
        // SPM_MM is used.
        for ffa_version in [u64::MAX, 0xffff_ffff, 0x1_0001, 0x2_0000, 0xffff_fffd] {
            let world = World {
                ffa_version,
                mm_version: 0x1_0000,
                ..World::default()
            };
            let (result, seen) = connect_to(world, Setup::default());
            assert_eq!(result.unwrap().to_string(), "SPM_MM 1.0");
            let mut asked = vec![0x1_0002];
            if low(ffa_version).cast_signed() < 0 {
                // 1.2 was refused, because another version is settled or FF-A is absent. These are
                // tried next.
                asked.extend([0x1_0003, 0x1_0001, 0x1_0000]);
            }
            let (mm_version, versions) = seen.calls.split_last().unwrap();
            assert_eq!(mm_version.0, MM_VERSION);
            assert!(versions.iter().all(|(function, _)| *function == VERSION));
            let found: vec::Vec<_> = versions.iter().map(|(_, arguments)| arguments[0]).collect();
            assert_eq!(found, asked);
        }
    }

    #[test]
    fn newer_version_that_was_settled_before_is_used() {
        let world = World {
            ffa_version: 0x1_0003,
            settled: Some(0x1_0003),
            mm_version: 0x1_0000,
            ..World::default()
        };
        let (result, seen) = connect_to(world, Setup::default());
        // Then discovery looks for the partition, which this world does not have.
        assert_eq!(result.unwrap_err(), SmcError::NoPartition);
        assert_eq!(seen.functions()[..3], [VERSION, VERSION, 0x8400_0069]);
    }

    #[test]
    fn older_version_that_was_settled_before_is_named() {
        // Hafnium returns its own version if asked for the settled one; TF-A returns the settled
        // one for any.
        for (settled, ffa_version, text) in [
            (
                Some(0x1_0001),
                0x1_0003,
                "NOT_SUPPORTED (-1) for 1.2, but 1.1 is accepted: an earlier caller has settled that version, or the \
                 firmware has no later one",
            ),
            (
                Some(0x1_0000),
                0x1_0003,
                "NOT_SUPPORTED (-1) for 1.2, but 1.0 is accepted: an earlier caller has settled that version, or the \
                 firmware has no later one",
            ),
            (None, 0x1_0001, "1.1"),
            (None, 0xffff_ffff, "NOT_SUPPORTED (-1)"),
            (None, 0xffff_fffd, "NO_MEMORY (-3)"),
        ] {
            for (interface, prefix, suffix) in [
                (
                    Interface::Discover,
                    "platform: the secure world offers neither FF-A 1.2 nor SPM_MM (FFA_VERSION: ",
                    "; MM_VERSION: NOT_SUPPORTED (-1))",
                ),
                (
                    Interface::Ffa,
                    "platform: the secure world does not offer FF-A 1.2 (FFA_VERSION: ",
                    ")",
                ),
            ] {
                let world = World {
                    ffa_version,
                    settled,
                    ..World::default()
                };
                let setup = Setup {
                    interface,
                    ..Setup::default()
                };
                let error = connect_to(world, setup).0.unwrap_err();
                assert_eq!(error.to_string(), std::format!("{prefix}{text}{suffix}"));
                assert_eq!(error.status(), EfiStatus::UNSUPPORTED);
            }
        }
    }

    #[test]
    fn platform_that_requires_ffa_does_not_get_spm_mm() {
        let world = World {
            mm_version: 0x1_0000,
            ..World::default()
        };
        let setup = Setup {
            interface: Interface::Ffa,
            ..Setup::default()
        };
        let (result, seen) = connect_to(world, setup);
        assert_eq!(
            result.unwrap_err(),
            SmcError::NoFfa(OtherVersion::refused(u32::MAX))
        );
        assert_eq!(seen.functions(), [VERSION; 4]);
    }

    #[test]
    fn ffa_without_an_mm_partition_does_not_fall_back() {
        let world = World {
            ffa_version: 0x1_0002,
            mm_version: 0x1_0000,
            ..World::default()
        };
        let (result, seen) = connect_to(world, Setup::default());
        assert_eq!(result.unwrap_err(), SmcError::NoPartition);
        assert!(!seen.functions().contains(&MM_VERSION));
    }

    #[test]
    fn re_entrant_call_is_busy_and_is_not_made() {
        use std::cell::Cell;
        use std::rc::Rc;
        let world = World {
            mm_version: 0x1_0000,
            ..World::default()
        };
        let (connection, _) = connect_to(world.clone(), Setup::default());
        let connection = Rc::new(connection.unwrap());
        let (inner, inside) = (Rc::new(Cell::new(None)), Rc::clone(&connection));
        let seen_inside = Rc::clone(&inner);
        let world = World {
            communicate: Rc::new(move |_| {
                seen_inside.set(Some(inside.communicate(0x2000)));
                world::answer(&[0])
            }),
            ..world
        };
        let (outer, seen) = world::with(world, || connection.communicate(0x1000));
        assert_eq!(outer, Ok(()));
        assert_eq!(inner.take(), Some(Err(SmcError::Busy)));
        assert_eq!(seen.calls.len(), 1);
        // Afterwards the next call is made.
        let (next, _) = world::with(World::default(), || connection.communicate(0x1000));
        assert_eq!(next, Err(SmcError::SpmMm(SpmMmCode(-1))));
    }
}
