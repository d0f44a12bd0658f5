//! Which connections are meant, in the words of `ss` and `tcpdump`: `dst port 6379 and not path fast`.
//!
//! Pure: text in, a judge of connections out. The grammar is in [`GRAMMAR`].

use std::fmt;
use std::net::IpAddr;

use globset::{GlobBuilder, GlobMatcher};

use super::{Connection, End};

/// What `--help` says of expressions.
pub const GRAMMAR: &str = "\
Filter expressions, joined by `and`, `or`, `not` and parentheses (quote them for the shell):
  port N | port N-M | port > N    either end; `sport`, `dport`, or after `src`, `dst`: one end
  host ADDRESS | host NET/BITS    likewise: `src host 10.0.0.1`, or short `src 10.0.0.1`
  pod, ns, container, name GLOB   whose it is: `pod redis-*`, `dst ns core`
  process GLOB | pid N            which process has it
  path fast|tcp|left              reason NAME    state established|close_wait|...
  bytes, messages, age, queued, handoffs, share  with > >= < <= = !=: `bytes > 1M`, `age >= 10s`, `share < 50`
`src` is the end that connected, `dst` the one that accepted.";

/// Why an expression is not understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    /// Counted from 1, in characters.
    pub column: usize,
    /// What could stand there.
    pub expected: String,
    /// What does.
    pub found: String,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at column {}: expected {}, found {}", self.column, self.expected, self.found)
    }
}

impl std::error::Error for Error {}

/// Judges connections.
#[derive(Debug, Clone)]
pub struct Filter(Option<Expr>);

#[derive(Debug, Clone)]
enum Expr {
    And(Box<Expr>, Box<Expr>),
    Or(Box<Expr>, Box<Expr>),
    Not(Box<Expr>),
    Ends(Side, Test),
    Path(datapath::Path),
    Number(Quantity, Compare, f64),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Either,
    Source,
    Destination,
}

#[derive(Debug, Clone)]
enum Test {
    Port(Compare, u16),
    Ports(u16, u16),
    Net(IpAddr, u8),
    Pod(GlobMatcher),
    Namespace(GlobMatcher),
    Container(GlobMatcher),
    Name(GlobMatcher),
    Process(GlobMatcher),
    Pid(u32),
    Reason(&'static str),
    State(&'static str),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Quantity {
    Bytes,
    Messages,
    Age,
    Queued,
    Handoffs,
    Share,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Compare {
    More,
    AtLeast,
    Less,
    AtMost,
    Equal,
    Other,
}

impl Compare {
    fn holds<T: PartialOrd>(self, a: &T, b: &T) -> bool {
        match self {
            Self::More => a > b,
            Self::AtLeast => a >= b,
            Self::Less => a < b,
            Self::AtMost => a <= b,
            Self::Equal => a == b,
            Self::Other => a != b,
        }
    }
}

/// TCP's states, by the names that `ss` has for them.
pub const STATES: [&str; 12] = [
    "established",
    "syn_sent",
    "syn_recv",
    "fin_wait1",
    "fin_wait2",
    "time_wait",
    "close",
    "close_wait",
    "last_ack",
    "listen",
    "closing",
    "new_syn_recv",
];

impl Test {
    fn holds(&self, end: &End) -> bool {
        let name = |of: fn(&super::Name) -> Option<&String>, glob: &GlobMatcher| {
            end.workload.as_ref().and_then(of).is_some_and(|name| glob.is_match(name))
        };
        match self {
            Self::Port(compare, port) => compare.holds(&end.port, port),
            Self::Ports(from, to) => (*from..=*to).contains(&end.port),
            Self::Net(net, bits) => end.addr.parse().is_ok_and(|addr| within(addr, *net, *bits)),
            Self::Pod(glob) => name(|n| n.pod.as_ref(), glob),
            Self::Namespace(glob) => name(|n| n.namespace.as_ref(), glob),
            Self::Container(glob) => name(|n| n.container.as_ref(), glob),
            Self::Name(glob) => name(|n| Some(&n.name), glob),
            Self::Process(glob) => end.command.as_ref().is_some_and(|c| glob.is_match(c)),
            Self::Pid(pid) => end.pid == Some(*pid),
            Self::Reason(reason) => end.reason == *reason,
            Self::State(state) => end.state == Some(*state),
        }
    }
}

fn within(addr: IpAddr, net: IpAddr, bits: u8) -> bool {
    let head = |a: u128, width: u8| a.checked_shr(u32::from(width - bits)).unwrap_or(0);
    match (addr, net) {
        (IpAddr::V4(a), IpAddr::V4(n)) => head(a.to_bits().into(), 32) == head(n.to_bits().into(), 32),
        (IpAddr::V6(a), IpAddr::V6(n)) => head(a.to_bits(), 128) == head(n.to_bits(), 128),
        _ => false,
    }
}

impl Expr {
    fn holds(&self, c: &Connection) -> bool {
        match self {
            Self::And(a, b) => a.holds(c) && b.holds(c),
            Self::Or(a, b) => a.holds(c) || b.holds(c),
            Self::Not(a) => !a.holds(c),
            Self::Path(path) => c.path == *path,
            Self::Number(quantity, compare, value) => compare.holds(&quantity.of(c), value),
            Self::Ends(side, test) => {
                let source = *side != Side::Destination && c.client.as_ref().is_some_and(|e| test.holds(e));
                source || *side != Side::Source && c.server.as_ref().is_some_and(|e| test.holds(e))
            }
        }
    }
}

impl Quantity {
    fn of(self, c: &Connection) -> f64 {
        match self {
            Self::Bytes => c.bytes() as f64,
            Self::Messages => c.messages() as f64,
            Self::Age => c.age_seconds,
            Self::Queued => c.queued() as f64,
            Self::Handoffs => c.ends().map(|e| e.handoffs).sum::<u64>() as f64,
            Self::Share => 100.0 * c.fast_share(),
        }
    }
}

impl Expr {
    fn changing_word(&self) -> Option<&'static str> {
        match self {
            Self::And(a, b) | Self::Or(a, b) => a.changing_word().or_else(|| b.changing_word()),
            Self::Not(a) => a.changing_word(),
            Self::Path(_) => Some("path"),
            Self::Number(quantity, ..) => Some(match quantity {
                Quantity::Bytes => "bytes",
                Quantity::Messages => "messages",
                Quantity::Age => "age",
                Quantity::Queued => "queued",
                Quantity::Handoffs => "handoffs",
                Quantity::Share => "share",
            }),
            Self::Ends(_, test) => match test {
                Test::Process(_) => Some("process"),
                Test::Pid(_) => Some("pid"),
                Test::Reason(_) => Some("reason"),
                Test::State(_) => Some("state"),
                _ => None,
            },
        }
    }
}

impl Filter {
    /// All connections.
    pub const ALL: Self = Self(None);

    /// A word of it, if there is one, whose answer may change while a connection lives.
    pub fn changing_word(&self) -> Option<&'static str> {
        self.0.as_ref().and_then(Expr::changing_word)
    }

    /// Is this one meant?
    pub fn matches(&self, connection: &Connection) -> bool {
        self.0.as_ref().is_none_or(|e| e.holds(connection))
    }
}

impl std::str::FromStr for Filter {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let mut parser = Parser { words: split(text), at: 0, depth: 0, end: text.chars().count() + 1 };
        if parser.words.is_empty() {
            return Ok(Self::ALL);
        }
        let expr = parser.any()?;
        match parser.words.get(parser.at) {
            None => Ok(Self(Some(expr))),
            Some(_) => Err(parser.expected("`and`, `or` or the end")),
        }
    }
}

#[derive(Debug, Clone)]
struct Word {
    column: usize,
    text: String,
    /// In quotes: a value, whatever it says.
    quoted: bool,
}

fn split(text: &str) -> Vec<Word> {
    let letters: Vec<char> = text.chars().collect();
    let mut words = Vec::new();
    let mut at = 0;
    while at < letters.len() {
        let (from, letter) = (at, letters[at]);
        let mut word = |text: String, quoted| words.push(Word { column: from + 1, text, quoted });
        match letter {
            _ if letter.is_whitespace() => at += 1,
            '"' | '\'' => {
                let end = letters[at + 1..].iter().position(|l| *l == letter).map_or(letters.len(), |n| at + 1 + n);
                word(letters[at + 1..end].iter().collect(), true);
                at = end + 1;
            }
            '(' | ')' => {
                word(letter.into(), false);
                at += 1;
            }
            '>' | '<' | '=' | '!' | '&' | '|' => {
                let two = letters.get(at + 1).is_some_and(|next| match letter {
                    '&' | '|' => *next == letter,
                    _ => *next == '=',
                });
                at += if two { 2 } else { 1 };
                word(letters[from..at].iter().collect(), false);
            }
            _ => {
                let ends = |l: &char| l.is_whitespace() || "()<>=!&|\"'".contains(*l);
                // [!a] of a pattern is no `not`
                let mut brackets = false;
                while at < letters.len() && (brackets || !ends(&letters[at])) {
                    brackets = (brackets || letters[at] == '[') && letters[at] != ']';
                    at += 1;
                }
                word(letters[from..at].iter().collect(), false);
            }
        }
    }
    words
}

struct Parser {
    words: Vec<Word>,
    at: usize,
    depth: usize,
    end: usize,
}

/// Parentheses and `not` inside each other: nobody writes more, and the stack is finite.
const DEEPEST: usize = 100;
const PRIMITIVES: &str = "`port`, `host`, `pod`, `ns`, `container`, `name`, `process`, `pid`, `path`, `reason`, `state`, \
                          `bytes`, `messages`, `age`, `queued`, `handoffs`, `share`, `not` or `(`";

impl Parser {
    fn peek(&self) -> &str {
        self.words.get(self.at).filter(|w| !w.quoted).map_or("", |w| &w.text)
    }

    fn takes(&mut self, any_of: &[&str]) -> bool {
        let found = any_of.contains(&self.peek());
        self.at += usize::from(found);
        found
    }

    fn expected(&self, what: impl Into<String>) -> Error {
        let (column, found) = match self.words.get(self.at) {
            Some(word) => (word.column, format!("{:?}", word.text)),
            None => (self.end, "the end".into()),
        };
        Error { column, expected: what.into(), found }
    }

    fn any(&mut self) -> Result<Expr, Error> {
        let mut left = self.all()?;
        while self.takes(&["or", "||"]) {
            left = Expr::Or(left.into(), self.all()?.into());
        }
        Ok(left)
    }

    fn all(&mut self) -> Result<Expr, Error> {
        let mut left = self.one()?;
        while self.takes(&["and", "&&"]) {
            left = Expr::And(left.into(), self.one()?.into());
        }
        Ok(left)
    }

    fn one(&mut self) -> Result<Expr, Error> {
        if self.depth == DEEPEST {
            return Err(self.expected(format!("at most {DEEPEST} levels")));
        }
        self.depth += 1;
        let expr = if self.takes(&["not", "!"]) {
            Expr::Not(self.one()?.into())
        } else if self.takes(&["("]) {
            let inner = self.any()?;
            if !self.takes(&[")"]) {
                return Err(self.expected("`and`, `or` or `)`"));
            }
            inner
        } else {
            self.primitive()?
        };
        self.depth -= 1;
        Ok(expr)
    }

    fn primitive(&mut self) -> Result<Expr, Error> {
        let side = match self.peek() {
            "src" | "client" => Side::Source,
            "dst" | "server" => Side::Destination,
            _ => Side::Either,
        };
        self.at += usize::from(side != Side::Either);
        let word = self.peek().to_owned();
        let quantity = match word.as_str() {
            "bytes" => Some(Quantity::Bytes),
            "messages" | "msgs" => Some(Quantity::Messages),
            "age" => Some(Quantity::Age),
            "queued" => Some(Quantity::Queued),
            "handoffs" => Some(Quantity::Handoffs),
            "share" => Some(Quantity::Share),
            _ => None,
        };
        if side != Side::Either && (quantity.is_some() || word == "path") {
            return Err(
                self.expected("what one end has: an address, `port`, `host`, `pod`, `ns`, `name`, `state`, `reason`")
            );
        }
        if let Some(quantity) = quantity {
            self.at += 1;
            let compare = self.compare().ok_or_else(|| self.expected("`>`, `>=`, `<`, `<=`, `=` or `!=`"))?;
            return Ok(Expr::Number(quantity, compare, self.number(quantity)?));
        }
        if word == "path" {
            self.at += 1;
            let path = match self.peek() {
                "fast" => datapath::Path::Fast,
                "tcp" => datapath::Path::Tcp,
                "left" => datapath::Path::Left,
                _ => return Err(self.expected("`fast`, `tcp` or `left`")),
            };
            self.at += 1;
            return Ok(Expr::Path(path));
        }
        if side != Side::Either && (word.contains(['.', ':'])) {
            return Ok(Expr::Ends(side, self.net()?));
        }
        let side = match word.as_str() {
            "sport" => Side::Source,
            "dport" => Side::Destination,
            _ => side,
        };
        let known = [
            "port",
            "sport",
            "dport",
            "host",
            "net",
            "pod",
            "ns",
            "namespace",
            "container",
            "name",
            "process",
            "pid",
            "reason",
            "state",
        ];
        if !known.contains(&word.as_str()) {
            return Err(self.expected(PRIMITIVES));
        }
        self.at += 1;
        let test = match word.as_str() {
            "port" | "sport" | "dport" => self.port()?,
            "host" | "net" => self.net()?,
            "pod" => Test::Pod(self.glob("a pod's name")?),
            "ns" | "namespace" => Test::Namespace(self.glob("a namespace")?),
            "container" => Test::Container(self.glob("a container's name")?),
            "name" => Test::Name(self.glob("a workload's name")?),
            "process" => Test::Process(self.glob("a command")?),
            "pid" => Test::Pid(self.value("a process id", |w| w.parse().ok())?),
            "reason" => {
                let one = |w: &str| datapath::REASONS.iter().find(|r| r.name == w).map(|r| r.name);
                Test::Reason(self.value("the name of a reason, as `shared-socket connections` shows them", one)?)
            }
            _ => {
                let one = |w: &str| {
                    let plain = w.to_lowercase().replace('-', "_");
                    let plain = if plain == "estab" { "established" } else { &plain };
                    STATES.iter().find(|s| **s == plain || s.replace('_', "") == plain).copied()
                };
                Test::State(self.value(&format!("a state of TCP ({})", STATES.join(", ")), one)?)
            }
        };
        Ok(Expr::Ends(side, test))
    }

    fn value<T>(&mut self, what: &str, read: impl Fn(&str) -> Option<T>) -> Result<T, Error> {
        let value = self.words.get(self.at).and_then(|w| read(&w.text)).ok_or_else(|| self.expected(what))?;
        self.at += 1;
        Ok(value)
    }

    fn compare(&mut self) -> Option<Compare> {
        let compare = match self.peek() {
            ">" | "gt" => Compare::More,
            ">=" | "ge" => Compare::AtLeast,
            "<" | "lt" => Compare::Less,
            "<=" | "le" => Compare::AtMost,
            "=" | "==" | "eq" => Compare::Equal,
            "!=" | "ne" => Compare::Other,
            _ => return None,
        };
        self.at += 1;
        Some(compare)
    }

    fn port(&mut self) -> Result<Test, Error> {
        if let Some(compare) = self.compare() {
            return Ok(Test::Port(compare, self.value("a port", |w| w.trim_start_matches(':').parse().ok())?));
        }
        self.value("a port or a range of ports", |w| match w.split_once('-') {
            Some((from, to)) => {
                let (from, to) = (from.parse().ok()?, to.parse().ok()?);
                (from <= to).then_some(Test::Ports(from, to))
            }
            None => w.trim_start_matches(':').parse().ok().map(|port| Test::Port(Compare::Equal, port)),
        })
    }

    fn net(&mut self) -> Result<Test, Error> {
        self.value("an address, or ADDRESS/BITS", |w| {
            let (addr, bits) = w.split_once('/').map_or((w, None), |(a, b)| (a, Some(b)));
            let addr: IpAddr = addr.trim_start_matches('[').trim_end_matches(']').parse().ok()?;
            let addr = addr.to_canonical();
            let width = if addr.is_ipv4() { 32 } else { 128 };
            let bits = bits.map_or(Some(width), |b| b.parse().ok())?;
            (bits <= width).then_some(Test::Net(addr, bits))
        })
    }

    fn glob(&mut self, what: &str) -> Result<GlobMatcher, Error> {
        let read = |w: &str| {
            let reserved = ["and", "or", "not", "(", ")", "&&", "||"].contains(&w);
            (!reserved).then(|| GlobBuilder::new(w).build().ok().map(|g| g.compile_matcher()))?
        };
        self.value(&format!("{what}, or a pattern with * ? [..]"), read)
    }

    fn number(&mut self, quantity: Quantity) -> Result<f64, Error> {
        const SIZES: &[(&str, f64)] =
            &[("", 1.0), ("k", 1024.0), ("m", 1048576.0), ("g", 1073741824.0), ("t", 1099511627776.0)];
        const TIMES: &[(&str, f64)] =
            &[("", 1.0), ("s", 1.0), ("ms", 0.001), ("m", 60.0), ("min", 60.0), ("h", 3600.0), ("d", 86400.0)];
        const COUNTS: &[(&str, f64)] = &[("", 1.0), ("k", 1e3), ("m", 1e6), ("g", 1e9)];
        let (what, units) = match quantity {
            Quantity::Bytes | Quantity::Queued => ("a number of bytes, as 4096, 64K, 1M", SIZES),
            Quantity::Age => ("a time, as 10s, 5m, 2h", TIMES),
            Quantity::Share => ("a share in per cent, as 50 or 50%", &[("", 1.0), ("%", 1.0)][..]),
            _ => ("a number, as 100, 5k", COUNTS),
        };
        self.value(what, |w| {
            let digits = w.find(|l: char| !l.is_ascii_digit() && l != '.').unwrap_or(w.len());
            let number: f64 = w[..digits].parse().ok()?;
            let unit = w[digits..].to_lowercase();
            let short = if units == SIZES { unit.trim_end_matches('b').trim_end_matches('i') } else { &unit };
            units.iter().find(|(name, _)| *name == short).map(|(_, factor)| number * factor)
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::connections::tests::connection;
    use super::*;

    fn is(text: &str) -> bool {
        text.parse::<Filter>().unwrap_or_else(|e| panic!("{text}: {e}")).matches(&connection())
    }

    #[test]
    fn words_that_people_know() {
        // client core/web-1 10.0.0.1:40000 (curl, fast), server core/redis-0 10.0.0.2:6379 (redis-server, tcp: backed_up)
        for yes in [
            "",
            "port 6379",
            "dport 6379",
            "sport 40000",
            "dst port 6379",
            "port 6000-7000",
            "sport > 1024",
            "sport gt :1024",
            "host 10.0.0.1",
            "src 10.0.0.1",
            "net 10.0.0.0/8",
            "dst 10.0.0.2/32",
            "host 0.0.0.0/0",
            "pod redis-*",
            "dst pod redis-0",
            "ns core",
            "name core/web-1*",
            "container [!x]ain",
            "process redis-server",
            "pid 7",
            "path tcp",
            "reason backed_up",
            "state established",
            "state ESTAB",
            "dst state close-wait",
            "bytes > 1M",
            "bytes>=1MiB",
            "messages = 30",
            "age > 10s",
            "age < 1h",
            "share > 60 and share < 70%",
            "queued >= 4k",
            "not port 80",
            "!(port 80 || port 443)",
            "port 80 or port 6379 and path tcp",
            "pod \"redis-0\"",
        ] {
            assert!(is(yes), "{yes}");
        }
        for no in [
            "port 80",
            "sport 6379",
            "src port 6379",
            "dst 10.0.0.1",
            "host ::1",
            "src pod redis-*",
            "path fast",
            "state fin_wait1",
            "bytes > 1G",
            "age > 2m",
            "(port 80 or port 6379) and path left",
        ] {
            assert!(!is(no), "{no}");
        }
    }

    #[test]
    fn errors_say_where_and_what() {
        let said: Vec<String> = [
            "prot 80",
            "port",
            "port 80 port 81",
            "port 99999",
            "port 9-2",
            "(port 80",
            "port 80)",
            "port 80 and",
            "host 10.0.0",
            "host 10.0.0.1/33",
            "path quick",
            "reason nope",
            "state open",
            "bytes 1M",
            "bytes > 1X",
            "age > soon",
            "src bytes > 1",
            "pod and port 80",
            "äö port",
        ]
        .iter()
        .map(|text| format!("{text}\n  {}", text.parse::<Filter>().unwrap_err()))
        .collect();
        insta::assert_snapshot!(said.join("\n"));
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "\\PC{0,60}") {
            let _ = text.parse::<Filter>();
        }

        #[test]
        fn no_words_panic(words in proptest::collection::vec(
            "(port|host|and|or|not|\\(|\\)|80|1-2|10.0.0.1|::1/64|src|dst|bytes|>|<=|1M|pod|a\\*|path|fast|state|\"|')", 0..30)
        ) {
            let text = words.join(" ");
            if let Err(e) = text.parse::<Filter>() {
                prop_assert!(e.column >= 1 && e.column <= text.chars().count() + 1, "{e}");
            }
        }

        #[test]
        fn deep_nesting_is_refused(depth in 0usize..100_000) {
            let parsed = format!("{}port 80{}", "(".repeat(depth), ")".repeat(depth)).parse::<Filter>();
            prop_assert_eq!(parsed.is_ok(), depth < DEEPEST);
        }

        #[test]
        fn logic(a in 0u16..9, b in 0u16..9, c in 6376u16..6383) {
            let text = format!("not (port {a} or not port {c}) or port {b} and port {a}");
            prop_assert_eq!(is(&text), c == 6379);
        }

        #[test]
        fn nets(addr in any::<u32>(), net in any::<u32>(), bits in 0u8..=32) {
            let mask = u32::MAX.checked_shl(u32::from(32 - bits)).unwrap_or(0);
            let (a, n) = (std::net::Ipv4Addr::from_bits(addr), std::net::Ipv4Addr::from_bits(net));
            prop_assert_eq!(within(a.into(), n.into(), bits), addr & mask == net & mask);
        }
    }
}
