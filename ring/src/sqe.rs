//! How each operation is put to the kernel: the flags that the crate's builders leave to us, in one place.

use io_uring::types::{CancelBuilder, Fd, Fixed};
use io_uring::{opcode, squeue};

use crate::direct::{Name, Named};
use crate::op::{PollEvents, SendMode, Told};

/// `IORING_RECVSEND_POLL_FIRST`, in `ioprio`: wait for readiness before the first attempt.
const POLL_FIRST: u16 = 1 << 0;
/// `IORING_RECVSEND_BUNDLE`, in `ioprio`: fill as many provided buffers as there is data for.
const BUNDLE: u16 = 1 << 4;

/// Builds an entry for either kind of descriptor: both are the same field, told apart by a flag.
fn on(name: Name, build: impl FnOnce(Fd) -> squeue::Entry) -> squeue::Entry {
    match name.0 {
        Named::Process(fd) => build(Fd(fd)),
        Named::Ring(place) => build(Fd(place as i32)).flags(squeue::Flags::FIXED_FILE),
    }
}

pub(crate) fn accept(fd: i32) -> squeue::Entry {
    opcode::AcceptMulti::new(Fd(fd)).flags(libc::SOCK_CLOEXEC).build()
}

pub(crate) fn connect(socket: Name, name: *const libc::sockaddr, len: libc::socklen_t) -> squeue::Entry {
    on(socket, |fd| opcode::Connect::new(fd, name, len).build())
}

/// The entry that follows `entry` begins when this has succeeded, and is cancelled if it fails.
pub(crate) fn linked(entry: squeue::Entry) -> squeue::Entry {
    entry.flags(squeue::Flags::IO_LINK)
}

/// An option of TCP; `value` is read when the entry is submitted.
pub(crate) fn set_tcp_option(socket: Name, number: libc::c_int, value: *const libc::c_uint) -> squeue::Entry {
    let (level, name) = (libc::IPPROTO_TCP as u32, number as u32);
    on(socket, |fd| opcode::SetSockOpt::new(fd, level, name, value.cast(), size_of::<libc::c_uint>() as u32).build())
}

pub(crate) fn poll(socket: Name, events: PollEvents) -> squeue::Entry {
    on(socket, |fd| opcode::PollAdd::new(fd, events.0).build())
}

/// The same again and again, each time that something changes.
pub(crate) fn poll_changes(socket: Name, events: PollEvents) -> squeue::Entry {
    on(socket, |fd| opcode::PollAdd::new(fd, events.0).multi(true).build())
}

/// Receives into a bundle of provided buffers, of at most `len_max` bytes together; 0 is no limit.
pub(crate) fn recv_bundle(socket: Name, group: u16, len_max: u32, poll_first: bool) -> squeue::Entry {
    recv(socket, group, len_max, BUNDLE | if poll_first { POLL_FIRST } else { 0 })
}

/// Receives into one provided buffer, at most `len_max` bytes; 0 is no limit.
pub(crate) fn recv_one(socket: Name, group: u16, len_max: u32, poll_first: bool) -> squeue::Entry {
    recv(socket, group, len_max, if poll_first { POLL_FIRST } else { 0 })
}

fn recv(socket: Name, group: u16, len: u32, ioprio: u16) -> squeue::Entry {
    let null = std::ptr::null_mut();
    let recv = |fd| opcode::Recv::new(fd, null, len).ioprio(ioprio).buf_group(group).build();
    on(socket, recv).flags(squeue::Flags::BUFFER_SELECT)
}

pub(crate) fn recv_datagrams(fd: i32, template: *const libc::msghdr, group: u16) -> squeue::Entry {
    opcode::RecvMsgMulti::new(Fd(fd), template, group).build()
}

pub(crate) fn send(socket: Name, bytes: *const u8, len: u32, mode: SendMode) -> squeue::Entry {
    on(socket, |fd| opcode::Send::new(fd, bytes, len).flags(send_flags(mode)).build())
}

pub(crate) fn send_message(socket: Name, message: *const libc::msghdr, mode: SendMode) -> squeue::Entry {
    on(socket, |fd| opcode::SendMsg::new(fd, message).flags(send_flags(mode) as u32).build())
}

/// A send that ends while it is submitted, of which the kernel tells only if it could not send all.
pub(crate) fn send_quietly(socket: Name, bytes: *const u8, len: u32) -> squeue::Entry {
    on(socket, |fd| opcode::Send::new(fd, bytes, len).flags(QUIET_FLAGS).build()).flags(squeue::Flags::SKIP_SUCCESS)
}

/// The same of several pieces.
pub(crate) fn send_message_quietly(socket: Name, message: *const libc::msghdr) -> squeue::Entry {
    let send = |fd| opcode::SendMsg::new(fd, message).flags(QUIET_FLAGS as u32).build();
    on(socket, send).flags(squeue::Flags::SKIP_SUCCESS)
}

/// With `MSG_DONTWAIT` the kernel never defers the operation, and with `MSG_WAITALL` a short send is no success to it.
const QUIET_FLAGS: i32 = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT | libc::MSG_WAITALL;

pub(crate) fn send_datagrams(fd: i32, message: *const libc::msghdr, told: Told) -> squeue::Entry {
    // Datagrams never wait for room: what waited would hold buffers, and be overtaken.
    let flags = (libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT) as u32;
    let entry = opcode::SendMsg::new(Fd(fd), message).flags(flags).build();
    match told {
        Told::Always => entry,
        Told::OnFailure => entry.flags(squeue::Flags::SKIP_SUCCESS),
    }
}

fn send_flags(mode: SendMode) -> i32 {
    libc::MSG_NOSIGNAL
        | match mode {
            SendMode::WaitAll => libc::MSG_WAITALL,
            SendMode::TryNow => libc::MSG_DONTWAIT,
        }
}

pub(crate) fn read_counter(fd: i32, counter: *mut u64) -> squeue::Entry {
    opcode::Read::new(Fd(fd), counter.cast(), size_of::<u64>() as u32).build()
}

pub(crate) fn cancel(user_data: u64) -> squeue::Entry {
    opcode::AsyncCancel::new(user_data).build().flags(squeue::Flags::SKIP_SUCCESS)
}

pub(crate) fn cancel_all() -> squeue::Entry {
    opcode::AsyncCancel2::new(CancelBuilder::any().all()).build()
}

pub(crate) fn close(fd: i32) -> squeue::Entry {
    opcode::Close::new(Fd(fd)).build().flags(squeue::Flags::SKIP_SUCCESS)
}

pub(crate) fn close_direct(place: u32) -> squeue::Entry {
    opcode::Close::new(Fixed(place)).build()
}
