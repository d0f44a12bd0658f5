//! One generation of pins, as every version can work with it: the little that never changes between ABIs.
//!
//! That is: the names of pins; `about` begins with the ABI number; `workloads` maps a cgroup id to `struct workload`;
//! `sockets` is the sockhash; `shared_socket_drain` is an iterator over it which makes draining halves leave (on kernels
//! before 5.12 a program for one key).

use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};

use libbpf_rs::{MapCore, MapFlags, MapHandle};

use crate::pins::{ABOUT, Pins};
use crate::skel::types;
use crate::{Error, Result, kernel, sys};

/// Whether a detach has begun, and its live pairs are to leave.
pub(crate) fn is_leaving(workload: &types::workload) -> bool {
    [types::draining::DRAINING_LEAVE.0, types::draining::DRAINING_CLEAN.0].contains(&workload.draining)
}

impl Pins {
    pub(crate) fn open_map(&self, name: &str) -> Result<MapHandle> {
        let path = self.map(name);
        MapHandle::from_pinned_path(&path)
            .map_err(|e| Error::libbpf(format!("opening the pinned map {}", path.display()), e))
    }

    /// Every element of a hash map, as a struct of `bpf/abi.h`; one that is inserted or deleted meanwhile may be missing.
    pub(crate) fn each<K: Copy, V: Copy>(&self, name: &str, mut see: impl FnMut(K, V)) -> Result<()> {
        let map = self.open_map(name)?;
        let (key, value) = (map.key_size() as usize, map.value_size() as usize);
        sys::each_element(map.as_fd(), key, value, |key, value| {
            if let (Some(key), Some(value)) = (sys::read_pod(key), sys::read_pod(value)) {
                see(key, value);
            }
        })
        .map_err(|e| Error::system(format!("reading the map {}", self.map(name).display()), e))
    }

    pub(crate) fn open_program(&self, name: &str) -> Result<OwnedFd> {
        let path = self.program(name);
        sys::open_pin(&path).map_err(|e| Error::system(format!("opening the pinned program {}", path.display()), e))
    }

    /// The settings, as its version wrote them.
    pub(crate) fn about(&self) -> Result<Vec<u8>> {
        let value = self
            .open_map(ABOUT)?
            .lookup(&0u32.to_ne_bytes(), MapFlags::ANY)
            .map_err(|e| Error::libbpf("reading the settings", e))?;
        Ok(value.unwrap_or_default())
    }

    pub(crate) fn abi(&self) -> Result<u32> {
        Ok(sys::read_pod(&self.about()?).unwrap_or(0))
    }

    pub(crate) fn workloads(&self) -> Result<Vec<(u64, types::workload)>> {
        let map = self.open_map("workloads")?;
        let mut list = Vec::new();
        for key in map.keys() {
            let value = map.lookup(&key, MapFlags::ANY).map_err(|e| Error::libbpf("reading the workloads", e))?;
            if let (Some(id), Some(workload)) = (sys::read_pod(&key), value.as_deref().and_then(sys::read_pod)) {
                list.push((id, workload));
            }
        }
        Ok(list)
    }

    /// Whether the workload is known here.
    pub(crate) fn set_draining(&self, id: u64, draining: types::draining) -> Result<bool> {
        let map = self.open_map("workloads")?;
        let what = |e| Error::libbpf(format!("marking the workload {id} as draining"), e);
        let old = map.lookup(&id.to_ne_bytes(), MapFlags::ANY).map_err(what)?;
        let Some(mut value) = old.as_deref().and_then(sys::read_pod::<types::workload>) else { return Ok(false) };
        value.draining = draining.0;
        map.update(&id.to_ne_bytes(), sys::pod_bytes(&value), MapFlags::ANY).map_err(what)?;
        Ok(true)
    }

    /// Sockets in the sockhash.
    pub(crate) fn sockets(&self) -> Result<u64> {
        Ok(self.open_map("sockets")?.keys().count() as u64)
    }

    /// One try to make the halves of draining workloads leave; says how many could not.
    pub(crate) fn drain_once(&self) -> Result<u64> {
        if !self.workloads()?.iter().any(|(_, w)| is_leaving(w)) {
            return Ok(0);
        }
        let marks = self
            .walk("shared_socket_drain", "sockets")
            .map_err(|e| Error::system("making the halves of draining workloads leave", e))?;
        // the first ABI writes no marks, and knows one kind of draining, which takes all out
        if self.abi()? < 2 { self.sockets() } else { Ok(marks) }
    }

    /// Runs a program over all keys of a map: an iterator, or where that may not do it, step by step. What it marked.
    pub(crate) fn walk(&self, program: &str, map: &str) -> std::io::Result<u64> {
        let wrong = |e: Error| std::io::Error::other(e.to_string());
        let (program, map) = (self.open_program(program).map_err(wrong)?, self.open_map(map).map_err(wrong)?);
        if kernel::has_fetching_atomics() {
            let mut marks = Vec::new();
            sys::iterate(program.as_fd(), map.as_fd())?.read_to_end(&mut marks)?;
            return Ok(marks.len() as u64);
        }
        // all keys first: a walk that stands on a key which is deleted begins again
        let keys: Vec<Vec<u8>> = map.keys().collect();
        keys.iter().map(|key| sys::run_step(program.as_fd(), key).map(u64::from)).sum()
    }
}
