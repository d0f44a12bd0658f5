//! Loading and pinning: programs and maps come into being here, with maps of their own or with those that are pinned.

use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use libbpf_rs::skel::{OpenSkel, Skel, SkelBuilder};
use libbpf_rs::{MapCore, MapFlags, MapHandle};

use crate::pins::{self, Pins};
use crate::skel::{OpenSharedSocketSkel, SharedSocketSkel, SharedSocketSkelBuilder, types};
use crate::{Error, Result, failpoint, fold, kernel, sys, tap};

/// ABI number of this build; see `bpf/abi.h`. Debug: the environment may give another, to try an upgrade of the ABI.
pub fn abi_version() -> u32 {
    let debug = std::env::var("SHARED_SOCKET_DEBUG_ABI").ok().and_then(|v| v.parse().ok());
    debug.unwrap_or(types::abi::ABI_VERSION.0)
}

/// Who is accelerated (docs/transparency.md).
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Eligibility {
    /// Only kinds of connections that were observed to be safe.
    Safe,
    /// Every pair: the owner knows the workload.
    All,
}

impl std::fmt::Display for Eligibility {
    /// As options and files have it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Safe => "safe",
            Self::All => "all",
        })
    }
}

/// A bit of [`KernelFindings::fionread`] that every kernel has: a recv ends where redirected bytes end, while bytes that came
/// by TCP are there (`tcp_bpf_recvmsg`).
pub const SHORT_READS: u32 = types::fionread::FIONREAD_SHORT_READS.0;

/// What was found of this kernel (`shared-socket check`) and configures the programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct KernelFindings {
    /// Redirected bytes count in the receiver's `sk_rmem_alloc`.
    pub rmem_counts: bool,
    /// TCP goes on without a stall where they fill it past `SO_RCVBUF`.
    pub past_rcvbuf: bool,
    /// What FIONREAD does not count, and [`SHORT_READS`] (`enum fionread` in `bpf/abi.h`); 0: no pair is strict.
    pub fionread: u32,
    /// Bit n: hazard Hn was seen, or could not be excluded.
    pub hazards: u32,
}

impl Default for KernelFindings {
    /// Nothing is known: every doubt counts as a hazard.
    fn default() -> Self {
        Self { rmem_counts: false, past_rcvbuf: false, fionread: 3, hazards: u32::MAX }
    }
}

impl KernelFindings {
    pub(crate) fn configure(self, settings: &mut types::settings) {
        settings.rmem_counts = u32::from(self.rmem_counts);
        settings.past_rcvbuf = u32::from(self.past_rcvbuf);
        settings.fionread = self.fionread;
        settings.kernel_hazards = self.hazards;
    }
}

/// How the datapath is set up when it is loaded.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// A directory on a bpffs.
    pub pin_dir: PathBuf,
    /// Pairs at most; beyond it connections stay on TCP.
    pub max_pairs: u32,
    /// Bytes queued to one peer at most.
    pub budget_bytes: u32,
    /// Messages queued to one peer at most.
    pub budget_messages: u32,
    /// Bytes queued to all peers together at most, the kernel's overhead for messages included.
    pub total_budget_bytes: u64,
    /// Finished connections that make a kind eligible.
    pub learn_connections: u32,
    /// Kinds whose connections carry fewer messages on average stay on TCP; 0: none does.
    pub min_messages: u32,
    /// How often a message goes by TCP, so that conntrack sees the connection live.
    pub keepalive: Duration,
    /// Learn from the receive tracepoint where the kernel has it; else from `O_NONBLOCK` of the files.
    pub trace_receives: bool,
    /// Of so many messages on the fast path the wait of one is measured (a power of two; 0: of none). `None`: of one in 64, where
    /// a workload is `safe`.
    pub latency_samples: Option<u32>,
    /// What was found of this kernel.
    pub kernel: KernelFindings,
    /// Debug: iterations to spin where races are closed, to force them open in tests.
    pub spin: u32,
    /// Debug: in which of them, a bit for each `enum window` of `bpf/abi.h`.
    pub spin_windows: u32,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self {
            pin_dir: PathBuf::from("/sys/fs/bpf/shared-socket"),
            max_pairs: 65_536,
            budget_bytes: 4 << 20,
            budget_messages: 4096,
            total_budget_bytes: crate::Host::default_total_budget(),
            learn_connections: 3,
            min_messages: 8,
            keepalive: Duration::from_secs(60),
            trace_receives: true,
            latency_samples: None,
            kernel: KernelFindings::default(),
            spin: 0,
            spin_windows: (1 << types::window::WINDOW_COUNT.0) - 1,
        }
    }
}

/// The programs for kernels before 5.12 (bpf/words.bpf.h).
static OLD_OBJECT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/shared_socket.old.bpf.o"));

/// The object that fits the running kernel; the skeleton asks.
pub fn object(current: &'static [u8]) -> &'static [u8] {
    if kernel::has_fetching_atomics() { current } else { OLD_OBJECT }
}

/// Tells one build of the programs from another: an agent that finds those of another pinned upgrades them.
pub fn programs_id() -> &'static str {
    env!("SHARED_SOCKET_PROGRAMS")
}

/// Linux 6.3 and newer: every receive call with its flags.
fn has_receive_tracepoint() -> bool {
    libbpf_rs::btf::Btf::from_vmlinux()
        .is_ok_and(|btf| btf.type_by_name::<libbpf_rs::btf::types::Typedef<'_>>("btf_trace_sock_recv_length").is_some())
}

/// A function of the kernel that programs may call or trace.
fn has_function(name: &str) -> bool {
    libbpf_rs::btf::Btf::from_vmlinux()
        .is_ok_and(|btf| btf.type_by_name::<libbpf_rs::btf::types::Func<'_>>(name).is_some())
}

/// Jiffies run at CONFIG_HZ, which userspace cannot ask for: the kernel's own clock is looked at twice. The answer need
/// not be exact.
fn jiffies_a_second() -> Result<f64> {
    let what = |e| Error::system("reading the kernel's jiffies with a BPF program", e);
    let clock = sys::Jiffies::new().map_err(what)?;
    let (began, before) = (Instant::now(), clock.read().map_err(what)?);
    std::thread::sleep(Duration::from_millis(50));
    let (took, after) = (began.elapsed(), clock.read().map_err(what)?);
    let rate = (f64::from(after.wrapping_sub(before)) / took.as_secs_f64()).clamp(24.0, 2000.0);
    tracing::debug!(rate, "jiffies a second");
    Ok(rate)
}

/// Events of one kind that a CPU may write to the journal in a second, when its bucket is empty.
const JOURNAL_RATE: f64 = 500.0;
/// And those that it may write at once.
const JOURNAL_BURST: u32 = 2000;

/// Entries of the journal that each CPU has, and userspace too.
fn journal_segment() -> u32 {
    let cpus = libbpf_rs::num_possible_cpus().map_or(1, |n| u32::try_from(n).unwrap_or(1)).max(1);
    let share = types::abi::JOURNAL_ENTRIES.0 / cpus;
    (1 << share.max(64).ilog2()).min(types::abi::JOURNAL_ENTRIES.0)
}

fn journal_size() -> u32 {
    let cpus = libbpf_rs::num_possible_cpus().map_or(1, |n| u32::try_from(n).unwrap_or(1)).max(1);
    journal_segment().saturating_mul(cpus + 1)
}

/// Bytes in the unit of the total budget.
pub fn kib(bytes: u64) -> u32 {
    u32::try_from(bytes >> 10).unwrap_or(u32::MAX)
}

/// Of so many messages the wait of one is measured.
const DEFAULT_SAMPLES: u32 = 64;

/// The settings that the programs of a new load get.
pub fn settings(options: &LoadOptions) -> Result<types::settings> {
    let traced = options.trace_receives && has_receive_tracepoint();
    let rate = jiffies_a_second()?;
    let sample_mask = match options.latency_samples {
        Some(0) => u32::MAX,
        samples => samples.unwrap_or(DEFAULT_SAMPLES).checked_next_power_of_two().unwrap_or(1 << 31) - 1,
    };
    let mut settings = types::settings {
        abi_version: abi_version(),
        budget_bytes: options.budget_bytes,
        budget_messages: options.budget_messages,
        keepalive_jiffies: ((options.keepalive.as_secs_f64() * rate) as u32).max(1),
        learn_connections: options.learn_connections,
        learn_calls: 2,
        min_messages: options.min_messages,
        learn_by_flags: u32::from(!traced),
        spin: options.spin,
        spin_windows: options.spin_windows,
        total_budget_kib: kib(options.total_budget_bytes),
        reserver_mask: reservers(options.max_pairs) - 1,
        journal_mask: journal_segment() - 1,
        journal_burst: JOURNAL_BURST.min(journal_segment() / 4),
        journal_refill: ((JOURNAL_RATE * 256.0 / rate) as u32).max(1),
        sample_mask: if traced { sample_mask } else { u32::MAX },
        sample_all: u32::from(options.latency_samples.is_some_and(|n| n > 0)),
        ..Default::default()
    };
    options.kernel.configure(&mut settings);
    Ok(settings)
}

/// libbpf's words go to the log at its lowest level: what fails is told by errors.
pub fn silence() {
    libbpf_rs::set_print(Some((libbpf_rs::PrintLevel::Debug, |level, text| {
        tracing::debug!(target: "libbpf", ?level, "{}", text.trim_end());
        kernel::hear(level, text);
    })));
}

/// Maps with contents that outlive a load; the others are the compiler's (`.rodata`, ...).
fn is_pinned(name: &str) -> bool {
    !name.contains('.')
}

/// How the maps come into being.
#[derive(Clone, Copy)]
pub enum Maps<'a> {
    /// New ones, for so many pairs.
    New(u32),
    /// Those that are pinned, where they are; new ones where they are not.
    Pinned(&'a Pins),
}

/// Loads the programs and hands them on; what nobody pins or attaches goes again when this returns.
fn with_programs<R>(
    maps: Maps<'_>,
    settings: &types::settings,
    then: impl FnOnce(&SharedSocketSkel<'_>) -> Result<R>,
) -> Result<R> {
    if !Path::new("/sys/kernel/btf/vmlinux").exists() {
        return Err(Error::Unsupported {
            what: "the kernel has no BTF (/sys/kernel/btf/vmlinux is missing)".into(),
            todo: "use a kernel built with CONFIG_DEBUG_INFO_BTF=y (all current distribution kernels are)".into(),
        });
    }
    silence();
    // a tracing program of the old build may not shut a gate (bpf/words.bpf.h)
    let traces = |name| kernel::has_fetching_atomics() && crate::probe::can_trace(name);
    let [splice, zerocopy] = ["feature_splice_read", "feature_tcp_getsockopt"].map(traces);
    kernel::ensure_safe()?;
    let mut storage = MaybeUninit::uninit();
    let mut open = SharedSocketSkelBuilder::default()
        .open(&mut storage)
        .map_err(|e| Error::libbpf("opening the BPF object", e))?;
    match maps {
        Maps::New(pairs) => size_maps(&mut open, pairs)?,
        Maps::Pinned(pins) => reuse_maps(&mut open, pins)?,
    }
    open.progs.shared_socket_recv.set_autoload(settings.learn_by_flags == 0);
    // without addresses nobody can tell who sleeps in a call, and an adopted pair would wait for ever (sleepers.bpf.c)
    let adopts = settings.learn_by_flags == 0
        && kernel::has_fetching_atomics()
        && crate::adopt::kernel_can_adopt()
        && kernel::shows_addresses();
    open.progs.shared_socket_candidates.set_autoload(adopts);
    open.progs.shared_socket_adopt.set_autoload(adopts);
    open.progs.shared_socket_tie.set_autoload(adopts);
    open.progs.shared_socket_reset.set_autoload(kernel::has_fetching_atomics() && has_function("bpf_sock_destroy"));
    open.progs.shared_socket_splice.set_autoload(splice);
    open.progs.shared_socket_zerocopy.set_autoload(zerocopy);
    if let Some(rodata) = open.maps.rodata_data.as_deref_mut() {
        rodata.settings = *settings;
    }
    let skel = open.load().map_err(kernel::rejected)?;
    // A psock holds the stub, so the stub must hold the sockhash: when every pin is lost under live pairs (a bpffs that
    // is unmounted), the verdict slot is emptied by the kernel, which is the TCP path, but a sockhash that goes would
    // throw away what is unread.
    sys::bind_map(skel.progs.shared_socket_stub.as_fd(), skel.maps.sockets.as_fd())
        .map_err(|e| Error::system("tying the sockhash to the life of its program", e))?;
    then(&skel)
}

fn size_maps(open: &mut OpenSharedSocketSkel<'_>, pairs: u32) -> Result<()> {
    let halves = pairs.saturating_mul(2).max(2);
    let sized = |e| Error::libbpf("sizing the maps", e);
    open.maps.sockets.set_max_entries(halves).map_err(sized)?;
    open.maps.halves.set_max_entries(halves).map_err(sized)?;
    open.maps.journal.set_max_entries(journal_size()).map_err(sized)?;
    open.maps.handshakes.set_max_entries(pairs.max(16_384)).map_err(sized)?;
    open.maps.reservers.set_max_entries(reservers(pairs)).map_err(sized)
}

/// Size of the map `reservers`: a power of two, as the place of a half is a hash of its cookie, masked.
pub fn reservers(pairs: u32) -> u32 {
    pairs.saturating_mul(2).max(2).checked_next_power_of_two().unwrap_or(1 << 31)
}

fn reuse_maps(open: &mut OpenSharedSocketSkel<'_>, pins: &Pins) -> Result<()> {
    use libbpf_rs::skel::OpenSkel;
    for mut map in open.open_object_mut().maps_mut() {
        let name = map.name().to_string_lossy().into_owned();
        let path = pins.map(&name);
        if is_pinned(&name) && path.exists() {
            map.reuse_pinned_map(&path)
                .map_err(|e| Error::libbpf(format!("taking over the map {}", path.display()), e))?;
        }
    }
    Ok(())
}

/// Whether the programs of this build can work on the maps of `pins`: the same ABI, and each map of the same form.
pub fn fits(pins: &Pins, pinned_abi: u32, pairs: Option<u32>) -> Result<bool> {
    if pinned_abi != abi_version() {
        return Ok(false);
    }
    let mut storage = MaybeUninit::uninit();
    let mut open = SharedSocketSkelBuilder::default()
        .open(&mut storage)
        .map_err(|e| Error::libbpf("opening the BPF object", e))?;
    if let Some(pairs) = pairs {
        size_maps(&mut open, pairs)?;
    }
    for map in open.open_object().maps() {
        let name = map.name().to_string_lossy().into_owned();
        let path = pins.map(&name);
        if !is_pinned(&name) || !path.exists() {
            continue;
        }
        let pinned = MapHandle::from_pinned_path(&path)
            .map_err(|e| Error::libbpf(format!("opening the pinned map {}", path.display()), e))?;
        let sized = ["sockets", "halves", "handshakes", "reservers", "journal"].contains(&name.as_str());
        if (map.map_type(), map.key_size(), map.value_size())
            != (pinned.map_type(), pinned.key_size(), pinned.value_size())
            || ((pairs.is_some() || !sized) && map.max_entries() != pinned.max_entries())
        {
            tracing::info!(name, "the map has another form in this version");
            return Ok(false);
        }
    }
    Ok(true)
}

/// Makes new maps and programs and pins them as the generation `pins`, whose directory exists. `workloads` are entries
/// that it starts with. Nothing is linked to a cgroup yet.
pub fn load(
    pins: &Pins,
    pairs: u32,
    settings: &types::settings,
    fill: impl FnOnce(&SharedSocketSkel<'_>) -> Result<()>,
) -> Result<()> {
    with_programs(Maps::New(pairs), settings, |skel| {
        put_in_force(skel, settings)?;
        fill(skel)?;
        failpoint::step("load: loaded");
        for program in skel.object().progs() {
            let name = program.name().to_string_lossy().into_owned();
            if program.autoload() {
                pin_fd(program.as_fd(), &pins.program(&name))?;
                failpoint::step("load: a program");
            }
        }
        let maps = || skel.object().maps().map(|m| (m.name().to_string_lossy().into_owned(), m));
        for (name, map) in maps().filter(|(name, _)| is_pinned(name) && name != pins::ABOUT) {
            pin_fd(map.as_fd(), &pins.map(&name))?;
            failpoint::step("load: a map");
        }
        for (name, map) in maps().filter(|(name, _)| name == pins::ABOUT) {
            pin_fd(map.as_fd(), &pins.map(&name))?;
        }
        failpoint::step("load: complete");
        Ok(())
    })
}

/// Makes new programs on the maps of `pins`, lets live connections have them, and exchanges the pins. Each step is atomic,
/// and the programs of one ABI work together in any mixture; `links` exchanges what is linked.
pub fn reload(
    pins: &Pins,
    settings: &types::settings,
    links: impl FnOnce(&SharedSocketSkel<'_>) -> Result<()>,
) -> Result<()> {
    with_programs(Maps::Pinned(pins), settings, |skel| {
        failpoint::step("reload: loaded");
        for map in skel.object().maps() {
            let name = map.name().to_string_lossy().into_owned();
            if is_pinned(&name) && !pins.map(&name).exists() {
                pin_fd(map.as_fd(), &pins.map(&name))?; // new in this version
                failpoint::step("reload: a map");
            }
        }
        put_in_force(skel, settings)?;
        failpoint::step("reload: verdict");
        links(skel)?;
        let mut programs = Vec::new();
        for program in skel.object().progs().filter(|p| p.autoload()) {
            let name = program.name().to_string_lossy().into_owned();
            replace_pin(program.as_fd(), &pins.program(&name))?;
            failpoint::step("reload: a program");
            programs.push(name);
        }
        for path in pins.strangers(&programs) {
            pins::remove_pin(&path).map_err(|e| Error::system(format!("removing {}", path.display()), e))?;
        }
        Ok(())
    })
}

/// Settings, verdict and stub. The verdict is reached by tail call only: the swap of its slot is atomic and reaches every
/// live connection with its next message.
fn put_in_force(skel: &SharedSocketSkel<'_>, settings: &types::settings) -> Result<()> {
    let zero = 0u32.to_ne_bytes();
    skel.maps
        .about
        .update(&zero, sys::pod_bytes(settings), MapFlags::ANY)
        .map_err(|e| Error::libbpf("writing the settings", e))?;
    // what finds no room in the map is counted here; what is counted already stays
    let other = types::flow_key { client: u64::MAX, server: u64::MAX };
    match skel.maps.flows.update(sys::pod_bytes(&other), sys::pod_bytes(&types::flow::default()), MapFlags::NO_EXIST) {
        Err(e) if e.kind() != libbpf_rs::ErrorKind::AlreadyExists => {
            return Err(Error::libbpf("making the flow of what has no room", e));
        }
        _ => {}
    }
    fold::prepare(&skel.maps.flows);
    tap::put_verdict(&skel.maps.verdicts, skel.progs.shared_socket_verdict.as_fd())?;
    sys::attach_sk_msg(skel.progs.shared_socket_stub.as_fd(), skel.maps.sockets.as_fd())
        .map_err(|e| Error::system("attaching the sk_msg program to the sockhash", e))
}

fn pin_fd(fd: std::os::fd::BorrowedFd<'_>, path: &Path) -> Result<()> {
    sys::pin(fd, path).map_err(|e| Error::system(format!("pinning {}", path.display()), e))
}

/// Pins in the place of what may be pinned there; there is no moment without a pin.
pub fn replace_pin(fd: std::os::fd::BorrowedFd<'_>, path: &Path) -> Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let fresh = path.with_file_name(format!("new_{name}"));
    let what = |e| Error::system(format!("replacing {}", path.display()), e);
    pins::remove_pin(&fresh).map_err(what)?; // of an interrupted upgrade
    pin_fd(fd, &fresh)?;
    std::fs::rename(&fresh, path).map_err(what)
}
