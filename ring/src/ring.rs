//! The ring: one thread's operations, buffers and completions.

mod busy;
mod complete;
mod connect;
mod quiet;

use std::io;
use std::marker::PhantomData;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, IntoRawFd, OwnedFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use crate::batch::{DatagramBatch, Gathered, Letters, Prepared, SendBatch, empty_message};
use crate::datagram;
use crate::direct::{Connection, Held, Places, Target};
use crate::error::RingError;
use crate::op::{Completion, Op, OpId, OpTable, Poll, PollEvents, SendMode, Told};
use crate::piece::Piece;
use crate::pool::{Pool, PoolConfig, PoolStats};
use crate::provided::ProvidedRing;
use crate::shelf::Shelf;
use crate::socket::{ConnectionOption, Socket};
use crate::sqe;
use crate::uring::Uring;
use crate::wake::Waker;

use quiet::Quiet;

pub use busy::BUSY_POLL_MAX;

/// How long dropping a ring waits for the kernel to let go of its buffers; what it still has then is leaked.
const DROP_WAIT: Duration = Duration::from_secs(2);

const STREAM: usize = 0;
const BULK: usize = 1;
const DATAGRAM: usize = 2;
const SMALL: usize = 3;

/// A ring's sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingConfig {
    /// Submission queue entries, at most 32,768; the kernel rounds up to a power of two.
    pub sq_entries: u32,
    /// Completion queue entries, at most 65,536. Large, since an overflow costs the kernel an allocation each.
    pub cq_entries: u32,
    /// Blocks for [`Ring::recv_stream`].
    pub stream: PoolConfig,
    /// Blocks for [`Ring::recv_bulk`].
    pub bulk: PoolConfig,
    /// Blocks for [`Ring::recv_datagrams`].
    pub datagram: PoolConfig,
    /// Blocks for [`Ring::recv_small`].
    pub small: PoolConfig,
}

impl Default for RingConfig {
    fn default() -> Self {
        Self {
            sq_entries: 4096,
            cq_entries: 65_536,
            stream: PoolConfig::STREAM,
            bulk: PoolConfig::BULK,
            datagram: PoolConfig::DATAGRAM,
            small: PoolConfig::SMALL,
        }
    }
}

impl RingConfig {
    /// Small queues and nothing touched beforehand: for tests and for programs with a handful of sockets.
    pub fn small() -> Self {
        let lazy = |pool: PoolConfig| PoolConfig { prefault: 0, ..pool };
        let Self { stream, bulk, datagram, small, .. } = Self::default();
        let [stream, bulk, datagram, small] = [stream, bulk, datagram, small].map(lazy);
        Self { sq_entries: 64, cq_entries: 1024, stream, bulk, datagram, small }
    }

    fn check(&self) -> Result<(), RingError> {
        for pool in [&self.stream, &self.bulk, &self.datagram, &self.small] {
            if !pool.provided_max.is_power_of_two() || pool.provided_max > 32_768 {
                return Err(RingError::bad_config("provided_max is not a power of two of at most 32,768"));
            }
            if pool.payload == 0 || pool.block_bytes() > 1 << 30 {
                return Err(RingError::bad_config("a pool's block is empty or larger than 1 GiB"));
            }
        }
        if self.datagram.payload < datagram::PREFIX_BYTES + 65_535 {
            return Err(RingError::bad_config("the datagram pool's payload is below 65,695 bytes"));
        }
        Ok(())
    }
}

/// One thread's io_uring: operations go in, completions come out. It stays on the thread that made it.
///
/// A turn is: [`Ring::enter`], then [`Ring::next`] until `None`, pushing operations meanwhile. Each operation takes a
/// `user` number that comes back with its completion, and every operation completes: once, or until `more` is false.
///
/// Operations name a socket by its descriptor and are handed to the kernel at the next `enter`. Close a socket that has
/// operations queued in this turn by [`Ring::close`], which keeps the order, rather than by dropping it. An armed
/// operation keeps its connection open: shut it down, or cancel, before closing. [`Ring::connect_and_send`] has a rule of its
/// own.
///
/// Dropping the ring cancels what is in flight and waits for it, at most two seconds; what the kernel still has then
/// is leaked rather than freed. Pieces may outlive the ring.
pub struct Ring {
    uring: Uring,
    ops: ManuallyDrop<OpTable>,
    /// In the order of STREAM, BULK, DATAGRAM, SMALL.
    provided: ManuallyDrop<[ProvidedRing; 4]>,
    /// Sizes of name and control for every multishot `recvmsg`.
    template: ManuallyDrop<Box<libc::msghdr>>,
    /// Of direct descriptors.
    places: Places,
    sends: Rc<Shelf<Gathered>>,
    letters: Rc<Shelf<Letters>>,
    waker: Waker,
    /// Sends whose success the kernel does not tell.
    quiet: Quiet,
    /// To be closed after what is pushed.
    closing: Vec<Socket>,
    /// How long to poll before sleeping.
    busy_poll: Duration,
    /// The kernel accepts submissions from one thread only.
    not_send: PhantomData<*const ()>,
}

impl Ring {
    /// Makes a ring for the calling thread.
    ///
    /// # Errors
    /// The cause, and a cure for the operator: io_uring forbidden, missing or too old (6.10 is needed, for receive
    /// bundles), limits too low, or a configuration that cannot be.
    pub fn new(config: RingConfig) -> Result<Self, RingError> {
        config.check()?;
        let waker = Waker::new().map_err(|e| RingError::new("make an eventfd", e))?;
        let mut template = empty_message();
        template.msg_namelen = datagram::NAME_BYTES as _;
        template.msg_controllen = datagram::CONTROL_BYTES as _;
        let pools = [config.stream, config.bulk, config.datagram, config.small].map(Pool::new);
        let mut group = 0;
        let provided = pools.map(|pool| {
            group += 1;
            ProvidedRing::new(pool, group - 1)
        });
        let uring = Uring::new(config.sq_entries, config.cq_entries)?;
        let mut ring = Self {
            places: Places::register(uring.submitter()),
            uring,
            ops: ManuallyDrop::default(),
            provided: ManuallyDrop::new(provided),
            template: ManuallyDrop::new(Box::new(template)),
            sends: Shelf::new(),
            letters: Shelf::new(),
            waker,
            quiet: Quiet::default(),
            closing: Vec::new(),
            busy_poll: Duration::ZERO,
            not_send: PhantomData,
        };
        for provided in ring.provided.iter() {
            // SAFETY: `drop` unregisters before it frees, or leaks.
            unsafe { provided.register(ring.uring.submitter()) }
                .map_err(|e| RingError::new("register a buffer ring", e))?;
        }
        ring.arm_wake();
        Ok(ring)
    }

    /// Accepts connections until `more` is false: one completion each.
    pub fn accept(&mut self, listener: &Socket, user: u64) -> OpId {
        let entry = sqe::accept(listener.as_raw_fd());
        self.push_plain(user, Op::Accept, entry)
    }

    /// Sets an option of a connection. `Some` tells what became of it at once; `None`: [`Completion::OptionSet`] will, for
    /// a connection in the ring's own table (since Linux 6.7; before, it fails).
    pub fn set_option(
        &mut self,
        connection: &Connection,
        option: ConnectionOption,
        user: u64,
    ) -> Option<io::Result<()>> {
        if let Held::Process(socket) = &connection.0 {
            return Some(socket.set_connection_option(option));
        }
        let (id, op) = self.ops.insert(user, Op::SetOption(option, Box::new(option.value())));
        let Op::SetOption(_, value) = op else { unreachable!("just inserted") };
        let entry = sqe::set_tcp_option(connection.name(), option.number(), &raw const **value).user_data(id.raw());
        // SAFETY: the value is in the operation table until the completion.
        unsafe { self.uring.push(entry) };
        None
    }

    /// Waits once for any of `events`, an error or a hang-up. The cheapest way to wait on an idle socket: no buffer.
    /// Cancel it before the socket is closed.
    pub fn poll(&mut self, socket: &impl Target, events: PollEvents, user: u64) -> OpId {
        let on = socket.name();
        self.push_plain(user, Op::Poll(Poll { on, events, cancelled: false }), sqe::poll(on, events))
    }

    /// Receives once, into as many stream blocks as there is data for, of at most `len_max` bytes together (0: no limit
    /// but the blocks lent). Only whole blocks count towards the limit, unless it is less than one: 40,000 bytes with
    /// blocks of 16,320 give at most two. `poll_first` waits for readiness without a first try.
    pub fn recv_stream(&mut self, socket: &impl Target, len_max: u32, poll_first: bool, user: u64) -> OpId {
        let provided = &self.provided[STREAM];
        // Once a limit of whole blocks is filled, the kernel tries again without it (seen on 6.18: 16,000 bytes for a limit of
        // 1000); a limit that ends within a block forbids that, and the block that it ends in is not begun.
        let whole_blocks = len_max > 0 && (len_max as usize).is_multiple_of(provided.pool().config().payload);
        let len = len_max.saturating_add(u32::from(whole_blocks));
        let entry = sqe::recv_bundle(socket.name(), provided.group(), len, poll_first);
        self.push_plain(user, Op::RecvStream, entry)
    }

    /// Receives once, into one bulk block, at most `len_max` bytes (0: no limit but the block).
    pub fn recv_bulk(&mut self, socket: &impl Target, len_max: u32, poll_first: bool, user: u64) -> OpId {
        let entry = sqe::recv_one(socket.name(), self.provided[BULK].group(), len_max, poll_first);
        self.push_plain(user, Op::RecvBulk, entry)
    }

    /// Receives once, into one small block.
    pub fn recv_small(&mut self, socket: &impl Target, poll_first: bool, user: u64) -> OpId {
        let entry = sqe::recv_one(socket.name(), self.provided[SMALL].group(), 0, poll_first);
        self.push_plain(user, Op::RecvSmall, entry)
    }

    /// Sends a batch on a stream. Keep one in flight per socket: two on a full socket overtake each other.
    pub fn send(&mut self, socket: &impl Target, batch: SendBatch, mode: SendMode, user: u64) -> OpId {
        let (id, entry) = self.send_entry(socket, batch, mode, user);
        // SAFETY: the batch, whose box holds the header, the vectors and the pieces, stays untouched in the operation table
        // until the final completion.
        unsafe { self.uring.push(entry) };
        id
    }

    fn send_entry(
        &mut self,
        socket: &impl Target,
        batch: SendBatch,
        mode: SendMode,
        user: u64,
    ) -> (OpId, io_uring::squeue::Entry) {
        let name = socket.name();
        let (id, op) = self.ops.insert(user, Op::Send(batch));
        let Op::Send(batch) = op else { unreachable!("just inserted") };
        let entry = match batch.0.prepare() {
            Prepared::One(bytes, len) => sqe::send(name, bytes, len, mode),
            Prepared::Many(message) => sqe::send_message(name, message, mode),
        };
        (id, entry.user_data(id.raw()))
    }

    /// Receives datagrams until `more` is false; then, start it again.
    pub fn recv_datagrams(&mut self, socket: &Socket, user: u64) -> OpId {
        let (id, _) = self.ops.insert(user, Op::RecvDatagrams);
        let template: *const libc::msghdr = &raw const **self.template;
        let entry = sqe::recv_datagrams(socket.as_raw_fd(), template, self.provided[DATAGRAM].group());
        // SAFETY: the template lives as long as the ring, and is only read.
        unsafe { self.uring.push(entry.user_data(id.raw())) };
        id
    }

    /// Sends a batch of datagrams to one destination.
    pub fn send_datagrams(&mut self, socket: &Socket, batch: DatagramBatch, user: u64) -> OpId {
        self.push_datagrams(socket, batch, Told::Always, user)
    }

    fn push_datagrams(&mut self, socket: &Socket, batch: DatagramBatch, told: Told, user: u64) -> OpId {
        let (id, op) = self.ops.insert(user, Op::SendDatagrams(batch));
        let Op::SendDatagrams(batch) = op else { unreachable!("just inserted") };
        let entry = sqe::send_datagrams(socket.as_raw_fd(), batch.0.prepare(), told);
        // SAFETY: as in `send`; the name and the control messages are in the batch's box, too.
        unsafe { self.uring.push(entry.user_data(id.raw())) };
        id
    }

    /// Asks for an operation to end. It still completes: with `ECANCELED`, or with what it had reached.
    pub fn cancel(&mut self, id: OpId) {
        self.ops.cancel(id);
        // SAFETY: the entry points to nothing.
        unsafe { self.uring.push(sqe::cancel(id.raw()).user_data(OpId::NOBODY)) };
    }

    /// Moves a connection into the ring's own table, if there is room: it takes no descriptor of the process from then
    /// on. Operations that name the descriptor, which is closed here, must have been submitted before, and no poll on it be in
    /// flight: it may be begun anew.
    pub fn make_direct(&mut self, connection: &mut Connection) {
        self.places.take(self.uring.submitter(), connection);
    }

    /// Sockets in the ring's own table.
    pub fn direct_count(&self) -> usize {
        self.places.used()
    }

    /// Closes a connection of the ring's table, after the operations on it that were pushed before have begun, cancels
    /// among them: cancel what is armed first, since an armed operation keeps its connection open. One of the process's
    /// table comes back, to be shut down and dropped.
    pub fn close_connection(&mut self, connection: Connection) -> Option<Socket> {
        match connection.0 {
            Held::Process(socket) => Some(socket),
            Held::Ring(place) => {
                // The place is free only once the kernel has emptied it.
                self.push_plain(0, Op::CloseDirect(place), sqe::close_direct(place));
                None
            }
        }
    }

    /// Closes a socket at the next [`Ring::enter`], after all that was pushed before: what others wait for goes first.
    pub fn close(&mut self, socket: Socket) {
        self.closing.push(socket);
    }

    /// An empty batch for [`Ring::send`]; recycled, so that it costs no allocation.
    pub fn send_batch(&self) -> SendBatch {
        SendBatch(self.sends.take())
    }

    /// An empty batch for [`Ring::send_datagrams`]; recycled likewise.
    pub fn datagram_batch(&self) -> DatagramBatch {
        DatagramBatch(self.letters.take())
    }

    /// A stream block for data of one's own: an empty view after the headroom. `None` at the pool's bound.
    pub fn alloc_stream(&self) -> Option<Piece> {
        self.alloc(STREAM)
    }

    /// A bulk block, likewise.
    pub fn alloc_bulk(&self) -> Option<Piece> {
        self.alloc(BULK)
    }

    /// A datagram block, likewise.
    pub fn alloc_datagram(&self) -> Option<Piece> {
        self.alloc(DATAGRAM)
    }

    fn alloc(&self, kind: usize) -> Option<Piece> {
        let pool = self.provided[kind].pool();
        pool.take().map(|block| pool.hand_out(block, 0))
    }

    /// Wakes this ring from other threads.
    pub fn waker(&self) -> Waker {
        self.waker.clone()
    }

    /// Figures of the stream, bulk, datagram and small pools, in that order.
    pub fn pool_stats(&self) -> [PoolStats; 4] {
        [STREAM, BULK, DATAGRAM, SMALL].map(|kind| self.provided[kind].pool().stats())
    }

    /// Sizes and bounds of the same pools.
    pub fn pool_configs(&self) -> [PoolConfig; 4] {
        [STREAM, BULK, DATAGRAM, SMALL].map(|kind| *self.provided[kind].pool().config())
    }

    /// Operations in flight, the ring's own one included.
    pub fn in_flight(&self) -> usize {
        self.ops.len()
    }

    /// Lends buffers, submits what was pushed, and waits for a completion, a wake or `timeout` (`None`: for ever).
    ///
    /// It does not wait when completions are there already, or when `has_work` says that the caller's queues are not
    /// empty. That is asked after the ring has announced that it sleeps, so that a [`Waker::wake`] after a push to such a
    /// queue is never missed; and again and again while the ring polls ([`Ring::set_busy_poll`]). Returning does not
    /// promise a completion.
    ///
    /// # Errors
    /// Those of `io_uring_enter(2)` that are not part of normal operation.
    pub fn enter(&mut self, timeout: Option<Duration>, mut has_work: impl FnMut() -> bool) -> io::Result<()> {
        for provided in self.provided.iter_mut() {
            provided.top_up();
        }
        for socket in self.closing.drain(..) {
            let fd = OwnedFd::from(socket).into_raw_fd();
            // SAFETY: the entry points to nothing, and the descriptor was given up above.
            unsafe { self.uring.push(sqe::close(fd).user_data(OpId::NOBODY)) };
        }
        let hurried = self.quiet.is_awaited();
        if hurried || self.uring.has_completions() || timeout == Some(Duration::ZERO) {
            return self.enter_without_wait();
        }
        let mut timeout = timeout;
        if !self.busy_poll.is_zero() {
            match self.poll_busily(timeout, &mut has_work)? {
                Some(left) => timeout = left,
                None => return Ok(()),
            }
        }
        self.waker.fall_asleep();
        let result = if has_work() { self.enter_without_wait() } else { self.uring.enter(1, timeout) };
        self.waker.stay_awake();
        result
    }

    fn enter_without_wait(&mut self) -> io::Result<()> {
        if self.uring.needs_enter() { self.uring.enter(0, None) } else { Ok(()) }
    }

    /// The next completion; what it received is put in `received`, which is emptied first. `None` when there is no more
    /// until the next [`Ring::enter`].
    pub fn next(&mut self, received: &mut Vec<Piece>) -> Option<Completion> {
        received.clear();
        loop {
            self.look_for_failures();
            if let Some(completion) = self.next_quiet() {
                return Some(completion);
            }
            let entry = self.next_entry()?;
            if let Some(completion) = self.complete(&entry, received) {
                return Some(completion);
            }
        }
    }

    fn push_plain(&mut self, user: u64, op: Op, entry: io_uring::squeue::Entry) -> OpId {
        let (id, _) = self.ops.insert(user, op);
        // SAFETY: the callers' entries hold no pointers: they name buffers by group only, whose rings outlive them.
        unsafe { self.uring.push(entry.user_data(id.raw())) };
        id
    }

    fn arm_wake(&mut self) {
        let (id, op) = self.ops.insert(0, Op::Wake(Box::new(0)));
        let Op::Wake(counter) = op else { unreachable!("just inserted") };
        let counter: *mut u64 = &raw mut **counter;
        let entry = sqe::read_counter(self.waker.as_raw_fd(), counter).user_data(id.raw());
        // SAFETY: the counter's box stays in the operation table until the completion.
        unsafe { self.uring.push(entry) };
    }

    /// Ends all operations; whether the kernel has let go of everything.
    fn settle(&mut self) -> bool {
        let deadline = Instant::now() + DROP_WAIT;
        let mut received = Vec::new();
        loop {
            self.look_for_failures();
            while let Some(entry) = self.next_entry() {
                // Dropping what a completion carries closes accepted sockets and frees pieces.
                let id = OpId::from_raw(entry.user_data());
                if let Some((_, Op::Wake(_))) = self.ops.get(id) {
                    self.ops.remove(id);
                } else {
                    drop(self.complete(&entry, &mut received));
                }
                received.clear();
            }
            while self.next_quiet().is_some() {}
            if self.ops.len() == 0 {
                // Cancels of what is over let go of its socket; if that fails, the end of the ring does.
                let _ = self.enter_without_wait();
                return true;
            }
            if Instant::now() >= deadline {
                return false;
            }
            // SAFETY: the entry points to nothing.
            unsafe { self.uring.push(sqe::cancel_all().user_data(OpId::NOBODY)) };
            if self.uring.enter(1, Some(Duration::from_millis(50))).is_err() {
                return false;
            }
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        let settled = self.settle();
        let unregistered = self.provided.iter().all(|provided| provided.unregister(self.uring.submitter()).is_ok());
        if settled && unregistered {
            // SAFETY: each is dropped once; no operation is left, and the kernel no longer knows the buffer rings.
            unsafe {
                ManuallyDrop::drop(&mut self.ops);
                ManuallyDrop::drop(&mut self.provided);
                ManuallyDrop::drop(&mut self.template);
            }
        }
    }
}
