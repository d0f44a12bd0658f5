//! Names below the pin directory.
//!
//! A load of the programs with its maps is a *generation*: `PIN_DIR/g1`, `PIN_DIR/g2`, ... (the first release pinned in
//! `PIN_DIR` itself, which counts as generation 0). `map_about` is pinned last and removed first: without it a generation
//! is the rest of an unfinished load or removal, and nothing of it is linked to a cgroup. The highest complete generation
//! is the one in use; lower ones only serve connections that were made under them.

use std::io;
use std::path::{Path, PathBuf};

/// The map whose pin says that a load was complete.
pub const ABOUT: &str = "about";

/// A program that is linked to each attached cgroup.
pub struct Hook {
    /// Name of the link.
    pub name: &'static str,
    /// Name of the program.
    pub program: &'static str,
    pub kind: libbpf_sys::bpf_attach_type,
}

/// In the order in which they are linked; they are unlinked backwards. `sockops`, which makes pairs, comes last: a pair
/// must never exist whose end is not seen.
pub const HOOKS: &[Hook] = &[
    Hook { name: "release", program: "shared_socket_release", kind: libbpf_sys::BPF_CGROUP_INET_SOCK_RELEASE },
    Hook { name: "option", program: "shared_socket_option", kind: libbpf_sys::BPF_CGROUP_SETSOCKOPT },
    Hook { name: "info", program: "shared_socket_info", kind: libbpf_sys::BPF_CGROUP_GETSOCKOPT },
    Hook { name: "connect4", program: "shared_socket_connect4", kind: libbpf_sys::BPF_CGROUP_INET4_CONNECT },
    Hook { name: "connect6", program: "shared_socket_connect6", kind: libbpf_sys::BPF_CGROUP_INET6_CONNECT },
    Hook { name: "sockops", program: "shared_socket_sockops", kind: libbpf_sys::BPF_CGROUP_SOCK_OPS },
];

/// A tracing program, which is linked once. A kernel without what it traces has no such program pinned.
pub struct Trace {
    /// Name of the link.
    pub name: &'static str,
    /// Name of the program.
    pub program: &'static str,
    /// Only kinds are learned from it: needed while a workload of `--eligibility safe` is attached.
    pub learns: bool,
}

/// All of them.
pub const TRACES: &[Trace] = &[
    Trace { name: "recv", program: "shared_socket_recv", learns: true },
    Trace { name: "space", program: "shared_socket_space", learns: true },
    Trace { name: "splice", program: "shared_socket_splice", learns: false },
    Trace { name: "zerocopy", program: "shared_socket_zerocopy", learns: false },
];

/// Paths of one generation.
#[derive(Debug, Clone)]
pub struct Pins {
    dir: PathBuf,
    /// 0: the layout of the first release.
    pub number: u32,
}

/// What is pinned.
#[derive(Debug, Default)]
pub struct Found {
    /// Complete generations, oldest first; the last is in use.
    pub complete: Vec<Pins>,
    /// What unfinished loads and removals left.
    pub leftovers: Vec<Pins>,
}

impl Pins {
    /// A generation below the pin directory `root`.
    pub fn new(root: &Path, number: u32) -> Self {
        Self { dir: if number == 0 { root.to_path_buf() } else { root.join(format!("g{number}")) }, number }
    }

    /// Looks at what is pinned below `root`; nothing when it does not exist.
    pub fn find(root: &Path) -> io::Result<Found> {
        let entries = match std::fs::read_dir(root) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Found::default()),
            Err(e) => return Err(e),
        };
        let mut numbers = Vec::new();
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            match name.strip_prefix('g').and_then(|n| n.parse().ok()) {
                Some(number) if entry.file_type()?.is_dir() => numbers.push(number),
                _ if is_pin(&name) => numbers.push(0),
                _ => {} // the root of a bpffs has files of its own
            }
        }
        numbers.sort_unstable();
        numbers.dedup();
        let pins = numbers.into_iter().map(|n| Self::new(root, n));
        let (complete, leftovers) = pins.partition(|p: &Self| p.map(ABOUT).exists());
        Ok(Found { complete, leftovers })
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn map(&self, name: &str) -> PathBuf {
        self.dir.join(format!("map_{name}"))
    }

    /// The inode of a map's pin: another generation may come to stand at the same place.
    pub fn inode(&self, map: &str) -> Option<u64> {
        use std::os::unix::fs::MetadataExt;
        std::fs::metadata(self.map(map)).ok().map(|meta| meta.ino())
    }

    pub fn program(&self, name: &str) -> PathBuf {
        self.dir.join(format!("prog_{name}"))
    }

    /// Names of the programs that are pinned.
    pub fn programs(&self) -> Vec<String> {
        self.names().iter().filter_map(|n| n.strip_prefix("prog_").map(str::to_owned)).collect()
    }

    /// The link of a hook to a cgroup.
    pub fn link(&self, hook: &str, cgroup: u64) -> PathBuf {
        self.dir.join(format!("link_{hook}_{cgroup}"))
    }

    /// The links to a cgroup that are there, in the order in which they go.
    pub fn links(&self, cgroup: u64) -> Vec<PathBuf> {
        let mut names = self.names();
        names.retain(|n| n.starts_with("link_") && n.ends_with(&format!("_{cgroup}")));
        names.into_iter().map(|n| self.dir.join(n)).collect()
    }

    /// What is pinned here, in the order in which it goes: links first, and of these `sockops`, which makes pairs.
    fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(&self.dir).into_iter().flatten().flatten();
        let mut names: Vec<String> = entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect();
        names.retain(|n| is_pin(n));
        names.sort_by_key(|name| match name.as_str() {
            n if n.starts_with("link_sockops") => 0,
            n if n.starts_with("link_") => 1,
            _ => 2,
        });
        names
    }

    /// Programs and links that `programs`, those of this version, do not account for: another version left them.
    pub fn strangers(&self, programs: &[String]) -> Vec<PathBuf> {
        let known = |name: &str| match name.split_once('_') {
            Some(("prog", program)) => programs.iter().any(|p| p == program),
            Some(("link", link)) => {
                let hook = link.split_once('_').map_or(link, |(hook, _)| hook);
                HOOKS.iter().any(|h| h.name == hook) || TRACES.iter().any(|t| t.name == link)
            }
            Some(("new", _)) => false,
            _ => true,
        };
        self.names().iter().filter(|n| !known(n)).map(|n| self.dir.join(n)).collect()
    }

    /// The link of a tracing program.
    pub fn trace(&self, name: &str) -> PathBuf {
        self.dir.join(format!("link_{name}"))
    }

    /// A directory that is there while the programs are being exchanged.
    pub fn upgrading(&self) -> PathBuf {
        self.dir.join("upgrading")
    }

    /// A directory that is there, and locked, while a tap is in this slot of the verdicts.
    pub fn tap(&self, slot: u32) -> PathBuf {
        self.dir.join(format!("tap{slot}"))
    }

    /// Removes every pin of this generation, and its directory. `about` goes first: from then on the rest counts as the
    /// leftovers of an unfinished load.
    pub fn remove(&self) -> io::Result<()> {
        if !self.dir.exists() {
            return Ok(());
        }
        remove_pin(&self.map(ABOUT))?;
        crate::failpoint::step("remove: about");
        for (done, name) in self.names().iter().enumerate() {
            remove_pin(&self.dir.join(name))?;
            if done % 8 == 0 {
                crate::failpoint::step("remove: some");
            }
        }
        for slot in 0..crate::tap::SLOTS {
            remove_tap(&self.tap(slot))?;
        }
        match std::fs::remove_dir(self.upgrading()) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        if self.number == 0 { Ok(()) } else { std::fs::remove_dir(&self.dir) }
    }
}

fn is_pin(name: &str) -> bool {
    ["map_", "prog_", "link_", "new_"].iter().any(|prefix| name.starts_with(prefix))
}

/// The pin of a tap's program, in the directory of its slot.
pub fn tap_program(dir: &Path) -> PathBuf {
    dir.join("program")
}

/// Removes the directory of a tap's slot, if it is there.
pub fn remove_tap(dir: &Path) -> io::Result<()> {
    remove_pin(&tap_program(dir))?;
    match std::fs::remove_dir(dir) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// Removes a pin; one that is gone is fine.
pub fn remove_pin(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// Removes the pin directory, once no generation is left in it. The root of a bpffs stays, and so does a directory that was
/// mounted into a container: it is not the container's to remove.
pub fn remove_root(root: &Path) -> io::Result<()> {
    use io::ErrorKind::{DirectoryNotEmpty, NotFound, ReadOnlyFilesystem, ResourceBusy};
    match std::fs::remove_dir(root) {
        Err(e) if ![NotFound, ResourceBusy, DirectoryNotEmpty, ReadOnlyFilesystem].contains(&e.kind()) => Err(e),
        _ => Ok(()),
    }
}
