//! What a kernel must have before anything of ours is loaded: refused here, with the reason, rather than run unsafely.
//!
//! What can be tried is tried; a version decides only what cannot be (`docs/kernels.md` has the evidence).

use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use crate::{Error, Host, Kernel, Result, Version, sys};

/// Refuses a kernel on which the fast path could lose or corrupt data.
pub fn ensure_safe() -> Result<()> {
    complaints().clear(); // what probes tried before is not what fails now
    let kernel = Host::read().kernel;
    try_atomics().map_err(|e| Error::system("loading a trial BPF program", e))?;
    if let Some(version) = Kernel::read().stable
        && !has_sockmap_fixes(version)
    {
        return Err(Error::Unsupported {
            what: format!(
                "Linux {kernel} lacks two fixes of the sockmap: it may use a freed socket when two threads send on one \
                 connection, and discards bytes that were received when a connection is reset"
            ),
            todo: "use Linux 6.1 or newer, or 5.10.80 and later 5.10 (the fixes are in 5.16, 5.15.3, 5.14.20 and 5.10.80); \
                   connections stay on TCP as they are"
                .into(),
        });
    }
    Ok(())
}

/// Whether BPF has atomics that return a value; an error when not even a program without a context can be tried.
fn try_atomics() -> std::io::Result<bool> {
    match sys::try_program(libbpf_sys::BPF_PROG_TYPE_SOCKET_FILTER, &FETCHING_ATOMIC) {
        Ok(()) => Ok(true),
        Err(e) if e.raw_os_error() == Some(nix::errno::Errno::EINVAL as i32) => Ok(false),
        Err(e) => Err(e),
    }
}

/// Whether programs may use addresses of the kernel's functions: /proc/kallsyms shows zeros to those without CAP_SYSLOG, and
/// to all where kptr_restrict is 2. Some of the first symbols have the address 0 anyway.
pub fn shows_addresses() -> bool {
    use std::io::{BufRead, BufReader};
    let Ok(file) = std::fs::File::open("/proc/kallsyms") else { return false };
    let mut lines = BufReader::new(file).lines().take(2000).map_while(|line| line.ok());
    lines.any(|line| line.split(' ').next().is_some_and(|a| a.bytes().any(|b| b != b'0')))
}

/// As [`try_atomics`], asked once. Debug: the environment may say that there are none, to try the old programs.
pub fn has_fetching_atomics() -> bool {
    static ANSWER: OnceLock<bool> = OnceLock::new();
    *ANSWER
        .get_or_init(|| std::env::var_os("SHARED_SOCKET_DEBUG_OLD_KERNEL").is_none() && try_atomics().unwrap_or(true))
}

/// `fetch_or` on the stack: verifiers before 5.12 know `xadd` only.
const FETCHING_ATOMIC: [u64; 4] = [
    instruction(0x7a, 10, 0, -8, 0),    // *(u64 *)(r10 - 8) = 0
    instruction(0xb7, 0, 0, 0, 0),      // r0 = 0
    instruction(0xdb, 10, 0, -8, 0x41), // r0 = atomic_fetch_or((u64 *)(r10 - 8), r0)
    instruction(0x95, 0, 0, 0, 0),      // exit
];

const fn instruction(code: u8, dst: u8, src: u8, off: i16, imm: i32) -> u64 {
    let registers = if cfg!(target_endian = "little") { dst | src << 4 } else { dst << 4 | src };
    let b = imm.to_ne_bytes();
    let o = off.to_ne_bytes();
    u64::from_ne_bytes([code, registers, o[0], o[1], b[0], b[1], b[2], b[3]])
}

/// cd9733f5d75c (psock->sk_redir was kept across release_sock) and b8b8315e39ff (unhash purged the ingress queue): both
/// are in 5.16 and came to the stable kernels that still lived. Neither shows in BTF, and the first is a race.
fn has_sockmap_fixes(Version(major, minor, patch): Version) -> bool {
    match (major, minor) {
        (5, 15) => patch >= 3,
        (5, 14) => patch >= 20,
        (5, 10) => patch >= 80,
        other => other >= (5, 16),
    }
}

/// What libbpf has warned of since the load began.
fn complaints() -> MutexGuard<'static, Vec<String>> {
    static HEARD: Mutex<Vec<String>> = Mutex::new(Vec::new());
    HEARD.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Keeps libbpf's warnings: of a failed load they name the program and have the verifier's last words.
pub fn hear(level: libbpf_rs::PrintLevel, text: String) {
    if matches!(level, libbpf_rs::PrintLevel::Warn) {
        complaints().push(text);
    }
}

/// A kernel that rejects a program is one that we cannot run on; what it lacks is the verifier's last line.
pub fn rejected(why: libbpf_rs::Error) -> Error {
    let heard = std::mem::take(&mut *complaints()).concat();
    let refused = matches!(why.kind(), libbpf_rs::ErrorKind::InvalidInput | libbpf_rs::ErrorKind::Other);
    let Some((program, last)) = verifiers_words(&heard).filter(|_| refused) else {
        return Error::libbpf("loading the BPF programs", why);
    };
    Error::Unsupported {
        what: format!("Linux {} rejected the program {program} ({why}): {last}", Host::read().kernel),
        todo: "use one of the kernels in docs/kernels.md, or report this with the output of `shared-socket -vv attach`"
            .into(),
    }
}

/// The program that a failed load names, and what the verifier said last of it.
fn verifiers_words(heard: &str) -> Option<(&str, &str)> {
    let named = |l: &'_ str| l.strip_prefix("libbpf: prog '").is_some_and(|l| l.contains("': BPF program load failed"));
    let start = heard.lines().find(|l| named(l))?;
    let program = start.strip_prefix("libbpf: prog '")?.split('\'').next()?;
    let last = heard
        .lines()
        .skip_while(|l| !named(l))
        .skip(1)
        .take_while(|l| !l.contains("END PROG LOAD LOG"))
        .filter(|l| !l.starts_with("processed ") && !l.starts_with("--") && !l.trim().is_empty())
        .last();
    Some((program, last.unwrap_or("it gave no reason")))
}

#[cfg(test)]
mod tests {
    use super::{has_sockmap_fixes, verifiers_words};
    use crate::Version;

    #[test]
    fn the_verifiers_last_words() {
        let heard = "libbpf: prog 'shared_socket_verdict': BPF program load failed: Invalid argument\n\
                     libbpf: prog 'shared_socket_verdict': -- BEGIN PROG LOAD LOG --\n\
                     0: R1=ctx() R10=fp0\n\
                     unknown func bpf_skc_to_tcp_sock#137\n\
                     processed 1 insns (limit 1000000) max_states_per_insn 0\n\
                     -- END PROG LOAD LOG --\n\
                     libbpf: prog 'shared_socket_verdict': failed to load: -22\n";
        assert_eq!(verifiers_words(heard), Some(("shared_socket_verdict", "unknown func bpf_skc_to_tcp_sock#137")));
        assert_eq!(verifiers_words("libbpf: map 'x': failed to create: -12\n"), None);
        let silent = "libbpf: prog 'a': BPF program load failed: Invalid argument\n";
        assert_eq!(verifiers_words(silent), Some(("a", "it gave no reason")));
    }

    #[test]
    fn the_lowest_safe_versions() {
        for safe in [(5, 10, 80), (5, 10, 262), (5, 14, 21), (5, 15, 3), (5, 15, 160), (5, 16, 0), (6, 1, 0), (7, 3, 4)]
        {
            assert!(has_sockmap_fixes(Version(safe.0, safe.1, safe.2)), "{safe:?}");
        }
        for unsafe_ in [
            (5, 4, 300),
            (5, 10, 79),
            (5, 10, 0),
            (5, 11, 22),
            (5, 12, 19),
            (5, 13, 19),
            (5, 14, 0),
            (5, 14, 19),
            (5, 15, 2),
        ] {
            assert!(!has_sockmap_fixes(Version(unsafe_.0, unsafe_.1, unsafe_.2)), "{unsafe_:?}");
        }
    }
}
