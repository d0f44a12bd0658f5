//! What this machine offers: cgroup v2, bpffs, BTF.

use std::fs;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
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

fn mount_of(kind: &str) -> Result<Option<PathBuf>> {
    let mounts = fs::read_to_string("/proc/self/mounts").map_err(|e| Error::system("reading /proc/self/mounts", e))?;
    Ok(mounts.lines().find_map(|line| {
        let mut fields = line.split(' ');
        let (_, at, found) = (fields.next()?, fields.next()?, fields.next()?);
        (found == kind).then(|| PathBuf::from(at.replace("\\040", " ")))
    }))
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
    Ok(())
}
