//! What we need of a kernel, found by trying it.

use std::path::Path;

use datapath::Host;
use datapath::probe::{self, Attempt};
use procfs::ProcError;

use super::hazards::Evidence;
use super::report::{Row, State};

/// A program of `probe/features.bpf.c`: the row, whether the datapath can do without it, what its absence means.
const PROGRAMS: &[(&str, &str, bool, &str)] = &[
    ("feature_sockops", "sockops programs", false, "connections cannot be recognised"),
    ("feature_sk_msg", "sk_msg programs", false, "messages cannot be redirected"),
    ("feature_sock_release", "cgroup/sock_release programs", false, "a close cannot be seen in time"),
    ("feature_atomics", "atomics that fetch (5.12)", true, "the spin lock of each record is taken instead, as on 5.10"),
    ("feature_iter_sockmap", "iter/sockmap programs", false, "detach cannot drain"),
    ("feature_sock_recv_length", "tp_btf/sock_recv_length (6.3)", true, NO_RECEIVE_FLAGS),
    ("feature_rcv_space_adjust", "tp_btf/tcp_rcv_space_adjust", true, "reading by splice cannot be seen"),
    ("feature_setsockopt", "cgroup/setsockopt programs", true, "socket options are seen late"),
    ("feature_getsockopt", "cgroup/getsockopt programs", true, "socket options are seen late"),
    ("feature_splice_read", "fentry/tcp_splice_read", true, "splice on a live pair is seen only when it finds bytes"),
    ("feature_tcp_getsockopt", "fentry/tcp_getsockopt", true, "TCP_ZEROCOPY_RECEIVE is seen only when it takes bytes"),
    ("feature_iter_tcp", "iter/tcp programs", true, "connections from before attach stay on TCP"),
];

const NO_RECEIVE_FLAGS: &str = "flags of receive calls cannot be seen; kinds are judged by O_NONBLOCK of the files, looked at again at each message";

fn row(id: &str, what: &str, optional: bool, error: Option<String>, missing: &str) -> Row {
    let state = match (&error, optional) {
        (None, _) => State::Works,
        (Some(_), true) => State::Degraded,
        (Some(_), false) => State::NotPossible,
    };
    Row {
        id: id.into(),
        what: what.into(),
        state,
        present: Some(error.is_none()),
        evidence: Evidence::Tried,
        found: error.unwrap_or_else(|| "works".into()),
        means: if state == State::Works { String::new() } else { missing.into() },
        handled: match state {
            State::Works => String::new(),
            State::Degraded => "the datapath does without it".into(),
            State::NotPossible => "nothing can be attached on this kernel".into(),
        },
    }
}

/// Many attempts in one row: what failed of them is named.
fn together(id: &str, what: &str, attempts: &[Attempt], missing: &str) -> Row {
    let name = |a: &&Attempt| format!("{} ({})", a.name, a.error.as_deref().unwrap_or_default());
    let failed: Vec<String> = attempts.iter().filter(|a| a.error.is_some()).map(|a| name(&a)).collect();
    let count = attempts.len();
    let error = (!failed.is_empty()).then(|| format!("{} of {count} do not work: {}", failed.len(), failed.join(", ")));
    let mut row = row(id, what, attempts.iter().filter(|a| a.error.is_some()).all(|a| a.optional), error, missing);
    if row.state == State::Works {
        row.found = format!("all {count} work");
    }
    row
}

fn said<E: std::fmt::Display>(result: Result<impl Sized, E>) -> Option<String> {
    result.err().map(|e| e.to_string())
}

/// The capabilities that loading and attaching needs and that this process lacks.
pub fn missing_capabilities() -> Result<Vec<&'static str>, ProcError> {
    let held = procfs::process::Process::myself()?.status()?.capeff;
    let has = |bit: u32| held & (1 << bit) != 0;
    // CAP_SYS_ADMIN (21) contains CAP_BPF (39) and CAP_PERFMON (38); namespaces need it in any case
    let named = [(12, "CAP_NET_ADMIN"), (21, "CAP_SYS_ADMIN")];
    Ok(named.into_iter().filter(|(bit, _)| !has(*bit)).map(|(_, name)| name).collect())
}

/// The machine: BTF, cgroup v2, bpffs.
fn machine(host: &Host, rows: &mut Vec<Row>) {
    let btf = (!host.btf).then(|| "/sys/kernel/btf/vmlinux is missing".to_owned());
    rows.push(row("btf", "BTF of the kernel", false, btf, "the programs cannot be fitted to this kernel"));
    let mut cgroup2 = row(
        "cgroup2",
        "cgroup v2",
        false,
        said(datapath::cgroup2_mount()),
        "workloads are cgroup v2 directories: mount the hierarchy anywhere",
    );
    if let Some(path) = &host.cgroup2 {
        cgroup2.found = format!("mounted at {}", path.display());
    }
    rows.push(cgroup2);
    let systems = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let bpffs = !systems.lines().any(|l| l.split_whitespace().last() == Some("bpf"));
    let bpffs = bpffs.then(|| "the kernel has no bpffs".to_owned());
    rows.push(row("bpffs", "bpffs", false, bpffs, "nothing can be pinned, so nothing would outlive the command"));
}

/// Tries everything. `cgroup` is the throw-away one, if it could be made.
pub fn rows(host: &Host, cgroup: Option<&Path>) -> Vec<Row> {
    let mut rows = Vec::new();
    machine(host, &mut rows);
    for (name, what, optional, missing) in PROGRAMS {
        let id = format!("program.{}", name.trim_start_matches("feature_"));
        rows.push(row(&id, what, *optional, probe::program(name).error, missing));
    }
    rows.push(together("maps", "kinds of maps", &probe::map_kinds(), "the datapath cannot be loaded"));
    rows.push(together("helpers", "BPF helpers", &probe::helpers(), "the datapath cannot be loaded"));
    if let Some(cgroup) = cgroup {
        let error = said(probe::cgroup_link(cgroup));
        rows.push(row("link.cgroup", "links to cgroups", false, error, "nothing can be attached"));
    }
    rows.push(row("link.tracepoint", "links to tracepoints", true, said(probe::tracepoint_link()), NO_RECEIVE_FLAGS));
    rows.push(row(
        "iterate",
        "iterating over a sockhash",
        false,
        said(probe::iterate_sockets()),
        "detach cannot drain",
    ));
    let programs = probe::datapath_programs();
    let loads = match &programs {
        Ok(programs) => {
            for attempt in programs {
                let missing =
                    if attempt.optional { "less is known of applications" } else { "nothing can be attached" };
                let id = format!("datapath.{}", attempt.name);
                rows.push(row(&id, "a program of the datapath", attempt.optional, attempt.error.clone(), missing));
            }
            programs.iter().all(|p| p.error.is_none())
        }
        Err(e) => {
            rows.push(row("datapath", "the datapath", false, Some(e.to_string()), "nothing can be attached"));
            false
        }
    };
    rows.push(fields(loads));
    rows
}

/// The kernel's fields: one that is missing matters only when a program that reads it does not load.
fn fields(loads: bool) -> Row {
    let fields = match probe::fields() {
        Ok(fields) => fields,
        Err(e) => {
            return row("fields", "fields of the kernel", false, Some(e.to_string()), "the kernel cannot be read");
        }
    };
    let missing: Vec<&str> = fields.iter().filter(|f| !f.exists).map(|f| f.name).collect();
    let found = match missing.as_slice() {
        [] => format!("all {} are there", fields.len()),
        some => format!("{} of {} are there, not {}", fields.len() - some.len(), fields.len(), some.join(", ")),
    };
    let mut row = row(
        "fields",
        "fields of the kernel",
        true,
        (!missing.is_empty() && !loads).then(|| found.clone()),
        "a program that reads one of them does not load",
    );
    row.found = found;
    row
}
