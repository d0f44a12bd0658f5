//! The words by which connections are chosen, as `ss` and `tcpdump` users know them:
//! `port 6379 and not path fast`, `(pod smf* or pod upf*) and bytes > 1M`, `dport 443 age > 10s`.
//!
//! `src` is the end that connected, `dst` the one that accepted. Tests that stand side by side must all hold.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use datapath::Path;
use globset::{Glob, GlobMatcher};

use super::{Connection, End};

/// What was written, and is understood.
#[derive(Debug, Clone)]
pub struct Filter(Expression);

#[derive(Debug, Clone)]
enum Expression {
    All(Vec<Expression>),
    Any(Vec<Expression>),
    Not(Box<Expression>),
    /// Of an end; which ones are looked at.
    End(Side, EndTest),
    Path(Path),
    Number(Quantity, Comparison, f64),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Source,
    Destination,
    Either,
}

#[derive(Debug, Clone)]
enum EndTest {
    Host(IpAddr, u8),
    Port(Comparison, u16),
    Namespace(Pattern),
    Pod(Pattern),
    Container(Pattern),
    Name(Pattern),
    Process(Pattern),
    State(String),
    Reason(String),
}

/// With `*`, `?` and `[..]`.
#[derive(Debug, Clone)]
struct Pattern(GlobMatcher);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Quantity {
    Bytes,
    Messages,
    Handoffs,
    Reserved,
    Unread,
    Age,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Comparison {
    Less,
    AtMost,
    Equal,
    Unequal,
    AtLeast,
    More,
}

/// Why it is not understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("at column {column}: {what}")]
pub struct Misunderstood {
    /// From 1, in characters.
    column: usize,
    what: String,
}

/// Names of TCP's states, as `ss` has them.
pub const STATES: [&str; 11] = [
    "established",
    "syn-sent",
    "syn-recv",
    "fin-wait-1",
    "fin-wait-2",
    "time-wait",
    "close",
    "close-wait",
    "last-ack",
    "listen",
    "closing",
];

const TESTS: &str = "host, port, sport, dport, ns, pod, container, name, process, path, reason, state, bytes, messages, \
                     handoffs, reserved, unread or age";

struct Word<'a> {
    column: usize,
    text: &'a str,
}

/// Words, brackets and comparisons. `port>=80` is three.
fn words(text: &str) -> Vec<Word<'_>> {
    let is_sign = |c: char| matches!(c, '<' | '>' | '=' | '!' | '&' | '|');
    let mut found = Vec::new();
    let mut rest = text.char_indices().enumerate().peekable();
    while let Some((number, (at, first))) = rest.next() {
        if first.is_whitespace() {
            continue;
        }
        let mut end = at + first.len_utf8();
        if !matches!(first, '(' | ')') {
            while let Some((_, (next, c))) = rest.peek().copied() {
                // `[!a]` is a pattern, and so no sign
                let in_pattern = text[at..next].contains('[') && !text[at..next].contains(']');
                if !in_pattern && (c.is_whitespace() || matches!(c, '(' | ')') || is_sign(c) != is_sign(first)) {
                    break;
                }
                end = next + c.len_utf8();
                rest.next();
            }
        }
        found.push(Word { column: number + 1, text: &text[at..end] });
    }
    found
}

/// Brackets in brackets, and `not`s, so many deep: more than anybody writes.
const DEEPEST: usize = 64;

struct Parser<'a> {
    words: Vec<Word<'a>>,
    next: usize,
    end: usize,
    depth: usize,
}

type Parsed<T> = Result<T, Misunderstood>;

impl<'a> Parser<'a> {
    fn peek(&self) -> Option<&'a str> {
        self.words.get(self.next).map(|w| w.text)
    }

    fn column(&self) -> usize {
        self.words.get(self.next).map_or(self.end + 1, |w| w.column)
    }

    fn take(&mut self) -> Option<&'a str> {
        let word = self.peek()?;
        self.next += 1;
        Some(word)
    }

    fn expected<T>(&self, what: impl fmt::Display) -> Parsed<T> {
        let found = self.peek().map_or_else(|| "nothing more".to_owned(), |w| format!("`{w}`"));
        self.wrong(format!("expected {what}, found {found}"))
    }

    fn wrong<T>(&self, what: String) -> Parsed<T> {
        Err(Misunderstood { column: self.column(), what })
    }

    /// The word before, and not the next one, is what is wrong.
    fn back(&mut self) -> &mut Self {
        self.next -= 1;
        self
    }

    fn deeper<T>(&mut self, parse: impl FnOnce(&mut Self) -> Parsed<T>) -> Parsed<T> {
        if self.depth == DEEPEST {
            return self.wrong(format!("more than {DEEPEST} brackets and `not`s in one another"));
        }
        self.depth += 1;
        let parsed = parse(self);
        self.depth -= 1;
        parsed
    }

    fn any(&mut self) -> Parsed<Expression> {
        let mut list = vec![self.all()?];
        while matches!(self.peek(), Some("or" | "||")) {
            self.take();
            list.push(self.all()?);
        }
        Ok(if list.len() == 1 { list.remove(0) } else { Expression::Any(list) })
    }

    fn all(&mut self) -> Parsed<Expression> {
        let mut list = vec![self.one()?];
        loop {
            match self.peek() {
                Some("and" | "&&") => {
                    self.take();
                    list.push(self.one()?);
                }
                None | Some("or" | "||" | ")") => break,
                Some(_) => list.push(self.one()?),
            }
        }
        Ok(if list.len() == 1 { list.remove(0) } else { Expression::All(list) })
    }

    fn one(&mut self) -> Parsed<Expression> {
        match self.peek() {
            Some("not" | "!") => {
                self.take();
                Ok(Expression::Not(Box::new(self.deeper(Self::one)?)))
            }
            Some("(") => {
                self.take();
                let inner = self.deeper(Self::any)?;
                if self.peek() != Some(")") {
                    return self.expected("`)`");
                }
                self.take();
                Ok(inner)
            }
            _ => self.test(),
        }
    }

    fn test(&mut self) -> Parsed<Expression> {
        let side = match self.peek() {
            Some("src") => Side::Source,
            Some("dst") => Side::Destination,
            _ => Side::Either,
        };
        if side != Side::Either {
            self.take();
            // `src 10.0.0.1`, as with tcpdump
            if self.peek().is_some_and(|w| w.split('/').next().is_some_and(|a| a.parse::<IpAddr>().is_ok())) {
                return Ok(Expression::End(side, self.host()?));
            }
        }
        let what = self.take();
        let of_end = |test| Ok(Expression::End(side, test));
        match what {
            Some("host") => of_end(self.host()?),
            Some("port") => of_end(self.port()?),
            Some("sport") if side == Side::Either => Ok(Expression::End(Side::Source, self.port()?)),
            Some("dport") if side == Side::Either => Ok(Expression::End(Side::Destination, self.port()?)),
            Some("ns" | "namespace") => of_end(EndTest::Namespace(self.pattern("the name of a namespace")?)),
            Some("pod") => of_end(EndTest::Pod(self.pattern("the name of a pod")?)),
            Some("container") => of_end(EndTest::Container(self.pattern("the name of a container")?)),
            Some("name") => of_end(EndTest::Name(self.pattern("a name, as `shared-socket workloads` lists them")?)),
            Some("process") => of_end(EndTest::Process(self.pattern("the name of a command")?)),
            Some("state") => of_end(EndTest::State(self.listed("a state", &STATES)?)),
            Some("reason") => {
                let names: Vec<&str> = datapath::REASONS.iter().map(|r| r.name).collect();
                of_end(EndTest::Reason(self.listed("a reason", &names)?))
            }
            Some("path") if side == Side::Either => {
                let name = self.listed("a path", &["fast", "tcp", "left"])?;
                Ok(Expression::Path(match name.as_str() {
                    "fast" => Path::Fast,
                    "tcp" => Path::Tcp,
                    _ => Path::Left,
                }))
            }
            Some(word) if side == Side::Either => {
                let quantity = match word {
                    "bytes" => Quantity::Bytes,
                    "messages" => Quantity::Messages,
                    "handoffs" => Quantity::Handoffs,
                    "reserved" => Quantity::Reserved,
                    "unread" => Quantity::Unread,
                    "age" => Quantity::Age,
                    _ => return self.back().expected(TESTS),
                };
                let Some(comparison) = self.comparison() else { return self.expected("<, <=, =, !=, >= or >") };
                let number = if quantity == Quantity::Age { self.time()? } else { self.amount()? };
                Ok(Expression::Number(quantity, comparison, number))
            }
            None => self.expected(TESTS),
            Some(_) => self.back().expected("host, port, ns, pod, container, name, process, state or reason"),
        }
    }

    fn comparison(&mut self) -> Option<Comparison> {
        let found = match self.peek()? {
            "<" | "lt" => Comparison::Less,
            "<=" | "le" => Comparison::AtMost,
            "=" | "==" | "eq" => Comparison::Equal,
            "!=" | "ne" => Comparison::Unequal,
            ">=" | "ge" => Comparison::AtLeast,
            ">" | "gt" => Comparison::More,
            _ => return None,
        };
        self.take();
        Some(found)
    }

    fn port(&mut self) -> Parsed<EndTest> {
        let comparison = self.comparison().unwrap_or(Comparison::Equal);
        // ss writes `dport = :443`
        match self.peek().map(|w| w.strip_prefix(':').unwrap_or(w).parse()) {
            Some(Ok(port)) => {
                self.take();
                Ok(EndTest::Port(comparison, port))
            }
            _ => self.expected("a port, 0 to 65535"),
        }
    }

    fn host(&mut self) -> Parsed<EndTest> {
        let Some(word) = self.peek() else { return self.expected("an address") };
        let (address, prefix) = word.split_once('/').map_or((word, None), |(a, p)| (a, Some(p)));
        let Ok(address) = address.parse::<IpAddr>().map(|a| a.to_canonical()) else {
            return self.expected("an address, as 10.0.0.1, 10.0.0.0/8 or fd00::1");
        };
        let longest = if address.is_ipv4() { 32 } else { 128 };
        let prefix = match prefix.map(str::parse) {
            None => longest,
            Some(Ok(length)) if length <= longest => length,
            Some(_) => return self.expected(format!("a prefix of at most {longest} bits")),
        };
        self.take();
        Ok(EndTest::Host(address, prefix))
    }

    fn pattern(&mut self, what: &str) -> Parsed<Pattern> {
        let Some(word) = self.peek().filter(|w| !matches!(*w, "(" | ")")) else { return self.expected(what) };
        match Glob::new(word) {
            Ok(glob) => {
                self.take();
                Ok(Pattern(glob.compile_matcher()))
            }
            Err(e) => self.wrong(format!("`{word}` is no pattern: {}", e.kind())),
        }
    }

    fn listed(&mut self, what: &str, names: &[&str]) -> Parsed<String> {
        match self.peek().map(|word| word.replace('_', "-")) {
            Some(word) if names.iter().any(|n| n.replace('_', "-") == word) => {
                self.take();
                Ok(word)
            }
            _ => self.expected(format!("{what}: {}", names.join(", "))),
        }
    }

    /// 10, 1.5k, 4M, 2GiB: powers of 1024.
    fn amount(&mut self) -> Parsed<f64> {
        const WHAT: &str = "a number, as 10, 64k, 1.5M or 2G";
        let Some(word) = self.peek() else { return self.expected(WHAT) };
        let digits = word.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let scale = match word[digits.len()..].to_ascii_lowercase().as_str() {
            "" | "b" => 1.0,
            "k" | "kb" | "kib" => 1024.0,
            "m" | "mb" | "mib" => 1024.0 * 1024.0,
            "g" | "gb" | "gib" => 1024.0 * 1024.0 * 1024.0,
            _ => return self.expected(WHAT),
        };
        match digits.parse::<f64>() {
            Ok(number) if number >= 0.0 && number.is_finite() => {
                self.take();
                Ok(number * scale)
            }
            _ => self.expected(WHAT),
        }
    }

    /// 10, 10s, 5m, 1.5h, 2d, 200ms: in seconds.
    fn time(&mut self) -> Parsed<f64> {
        const WHAT: &str = "a time, as 10s, 5m, 1.5h or 2d";
        let Some(word) = self.peek() else { return self.expected(WHAT) };
        let Some(time) = duration(word) else { return self.expected(WHAT) };
        self.take();
        Ok(time.as_secs_f64())
    }
}

/// 10, 10s, 5m, 1.5h, 2d, 200ms.
pub fn duration(text: &str) -> Option<Duration> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match &text[digits.len()..] {
        "ms" => 0.001,
        "" | "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        "d" => 86400.0,
        _ => return None,
    };
    Duration::try_from_secs_f64(digits.parse::<f64>().ok()? * unit).ok()
}

impl std::str::FromStr for Filter {
    type Err = Misunderstood;

    /// Nothing at all lets everything through.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut parser = Parser { words: words(text), next: 0, end: text.chars().count(), depth: 0 };
        if parser.words.is_empty() {
            return Ok(Self(Expression::All(Vec::new())));
        }
        let expression = parser.any()?;
        if parser.peek().is_some() {
            return parser.expected("`and`, `or` or another test");
        }
        Ok(Self(expression))
    }
}

impl Comparison {
    fn holds<T: PartialOrd>(self, left: T, right: T) -> bool {
        match self {
            Self::Less => left < right,
            Self::AtMost => left <= right,
            Self::Equal => left == right,
            Self::Unequal => left != right,
            Self::AtLeast => left >= right,
            Self::More => left > right,
        }
    }
}

/// The first `length` bits are the same; v4-mapped addresses are IPv4.
fn is_in(address: &str, net: IpAddr, length: u8) -> bool {
    let Ok(address) = address.parse::<IpAddr>().map(|a| a.to_canonical()) else { return false };
    match (address, net) {
        (IpAddr::V4(a), IpAddr::V4(n)) => (a.to_bits() ^ n.to_bits()).leading_zeros() >= length.into(),
        (IpAddr::V6(a), IpAddr::V6(n)) => (a.to_bits() ^ n.to_bits()).leading_zeros() >= length.into(),
        _ => false,
    }
}

impl EndTest {
    fn holds(&self, end: &End) -> bool {
        let matches = |pattern: &Pattern, text: Option<&String>| text.is_some_and(|t| pattern.0.is_match(t));
        match self {
            Self::Host(net, length) => is_in(&end.addr, *net, *length),
            Self::Port(comparison, port) => comparison.holds(end.port, *port),
            Self::Namespace(pattern) => matches(pattern, end.workload.namespace.as_ref()),
            Self::Pod(pattern) => matches(pattern, end.workload.pod.as_ref()),
            Self::Container(pattern) => matches(pattern, end.workload.container.as_ref()),
            Self::Name(pattern) => matches(pattern, Some(&end.workload.name)),
            Self::Process(pattern) => matches(pattern, end.command.as_ref()),
            Self::State(state) => end.state == Some(state.as_str()),
            Self::Reason(reason) => end.reason.replace('_', "-") == *reason,
        }
    }
}

impl Filter {
    /// Is this one that was asked for?
    pub fn lets_through(&self, connection: &Connection) -> bool {
        self.0.holds(connection)
    }
}

impl Expression {
    fn holds(&self, c: &Connection) -> bool {
        match self {
            Self::All(list) => list.iter().all(|e| e.holds(c)),
            Self::Any(list) => list.iter().any(|e| e.holds(c)),
            Self::Not(inner) => !inner.holds(c),
            Self::Path(path) => c.path == *path,
            Self::End(side, test) => {
                let of = |end: &Option<End>| end.as_ref().is_some_and(|e| test.holds(e));
                match side {
                    Side::Source => of(&c.client),
                    Side::Destination => of(&c.server),
                    Side::Either => of(&c.client) || of(&c.server),
                }
            }
            Self::Number(quantity, comparison, number) => {
                let sum = |of: fn(&End) -> u64| c.ends().map(of).sum::<u64>() as f64;
                let value = match quantity {
                    Quantity::Bytes => sum(End::bytes),
                    Quantity::Messages => sum(End::messages),
                    Quantity::Handoffs => sum(|e| e.handoffs),
                    Quantity::Reserved => sum(|e| e.reserved_bytes),
                    Quantity::Unread => sum(|e| e.unread_bytes.unwrap_or(0)),
                    Quantity::Age => c.age_seconds,
                };
                comparison.holds(value, *number)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::observe::Name;

    fn end(addr: &str, port: u16, pod: &str) -> End {
        End {
            workload: Name {
                namespace: Some("core".into()),
                pod: Some(pod.into()),
                container: Some("main".into()),
                name: format!("core/{pod}/main"),
            },
            addr: addr.into(),
            port,
            state: Some("established"),
            command: Some("redis-server".into()),
            reason: "not_drained",
            fast_bytes: 3 << 20,
            tcp_messages: 4,
            ..End::default()
        }
    }

    fn connection() -> Connection {
        Connection {
            client: Some(end("10.1.0.7", 40_000, "smf-0")),
            server: Some(end("fd00::2", 6379, "redis-1")),
            path: Path::Tcp,
            age_seconds: 90.0,
        }
    }

    #[test]
    fn words_that_people_know() {
        let yes = [
            "",
            "port 6379",
            "dport 6379 sport 40000",
            "dport = :6379",
            "sport>=1024",
            "src 10.1.0.7 and dst host fd00::/8",
            "src host 10.0.0.0/8",
            "not (port 1 or port 2)",
            "! port 1 && path tcp",
            "pod smf-* pod redis-?",
            "ns core and dst pod redis-[!0]",
            "name core/smf-0/*",
            "process redis-server",
            "bytes > 5M and bytes <= 6MiB",
            "messages = 8",
            "age > 1m age < 1h",
            "reason not_drained",
            "reason not-drained and state established",
            "path fast or path tcp",
        ];
        for text in yes {
            let filter = text.parse::<Filter>().unwrap_or_else(|e| panic!("{text}: {e}"));
            assert!(filter.lets_through(&connection()), "{text}");
        }
        let no = [
            "sport 6379",
            "src host fd00::2",
            "host 10.2.0.0/16",
            "path fast",
            "not port 6379",
            "pod smf-0 and not (path tcp or path left)",
            "dst pod smf-0",
            "state close-wait",
            "unread > 0",
            "port 6379 age > 2m or path left",
        ];
        for text in no {
            assert!(!text.parse::<Filter>().unwrap().lets_through(&connection()), "{text}");
        }
    }

    #[test]
    fn errors_say_where() {
        let said = |text: &str| text.parse::<Filter>().unwrap_err().to_string();
        assert_eq!(said("port"), "at column 5: expected a port, 0 to 65535, found nothing more");
        assert_eq!(said("port 70000"), "at column 6: expected a port, 0 to 65535, found `70000`");
        assert_eq!(said("path slow"), "at column 6: expected a path: fast, tcp, left, found `slow`");
        assert_eq!(said("(port 1"), "at column 8: expected `)`, found nothing more");
        assert_eq!(said("port 1)"), "at column 7: expected `and`, `or` or another test, found `)`");
        assert_eq!(said("port 1 and"), format!("at column 11: expected {TESTS}, found nothing more"));
        assert_eq!(said("colour red"), format!("at column 1: expected {TESTS}, found `colour`"));
        assert_eq!(said("host 10.0.0.0/33"), "at column 6: expected a prefix of at most 32 bits, found `10.0.0.0/33`");
        assert_eq!(said("bytes 5"), "at column 7: expected <, <=, =, !=, >= or >, found `5`");
        assert!(said("pod [a").starts_with("at column 5: `[a` is no pattern"));
        assert!(said(&"not ".repeat(100)).contains("in one another"));
    }

    proptest! {
        #[test]
        fn nothing_panics(text in "\\PC{0,40}") {
            let _ = text.parse::<Filter>();
        }

        #[test]
        fn words_in_any_order(list in proptest::collection::vec(
            prop_oneof!["(not|and|or|src|dst|port|host|pod|path|age|bytes|state)", "[()<>=!]{1,2}", "[0-9a-z.:/*\\[]{0,6}"], 0..12)
        ) {
            if let Ok(filter) = list.join(" ").parse::<Filter>() {
                filter.lets_through(&connection());
            }
        }

        #[test]
        fn a_prefix_holds_its_own(bits in any::<u32>(), length in 0u8..=32) {
            let address = std::net::Ipv4Addr::from_bits(bits);
            prop_assert!(is_in(&address.to_string(), address.into(), length));
        }
    }
}
