//! The textbook 4-tuple sockmap program that everyone else ships, for comparison in `shared-socket bench`.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use libbpf_rs::{MapCore, Object, ObjectBuilder, ProgramType};

use crate::{Error, Result, sys};

/// Attached to some cgroups until it is dropped.
pub struct TextbookTuple {
    _links: Vec<OwnedFd>,
    _object: Object,
}

impl TextbookTuple {
    /// Loads the program and attaches it to these cgroups.
    pub fn attach(cgroups: &[&Path]) -> Result<Self> {
        let what = |e| Error::libbpf("loading the textbook sockmap program", e);
        let object =
            ObjectBuilder::default().open_memory(crate::TUPLE_OBJECT).and_then(|open| open.load()).map_err(what)?;
        let mut links = Vec::new();
        for program in object.progs() {
            match program.prog_type() {
                ProgramType::SkMsg => {
                    for map in object.maps().filter(|m| m.map_type() == libbpf_rs::MapType::Sockhash) {
                        sys::attach_sk_msg(program.as_fd(), map.as_fd())
                            .map_err(|e| Error::system("attaching the textbook sk_msg program", e))?;
                    }
                }
                ProgramType::SockOps => {
                    for path in cgroups {
                        let what = || format!("linking the textbook sockops program to {}", path.display());
                        let dir = File::open(path).map_err(|e| Error::system(what(), e))?;
                        let link = sys::link_cgroup(program.as_fd(), &dir, libbpf_sys::BPF_CGROUP_SOCK_OPS);
                        links.push(link.map_err(|e| Error::system(what(), e))?);
                    }
                }
                _ => {}
            }
        }
        Ok(Self { _links: links, _object: object })
    }
}
