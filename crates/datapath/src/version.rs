//! Which kernel this is: its name, and the stable version that it was made from.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Major, minor and patch number of a kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Version(pub u16, pub u16, pub u16);

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

impl Version {
    /// Reads `6.18.44-fc`, `6.1`, `5.10.0-30-amd64`: what comes after the numbers does not matter.
    pub fn parse(text: &str) -> Option<Self> {
        let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let mut numbers = text[..end].split('.').filter(|n| !n.is_empty()).map(str::parse::<u16>);
        let (major, minor) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
        Some(Self(major, minor, numbers.next().and_then(Result::ok).unwrap_or(0)))
    }
}

/// The running kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kernel {
    /// `uname -r`
    pub release: String,
    /// `uname -v`
    pub build: String,
    /// `uname -m`
    pub machine: String,
    /// The upstream stable version, as far as the kernel says.
    pub stable: Option<Version>,
    /// Changes with every boot.
    pub boot: String,
}

impl Kernel {
    /// Asks the running kernel.
    pub fn read() -> Self {
        let file = |path: &str| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
        let text = |s: &std::ffi::OsStr| s.to_string_lossy().into_owned();
        let uname = nix::sys::utsname::uname().ok();
        let release = uname.as_ref().map(|u| text(u.release())).unwrap_or_default();
        let build = uname.as_ref().map(|u| text(u.version())).unwrap_or_default();
        let stable = stable_version(&release, &build, &file("/proc/version_signature"));
        let machine = uname.as_ref().map(|u| text(u.machine())).unwrap_or_default();
        Self { release, build, machine, stable, boot: file("/proc/sys/kernel/random/boot_id") }
    }
}

/// Debian puts the stable version into `uname -v`, Ubuntu into `/proc/version_signature`; for others `uname -r` is it,
/// or all that is known.
pub fn stable_version(release: &str, build: &str, signature: &str) -> Option<Version> {
    let named = Version::parse(release)?;
    let debian = build.split_whitespace().skip_while(|w| *w != "Debian").nth(1);
    let ubuntu = signature.starts_with("Ubuntu").then(|| signature.split_whitespace().last()).flatten();
    [debian, ubuntu]
        .into_iter()
        .flatten()
        .filter_map(Version::parse)
        // a stable version is of the series that the release names
        .find(|v| (v.0, v.1) == (named.0, named.1))
        .or(Some(named))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn distributions_say_it_in_different_places() {
        let of = |release, build, signature| stable_version(release, build, signature).unwrap().to_string();
        assert_eq!(of("6.18.44-fc-v669", "#1 SMP PREEMPT_DYNAMIC @0", ""), "6.18.44");
        assert_eq!(of("5.10.0-30-cloud-amd64", "#1 SMP Debian 5.10.218-1 (2024-06-01)", ""), "5.10.218");
        assert_eq!(of("6.1.0-44-amd64", "#1 SMP PREEMPT_DYNAMIC Debian 6.1.164-1 (2026-03-01)", ""), "6.1.164");
        assert_eq!(
            of("5.15.0-91-generic", "#101-Ubuntu SMP Tue Nov 14", "Ubuntu 5.15.0-91.101-generic 5.15.131"),
            "5.15.131"
        );
        assert_eq!(of("5.14.0-427.el9.x86_64", "#1 SMP PREEMPT_DYNAMIC", ""), "5.14.0");
        assert_eq!(of("6.19-rc3", "#1", ""), "6.19.0");
        assert_eq!(of("6.1.0-1-amd64", "#1 SMP Debian 5.10.1-1", "Ubuntu nonsense"), "6.1.0");
        assert_eq!(stable_version("linux", "", ""), None);
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(release in ".*", build in ".*", signature in ".*") {
            let _ = stable_version(&release, &build, &signature);
            let _ = stable_version(&format!("6.1{release}"), &format!("Debian {build}"), &format!("Ubuntu {signature}"));
        }

        #[test]
        fn what_is_written_is_read(a in 0u16.., b in 0u16.., c in 0u16.., tail in "(-[a-z0-9.]*)?") {
            prop_assert_eq!(Version::parse(&format!("{}{tail}", Version(a, b, c))), Some(Version(a, b, c)));
        }
    }
}
