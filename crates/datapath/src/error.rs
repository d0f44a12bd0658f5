//! What can go wrong: what was tried, on what, why it failed, what to do.

use std::path::PathBuf;

/// Errors of the datapath.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The process lacks the privilege to use BPF.
    #[error(
        "{what} was refused by the kernel ({why}); run as root (CAP_SYS_ADMIN, CAP_NET_ADMIN, CAP_SYS_PTRACE and CAP_SYSLOG are needed)"
    )]
    Privilege {
        /// What was tried.
        what: String,
        /// The kernel's answer.
        why: std::io::Error,
    },
    /// The machine or its kernel lacks something we need.
    #[error("this machine cannot run shared-socket: {what}; {todo}")]
    Unsupported {
        /// What is missing.
        what: String,
        /// What to do about it.
        todo: String,
    },
    /// A target that is not there.
    #[error("{what} does not exist or is no cgroup v2 directory: {path}; {todo}")]
    NoSuchTarget {
        /// What kind of target.
        what: &'static str,
        /// Where it was looked for.
        path: PathBuf,
        /// What to do about it.
        todo: String,
    },
    /// Pins of another version.
    #[error(
        "{path} was pinned by another version (its ABI is {found}, ours {ours}); run `shared-socket upgrade`, which keeps \
         live connections as they are, or use that version"
    )]
    Version {
        /// The pin directory.
        path: PathBuf,
        /// ABI number of the pins.
        found: u32,
        /// Our ABI number.
        ours: u32,
    },
    /// A system call or libbpf failed.
    #[error("{what} failed: {why}")]
    System {
        /// What was tried, on what.
        what: String,
        /// Why it failed.
        why: std::io::Error,
    },
    /// libbpf failed.
    #[error("{what} failed: {why}")]
    Libbpf {
        /// What was tried, on what.
        what: String,
        /// Why it failed.
        why: libbpf_rs::Error,
    },
}

/// Result of the datapath.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(crate) fn system(what: impl Into<String>, why: std::io::Error) -> Self {
        let what = what.into();
        match why.raw_os_error() {
            Some(libc_errno::EPERM | libc_errno::EACCES) => Self::Privilege { what, why },
            _ => Self::System { what, why },
        }
    }

    pub(crate) fn libbpf(what: impl Into<String>, why: libbpf_rs::Error) -> Self {
        let what = what.into();
        if why.kind() == libbpf_rs::ErrorKind::PermissionDenied {
            return Self::Privilege { what, why: std::io::Error::other(why) };
        }
        Self::Libbpf { what, why }
    }

    /// True when the machine, not the request, is the obstacle.
    pub fn is_unsupported(&self) -> bool {
        matches!(self, Self::Privilege { .. } | Self::Unsupported { .. } | Self::Version { .. })
    }
}

mod libc_errno {
    pub const EPERM: i32 = nix::errno::Errno::EPERM as i32;
    pub const EACCES: i32 = nix::errno::Errno::EACCES as i32;
}
