//! A sockhash and the least of a verdict (`probe/minimal.bpf.c`), filled by hand.

use std::net::TcpStream;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use libbpf_rs::{MapCore, MapFlags, Object, ObjectBuilder};

use crate::{Error, Result, sys};

static MINIMAL: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/minimal.bpf.o"));

/// A sockhash of its own; it ends with this value, and its sockets are plain TCP again.
pub struct Minimal {
    object: Object,
}

impl Minimal {
    /// Loads it, with all messages on TCP.
    pub fn load() -> Result<Self> {
        let object = ObjectBuilder::default()
            .open_memory(MINIMAL)
            .and_then(|open| open.load())
            .map_err(|e| Error::libbpf("loading the minimal sockmap program", e))?;
        let this = Self { object };
        let program = this.object.progs().next().ok_or_else(|| missing("program"))?;
        sys::attach_sk_msg(program.as_fd(), this.sockets()?)
            .map_err(|e| Error::system("attaching the minimal sk_msg program", e))?;
        Ok(this)
    }

    pub(super) fn sockets(&self) -> Result<BorrowedFd<'_>> {
        let map = self.object.maps().find(|m| m.name() == "minimal_sockets").ok_or_else(|| missing("sockhash"))?;
        let fd = map.as_fd().as_raw_fd();
        // SAFETY: the descriptor belongs to the object, which lives as long as the borrow of `self`.
        Ok(unsafe { BorrowedFd::borrow_raw(fd) })
    }

    /// From now on messages between sockets that are both in go into the other's ingress queue, or by TCP.
    pub fn redirect(&self, on: bool) -> Result<()> {
        let map = self.object.maps().find(|m| m.name() == "minimal_states").ok_or_else(|| missing("array"))?;
        // struct minimal_state: the switch, padding, two counters
        let mut value = [0u8; 24];
        value[0] = u8::from(on);
        map.update(&0u32.to_ne_bytes(), &value, MapFlags::ANY)
            .map_err(|e| Error::libbpf("switching the minimal sockmap program", e))
    }

    /// Messages that were redirected since the last switch.
    pub fn redirected(&self) -> Result<u64> {
        let map = self.object.maps().find(|m| m.name() == "minimal_states").ok_or_else(|| missing("array"))?;
        let value = map
            .lookup(&0u32.to_ne_bytes(), MapFlags::ANY)
            .map_err(|e| Error::libbpf("reading the minimal sockmap program's counters", e))?;
        value.and_then(|v| sys::read_pod::<[u64; 3]>(&v)).map(|v| v[2]).ok_or_else(|| missing("counter"))
    }

    /// Puts an established connection's end in.
    pub fn insert(&self, socket: &TcpStream) -> Result<()> {
        let value = u64::try_from(socket.as_raw_fd()).unwrap_or(u64::MAX);
        let map = self.object.maps().find(|m| m.name() == "minimal_sockets").ok_or_else(|| missing("sockhash"))?;
        map.update(&key(socket)?, &value.to_ne_bytes(), MapFlags::NO_EXIST)
            .map_err(|e| Error::libbpf("putting a socket into the sockhash", e))
    }

    /// Takes it out, unread bytes or not.
    pub fn delete(&self, socket: &TcpStream) -> Result<()> {
        let map = self.object.maps().find(|m| m.name() == "minimal_sockets").ok_or_else(|| missing("sockhash"))?;
        map.delete(&key(socket)?).map_err(|e| Error::libbpf("taking a socket out of the sockhash", e))
    }
}

fn missing(what: &str) -> Error {
    Error::Unsupported { what: format!("the minimal sockmap program has no {what}"), todo: "rebuild".into() }
}

/// Local and remote port, as the program computes them.
fn key(socket: &TcpStream) -> Result<[u8; 8]> {
    let what = |e| Error::system("asking a socket for its ports", e);
    let local = u32::from(socket.local_addr().map_err(what)?.port()).to_ne_bytes();
    let remote = u32::from(socket.peer_addr().map_err(what)?.port()).to_ne_bytes();
    let mut key = [0; 8];
    key[..4].copy_from_slice(&local);
    key[4..].copy_from_slice(&remote);
    Ok(key)
}
