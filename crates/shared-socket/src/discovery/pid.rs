//! `--pid PID`.

use anyhow::Context;

use super::{Found, from_path};

/// The cgroup v2 of a process.
pub fn from_pid(pid: u32) -> anyhow::Result<Found> {
    let file = format!("/proc/{pid}/cgroup");
    let text = std::fs::read_to_string(&file)
        .with_context(|| format!("process {pid} was not found ({file} cannot be read); is it still running?"))?;
    let path = text
        .lines()
        .find_map(|line| line.strip_prefix("0::"))
        .with_context(|| format!("process {pid} is in no cgroup v2 ({file} has no line `0::`)"))?;
    from_path(std::path::Path::new(path)).with_context(|| format!("looking for the cgroup of process {pid}"))
}
