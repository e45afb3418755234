//! Calls in the middle of other calls, at places that only this crate's tests can reach: log lines,
//! which take long on a slow serial port, and the executor.

use super::super::announced_move::Announcements;
use super::super::{CallOptions, MmCommunication, MmCommunicator, MmExecutor, ResponseReader, Status};
use crate::config::CommunicateBuffer;
use alloc::boxed::Box;
use alloc::rc::Rc;
use alloc::vec;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use core::pin::Pin;
use mm_wire::{EfiStatus, HeaderFormat, MailboxImage};
use patina::component::service::Service;
use patina::component::service::uefi_services::tpl::{Tpl, TplServices};
use patina_mm_test::tpl::{HostTpl, SharedTpl};
use std::string::ToString;
use std::thread_local;

const RECIPIENT: patina::BinaryGuid = patina::BinaryGuid::from_string("b3d6d2a1-5c64-4c06-9d3f-35c9a1f5c3de");

type Code = Box<dyn FnOnce()>;

thread_local! {
    /// Runs once, at the first log line with this text.
    static AT_LINE: RefCell<Option<(&'static str, Code)>> = const { RefCell::new(None) };
}

struct Lines;

impl log::Log for Lines {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let line = record.args().to_string();
        let code = AT_LINE.with_borrow_mut(|at| at.take_if(|(text, _)| line.contains(*text)));
        if let Some((_, code)) = code {
            code();
        }
    }

    fn flush(&self) {}
}

fn at_line(text: &'static str, code: impl FnOnce() + 'static) {
    // Fails if another test has set it.
    let _ = log::set_logger(&Lines);
    log::set_max_level(log::LevelFilter::Info);
    AT_LINE.set(Some((text, Box::new(code))));
}

/// Runs the test's code, then responds in the buffer and its mailbox.
#[derive(Default)]
struct Echo {
    meanwhile: Cell<Option<Code>>,
    /// The addresses of the requests.
    places: RefCell<Vec<*mut u8>>,
}

impl MmExecutor for Echo {
    fn execute_mm(&self, comm_buffer: &mut CommunicateBuffer) -> Result<(), Status> {
        self.places.borrow_mut().push(comm_buffer.as_ptr());
        if let Some(code) = self.meanwhile.take() {
            code();
        }
        let len = comm_buffer
            .channel()
            .tracked()
            .map_or(0, |header| header.total_len());
        let response = MailboxImage::answered(EfiStatus::SUCCESS, len);
        comm_buffer.channel().mailbox().unwrap().write(&response);
        Ok(())
    }
}

/// An executor that the test can look at.
struct Shared(&'static Echo);

impl MmExecutor for Shared {
    fn execute_mm(&self, comm_buffer: &mut CommunicateBuffer) -> Result<(), Status> {
        self.0.execute_mm(comm_buffer)
    }
}

/// A communicator that outlives the test, so that notifications can use it.
struct Scene {
    mm: &'static MmCommunicator<Shared>,
    executor: &'static Echo,
    announcements: Rc<Announcements>,
    tpl: Rc<HostTpl>,
    /// The results of the notifications' calls.
    inner: Rc<RefCell<Vec<Result<(), Status>>>>,
}

impl Scene {
    fn new(ids: &[u8], movable: u8) -> Self {
        let announcements = Announcements::about(movable);
        let executor: &'static Echo = Box::leak(Box::default());
        let mm = MmCommunicator::with_executor(Shared(executor));
        let extras = mm.client.extras.make().unwrap();
        assert!(extras.announcements.set(Rc::clone(&announcements)).is_ok());
        mm.set_comm_buffers(ids.iter().map(|id| CommunicateBuffer::of_a_page(*id)).collect())
            .unwrap();
        Self {
            mm: Box::leak(Box::new(mm)),
            executor,
            announcements,
            tpl: Rc::default(),
            inner: Rc::default(),
        }
    }

    fn run_at_notify(&self, id: u8) {
        let tpl: Box<dyn TplServices> = Box::new(SharedTpl(Rc::clone(&self.tpl)));
        self.mm.run_at_notify(id, Service::mock(tpl));
    }

    /// A notification that calls through this buffer.
    fn notification(&self, id: u8) -> impl Fn() + use<> {
        let (mm, tpl, inner) = (self.mm, Rc::clone(&self.tpl), Rc::clone(&self.inner));
        move || {
            let inner = Rc::clone(&inner);
            let code = move || inner.borrow_mut().push(call(mm, id));
            tpl.notify(Tpl::Callback, Box::new(code));
        }
    }

    fn meanwhile(&self, code: impl FnOnce() + 'static) {
        self.executor.meanwhile.set(Some(Box::new(code)));
    }

    fn last_place(&self) -> Option<*mut u8> {
        self.executor.places.borrow().last().copied()
    }

    fn move_to(&self, to: &[CommunicateBuffer]) -> Result<(), Status> {
        move_to(self.mm, to)
    }

    fn inner(&self) -> Vec<Result<(), Status>> {
        self.inner.take()
    }
}

fn call(mm: &dyn MmCommunication, id: u8) -> Result<(), Status> {
    let response = mm.communicate(id, &[id, 7], RECIPIENT.as_guid())?;
    assert_eq!(response, [id, 7]);
    Ok(())
}

/// Moves through the first of these buffers.
fn move_to<E: MmExecutor>(mm: &MmCommunicator<E>, to: &[CommunicateBuffer]) -> Result<(), Status> {
    let mut take = |response: &mut ResponseReader<'_>| {
        assert_eq!(response.read_to_vec().as_deref(), Ok(&b"move"[..]));
        true
    };
    mm.communicate_and_move(to[0].id(), b"move", RECIPIENT.as_guid(), to, &mut take)
}

fn fresh(ids: &[u8]) -> Vec<CommunicateBuffer> {
    ids.iter().map(|id| CommunicateBuffer::of_a_page(*id)).collect()
}

#[test]
fn announced_move_never_yields_busy_at_notify() {
    let calls: [fn(&dyn MmCommunication); 4] = [
        |mm| assert_eq!(call(mm, 0), Ok(())),
        |mm| assert_eq!(call(mm, 1), Ok(())),
        |mm| assert_eq!(mm.message_capacity(0, CallOptions::new()), Ok(4096 - 24)),
        |mm| assert_eq!(mm.message_capacity(1, CallOptions::new()), Ok(4096 - 24)),
    ];
    for outer in calls {
        let scene = Scene::new(&[0, 1], 1);
        scene.run_at_notify(1);
        scene.announcements.announce(&CommunicateBuffer::of_a_page(1));
        at_line("comm buffer 1 moved", scene.notification(1));
        outer(scene.mm);
        assert_eq!(scene.inner(), [Ok(())]);
    }
}

#[test]
fn requested_move_never_yields_busy_at_notify() {
    let scene = Scene::new(&[0, 1], 1);
    scene.run_at_notify(1);
    let to = fresh(&[0, 1]);
    scene.meanwhile(scene.notification(1));
    assert_eq!(scene.move_to(&to), Ok(()));
    assert_eq!(scene.inner(), [Ok(())]);
    assert_eq!(scene.last_place(), Some(to[1].as_ptr()));
}

#[test]
fn nothing_is_borrowed_while_a_move_is_logged() {
    let scene = Scene::new(&[0, 1, 2], 2);
    at_line("comm buffer 0 moved", {
        let (mm, inner) = (scene.mm, Rc::clone(&scene.inner));
        move || {
            inner.borrow_mut().extend([
                call(mm, 1),
                mm.set_comm_buffers(fresh(&[0, 1]))
                    .map_err(|_in_use| Status::Busy),
            ]);
        }
    });
    assert_eq!(scene.move_to(&fresh(&[0, 1])), Ok(()));
    assert_eq!(scene.inner(), [Ok(()), Ok(())]);
}

#[test]
fn announced_move_of_another_buffer_survives_a_requested_move() {
    let scene = Scene::new(&[0, 1, 2], 2);
    let announced = CommunicateBuffer::of_a_page(2);
    let (announcements, new, notification) = (
        Rc::clone(&scene.announcements),
        announced.clone(),
        scene.notification(2),
    );
    scene.meanwhile(move || {
        announcements.announce(&new);
        notification();
    });
    assert_eq!(scene.move_to(&fresh(&[0, 1])), Ok(()));
    assert_eq!(scene.inner(), [Err(Status::Busy)]);
    assert_eq!(call(scene.mm, 2), Ok(()));
    assert_eq!(scene.last_place(), Some(announced.as_ptr()));
}

#[test]
fn announced_move_to_the_place_of_a_requested_one_leaves_its_request_alone() {
    let scene = Scene::new(&[0, 1], 0);
    let to = fresh(&[0, 1]);
    let (announcements, new) = (Rc::clone(&scene.announcements), to[0].clone());
    let notification = scene.notification(0);
    scene.meanwhile(move || {
        announcements.announce(&new);
        notification();
    });
    assert_eq!(scene.move_to(&to), Ok(()));
    assert_eq!(scene.inner(), [Err(Status::Busy)]);
    assert_eq!(call(scene.mm, 0), Ok(()));
    assert_eq!(scene.last_place(), Some(to[0].as_ptr()));
}

#[test]
fn requested_move_waits_for_an_announced_one_that_cannot_be_applied_yet() {
    let scene = Scene::new(&[0, 1], 1);
    let (mm, inner) = (scene.mm, Rc::clone(&scene.inner));
    let announcements = Rc::clone(&scene.announcements);
    let first = mm.client.buffer(1).unwrap();
    scene.meanwhile(move || {
        // Away from the place that the call is using, and back.
        announcements.announce(&CommunicateBuffer::of_a_page(1));
        let away = call(mm, 1);
        announcements.announce(&first);
        let moved = move_to(mm, &fresh(&[0, 1]));
        inner.borrow_mut().extend([away, moved]);
    });
    assert_eq!(call(scene.mm, 1), Ok(()));
    assert_eq!(scene.inner(), [Ok(()), Err(Status::Busy)]);
    assert_eq!(scene.move_to(&fresh(&[0, 1])), Ok(()));
}

#[test]
fn taking_over_logs_what_was_in_the_mailbox() {
    let old = CommunicateBuffer::of_a_page(0);
    let stale = MailboxImage::answered(EfiStatus::NOT_FOUND, 0x1234);
    let logged = Rc::new(Cell::new(0));
    for (image, text, expected) in [
        (stale, "ReturnStatus EFI_NOT_FOUND", 1),
        (MailboxImage::armed(), "it announced a request", 2),
        (MailboxImage::default(), "was not empty", 2),
    ] {
        old.channel().mailbox().unwrap().write(&image);
        let count = Rc::clone(&logged);
        at_line(text, move || count.set(count.get() + 1));
        old.take_over();
        assert_eq!(logged.get(), expected, "{text}");
    }
}

#[test]
fn refused_move_changes_nothing_of_the_new_buffer() {
    struct Failing;
    impl MmExecutor for Failing {
        fn execute_mm(&self, _: &mut CommunicateBuffer) -> Result<(), Status> {
            Err(Status::SwMmiFailed)
        }
    }
    let mm = MmCommunicator::with_executor(Failing);
    mm.set_comm_buffers(fresh(&[0])).unwrap();
    let to = [CommunicateBuffer::of_a_page(0).with_header(HeaderFormat::V3)];
    assert_eq!(move_to(&mm, &to), Err(Status::SwMmiFailed));
    assert_eq!(to[0].header(), HeaderFormat::V3);
}

#[test]
fn requested_move_of_another_buffer_does_not_wait_for_an_announced_one() {
    let scene = Scene::new(&[0, 1], 1);
    let (mm, inner) = (scene.mm, Rc::clone(&scene.inner));
    let announcements = Rc::clone(&scene.announcements);
    let first = mm.client.buffer(1).unwrap();
    scene.meanwhile(move || {
        announcements.announce(&CommunicateBuffer::of_a_page(1));
        assert_eq!(call(mm, 1), Ok(()));
        announcements.announce(&first);
        let moved = [0, 1].map(|id| move_to(mm, &fresh(&[id])));
        inner.borrow_mut().extend(moved);
    });
    assert_eq!(call(scene.mm, 1), Ok(()));
    assert_eq!(scene.inner(), [Ok(()), Err(Status::Busy)]);
}

/// Counts how often calls end.
fn ends(mm: &dyn MmCommunication) -> Rc<Cell<u32>> {
    let ends = Rc::new(Cell::new(0));
    let count = Rc::clone(&ends);
    mm.after_calls(Rc::new(move || count.set(count.get() + 1)))
        .unwrap();
    ends
}

#[test]
fn call_rejected_by_a_question_for_the_capacity_learns_its_end() {
    let scene = Scene::new(&[0, 1], 1);
    let ends = ends(scene.mm);
    scene.announcements.announce(&CommunicateBuffer::of_a_page(1));
    at_line("comm buffer 1 moved", scene.notification(1));
    assert_eq!(scene.mm.message_capacity(0, CallOptions::new()), Ok(4096 - 24));
    assert_eq!(scene.inner(), [Err(Status::Busy)]);
    assert_eq!(ends.get(), 1);
}

#[test]
fn rejected_move_is_not_the_end_of_a_call() {
    let scene = Scene::new(&[0, 1], 1);
    let ends = ends(scene.mm);
    let (mm, inner, seen) = (scene.mm, Rc::clone(&scene.inner), Rc::clone(&ends));
    scene.meanwhile(move || {
        inner.borrow_mut().push(move_to(mm, &fresh(&[0, 1])));
        assert_eq!(seen.get(), 0);
    });
    assert_eq!(call(scene.mm, 0), Ok(()));
    assert_eq!(scene.inner(), [Err(Status::Busy)]);
    assert_eq!(ends.get(), 1);
}

#[test]
fn callback_may_send() {
    let scene = Scene::new(&[0, 1], 1);
    let ends = ends(scene.mm);
    let mm = scene.mm;
    mm.after_calls(Rc::new(move || assert_eq!(call(mm, 0), Ok(()))))
        .unwrap();
    assert_eq!(call(mm, 1), Ok(()));
    assert_eq!(ends.get(), 1);
    assert_eq!(scene.executor.places.borrow().len(), 2);
}

#[test]
fn call_rejected_by_a_callback_learns_its_end() {
    let scene = Scene::new(&[0, 1], 1);
    let ends = ends(scene.mm);
    let (mm, executor) = (scene.mm, scene.executor);
    let notification = Cell::new(Some(scene.notification(0)));
    mm.after_calls(Rc::new(move || {
        if let Some(notification) = notification.take() {
            executor.meanwhile.set(Some(Box::new(notification)));
            assert_eq!(call(mm, 0), Ok(()));
        }
    }))
    .unwrap();
    assert_eq!(call(mm, 1), Ok(()));
    assert_eq!(scene.inner(), [Err(Status::Busy)]);
    assert_eq!(ends.get(), 2);
}

/// Responds to every message by hand.
struct ByHand;

impl MmExecutor for ByHand {
    fn execute_mm(&self, comm_buffer: &mut CommunicateBuffer) -> Result<(), Status> {
        comm_buffer
            .set_message(b"move")
            .map_err(|_status| Status::CommBufferInitError)
    }
}

#[test]
fn a_response_by_hand_to_a_request_to_move_is_found() {
    let mm = MmCommunicator::with_executor(ByHand);
    mm.set_comm_buffers(fresh(&[0])).unwrap();
    let to = fresh(&[0]);
    assert_eq!(move_to(&mm, &to), Ok(()));
    assert_eq!(
        mm.client.buffer(0).map(|buffer| buffer.as_ptr()).ok(),
        Some(to[0].as_ptr())
    );
}

#[test]
fn move_without_a_mailbox_is_not_requested() {
    let without_mailbox = || {
        let memory: &'static mut [u8] = Box::leak(vec![0; 4096].into_boxed_slice());
        CommunicateBuffer::new(Pin::new(memory), 0)
    };
    let disabled = || {
        let mut disabled = CommunicateBuffer::of_a_page(1);
        disabled.disable();
        disabled
    };
    let usual = CommunicateBuffer::of_a_page;
    for (old, to, error) in [
        (usual(0), vec![without_mailbox()], Status::InvalidDataBuffer),
        (without_mailbox(), vec![usual(0)], Status::InvalidDataBuffer),
        (usual(0), vec![usual(0), disabled()], Status::CommBufferDisabled),
    ] {
        let executor: &'static Echo = Box::leak(Box::default());
        let mm = MmCommunicator::with_executor(Shared(executor));
        mm.set_comm_buffers(vec![old.clone()]).unwrap();
        assert_eq!(move_to(&mm, &to), Err(error));
        assert!(executor.places.take().is_empty());
        assert_eq!(
            mm.client.buffer(0).map(|buffer| buffer.as_ptr()).ok(),
            Some(old.as_ptr())
        );
    }
}
