//! What was learned of each kind of connection, and the hazards that userspace remembers for the kernel half.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use libbpf_rs::{MapCore, MapFlags};
use serde::{Deserialize, Serialize};

use crate::skel::types;
use crate::view::cgroup_paths;
use crate::{Datapath, Error, Result, Role, host, sys};

/// One entry of the append-only list in `bpf/hazards.h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hazard {
    /// Its bit in a set of hazards.
    pub bit: u32,
    /// Name, as printed and remembered.
    pub name: &'static str,
    /// Meaning, for people.
    pub text: &'static str,
}

/// All hazards, by bit.
pub const HAZARDS: &[Hazard] = include!(concat!(env!("OUT_DIR"), "/hazards.rs"));

/// Names of a set of hazards.
pub fn hazard_names(set: u32) -> Vec<&'static str> {
    HAZARDS.iter().filter(|h| set & 1 << h.bit != 0).map(|h| h.name).collect()
}

/// The set of these hazards; names of a later version are not in it.
pub fn hazard_set<S: AsRef<str>>(names: &[S]) -> u32 {
    let bit = |name: &S| HAZARDS.iter().find(|h| h.name == name.as_ref()).map_or(0, |h| 1 << h.bit);
    names.iter().map(bit).fold(0, |set, bit| set | bit)
}

/// Accepted sockets of a listener, or connections of a cgroup to a destination.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct KindKey {
    /// Which end.
    pub role: Role,
    /// The destination's address; none for a listener.
    pub addr: Option<IpAddr>,
    /// The listener's or the destination's port.
    pub port: u16,
}

/// What is known of a kind.
#[derive(Debug, Clone, Serialize)]
pub struct Kind {
    /// The cgroup of its sockets.
    pub cgroup_id: u64,
    /// Path below the cgroup2 mount, or `None` when the cgroup is gone.
    pub cgroup: Option<PathBuf>,
    /// Which sockets of it.
    #[serde(flatten)]
    pub key: KindKey,
    /// Connections that showed only what is safe.
    pub good: u32,
    /// What it has shown that the fast path cannot serve; one is enough to keep it on TCP.
    pub hazards: Vec<&'static str>,
    /// Connections whose length was measured.
    pub lives: u32,
    /// Messages a connection, both ways, a moving average.
    pub messages: f64,
    /// May be accelerated: no hazard, and enough good connections.
    pub eligible: bool,
}

impl KindKey {
    pub(crate) fn read(raw: &types::kind_key) -> Self {
        let addr = if raw.role == 1 {
            None
        } else if raw.addr[4..].iter().all(|b| *b == 0) {
            // four bytes are an IPv4 address; no IPv6 address in use ends in 96 zero bits
            Some(IpAddr::V4(Ipv4Addr::new(raw.addr[0], raw.addr[1], raw.addr[2], raw.addr[3])))
        } else {
            Some(IpAddr::V6(Ipv6Addr::from(raw.addr)))
        };
        Self { role: Role::from_number(raw.role), addr, port: raw.port }
    }

    fn raw(&self, cgroup: u64) -> types::kind_key {
        let mut raw = types::kind_key {
            cgroup,
            port: self.port,
            role: u8::from(self.role == Role::Server),
            ..Default::default()
        };
        match self.addr {
            Some(IpAddr::V4(v4)) => raw.addr[..4].copy_from_slice(&v4.octets()),
            Some(IpAddr::V6(v6)) => raw.addr = v6.octets(),
            None => {}
        }
        raw
    }
}

impl Datapath {
    /// All kinds that something is known of.
    pub fn kinds(&self) -> Result<Vec<Kind>> {
        let needed = sys::read_pod::<types::settings>(&self.pins.about()?).map_or(u32::MAX, |s| s.learn_connections);
        let map = self.map("kinds")?;
        let mut list = Vec::new();
        for key in map.keys() {
            let value = map.lookup(&key, MapFlags::ANY).map_err(|e| Error::libbpf("reading the kinds", e))?;
            let (Some(key), Some(value)) =
                (sys::read_pod::<types::kind_key>(&key), value.as_deref().and_then(sys::read_pod::<types::kind>))
            else {
                continue; // forgotten meanwhile
            };
            list.push(Kind {
                cgroup_id: key.cgroup,
                cgroup: None,
                key: KindKey::read(&key),
                good: value.good,
                hazards: hazard_names(value.hazards),
                lives: value.lives,
                messages: f64::from(value.messages) / 16.0,
                eligible: value.hazards == 0 && value.good >= needed,
            });
        }
        let mut ids: Vec<u64> = list.iter().map(|k| k.cgroup_id).collect();
        ids.sort_unstable();
        ids.dedup();
        let paths = host::cgroup2_mount().map(|root| cgroup_paths(&root, &ids)).unwrap_or_default();
        for kind in &mut list {
            kind.cgroup = paths.get(&kind.cgroup_id).cloned();
        }
        list.sort_by(|a, b| (&a.cgroup, a.cgroup_id, &a.key).cmp(&(&b.cgroup, b.cgroup_id, &b.key)));
        Ok(list)
    }

    /// Tells the kernel half that a kind has shown these hazards, for one in this cgroup (an id).
    pub fn remember(&self, cgroup: u64, key: &KindKey, hazards: u32) -> Result<()> {
        let map = self.map("kinds")?;
        let raw = key.raw(cgroup);
        let what = |e| Error::libbpf("writing a remembered hazard", e);
        let mut value: types::kind = map
            .lookup(sys::pod_bytes(&raw), MapFlags::ANY)
            .map_err(what)?
            .as_deref()
            .and_then(sys::read_pod)
            .unwrap_or_default();
        if value.hazards & hazards == hazards {
            return Ok(());
        }
        value.hazards |= hazards;
        map.update(sys::pod_bytes(&raw), sys::pod_bytes(&value), MapFlags::ANY).map_err(what)
    }

    /// Forgets all that is known of the kinds of these cgroups (ids), or of all; how many those were.
    pub fn forget_kinds(&self, cgroups: Option<&[u64]>) -> Result<usize> {
        let map = self.map("kinds")?;
        let mut count = 0;
        for key in map.keys() {
            let of = sys::read_pod::<types::kind_key>(&key).map(|k| k.cgroup);
            if cgroups.is_some_and(|ids| !of.is_some_and(|id| ids.contains(&id))) {
                continue;
            }
            match map.delete(&key) {
                Ok(()) => count += 1,
                Err(e) if e.kind() == libbpf_rs::ErrorKind::NotFound => {}
                Err(e) => return Err(Error::libbpf("forgetting a kind", e)),
            }
        }
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hazards_are_dense_and_names_round_trip() {
        for (i, hazard) in HAZARDS.iter().enumerate() {
            assert_eq!(hazard.bit as usize, i, "{}", hazard.name);
            assert_eq!(hazard_set(&[hazard.name]), 1 << i);
        }
        let all = (1 << HAZARDS.len()) - 1;
        assert_eq!(hazard_set(&hazard_names(all)), all);
        assert_eq!(hazard_set(&["of a later version"]), 0);
    }

    #[test]
    fn keys_round_trip() {
        let key = |role, addr: Option<&str>, port| KindKey { role, addr: addr.map(|a| a.parse().unwrap()), port };
        for key in [
            key(Role::Server, None, 80),
            key(Role::Client, Some("10.0.0.1"), 6379),
            key(Role::Client, Some("fd00::1"), 65535),
        ] {
            assert_eq!(KindKey::read(&key.raw(7)), key);
        }
    }
}
