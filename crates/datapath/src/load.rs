//! Loading and pinning: the programs and maps come into being here, once a pin directory.

use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use libbpf_rs::{MapCore, MapFlags};

use crate::pins::{self, Pins};
use crate::skel::SharedSocketSkelBuilder;
use crate::{Error, Result, sys};

/// ABI number of this build; see `bpf/abi.h`.
pub const ABI_VERSION: u32 = 1;

/// Who is accelerated (DESIGN section 6).
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Eligibility {
    /// Only kinds of connections that were observed to be safe.
    Safe,
    /// Every pair: the owner knows the workload.
    All,
}

/// How the datapath is set up when it is loaded.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// A directory on a bpffs.
    pub pin_dir: PathBuf,
    /// Pairs at most; beyond it connections stay on TCP.
    pub max_pairs: u32,
    /// Bytes queued to one peer at most.
    pub budget_bytes: u32,
    /// Messages queued to one peer at most.
    pub budget_messages: u32,
    /// Finished connections that make a kind eligible.
    pub learn_connections: u32,
    /// Kinds whose connections carry fewer messages on average stay on TCP; 0: none does.
    pub min_messages: u32,
    /// Learn from the receive tracepoint where the kernel has it; else from `O_NONBLOCK` of the files.
    pub trace_receives: bool,
    /// Debug: iterations to spin where races are closed, to force them open in tests.
    pub spin: u32,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self {
            pin_dir: PathBuf::from("/sys/fs/bpf/shared-socket"),
            max_pairs: 65_536,
            budget_bytes: 4 << 20,
            budget_messages: 4096,
            learn_connections: 3,
            min_messages: 8,
            trace_receives: true,
            spin: 0,
        }
    }
}

/// Linux 6.3 and newer: every receive call with its flags.
fn has_receive_tracepoint() -> bool {
    libbpf_rs::btf::Btf::from_vmlinux()
        .is_ok_and(|btf| btf.type_by_name::<libbpf_rs::btf::types::Typedef<'_>>("btf_trace_sock_recv_length").is_some())
}

fn ticks_per_second() -> u32 {
    // jiffies run at CONFIG_HZ, which userspace cannot ask for; where the configuration is not to be read, the largest
    // usual value makes "about once a minute" at most once in four minutes
    let text = std::fs::read_to_string(format!("/boot/config-{}", crate::Host::read().kernel)).unwrap_or_default();
    text.lines().find_map(|l| l.strip_prefix("CONFIG_HZ=")).and_then(|v| v.trim().parse().ok()).unwrap_or(250)
}

/// Loads everything and pins it below `options.pin_dir`, which must be on a bpffs.
pub fn load(options: &LoadOptions) -> Result<()> {
    let pins = Pins::new(&options.pin_dir);
    if !Path::new("/sys/kernel/btf/vmlinux").exists() {
        return Err(Error::Unsupported {
            what: "the kernel has no BTF (/sys/kernel/btf/vmlinux is missing)".into(),
            todo: "use a kernel built with CONFIG_DEBUG_INFO_BTF=y (all current distribution kernels are)".into(),
        });
    }
    libbpf_rs::set_print(Some((libbpf_rs::PrintLevel::Debug, |level, text| {
        tracing::debug!(target: "libbpf", ?level, "{}", text.trim_end());
    })));
    let mut storage = MaybeUninit::uninit();
    let mut open = SharedSocketSkelBuilder::default()
        .open(&mut storage)
        .map_err(|e| Error::libbpf("opening the BPF object", e))?;

    let halves = options.max_pairs.saturating_mul(2).max(2);
    let sized = |e| Error::libbpf("sizing the maps", e);
    open.maps.sockets.set_max_entries(halves).map_err(sized)?;
    open.maps.halves.set_max_entries(halves).map_err(sized)?;
    open.maps.handshakes.set_max_entries(options.max_pairs.max(1024)).map_err(sized)?;
    let traced = options.trace_receives && has_receive_tracepoint();
    open.progs.shared_socket_recv.set_autoload(traced);
    if let Some(rodata) = open.maps.rodata_data.as_deref_mut() {
        let settings = &mut rodata.settings;
        settings.abi_version = ABI_VERSION;
        settings.budget_bytes = options.budget_bytes;
        settings.budget_messages = options.budget_messages;
        settings.keepalive_jiffies = 60 * ticks_per_second();
        settings.learn_connections = options.learn_connections;
        settings.learn_calls = 2;
        settings.min_messages = options.min_messages;
        settings.learn_by_flags = u32::from(!traced);
        settings.spin = options.spin;
    }
    let settings = open.maps.rodata_data.as_deref().map(|r| r.settings);
    let skel = open.load().map_err(|e| Error::libbpf("loading the BPF programs", e))?;

    // the verdict is reached by tail call only, so that an upgrade can swap it under live connections
    let verdict = skel.progs.shared_socket_verdict.as_fd();
    let slot = std::os::fd::AsRawFd::as_raw_fd(&verdict) as u32;
    skel.maps
        .verdicts
        .update(&0u32.to_ne_bytes(), &slot.to_ne_bytes(), MapFlags::ANY)
        .map_err(|e| Error::libbpf("filling the verdict slot", e))?;
    sys::attach_sk_msg(skel.progs.shared_socket_stub.as_fd(), skel.maps.sockets.as_fd())
        .map_err(|e| Error::system("attaching the sk_msg program to the sockhash", e))?;
    if let Some(settings) = settings {
        skel.maps
            .about
            .update(&0u32.to_ne_bytes(), sys::pod_bytes(&settings), MapFlags::ANY)
            .map_err(|e| Error::libbpf("writing the settings", e))?;
    }

    use libbpf_rs::skel::Skel;
    for program in skel.object().progs() {
        let name = program.name().to_string_lossy().into_owned();
        if pins::PROGRAMS.contains(&name.as_str()) && (traced || name != "shared_socket_recv") {
            pin_fd(program.as_fd(), &pins.program(&name))?;
        }
    }
    for name in pins::MAPS {
        let map =
            skel.object().maps().find(|m| m.name().to_string_lossy() == *name).ok_or_else(|| Error::Unsupported {
                what: format!("the BPF object has no map {name}"),
                todo: "rebuild: this is a bug in the build".into(),
            })?;
        pin_fd(map.as_fd(), &pins.map(name))?;
    }
    Ok(())
}

fn pin_fd(fd: std::os::fd::BorrowedFd<'_>, path: &Path) -> Result<()> {
    sys::pin(fd, path).map_err(|e| Error::system(format!("pinning {}", path.display()), e))
}
