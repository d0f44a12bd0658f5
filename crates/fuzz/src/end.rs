//! One end of a connection: does what its plan says, checks every byte that it receives, and reports what it saw.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, Shutdown};
use serde::{Deserialize, Serialize};
use socket2::SockRef;

use crate::plan::{Finish, Manner, Plan, Side};
use crate::stream::{Direction, Random, Stream};

/// Nothing moved for so long, with the other end alive: a hang. On a machine at load 50 plain TCP stood still for 25 s.
pub const HANG: Duration = Duration::from_secs(60);
/// So many of the last calls are told with their times.
const CALLS: usize = 32;
/// How long an end pushes against a peer that never reads.
const PATIENCE: Duration = Duration::from_millis(150);

/// How a stream ended, as the reader saw it: the first thing that was said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Seen {
    /// Nothing yet: this end stopped reading first.
    #[default]
    Open,
    /// 0 from recv.
    Eof,
    /// ECONNRESET or EPIPE, from recv or send.
    Reset,
}

/// How this end finished, for the judge.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Ended {
    /// close()
    #[default]
    Closed,
    /// close() with `SO_LINGER` 0
    Aborted,
    /// connect(AF_UNSPEC)
    Disconnected,
}

/// A blocking call that said EAGAIN: hazard H4. What is needed to say which case of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Again {
    /// We had sent our FIN.
    pub after_fin: bool,
    /// Bytes were there unread just before the FIN (None: not looked at).
    pub unread_at_fin: Option<bool>,
    /// Bytes that this end had received when it sent its FIN.
    pub got_at_fin: u64,
    /// Bytes that this end has sent so far.
    pub sent: u64,
    /// Bytes that this end has received so far.
    pub got: u64,
    /// A send of this end went by TCP and may have had to wait, which leaves a write-space wake-up behind.
    pub waited: bool,
    /// When the FIN was sent: begin and end of the call, microseconds of the machine's clock.
    #[serde(default)]
    pub fin_at: (u64, u64),
    /// Microseconds in the call.
    pub micros: u64,
    /// Bytes are there after all, or the end of the stream.
    pub then: String,
}

/// What an end reports.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Record {
    /// The connection.
    pub connection: u32,
    /// The accepting end.
    pub server: bool,
    /// Which worker process; for a server the one that the client chose.
    pub worker: u32,
    /// Bytes that send() took.
    pub sent: u64,
    /// Bytes received, each of them checked.
    pub got: u64,
    /// A FIN was sent in order (shutdown or plain close).
    pub fin: bool,
    /// How it finished.
    pub ended: Ended,
    /// How the other's stream ended.
    pub seen: Seen,
    /// It was send() that said so first.
    pub seen_by_send: bool,
    /// A call that returns a count, or nothing, may have taken the reset's error: sendfile() that came back short.
    #[serde(default)]
    pub swallowed: bool,
    /// Which error that was.
    #[serde(default)]
    pub error: String,
    /// A blocking call said EAGAIN and this end closed because of it.
    #[serde(default)]
    pub gave_up: bool,
    /// Calls.
    pub operations: u64,
    /// Blocking calls that said EAGAIN.
    pub again: Vec<Again>,
    /// What must not be: wrong bytes, errors out of place, hangs.
    pub failures: Vec<String>,
    /// The last calls that send or receive: begin and end, microseconds of the machine's clock.
    #[serde(default)]
    pub calls: Vec<(u64, u64)>,
    /// It lasted so long that the watchdog sent keepalive probes.
    #[serde(default)]
    pub probed: bool,
    /// The longest time in which nothing moved, in milliseconds.
    pub stall: u64,
    /// Milliseconds since the worker began, when it ended.
    pub at: u64,
    /// The last operations, for a failure.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub trace: Vec<String>,
}

/// A running end.
pub struct End<'a> {
    socket: OwnedFd,
    plan: &'a Plan,
    me: &'a Side,
    other: &'a Side,
    out: Stream,
    inn: Stream,
    random: Random,
    record: Record,
    buffer: Vec<u8>,
    moved: Instant,
    waitall: bool,
    waited: bool,
    unread_at_fin: Option<bool>,
    got_at_fin: u64,
    fin_at: (u64, u64),
    gives_up: bool,
    number: Arc<AtomicI32>,
    trace: std::collections::VecDeque<String>,
    began: Instant,
}

type Step<T> = Result<T, Stop>;

/// Why an end stops before its plan does.
enum Stop {
    /// The connection is over: reset, or (when reading) at its end.
    Over,
    /// A failure is on record.
    Failed,
}

/// Microseconds of the machine's clock, the same in every process.
fn now_us() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000 + now.tv_nsec as u64 / 1000
}

fn timespec(time: Duration) -> Timespec {
    Timespec { tv_sec: time.as_secs() as i64, tv_nsec: time.subsec_nanos().into() }
}

impl<'a> End<'a> {
    /// An end of a connection that is established (and whose prelude has been exchanged).
    pub fn new(socket: OwnedFd, plan: &'a Plan, seed: u64, connection: u32, server: bool, worker: u32) -> Self {
        let (me, other) = if server { (&plan.server, &plan.client) } else { (&plan.client, &plan.server) };
        let up = Stream::new(seed, connection, Direction::Up);
        let down = Stream::new(seed, connection, Direction::Down);
        let (out, inn) = if server { (down, up) } else { (up, down) };
        Self {
            socket,
            plan,
            me,
            other,
            out,
            inn,
            random: Random::new(seed ^ 0x5eed, u64::from(connection) << 1 | u64::from(server)),
            record: Record { connection, server, worker, ..Record::default() },
            buffer: vec![0; 1 << 16],
            moved: Instant::now(),
            waitall: false,
            waited: false,
            unread_at_fin: None,
            got_at_fin: 0,
            fin_at: (0, 0),
            gives_up: false,
            number: Arc::default(),
            trace: std::collections::VecDeque::new(),
            began: Instant::now(),
        }
    }

    /// `MSG_WAITALL` on blocking reads, now and then.
    pub fn waitall(mut self, yes: bool) -> Self {
        self.waitall = yes;
        self
    }

    /// Where the watchdog finds the descriptor, which changes when it is duplicated or passed.
    pub fn number(mut self, number: Arc<AtomicI32>) -> Self {
        number.store(self.socket.as_raw_fd(), Ordering::Relaxed);
        self.number = number;
        self
    }

    /// A blocking call that says EAGAIN is not tried again: the end closes, as many applications do.
    pub fn gives_up(mut self, yes: bool) -> Self {
        self.gives_up = yes;
        self
    }

    fn blocking(&self) -> bool {
        self.me.manner.is_blocking()
    }

    /// Does it all. The socket comes back after a disconnect.
    pub fn run(mut self) -> (Record, Option<OwnedFd>) {
        let set = SockRef::from(&self.socket).set_nonblocking(!self.blocking());
        if let Err(error) = set {
            self.fail(format!("cannot set O_NONBLOCK: {error}"));
        }
        if self.record.failures.is_empty() {
            let _ = match self.me.manner {
                Manner::Free => self.free(),
                Manner::TwoThreads => self.two_threads(),
                Manner::Turns { .. } => self.turns(),
                Manner::Burst => self.burst(),
            };
        }
        self.finish()
    }

    fn note(&mut self, what: impl FnOnce() -> String) {
        if self.trace.len() == 24 {
            self.trace.pop_front();
        }
        let at = self.began.elapsed().as_micros();
        self.trace.push_back(format!("{at}: {}", what()));
    }

    fn fail(&mut self, what: String) -> Stop {
        self.record.failures.push(what);
        Stop::Failed
    }

    /// A call on the socket has come back.
    fn called(&mut self, began: u64) {
        if self.record.calls.len() == CALLS {
            self.record.calls.remove(0);
        }
        self.record.calls.push((began, now_us()));
    }

    fn pause(&mut self) {
        if self.me.pauses > 0 && self.random.percent(self.me.pauses) {
            std::thread::sleep(Duration::from_micros(self.random.between(1, 3000)));
        }
    }

    fn progress(&mut self) {
        let stall = self.moved.elapsed().as_millis() as u64;
        self.record.stall = self.record.stall.max(stall);
        self.moved = Instant::now();
    }

    /// A reset was seen; true the first time.
    fn reset(&mut self, by_send: bool, error: Errno) {
        if self.record.seen == Seen::Open {
            self.record.error = (if error == Errno::PIPE { "EPIPE" } else { "ECONNRESET" }).to_owned();
            self.record.seen = Seen::Reset;
            self.record.seen_by_send = by_send;
        }
    }

    /// Sends up to `size` bytes in one call, in a random way. None: EAGAIN.
    fn send_some(&mut self, size: u64) -> Step<Option<u64>> {
        let size = size.min(1 << 20) as usize;
        let mut bytes = vec![0; size];
        self.out.fill(self.record.sent, &mut bytes);
        self.record.operations += 1;
        let before = Instant::now();
        let began = now_us();
        let way = self.random.below(100);
        let done = match way {
            0..50 => rustix::net::send(&self.socket, &bytes, SendFlags::NOSIGNAL),
            50..65 => rustix::io::write(&self.socket, &bytes),
            65..75 => rustix::net::send(&self.socket, &bytes, SendFlags::NOSIGNAL | SendFlags::MORE),
            75..85 => {
                let cut = self.random.below(size as u64 + 1) as usize;
                let (a, b) = bytes.split_at(cut);
                rustix::io::writev(&self.socket, &[IoSlice::new(a), IoSlice::new(b)])
            }
            85..95 => {
                let (a, b) = bytes.split_at(size / 2);
                let parts = [IoSlice::new(a), IoSlice::new(b)];
                let mut none = rustix::net::SendAncillaryBuffer::default();
                rustix::net::sendmsg(&self.socket, &parts, &mut none, SendFlags::NOSIGNAL)
            }
            _ => self.send_file(&bytes),
        };
        // a call of tens of KiB, or one that took its time, may have waited for room
        if size > 16 << 10 || before.elapsed() > Duration::from_micros(500) {
            self.waited = true;
        }
        self.called(began);
        if way >= 95 && matches!(done, Ok(count) if count < size) {
            self.record.swallowed = true;
        }
        self.note(|| format!("send way {way} {size} -> {done:?}"));
        match done {
            Ok(count) => {
                self.record.sent += count as u64;
                self.progress();
                Ok(Some(count as u64))
            }
            Err(Errno::AGAIN) if !self.blocking() => Ok(None),
            Err(error @ (Errno::CONNRESET | Errno::PIPE)) => {
                self.reset(true, error);
                Err(Stop::Over)
            }
            Err(error) => {
                let sent = self.record.sent;
                Err(self.fail(format!("send (way {way}) of {size} bytes at {sent}: {error}")))
            }
        }
    }

    fn send_file(&self, bytes: &[u8]) -> rustix::io::Result<usize> {
        let file = rustix::fs::memfd_create("fuzz", rustix::fs::MemfdFlags::CLOEXEC)?;
        rustix::io::write(&file, bytes)?;
        let mut offset = 0;
        rustix::fs::sendfile(&self.socket, &file, Some(&mut offset), bytes.len())
    }

    /// Receives up to `size` bytes in one call, and checks them. None: EAGAIN (of a non-blocking socket).
    fn receive_some(&mut self, size: usize, flags: RecvFlags) -> Step<Option<usize>> {
        let size = size.clamp(1, 1 << 20);
        if self.buffer.len() < size {
            self.buffer.resize(size, 0);
        }
        self.record.operations += 1;
        let before = Instant::now();
        let began = now_us();
        let done = rustix::net::recv(&self.socket, &mut self.buffer[..size], flags).map(|(count, _)| count);
        self.called(began);
        self.note(|| format!("recv {size} {flags:?} -> {done:?}"));
        match done {
            Ok(0) => {
                if self.record.seen == Seen::Open {
                    self.record.seen = Seen::Eof;
                }
                Err(Stop::Over)
            }
            Ok(count) => {
                let at = self.record.got;
                if let Err(wrong) = self.inn.check(at, &self.buffer[..count]) {
                    return Err(self.fail(format!("recv of {count} bytes ({flags:?}): {wrong}")));
                }
                if !flags.contains(RecvFlags::PEEK) {
                    self.record.got += count as u64;
                }
                self.progress();
                Ok(Some(count))
            }
            Err(Errno::AGAIN) if flags.contains(RecvFlags::DONTWAIT) || !self.blocking() => Ok(None),
            Err(Errno::AGAIN) => {
                self.blocking_said_again(before.elapsed());
                if self.gives_up {
                    self.record.gave_up = true;
                    return Err(Stop::Over);
                }
                Ok(Some(0)) // tried again by the caller: what follows must be right all the same
            }
            Err(error @ (Errno::CONNRESET | Errno::PIPE)) => {
                self.reset(false, error);
                Err(Stop::Over)
            }
            Err(error) => {
                let got = self.record.got;
                Err(self.fail(format!("recv at {got}: {error}")))
            }
        }
    }

    fn blocking_said_again(&mut self, took: Duration) {
        let mut one = [0u8; 1];
        let then = match rustix::net::recv(&self.socket, &mut one, RecvFlags::PEEK | RecvFlags::DONTWAIT) {
            Ok((0, _)) => "end".to_owned(),
            Ok(_) => "bytes".to_owned(),
            Err(Errno::AGAIN) => "nothing".to_owned(),
            Err(error) => {
                // the peek has taken the socket's error: the next call says 0
                if matches!(error, Errno::CONNRESET | Errno::PIPE) {
                    self.reset(false, error);
                }
                error.to_string()
            }
        };
        if self.record.again.len() < 50 {
            self.record.again.push(Again {
                after_fin: self.record.fin,
                unread_at_fin: self.unread_at_fin,
                got_at_fin: self.got_at_fin,
                sent: self.record.sent,
                got: self.record.got,
                waited: self.waited,
                fin_at: self.fin_at,
                micros: took.as_micros() as u64,
                then,
            });
        }
    }

    fn wait(&mut self, flags: PollFlags, time: Duration) -> Step<PollFlags> {
        self.record.operations += 1;
        let mut fds = [PollFd::new(&self.socket, flags)];
        match poll(&mut fds, Some(&timespec(time))) {
            Ok(_) | Err(Errno::INTR) => {
                let events = fds[0].revents();
                self.note(|| format!("poll {flags:?} -> {events:?}"));
                Ok(events)
            }
            Err(error) => Err(self.fail(format!("poll: {error}"))),
        }
    }

    /// Nothing moves: a hang in the end.
    fn check_hang(&mut self, waits_for: &str) -> Step<()> {
        if self.moved.elapsed() < HANG {
            return Ok(());
        }
        let (sent, got) = (self.record.sent, self.record.got);
        let state = socket_state(&self.socket);
        Err(self.fail(format!("HANG: waits for {waits_for}, sent {sent}, got {got}: {state}")))
    }

    /// Something that must not change the stream.
    fn extra(&mut self) -> Step<()> {
        self.record.operations += 1;
        let way = self.random.below(100);
        self.note(|| format!("extra {way}"));
        let socket = SockRef::from(&self.socket);
        let _ = match way {
            0..20 => socket.set_tcp_nodelay(self.random.percent(50)),
            20..30 => socket.set_keepalive(true),
            30..38 => socket.set_recv_buffer_size(self.random.between(4096, 1 << 20) as usize),
            38..46 => socket.set_send_buffer_size(self.random.between(8192, 1 << 20) as usize),
            46..52 => socket.set_tcp_cork(self.random.percent(30)).and_then(|()| socket.set_tcp_cork(false)),
            52..60 => socket.set_tcp_quickack(self.random.percent(50)),
            60..80 => match self.socket.try_clone() {
                Ok(copy) => {
                    self.socket = copy; // dup, and close the first
                    self.number.store(self.socket.as_raw_fd(), Ordering::Relaxed);
                    Ok(())
                }
                Err(error) => Err(error),
            },
            80..97 => {
                if let Ok(passed) = pass(&self.socket) {
                    self.socket = passed;
                    self.number.store(self.socket.as_raw_fd(), Ordering::Relaxed);
                }
                Ok(())
            }
            _ => self.hold(),
        };
        Ok(())
    }

    /// Another process holds the socket for some time (fork, exec): a close() here is none until that ends.
    fn hold(&self) -> std::io::Result<()> {
        let copy = self.socket.try_clone()?;
        let mut child = Command::new("/bin/sleep")
            .arg("0.05")
            .stdin(Stdio::from(copy))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        std::thread::spawn(move || child.wait());
        Ok(())
    }

    fn receive_flags(&mut self) -> RecvFlags {
        if self.random.percent(7) { RecvFlags::PEEK } else { RecvFlags::empty() }
    }

    fn receive_size(&mut self) -> usize {
        match self.random.below(10) {
            0 => 1,
            1..4 => self.random.between(1, 300) as usize,
            4..8 => self.random.between(300, 20_000) as usize,
            _ => 1 << 16,
        }
    }

    fn is_over(&self) -> bool {
        self.record.seen != Seen::Open
    }

    /// Random order of sends and receives on a non-blocking socket.
    fn free(&mut self) -> Step<()> {
        let mut sending = true;
        let mut stuck: Option<Instant> = None;
        loop {
            let reading = !self.me.deaf && !self.is_over();
            if sending && self.record.sent >= self.me.total {
                sending = false;
                if self.me.finish == Finish::Shutdown {
                    self.half_close()?;
                }
            }
            let reads_to_the_end = matches!(self.me.finish, Finish::Shutdown | Finish::ReadThenClose);
            if !(sending || reading && reads_to_the_end) {
                return Ok(());
            }
            self.pause();
            let mut moved = false;
            if self.random.percent(4) {
                self.extra()?;
            }
            if reading && self.random.percent(60) {
                let (size, flags) = (self.receive_size(), self.receive_flags());
                match self.receive_some(size, flags) {
                    Ok(got) => moved |= got.is_some(),
                    Err(Stop::Over) => moved = true,
                    Err(failed) => return Err(failed),
                }
            }
            if sending && self.random.percent(60) {
                let size = self.piece().min(self.me.total - self.record.sent);
                match self.send_some(size) {
                    Ok(took) => moved |= took.is_some(),
                    Err(Stop::Over) => {
                        sending = false; // what has arrived may still be read
                        if self.me.finish == Finish::Shutdown {
                            return self.read_rest();
                        }
                        continue;
                    }
                    Err(failed) => return Err(failed),
                }
            }
            if moved {
                stuck = None;
                continue;
            }
            let mut wanted = PollFlags::empty();
            if reading {
                wanted |= PollFlags::IN;
            }
            if sending {
                wanted |= PollFlags::OUT;
            }
            self.wait(wanted, Duration::from_millis(20))?;
            let since = *stuck.get_or_insert_with(Instant::now);
            // against who never reads, or has gone, one does not push for ever
            if sending && (self.other.deaf || self.me.deaf) && since.elapsed() > PATIENCE {
                sending = false;
                if self.me.finish == Finish::Shutdown {
                    self.half_close()?;
                }
            }
            self.check_hang(if sending { "room or bytes" } else { "bytes" })?;
        }
    }

    /// One send's size: small more often than large.
    fn piece(&mut self) -> u64 {
        match self.random.below(10) {
            0 => 1,
            1..4 => self.random.between(1, 200),
            4..8 => self.random.between(200, 20_000),
            8 => self.random.between(20_000, 200_000),
            _ => self.random.between(1, 1 << 20),
        }
    }

    fn half_close(&mut self) -> Step<()> {
        if self.blocking() && self.random.percent(50) {
            let mut one = [0u8; 1];
            let seen = rustix::net::recv(&self.socket, &mut one, RecvFlags::PEEK | RecvFlags::DONTWAIT);
            match seen {
                Ok((count, _)) => self.unread_at_fin = Some(count > 0),
                Err(Errno::AGAIN) => self.unread_at_fin = Some(false),
                Err(error) => {
                    self.reset(false, error);
                    return Err(Stop::Over);
                }
            }
        }
        self.record.operations += 1;
        let began = now_us();
        let done = rustix::net::shutdown(&self.socket, Shutdown::Write);
        self.fin_at = (began, now_us());
        self.note(|| format!("shutdown -> {done:?}"));
        match done {
            Ok(()) => {
                self.record.fin = true;
                self.got_at_fin = self.record.got;
                Ok(())
            }
            // the connection is gone: so says plain TCP, too
            Err(error @ Errno::NOTCONN) => {
                self.reset(true, error);
                Err(Stop::Over)
            }
            Err(error) => Err(self.fail(format!("shutdown: {error}"))),
        }
    }

    /// Reads until the end of the stream, whatever end that is.
    fn read_rest(&mut self) -> Step<()> {
        loop {
            let (size, flags) = (self.receive_size(), self.receive_flags());
            match self.receive_some(size, flags)? {
                Some(_) => {}
                None => {
                    self.wait(PollFlags::IN, Duration::from_millis(500))?;
                    self.check_hang("the end")?;
                }
            }
        }
    }

    /// One thread sends while this one receives. Only counters are shared.
    fn two_threads(&mut self) -> Step<()> {
        let Ok(copy) = self.socket.try_clone() else { return Ok(()) };
        let mut writer = End::new(copy, self.plan, 0, self.record.connection, self.record.server, self.record.worker);
        writer.out = self.out;
        writer.random = Random::new(self.random.next(), 1);
        let reads = matches!(self.me.finish, Finish::Shutdown | Finish::ReadThenClose);
        let deadline = self.other.deaf.then(|| Instant::now() + Duration::from_secs(2));
        let done = std::sync::atomic::AtomicBool::new(false);
        let (wrote, read) = std::thread::scope(|scope| {
            let writing = scope.spawn(|| {
                let result = writer.write_all(deadline);
                done.store(true, std::sync::atomic::Ordering::Release);
                (result, writer.record)
            });
            let read = loop {
                if !reads && done.load(std::sync::atomic::Ordering::Acquire) {
                    break Ok(());
                }
                let (size, flags) = (self.receive_size(), self.receive_flags());
                match self.receive_some(size, flags) {
                    Ok(Some(_)) => self.pause(),
                    Ok(None) => {
                        if let Err(stop) = self.wait(PollFlags::IN, Duration::from_millis(50)) {
                            break Err(stop);
                        }
                        // while the other thread can send, the connection moves
                        if !done.load(std::sync::atomic::Ordering::Acquire) {
                            continue;
                        }
                        if let Err(stop) = self.check_hang("the end") {
                            break Err(stop);
                        }
                    }
                    Err(stop) => break Err(stop),
                }
            };
            (writing.join(), read)
        });
        let Ok((_, writer)) = wrote else { return Err(self.fail("the writing thread panicked".to_owned())) };
        self.record.sent = writer.sent;
        self.record.fin |= writer.fin;
        self.record.swallowed |= writer.swallowed;
        self.record.operations += writer.operations;
        self.record.failures.extend(writer.failures);
        self.record.calls.extend(writer.calls);
        self.record.stall = self.record.stall.max(writer.stall);
        if writer.seen == Seen::Reset && self.record.seen != Seen::Eof {
            self.record.seen = Seen::Reset;
            self.record.seen_by_send = true;
        } else if writer.seen == Seen::Reset {
            // both at once: the reader's EOF may be what is left after the writer took the error
            self.record.seen_by_send = true;
        }
        read
    }

    fn write_all(&mut self, deadline: Option<Instant>) -> Step<()> {
        while self.record.sent < self.me.total {
            self.pause();
            let size = self.piece().min(self.me.total - self.record.sent);
            if self.send_some(size)?.is_none() {
                self.wait(PollFlags::OUT, Duration::from_millis(50))?;
                if deadline.is_some_and(|at| Instant::now() > at) {
                    break;
                }
                self.check_hang("room")?;
            }
        }
        if self.me.finish == Finish::Shutdown {
            self.half_close()?;
        }
        Ok(())
    }

    /// Writes all, then reads all.
    fn burst(&mut self) -> Step<()> {
        if self.me.total > 0 {
            self.send_exactly(self.me.total)?;
        }
        match self.me.finish {
            Finish::Shutdown => {
                self.half_close()?;
                self.read_rest()
            }
            Finish::ReadThenClose => self.read_rest(),
            _ => Ok(()),
        }
    }

    /// The two ends take turns; small turns of ours may go ahead of what we have to read first.
    fn turns(&mut self) -> Step<()> {
        let plan = self.plan;
        let mine = !self.record.server;
        let mut ahead = 0;
        for (number, &(from_client, size)) in plan.turns.iter().enumerate() {
            if number >= self.me.quit_turn {
                break;
            }
            self.pause();
            if self.random.percent(4) {
                self.extra()?;
            }
            if from_client == mine {
                if number >= ahead {
                    self.send_exactly(size)?;
                }
                continue;
            }
            let next = ahead.max(number);
            let later = plan.turns[next..].iter().position(|(client, _)| *client == mine).map(|at| next + at);
            if let Some(later) = later
                && later < self.me.quit_turn
                && plan.turns[later].1 <= 4096
                && self.random.percent(30)
            {
                self.send_exactly(plan.turns[later].1)?;
                ahead = later + 1;
            }
            match self.receive_exactly(size) {
                Ok(()) => {}
                // the other has left early, in order: so do we
                Err(Stop::Over) if self.record.seen == Seen::Eof => break,
                Err(stop) => return Err(stop),
            }
        }
        match self.me.finish {
            Finish::Shutdown => {
                self.half_close()?;
                self.read_rest()
            }
            Finish::ReadThenClose => self.read_rest(),
            _ => Ok(()),
        }
    }

    fn send_exactly(&mut self, size: u64) -> Step<()> {
        let target = self.record.sent + size;
        let pieces = self.random.percent(50);
        while self.record.sent < target {
            let left = target - self.record.sent;
            let size = if pieces { self.piece().min(left) } else { left };
            if self.send_some(size)?.is_none() {
                self.wait(PollFlags::OUT, Duration::from_millis(500))?;
                self.check_hang("room")?;
            }
        }
        Ok(())
    }

    fn receive_exactly(&mut self, size: u64) -> Step<()> {
        let target = self.record.got + size;
        let polls = self.random.percent(20);
        while self.record.got < target {
            let left = (target - self.record.got) as usize;
            let mut flags = self.receive_flags();
            let mut size = self.receive_size().min(left);
            if polls {
                self.wait(PollFlags::IN, Duration::from_millis(500))?;
                flags |= RecvFlags::DONTWAIT;
                self.check_hang("bytes")?;
            } else if self.waitall && self.blocking() && self.random.percent(20) {
                flags = RecvFlags::WAITALL;
                size = left;
            }
            let short = self.record.got;
            match self.receive_some(size, flags)? {
                Some(count) if flags == RecvFlags::WAITALL && count < size && count > 0 => {
                    // short is right only when the stream ends there
                    let mut one = [0u8; 1];
                    let next = rustix::net::recv(&self.socket, &mut one, RecvFlags::PEEK);
                    self.record.swallowed |= next.is_err();
                    if matches!(next, Ok((1, _))) {
                        return Err(self.fail(format!("MSG_WAITALL: {count} of {size} bytes at {short}")));
                    }
                }
                Some(_) => {}
                None => {
                    self.wait(PollFlags::IN, Duration::from_millis(500))?;
                    self.check_hang("bytes")?;
                }
            }
        }
        Ok(())
    }

    fn finish(mut self) -> (Record, Option<OwnedFd>) {
        let mut back = None;
        let finish = if self.record.failures.is_empty() { self.me.finish } else { Finish::Abort };
        self.note(|| format!("finish {finish:?}"));
        match finish {
            Finish::Abort => {
                if let Err(error) = SockRef::from(&self.socket).set_linger(Some(Duration::ZERO)) {
                    self.record.failures.push(format!("SO_LINGER: {error}"));
                }
                self.record.ended = Ended::Aborted;
            }
            Finish::Disconnect => {
                self.record.ended = Ended::Disconnected;
                match rustix::net::connect_unspec(&self.socket) {
                    Ok(()) => {}
                    Err(error) => self.record.failures.push(format!("connect(AF_UNSPEC): {error}")),
                }
            }
            _ => self.record.fin = true,
        }
        if finish == Finish::Disconnect && self.record.failures.is_empty() {
            back = self.socket.try_clone().ok();
        }
        // always: what is wrong may show only when both ends are held together
        self.record.trace = std::mem::take(&mut self.trace).into();
        let mut record = self.record;
        drop(self.socket);
        record.stall = record.stall.max(self.moved.elapsed().as_millis() as u64);
        (record, back)
    }
}

/// The socket through a Unix socket, and back: a descriptor passed, the first one closed by the caller.
fn pass(socket: &OwnedFd) -> std::io::Result<OwnedFd> {
    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, SendAncillaryBuffer, SendAncillaryMessage};
    let (one, other) = std::os::unix::net::UnixStream::pair()?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = [socket.as_fd()];
    control.push(SendAncillaryMessage::ScmRights(&fds));
    rustix::net::sendmsg(&one, &[IoSlice::new(b"x")], &mut control, SendFlags::empty())?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0u8; 1];
    let mut parts = [std::io::IoSliceMut::new(&mut byte)];
    rustix::net::recvmsg(&other, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    control
        .drain()
        .find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        })
        .ok_or_else(|| std::io::Error::other("no descriptor came"))
}

/// What the kernel says of a socket that hangs.
fn socket_state(socket: &OwnedFd) -> String {
    let socket = SockRef::from(socket);
    format!("local {:?} peer {:?} error {:?}", socket.local_addr(), socket.peer_addr(), socket.take_error())
}
