//! Ports that stay on TCP, whatever is attached.

use std::collections::BTreeSet;

use libbpf_rs::{MapCore, MapFlags};

use crate::skel::types;
use crate::view::Datapath;
use crate::{Error, Result};

/// How many ports may be left alone.
pub const PORTS: usize = types::abi::PORTS.0 as usize;

impl Datapath {
    /// The ports that are left alone; none where a version pinned the maps that did not know any.
    pub fn ports(&self) -> Result<BTreeSet<u16>> {
        if !self.pins.map("ports").exists() {
            return Ok(BTreeSet::new());
        }
        let map = self.map("ports")?;
        Ok(map.keys().filter_map(|key| Some(u16::from_ne_bytes(key.try_into().ok()?))).collect())
    }

    /// Leaves connections to these ports on TCP, as the client or the server sees the port, and to no others. It holds for
    /// connections that are established from now on; true when it was different before.
    pub fn leave_ports(&self, wanted: &BTreeSet<u16>) -> Result<bool> {
        let had = self.ports()?;
        if had == *wanted {
            return Ok(false);
        }
        let map = self.map("ports")?;
        let what = |e| Error::libbpf("writing the ports that are left alone", e);
        for port in wanted.difference(&had) {
            map.update(&port.to_ne_bytes(), &[1], MapFlags::ANY).map_err(what)?;
        }
        for port in had.difference(wanted) {
            map.delete(&port.to_ne_bytes()).map_err(what)?;
        }
        Ok(true)
    }
}
