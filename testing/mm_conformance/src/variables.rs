//! Requests to the variable service's handler in MM.

use crate::report::{NotOk, ensure, equal, failed};
use alloc::vec;
use alloc::vec::Vec;
use core::fmt;
use mm_wire::EfiStatus;
use mm_wire::message::variable::{AccessVariable, FunctionHeader, NextName, PayloadSize, function};
use patina::standard::efi;
use patina::uefi::runtime_services::RuntimeServices;
use patina::{Char16Str, Char16String, string::StringError};
use thiserror::Error;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The payload size of Debian's OVMF, measured.
pub const OVMF_PAYLOAD_SIZE: u64 = 262_132;

/// Room for a name in a request for the next one, in bytes. OVMF's longest has some 60.
const NAME_ROOM: usize = 1024;
/// Room for a variable's data in a request, in bytes.
const DATA_ROOM: usize = 1024;

/// A variable's vendor and name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VariableId {
    /// Its vendor.
    pub vendor: efi::Guid,
    /// Its name.
    pub name: Char16String,
}

impl VariableId {
    /// The name before the first variable.
    #[must_use]
    pub fn before_the_first() -> Self {
        Self {
            vendor: efi::Guid::from_bytes(&[0; 16]),
            name: Char16Str::EMPTY.into(),
        }
    }
}

/// Why a request has no response.
#[derive(Debug, Error)]
pub enum VariableError<E: fmt::Display> {
    /// The message was not sent, or has no response.
    #[error("{0}")]
    Exchange(E),
    /// The response is too short for its function.
    #[error("the response has {len} bytes, {needed} were expected")]
    Short {
        /// Bytes of the response.
        len: usize,
        /// Bytes of the fields that should have been read.
        needed: usize,
    },
    /// The variable service returned an error.
    #[error("the variable service returned {0}")]
    Service(EfiStatus),
    /// The response does not contain a valid name.
    #[error("the response has no name: {0:?}")]
    Name(StringError),
}

/// The handler, behind a function that carries a message there and its response back.
#[derive(Clone, Copy, Debug)]
pub struct VariableService<F>(pub F);

impl<E: fmt::Display, F: Fn(&[u8]) -> Result<Vec<u8>, E>> VariableService<F> {
    /// The largest payload that the handler takes, in bytes behind the function header.
    ///
    /// # Errors
    ///
    /// [`VariableError`].
    pub fn payload_size(&self) -> Result<u64, VariableError<E>> {
        let response = self.call(function::GET_PAYLOAD_SIZE, PayloadSize::default().as_bytes())?;
        let (payload, _) = split::<PayloadSize, E>(&response)?;
        Ok(payload.size.get())
    }

    /// Calls a function that takes and returns nothing.
    ///
    /// # Errors
    ///
    /// [`VariableError`].
    pub fn bare_call(&self, function: u64) -> Result<(), VariableError<E>> {
        self.call(function, &[]).map(|_| ())
    }

    /// A variable's data and attributes.
    ///
    /// # Errors
    ///
    /// [`VariableError`].
    pub fn get(&self, variable: &VariableId) -> Result<(Vec<u8>, u32), VariableError<E>> {
        let name = variable.name.as_units_with_nul().as_bytes();
        let access = AccessVariable {
            vendor: *variable.vendor.as_bytes(),
            data_size: (DATA_ROOM as u64).into(),
            name_size: (name.len() as u64).into(),
            attributes: 0.into(),
        };
        let request = [access.as_bytes(), name, &[0; DATA_ROOM]].concat();
        let response = self.call(function::GET_VARIABLE, &request)?;
        let (access, rest) = split::<AccessVariable, E>(&response)?;
        let data = rest.get(name.len()..).unwrap_or_default();
        let len = usize::try_from(access.data_size.get()).unwrap_or(usize::MAX);
        let data = data.get(..len).ok_or(VariableError::Short {
            len: data.len(),
            needed: len,
        })?;
        Ok((data.to_vec(), access.attributes.get()))
    }

    /// The variable that follows `variable`; `None` behind the last one.
    ///
    /// # Errors
    ///
    /// [`VariableError`].
    pub fn next(&self, variable: &VariableId) -> Result<Option<VariableId>, VariableError<E>> {
        let mut name = [0; NAME_ROOM];
        let current = variable.name.as_units_with_nul().as_bytes();
        name.get_mut(..current.len())
            .ok_or(VariableError::Service(EfiStatus::BUFFER_TOO_SMALL))?
            .copy_from_slice(current);
        let next = NextName {
            vendor: *variable.vendor.as_bytes(),
            name_size: (NAME_ROOM as u64).into(),
        };
        let request = [next.as_bytes(), &name].concat();
        let response = match self.call(function::GET_NEXT_VARIABLE_NAME, &request) {
            Err(VariableError::Service(EfiStatus::NOT_FOUND)) => return Ok(None),
            response => response?,
        };
        let (next, rest) = split::<NextName, E>(&response)?;
        let name = Char16String::from_le_bytes_until_nul(rest).map_err(VariableError::Name)?;
        Ok(Some(VariableId {
            vendor: efi::Guid::from_bytes(&next.vendor),
            name,
        }))
    }

    /// Writes a variable of this vendor with runtime services, twice, and deletes it again. The
    /// handler must report each change.
    ///
    /// # Errors
    ///
    /// [`NotOk::Failed`] with what it says instead.
    pub fn follow(&self, runtime: &impl RuntimeServices, vendor: efi::Guid) -> Result<(), NotOk> {
        let id = VariableId {
            vendor,
            name: "MmTest".try_into().map_err(failed)?,
        };
        let set = |attributes, data: &Vec<u8>| {
            runtime
                .set_variable(&id.name, &id.vendor, attributes, data)
                .map_err(failed)
        };
        for data in [vec![0x5a_u8; 1], (0..=255).collect()] {
            set(efi::VARIABLE_BOOTSERVICE_ACCESS, &data)?;
            equal(self.get(&id)?, (data, efi::VARIABLE_BOOTSERVICE_ACCESS))?;
        }
        set(0, &Vec::new())?;
        match self.get(&id) {
            Err(VariableError::Service(EfiStatus::NOT_FOUND)) => Ok(()),
            Err(error) => Err(error.into()),
            Ok(found) => Err(failed(found)),
        }
    }

    /// Compares MM's list of variables with that of `next`, which returns the variable that follows a given one.
    ///
    /// # Errors
    ///
    /// [`NotOk::Failed`] with the first difference, or if there are not more than ten variables.
    pub fn lists_the_same<N: fmt::Display>(
        &self,
        next: impl Fn(&Char16Str, &efi::Guid) -> Result<Option<(Char16String, efi::Guid)>, N>,
    ) -> Result<(), NotOk> {
        let mut current = VariableId::before_the_first();
        let mut count = 0_u32;
        loop {
            let here = next(&current.name, &current.vendor)?;
            let there = self.next(&current)?;
            equal(&there, &here.map(|(name, vendor)| VariableId { vendor, name }))?;
            let Some(next) = there else { break };
            current = next;
            count = count.saturating_add(1);
        }
        log::info!("{count} variables");
        ensure(count > 10, format_args!("only {count} variables"))
    }

    /// Calls a function; returns what follows the function header of the response.
    fn call(&self, function: u64, payload: &[u8]) -> Result<Vec<u8>, VariableError<E>> {
        let request = [FunctionHeader::new(function).as_bytes(), payload].concat();
        let response = (self.0)(&request).map_err(VariableError::Exchange)?;
        let (header, rest) = split::<FunctionHeader, E>(&response)?;
        match EfiStatus(header.return_status.get()) {
            EfiStatus::SUCCESS => Ok(rest.to_vec()),
            status => Err(VariableError::Service(status)),
        }
    }
}

/// Takes the fields `T` off the front of a response.
fn split<T: FromBytes + KnownLayout + Immutable, E: fmt::Display>(
    response: &[u8],
) -> Result<(T, &[u8]), VariableError<E>> {
    T::read_from_prefix(response).map_err(|rest| VariableError::Short {
        len: rest.into_src().len(),
        needed: size_of::<T>(),
    })
}
