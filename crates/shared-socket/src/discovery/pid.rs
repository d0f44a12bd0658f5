//! `--pid PID`.

use anyhow::{Context, bail};

use super::{Found, from_path};

/// The line of cgroup v2 in a /proc/PID/cgroup. A cgroup that was removed meanwhile has ` (deleted)` behind its path.
fn unified(text: &str) -> Option<&str> {
    let path = text.lines().find_map(|line| line.strip_prefix("0::"))?;
    Some(path.strip_suffix(" (deleted)").unwrap_or(path))
}

/// The cgroup v2 of a process.
pub fn from_pid(pid: u32) -> anyhow::Result<Found> {
    let file = format!("/proc/{pid}/cgroup");
    let text = std::fs::read_to_string(&file)
        .with_context(|| format!("process {pid} was not found ({file} cannot be read); is it still running?"))?;
    let path =
        unified(&text).with_context(|| format!("process {pid} is in no cgroup v2 ({file} has no line `0::`)"))?;
    if path.starts_with("/..") {
        bail!(
            "process {pid} is outside of the cgroup namespace of this command ({file} says {path}); run it in the \
             node's process namespace (hostPID) with CAP_SYS_ADMIN, or outside of the container"
        );
    }
    from_path(std::path::Path::new(path)).with_context(|| format!("looking for the cgroup of process {pid}"))
}

/// In a container, /proc/PID/cgroup tells paths as seen from the container's own cgroup. This enters the cgroup namespace
/// of process 1, which is the node's where the container has the node's process ids. Fails silently: who asks for a
/// process outside is told then ([`from_pid`]).
pub fn enter_host_cgroups() {
    let own = std::fs::read_link("/proc/self/ns/cgroup");
    let host = std::fs::read_link("/proc/1/ns/cgroup");
    if let (Ok(own), Ok(host)) = (own, host)
        && own != host
        && let Ok(file) = std::fs::File::open("/proc/1/ns/cgroup")
        && let Err(e) = nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWCGROUP)
    {
        tracing::warn!("the node's cgroup namespace was not entered ({e}): it takes CAP_SYS_ADMIN");
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_v2_line_is_found(
            path in "(/[a-z.@:\\\\x-]{1,12}){1,4}",
            v1 in "([1-9][0-9]?:[a-z,]{1,9}:/[a-z]{0,9}\n){0,5}",
            gone in any::<bool>(),
        ) {
            let text = format!("{v1}0::{path}{}\n", if gone { " (deleted)" } else { "" });
            prop_assert_eq!(unified(&text), Some(path.as_str()));
            prop_assert_eq!(unified(&v1), None);
        }

        #[test]
        fn never_panics(text in "[0:\n\\PC]{0,80}") {
            unified(&text);
        }
    }
}
