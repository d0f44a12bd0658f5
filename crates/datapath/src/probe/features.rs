//! Features, found by trying: each program is loaded alone, each link made and let go.

use std::fs::File;
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::path::Path;

use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use libbpf_rs::{MapType, Object, ObjectBuilder, ProgramType};

use super::Minimal;
use crate::skel::SharedSocketSkelBuilder;
use crate::{Error, Result, sys};

static FEATURES: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/features.bpf.o"));

/// One thing that was tried.
#[derive(Debug)]
pub struct Attempt {
    /// What was tried.
    pub name: String,
    /// Why it does not work.
    pub error: Option<String>,
    /// The datapath can do without it.
    pub optional: bool,
}

fn said(error: &libbpf_rs::Error) -> String {
    // the outer layers repeat what was tried
    let text = format!("{error:#}");
    text.rsplit(": ").next().unwrap_or(&text).to_owned()
}

fn load(name: &str) -> Result<Object> {
    let what = |e| Error::libbpf(format!("loading the probe {name}"), e);
    let mut open = ObjectBuilder::default().open_memory(FEATURES).map_err(what)?;
    for mut program in open.progs_mut() {
        let wanted = program.name().to_string_lossy() == name;
        program.set_autoload(wanted);
    }
    open.load().map_err(what)
}

/// Loads one program of `probe/features.bpf.c`.
pub fn program(name: &str) -> Attempt {
    let error = load(name).err().map(|e| match e {
        Error::Libbpf { why, .. } => said(&why),
        other => other.to_string(),
    });
    Attempt { name: name.to_owned(), error, optional: false }
}

fn first_program(object: &Object, name: &str) -> Result<std::os::fd::OwnedFd> {
    object
        .progs()
        .find(|p| p.name().to_string_lossy() == name)
        .and_then(|p| p.as_fd().try_clone_to_owned().ok())
        .ok_or_else(|| Error::Unsupported { what: format!("the probe {name} has no program"), todo: "rebuild".into() })
}

/// Links a sockops program to a cgroup with a BPF link, and lets it go.
pub fn cgroup_link(cgroup: &Path) -> Result<()> {
    let object = load("feature_sockops")?;
    let what = || format!("linking a program to {}", cgroup.display());
    let dir = File::open(cgroup).map_err(|e| Error::system(what(), e))?;
    sys::link_cgroup(first_program(&object, "feature_sockops")?.as_fd(), &dir, libbpf_sys::BPF_CGROUP_SOCK_OPS)
        .map(drop)
        .map_err(|e| Error::system(what(), e))
}

/// Links a tp_btf program to its tracepoint, and lets it go.
pub fn tracepoint_link() -> Result<()> {
    let object = load("feature_sock_recv_length")?;
    sys::link_tracepoint(first_program(&object, "feature_sock_recv_length")?.as_fd())
        .map(drop)
        .map_err(|e| Error::system("linking a program to a tracepoint", e))
}

/// Whether a function can be traced (fentry): the kernel has it, and can make trampolines.
pub fn can_trace(name: &str) -> bool {
    let attempt = || {
        let object = load(name).ok()?;
        sys::link_tracepoint(first_program(&object, name).ok()?.as_fd()).ok()
    };
    attempt().is_some()
}

/// Runs an iterator over a sockhash.
pub fn iterate_sockets() -> Result<()> {
    let object = load("feature_iter_sockmap")?;
    let minimal = Minimal::load()?;
    let what = |e| Error::system("running an iterator over a sockhash", e);
    let mut reader =
        sys::iterate(first_program(&object, "feature_iter_sockmap")?.as_fd(), minimal.sockets()?).map_err(what)?;
    std::io::copy(&mut reader, &mut std::io::sink()).map(drop).map_err(what)
}

/// Each program of the datapath itself, loaded alone, with small maps.
pub fn datapath_programs() -> Result<Vec<Attempt>> {
    // hooks for socket options and tracepoints refine what is known of applications, and adoption is for what exists already
    const NEEDED: [&str; 5] = [
        "shared_socket_sockops",
        "shared_socket_stub",
        "shared_socket_verdict",
        "shared_socket_release",
        "shared_socket_drain",
    ];
    let names: Vec<(String, bool)> = {
        let mut storage = MaybeUninit::uninit();
        let mut open = SharedSocketSkelBuilder::default()
            .open(&mut storage)
            .map_err(|e| Error::libbpf("opening the BPF object", e))?;
        let name = |p: libbpf_rs::OpenProgramMut<'_>| {
            let name = p.name().to_string_lossy().into_owned();
            let optional = !NEEDED.contains(&name.as_str());
            (name, optional)
        };
        open.open_object_mut().progs_mut().map(name).collect()
    };
    let attempt = |name: &str| -> std::result::Result<(), libbpf_rs::Error> {
        let mut storage = MaybeUninit::uninit();
        let mut open = SharedSocketSkelBuilder::default().open(&mut storage)?;
        for mut map in open.open_object_mut().maps_mut() {
            if map.max_entries() > 64 {
                map.set_max_entries(64)?;
            }
        }
        for mut program in open.open_object_mut().progs_mut() {
            let wanted = program.name().to_string_lossy() == name;
            program.set_autoload(wanted);
        }
        open.load().map(drop)
    };
    Ok(names
        .into_iter()
        .map(|(name, optional)| Attempt { error: attempt(&name).err().map(|e| said(&e)), name, optional })
        .collect())
}

/// The kinds of maps that the datapath uses.
pub fn map_kinds() -> Vec<Attempt> {
    [
        ("sockhash", MapType::Sockhash),
        ("sk_storage", MapType::SkStorage),
        ("prog_array", MapType::ProgArray),
        ("lru_hash", MapType::LruHash),
        ("percpu_array", MapType::PercpuArray),
    ]
    .map(|(name, kind)| Attempt { name: name.to_owned(), error: answer(kind.is_supported()), optional: false })
    .into()
}

fn answer(found: libbpf_rs::Result<bool>) -> Option<String> {
    match found {
        Ok(true) => None,
        Ok(false) => Some("the kernel does not know it".into()),
        Err(e) => Some(said(&e)),
    }
}

/// The helpers that the datapath calls, by kind of program. Tracing programs cannot be asked; loading them tells.
pub fn helpers() -> Vec<Attempt> {
    use libbpf_sys as sys;
    let of = |kind: ProgramType, name: &str, id: u32| Attempt {
        name: format!("{name} in {}", if kind == ProgramType::SkMsg { "sk_msg" } else { "sockops" }),
        error: answer(kind.is_helper_supported(id)),
        optional: false,
    };
    vec![
        of(ProgramType::SockOps, "sock_hash_update", sys::BPF_FUNC_sock_hash_update),
        of(ProgramType::SockOps, "map_delete_elem", sys::BPF_FUNC_map_delete_elem),
        of(ProgramType::SockOps, "get_socket_cookie", sys::BPF_FUNC_get_socket_cookie),
        of(ProgramType::SockOps, "sock_ops_cb_flags_set", sys::BPF_FUNC_sock_ops_cb_flags_set),
        of(ProgramType::SockOps, "sk_storage_get", sys::BPF_FUNC_sk_storage_get),
        of(ProgramType::SockOps, "probe_read_kernel", sys::BPF_FUNC_probe_read_kernel),
        of(ProgramType::SkMsg, "msg_redirect_hash", sys::BPF_FUNC_msg_redirect_hash),
        of(ProgramType::SkMsg, "skc_to_tcp_sock", sys::BPF_FUNC_skc_to_tcp_sock),
        of(ProgramType::SkMsg, "tail_call", sys::BPF_FUNC_tail_call),
        of(ProgramType::SkMsg, "get_current_task", sys::BPF_FUNC_get_current_task),
        of(ProgramType::SkMsg, "jiffies64", sys::BPF_FUNC_jiffies64),
        of(ProgramType::SkMsg, "probe_read_kernel", sys::BPF_FUNC_probe_read_kernel),
    ]
}
