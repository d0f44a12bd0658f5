//! One end of a measurement: a process of its own, in a pod's namespace and cgroup, pinned to a CPU.
//!
//! The bench starts its own binary again as the hidden verb `bench-peer`. A server says where it listens, a client or a
//! server says what it measured, one JSON message a line on standard output.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;
use nix::sched::{CloneFlags, CpuSet, sched_setaffinity, setns};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use super::stats::{Latencies, Percentiles};

/// What the two ends of a connection do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Work {
    /// A message there, a message back.
    Pingpong,
    /// Messages from the client to the server, as fast as they go.
    Flow,
    /// A connection for each request.
    Crr,
}

/// Where a server listens: an address and port, or the path of a Unix socket (it contains a slash).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// TCP.
    Tcp(SocketAddr),
    /// A Unix stream socket.
    Unix(PathBuf),
}

/// What a peer says on its standard output.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Message {
    /// A server is ready, here.
    Listening(String),
    /// A peer has done its work.
    Report(Report),
    /// A peer could not.
    Failed(String),
}

/// What one end measured.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Round trips, if this end times them.
    pub latency: Option<Percentiles>,
    /// Bytes (flow) or connections (crr) a second, if this end counts them.
    pub rate: Option<f64>,
    /// How often a blocking call said `EAGAIN` (hazard H4) and was tried again.
    pub again: u64,
    /// How often a write said `ENOMEM` (hazard H2) and was tried again.
    pub nomem: u64,
}

/// Goes where the peer belongs. To be called before anything else of the process.
pub fn settle(namespace: &Path, cgroup: Option<&Path>, cpu: Option<usize>) -> Result<()> {
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).context("prctl(PR_SET_PDEATHSIG)")?;
    if let Some(cgroup) = cgroup {
        let file = cgroup.join("cgroup.procs");
        std::fs::write(&file, "0").with_context(|| format!("cannot move into the cgroup: write {}", file.display()))?;
    }
    let file = File::open(namespace).with_context(|| format!("open the network namespace {}", namespace.display()))?;
    setns(file, CloneFlags::CLONE_NEWNET).with_context(|| format!("setns to {}", namespace.display()))?;
    if let Some(cpu) = cpu {
        let mut set = CpuSet::new();
        set.set(cpu).with_context(|| format!("no CPU {cpu} in a CPU set"))?;
        sched_setaffinity(Pid::from_raw(0), &set).with_context(|| format!("sched_setaffinity to CPU {cpu}"))?;
    }
    Ok(())
}

/// Says a message to the bench.
pub fn say(message: &Message) -> Result<()> {
    let mut out = io::stdout().lock();
    serde_json::to_writer(&mut out, message)?;
    out.write_all(b"\n")?;
    out.flush().context("the bench does not listen any more")
}

/// Listens, does the server's part for one connection (crr: for all that come) and reports.
/// `announce` is told where, once it does listen.
pub fn serve(work: Work, place: &Place, size: usize, announce: impl FnOnce(&Place) -> Result<()>) -> Result<Report> {
    let listener = Listener::bind(place)?;
    announce(&listener.place()?)?;
    let mut tries = Tries::default();
    let mut buffer = vec![0; size.max(READ_BUFFER)];
    match work {
        Work::Crr => loop {
            let mut connection = listener.accept()?;
            if tries.read_exact(&mut connection, &mut buffer[..size])? {
                tries.write_all(&mut connection, &buffer[..size])?;
                // The client closes first and keeps the TIME_WAIT; whether by FIN or by RST does not matter here.
                let _ = tries.read(&mut connection, &mut buffer);
            }
        },
        Work::Pingpong => {
            let mut connection = listener.accept()?;
            while tries.read_exact(&mut connection, &mut buffer[..size])? {
                tries.write_all(&mut connection, &buffer[..size])?;
            }
            Ok(tries.report(None, None))
        }
        Work::Flow => {
            let mut connection = listener.accept()?;
            let rate = receive(&mut tries, &mut connection, &mut buffer)?;
            Ok(tries.report(None, Some(rate)))
        }
    }
}

/// Connects, does the client's part for `warm_up`, which does not count (a flow has none), and then `time`, and reports.
pub fn drive(work: Work, place: &Place, size: usize, warm_up: Duration, time: Duration) -> Result<Report> {
    let mut tries = Tries::default();
    let mut buffer = vec![b'x'; size];
    let start = Instant::now();
    let (from, until) = (start + warm_up, start + warm_up + time);
    match work {
        Work::Pingpong => {
            let mut connection = Connection::connect(place)?;
            let mut latencies = Latencies::new();
            let mut before = Instant::now();
            while before < until {
                round_trip(&mut tries, &mut connection, &mut buffer)?;
                let after = Instant::now();
                if before >= from {
                    latencies.record(after - before);
                }
                before = after;
            }
            if latencies.count() == 0 {
                bail!("not one round trip was finished in {time:?}; give a longer --seconds");
            }
            Ok(tries.report(Some(latencies.percentiles()), None))
        }
        Work::Flow => {
            let mut connection = Connection::connect(place)?;
            while start.elapsed() < time {
                tries.write_all(&mut connection, &buffer)?;
            }
            Ok(tries.report(None, None))
        }
        Work::Crr => {
            let mut count = 0_u64;
            let mut now = start;
            let mut counted_from = from;
            while now < until {
                let mut connection = Connection::connect(place)?;
                round_trip(&mut tries, &mut connection, &mut buffer)?;
                drop(connection);
                now = Instant::now();
                if now < from {
                    counted_from = now;
                } else {
                    count += 1;
                }
            }
            Ok(tries.report(None, Some(count as f64 / (now - counted_from.min(now)).as_secs_f64().max(1e-9))))
        }
    }
}

/// What a reader that does not know the size of what comes would use.
const READ_BUFFER: usize = 64 << 10;

fn round_trip(tries: &mut Tries, connection: &mut Connection, buffer: &mut [u8]) -> Result<()> {
    tries.write_all(connection, buffer)?;
    if !tries.read_exact(connection, buffer)? {
        bail!("the server closed the connection before it answered");
    }
    Ok(())
}

/// Reads to the end and gives the bytes a second, from the beginning of the connection to its last byte. Nothing of it is
/// left out, so that a queue without bound gains nothing by taking more than its reader can read: draining it counts.
fn receive(tries: &mut Tries, connection: &mut Connection, buffer: &mut [u8]) -> Result<f64> {
    let first = Instant::now();
    let (mut bytes, mut last) = (0_u64, first);
    loop {
        match tries.read(connection, buffer)? {
            0 if bytes == 0 => bail!("the stream ended before its first byte"),
            0 => return Ok(bytes as f64 / (last - first).as_secs_f64().max(1e-9)),
            count => {
                bytes += count as u64;
                last = Instant::now();
            }
        }
    }
}

/// Blocking calls that are tried again where TCP would not have failed, and how often that was.
#[derive(Debug, Default)]
struct Tries {
    again: u64,
    nomem: u64,
}

impl Tries {
    fn read(&mut self, connection: &mut Connection, buffer: &mut [u8]) -> Result<usize> {
        loop {
            match connection.read(buffer) {
                Ok(count) => return Ok(count),
                Err(error) => self.may_retry(error).context("recv")?,
            }
        }
    }

    /// `false` when the other end closed before the first byte.
    fn read_exact(&mut self, connection: &mut Connection, buffer: &mut [u8]) -> Result<bool> {
        let mut done = 0;
        while done < buffer.len() {
            match self.read(connection, &mut buffer[done..])? {
                0 if done == 0 => return Ok(false),
                0 => bail!("the connection ended after {done} of {} bytes of a message", buffer.len()),
                count => done += count,
            }
        }
        Ok(true)
    }

    fn write_all(&mut self, connection: &mut Connection, buffer: &[u8]) -> Result<()> {
        let mut done = 0;
        while done < buffer.len() {
            match connection.write(&buffer[done..]) {
                Ok(0) => bail!("send took nothing"),
                Ok(count) => done += count,
                Err(error) => self.may_retry(error).context("send")?,
            }
        }
        Ok(())
    }

    fn may_retry(&mut self, error: io::Error) -> io::Result<()> {
        match error.kind() {
            ErrorKind::Interrupted => {}
            ErrorKind::WouldBlock => self.again += 1,
            ErrorKind::OutOfMemory => {
                self.nomem += 1;
                std::thread::yield_now();
            }
            _ => return Err(error),
        }
        Ok(())
    }

    fn report(&self, latency: Option<Percentiles>, rate: Option<f64>) -> Report {
        Report { latency, rate, again: self.again, nomem: self.nomem }
    }
}

enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener, PathBuf),
}

impl Listener {
    fn bind(place: &Place) -> Result<Self> {
        match place {
            Place::Tcp(address) => TcpListener::bind(address).map(Self::Tcp),
            Place::Unix(path) => UnixListener::bind(path).map(|listener| Self::Unix(listener, path.clone())),
        }
        .with_context(|| format!("cannot listen on {place}"))
    }

    fn place(&self) -> Result<Place> {
        Ok(match self {
            Self::Tcp(listener) => Place::Tcp(listener.local_addr().context("getsockname")?),
            Self::Unix(_, path) => Place::Unix(path.clone()),
        })
    }

    fn accept(&self) -> Result<Connection> {
        match self {
            Self::Tcp(listener) => listener.accept().and_then(|(stream, _)| Connection::tcp(stream)),
            Self::Unix(listener, _) => listener.accept().map(|(stream, _)| Connection::Unix(stream)),
        }
        .context("accept")
    }
}

enum Connection {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Connection {
    fn connect(place: &Place) -> Result<Self> {
        match place {
            Place::Tcp(address) => TcpStream::connect(address).and_then(Self::tcp),
            Place::Unix(path) => UnixStream::connect(path).map(Self::Unix),
        }
        .with_context(|| format!("cannot connect to {place}"))
    }

    fn tcp(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        Ok(Self::Tcp(stream))
    }
}

impl Read for Connection {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read(buffer),
            Self::Unix(stream) => stream.read(buffer),
        }
    }
}

impl Write for Connection {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.write(buffer),
            Self::Unix(stream) => stream.write(buffer),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => path.display().fmt(f),
        }
    }
}

impl std::str::FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.contains('/') {
            true => Ok(Self::Unix(text.into())),
            false => {
                text.parse().map(Self::Tcp).map_err(|e| format!("{e}: write ADDRESS:PORT or the path of a socket"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(work: Work, place: Place, size: usize) -> (Result<Report>, Result<Report>) {
        let (warm_up, time) = (Duration::from_millis(10), Duration::from_millis(50));
        let (sender, listening) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            let announce = move |place: &Place| Ok(sender.send(place.clone())?);
            let server = scope.spawn(move || serve(work, &place, size, announce));
            let client = drive(work, &listening.recv().unwrap(), size, warm_up, time);
            (server.join().unwrap(), client)
        })
    }

    #[test]
    fn a_place_reads_back() {
        for text in ["10.77.0.2:80", "[fd00::1]:80", "/tmp/socket"] {
            assert_eq!(text.parse::<Place>().unwrap().to_string(), text);
        }
        assert!("10.77.0.2".parse::<Place>().unwrap_err().contains("ADDRESS:PORT"));
    }

    #[test]
    fn pingpong_and_flow_measure_on_tcp_and_unix() {
        let directory = tempfile::tempdir().unwrap();
        for (number, work) in [Work::Pingpong, Work::Flow].into_iter().enumerate() {
            let unix = Place::Unix(directory.path().join(number.to_string()));
            for place in [Place::Tcp("127.0.0.1:0".parse().unwrap()), unix] {
                let (server, client) = pair(work, place, 100);
                let (server, client) = (server.unwrap(), client.unwrap());
                match work {
                    Work::Pingpong => assert!(client.latency.unwrap().p50 > 0.0),
                    _ => assert!(server.rate.unwrap() > 0.0),
                }
            }
        }
    }

    #[test]
    fn a_message_is_one_line_of_json() {
        let text = serde_json::to_string(&Message::Listening("a:1".into())).unwrap();
        assert_eq!(text, r#"{"listening":"a:1"}"#);
    }
}
