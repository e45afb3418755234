//! Serves the requests of drivers in C.
//!
//! The rules of a request are those of [`mm_comm::c_request`]: it is copied out before the
//! transaction, and the response copied in after it. Both copies go to memory that was set aside
//! when the protocols were installed: a call may come at `ExitBootServices`, when memory cannot be
//! allocated any more.

use crate::component::communicator::{Client, raise_to_notify, require_buffer};
use crate::config::HeaderFormat;
use crate::service::{CallOptions, MmCommunication, Status};
use alloc::collections::TryReserveError;
use alloc::vec::Vec;
use core::cell::RefCell;
use mm_comm::c_request::{Call, Driver, Given, Longest, NoResponse, Refused, Reply, Request};
use mm_wire::EfiStatus;
use patina::component::service::Service;
use patina::component::service::uefi_services::tpl::TplServices;
use patina::error::EfiError;
use patina::standard::efi;

/// The driver behind the installed interfaces.
pub(super) struct Bridge {
    mm: Service<dyn MmCommunication>,
    buffer: u8,
    /// Raises the TPL to `TPL_NOTIFY`.
    tpl: Option<Service<dyn TplServices>>,
    /// Borrowed while a call lasts.
    scratch: RefCell<Scratch>,
}

impl Bridge {
    pub(super) fn new(
        mm: Service<dyn MmCommunication>,
        buffer: u8,
        tpl: Option<Service<dyn TplServices>>,
    ) -> patina::error::Result<Self> {
        require_buffer(*mm, buffer, "the MM communication protocols")?;
        let longest = mm.message_capacity(buffer, V1).unwrap_or_else(|status| {
            log_line!(
                Warn,
                "mm_comm",
                "no memory is set aside for messages through comm buffer {buffer}: {status}"
            );
            0
        });
        let mut scratch = Scratch::default();
        scratch.make_room(longest).map_err(|error| {
            log_line!(
                Error,
                "mm_comm",
                "no {longest} bytes for messages of the MM communication protocols: {error}"
            );
            EfiError::OutOfResources
        })?;
        Ok(Self {
            mm,
            buffer,
            tpl,
            scratch: RefCell::new(scratch),
        })
    }

    /// Makes all calls through the buffer run at `TPL_NOTIFY`. This cannot be undone, so it comes
    /// after the protocols were installed.
    pub(super) fn run_at_notify(&self) {
        let buffer = self.buffer;
        match Client::of(*self.mm).zip(self.tpl) {
            Some((client, tpl)) => client.run_at_notify(buffer, tpl),
            None => log_line!(
                Warn,
                "mm_comm",
                "platform: a C driver that interrupts a call through comm buffer {buffer} will get Busy: there are no \
                 TplServices, or another MmCommunication than MmCommunicator"
            ),
        }
    }
}

/// Copies of a call's request and response.
#[derive(Default)]
struct Scratch {
    request: Vec<u8>,
    response: Vec<u8>,
}

impl Scratch {
    /// Makes room for a request and a response of this length each. Called between calls, when both
    /// are empty.
    fn make_room(&mut self, longest: usize) -> Result<(), TryReserveError> {
        self.request.try_reserve_exact(longest)?;
        self.response.try_reserve_exact(longest)
    }

    /// Wipes the bytes of both messages.
    fn wipe(&mut self) {
        for memory in [&mut self.request, &mut self.response] {
            memory.fill(0);
            memory.clear();
        }
    }
}

/// Makes `memory` hold `len` bytes; `false` if it has no room for them and cannot get it.
fn hold(memory: &mut Vec<u8>, len: usize) -> bool {
    memory.clear();
    let has_room = memory.try_reserve_exact(len).is_ok();
    if has_room {
        memory.resize(len, 0);
    }
    has_room
}

const V1: CallOptions = CallOptions::new().with_header(HeaderFormat::V1);

impl Driver for Bridge {
    fn serve(&self, call: Call<'_>) -> efi::Status {
        call.serve(
            true,
            |given| answer(self, given),
            |error| log_line!(Error, "mm_comm", "{error}"),
        )
    }

    fn this_is_null() {
        log_line!(Error, "mm_comm", "caller: the protocol's This is null");
    }
}

fn answer(bridge: &Bridge, given: &Given<'_>) -> Result<Reply, Refused> {
    let _raised = bridge.tpl.and_then(raise_to_notify);
    let Ok(mut scratch) = bridge.scratch.try_borrow_mut() else {
        return Ok(failed(bridge, Status::Busy));
    };
    let reply = send(bridge, given, &mut scratch);
    scratch.wipe();
    reply
}

/// The status that a driver in C gets.
fn to_c(status: Status) -> EfiStatus {
    EfiStatus::from_native(efi::Status::from(EfiError::from(status)).as_usize())
}

/// Logs a call that failed before it reached the communicator, which logs its own failures, and
/// replies to it.
fn failed(bridge: &Bridge, status: Status) -> Reply {
    log_line!(
        Error,
        "mm_comm",
        "a C driver's call through comm buffer {}: {status}",
        bridge.buffer
    );
    Reply::status(to_c(status))
}

/// Checks a request, sends its message, and writes the response into the caller's buffer.
fn send(bridge: &Bridge, given: &Given<'_>, scratch: &mut Scratch) -> Result<Reply, Refused> {
    let capacity = |format| {
        let options = CallOptions::new().with_header(format);
        bridge.mm.message_capacity(bridge.buffer, options)
    };
    let longest = match (capacity(HeaderFormat::V1), capacity(HeaderFormat::V3)) {
        (Ok(v1), Ok(v3)) => Longest { v1, v3 },
        (Err(status), _) | (_, Err(status)) => return Ok(failed(bridge, status)),
    };
    // If the comm buffer has grown, make room now: a later call may come when memory cannot be
    // allocated.
    if let Err(error) = scratch.make_room(longest.v1) {
        log_line!(
            Warn,
            "mm_comm",
            "no {} bytes for messages of the MM communication protocols: {error}",
            longest.v1
        );
    }
    let request = Request::check(given, longest)?;
    let Scratch {
        request: message,
        response,
    } = scratch;
    let needed = request.message_len();
    if !hold(message, needed) {
        return Ok(failed(bridge, Status::OutOfMemory { needed }));
    }
    request.copy_message(message)?;

    let header = request.header();
    let recipient = patina::Guid::from_bytes(&header.recipient().to_bytes());
    let options = CallOptions::new()
        .with_header(header.format())
        .with_message_size(header.message_size())
        .with_empty_message();
    let room = request.room();
    let mut taken = Ok(());
    let mut in_header = None;
    let sent = bridge
        .mm
        .communicate_with(bridge.buffer, message, recipient, options, &mut |reader| {
            let needed = reader.remaining();
            in_header = reader.in_header();
            taken = if needed > room {
                Err(Status::ResponseTooLong { needed, room })
            } else if hold(response, needed) {
                reader.read_rest(response).map(drop)
            } else {
                Err(Status::OutOfMemory { needed })
            };
        });
    let result = match sent.and(taken) {
        Ok(()) => Ok((response.as_slice(), in_header)),
        Err(Status::ResponseTooLong { needed, .. }) => Err(NoResponse::TooLong(needed)),
        Err(Status::InvalidDataBuffer) if header.message_size() == 0 => Err(NoResponse::Empty),
        Err(status) => Err(NoResponse::Status(to_c(status))),
    };
    request.reply(message, longest, result)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::service::Sealed;
    use alloc::boxed::Box;
    use alloc::rc::Rc;
    use alloc::vec;
    use core::any::Any;
    use core::cell::Cell;
    use mm_comm::SharedRegion;

    /// Responds to nothing; the size of its comm buffer changes.
    pub(in super::super) struct Growing {
        pub(in super::super) longest: Rc<Cell<usize>>,
        pub(in super::super) client: Rc<Client>,
    }

    impl MmCommunication for Growing {
        fn communicate<'a>(&self, _: u8, _: &[u8], _: patina::Guid<'a>) -> Result<Vec<u8>, Status> {
            Err(Status::NotProcessed)
        }

        fn message_capacity(&self, _: u8, _: CallOptions) -> Result<usize, Status> {
            Ok(self.longest.get())
        }

        fn internals(&self, _: Sealed) -> Option<&dyn Any> {
            Some(&*self.client)
        }
    }

    /// A bridge to an MM that fails with `status`, and what a driver in C gets for a message of `size` bytes in a v3
    /// transaction of 4.
    fn refused_by(status: Status, size: u64) -> (EfiStatus, Option<usize>, usize) {
        struct Refusing(Status);
        impl MmCommunication for Refusing {
            fn communicate<'a>(&self, _: u8, _: &[u8], _: patina::Guid<'a>) -> Result<Vec<u8>, Status> {
                unreachable!("the bridge passes options")
            }

            fn communicate_with(
                &self,
                _: u8,
                message: &[u8],
                _: patina::Guid<'_>,
                options: CallOptions,
                _: &mut dyn FnMut(&mut crate::service::ResponseReader<'_>),
            ) -> Result<(), Status> {
                assert_eq!(message, b"1234");
                assert_eq!(options.header, Some(HeaderFormat::V3));
                Err(self.0)
            }

            fn message_capacity(&self, _: u8, _: CallOptions) -> Result<usize, Status> {
                Ok(100)
            }
        }
        let mm: Box<dyn MmCommunication> = Box::new(Refusing(status));
        let bridge = Bridge::new(Service::mock(mm), 0, None).unwrap();
        let header = mm_wire::Header::new(HeaderFormat::V3, mm_wire::Guid::ZERO, 4).unwrap();
        let header = header.with_message_size(size).encode();
        let memory: &'static mut [u8] = Box::leak([header.as_ref(), b"1234"].concat().into_boxed_slice());
        let region = Cell::new(Some(SharedRegion::over_static(memory)));
        let whole = |len| {
            let copy = SharedRegion::over_static(Box::leak(vec![0; len].into_boxed_slice()));
            let from = region.take()?;
            let mut bytes = vec![0; len];
            assert!(from.read(0, &mut bytes) && copy.write(0, &bytes));
            region.set(Some(from));
            Some(copy)
        };
        let reply = answer(&bridge, &Given::new(Some(60), None, &whole)).unwrap();
        let scratch = bridge.scratch.borrow();
        (
            reply.status,
            reply.comm_size,
            scratch.request.len() + scratch.response.len(),
        )
    }

    #[test]
    fn message_without_bytes_that_mm_does_not_take_has_a_bad_size() {
        let invalid = Status::InvalidDataBuffer;
        let largest = Some(124);
        assert_eq!(refused_by(invalid, 0), (EfiStatus::BAD_BUFFER_SIZE, largest, 0));
        for size in [1, 4] {
            assert_eq!(refused_by(invalid, size), (EfiStatus::INVALID_PARAMETER, None, 0));
        }
        assert_eq!(
            refused_by(Status::SwMmiFailed, 0),
            (EfiStatus::DEVICE_ERROR, None, 0)
        );
    }

    #[test]
    fn first_call_through_a_longer_buffer_makes_room_for_all_of_it() {
        let longest = Rc::new(Cell::new(100));
        let mm: Box<dyn MmCommunication> = Box::new(Growing {
            longest: Rc::clone(&longest),
            client: Rc::default(),
        });
        let bridge = Bridge::new(Service::mock(mm), 0, None).unwrap();
        let room = || {
            let scratch = bridge.scratch.borrow();
            (scratch.request.capacity(), scratch.response.capacity())
        };
        assert_eq!(room(), (100, 100));
        longest.set(4000);
        // A header of 24 bytes that claims more than the buffer has.
        let memory =
            |len: usize| (len <= 24).then(|| SharedRegion::over_static(Box::leak(vec![1; len].into())));
        let given = Given::new(Some(25), None, &memory);
        let refused = answer(&bridge, &given).unwrap_err();
        assert_eq!(refused.reply.status, EfiStatus::BAD_BUFFER_SIZE);
        assert_eq!(room(), (4000, 4000));
    }
}
