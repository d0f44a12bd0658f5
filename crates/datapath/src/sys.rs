//! The bpf(2) commands that libbpf-rs does not wrap for pinned objects.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)
}

fn owned(fd: i32) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(io::Error::from_raw_os_error(-fd));
    }
    // SAFETY: libbpf has just returned this descriptor to us and keeps no copy.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Opens a pinned object of any type.
pub fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    // SAFETY: the path is a valid C string for the length of the call.
    owned(unsafe { libbpf_sys::bpf_obj_get(path.as_ptr()) })
}

/// Pins an object.
pub fn pin(fd: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    // SAFETY: the path is a valid C string for the length of the call and the descriptor is open.
    match unsafe { libbpf_sys::bpf_obj_pin(fd.as_raw_fd(), path.as_ptr()) } {
        0 => Ok(()),
        e => Err(io::Error::from_raw_os_error(-e)),
    }
}

/// Links a program to a cgroup; other programs on the same hook stay.
pub fn link_cgroup(program: BorrowedFd<'_>, cgroup: &File, kind: libbpf_sys::bpf_attach_type) -> io::Result<OwnedFd> {
    // SAFETY: both descriptors are open; no options are passed.
    owned(unsafe { libbpf_sys::bpf_link_create(program.as_raw_fd(), cgroup.as_raw_fd(), kind, std::ptr::null()) })
}

/// Links a tracing program (tp_btf).
pub fn link_tracepoint(program: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    // SAFETY: the descriptor is open; a tp_btf program knows its tracepoint, so the name is NULL.
    owned(unsafe { libbpf_sys::bpf_raw_tracepoint_open(std::ptr::null(), program.as_raw_fd()) })
}

/// Attaches the sk_msg program to the sockhash, for the life of the map.
pub fn attach_sk_msg(program: BorrowedFd<'_>, map: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: both descriptors are open.
    match unsafe {
        libbpf_sys::bpf_prog_attach(program.as_raw_fd(), map.as_raw_fd(), libbpf_sys::BPF_SK_MSG_VERDICT, 0)
    } {
        0 => Ok(()),
        e => Err(io::Error::from_raw_os_error(-e)),
    }
}

/// A reader that runs an iter/sockmap program over `map` once.
pub fn iterate(program: BorrowedFd<'_>, map: BorrowedFd<'_>) -> io::Result<File> {
    // SAFETY: the union is plain data, and zero is a valid value of each of its members.
    let mut info: libbpf_sys::bpf_iter_link_info = unsafe { std::mem::zeroed() };
    info.map.map_fd = map.as_raw_fd() as u32;
    let opts = libbpf_sys::bpf_link_create_opts {
        sz: size_of::<libbpf_sys::bpf_link_create_opts>() as u64,
        iter_info: &mut info,
        iter_info_len: size_of::<libbpf_sys::bpf_iter_link_info>() as u32,
        ..Default::default()
    };
    // SAFETY: `opts` and what it points to live until the call returns; the descriptor is open.
    let link =
        owned(unsafe { libbpf_sys::bpf_link_create(program.as_raw_fd(), 0, libbpf_sys::BPF_TRACE_ITER, &opts) })?;
    // SAFETY: the link is open.
    Ok(File::from(owned(unsafe { libbpf_sys::bpf_iter_create(link.as_raw_fd()) })?))
}

/// Reads a value that the kernel wrote as plain data.
pub fn read_pod<T: Copy>(bytes: &[u8]) -> Option<T> {
    if bytes.len() < size_of::<T>() {
        return None;
    }
    // SAFETY: the length was checked; callers use it for the plain-data structs of bpf/abi.h only, which are made of
    // integers and for which every bit pattern is valid; read_unaligned needs no alignment.
    Some(unsafe { std::ptr::read_unaligned(bytes.as_ptr().cast()) })
}

/// The bytes of a plain-data value.
pub fn pod_bytes<T: Copy>(value: &T) -> &[u8] {
    // SAFETY: callers use it for the structs of bpf/abi.h only, which have no padding that is not a named field.
    unsafe { std::slice::from_raw_parts(std::ptr::from_ref(value).cast(), size_of::<T>()) }
}
