//! What a socket says of itself, by the system calls that no safe crate wraps.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::libc;

fn done(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn get_option<T: Copy>(fd: BorrowedFd<'_>, level: i32, name: i32, value: &mut [T]) -> io::Result<usize> {
    let mut length = size_of_val(value) as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes to `value`, which is that long and made of plain integers.
    done(unsafe { libc::getsockopt(fd.as_raw_fd(), level, name, value.as_mut_ptr().cast(), &raw mut length) })?;
    Ok(length as usize)
}

fn set_option<T: Copy>(fd: BorrowedFd<'_>, level: i32, name: i32, value: &[T]) -> io::Result<()> {
    let length = size_of_val(value) as libc::socklen_t;
    // SAFETY: the kernel reads `length` bytes of `value`, which is that long.
    done(unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, value.as_ptr().cast(), length) }).map(drop)
}

/// `ioctl(FIONREAD)`.
pub fn readable_bytes(fd: BorrowedFd<'_>) -> io::Result<i32> {
    let mut count: libc::c_int = 0;
    // SAFETY: FIONREAD writes one int to the pointer.
    done(unsafe { libc::ioctl(fd.as_raw_fd(), libc::FIONREAD, &raw mut count) })?;
    Ok(count)
}

/// `sk_rmem_alloc`, by `SO_MEMINFO`.
pub fn rmem_alloc(fd: BorrowedFd<'_>) -> io::Result<u32> {
    let mut info = [0u32; 16];
    get_option(fd, libc::SOL_SOCKET, libc::SO_MEMINFO, &mut info)?;
    Ok(info[0])
}

/// `tcpi_bytes_received` of `TCP_INFO`.
pub fn bytes_received(fd: BorrowedFd<'_>) -> io::Result<u64> {
    // struct tcp_info: 8 bytes of bit fields, 24 words, pacing rates, bytes_acked, and then this one
    let mut info = [0u64; 32];
    let length = get_option(fd, libc::IPPROTO_TCP, libc::TCP_INFO, &mut info)?;
    if length < 136 {
        return Err(io::Error::from(io::ErrorKind::Unsupported));
    }
    Ok(info[16])
}

/// `SO_ZEROCOPY`.
pub fn set_zerocopy(fd: BorrowedFd<'_>) -> io::Result<()> {
    set_option(fd, libc::SOL_SOCKET, libc::SO_ZEROCOPY, &[1i32])
}

/// `SO_RCVLOWAT`.
pub fn set_receive_lowat(fd: BorrowedFd<'_>, bytes: i32) -> io::Result<()> {
    set_option(fd, libc::SOL_SOCKET, libc::SO_RCVLOWAT, &[bytes])
}

/// Reads by `splice(2)` without waiting.
pub fn splice_out(fd: BorrowedFd<'_>) -> io::Result<usize> {
    let mut ends = [0; 2];
    // SAFETY: pipe2 writes two descriptors to the array.
    done(unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) })?;
    // SAFETY: both were made just now, and nobody else has them.
    let (_read, write) = unsafe { (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])) };
    // SAFETY: both descriptors are open; no offsets are passed.
    let moved = unsafe {
        libc::splice(
            fd.as_raw_fd(),
            std::ptr::null_mut(),
            write.as_raw_fd(),
            std::ptr::null_mut(),
            4096,
            libc::SPLICE_F_NONBLOCK,
        )
    };
    usize::try_from(moved).map_err(|_| io::Error::last_os_error())
}

/// Whether `TCP_ZEROCOPY_RECEIVE` says that there is anything to read.
pub fn receive_zerocopy_sees(fd: BorrowedFd<'_>) -> io::Result<bool> {
    const TCP_ZEROCOPY_RECEIVE: i32 = 35;
    let size = 1 << 16;
    // SAFETY: a new mapping of a socket, at an address of the kernel's choice.
    let at = unsafe { libc::mmap(std::ptr::null_mut(), size, libc::PROT_READ, libc::MAP_SHARED, fd.as_raw_fd(), 0) };
    if at == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // struct tcp_zerocopy_receive, its first form: address; length and recv_skip_hint
    let mut request = [at as u64, size as u64];
    let asked = get_option(fd, libc::IPPROTO_TCP, TCP_ZEROCOPY_RECEIVE, &mut request);
    // SAFETY: the mapping was made above and nothing points into it.
    unsafe { libc::munmap(at, size) };
    asked?;
    Ok(request[1] != 0)
}

/// Puts the TLS ULP on a socket and a key for what it receives.
pub fn set_tls_receive(fd: BorrowedFd<'_>) -> io::Result<()> {
    const TLS_RX: i32 = 2;
    set_option(fd, libc::IPPROTO_TCP, libc::TCP_ULP, b"tls")?;
    // struct tls12_crypto_info_aes_gcm_128: version 1.2, cipher 51, then iv 8, key 16, salt 4, sequence 8
    let mut info = [0u8; 40];
    info[..2].copy_from_slice(&0x0303u16.to_ne_bytes());
    info[2..4].copy_from_slice(&51u16.to_ne_bytes());
    set_option(fd, libc::SOL_TLS, TLS_RX, &info)
}

/// Brings `lo` of this thread's network namespace up.
pub fn loopback_up() -> io::Result<()> {
    // SAFETY: makes a descriptor, which the next line takes.
    let fd = done(unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) })?;
    // SAFETY: made just now, and nobody else has it.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: the struct is plain data, and zero is a valid value of each of its members.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = *from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads the request.
    done(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) }).map(drop)
}
