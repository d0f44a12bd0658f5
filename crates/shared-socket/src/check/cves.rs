//! Known vulnerabilities of the sockmap, by version number.
//!
//! Ranges are those of the kernel's own CNA, as published in <https://github.com/CVEProject/cvelistV5> (file
//! `cves/YEAR/..xxx/CVE-....json`) and <https://osv.dev/vulnerability/CVE-...>: first affected version, then the first
//! version of each stable series that has the fix. Distributions backport fixes without changing these numbers, so what
//! this table says is "by version number".

use serde::{Deserialize, Serialize};

use datapath::Version;

/// A vulnerability.
#[derive(Debug)]
pub struct Cve {
    /// Its number; where none is known, the upstream commit that fixes it.
    pub id: &'static str,
    /// What is wrong.
    pub what: &'static str,
    /// The first version that has the bug.
    since: Version,
    /// The first fixed version of each series that got the fix, oldest first; the last one is mainline's.
    fixed: &'static [Version],
    /// How the design avoids it; `None`: it does not.
    pub avoided: Option<&'static str>,
}

const fn v(a: u16, b: u16, c: u16) -> Version {
    Version(a, b, c)
}

const NO_APPLY_OR_CORK: &str = "no program calls bpf_msg_apply_bytes or bpf_msg_cork_bytes";
const NO_REWRITE: &str = "no program changes a message (push, pop, pull)";
const NO_SKB_VERDICT: &str = "no stream parser or skb verdict program is attached, only sk_msg";
const TCP_ONLY: &str = "only TCP sockets enter the sockhash";

/// All of them, newest first.
pub static CVES: &[Cve] = &[
    Cve {
        id: "CVE-2026-74589",
        what: "use after free of sk_redir when two threads send on one socket",
        since: v(4, 20, 0),
        fixed: &[v(5, 10, 265), v(5, 15, 216), v(6, 1, 183), v(6, 6, 152), v(6, 12, 104), v(6, 18, 45), v(7, 1, 9)],
        avoided: Some(NO_APPLY_OR_CORK),
    },
    Cve {
        id: "CVE-2026-74256",
        what: "integer overflow in bpf_msg_pop_data",
        since: v(5, 0, 0),
        fixed: &[v(5, 10, 261), v(5, 15, 212), v(6, 1, 178), v(6, 6, 145), v(6, 12, 97), v(6, 18, 40), v(7, 1, 5)],
        avoided: Some(NO_REWRITE),
    },
    Cve {
        id: "CVE-2026-68284",
        what: "use after free of the corked message in tcp_bpf_sendmsg",
        since: v(4, 20, 0),
        fixed: &[v(5, 10, 265), v(5, 15, 216), v(6, 1, 183), v(6, 6, 148), v(6, 12, 101), v(6, 18, 42), v(7, 1, 6)],
        avoided: Some(NO_APPLY_OR_CORK),
    },
    Cve {
        id: "CVE-2026-64548",
        what: "integer overflow in bpf_msg_push_data",
        since: v(4, 20, 0),
        fixed: &[v(5, 10, 261), v(5, 15, 212), v(6, 1, 178), v(6, 6, 145), v(6, 12, 97), v(6, 18, 40), v(7, 1, 5)],
        avoided: Some(NO_REWRITE),
    },
    Cve {
        id: "CVE-2026-63926",
        what: "wrong offset of the tail fragment in bpf_msg_push_data",
        since: v(4, 20, 0),
        fixed: &[v(5, 10, 259), v(5, 15, 210), v(6, 1, 176), v(6, 6, 143), v(6, 12, 93), v(6, 18, 35), v(7, 0, 12)],
        avoided: Some(NO_REWRITE),
    },
    Cve {
        id: "CVE-2026-53033",
        what: "race when an iterator puts a Unix socket into a sockmap",
        since: v(5, 15, 0),
        fixed: &[v(6, 1, 175), v(6, 6, 141), v(6, 12, 91), v(6, 18, 33), v(7, 0, 10)],
        avoided: Some(TCP_ONLY),
    },
    Cve {
        id: "CVE-2026-43016",
        what: "use after free of sk_socket in sk_psock_verdict_data_ready",
        since: v(5, 15, 0),
        fixed: &[v(6, 6, 134), v(6, 12, 81), v(6, 18, 22), v(6, 19, 12)],
        avoided: Some(NO_SKB_VERDICT),
    },
    // https://lore.kernel.org/bpf/, mptcp: Disallow MPTCP subflows from sockmap; stable reviews of 6.1.159, 6.6.118 and
    // 6.12.60 carry it, and it did not apply to 5.10 and 5.15. No CVE number is known to this table.
    Cve {
        id: "fbade4bd08ba",
        what: "MPTCP subflows may enter a sockmap, where their callbacks are not the ones that MPTCP expects",
        since: v(5, 10, 0),
        fixed: &[v(6, 1, 159), v(6, 6, 118), v(6, 12, 60), v(6, 18, 0)],
        avoided: Some("MPTCP sockets and children of MPTCP listeners are refused"),
    },
    Cve {
        id: "CVE-2025-39913",
        what: "leak when psock->cork cannot be allocated",
        since: v(4, 17, 0),
        fixed: &[v(5, 10, 245), v(5, 15, 194), v(6, 1, 153), v(6, 6, 107), v(6, 12, 48), v(6, 16, 8), v(6, 17, 0)],
        avoided: Some(NO_APPLY_OR_CORK),
    },
    Cve {
        id: "CVE-2025-38165",
        what: "panic in skb_linearize when an skb verdict redirects into the ingress queue",
        since: v(4, 20, 0),
        fixed: &[v(5, 15, 190), v(6, 1, 142), v(6, 6, 94), v(6, 12, 34), v(6, 15, 3)],
        avoided: Some(NO_SKB_VERDICT),
    },
    Cve {
        id: "CVE-2024-56720",
        what: "several faults of bpf_msg_pop_data",
        since: v(5, 0, 0),
        fixed: &[v(5, 10, 231), v(5, 15, 174), v(6, 1, 120), v(6, 6, 64), v(6, 11, 11), v(6, 12, 2)],
        avoided: Some(NO_REWRITE),
    },
    Cve {
        id: "CVE-2024-56664",
        what: "use after free when an element is replaced while its socket closes",
        since: v(4, 20, 0),
        fixed: &[v(5, 10, 236), v(5, 15, 180), v(6, 1, 125), v(6, 6, 67), v(6, 12, 6), v(6, 13, 0)],
        avoided: Some("elements are only inserted (BPF_NOEXIST) and deleted, never replaced; keys are used once"),
    },
    Cve {
        id: "CVE-2024-56633",
        what: "memory accounting of a partly sent redirect",
        since: v(4, 20, 0),
        fixed: &[v(5, 10, 231), v(5, 15, 174), v(6, 1, 120), v(6, 6, 66), v(6, 12, 5), v(6, 13, 0)],
        avoided: Some(NO_APPLY_OR_CORK),
    },
    Cve {
        id: "CVE-2024-46783",
        what: "BUG on a negative return value of tcp_bpf_sendmsg",
        since: v(4, 17, 0),
        fixed: &[v(5, 10, 226), v(5, 15, 167), v(6, 1, 110), v(6, 6, 51), v(6, 10, 10), v(6, 11, 0)],
        avoided: Some("no program corks or drops"),
    },
    Cve {
        id: "CVE-2024-35895",
        what: "deadlock when a program that runs in an interrupt deletes from a sockmap",
        since: v(4, 20, 0),
        fixed: &[v(5, 10, 215), v(5, 15, 154), v(6, 1, 85), v(6, 6, 26), v(6, 8, 5), v(6, 9, 0)],
        avoided: Some("only sockops and the iterator delete from the sockhash, no tracing program"),
    },
    Cve {
        id: "CVE-2024-26731",
        what: "NULL pointer dereference in sk_psock_verdict_data_ready",
        since: v(6, 1, 0),
        fixed: &[v(6, 1, 80), v(6, 6, 19), v(6, 7, 7)],
        avoided: Some(NO_SKB_VERDICT),
    },
    Cve {
        id: "CVE-2023-53836",
        what: "reference count race of skbs in sk_psock_backlog",
        since: v(5, 13, 0),
        fixed: &[v(5, 15, 189), v(6, 1, 54), v(6, 5, 4)],
        avoided: Some(NO_SKB_VERDICT),
    },
    Cve {
        id: "CVE-2023-52735",
        what: "endless recursion when a callback of the sockmap finds itself as the one to call",
        since: v(5, 10, 0),
        fixed: &[v(5, 15, 95), v(6, 1, 13), v(6, 2, 0)],
        avoided: Some("no listening socket enters the sockhash, so no child inherits its callbacks"),
    },
    Cve {
        id: "CVE-2022-50536",
        what: "sock_put called twice when a verdict covers a part of a message",
        since: v(5, 10, 77),
        fixed: &[v(5, 10, 163), v(5, 15, 86), v(6, 0, 16), v(6, 1, 2)],
        avoided: Some(NO_APPLY_OR_CORK),
    },
    Cve {
        id: "CVE-2022-50259",
        what: "use after free when a sockmap is freed while it holds sockets",
        since: v(4, 14, 0),
        fixed: &[v(5, 15, 86), v(6, 0, 16), v(6, 1, 2)],
        avoided: Some("of the array kind only; the datapath uses a sockhash, which holds references"),
    },
    Cve {
        id: "CVE-2022-49209",
        what: "leak in tcp_bpf_sendmsg when the message is full",
        since: v(4, 20, 0),
        fixed: &[v(5, 10, 110), v(5, 15, 33), v(5, 16, 19), v(5, 17, 2)],
        avoided: None,
    },
    Cve {
        id: "CVE-2022-49207",
        what: "leak when a redirect meets a close",
        since: v(5, 14, 0),
        fixed: &[v(5, 15, 33), v(5, 16, 19), v(5, 17, 2)],
        avoided: None,
    },
    // H16. tcp_bpf: Fix one concurrency problem in the tcp_bpf_send_verdict function: in the review of 5.10.77 (November
    // 1, 2021) and of 5.14.16, and in 5.15. No CVE number is known to this table.
    Cve {
        id: "cd9733f5d75c",
        what: "sk_redir is kept across release_sock: two threads that send on one socket use freed memory (H16)",
        since: v(4, 20, 0),
        fixed: &[v(5, 10, 77), v(5, 14, 16), v(5, 15, 0)],
        avoided: None,
    },
];

/// Where a version stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// It has the bug, by its number.
    Affected,
    /// It is fixed, or never had it, by its number.
    Fixed,
}

impl Cve {
    /// Judges a version number.
    pub fn standing(&self, version: Version) -> Standing {
        if version < self.since {
            return Standing::Fixed;
        }
        let own = self.fixed.iter().find(|f| (f.0, f.1) == (version.0, version.1));
        let fixed = match own {
            Some(fix) => version >= *fix,
            // a series without an entry of its own has the fix only when mainline had it before
            None => self.fixed.last().is_some_and(|last| version > *last),
        };
        if fixed { Standing::Fixed } else { Standing::Affected }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn standing(id: &str, version: Version) -> Standing {
        CVES.iter().find(|c| c.id == id).unwrap().standing(version)
    }

    #[test]
    fn a_series_is_judged_by_its_own_fix() {
        assert_eq!(standing("CVE-2026-74589", v(6, 18, 44)), Standing::Affected);
        assert_eq!(standing("CVE-2026-74589", v(6, 18, 45)), Standing::Fixed);
        assert_eq!(standing("CVE-2026-74589", v(7, 1, 8)), Standing::Affected);
        assert_eq!(standing("CVE-2026-74589", v(7, 3, 0)), Standing::Fixed);
        // a series that is no longer kept up
        assert_eq!(standing("CVE-2026-74589", v(6, 17, 99)), Standing::Affected);
        assert_eq!(standing("CVE-2022-49207", v(5, 10, 1)), Standing::Fixed);
        assert_eq!(standing("cd9733f5d75c", v(5, 10, 76)), Standing::Affected);
        assert_eq!(standing("cd9733f5d75c", v(5, 10, 77)), Standing::Fixed);
        assert_eq!(standing("cd9733f5d75c", v(6, 1, 0)), Standing::Fixed);
    }

    #[test]
    fn the_table_is_in_order() {
        for cve in CVES {
            assert!(cve.fixed.windows(2).all(|w| w[0] < w[1]), "{}: fixes out of order", cve.id);
            assert!(cve.since < cve.fixed[0], "{}", cve.id);
        }
        let mut ids: Vec<_> = CVES.iter().map(|c| c.id).collect();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), CVES.len());
    }
}
