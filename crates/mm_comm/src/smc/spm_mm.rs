//! SPM_MM: MM in a partition that two calls reach.
//!
//! | call | in | out |
//! |---|---|---|
//! | MM_VERSION `0x8400_0040` | – | w0: major in bits 30:16, minor in 15:0; negative: not there |
//! | MM_COMMUNICATE `0xC400_0041` | x1 = 0, x2 = physical address of the buffer, x3 = 0 | x0: [`SpmMmCode`] |

use super::codes::OtherVersion;
pub use super::codes::SpmMmCode;
use super::conduit::{call, low};
use super::{Call, SmcError};
use core::fmt;

/// MM_VERSION. It does not have a 64-bit form.
pub const MM_VERSION: u32 = 0x8400_0040;
/// MM_COMMUNICATE with a 64-bit address.
pub const MM_COMMUNICATE: u32 = 0xc400_0041;
/// MM_COMMUNICATE with a 32-bit address.
pub const MM_COMMUNICATE_32: u32 = 0x8400_0041;

const SUPPORTED_MAJOR: u16 = 1;

/// What MM_VERSION says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Version {
    major: u16,
    minor: u16,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// Asks for the version. `ffa_version` is why FF-A is not used.
pub(super) fn version<C: Call>(ffa_version: OtherVersion) -> Result<Version, SmcError> {
    let response = request::<C>(MM_VERSION, 0);
    if response < 0 {
        let mm_version = SpmMmCode(response);
        return Err(SmcError::NoMm {
            ffa_version,
            mm_version,
        });
    }
    let [a, b, c, d] = response.to_le_bytes();
    let (major, minor) = (u16::from_le_bytes([c, d]), u16::from_le_bytes([a, b]));
    if major == SUPPORTED_MAJOR {
        Ok(Version { major, minor })
    } else {
        Err(SmcError::Version { major, minor })
    }
}

/// Makes MM process the request at `buffer`.
pub(super) fn communicate<C: Call>(buffer: u64) -> Result<(), SmcError> {
    match request::<C>(MM_COMMUNICATE, buffer) {
        0 => Ok(()),
        code => Err(SmcError::SpmMm(SpmMmCode(code))),
    }
}

/// Makes a call with `x2` in its register, and returns the low 32 bits of the result as a signed
/// number.
fn request<C: Call>(function: u32, x2: u64) -> i32 {
    let mut registers = [0; 18];
    let [x0, _, argument, ..] = &mut registers;
    *x0 = function.into();
    *argument = x2;
    let [response, ..] = call::<C>(registers);
    low(response).cast_signed()
}

#[cfg(test)]
mod tests {
    use super::super::world::{self, FakeConduit, World};
    use super::*;
    use std::rc::Rc;

    const NO_FFA: OtherVersion = OtherVersion::refused(u32::MAX);

    fn no_mm(code: i32) -> SmcError {
        SmcError::NoMm {
            ffa_version: NO_FFA,
            mm_version: SpmMmCode(code),
        }
    }

    #[test]
    fn every_version_response_is_distinguished() {
        for (response, expected) in [
            (0x1_0000, Ok((1, 0))),
            (0x1_0007, Ok((1, 7))),
            // The upper half is not looked at.
            (0xdead_beef_0001_0000, Ok((1, 0))),
            (0, Err(SmcError::Version { major: 0, minor: 0 })),
            (0x2_0001, Err(SmcError::Version { major: 2, minor: 1 })),
            (
                0x7fff_ffff,
                Err(SmcError::Version {
                    major: 0x7fff,
                    minor: 0xffff,
                }),
            ),
            (0xffff_ffff, Err(no_mm(-1))),
            (u64::MAX, Err(no_mm(-1))),
            (0x8001_0000, Err(no_mm(-0x7fff_0000))),
        ] {
            let world = World {
                mm_version: response,
                ..World::default()
            };
            let (result, seen) = world::with(world, || version::<FakeConduit>(NO_FFA));
            assert_eq!(result.map(|Version { major, minor }| (major, minor)), expected);
            assert_eq!(seen.calls, [(MM_VERSION, [0; 17])]);
        }
    }

    /// The names and statuses of the codes are tested in `codes`.
    #[test]
    fn every_code_is_read_in_32_bits_as_in_64() {
        for code in [-1, -2, -3, -4, -5, -6, 1, i32::MIN] {
            let short = u64::from(code.cast_unsigned());
            let long = i64::from(code).cast_unsigned();
            for response in [short, long] {
                let world = World {
                    communicate: Rc::new(move |_| world::answer(&[response])),
                    ..World::default()
                };
                let (result, _) = world::with(world, || communicate::<FakeConduit>(0x6000_0000));
                let error = result.unwrap_err();
                let code = SpmMmCode(code);
                assert_eq!(error, SmcError::SpmMm(code));
                assert_eq!(error.status(), code.status());
                assert_eq!(std::format!("{error}"), std::format!("MM_COMMUNICATE: {code}"));
            }
        }
    }

    #[test]
    fn the_buffer_is_the_only_argument() {
        let world = World {
            communicate: Rc::new(|_| world::answer(&[0xffff_ffff_0000_0000])),
            ..World::default()
        };
        let (result, seen) = world::with(world, || communicate::<FakeConduit>(0x12_3456_7000));
        assert_eq!(result, Ok(()));
        let mut arguments = [0; 17];
        arguments[1] = 0x12_3456_7000;
        assert_eq!(seen.calls, [(MM_COMMUNICATE, arguments)]);
    }
}
