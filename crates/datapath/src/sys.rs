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

/// Puts another program behind a link, atomically: no event passes between the two.
pub fn update_link(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: both descriptors are open; no options are passed.
    match unsafe { libbpf_sys::bpf_link_update(link.as_raw_fd(), program.as_raw_fd(), std::ptr::null()) } {
        0 => Ok(()),
        e => Err(io::Error::from_raw_os_error(-e)),
    }
}

/// The id of the cgroup that a link is attached to; 0 when the kernel has let go of it, with its last socket.
pub fn linked_cgroup(link: BorrowedFd<'_>) -> io::Result<u64> {
    // SAFETY: the struct is plain data with a union of plain data; zero is a valid value.
    let mut info: libbpf_sys::bpf_link_info = unsafe { std::mem::zeroed() };
    let mut length = size_of::<libbpf_sys::bpf_link_info>() as u32;
    // SAFETY: the kernel writes at most `length` bytes into `info`; the descriptor is open.
    match unsafe { libbpf_sys::bpf_link_get_info_by_fd(link.as_raw_fd(), &mut info, &mut length) } {
        // SAFETY: all links handed to this function are cgroup links, for which the kernel fills this member.
        0 => Ok(unsafe { info.__bindgen_anon_1.cgroup.cgroup_id }),
        e => Err(io::Error::from_raw_os_error(-e)),
    }
}

/// Id, number of runs and their time in nanoseconds of a program; the latter two are 0 where the kernel does not count
/// (`kernel.bpf_stats_enabled`).
pub fn program_runs(program: BorrowedFd<'_>) -> io::Result<(u32, u64, u64)> {
    // SAFETY: the struct is plain data; zero is a valid value, and asks for none of its arrays.
    let mut info: libbpf_sys::bpf_prog_info = unsafe { std::mem::zeroed() };
    let mut length = size_of::<libbpf_sys::bpf_prog_info>() as u32;
    // SAFETY: the kernel writes at most `length` bytes into `info`; the descriptor is open.
    match unsafe { libbpf_sys::bpf_prog_get_info_by_fd(program.as_raw_fd(), &mut info, &mut length) } {
        0 => Ok((info.id, info.run_cnt, info.run_time_ns)),
        e => Err(io::Error::from_raw_os_error(-e)),
    }
}

/// Makes a program hold a map for as long as the program lives.
pub fn bind_map(program: BorrowedFd<'_>, map: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: both descriptors are open; no options are passed.
    match unsafe { libbpf_sys::bpf_prog_bind_map(program.as_raw_fd(), map.as_raw_fd(), std::ptr::null()) } {
        0 => Ok(()),
        e => Err(io::Error::from_raw_os_error(-e)),
    }
}

/// A program of two instructions that returns the low half of the kernel's jiffies.
pub struct Jiffies(OwnedFd);

impl Jiffies {
    /// Loads it.
    pub fn new() -> io::Result<Self> {
        let code = [
            libbpf_sys::bpf_insn {
                code: (libbpf_sys::BPF_JMP | libbpf_sys::BPF_CALL) as u8,
                imm: libbpf_sys::BPF_FUNC_jiffies64 as i32,
                ..Default::default()
            },
            libbpf_sys::bpf_insn { code: (libbpf_sys::BPF_JMP | libbpf_sys::BPF_EXIT) as u8, ..Default::default() },
        ];
        // SAFETY: the name and the license are C strings and the code is as long as said; all are only read.
        owned(unsafe {
            libbpf_sys::bpf_prog_load(
                libbpf_sys::BPF_PROG_TYPE_SOCKET_FILTER,
                c"shared_jiffies".as_ptr(),
                c"GPL".as_ptr(),
                code.as_ptr(),
                code.len() as u64,
                std::ptr::null_mut(),
            )
        })
        .map(Self)
    }

    /// Runs it.
    pub fn read(&self) -> io::Result<u32> {
        let packet = [0u8; 64];
        let mut opts = libbpf_sys::bpf_test_run_opts {
            sz: size_of::<libbpf_sys::bpf_test_run_opts>() as u64,
            data_in: packet.as_ptr().cast(),
            data_size_in: packet.len() as u32,
            ..Default::default()
        };
        // SAFETY: `opts` and the packet it points to live until the call returns; the descriptor is open.
        match unsafe { libbpf_sys::bpf_prog_test_run_opts(self.0.as_raw_fd(), &mut opts) } {
            0 => Ok(opts.retval),
            e => Err(io::Error::from_raw_os_error(-e)),
        }
    }
}

/// Has the verifier look at a program, which is gone again at once. `code`: instructions in the machine's byte order.
pub fn try_program(kind: libbpf_sys::bpf_prog_type, code: &[u64]) -> io::Result<()> {
    let license = c"Dual BSD/GPL";
    // SAFETY: the kernel reads `code.len()` instructions of eight bytes, which is what the slice holds; the license is a
    // C string; there are no options and no name.
    let fd = unsafe {
        libbpf_sys::bpf_prog_load(
            kind,
            std::ptr::null(),
            license.as_ptr(),
            code.as_ptr().cast(),
            code.len() as libbpf_sys::size_t,
            std::ptr::null_mut(),
        )
    };
    owned(fd).map(drop)
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

/// Runs a `tc` program once with `key` behind the header of a packet (bpf/step.bpf.h); what it returned.
pub fn run_step(program: BorrowedFd<'_>, key: &[u8]) -> io::Result<u32> {
    const HEADER: usize = 14; // STEP_HEADER
    let mut packet = vec![0u8; HEADER];
    packet.extend_from_slice(key);
    let mut opts = libbpf_sys::bpf_test_run_opts {
        sz: size_of::<libbpf_sys::bpf_test_run_opts>() as u64,
        data_in: packet.as_ptr().cast(),
        data_size_in: packet.len() as u32,
        repeat: 1,
        ..Default::default()
    };
    // SAFETY: `opts` and the packet it points to live until the call returns; the descriptor is open.
    let done = unsafe { libbpf_sys::bpf_prog_test_run_opts(program.as_raw_fd(), &raw mut opts) };
    if done < 0 {
        return Err(io::Error::from_raw_os_error(-done));
    }
    Ok(opts.retval)
}

/// A link of an iter/tcp program; [`start`] runs it in the network namespace of the calling thread.
pub fn link_iterator(program: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    // SAFETY: the descriptor is open; no options are passed.
    owned(unsafe { libbpf_sys::bpf_link_create(program.as_raw_fd(), 0, libbpf_sys::BPF_TRACE_ITER, std::ptr::null()) })
}

/// A reader that runs an iterator once.
pub fn start(link: BorrowedFd<'_>) -> io::Result<File> {
    // SAFETY: the descriptor is open.
    Ok(File::from(owned(unsafe { libbpf_sys::bpf_iter_create(link.as_raw_fd()) })?))
}

/// Looks at all elements of a hash map, many with each call: bucket by bucket, under the bucket's lock, so that one which stays is
/// seen once, whatever comes and goes. (`lookup_batch` of libbpf-rs ends at the first batch that is not full, which the
/// kernel returns whenever the next bucket would not fit.)
pub fn each_element(
    map: BorrowedFd<'_>,
    key_size: usize,
    value_size: usize,
    mut see: impl FnMut(&[u8], &[u8]),
) -> io::Result<()> {
    let mut room: u32 = 1024;
    let (mut keys, mut values) = (Vec::new(), Vec::new());
    let mut place = [0u32; 2]; // of the next bucket: four bytes for hash maps
    let mut started = false;
    loop {
        keys.resize(room as usize * key_size, 0u8);
        values.resize(room as usize * value_size, 0u8);
        let mut next = [0u32; 2];
        let mut count = room;
        let from = if started { place.as_mut_ptr().cast() } else { std::ptr::null_mut() };
        // SAFETY: the descriptor is open; keys and values have room for `count` elements of the sizes that the map has, which
        // the caller asked the kernel for; the kernel reads and writes a place of four bytes of a hash map.
        let done = unsafe {
            libbpf_sys::bpf_map_lookup_batch(
                map.as_raw_fd(),
                from,
                next.as_mut_ptr().cast(),
                keys.as_mut_ptr().cast(),
                values.as_mut_ptr().cast(),
                &raw mut count,
                std::ptr::null(),
            )
        };
        const NOT_FOUND: i32 = nix::errno::Errno::ENOENT as i32;
        const NO_ROOM: i32 = nix::errno::Errno::ENOSPC as i32;
        const INTERRUPTED: i32 = nix::errno::Errno::EINTR as i32;
        match -done {
            0 | NOT_FOUND => {}
            NO_ROOM if room < 1 << 20 => {
                room *= 2; // a bucket that is longer than that
                continue;
            }
            INTERRUPTED => continue,
            e => return Err(io::Error::from_raw_os_error(e)),
        }
        let count = count as usize;
        for (key, value) in keys.chunks_exact(key_size).zip(values.chunks_exact(value_size)).take(count) {
            see(key, value);
        }
        if -done == NOT_FOUND {
            return Ok(());
        }
        (place, started) = (next, true);
    }
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::Half;
    use crate::skel::types;

    proptest! {
        #[test]
        fn records_of_any_bytes_are_read(bytes in proptest::collection::vec(any::<u8>(), 0..1500)) {
            let half = read_pod::<types::half>(&bytes);
            prop_assert_eq!(half.is_some(), bytes.len() >= size_of::<types::half>());
            if let Some(raw) = half {
                let half = Half::from(&raw);
                prop_assert_eq!(half.cookie, u64::from_ne_bytes(bytes[..8].try_into().unwrap()));
                prop_assert_eq!(pod_bytes(&raw), &bytes[..size_of::<types::half>()]);
                crate::reason_name(half.reason);
            }
            read_pod::<types::totals>(&bytes);
            read_pod::<types::handshake>(&bytes);
            read_pod::<types::workload>(&bytes);
            read_pod::<types::kind>(&bytes);
            read_pod::<types::settings>(&bytes);
            read_pod::<types::budget>(&bytes);
        }

        #[test]
        fn paths_with_a_zero_byte_are_refused(path in proptest::collection::vec(any::<u8>(), 0..40)) {
            let zero = path.contains(&0);
            let made = c_path(Path::new(std::ffi::OsStr::from_bytes(&path)));
            prop_assert_eq!(made.is_err(), zero);
        }
    }
}
