//! A process of the fuzzer, in a pod's namespace and cgroup: a server with its listeners, or a client with its threads.
//! It prints one record a line for each end of a connection.

use std::collections::HashMap;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, sockopt};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};
use rustix::thread::gettid;
use serde::{Deserialize, Serialize};
use shared_socket::bench::peer::settle;
use shared_socket::lab::{SERVER_ADDRESS, SERVER_ADDRESS6, SERVICE_ADDRESS};
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};

use crate::end::{End, Ended, Record, Seen};
use crate::plan::{Class, Mix, Plan, Route};

/// What a worker prints, one a line.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Said {
    /// A server listens.
    Ready,
    /// An end has ended.
    Record(Box<Record>),
    /// The server's end of a connection that ended before it said which one it is.
    Anonymous(Option<String>),
    /// A client's connect failed.
    Refused(u32, String),
    /// An end lasts so long that it was sent a probe: its connection, its port, and what was seen before that.
    Stuck(u32, u16, String),
    /// A client has run all its connections.
    Done,
}

/// Which process this is.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Network namespace to run in
    #[arg(long)]
    pub namespace: PathBuf,
    /// Cgroup to run in
    #[arg(long)]
    pub cgroup: PathBuf,
    /// Seed of the run
    #[arg(long)]
    pub seed: u64,
    /// Number of this worker; of a server: its ports
    #[arg(long)]
    pub worker: u32,
    /// Accept, or connect
    #[arg(long)]
    pub server: bool,
    /// Connections at a time (client)
    #[arg(long, default_value_t = 8)]
    pub threads: u32,
    /// Connections a second at most
    #[arg(long)]
    pub rate: Option<f64>,
    /// Number of the first connection (client)
    #[arg(long, default_value_t = 0)]
    pub first: u32,
    /// Connections at most (client)
    #[arg(long, default_value_t = u32::MAX)]
    pub count: u32,
    /// Seconds (client)
    #[arg(long, default_value_t = 60)]
    pub seconds: u64,
    /// How many servers there are to choose from (client)
    #[arg(long, default_value_t = 1)]
    pub servers: u32,
    /// What the connections do
    #[arg(long, value_enum)]
    pub mix: Mix,
    /// `MSG_WAITALL` on blocking sockets, too
    #[arg(long)]
    pub waitall: bool,
    /// Close where a blocking call says EAGAIN
    #[arg(long)]
    pub give_up: bool,
}

/// A blocking call that has not come back after so long never will.
const STUCK: Duration = Duration::from_secs(75);
const PRELUDE: u32 = 0x5a5a_f00d;

/// After so long the watchdog sends a keepalive probe: a reset that a full queue has dropped on its way is not sent again, and
/// without a probe no TCP would ever hear of it.
const PROBE: Duration = Duration::from_secs(45);

/// An end under way in this process, for the watchdog.
struct Live {
    since: Instant,
    worker: u32,
    thread: Pid,
    socket: Arc<AtomicI32>,
    cookie: u64,
    /// The conductor was told, and looks at both ends as they are.
    told: bool,
    probed: bool,
}

/// The connections under way in this process, for the watchdog.
type Running = Mutex<HashMap<u32, Live>>;

struct Shared {
    args: Args,
    running: Running,
    began: Instant,
    stop: AtomicBool,
    next: AtomicU32,
}

fn say(said: &Said) {
    let mut out = std::io::stdout().lock();
    let Ok(mut line) = serde_json::to_vec(said) else { return };
    line.push(b'\n');
    // the conductor has gone: so do we
    if out.write_all(&line).and_then(|()| out.flush()).is_err() {
        std::process::exit(1);
    }
}

fn port(worker: u32, class: Class) -> u16 {
    7000 + 10 * worker as u16 + class as u16
}

/// Runs the worker; returns when its work is done.
pub fn run(args: Args) -> Result<()> {
    settle(&args.namespace, Some(&args.cgroup), None)?;
    let server = args.server;
    let shared = Arc::new(Shared {
        next: AtomicU32::new(args.first),
        args,
        running: Running::default(),
        began: Instant::now(),
        stop: AtomicBool::new(false),
    });
    let watched = Arc::clone(&shared);
    std::thread::spawn(move || watch(&watched));
    if server { serve(&shared) } else { connect_all(&shared) }
}

/// Probes the other end of connections that last too long, and reports ends that hang in a blocking call.
fn watch(shared: &Shared) {
    loop {
        std::thread::sleep(Duration::from_secs(2));
        let mut running = shared.running.lock().unwrap_or_else(PoisonError::into_inner);
        for (connection, live) in running.iter_mut().filter(|(_, live)| live.since.elapsed() > PROBE) {
            if !live.told {
                live.told = true;
                let address = own(live).and_then(|socket| Ok(SockRef::from(&socket).local_addr()?));
                let port = address.ok().and_then(|address| Some(address.as_socket()?.port()));
                say(&Said::Stuck(*connection, port.unwrap_or_default(), look_at(live)));
            } else if !live.probed {
                live.probed = true;
                if let Err(error) = probe(live) {
                    say(&Said::Stuck(*connection, 0, format!("no probe: {error:#}")));
                }
            }
        }
        for (connection, live) in running.extract_if(|_, live| live.since.elapsed() > STUCK) {
            let record = Record {
                connection,
                server: shared.args.server,
                worker: live.worker,
                at: shared.began.elapsed().as_millis() as u64,
                probed: live.probed,
                failures: vec![format!(
                    "HANG: a call has not come back after {} s: {}",
                    STUCK.as_secs(),
                    look_at(&live)
                )],
                ..Record::default()
            };
            say(&Said::Record(Box::new(record)));
        }
    }
}

/// Where the end's thread is.
fn look_at(live: &Live) -> String {
    let task = PathBuf::from(format!("/proc/self/task/{}", live.thread.as_raw_nonzero()));
    format!("after {:.0} s: {}", live.since.elapsed().as_secs_f64(), look_at_task(&task))
}

/// Where the thread of a folder `/proc/PID/task/TID` is.
pub fn look_at_task(task: &Path) -> String {
    let read = |file| std::fs::read_to_string(task.join(file)).unwrap_or_default().trim().replace('\n', " ");
    format!("syscall {}, stack {}", read("syscall"), read("stack"))
}

/// The end's socket, if its descriptor is still the same one.
fn own(live: &Live) -> Result<OwnedFd> {
    let this = pidfd_open(getpid(), PidfdFlags::empty()).context("pidfd_open")?;
    let socket =
        pidfd_getfd(&this, live.socket.load(Ordering::Relaxed), PidfdGetfdFlags::empty()).context("pidfd_getfd")?;
    anyhow::ensure!(sockopt::socket_cookie(&socket).context("SO_COOKIE")? == live.cookie, "the socket is closed");
    Ok(socket)
}

fn probe(live: &Live) -> Result<()> {
    let second = Duration::from_secs(1);
    let keepalive = TcpKeepalive::new().with_time(second).with_interval(second);
    SockRef::from(&own(live)?).set_tcp_keepalive(&keepalive).context("SO_KEEPALIVE")
}

fn run_end(shared: &Shared, socket: OwnedFd, plan: &Plan, connection: u32, worker: u32) -> Option<OwnedFd> {
    let args = &shared.args;
    let lock = || shared.running.lock().unwrap_or_else(PoisonError::into_inner);
    let number = Arc::default();
    let live = Live {
        since: Instant::now(),
        worker,
        thread: gettid(),
        socket: Arc::clone(&number),
        cookie: sockopt::socket_cookie(&socket).unwrap_or_default(),
        told: false,
        probed: false,
    };
    lock().insert(connection, live);
    let end = End::new(socket, plan, args.seed, connection, args.server, worker)
        .waitall(args.waitall)
        .gives_up(args.give_up)
        .number(number);
    let (mut record, back) = end.run();
    record.at = shared.began.elapsed().as_millis() as u64;
    // the watchdog has reported it already?
    if let Some(live) = lock().remove(&connection) {
        record.probed = live.probed;
        say(&Said::Record(Box::new(record)));
    }
    back
}

fn serve(shared: &Arc<Shared>) -> Result<()> {
    for class in Class::ALL {
        let socket = Socket::new(Domain::IPV6, Type::STREAM, Some(Protocol::TCP)).context("socket")?;
        socket.set_reuse_address(true).context("SO_REUSEADDR")?;
        socket.set_only_v6(false).context("IPV6_V6ONLY")?;
        let address = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port(shared.args.worker, class));
        socket.bind(&address.into()).with_context(|| format!("bind {address}"))?;
        socket.listen(4096).context("listen")?;
        let shared = Arc::clone(shared);
        std::thread::spawn(move || accept_all(&shared, &socket));
    }
    say(&Said::Ready);
    // the conductor closes our standard input when no client is left
    let _ = std::io::stdin().lock().read_to_end(&mut Vec::new());
    let until = Instant::now() + STUCK + Duration::from_secs(10);
    while Instant::now() < until {
        if shared.running.lock().unwrap_or_else(PoisonError::into_inner).is_empty() {
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    std::thread::sleep(Duration::from_millis(200));
    Ok(())
}

fn accept_all(shared: &Arc<Shared>, listener: &Socket) {
    loop {
        let Ok((socket, _)) = listener.accept() else {
            std::thread::sleep(Duration::from_millis(1));
            continue;
        };
        let shared = Arc::clone(shared);
        let begun = std::thread::Builder::new().stack_size(256 << 10).spawn(move || accepted(&shared, socket.into()));
        if begun.is_err() {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Reads the prelude without blocking, which proves nothing bad of any kind, then does the server's part.
fn accepted(shared: &Shared, socket: OwnedFd) {
    let mut head = [0u8; 8];
    let mut have = 0;
    let until = Instant::now() + STUCK;
    while have < head.len() {
        let mut fds = [PollFd::new(&socket, PollFlags::IN)];
        let _ = poll(&mut fds, Some(&Timespec { tv_sec: 1, tv_nsec: 0 }));
        match rustix::net::recv(&socket, &mut head[have..], RecvFlags::DONTWAIT) {
            Ok((0, _)) | Err(Errno::CONNRESET | Errno::PIPE) => {
                return say(&Said::Anonymous(None));
            }
            Ok((count, _)) => have += count,
            Err(Errno::AGAIN) if Instant::now() < until => {}
            Err(error) => return say(&Said::Anonymous(Some(format!("the first bytes do not come: {error}")))),
        }
    }
    let word = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    if word(0) != PRELUDE {
        return say(&Said::Anonymous(Some(format!("the first bytes are wrong: {head:02x?}"))));
    }
    let connection = word(4);
    let plan = Plan::new(shared.args.seed, connection, shared.args.mix);
    run_end(shared, socket, &plan, connection, shared.args.worker);
}

fn connect_all(shared: &Arc<Shared>) -> Result<()> {
    let threads: Vec<_> = (0..shared.args.threads)
        .map(|_| {
            let shared = Arc::clone(shared);
            std::thread::spawn(move || dial_all(&shared))
        })
        .collect();
    for thread in threads {
        if thread.join().is_err() {
            say(&Said::Refused(0, "a client thread panicked".to_owned()));
        }
    }
    say(&Said::Done);
    Ok(())
}

fn dial_all(shared: &Shared) {
    let args = &shared.args;
    let until = shared.began + Duration::from_secs(args.seconds);
    // a socket that was disconnected, for another connection; one that was v4-mapped stays so: Linux sends a SYN to an
    // IPv6 address from it that never arrives
    let mut spare: Option<(OwnedFd, (Domain, bool))> = None;
    while Instant::now() < until && !shared.stop.load(Ordering::Relaxed) {
        let connection = shared.next.fetch_add(1, Ordering::Relaxed);
        let number = connection - args.first;
        if number >= args.count {
            return;
        }
        if let Some(rate) = args.rate {
            let due = shared.began + Duration::from_secs_f64(f64::from(number) / rate);
            std::thread::sleep(due.min(until).saturating_duration_since(Instant::now()));
        }
        let plan = Plan::new(args.seed, connection, args.mix);
        let worker = connection % args.servers;
        let (address, domain) = target(plan.route, port(worker, plan.class));
        let kind = (domain, plan.route == Route::Mapped);
        let used = spare.take().filter(|(_, was)| *was == kind).map(|(socket, _)| socket);
        let again = used.is_some();
        match dial(address, domain, &plan, used, connection) {
            Ok(Dialed::Open(socket)) => {
                spare = run_end(shared, socket, &plan, connection, worker).map(|socket| (socket, kind));
            }
            Ok(Dialed::Gone) => {
                // reset before it began: only a killed server does that
                let at = shared.began.elapsed().as_millis() as u64;
                let seen = Seen::Reset;
                let ended = Ended::Closed;
                say(&Said::Record(Box::new(Record { connection, worker, seen, ended, at, ..Record::default() })));
            }
            Err(error) if error.raw_os_error() == Some(Errno::ADDRNOTAVAIL.raw_os_error()) => {
                std::thread::sleep(Duration::from_millis(2)); // TIME_WAIT holds all ports
            }
            // the product refuses a used socket while a message of its last connection is being delivered
            Err(error) if again && error.raw_os_error() == Some(Errno::CONNREFUSED.raw_os_error()) => {}
            Err(error) => say(&Said::Refused(
                worker,
                format!("connect to {address} (used socket {again}, blocking {}): {error}", plan.blocking_connect),
            )),
        }
    }
}

fn target(route: Route, port: u16) -> (SocketAddr, Domain) {
    let ip: IpAddr = match route {
        Route::V4 => SERVER_ADDRESS.into(),
        Route::V6 => SERVER_ADDRESS6.into(),
        Route::Mapped => SERVER_ADDRESS.to_ipv6_mapped().into(),
        Route::Service => SERVICE_ADDRESS.into(),
        Route::Loopback4 => Ipv4Addr::LOCALHOST.into(),
        Route::Loopback6 => Ipv6Addr::LOCALHOST.into(),
    };
    let domain = if ip.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
    (SocketAddr::new(ip, port), domain)
}

enum Dialed {
    Open(OwnedFd),
    Gone,
}

fn dial(
    address: SocketAddr,
    domain: Domain,
    plan: &Plan,
    used: Option<OwnedFd>,
    connection: u32,
) -> std::io::Result<Dialed> {
    let socket = match used {
        Some(socket) => Socket::from(socket),
        None => Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?,
    };
    socket.set_linger(None)?;
    if plan.blocking_connect {
        socket.set_nonblocking(false)?;
        socket.connect(&address.into())?;
    } else {
        socket.set_nonblocking(true)?;
        match socket.connect(&address.into()) {
            Err(error) if error.raw_os_error() == Some(Errno::INPROGRESS.raw_os_error()) => {
                let mut fds = [PollFd::new(&socket, PollFlags::OUT)];
                poll(&mut fds, Some(&Timespec { tv_sec: 60, tv_nsec: 0 }))?;
                if let Some(error) = socket.take_error()? {
                    return Err(error);
                }
            }
            other => other?,
        }
    }
    let socket = OwnedFd::from(socket);
    let mut head = [0u8; 8];
    head[..4].copy_from_slice(&PRELUDE.to_le_bytes());
    head[4..].copy_from_slice(&connection.to_le_bytes());
    // a used socket may still hold what its last connection has not sent
    for _ in 0..500 {
        match rustix::net::send(&socket, &head, SendFlags::NOSIGNAL) {
            Ok(8) => return Ok(Dialed::Open(socket)),
            Ok(count) => return Err(std::io::Error::other(format!("the first send took {count} of 8 bytes"))),
            Err(Errno::CONNRESET | Errno::PIPE) => return Ok(Dialed::Gone),
            Err(Errno::AGAIN) => std::thread::sleep(Duration::from_millis(10)),
            Err(error) => return Err(error.into()),
        }
    }
    Err(std::io::Error::other("a send of 8 bytes says EAGAIN for 5 s"))
}
