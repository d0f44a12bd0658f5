//! What was found, judged and told: works, degraded, not possible; what it means, and what is done about it.

use comfy_table::{ContentArrangement, Table, presets};
use serde::{Deserialize, Serialize};

use super::cves::{CVES, Standing};
use super::hazards::{Evidence, Finding};
use datapath::Kernel;
use datapath::KernelFindings;

/// Of a row, and of the whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// As well as on any kernel.
    Works,
    /// Some workloads stay on TCP, or less is known of them.
    Degraded,
    /// Nothing can be attached.
    NotPossible,
}

impl State {
    fn text(self) -> &'static str {
        match self {
            Self::Works => "works",
            Self::Degraded => "degraded",
            Self::NotPossible => "not possible",
        }
    }
}

/// One line of the report.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// `H4`, `program.sockops`
    pub id: String,
    /// What it is about.
    pub what: String,
    /// How it stands.
    pub state: State,
    /// A feature: is it there; a hazard: does this kernel show it; nothing where that is not known.
    pub present: Option<bool>,
    /// How that is known.
    pub evidence: Evidence,
    /// What was seen.
    pub found: String,
    /// What it means for the user.
    pub means: String,
    /// What eligibility or the datapath does about it.
    pub handled: String,
}

/// A vulnerability, judged by version number.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CveRow {
    /// Its number, or the commit that fixes it.
    pub id: String,
    /// What is wrong.
    pub what: String,
    /// Where the running version stands; nothing where it has no number that tells.
    pub standing: Option<Standing>,
    /// How the design avoids it.
    pub avoided: Option<String>,
}

/// The whole.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Of shared-socket.
    pub version: String,
    /// The worst of what this kernel could do better.
    pub state: State,
    /// Which kernel this is.
    pub kernel: Kernel,
    /// What we need of it.
    pub features: Vec<Row>,
    /// What it does to applications in a sockmap.
    pub hazards: Vec<Row>,
    /// Every probe by itself.
    pub probes: Vec<Finding>,
    /// Known vulnerabilities of the sockmap.
    pub cves: Vec<CveRow>,
    /// What the programs are configured with.
    pub datapath: KernelFindings,
    /// How long it took.
    pub millis: u64,
}

/// A hazard of the sockmap: docs/hazards.md.
struct Hazard {
    number: u32,
    name: &'static str,
    /// The state of its row when the kernel shows it.
    shown: State,
    /// No kernel is known without it: it does not count for the whole.
    everywhere: bool,
    means: &'static str,
    handled: &'static str,
    /// Where it is known from, when it is not tried.
    stated: &'static str,
}

const fn hazard(number: u32, name: &'static str, shown: State, means: &'static str, handled: &'static str) -> Hazard {
    Hazard { number, name, shown, everywhere: true, means, handled, stated: "" }
}

use State::{Degraded, Works};

static HAZARDS: &[Hazard] = &[
    hazard(
        1,
        "reorder at handoff",
        Works,
        "an accelerator that redirects at once hands over new bytes before old ones",
        "messages are redirected only when all that went by TCP has been read",
    ),
    hazard(
        2,
        "queue without bound",
        Works,
        "a peer that does not read could take all memory",
        "a budget of bytes and messages a peer; above it messages go by TCP, whose window holds the sender back",
    ),
    hazard(
        3,
        "bytes lost on delete",
        Works,
        "taking a socket out throws away what it has not read",
        "halves leave by protocol, when nothing is queued and nothing is on its way",
    ),
    hazard(
        4,
        "EAGAIN from a blocking recv",
        Degraded,
        "an application that blocks in recv would get an error that TCP never gives",
        "blocking sockets stay on TCP; with --eligibility all they leave before their FIN is acknowledged",
    ),
    hazard(
        5,
        "short MSG_WAITALL",
        Degraded,
        "recv with MSG_WAITALL would return too little, or hang",
        "kinds that use MSG_WAITALL stay on TCP",
    ),
    hazard(
        6,
        "splice sees nothing",
        Degraded,
        "splice(2) and TCP_ZEROCOPY_RECEIVE would wait for bytes that are there (HAProxy, io.Copy of Go)",
        "kinds that read in this way stay on TCP (splice)",
    ),
    Hazard {
        everywhere: false,
        ..hazard(
            7,
            "wrong FIONREAD",
            Degraded,
            "applications that ask how much there is to read get a wrong number (nginx relies on it)",
            "no hook shows who asks, so safe pairs are strict: a stream leaves at a clean moment instead of mixing both paths",
        )
    },
    hazard(
        8,
        "socket options and urgent data",
        Degraded,
        "MSG_OOB in line, MSG_ZEROCOPY never completed, SO_RCVLOWAT and TCP_INFO blind to redirected bytes",
        "kinds and calls that ask for these go by TCP (send_flags, socket_option); TCP_INFO gets what was redirected added",
    ),
    hazard(
        9,
        "FIN where TCP sends RST",
        Degraded,
        "a peer that closes with unread bytes looks as if it had closed in order",
        "kinds that close with unread bytes stay on TCP (close_unread); the first such close of a kind remains",
    ),
    hazard(
        10,
        "plaintext to kTLS",
        Works,
        "with kTLS on one end only, the other would read what was never encrypted",
        "a ULP on either end means TCP",
    ),
    hazard(
        11,
        "sleepers are not woken",
        Works,
        "a thread that sleeps in TCP's own recv never sees redirected bytes",
        "an adopted pair is redirected only after a TCP message was read in each direction",
    ),
    hazard(
        12,
        "no packets",
        Works,
        "conntrack forgets a connection that sends nothing",
        "about once a minute one message goes by TCP",
    ),
    hazard(
        13,
        "one sockmap a socket",
        Works,
        "sockets that another program keeps in a sockmap cannot be accelerated",
        "EBUSY means TCP (insert_failed)",
    ),
    Hazard {
        stated: "nf_conntrack_ftp and nf_conntrack_sip rewrite what is in packets; redirected bytes are in none",
        ..hazard(
            14,
            "conntrack helpers, policy",
            Degraded,
            "helpers that rewrite payload (FTP, SIP) are passed by, and policy or bandwidth limits that change later",
            "leave such workloads out, or detach them when policy changes",
        )
    },
    hazard(
        15,
        "memory past close",
        Works,
        "every inserted socket keeps its memory for a grace period of RCU",
        "kinds of connections that live for a few messages stay on TCP",
    ),
    Hazard {
        everywhere: false,
        ..hazard(
            16,
            "faults of early kernels",
            Degraded,
            "unread bytes gone after a reset; below 5.10.77 freed memory used when two threads send on one socket",
            "attach refuses kernels with the second, by their version number",
        )
    },
    hazard(
        17,
        "tuples cross connections",
        Works,
        "with addresses as keys, bytes of one connection are read by another",
        "keys are socket cookies and generations, never addresses",
    ),
];

/// The fix without which two sending threads use freed memory (H16).
const SK_REDIR_FIX: &str = "cd9733f5d75c";

/// Why nothing may be attached on this kernel, by its version number.
pub fn refusal(kernel: &Kernel) -> Option<String> {
    let version = kernel.stable?;
    let fix = CVES.iter().find(|c| c.id == SK_REDIR_FIX)?;
    // a vendor's 5.14.0-427 may have it: only a number that was counted up says that it has not
    (version.2 != 0 && fix.standing(version) == Standing::Affected).then(|| {
        format!("Linux {version} lacks the fix {SK_REDIR_FIX} (5.10.77, 5.14.16, 5.15): {} is not safe there", fix.what)
    })
}

/// What configures the datapath. A doubt counts as a hazard.
pub fn configure(findings: &[Finding]) -> KernelFindings {
    let absent = |id: &str| findings.iter().any(|f| f.id == id && f.present == Some(false));
    let mut hazards = 0;
    for hazard in HAZARDS {
        let prefix = format!("H{}", hazard.number);
        let mut own = findings.iter().filter(|f| f.id.split('.').next() == Some(&prefix)).peekable();
        let clear = own.peek().is_some() && own.all(|f| f.present == Some(false));
        if !clear {
            hazards |= 1 << hazard.number;
        }
    }
    KernelFindings {
        rmem_counts: absent("H2.accounting"),
        past_rcvbuf: absent("H2.window"),
        // enum fionread
        fionread: u32::from(!absent("H7.tcp")) | u32::from(!absent("H7.fast")) << 1,
        hazards,
    }
}

fn judge(hazard: &Hazard, findings: &[Finding], kernel: &Kernel) -> Row {
    let prefix = format!("H{}", hazard.number);
    let own: Vec<&Finding> = findings.iter().filter(|f| f.id.split('.').next() == Some(&prefix)).collect();
    let shown = own.iter().any(|f| f.present == Some(true));
    let doubt = own.is_empty() || own.iter().any(|f| f.present.is_none());
    let mut row = Row {
        id: prefix,
        what: hazard.name.into(),
        state: if shown || doubt { hazard.shown } else { Works },
        present: if shown { Some(true) } else { (!doubt).then_some(false) },
        evidence: match doubt && !shown {
            true if own.iter().any(|f| f.evidence == Evidence::Stated) => Evidence::Stated,
            true => Evidence::Failed,
            false => Evidence::Tried,
        },
        found: own.iter().map(|f| f.found.as_str()).collect::<Vec<_>>().join("; "),
        means: hazard.means.into(),
        handled: hazard.handled.into(),
    };
    if own.is_empty() {
        row.found = "not tried".into();
    }
    if !hazard.stated.is_empty() {
        row.present = Some(true);
        row.evidence = Evidence::Stated;
        row.found = hazard.stated.into();
    }
    match hazard.number {
        2 => {
            let config = configure(findings);
            if !config.rmem_counts {
                row.state = Degraded;
                row.handled = format!("{}; here no more than 64 messages, which are counted one by one", row.handled);
            }
            if !config.past_rcvbuf {
                row.state = Degraded;
                row.handled = format!("{}; here never more than SO_RCVBUF", row.handled);
            }
        }
        16 => {
            let by_version = kernel.stable.and_then(|v| {
                let fix = CVES.iter().find(|c| c.id == SK_REDIR_FIX)?;
                (fix.standing(v) == Standing::Affected).then(|| format!("Linux {v} is below the fix {SK_REDIR_FIX}"))
            });
            if let Some(found) = by_version {
                row.state = if refusal(kernel).is_some() { State::NotPossible } else { Degraded };
                row.present = Some(true);
                row.evidence = Evidence::Version;
                row.found = format!("{}; {found}", row.found);
            }
        }
        _ => {}
    }
    row
}

/// Judges what was found.
pub fn report(kernel: Kernel, features: Vec<Row>, probes: Vec<Finding>, millis: u64) -> Report {
    let hazards: Vec<Row> = HAZARDS.iter().map(|h| judge(h, &probes, &kernel)).collect();
    let cves: Vec<CveRow> = CVES
        .iter()
        .map(|c| CveRow {
            id: c.id.into(),
            what: c.what.into(),
            standing: kernel.stable.map(|v| c.standing(v)),
            avoided: c.avoided.map(str::to_owned),
        })
        .collect();
    let counting = hazards.iter().zip(HAZARDS).filter(|(row, h)| {
        // what every kernel does says nothing of this one, unless the probe failed or the bound is tighter
        !h.everywhere || row.evidence == Evidence::Failed || (row.state > h.shown)
    });
    let mut state = features.iter().chain(counting.map(|(row, _)| row)).map(|r| r.state).max().unwrap_or(Works);
    if hazards.iter().any(|r| r.evidence == Evidence::Failed) || cves.iter().any(CveRow::open) {
        state = state.max(Degraded);
    }
    let datapath = configure(&probes);
    Report {
        version: env!("CARGO_PKG_VERSION").into(),
        state,
        kernel,
        features,
        hazards,
        probes,
        cves,
        datapath,
        millis,
    }
}

impl CveRow {
    /// The running version has it, by its number, and the design does not avoid it.
    pub fn open(&self) -> bool {
        self.standing == Some(Standing::Affected) && self.avoided.is_none()
    }
}

fn table(width: u16, header: &[&str]) -> Table {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_width(width)
        .set_header(header);
    table
}

impl Report {
    /// For people.
    pub fn text(&self, width: u16) -> String {
        let name = format!("Linux {} ({})", self.kernel.release, self.kernel.machine);
        let stable = match self.kernel.stable {
            Some(v) if !self.kernel.release.starts_with(&v.to_string()) => format!(", made from {v}"),
            _ => String::new(),
        };
        let mut text = format!("shared-socket {} on {name}{stable}: {}\n", self.version, self.state.text());

        let mut features = table(width, &["FEATURE", "STATE", "FOUND", "MEANS"]);
        for row in &self.features {
            let means = [row.means.as_str(), row.handled.as_str()].into_iter().filter(|t| !t.is_empty());
            features.add_row([
                row.what_with_name(),
                row.state.text().into(),
                row.found.clone(),
                means.collect::<Vec<_>>().join("; "),
            ]);
        }
        text += &format!("\n{features}\n");

        let mut hazards = table(width, &["HAZARD", "", "HERE", "STATE", "FOUND", "MEANS", "WHAT IS DONE"]);
        for row in &self.hazards {
            hazards.add_row([
                row.id.clone(),
                row.what.clone(),
                row.here().into(),
                row.state.text().into(),
                row.found.clone(),
                row.means.clone(),
                row.handled.clone(),
            ]);
        }
        text += &format!("\n{hazards}\n");

        let affected: Vec<&CveRow> = self.cves.iter().filter(|c| c.standing == Some(Standing::Affected)).collect();
        let count = self.cves.len();
        if self.kernel.stable.is_none() {
            text += &format!(
                "\nKnown vulnerabilities of the sockmap: {count}; this kernel's name has no version to judge.\n"
            );
        } else if affected.is_empty() {
            text += &format!("\nKnown vulnerabilities of the sockmap: none of {count} is in this version.\n");
        } else {
            let mut cves = table(width, &["VULNERABILITY", "", "AVOIDED"]);
            for cve in affected {
                let avoided = cve.avoided.as_ref().map_or("no".to_owned(), |how| format!("yes: {how}"));
                cves.add_row([cve.id.clone(), cve.what.clone(), avoided]);
            }
            text += &format!("\nBy version number (distributions fix without changing it), this kernel has:\n{cves}\n");
        }
        let yes = |on: bool| if on { "yes" } else { "no" };
        text += &format!(
            "\nThe datapath is configured with: redirected bytes count in sk_rmem_alloc: {}; may go past SO_RCVBUF: {}.\n\
             Took {} ms. What each line means: docs/hazards.md\n",
            yes(self.datapath.rmem_counts),
            yes(self.datapath.past_rcvbuf),
            self.millis
        );
        text
    }
}

impl Row {
    fn what_with_name(&self) -> String {
        match self.id.strip_prefix("datapath.") {
            Some(name) => name.to_owned(),
            None => self.what.clone(),
        }
    }

    fn here(&self) -> &'static str {
        match (self.evidence, self.present) {
            (Evidence::Stated, _) => "stated",
            (Evidence::Version, _) => "by version",
            (_, Some(true)) => "yes",
            (_, Some(false)) => "no",
            (_, None) => "unknown",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use datapath::Version;

    fn kernel(version: Version) -> Kernel {
        Kernel {
            release: format!("{version}-test"),
            machine: "x86_64".into(),
            stable: Some(version),
            ..Kernel::default()
        }
    }

    fn finding(id: &str, present: Option<bool>) -> Finding {
        let evidence = if present.is_some() { Evidence::Tried } else { Evidence::Failed };
        Finding { id: id.into(), present, evidence, found: format!("{id} seen"), millis: 1 }
    }

    /// A kernel of today: it shows what every kernel shows, and no more.
    fn usual() -> Vec<Finding> {
        let shown =
            ["H1", "H2.queue", "H3", "H4", "H5", "H6.splice", "H8.oob", "H9", "H11", "H12", "H13", "H15", "H17"];
        let absent = ["H2.accounting", "H2.window", "H7.tcp", "H7.fast", "H10", "H16.unhash"];
        let shown = shown.iter().map(|id| finding(id, Some(true)));
        shown.chain(absent.iter().map(|id| finding(id, Some(false)))).collect()
    }

    fn feature(state: State) -> Row {
        Row {
            id: "program.sockops".into(),
            what: "sockops programs".into(),
            state,
            present: Some(state == Works),
            evidence: Evidence::Tried,
            found: "Invalid argument".into(),
            means: "connections cannot be recognised".into(),
            handled: "nothing can be attached on this kernel".into(),
        }
    }

    #[test]
    fn the_usual_kernel_works() {
        let report = report(kernel(Version(7, 3, 1)), vec![feature(Works)], usual(), 1234);
        assert_eq!(report.state, Works);
        assert!(report.datapath.rmem_counts && report.datapath.past_rcvbuf);
        assert_eq!(report.datapath.hazards & (1 << 7), 0);
        assert_ne!(report.datapath.hazards & (1 << 4), 0);
        insta::assert_snapshot!(report.text(160));
    }

    #[test]
    fn a_kernel_that_lacks_things_is_told_row_by_row() {
        let mut probes = usual();
        probes.retain(|f| !f.id.starts_with("H7") && f.id != "H2.accounting" && f.id != "H3");
        probes.extend([finding("H7.tcp", Some(true)), finding("H2.accounting", Some(true)), finding("H3", None)]);
        let report = report(kernel(Version(5, 10, 40)), vec![feature(State::NotPossible)], probes, 1234);
        assert_eq!(report.state, State::NotPossible);
        assert!(!report.datapath.rmem_counts);
        insta::assert_snapshot!(report.text(160));
    }

    #[test]
    fn a_doubt_is_a_hazard() {
        let nothing = configure(&[]);
        assert!(!nothing.rmem_counts && !nothing.past_rcvbuf);
        assert_eq!(nothing.hazards, HAZARDS.iter().fold(0, |bits, h| bits | 1 << h.number));
        let failed = configure(&[finding("H7.tcp", Some(false)), finding("H7.fast", None)]);
        assert_ne!(failed.hazards & (1 << 7), 0);
        assert_eq!(failed.fionread, 2);
        let clear = configure(&[finding("H7.tcp", Some(false)), finding("H7.fast", Some(false))]);
        assert_eq!((clear.hazards & (1 << 7), clear.fionread), (0, 0));
        assert_ne!(clear.hazards & (1 << 17), 0, "H1 is not H17, and H17 was not tried");
    }

    #[test]
    fn only_a_counted_number_below_the_fix_is_refused() {
        assert!(refusal(&kernel(Version(5, 10, 76))).is_some());
        assert!(refusal(&kernel(Version(5, 10, 77))).is_none());
        assert!(refusal(&kernel(Version(5, 14, 0))).is_none(), "a vendor's number says nothing");
        assert!(refusal(&kernel(Version(6, 1, 1))).is_none());
    }

    #[test]
    fn the_document_is_read_back() {
        let report = report(kernel(Version(6, 18, 44)), vec![feature(Works)], usual(), 1);
        let text = serde_json::to_string(&report).unwrap();
        assert_eq!(serde_json::from_str::<Report>(&text).unwrap(), report);
    }
}
