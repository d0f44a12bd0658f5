//! What was found, kept until the kernel changes.
//!
//! A file in a directory of root's own, below `/run` and so gone with the next boot. A file that is not ours, that others
//! may write, that cannot be read or that is of another kernel or version counts as none; a failure to write costs the
//! probes of the next `attach` and nothing else.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use datapath::KernelFindings;
use nix::libc;
use serde::{Deserialize, Serialize};

use datapath::Kernel;

/// Raised when a probe changes what it finds.
const SCHEMA: u32 = 1;
/// Far more than it ever is.
const LARGEST: u64 = 64 << 10;

/// What the file holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    schema: u32,
    version: String,
    kernel: Kernel,
    /// Configures the programs.
    pub findings: KernelFindings,
    /// By the whole `check`, not only by the probes of an `attach`.
    pub complete: bool,
}

impl Kept {
    /// What is to be kept of this kernel.
    pub fn new(kernel: &Kernel, findings: KernelFindings, complete: bool) -> Self {
        Self { schema: SCHEMA, version: env!("CARGO_PKG_VERSION").into(), kernel: kernel.clone(), findings, complete }
    }

    /// Reads the text of a file; `None` when it is not of this version and kernel.
    fn parse(text: &str, kernel: &Kernel) -> Option<Self> {
        let kept: Self = serde_json::from_str(text).ok()?;
        let ours = kept.schema == SCHEMA && kept.version == env!("CARGO_PKG_VERSION") && kept.kernel == *kernel;
        ours.then_some(kept)
    }
}

/// The directory.
pub fn directory() -> PathBuf {
    std::env::var_os("SHARED_SOCKET_CACHE_DIR").map_or_else(|| PathBuf::from("/run/shared-socket"), PathBuf::from)
}

/// A name that another kernel, boot or version does not share (FNV-1a).
fn file_name(kernel: &Kernel) -> String {
    let fields = [&kernel.release, &kernel.build, &kernel.boot, env!("CARGO_PKG_VERSION")];
    let hash = fields
        .iter()
        .flat_map(|f| f.bytes().chain([0]))
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    format!("check-{hash:016x}.json")
}

fn is_ours(meta: &fs::Metadata) -> bool {
    meta.uid() == nix::unistd::geteuid().as_raw() && meta.mode() & 0o022 == 0
}

/// What was kept of this kernel, if anything.
pub fn read(directory: &Path, kernel: &Kernel) -> Option<Kept> {
    if !fs::symlink_metadata(directory).is_ok_and(|m| m.is_dir() && is_ours(&m)) {
        return None;
    }
    let file = fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(directory.join(file_name(kernel)))
        .ok()?;
    let meta = file.metadata().ok()?;
    if !meta.is_file() || !is_ours(&meta) || meta.len() > LARGEST {
        tracing::warn!("{} is not a file of ours: ignored", directory.join(file_name(kernel)).display());
        return None;
    }
    let mut text = String::new();
    file.take(LARGEST).read_to_string(&mut text).ok()?;
    Kept::parse(&text, kernel)
}

/// Keeps it: the whole file or none.
pub fn write(directory: &Path, kernel: &Kernel, kept: &Kept) -> std::io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o755).create(directory)?;
    if !fs::symlink_metadata(directory).is_ok_and(|m| m.is_dir() && is_ours(&m)) {
        return Err(std::io::Error::other("the directory belongs to another user, or others may write to it"));
    }
    let name = file_name(kernel);
    for entry in fs::read_dir(directory)?.flatten() {
        // of kernels and versions of before, and halves of files that a killed check has left
        let other = entry.file_name();
        let other = other.to_string_lossy();
        if other.starts_with("check-") && *other != *name {
            let _ = fs::remove_file(entry.path());
        }
    }
    let mut file = tempfile::Builder::new().prefix("check-").suffix(".part").tempfile_in(directory)?;
    file.write_all(serde_json::to_string_pretty(kept).map_err(std::io::Error::other)?.as_bytes())?;
    file.as_file().sync_all()?;
    file.persist(directory.join(name)).map(drop).map_err(|e| e.error)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use proptest::prelude::*;

    use super::*;

    fn kernel(release: &str) -> Kernel {
        Kernel { release: release.into(), build: "#1".into(), boot: "b".into(), ..Kernel::default() }
    }

    fn kept(kernel: &Kernel) -> Kept {
        Kept::new(kernel, KernelFindings { rmem_counts: true, past_rcvbuf: true, fionread: 1, hazards: 12 }, true)
    }

    #[test]
    fn what_is_written_is_read_until_the_kernel_changes() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("run");
        let (old, new) = (kernel("6.1.1"), kernel("6.1.2"));
        write(&place, &old, &kept(&old)).unwrap();
        assert_eq!(read(&place, &old), Some(kept(&old)));
        assert_eq!(read(&place, &new), None);
        write(&place, &new, &kept(&new)).unwrap();
        assert_eq!(read(&place, &old), None, "the file of the old kernel goes");
        assert_eq!(fs::read_dir(&place).unwrap().count(), 1);
    }

    #[test]
    fn what_others_may_write_is_not_believed() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("run");
        let kernel = kernel("6.1.1");
        write(&place, &kernel, &kept(&kernel)).unwrap();
        let file = place.join(file_name(&kernel));
        fs::set_permissions(&file, fs::Permissions::from_mode(0o666)).unwrap();
        assert_eq!(read(&place, &kernel), None);
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        assert!(read(&place, &kernel).is_some());
        fs::set_permissions(&place, fs::Permissions::from_mode(0o777)).unwrap();
        assert_eq!(read(&place, &kernel), None);
        fs::set_permissions(&place, fs::Permissions::from_mode(0o755)).unwrap();
        fs::rename(&file, place.join("elsewhere")).unwrap();
        std::os::unix::fs::symlink("elsewhere", &file).unwrap();
        assert_eq!(read(&place, &kernel), None, "a link is not followed");
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in ".*", cut in 0usize..400, byte in any::<u8>()) {
            let kernel = kernel("6.1.1");
            prop_assert_eq!(Kept::parse(&text, &kernel), None);
            let whole = serde_json::to_string(&kept(&kernel)).unwrap();
            let mut bytes = whole.clone().into_bytes();
            let cut = cut.min(bytes.len() - 1);
            prop_assert_eq!(Kept::parse(&String::from_utf8_lossy(&bytes[..cut]), &kernel), None);
            bytes[cut] = byte;
            // a changed byte is noticed, or is a valid file that says something else
            let _ = Kept::parse(&String::from_utf8_lossy(&bytes), &kernel);
            prop_assert_eq!(Kept::parse(&whole, &kernel), Some(kept(&kernel)));
        }
    }
}
