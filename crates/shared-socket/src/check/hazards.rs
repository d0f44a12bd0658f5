//! The hazards of the sockmap (docs/hazards.md), found by what an application sees.
//!
//! Runs in a process of its own, in a network namespace of its own: see [`super::child`]. Each probe is a thread that is
//! given a time; one that hangs is left behind and says so.

use std::io::{ErrorKind, Read, Write};
use std::mem::MaybeUninit;
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};
use datapath::probe::{self, Minimal};
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::MsgFlags;
use serde::{Deserialize, Serialize};
use socket2::{Domain, SockRef, Socket, Type};

use crate::lab::Namespace;

/// How something was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Evidence {
    /// Tried on this kernel.
    Tried,
    /// Judged by the version number.
    Version,
    /// Known from the kernel's source or from reports; not tried here.
    Stated,
    /// Tried, and no answer came out of it.
    Failed,
}

/// What a probe found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Finding {
    /// `H7.tcp`
    pub id: String,
    /// Whether this kernel behaves in this way; unknown where the probe failed.
    pub present: Option<bool>,
    /// How it was found.
    pub evidence: Evidence,
    /// In words.
    pub found: String,
    /// How long it took.
    pub millis: u64,
}

/// Long enough for every probe that does not hang, on a slow emulator too.
const PATIENCE: Duration = Duration::from_secs(4);
/// For bytes that are on their way over loopback.
const ARRIVAL: Duration = Duration::from_millis(500);
/// A thread that was just started is in its system call by then.
const SETTLE: Duration = Duration::from_millis(15);
/// TCP's shortest retransmission timeout is 200 ms: a pause of that length is a stall.
const STALL: Duration = Duration::from_millis(180);

type Probe = fn() -> Result<(bool, String)>;

/// What configures the datapath; `attach` runs these when nothing is known of this kernel.
const DATAPATH: &[(&str, Probe)] =
    &[("H2.accounting", accounting), ("H2.window", window), ("H7.tcp", fionread_tcp), ("H7.fast", fionread_fast)];

/// The rest.
const OTHERS: &[(&str, Probe)] = &[
    ("H1", reorder),
    ("H2.queue", unbounded),
    ("H3", lost_on_delete),
    ("H4", spurious_eagain),
    ("H5", short_waitall),
    ("H6.splice", blind_splice),
    ("H6.zerocopy", blind_zerocopy_receive),
    ("H8.oob", oob_in_line),
    ("H8.zerocopy", no_completion),
    ("H8.rcvlowat", ignored_lowat),
    ("H8.tcp_info", uncounted),
    ("H9", fin_for_rst),
    ("H10", plaintext_to_tls),
    ("H11", asleep),
    ("H12", silent),
    ("H13", busy),
    ("H15", kept_memory),
    ("H16.unhash", purged_at_close),
];

/// Runs the probes in this process's network namespace and gives each finding to `tell`.
pub fn run(all: bool, cgroup: Option<&Path>, mut tell: impl FnMut(&Finding) -> Result<()>) -> Result<()> {
    let others: &[(&str, Probe)] = if all { OTHERS } else { &[] };
    for (id, probe) in DATAPATH.iter().chain(others) {
        tell(&timed(id, *probe))?;
    }
    if let Some(cgroup) = cgroup.filter(|_| all) {
        let cgroup = cgroup.to_owned();
        tell(&timed("H17", move || crossed(&cgroup)))?;
    }
    Ok(())
}

fn timed(id: &str, probe: impl FnOnce() -> Result<(bool, String)> + Send + 'static) -> Finding {
    let start = Instant::now();
    let (sender, answers) = channel();
    std::thread::spawn(move || sender.send(probe()));
    let (present, evidence, found) = match answers.recv_timeout(PATIENCE) {
        Ok(Ok((present, found))) => (Some(present), Evidence::Tried, found),
        Ok(Err(error)) if error.downcast_ref::<NotTried>().is_some() => (None, Evidence::Stated, error.to_string()),
        Ok(Err(error)) if error.downcast_ref::<NotHere>().is_some() => {
            (Some(false), Evidence::Tried, error.to_string())
        }
        Ok(Err(error)) => (None, Evidence::Failed, format!("{error:#}")),
        Err(RecvTimeoutError::Timeout) => (None, Evidence::Failed, format!("the probe hung for {PATIENCE:?}")),
        Err(RecvTimeoutError::Disconnected) => (None, Evidence::Failed, "the probe panicked".to_owned()),
    };
    let millis = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
    Finding { id: id.to_owned(), present, evidence, found, millis }
}

/// The kernel lacks what could be hazardous.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct NotHere(String);

/// To try it would change the machine.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct NotTried(String);

/// A connection over loopback; `a` connected, `b` was accepted.
struct Pair {
    a: TcpStream,
    b: TcpStream,
}

impl Pair {
    fn new() -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("listening on loopback")?;
        let a = TcpStream::connect(listener.local_addr()?).context("connecting over loopback")?;
        let (b, _) = listener.accept().context("accepting over loopback")?;
        a.set_nodelay(true)?;
        b.set_nodelay(true)?;
        Ok(Self { a, b })
    }

    /// Both ends in a sockmap.
    fn mapped(redirect: bool) -> Result<(Self, Minimal)> {
        let (pair, map) = (Self::new()?, Minimal::load()?);
        pair.enter(&map)?;
        map.redirect(redirect)?;
        Ok((pair, map))
    }

    fn enter(&self, map: &Minimal) -> Result<()> {
        map.insert(&self.a)?;
        Ok(map.insert(&self.b)?)
    }
}

/// Fails unless messages went by the sockmap: what is seen would be TCP's own behaviour.
fn must_be_fast(map: &Minimal) -> Result<()> {
    match map.redirected()? {
        0 => bail!("the minimal sockmap program redirected nothing"),
        _ => Ok(()),
    }
}

/// Reads what is there without waiting.
fn take(socket: &TcpStream, length: usize, flags: i32) -> std::io::Result<Vec<u8>> {
    let mut buffer = vec![0; length];
    let flags = MsgFlags::from_bits_retain(flags) | MsgFlags::MSG_DONTWAIT;
    let count = nix::sys::socket::recv(socket.as_raw_fd(), &mut buffer, flags)?;
    buffer.truncate(count);
    Ok(buffer)
}

fn readable(socket: &TcpStream, wait: Duration) -> Result<bool> {
    let mut fds = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
    let timeout = PollTimeout::try_from(wait).context("a poll timeout")?;
    Ok(poll(&mut fds, timeout).context("poll")? > 0)
}

/// A blocking call on a thread of its own.
fn later<T: Send + 'static>(call: impl FnOnce() -> T + Send + 'static) -> Receiver<T> {
    let (sender, answer) = channel();
    let (number, numbers) = channel();
    std::thread::spawn(move || {
        let _ = number.send(nix::unistd::gettid());
        sender.send(call())
    });
    // on a busy machine it may be late: a probe of a sleeper must not begin before it sleeps
    if let Ok(thread) = numbers.recv() {
        let asleep = || {
            let stat = std::fs::read_to_string(format!("/proc/self/task/{thread}/stat")).unwrap_or_default();
            stat.rsplit(") ").next().is_none_or(|rest| !rest.starts_with('R'))
        };
        let end = Instant::now() + ARRIVAL;
        while Instant::now() < end {
            sleep(SETTLE / 3);
            if asleep() {
                break;
            }
        }
    }
    sleep(SETTLE / 3);
    answer
}

fn receive(mut socket: &TcpStream, length: usize) -> std::io::Result<Vec<u8>> {
    let mut buffer = vec![0; length];
    let count = socket.read(&mut buffer)?;
    buffer.truncate(count);
    Ok(buffer)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// H1: an accelerator that redirects as soon as both ends are known.
fn reorder() -> Result<(bool, String)> {
    let (pair, map) = (Pair::new()?, Minimal::load()?);
    (&pair.a).write_all(b"FIRST ")?;
    if !readable(&pair.b, ARRIVAL)? {
        bail!("nothing arrived over loopback");
    }
    pair.enter(&map)?;
    map.redirect(true)?;
    (&pair.a).write_all(b"SECOND ")?;
    must_be_fast(&map)?;
    let mut seen = Vec::new();
    let end = Instant::now() + ARRIVAL;
    while seen.len() < 13 && Instant::now() < end {
        match take(&pair.b, 64, 0) {
            Ok(bytes) => seen.extend(bytes),
            Err(e) if e.kind() == ErrorKind::WouldBlock => sleep(Duration::from_millis(1)),
            Err(e) => return Err(e.into()),
        }
    }
    let seen = text(&seen);
    Ok((seen != "FIRST SECOND ", format!("sent FIRST by TCP, SECOND redirected; read {}", seen.trim())))
}

/// H2: redirected bytes against the receive buffer.
fn unbounded() -> Result<(bool, String)> {
    const BUFFER: usize = 16 << 10;
    const ENOUGH: usize = 2 << 20;
    let (pair, map) = Pair::mapped(true)?;
    SockRef::from(&pair.b).set_recv_buffer_size(BUFFER)?;
    pair.a.set_nonblocking(true)?;
    let (block, mut taken) = (vec![7; 32 << 10], 0);
    let stopped = loop {
        match (&pair.a).write(&block) {
            Ok(count) => taken += count,
            Err(e) => break Some(e),
        }
        if taken >= ENOUGH {
            break None;
        }
    };
    must_be_fast(&map)?;
    let end = stopped.map_or("and would take more".to_owned(), |e| format!("then {e}"));
    Ok((taken > 8 * BUFFER, format!("a receiver with SO_RCVBUF {BUFFER} that never reads took {taken} bytes, {end}")))
}

/// Whether redirected bytes count in the receiver's `sk_rmem_alloc`. "Present" when they do not.
fn accounting() -> Result<(bool, String)> {
    const SENT: u32 = 60_000;
    let (pair, map) = Pair::mapped(true)?;
    let before = probe::rmem_alloc(pair.b.as_fd())?;
    (&pair.a).write_all(&vec![7; SENT as usize])?;
    must_be_fast(&map)?;
    let held = probe::rmem_alloc(pair.b.as_fd())?.saturating_sub(before);
    Ok((held < SENT / 2, format!("{SENT} redirected bytes raised sk_rmem_alloc by {held}")))
}

/// A segment by TCP at a receiver that redirected bytes have filled past `SO_RCVBUF`: is it lost until a retransmission,
/// or taken and answered with a closed window that opens as soon as it is read?
fn window() -> Result<(bool, String)> {
    // a kernel that stalls does so each time, a busy machine now and then
    let mut last = window_once()?;
    for _ in 0..2 {
        if !last.0 {
            break;
        }
        last = window_once()?;
    }
    Ok(last)
}

fn window_once() -> Result<(bool, String)> {
    const FAST: usize = 1 << 20;
    const SLOW: usize = 512 << 10;
    let (pair, map) = Pair::mapped(true)?;
    SockRef::from(&pair.b).set_recv_buffer_size(64 << 10)?;
    SockRef::from(&pair.a).set_send_buffer_size(64 << 10)?;
    let pattern = |from: usize, length: usize| -> Vec<u8> { (from..from + length).map(|i| (i % 251) as u8).collect() };
    (&pair.a).write_all(&pattern(0, FAST))?;
    must_be_fast(&map)?;
    map.redirect(false)?;
    let mut sender = pair.a.try_clone()?;
    let written = later(move || sender.write_all(&pattern(FAST, SLOW)));
    sleep(SETTLE);
    let held_back = written.try_recv().is_err();
    let reader = pair.b.try_clone()?;
    reader.set_read_timeout(Some(Duration::from_millis(1000)))?;
    let (mut read, mut pause, mut wrong) = (0, Duration::ZERO, None);
    while read < FAST + SLOW {
        let start = Instant::now();
        let bytes = match receive(&reader, 64 << 10) {
            Ok(bytes) if bytes.is_empty() => break,
            Ok(bytes) => bytes,
            Err(e) => return Ok((true, format!("stalled after {read} of {} bytes: {e}", FAST + SLOW))),
        };
        pause = pause.max(start.elapsed());
        let at = bytes.iter().enumerate().position(|(i, byte)| *byte != ((read + i) % 251) as u8);
        wrong = wrong.or(at.map(|at| read + at));
        read += bytes.len();
    }
    if let Some(at) = wrong {
        return Ok((true, format!("byte {at} of the stream is wrong")));
    }
    let back = if held_back { "was held back" } else { "was not held back" };
    Ok((
        pause > STALL || !held_back,
        format!(
            "{FAST} bytes redirected past SO_RCVBUF, then {SLOW} by TCP: the sender {back}, longest pause {pause:.0?}"
        ),
    ))
}

/// H3.
fn lost_on_delete() -> Result<(bool, String)> {
    let (pair, map) = Pair::mapped(true)?;
    (&pair.a).write_all(b"unread")?;
    must_be_fast(&map)?;
    map.delete(&pair.b)?;
    Ok(match take(&pair.b, 64, 0) {
        Ok(bytes) => (bytes != b"unread", format!("after the delete the receiver read {:?}", text(&bytes))),
        Err(e) => (true, format!("after the delete the receiver read nothing: {e}")),
    })
}

/// H4.
fn spurious_eagain() -> Result<(bool, String)> {
    let (pair, map) = Pair::mapped(true)?;
    (&pair.a).write_all(b"request")?;
    must_be_fast(&map)?;
    let reader = pair.a.try_clone()?;
    let answer = later(move || receive(&reader, 64));
    pair.a.shutdown(Shutdown::Write)?;
    sleep(4 * SETTLE);
    let early = answer.try_recv().ok();
    (&pair.b).write_all(b"answer").ok();
    let result = match early {
        Some(early) => early,
        None => answer.recv_timeout(ARRIVAL).map_err(|_| anyhow!("the blocking recv never returned"))?,
    };
    Ok(match result {
        Ok(bytes) if bytes == b"answer" => (false, "a blocking recv waited through shutdown(SHUT_WR)".into()),
        Ok(bytes) => (true, format!("a blocking recv returned {:?} at shutdown(SHUT_WR)", text(&bytes))),
        Err(e) => (true, format!("a blocking recv returned at shutdown(SHUT_WR): {e}")),
    })
}

/// H5.
fn short_waitall() -> Result<(bool, String)> {
    let (pair, map) = Pair::mapped(true)?;
    let reader = pair.b.try_clone()?;
    let answer = later(move || {
        let mut buffer = [MaybeUninit::uninit(); 50];
        SockRef::from(&reader).recv_with_flags(&mut buffer, libc::MSG_WAITALL)
    });
    (&pair.a).write_all(&[1; 10])?;
    must_be_fast(&map)?;
    sleep(SETTLE);
    (&pair.a).write_all(&[2; 40])?;
    Ok(match answer.recv_timeout(ARRIVAL) {
        Ok(Ok(50)) => (false, "recv(50, MSG_WAITALL) returned 50 bytes that came in two messages".into()),
        Ok(Ok(count)) => (true, format!("recv(50, MSG_WAITALL) returned {count} bytes")),
        Ok(Err(e)) => (true, format!("recv(50, MSG_WAITALL): {e}")),
        Err(_) => (true, "recv(50, MSG_WAITALL) did not return with 50 bytes there".into()),
    })
}

/// H6.
fn blind_splice() -> Result<(bool, String)> {
    let (pair, map) = Pair::mapped(true)?;
    (&pair.a).write_all(b"spliced")?;
    must_be_fast(&map)?;
    if !readable(&pair.b, ARRIVAL)? {
        bail!("redirected bytes do not make the socket readable");
    }
    // splice waits when the file says so, whatever its own flags: a blocking one would hang here
    pair.b.set_nonblocking(true)?;
    Ok(match probe::splice_out(pair.b.as_fd()) {
        Ok(7) => (false, "splice moved 7 of 7 redirected bytes".into()),
        Ok(count) => (true, format!("splice moved {count} of 7 redirected bytes")),
        Err(e) => (true, format!("poll says readable, splice says: {e}")),
    })
}

/// H6, the other way of reading without copying.
fn blind_zerocopy_receive() -> Result<(bool, String)> {
    let plain = Pair::new()?;
    (&plain.a).write_all(b"mapped")?;
    readable(&plain.b, ARRIVAL)?;
    match probe::receive_zerocopy_sees(plain.b.as_fd()) {
        Ok(true) => {}
        Ok(false) => bail!("TCP_ZEROCOPY_RECEIVE does not see TCP's own bytes here"),
        Err(e) => return Err(NotHere(format!("TCP_ZEROCOPY_RECEIVE does not work here: {e}")).into()),
    }
    let (pair, map) = Pair::mapped(true)?;
    (&pair.a).write_all(b"mapped")?;
    must_be_fast(&map)?;
    let sees = probe::receive_zerocopy_sees(pair.b.as_fd())?;
    Ok((!sees, format!("TCP_ZEROCOPY_RECEIVE sees TCP's bytes, and redirected ones: {sees}")))
}

/// H7, bytes that came by TCP to a socket that is in a sockmap.
fn fionread_tcp() -> Result<(bool, String)> {
    let (pair, _map) = Pair::mapped(false)?;
    (&pair.a).write_all(b"by TCP ")?;
    if !readable(&pair.b, ARRIVAL)? {
        bail!("nothing arrived over loopback");
    }
    let count = probe::readable_bytes(pair.b.as_fd())?;
    Ok((count != 7, format!("FIONREAD says {count} of 7 bytes that came by TCP")))
}

/// H7, redirected bytes.
fn fionread_fast() -> Result<(bool, String)> {
    let (pair, map) = Pair::mapped(true)?;
    (&pair.a).write_all(b"fast path")?;
    must_be_fast(&map)?;
    let count = probe::readable_bytes(pair.b.as_fd())?;
    Ok((count != 9, format!("FIONREAD says {count} of 9 redirected bytes")))
}

/// H8, urgent data.
fn oob_in_line() -> Result<(bool, String)> {
    let (pair, map) = Pair::mapped(true)?;
    (&pair.a).write_all(b"ab")?;
    SockRef::from(&pair.a).send_out_of_band(b"!")?;
    must_be_fast(&map)?;
    let mut seen = take(&pair.b, 16, 0)?;
    seen.extend(take(&pair.b, 16, 0).unwrap_or_default());
    let seen = text(&seen);
    Ok((seen.contains('!'), format!("sent ab and urgent !; read {seen} in line")))
}

/// H8, completions of zero-copy sends.
fn no_completion() -> Result<(bool, String)> {
    let notified = |socket: &TcpStream| -> bool {
        let end = Instant::now() + Duration::from_millis(60);
        while Instant::now() < end {
            // the error queue has no bytes, only its header: an empty read is a completion
            if take(socket, 64, libc::MSG_ERRQUEUE).is_ok() {
                return true;
            }
            sleep(Duration::from_millis(1));
        }
        false
    };
    let send = |pair: &Pair| -> Result<()> {
        probe::set_zerocopy(pair.a.as_fd())?;
        SockRef::from(&pair.a).send_with_flags(&[7; 32 << 10], libc::MSG_ZEROCOPY)?;
        readable(&pair.b, ARRIVAL)?;
        take(&pair.b, 64 << 10, 0)?;
        Ok(())
    };
    let plain = Pair::new()?;
    send(&plain).map_err(|e| NotHere(format!("MSG_ZEROCOPY does not work here: {e:#}")))?;
    if !notified(&plain.a) {
        bail!("MSG_ZEROCOPY by plain TCP was not completed either");
    }
    let (pair, map) = Pair::mapped(true)?;
    send(&pair)?;
    must_be_fast(&map)?;
    let came = notified(&pair.a);
    Ok((!came, format!("MSG_ZEROCOPY completes by TCP; redirected: {}", if came { "it does too" } else { "never" })))
}

/// H8, `SO_RCVLOWAT`.
fn ignored_lowat() -> Result<(bool, String)> {
    let (pair, map) = Pair::mapped(true)?;
    probe::set_receive_lowat(pair.b.as_fd(), 100)?;
    (&pair.a).write_all(&[7; 10])?;
    must_be_fast(&map)?;
    let early = readable(&pair.b, Duration::ZERO)?;
    Ok((early, format!("with SO_RCVLOWAT 100 and 10 redirected bytes, poll says readable: {early}")))
}

/// H8, the counters of `TCP_INFO`.
fn uncounted() -> Result<(bool, String)> {
    let (pair, map) = Pair::mapped(true)?;
    (&pair.a).write_all(&[7; 1000])?;
    must_be_fast(&map)?;
    take(&pair.b, 1000, 0)?;
    let counted = probe::bytes_received(pair.b.as_fd())?;
    Ok((counted < 1000, format!("TCP_INFO counts {counted} of 1000 bytes received")))
}

/// H9.
fn fin_for_rst() -> Result<(bool, String)> {
    let (pair, map) = Pair::mapped(true)?;
    (&pair.a).write_all(b"unread")?;
    must_be_fast(&map)?;
    drop(pair.b);
    pair.a.set_read_timeout(Some(ARRIVAL))?;
    Ok(match receive(&pair.a, 16) {
        Ok(_) => (true, "closing with unread bytes: the other end sees the end of the stream".into()),
        Err(e) if e.kind() == ErrorKind::ConnectionReset => (false, "closing with unread bytes resets, as TCP".into()),
        Err(e) => bail!("closing with unread bytes: {e}"),
    })
}

/// ULPs that are loaded.
static ULPS: OnceLock<String> = OnceLock::new();

/// To be called in the network namespace that the machine came up with: no other has this file.
pub fn note_ulps() {
    ULPS.get_or_init(|| std::fs::read_to_string("/proc/sys/net/ipv4/tcp_available_ulp").unwrap_or_default());
}

/// H10.
fn plaintext_to_tls() -> Result<(bool, String)> {
    // asking for a ULP loads its module: a check must not do that to a machine
    let loaded = ULPS.get().map_or("", String::as_str);
    if !loaded.split_whitespace().any(|ulp| ulp == "tls") {
        return Err(NotTried("kTLS is not loaded, so it was not tried".into()).into());
    }
    let (pair, map) = Pair::mapped(true)?;
    if let Err(e) = probe::set_tls_receive(pair.b.as_fd()) {
        return Err(NotHere(format!("this kernel takes no kTLS on a socket in a sockmap: {e}")).into());
    }
    (&pair.a).write_all(b"plaintext")?;
    if map.redirected()? == 0 {
        return Ok((false, "a message to a kTLS socket is not redirected".into()));
    }
    pair.b.set_read_timeout(Some(ARRIVAL))?;
    Ok(match receive(&pair.b, 64) {
        Ok(bytes) => (bytes == b"plaintext", format!("a kTLS receiver read {:?}", text(&bytes))),
        Err(e) => (false, format!("a kTLS receiver refuses plaintext: {e}")),
    })
}

/// H11.
fn asleep() -> Result<(bool, String)> {
    let (pair, map) = (Pair::new()?, Minimal::load()?);
    let reader = pair.b.try_clone()?;
    let answer = later(move || receive(&reader, 64));
    pair.enter(&map)?;
    map.redirect(true)?;
    (&pair.a).write_all(b"redirected")?;
    must_be_fast(&map)?;
    let woken = answer.recv_timeout(4 * SETTLE);
    map.redirect(false)?;
    (&pair.a).write_all(b"by TCP")?;
    Ok(match woken {
        Ok(Ok(bytes)) if bytes == b"redirected" => {
            (false, "a recv that slept in plain TCP saw redirected bytes".into())
        }
        Ok(other) => (true, format!("a recv that slept in plain TCP returned {other:?}")),
        Err(_) => {
            let then = answer.recv_timeout(ARRIVAL).ok().and_then(|r| r.ok()).map(|b| text(&b)).unwrap_or_default();
            (
                true,
                format!("a recv that slept in plain TCP never saw redirected bytes; a later TCP message gave {then:?}"),
            )
        }
    })
}

/// H12: what conntrack would see.
fn silent() -> Result<(bool, String)> {
    let packets = || -> Result<u64> {
        let table =
            std::fs::read_to_string("/proc/thread-self/net/dev").context("reading /proc/thread-self/net/dev")?;
        let line = table.lines().find_map(|l| l.trim().strip_prefix("lo:")).context("no lo in /proc/net/dev")?;
        Ok(line.split_whitespace().nth(1).context("no packet counter")?.parse()?)
    };
    let (pair, map) = Pair::mapped(true)?;
    sleep(SETTLE);
    let before = packets()?;
    for _ in 0..100 {
        (&pair.a).write_all(b"message")?;
        take(&pair.b, 64, 0)?;
    }
    must_be_fast(&map)?;
    let sent = packets()? - before;
    Ok((sent < 10, format!("100 messages made {sent} packets")))
}

/// H13.
fn busy() -> Result<(bool, String)> {
    let (pair, _first) = Pair::mapped(false)?;
    let second = Minimal::load()?;
    Ok(match second.insert(&pair.a) {
        Ok(()) => (false, "a second sockmap took the socket too".into()),
        Err(datapath::Error::Libbpf { why, .. }) => (true, format!("a second sockmap refuses the socket: {why:#}")),
        Err(e) => return Err(e.into()),
    })
}

/// H15.
fn kept_memory() -> Result<(bool, String)> {
    const CONNECTIONS: usize = 32;
    let used = || -> Result<usize> {
        let table = std::fs::read_to_string("/proc/thread-self/net/sockstat")
            .context("reading /proc/thread-self/net/sockstat")?;
        let line = table.lines().find_map(|l| l.strip_prefix("sockets: used ")).context("no count of sockets")?;
        Ok(line.trim().parse()?)
    };
    let closed = |mapped: bool| -> Result<(usize, Duration)> {
        let map = Minimal::load()?;
        let before = used()?;
        let pairs = (0..CONNECTIONS).map(|_| Pair::new()).collect::<Result<Vec<_>>>()?;
        for pair in &pairs {
            if mapped {
                pair.enter(&map)?;
            }
            // no TIME_WAIT: all that is left is what the sockmap keeps
            SockRef::from(&pair.a).set_linger(Some(Duration::ZERO))?;
        }
        drop(pairs);
        let start = Instant::now();
        let kept = used()?.saturating_sub(before);
        while used()? > before && start.elapsed() < Duration::from_millis(300) {
            sleep(Duration::from_millis(2));
        }
        Ok((kept, start.elapsed()))
    };
    let (plain, _) = closed(false)?;
    let (kept, until) = closed(true)?;
    Ok((
        kept > plain + CONNECTIONS / 4,
        format!(
            "of {} closed sockets, {plain} are left at once when plain, {kept} when mapped (for {until:.0?})",
            2 * CONNECTIONS
        ),
    ))
}

/// H16: bytes that arrived before a reset stay readable in TCP.
fn purged_at_close() -> Result<(bool, String)> {
    let (pair, map) = Pair::mapped(true)?;
    (&pair.a).write_all(b"unread")?;
    must_be_fast(&map)?;
    SockRef::from(&pair.a).set_linger(Some(Duration::ZERO))?;
    drop(pair.a);
    sleep(SETTLE);
    Ok(match take(&pair.b, 64, 0) {
        Ok(bytes) => (bytes != b"unread", format!("after a reset the receiver read {:?}", text(&bytes))),
        Err(e) => (true, format!("after a reset, bytes that had arrived were gone: {e}")),
    })
}

/// H17: two connections of one 127.0.0.1 4-tuple in two network namespaces, and the textbook program.
fn crossed(cgroup: &Path) -> Result<(bool, String)> {
    fn connect() -> Result<(TcpStream, TcpStream)> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 5000));
        let listener = TcpListener::bind(address).context("listening on port 5000")?;
        let client = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        client.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 40_000)).into()).context("binding port 40000")?;
        client.connect(&address.into())?;
        Ok((client.into(), listener.accept()?.0))
    }
    let _textbook = datapath::tuple::TextbookTuple::attach(&[cgroup])?;
    let (first_client, first_server) = connect()?;
    drop(first_server); // its key is free; the client lingers
    let other = Namespace::new("other")?;
    let (_second_client, second_server) = other.within(|| {
        probe::loopback_up().context("bringing lo up")?;
        connect()
    })?;
    (&second_server).write_all(b"secret")?;
    Ok(match take(&first_client, 64, 0) {
        Ok(bytes) if bytes == b"secret" => {
            (true, "with a 4-tuple as the key, bytes of one network namespace were read in another".into())
        }
        other => {
            (false, format!("with a 4-tuple as the key, the connection of another network namespace read {other:?}"))
        }
    })
}
