//! Adoption: connections that were established before their workload was attached (`bpf/adopt.bpf.c`).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{self, File};
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use libbpf_rs::{MapCore, MapFlags};
use nix::sched::{CloneFlags, setns};

use crate::pins::Pins;
use crate::skel::types::{self, adoption_what as WHAT};
use crate::{Datapath, Error, Result, host, reason, sys};

/// Programs that only adoption needs.
pub const PROGRAMS: &[&str] = &["shared_socket_candidates", "shared_socket_adopt", "shared_socket_tie"];

/// Pairs that enter at once: few, so that the time between the two halves of one is short (`bpf/adopt.bpf.h`).
const ROUND_AT_ONCE: usize = 256;

/// Sockets whose pairs are put into the sockhash in one round; half of what the map `adoptions` holds.
const ROUND: usize = 32_768;

const FAST: u32 = types::reason::REASON_fast.0;
const LEARNING: u32 = types::reason::REASON_learning.0;
const AMBIGUOUS: u32 = types::reason::REASON_ambiguous.0;
const NOT_DRAINED: u32 = types::reason::REASON_not_drained.0;
const UNPROVEN: u32 = types::reason::REASON_unproven.0;
const ELSEWHERE: u32 = types::reason::REASON_peer_missing.0;

/// What became of the connections of one workload. A connection with both ends in it counts once.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct Adopted {
    /// Connections that are pairs now.
    pub adopted: u64,
    /// Connections of two attached ends that stay on TCP, by reason name.
    pub on_tcp: BTreeMap<String, u64>,
    /// Connections whose other end is not attached, or not on this machine.
    pub elsewhere: u64,
}

/// What one pass of adoption did.
#[derive(Debug, Clone, Default)]
pub struct Adoption {
    /// By cgroup id of the workload.
    pub workloads: BTreeMap<u64, Adopted>,
    /// Connections adopted in this pass.
    pub adopted: u64,
    /// Connections that are observed on TCP: a later pass adopts those whose kinds prove to be safe.
    pub learning: u64,
    /// Connections that were busy at the moment: a later pass may find them idle.
    pub busy: u64,
    /// Network namespaces that were looked into.
    pub namespaces: usize,
}

/// The option by which an iterator sets the callbacks of a socket (6.12); its name is in the kernel's BTF when it has it.
/// All such kernels hold the socket lock in iter/tcp in a way that lets the sockhash be changed (6.5).
pub fn kernel_can_adopt() -> bool {
    let name = b"\0TCP_BPF_SOCK_OPS_CB_FLAGS\0";
    fs::read("/sys/kernel/btf/vmlinux").is_ok_and(|btf| btf.windows(name.len()).any(|w| w == name))
}

/// A connection of which both ends are attached: indices of the client's and the server's candidate.
type Match = (usize, usize);

struct Matches {
    pairs: Vec<Match>,
    ambiguous: BTreeSet<usize>,
}

/// Which pairs are strict (`bpf/clean.bpf.h`).
struct Strictness {
    /// They enter at once, while they are idle, or not at all.
    at_once: bool,
    /// Workloads of `--eligibility safe`.
    safe: BTreeSet<u64>,
}

impl Strictness {
    fn is_strict(&self, one: &types::candidate, other: &types::candidate) -> bool {
        self.safe.contains(&one.workload) || self.safe.contains(&other.workload)
    }
}

/// Finds the two ends of connections by the numbers that both were born with. Which end is the client is not known: each
/// socket stands in both tables, and only one of the two can meet its peer. Numbers that more than two share are nobody's.
fn find_pairs(sockets: &[types::candidate]) -> Matches {
    let mut clients: HashMap<(u32, u32), Vec<usize>> = HashMap::new();
    let mut servers: HashMap<(u32, u32), Vec<usize>> = HashMap::new();
    for (at, s) in sockets.iter().enumerate() {
        clients.entry((s.sent_isn, s.peer_isn)).or_default().push(at);
        servers.entry((s.peer_isn, s.sent_isn.wrapping_sub(1))).or_default().push(at);
    }
    let mut pairs = Vec::new();
    let mut ambiguous = BTreeSet::new();
    let mut met: HashMap<usize, u32> = HashMap::new();
    for (key, client) in &clients {
        let Some(server) = servers.get(key) else { continue };
        match (client.as_slice(), server.as_slice()) {
            (&[c], &[s]) if c == s => {}
            (&[c], &[s]) => {
                *met.entry(c).or_default() += 1;
                *met.entry(s).or_default() += 1;
                pairs.push((c, s));
            }
            _ => ambiguous.extend(client.iter().chain(server)),
        }
    }
    // one socket that meets one peer as a client and another as a server
    let twice = pairs.iter().filter(|(c, s)| met[c] > 1 || met[s] > 1);
    ambiguous.extend(twice.flat_map(|&(c, s)| [c, s]).collect::<Vec<_>>());
    pairs.retain(|(c, s)| !ambiguous.contains(c) && !ambiguous.contains(s));
    Matches { pairs, ambiguous }
}

/// What is to be done with a pair: its reason, and whether both ends are to enter or only to be observed.
fn judge(client: &types::candidate, server: &types::candidate) -> u32 {
    match (u32::from(client.as_client), u32::from(server.as_server)) {
        // as in pair.bpf.c: each must have got packets of the other's own socket
        (FAST, FAST) | (FAST, LEARNING) | (LEARNING, FAST | LEARNING) if !is_proven(client, server) => UNPROVEN,
        (FAST, other) | (other, FAST) => other,
        // what can change with time stands back behind what cannot
        (LEARNING, other) | (other, _) => other,
    }
}

/// Each socket gives all its packets one random number, which stays with a packet inside this kernel and goes over no wire:
/// the last packet of either end must have been the other's. It also tells forged numbers from true ones.
fn is_proven(client: &types::candidate, server: &types::candidate) -> bool {
    client.hashed == 0
        || client.sent_hash != 0 && client.sent_hash == server.got_hash && server.sent_hash == client.got_hash
}

/// Network namespaces in which sockets of these cgroups may be: those of their processes, and all that have a name.
fn namespaces_of(cgroups: &[PathBuf]) -> Vec<File> {
    let mut todo = cgroups.to_vec();
    let mut pids = BTreeSet::new();
    while let Some(dir) = todo.pop() {
        // a threaded cgroup has only threads
        let list =
            fs::read_to_string(dir.join("cgroup.procs")).or_else(|_| fs::read_to_string(dir.join("cgroup.threads")));
        pids.extend(list.unwrap_or_default().lines().filter_map(|l| l.parse::<u32>().ok()).filter(|pid| *pid != 0));
        let entries = fs::read_dir(&dir).into_iter().flatten().flatten();
        todo.extend(entries.filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).map(|e| e.path()));
    }
    let named = ["/run/netns", "/run/docker/netns"].iter().filter_map(|dir| fs::read_dir(dir).ok());
    let paths = std::iter::once(PathBuf::from("/proc/self/ns/net"))
        .chain(pids.iter().map(|pid| PathBuf::from(format!("/proc/{pid}/ns/net"))))
        .chain(named.flatten().flatten().map(|e| e.path()));
    let mut seen = BTreeSet::new();
    let mut found = Vec::new();
    for path in paths {
        // a process may be gone by now, and a name may have lost its mount: then it is on another file system
        let Ok(meta) = fs::metadata(&path) else { continue };
        if !is_nsfs(&path) || seen.contains(&(meta.dev(), meta.ino())) {
            continue;
        }
        if let Ok(file) = File::open(&path) {
            seen.insert((meta.dev(), meta.ino()));
            found.push(file);
        }
    }
    found
}

fn is_nsfs(path: &Path) -> bool {
    nix::sys::statfs::statfs(path).is_ok_and(|s| s.filesystem_type() == nix::sys::statfs::NSFS_MAGIC)
}

/// Reads an iterator to its end.
fn read_all(mut file: File) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    loop {
        match file.read_to_end(&mut bytes) {
            // so many sockets that were of no interest: the kernel makes a pause
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
            done => return done.map(|_| bytes),
        }
    }
}

fn records<T: Copy>(bytes: &[u8]) -> Vec<T> {
    bytes.chunks_exact(size_of::<T>()).filter_map(sys::read_pod).collect()
}

/// Runs an iter/tcp program in each namespace; what it says comes with the index of the namespace. A thread of its own
/// enters them: this one's namespace stays. `pause` (debug) is waited for after each.
pub(crate) fn in_each<T: Copy + Send>(
    pins: &Pins,
    program: &str,
    namespaces: &[&File],
    pause: Duration,
) -> Result<Vec<(usize, T)>> {
    let fd = pins.open_program(program)?;
    let failed = |e| Error::system(format!("running the iterator {program}"), e);
    let link = sys::link_iterator(fd.as_fd()).map_err(failed)?;
    let work = || -> Result<Vec<(usize, T)>> {
        let mut all = Vec::new();
        for (index, namespace) in namespaces.iter().enumerate() {
            if let Err(e) = setns(namespace, CloneFlags::CLONE_NEWNET) {
                tracing::warn!("a network namespace cannot be entered, its connections are left as they are: {e}");
                continue;
            }
            let bytes = sys::start(link.as_fd()).and_then(read_all).map_err(failed)?;
            all.extend(records::<T>(&bytes).into_iter().map(|record| (index, record)));
            std::thread::sleep(pause);
        }
        Ok(all)
    };
    std::thread::scope(|scope| scope.spawn(work).join()).unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

impl Datapath {
    /// Network namespaces in which sockets of attached workloads may be.
    pub(crate) fn namespaces(&self) -> Result<Vec<File>> {
        let root = host::cgroup2_mount()?;
        let path = |w: crate::Workload| Some(root.join(w.cgroup?.strip_prefix("/").ok()?));
        Ok(namespaces_of(&self.workloads()?.into_iter().filter_map(path).collect::<Vec<_>>()))
    }

    /// Puts established connections between attached workloads into the sockhash, and ties them. They go by TCP until
    /// what began before has ended on either end (`bpf/adopt.bpf.h`). Doing it again adopts what has become eligible.
    ///
    /// `delay` (debug) is waited for between entering and tying; where pairs enter at once, between their halves.
    pub fn adopt(&self, delay: Duration) -> Result<Adoption> {
        let missing = PROGRAMS.iter().any(|name| !self.pins.program(name).exists());
        if missing {
            return Err(Error::Unsupported {
                what: "connections that exist already cannot be adopted: the kernel lacks TCP_BPF_SOCK_OPS_CB_FLAGS \
                       (Linux 6.12), or the datapath was loaded without the receive tracepoint, or by a process that \
                       may not see the kernel's addresses (CAP_SYSLOG, kernel.kptr_restrict below 2)"
                    .into(),
                todo: "new connections are accelerated all the same; restart what should not wait".into(),
            });
        }
        // what an earlier pass, killed half-way, has left
        self.tie()?;
        let namespaces = self.namespaces()?;
        let everywhere: Vec<&File> = namespaces.iter().collect();
        let (places, sockets): (Vec<usize>, Vec<types::candidate>) =
            in_each::<types::candidate>(&self.pins, "shared_socket_candidates", &everywhere, Duration::ZERO)?
                .into_iter()
                .unzip();
        // a node has hundreds of namespaces: the time between the two halves of a pair must not grow with them
        let of_round = |round: &[Match]| -> Vec<&File> {
            let wanted: BTreeSet<usize> = round.iter().flat_map(|&(c, s)| [places[c], places[s]]).collect();
            wanted.into_iter().map(|at| everywhere[at]).collect()
        };
        let matches = find_pairs(&sockets);
        let mut done = Adoption { namespaces: namespaces.len(), ..Adoption::default() };
        if !matches.pairs.is_empty() {
            self.trace(true)?; // shows when an adopted half may be fast, and what kinds do
        }
        let mut reasons: HashMap<Match, u32> =
            matches.pairs.iter().map(|&(c, s)| ((c, s), judge(&sockets[c], &sockets[s]))).collect();
        self.leave_room(&matches.pairs, &mut reasons)?;
        let wanted: Vec<Match> =
            matches.pairs.iter().copied().filter(|m| [FAST, LEARNING].contains(&reasons[m])).collect();
        let rules = self.strictness()?;
        let (at_once, waiting): (Vec<Match>, Vec<Match>) =
            wanted.iter().partition(|&&(c, s)| rules.at_once && rules.is_strict(&sockets[c], &sockets[s]));
        for round in waiting.chunks(ROUND / 2) {
            self.enter(&sockets, round, &rules, &mut reasons, &of_round(round), Duration::ZERO)?;
        }
        for round in at_once.chunks(ROUND_AT_ONCE) {
            let there = of_round(round);
            self.enter(&sockets, round, &rules, &mut reasons, &there, delay)?;
            self.rouse(&sockets, round, &reasons, &there)?;
        }
        if !delay.is_zero() {
            std::thread::sleep(delay);
        }
        self.tie()?;

        let mut matched = matches.ambiguous.clone();
        for (&(c, s), &reason) in &reasons {
            matched.extend([c, s]);
            done.adopted += u64::from(reason == FAST);
            done.learning += u64::from(reason == LEARNING);
            done.busy += u64::from(reason == NOT_DRAINED);
            for workload in BTreeSet::from([sockets[c].workload, sockets[s].workload]) {
                done.count(workload, reason);
            }
        }
        for &at in &matches.ambiguous {
            done.count(sockets[at].workload, AMBIGUOUS);
        }
        for (_, s) in sockets.iter().enumerate().filter(|(at, _)| !matched.contains(at)) {
            done.count(s.workload, ELSEWHERE);
        }
        Ok(done)
    }

    /// Halves that enter while their peers find the map full would have to leave again: no more than fits is begun.
    fn leave_room(&self, pairs: &[Match], reasons: &mut HashMap<Match, u32>) -> Result<()> {
        let halves = self.map("halves")?;
        let free = (halves.max_entries() as usize).saturating_sub(halves.keys().count()) / 2;
        for m in pairs.iter().filter(|m| reasons[m] == FAST).skip(free).copied().collect::<Vec<_>>() {
            reasons.insert(m, types::reason::REASON_map_full.0);
        }
        Ok(())
    }

    /// The second pass: both halves of each pair enter, or are observed.
    fn enter(
        &self,
        sockets: &[types::candidate],
        pairs: &[Match],
        rules: &Strictness,
        reasons: &mut HashMap<Match, u32>,
        namespaces: &[&File],
        pause: Duration,
    ) -> Result<()> {
        let map = self.map("adoptions")?;
        let what = |e| Error::libbpf("writing down which sockets to adopt", e);
        for key in map.keys().collect::<Vec<_>>() {
            map.delete(&key).map_err(what)?; // of a pass that was killed
        }
        let key_of = |s: &types::candidate| types::half_key { cookie: s.cookie, generation: s.generation, pad: 0 };
        for m @ &(c, s) in pairs {
            for (own, peer, role) in [(c, s, types::role::ROLE_CLIENT), (s, c, types::role::ROLE_SERVER)] {
                let (own, peer) = (&sockets[own], &sockets[peer]);
                let value = types::adoption {
                    slf: key_of(own),
                    peer: key_of(peer),
                    peer_sk: peer.sk,
                    sent_isn: own.sent_isn,
                    peer_isn: own.peer_isn,
                    role: role.0,
                    what: if reasons[m] == FAST { WHAT::ADOPT_ENTER.0 } else { WHAT::ADOPT_OBSERVE.0 },
                    strict: u32::from(rules.is_strict(own, peer)),
                    pad: 0,
                };
                map.update(&own.cookie.to_ne_bytes(), sys::pod_bytes(&value), MapFlags::ANY).map_err(what)?;
            }
        }
        let results = in_each::<types::adoption_result>(&self.pins, "shared_socket_adopt", namespaces, pause)?;
        let results: HashMap<u64, u32> = results.iter().map(|(_, r)| (r.cookie, r.reason)).collect();
        for &(c, s) in pairs {
            // a socket that did not come by again has closed
            let of = |at: usize| results.get(&sockets[at].cookie).copied().unwrap_or(ELSEWHERE);
            let reason = match (of(c), of(s)) {
                (FAST, other) | (other, _) => other,
            };
            reasons.insert((c, s), reason);
            for at in [c, s] {
                map.delete(&sockets[at].cookie.to_ne_bytes()).map_err(what)?;
            }
        }
        Ok(())
    }

    /// Of a round that enters at once: takes out halves that are alone, and has the applications of all that were in and
    /// had to go again look at their sockets.
    fn rouse(
        &self,
        sockets: &[types::candidate],
        pairs: &[Match],
        reasons: &HashMap<Match, u32>,
        namespaces: &[&File],
    ) -> Result<()> {
        let gone: Vec<&Match> = pairs.iter().filter(|&m| reasons[m] != FAST && reasons[m] != LEARNING).collect();
        if gone.is_empty() {
            return Ok(());
        }
        self.tie()?;
        let map = self.map("adoptions")?;
        let what = |e| Error::libbpf("writing down which sockets to rouse", e);
        let cookies: Vec<[u8; 8]> =
            gone.iter().flat_map(|m| [m.0, m.1]).map(|at| sockets[at].cookie.to_ne_bytes()).collect();
        let value = types::adoption { what: WHAT::ADOPT_ROUSE.0, ..Default::default() };
        for cookie in &cookies {
            map.update(cookie, sys::pod_bytes(&value), MapFlags::ANY).map_err(what)?;
        }
        in_each::<types::adoption_result>(&self.pins, "shared_socket_adopt", namespaces, Duration::ZERO)?;
        for cookie in &cookies {
            map.delete(cookie).map_err(what)?;
        }
        Ok(())
    }

    /// How pairs of `safe` workloads are treated on this kernel.
    fn strictness(&self) -> Result<Strictness> {
        let fionread = sys::read_pod::<types::settings>(&self.pins.about()?).map_or(0, |s| s.fionread);
        let is_safe = |(id, w): &(u64, types::workload)| (w.eligibility == 0).then_some(*id);
        let safe =
            if fionread == 0 { BTreeSet::new() } else { self.pins.workloads()?.iter().filter_map(is_safe).collect() };
        let misses = |what: types::fionread| fionread & what.0 != 0;
        let at_once = misses(types::fionread::FIONREAD_MISSES_TCP) || !misses(types::fionread::FIONREAD_MISSES_FAST);
        Ok(Strictness { at_once, safe })
    }

    /// The third pass: opens pairs that are complete, takes out halves that are alone.
    fn tie(&self) -> Result<()> {
        let (program, sockets) = (self.program("shared_socket_tie")?, self.map("sockets")?);
        sys::iterate(program.as_fd(), sockets.as_fd())
            .and_then(read_all)
            .map(|_| ())
            .map_err(|e| Error::system("running the tie iterator", e))
    }
}

impl Adoption {
    fn count(&mut self, workload: u64, reason: u32) {
        let row = self.workloads.entry(workload).or_default();
        match reason {
            FAST => row.adopted += 1,
            ELSEWHERE => row.elsewhere += 1,
            other => *row.on_tcp.entry(reason::reason_name(other).to_owned()).or_default() += 1,
        }
    }

    /// Takes in a later pass over the same connections: what it adopted adds up, the rest is as it is now.
    pub fn then(&mut self, later: Self) {
        for row in self.workloads.values_mut() {
            *row = Adopted { adopted: row.adopted, ..Adopted::default() };
        }
        for (id, row) in later.workloads {
            let before = self.workloads.remove(&id).map_or(0, |w| w.adopted);
            self.workloads.insert(id, Adopted { adopted: before + row.adopted, ..row });
        }
        self.adopted += later.adopted;
        self.learning = later.learning;
        self.busy = later.busy;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the kernel shows a socket: `sent` and `received` bytes after its birth, whatever 2^32 they have passed.
    fn socket(client: bool, own: u32, peer: u32, sent: u64, received: u64) -> types::candidate {
        let bytes_acked = sent + u64::from(client); // a client's SYN counts
        let snd_una = own.wrapping_add(1).wrapping_add(sent as u32);
        let rcv_nxt = peer.wrapping_add(1).wrapping_add(received as u32);
        types::candidate {
            sent_isn: snd_una.wrapping_sub(bytes_acked as u32),
            peer_isn: rcv_nxt.wrapping_sub(received as u32).wrapping_sub(1),
            ..Default::default()
        }
    }

    #[test]
    fn ends_meet_whatever_was_sent() {
        let many = 5 * (1u64 << 32) + 77;
        for (sent, received) in [(0, 0), (1, 9), (many, 3), (many, many + 1), (u64::from(u32::MAX), 1 << 32)] {
            for (c, s) in [(7, 9), (u32::MAX, 0), (0, u32::MAX), (1 << 31, u32::MAX - 1)] {
                let sockets = [socket(false, s, c, received, sent), socket(true, c, s, sent, received)];
                let found = find_pairs(&sockets);
                assert_eq!(found.pairs, [(1, 0)], "client {c}, server {s}, {sent} and {received} bytes");
                assert!(found.ambiguous.is_empty());
            }
        }
    }

    #[test]
    fn others_do_not_meet() {
        // two clients, two servers, a simultaneous open, a connection to itself
        let open = [socket(true, 5, 60, 0, 0), socket(true, 60, 5, 0, 0), socket(true, 900, 900, 0, 0)];
        assert!(find_pairs(&open).pairs.is_empty());
        let halves = [socket(true, 100, 200, 4, 4), socket(false, 201, 100, 4, 4), socket(false, 200, 101, 4, 4)];
        assert!(find_pairs(&halves).pairs.is_empty());
    }

    #[test]
    fn three_of_one_key_are_nobodys() {
        let forged = socket(false, 9, 7, 1, 1);
        let sockets = [
            socket(true, 7, 9, 3, 4),
            socket(false, 9, 7, 4, 3),
            forged,
            socket(true, 1, 2, 0, 0),
            socket(false, 2, 1, 0, 0),
        ];
        let found = find_pairs(&sockets);
        assert_eq!(found.pairs, [(3, 4)]);
        assert_eq!(found.ambiguous, BTreeSet::from([0, 1, 2]));
    }

    #[test]
    fn one_socket_with_two_peers_is_ambiguous() {
        // as a client it meets the second, as a server the third
        let middle = socket(true, 50, 60, 0, 0);
        let as_server =
            types::candidate { sent_isn: middle.peer_isn, peer_isn: middle.sent_isn - 1, ..Default::default() };
        let sockets = [middle, socket(false, 60, 50, 0, 0), as_server];
        let found = find_pairs(&sockets);
        assert!(found.pairs.is_empty());
        assert_eq!(found.ambiguous, BTreeSet::from([0, 1, 2]));
    }

    #[test]
    fn what_is_final_is_told_before_what_is_learned() {
        let with = |c: u16, s: u16| {
            let (mut a, mut b) = (socket(true, 1, 2, 0, 0), socket(false, 2, 1, 0, 0));
            (a.as_client, b.as_server) = (c, s);
            judge(&a, &b)
        };
        let (learning, ulp) = (LEARNING as u16, types::reason::REASON_ulp.0 as u16);
        assert_eq!(with(0, 0), FAST);
        assert_eq!(with(0, learning), LEARNING);
        assert_eq!(with(learning, 0), LEARNING);
        assert_eq!(with(learning, learning), LEARNING);
        assert_eq!(with(learning, ulp), u32::from(ulp));
        assert_eq!(with(ulp, learning), u32::from(ulp));
    }
}
