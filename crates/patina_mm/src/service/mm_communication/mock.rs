//! A mock of the service, for tests of components.

use super::{CallOptions, CallTag, MmCommunication, ResponseReader, Status};
use alloc::collections::BTreeMap;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::RefCell;
use core::fmt;
use core::ops::{Deref, DerefMut};
use core::sync::atomic::{AtomicU64, Ordering};
use patina::Guid;

mockall::mock! {
    /// The calls that a [`MockMmCommunication`] expects.
    pub Calls {
        pub fn communicate_into<'a>(
            &self,
            id: u8,
            message: &[u8],
            recipient: Guid<'a>,
            out: &mut [u8],
        ) -> Result<usize, Status>;
        pub fn communicate_with<'a>(
            &self,
            id: u8,
            message: &[u8],
            recipient: Guid<'a>,
            options: CallOptions,
        ) -> Result<Vec<u8>, Status>;
        pub fn message_capacity(&self, id: u8, options: CallOptions) -> Result<usize, Status>;
        pub fn confirms(&self, id: u8) -> bool;
        pub fn after_calls(&self, call: Rc<dyn Fn()>) -> Result<(), Status>;
    }
    impl MmCommunication for Calls {
        fn communicate<'a>(&self, id: u8, data_buffer: &[u8], recipient: Guid<'a>) -> Result<Vec<u8>, Status>;
    }
}

/// A [`MmCommunication`] that expects calls of `communicate`. The provided methods are the trait's:
/// they call `communicate`, unless a test expects calls of the method itself. Callbacks that
/// [`MmCommunication::after_calls`] registers run after each call, as with the real service.
///
/// ```
/// use patina_mm::component::communicator::{CallOptions, Status};
/// use patina_mm::service::{MmCommunication, MockMmCommunication};
///
/// let mut mm = MockMmCommunication::new();
/// mm.expect_message_capacity().returning(|_id, _options| Ok(8));
/// mm.expect_communicate().returning(|_id, message, _recipient| Ok(message.to_vec()));
/// assert_eq!(mm.message_capacity(0, CallOptions::new()), Ok(8));
/// ```
pub struct MockMmCommunication {
    calls: MockCalls,
    /// The provided methods of which the test expects calls.
    expected: Expected,
    number: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Expected {
    communicate_into: bool,
    communicate_with: bool,
    message_capacity: bool,
    confirms: bool,
    after_calls: bool,
}

/// The trait's provided methods over [`MockMmCommunication::communicate`].
struct Provided<'a>(&'a MockMmCommunication);

impl MmCommunication for Provided<'_> {
    fn communicate<'a>(&self, id: u8, data_buffer: &[u8], recipient: Guid<'a>) -> Result<Vec<u8>, Status> {
        self.0.communicate(id, data_buffer, recipient)
    }
}

/// An `expect_` method for each provided one.
macro_rules! expect {
    ($($expect:ident $method:ident $module:ident,)*) => {
        $(
            /// Expects calls of the method of this name, which then do not arrive at `communicate`.
            pub fn $expect(&mut self) -> &mut __mock_MockCalls::$module::Expectation {
                self.expected.$method = true;
                self.calls.$expect()
            }
        )*
    };
}

/// The callbacks of one mock. They are not in the mock, because tests may send that to another
/// thread.
#[derive(Default)]
struct AfterCalls {
    callbacks: Vec<Rc<dyn Fn()>>,
    are_running: bool,
}

std::thread_local! {
    static AFTER_CALLS: RefCell<BTreeMap<u64, AfterCalls>> = const { RefCell::new(BTreeMap::new()) };
}

impl MockMmCommunication {
    /// Makes a mock that expects no call yet.
    #[must_use]
    pub fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self {
            calls: MockCalls::new(),
            expected: Expected::default(),
            number: NEXT.fetch_add(1, Ordering::Relaxed),
        }
    }

    expect! {
        expect_communicate_into communicate_into __communicate_into,
        expect_message_capacity message_capacity __message_capacity,
        expect_confirms confirms __confirms,
        expect_after_calls after_calls __after_calls,
    }

    /// Expects calls of [`MmCommunication::communicate_with`], which then do not arrive at
    /// `communicate`. What the expectation returns is the response that is lent to the caller's
    /// closure.
    pub fn expect_communicate_with(&mut self) -> &mut __mock_MockCalls::__communicate_with::Expectation {
        self.expected.communicate_with = true;
        self.calls.expect_communicate_with()
    }

    /// Runs the callbacks that wait for the end of a call, unless the call was rejected.
    fn ended<T>(&self, result: Result<T, Status>) -> Result<T, Status> {
        if !matches!(result, Err(Status::Busy)) {
            self.call_has_ended();
        }
        result
    }

    fn call_has_ended(&self) {
        let start = |all: &mut BTreeMap<_, AfterCalls>| {
            let of_this = all.get_mut(&self.number)?;
            // Calls that the callbacks make do not run them again.
            let callbacks = (!of_this.are_running).then(|| of_this.callbacks.clone())?;
            of_this.are_running = true;
            Some(callbacks)
        };
        if let Some(callbacks) = AFTER_CALLS.with_borrow_mut(start) {
            callbacks.iter().for_each(|callback| callback());
            AFTER_CALLS.with_borrow_mut(|all| {
                if let Some(of_this) = all.get_mut(&self.number) {
                    of_this.are_running = false;
                }
            });
        }
    }
}

impl MmCommunication for MockMmCommunication {
    fn communicate<'a>(&self, id: u8, data_buffer: &[u8], recipient: Guid<'a>) -> Result<Vec<u8>, Status> {
        self.ended(self.calls.communicate(id, data_buffer, recipient))
    }

    fn communicate_into(
        &self,
        id: u8,
        message: &[u8],
        recipient: Guid<'_>,
        out: &mut [u8],
    ) -> Result<usize, Status> {
        match self.expected.communicate_into {
            true => self.ended(self.calls.communicate_into(id, message, recipient, out)),
            false => Provided(self).communicate_into(id, message, recipient, out),
        }
    }

    fn communicate_with(
        &self,
        id: u8,
        message: &[u8],
        recipient: Guid<'_>,
        options: CallOptions,
        take: &mut dyn FnMut(&mut ResponseReader<'_>),
    ) -> Result<(), Status> {
        if !self.expected.communicate_with {
            return Provided(self).communicate_with(id, message, recipient, options, take);
        }
        let response = self.calls.communicate_with(id, message, recipient, options);
        self.ended(response.map(|response| {
            take(&mut ResponseReader::copied(&response, &CallTag::of_buffer(id)));
        }))
    }

    fn message_capacity(&self, id: u8, options: CallOptions) -> Result<usize, Status> {
        match self.expected.message_capacity {
            true => self.calls.message_capacity(id, options),
            false => Provided(self).message_capacity(id, options),
        }
    }

    fn confirms(&self, id: u8) -> bool {
        match self.expected.confirms {
            true => self.calls.confirms(id),
            false => Provided(self).confirms(id),
        }
    }

    fn after_calls(&self, callback: Rc<dyn Fn()>) -> Result<(), Status> {
        if self.expected.after_calls {
            return self.calls.after_calls(callback);
        }
        AFTER_CALLS.with_borrow_mut(|all| all.entry(self.number).or_default().callbacks.push(callback));
        Ok(())
    }
}

/// For `expect_communicate` and `checkpoint`.
impl Deref for MockMmCommunication {
    type Target = MockCalls;

    fn deref(&self) -> &MockCalls {
        &self.calls
    }
}

impl DerefMut for MockMmCommunication {
    fn deref_mut(&mut self) -> &mut MockCalls {
        &mut self.calls
    }
}

impl Drop for MockMmCommunication {
    fn drop(&mut self) {
        // Fails only while the thread ends, which drops the callbacks itself.
        let _ = AFTER_CALLS.try_with(|all| all.borrow_mut().remove(&self.number));
    }
}

impl Default for MockMmCommunication {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for MockMmCommunication {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MockMmCommunication").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::cell::Cell;

    const RECIPIENT: patina::BinaryGuid =
        patina::BinaryGuid::from_string("0b9e2f4c-62d9-4a8e-9d57-3f5b5a0d6c11");

    #[test]
    fn callbacks_run_after_each_call_that_was_not_rejected() {
        let mut mock = MockMmCommunication::new();
        mock.expect_communicate().returning(|id, _, _| {
            if id == 7 {
                Err(Status::Busy)
            } else {
                Ok(Vec::new())
            }
        });
        let mock: Rc<dyn MmCommunication> = Rc::new(mock);
        let (ends, inner) = (Rc::new(Cell::new(0)), Rc::downgrade(&mock));
        let count = Rc::clone(&ends);
        let callback = move || {
            count.set(count.get() + 1);
            // It may send, and does not run again for that.
            let sent = inner.upgrade().unwrap().communicate(1, b"x", RECIPIENT.as_guid());
            assert_eq!(sent, Ok(Vec::new()));
        };
        mock.after_calls(Rc::new(callback)).unwrap();
        assert_eq!(ends.get(), 0);
        for (id, expected) in [(0, 1), (7, 1), (0, 2)] {
            let _ = mock.communicate(id, b"x", RECIPIENT.as_guid());
            assert_eq!(ends.get(), expected);
        }
        // Provided methods call `communicate`.
        assert_eq!(
            mock.communicate_into(0, b"x", RECIPIENT.as_guid(), &mut []),
            Ok(0)
        );
        assert_eq!(ends.get(), 3);
    }

    #[test]
    fn dropped_mock_drops_its_callbacks() {
        let mock = MockMmCommunication::new();
        let kept = Rc::new(());
        let callback = Rc::clone(&kept);
        mock.after_calls(Rc::new(move || drop(Rc::clone(&callback))))
            .unwrap();
        assert_eq!(Rc::strong_count(&kept), 2);
        drop(mock);
        assert_eq!(Rc::strong_count(&kept), 1);
    }
}
