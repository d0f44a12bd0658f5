//! What this machine offers: cgroup v2, bpffs, BTF.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};

use crate::{Error, Result};

/// What `status` says about the machine.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Host {
    /// `uname -r`.
    pub kernel: String,
    /// The machine's architecture.
    pub machine: String,
    /// Where cgroup v2 is mounted.
    pub cgroup2: Option<PathBuf>,
    /// Whether the kernel carries BTF.
    pub btf: bool,
}

impl Host {
    /// Looks at this machine.
    pub fn read() -> Self {
        let uname = nix::sys::utsname::uname().ok();
        let text = |s: &std::ffi::OsStr| s.to_string_lossy().into_owned();
        Self {
            kernel: uname.as_ref().map(|u| text(u.release())).unwrap_or_default(),
            machine: uname.as_ref().map(|u| text(u.machine())).unwrap_or_default(),
            cgroup2: cgroup2_mount().ok(),
            btf: Path::new("/sys/kernel/btf/vmlinux").exists(),
        }
    }
}

impl Host {
    /// The budget of all peers together when none is given: a sixteenth of the machine's memory (TCP's own limit,
    /// `tcp_mem`, is about an eleventh), at least 16 MiB and at most 1 GiB.
    pub fn default_total_budget() -> u64 {
        let memory = fs::read_to_string("/proc/meminfo").ok().and_then(|text| mem_total(&text)).unwrap_or(1 << 30);
        (memory / 16).clamp(16 << 20, 1 << 30)
    }
}

/// Bytes of memory, from the text of /proc/meminfo.
fn mem_total(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|l| l.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim_end().parse().ok()?;
    kib.checked_mul(1024)
}

fn mount_of(kind: &str) -> Result<Option<PathBuf>> {
    let mounts = fs::read("/proc/self/mounts").map_err(|e| Error::system("reading /proc/self/mounts", e))?;
    Ok(find_mount(&mounts, kind))
}

/// The first mount of a file system type, from the bytes of /proc/PID/mounts: paths need not be UTF-8.
fn find_mount(mounts: &[u8], kind: &str) -> Option<PathBuf> {
    mounts.split(|b| *b == b'\n').find_map(|line| {
        let mut fields = line.split(|b| *b == b' ');
        let (_, at, found) = (fields.next()?, fields.next()?, fields.next()?);
        (found == kind.as_bytes()).then(|| PathBuf::from(OsString::from_vec(unescape(at))))
    })
}

/// Space, tab, newline, backslash and `#` stand there as a backslash and three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut text = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        match (byte, after) {
            (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', more @ ..]) => {
                text.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                rest = more;
            }
            _ => text.push(byte),
        }
    }
    text
}

/// Where cgroup v2 is mounted; on hybrid hosts that is often `/sys/fs/cgroup/unified`.
pub fn cgroup2_mount() -> Result<PathBuf> {
    mount_of("cgroup2")?.ok_or_else(|| Error::Unsupported {
        what: "no cgroup v2 hierarchy is mounted".into(),
        todo: "mount one: mkdir -p /sys/fs/cgroup/unified && mount -t cgroup2 none /sys/fs/cgroup/unified".into(),
    })
}

/// The id of a cgroup: its inode number.
pub fn cgroup_id(path: &Path) -> Result<u64> {
    let missing = || Error::NoSuchTarget {
        what: "cgroup",
        path: path.to_path_buf(),
        todo: "give a path below the cgroup2 mount (see `findmnt -t cgroup2`)".into(),
    };
    let meta = fs::metadata(path).map_err(|_| missing())?;
    let kind = nix::sys::statfs::statfs(path).map_err(|_| missing())?;
    if !meta.is_dir() || kind.filesystem_type() != nix::sys::statfs::CGROUP2_SUPER_MAGIC {
        return Err(missing());
    }
    Ok(meta.ino())
}

/// Makes `dir` on a bpffs, mounting one at `/sys/fs/bpf` when nothing is mounted there.
pub fn ensure_bpffs(dir: &Path) -> Result<()> {
    let default = Path::new("/sys/fs/bpf");
    if dir.starts_with(default) && mount_of("bpf")?.is_none() {
        mount(Some("bpf"), default, Some("bpf"), MsFlags::empty(), None::<&str>)
            .map_err(|e| Error::system("mounting bpffs at /sys/fs/bpf", e.into()))?;
        tracing::info!("mounted bpffs at /sys/fs/bpf");
    }
    let mut base = dir;
    while !base.exists() {
        base = base.parent().unwrap_or(Path::new("/"));
    }
    let kind = nix::sys::statfs::statfs(base)
        .map_err(|e| Error::system(format!("looking at the file system of {}", base.display()), e.into()))?;
    if kind.filesystem_type() != nix::sys::statfs::BPF_FS_MAGIC {
        return Err(Error::Unsupported {
            what: format!("{} is not on a bpffs, so nothing can be pinned there", dir.display()),
            todo: format!("choose a --pin-dir below /sys/fs/bpf, or mount one: mount -t bpf bpf {}", dir.display()),
        });
    }
    // the root of a bpffs is open to all users (1777): whoever made the directory first could take our pins away
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|e| Error::system(format!("creating the pin directory {}", dir.display()), e))?;
    let meta = fs::symlink_metadata(dir).map_err(|e| Error::system(format!("looking at {}", dir.display()), e))?;
    let own = nix::unistd::geteuid().as_raw();
    if !meta.is_dir() || meta.uid() != own || meta.mode() & 0o022 != 0 {
        return Err(Error::Unsupported {
            what: format!(
                "{} belongs to user {} or others may write to it, so pins are not safe there",
                dir.display(),
                meta.uid()
            ),
            todo: "remove the directory, or choose another --pin-dir".into(),
        });
    }
    if meta.mode() & 0o077 != 0 {
        // kubelet makes it for a container, open to all: whoever may open it may lock it
        let _ = fs::set_permissions(dir, fs::Permissions::from_mode(0o700));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt;

    use proptest::prelude::*;

    use super::*;

    /// As the kernel does it (mangle, in fs/seq_file.c).
    fn escape(path: &[u8]) -> Vec<u8> {
        let plain = |b: &u8| !b" \t\n\\#".contains(b);
        path.iter().flat_map(|b| if plain(b) { vec![*b] } else { format!("\\{b:03o}").into_bytes() }).collect()
    }

    #[test]
    fn mounts_of_this_machine() {
        let text = b"proc /proc proc rw 0 0\nbpf /a\\040b\\134c bpf rw 0 0\ncgroup2 /x cgroup2 rw 0 0\n";
        assert_eq!(find_mount(text, "bpf"), Some(PathBuf::from("/a b\\c")));
        assert_eq!(find_mount(text, "cgroup2"), Some(PathBuf::from("/x")));
        assert_eq!(find_mount(text, "cgroup"), None);
    }

    proptest! {
        #[test]
        fn any_mount_point_is_found_as_it_is(
            path in proptest::collection::vec(1u8.., 1..60),
            others in proptest::collection::vec("[a-z]{1,8} /[a-z\\\\0-9]{0,9} (ext4|tmpfs|cgroup) rw 0 0", 0..5),
        ) {
            let mut text = others.join("\n").into_bytes();
            text.extend(b"\nnone /");
            text.extend(escape(&path));
            text.extend(b" cgroup2 rw,nosuid 0 0\n");
            let found = find_mount(&text, "cgroup2").expect("it is there");
            prop_assert_eq!(&found.as_os_str().as_bytes()[1..], &path[..]);
        }

        #[test]
        fn mounts_never_panic(text in proptest::collection::vec(any::<u8>(), 0..300)) {
            find_mount(&text, "bpf");
        }

        #[test]
        fn unescaping_never_grows(field in "[\\\\0-9 a-z]{0,40}") {
            prop_assert!(unescape(field.as_bytes()).len() <= field.len());
        }

        #[test]
        fn meminfo(kib in 0u64..1 << 50, before in "(Mem[A-Z][a-z]+: +[0-9]{1,9} kB\n){0,3}") {
            let text = format!("{}MemTotal: {kib:>12} kB\nMemFree: 1 kB\n", before.replace("MemTotal", "MemOther"));
            prop_assert_eq!(mem_total(&text), Some(kib * 1024));
        }

        #[test]
        fn meminfo_never_panics(text in ".{0,80}", number in "[0-9]{0,30}") {
            mem_total(&text);
            mem_total(&format!("MemTotal:{number} kB"));
            mem_total(&format!("MemTotal:{number}"));
        }
    }
}
