//! A glimpse of layer 7: messages that a tap has seen, turned into requests with status and duration.
//!
//! Pure: pieces in, requests out. Each direction is cut into lines and blocks (`stream`), a grammar (`http1`, `redis`) makes
//! requests and answers of them, and a queue pairs these (`pairs`). What is not seen (a message cut short, a lost piece) is
//! skipped where a length says how far it goes. Elsewhere the thread is lost: nothing is paired until a message begins like a
//! request at a moment when nothing can be unanswered. That is after the server has spoken, with a client that waits for
//! answers; with one that was seen not to wait, only after a pause.
//!
//! What nobody can tell: a client that does not wait and was not seen to do so before a loss, or a loss before the first word
//! of a server whose connection was joined in its middle, may pair one request with another's answer.

mod glimpse;
mod http1;
mod looking;
mod pairs;
mod redis;
mod stream;
mod table;

use std::fmt;

use serde::{Deserialize, Serialize, Serializer};

pub use glimpse::Glimpse;
pub use looking::{Looking, Seen, Wanted};
use pairs::Pairs;
use stream::{Item, Run, Stream, Taken, Want};
pub use table::{Row, Table};

/// Bytes of each message that are looked at, unless somebody wants otherwise.
pub const SNAPLEN: u32 = 4096;

/// One message of a connection, as the tap saw it: what one send call gave to the kernel.
#[derive(Debug, Clone, Copy)]
pub struct Piece<'a> {
    /// CLOCK_MONOTONIC of the send.
    pub at_ns: u64,
    /// Which end sent it.
    pub from_client: bool,
    /// Bytes that this end had sent before it; a jump means that pieces were lost.
    pub offset: u64,
    /// Bytes of the message.
    pub len: u64,
    /// Its first bytes; fewer than `len` where it was cut short.
    pub seen: &'a [u8],
}

/// What is understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// HTTP/1.0 and HTTP/1.1.
    Http1,
    /// RESP, versions 2 and 3.
    Redis,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Http1 => "http1",
            Self::Redis => "redis",
        })
    }
}

/// How a request was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// By this status of HTTP.
    Http(u16),
    /// By Redis, with anything but an error.
    Ok,
    /// By Redis, with an error.
    Error,
}

impl Status {
    /// The server could not do it (a 4xx of HTTP is the client's).
    pub fn is_error(self) -> bool {
        matches!(self, Self::Http(500..) | Self::Error)
    }

    /// `2xx` and so on, `ok` or `error`: few, to be a label.
    pub fn class(self) -> &'static str {
        match self {
            Self::Http(100..=199) => "1xx",
            Self::Http(200..=299) => "2xx",
            Self::Http(300..=399) => "3xx",
            Self::Http(400..=499) => "4xx",
            Self::Http(500..=599) => "5xx",
            Self::Http(_) => "other",
            Self::Ok => "ok",
            Self::Error => "error",
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Http(status) => f.pad(&status.to_string()),
            Self::Ok | Self::Error => f.pad(self.class()),
        }
    }
}

impl Serialize for Status {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A request that was answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Request {
    /// How they talk.
    pub protocol: Protocol,
    /// Method or command, in upper case; `other` where it is not a usual one.
    pub what: &'static str,
    /// The answer.
    pub status: Status,
    /// CLOCK_MONOTONIC when its first byte was sent.
    pub began_ns: u64,
    /// Until the first byte of the final answer was sent.
    pub duration_ns: u64,
    /// Bytes of the request.
    pub request_bytes: u64,
    /// Bytes of the answer. Where its end is not known: those up to where the thread was lost, and of an answer that lasts until
    /// the connection is closed those of its head.
    pub answer_bytes: u64,
}

/// What a grammar says to an item.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    /// Another one of this kind follows.
    Want(Want),
    /// That is not of this protocol.
    Broken,
    /// The connection is something else from here on, or has nothing more to tell.
    Over,
}

const LINE: Next = Next::Want(Want::Line);

/// What a protocol makes of lines and blocks. Directions are named by whether the client sends.
trait Grammar: fmt::Debug + Send + Sync {
    /// A line or block is complete.
    fn item(&mut self, from_client: bool, item: &Item<'_>, pairs: &mut Pairs) -> Next;
    /// A line goes on unseen: what does its beginning tell?
    fn cut(&mut self, from_client: bool, item: &Item<'_>, pairs: &mut Pairs);
    /// No request (or answer) is half read.
    fn is_between(&self, from_client: bool) -> bool;
    /// What is half read is forgotten.
    fn restart(&mut self, from_client: bool);
}

/// What the first bytes of a client tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Guess {
    Is(Protocol),
    /// More bytes are needed.
    Open,
    Nothing,
}

/// Which protocol begins like this?
fn guess(seen: &[u8], only: Option<Protocol>) -> Guess {
    let ask = |protocol, of: fn(&[u8]) -> Option<bool>| match of(seen) {
        _ if only.is_some_and(|only| only != protocol) => Guess::Nothing,
        Some(true) => Guess::Is(protocol),
        Some(false) => Guess::Nothing,
        None => Guess::Open,
    };
    match (ask(Protocol::Http1, http1::begins), ask(Protocol::Redis, redis::begins)) {
        (is @ Guess::Is(_), _) | (_, is @ Guess::Is(_)) => is,
        (Guess::Nothing, Guess::Nothing) if only == Some(Protocol::Redis) => ask(Protocol::Redis, redis::begins_inline),
        (Guess::Nothing, Guess::Nothing) => Guess::Nothing,
        _ => Guess::Open,
    }
}

/// First bytes of a client, until they tell the protocol.
#[derive(Debug, Default)]
struct Opening {
    bytes: Vec<u8>,
    at_ns: u64,
}

/// Bytes that a guess may take: an inline command of Redis is a line.
const LONGEST_GUESS: usize = 256;

#[derive(Debug)]
enum Talk {
    /// From its beginning.
    Opening(Opening),
    /// Seen from somewhere in its middle: any message may begin a request. The offset that the server has come to, if known.
    Joined(Option<u64>),
    Known(Box<Known>),
    /// Nothing to see (any more).
    Over,
}

#[derive(Debug)]
struct Known {
    grammar: Box<dyn Grammar>,
    pairs: Pairs,
    client: Stream,
    server: Stream,
    /// Who sent last, and when.
    last: Option<(bool, u64)>,
}

impl Known {
    fn new(protocol: Protocol) -> Self {
        let grammar: Box<dyn Grammar> = match protocol {
            Protocol::Http1 => Box::new(http1::Http1::default()),
            Protocol::Redis => Box::new(redis::Redis::default()),
        };
        Self { grammar, pairs: Pairs::new(protocol), client: Stream::new(), server: Stream::new(), last: None }
    }

    fn stream(&mut self, from_client: bool) -> &mut Stream {
        if from_client { &mut self.client } else { &mut self.server }
    }

    /// The thread is lost in one direction.
    fn lose(&mut self, from_client: bool) {
        self.stream(from_client).restart(Want::Lost);
    }

    fn is_between(&self, from_client: bool) -> bool {
        let stream = if from_client { &self.client } else { &self.server };
        stream.is_between() && self.grammar.is_between(from_client)
    }

    /// Both ends are at the beginning of a message.
    fn start(&mut self) {
        for from_client in [true, false] {
            self.grammar.restart(from_client);
            self.stream(from_client).restart(Want::Line);
        }
    }

    /// A message begins: is all there before it, and may the thread be taken up again? False as in [`Self::run`].
    fn begin(&mut self, piece: &Piece<'_>) -> bool {
        self.pairs.piece = self.pairs.piece.wrapping_add(1);
        // Joined before the server has said a word: its first is an answer to the first request, if there are no more
        let is_sure = piece.from_client || !self.pairs.overlaps();
        let stream = self.stream(piece.from_client);
        let expected = stream.next.unwrap_or(if is_sure { piece.offset } else { u64::MAX });
        stream.next = Some(piece.offset);
        let missing = piece.offset.checked_sub(expected);
        let is_whole = missing == Some(0);
        if let Some(bytes) = missing.filter(|n| *n > 0 && stream.may_miss(*n)) {
            let run = Run { at_ns: piece.at_ns, offset: expected, seen: &[], unseen: bytes };
            if !self.run(piece.from_client, run) {
                return false;
            }
        } else if !is_whole {
            let end = if piece.from_client { self.server.next.unwrap_or(0) } else { expected };
            self.pairs.lose(end);
            self.lose(piece.from_client);
        }
        if !piece.from_client {
            self.pairs.confirm(is_whole);
            return true;
        }
        let is_start = if self.client.is_lost() {
            guess(piece.seen, Some(self.pairs.protocol)) == Guess::Is(self.pairs.protocol)
        } else {
            self.is_between(true)
        };
        if self.pairs.open || !is_start {
            return true;
        }
        // Handed over too late, it is no answer to what was said last
        let is_turn = self.last.is_none_or(|(from_client, at_ns)| !from_client && at_ns <= piece.at_ns);
        let has_answered = self.server.is_lost() || self.is_between(false);
        let quiet_ns = self.last.map_or(u64::MAX, |(_, at_ns)| piece.at_ns.saturating_sub(at_ns));
        self.pairs.reopen(is_turn && has_answered, quiet_ns);
        if self.pairs.open {
            self.start();
        } else if self.client.is_lost() {
            self.pairs.lost = self.pairs.lost.saturating_add(1);
        }
        true
    }

    /// A message, without what was read already.
    fn piece(&mut self, piece: &Piece<'_>, read: usize) -> bool {
        let (seen, offset) = (&piece.seen[read..], piece.offset + read as u64);
        let unseen = piece.len - piece.seen.len() as u64;
        self.last = Some((piece.from_client, piece.at_ns));
        self.run(piece.from_client, Run { at_ns: piece.at_ns, offset, seen, unseen })
    }

    /// Bytes of one direction. False: there is nothing more to be seen.
    fn run(&mut self, from_client: bool, mut run: Run<'_>) -> bool {
        let (grammar, pairs) = (&mut self.grammar, &mut self.pairs);
        let stream = if from_client { &mut self.client } else { &mut self.server };
        let end = run.offset.saturating_add(run.seen.len() as u64).saturating_add(run.unseen);
        stream.next = Some(end);
        if from_client {
            pairs.asked = end;
        }
        loop {
            let next = match stream.take(&mut run) {
                Taken::All => return true,
                Taken::Item => grammar.item(from_client, &stream.item(), pairs),
                Taken::Cut => {
                    grammar.cut(from_client, &stream.item(), pairs);
                    Next::Broken
                }
            };
            match next {
                Next::Want(want) => stream.want(want),
                Next::Over => return false,
                Next::Broken => {
                    stream.restart(Want::Lost);
                    // Requests before what the client says now have their answers yet; those after it cannot be told
                    if from_client {
                        pairs.open = false;
                    } else {
                        pairs.lose(end);
                    }
                }
            }
        }
    }
}

/// The requests of one connection.
#[derive(Debug)]
pub struct Tracker {
    only: Option<Protocol>,
    protocol: Option<Protocol>,
    talk: Talk,
    /// Of what was forgotten.
    lost: u64,
    is_new: bool,
}

impl Tracker {
    /// Of a connection of which nothing is known. `only`: other protocols are not looked for.
    pub fn new(only: Option<Protocol>) -> Self {
        Self { only, protocol: None, talk: Talk::Joined(None), lost: 0, is_new: true }
    }

    /// The next message of either end, in the order of sending; requests that are complete by it are added to `done`.
    pub fn feed(&mut self, piece: &Piece<'_>, done: &mut Vec<Request>) {
        let seen = &piece.seen[..piece.seen.len().min(usize::try_from(piece.len).unwrap_or(usize::MAX))];
        let piece = Piece { seen, ..*piece };
        if piece.len == 0 || piece.offset.checked_add(piece.len).is_none() {
            return;
        }
        if std::mem::take(&mut self.is_new) && piece.from_client && piece.offset == 0 {
            self.talk = Talk::Opening(Opening { bytes: Vec::new(), at_ns: piece.at_ns });
        }
        let goes_on = match &mut self.talk {
            Talk::Over => return,
            Talk::Opening(_) => self.open(&piece),
            Talk::Joined(answered) => {
                let answered = *answered;
                self.join(&piece, answered)
            }
            Talk::Known(known) => known.begin(&piece) && known.piece(&piece, 0),
        };
        if let Talk::Known(known) = &mut self.talk {
            done.append(&mut known.pairs.done);
        }
        if !goes_on {
            self.end(done);
        }
    }

    /// The connection is closed: what was being answered is done.
    pub fn close(&mut self, done: &mut Vec<Request>) {
        self.end(done);
    }

    /// What is talked; `None` while it is not known.
    pub fn protocol(&self) -> Option<Protocol> {
        self.protocol
    }

    /// Requests that were seen and whose answers could not be told, as messages were lost, cut short or not understood.
    pub fn lost(&self) -> u64 {
        let of_known = if let Talk::Known(known) = &self.talk { known.pairs.lost } else { 0 };
        self.lost.saturating_add(of_known)
    }

    /// Nothing more of it will be told: it is of no known protocol, or is another one by now (WebSocket, a tunnel, `MONITOR`).
    pub fn is_over(&self) -> bool {
        matches!(self.talk, Talk::Over)
    }

    fn end(&mut self, done: &mut Vec<Request>) {
        if let Talk::Known(known) = &mut self.talk {
            known.pairs.lose(known.server.next.unwrap_or(0));
            done.append(&mut known.pairs.done);
        }
        self.lost = self.lost();
        self.talk = Talk::Over;
    }

    /// What is talked is found out.
    fn know(&mut self, protocol: Protocol, known: Known) {
        self.protocol = Some(protocol);
        self.talk = Talk::Known(Box::new(known));
    }

    /// A connection from its first byte.
    fn open(&mut self, piece: &Piece<'_>) -> bool {
        let Talk::Opening(opening) = &mut self.talk else { return true };
        // A server that speaks first speaks neither
        if !piece.from_client || piece.offset != opening.bytes.len() as u64 {
            return false;
        }
        for (n, byte) in piece.seen.iter().enumerate() {
            opening.bytes.push(*byte);
            match guess(&opening.bytes, self.only) {
                Guess::Is(protocol) => {
                    let opening = std::mem::take(opening);
                    let mut known = Known::new(protocol);
                    known.pairs.open = true;
                    known.start();
                    known.server.next = Some(0);
                    let first = Run { at_ns: opening.at_ns, offset: 0, seen: &opening.bytes, unseen: 0 };
                    let goes_on = known.run(true, first) && known.piece(piece, n + 1);
                    self.know(protocol, known);
                    return goes_on;
                }
                Guess::Open if opening.bytes.len() < LONGEST_GUESS => {}
                _ => return false,
            }
        }
        piece.len == piece.seen.len() as u64
    }

    /// A connection from somewhere in its middle.
    fn join(&mut self, piece: &Piece<'_>, answered: Option<u64>) -> bool {
        if !piece.from_client {
            self.talk = Talk::Joined(Some(piece.offset + piece.len));
        } else if let Guess::Is(protocol) = guess(piece.seen, self.only) {
            let mut known = Known::new(protocol);
            known.server.next = answered;
            let goes_on = known.begin(piece) && known.piece(piece, 0);
            self.know(protocol, known);
            return goes_on;
        }
        true
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Sees a connection: a message every 10 ns.
    pub struct Tap {
        pub tracker: Tracker,
        pub at_ns: u64,
        pub offsets: [u64; 2],
        pub done: Vec<Request>,
    }

    impl Tap {
        pub fn new() -> Self {
            Self { tracker: Tracker::new(None), at_ns: 0, offsets: [0; 2], done: Vec::new() }
        }

        pub fn cut(&mut self, from_client: bool, seen: &[u8], len: u64) -> &mut Self {
            self.at_ns += 10;
            let offset = &mut self.offsets[usize::from(from_client)];
            let piece = Piece { at_ns: self.at_ns, from_client, offset: *offset, len, seen };
            *offset = offset.wrapping_add(len);
            self.tracker.feed(&piece, &mut self.done);
            self
        }

        pub fn lose(&mut self, from_client: bool, len: u64) -> &mut Self {
            self.at_ns += 10;
            self.offsets[usize::from(from_client)] += len;
            self
        }

        pub fn client(&mut self, message: &[u8]) -> &mut Self {
            self.cut(true, message, message.len() as u64)
        }

        pub fn server(&mut self, message: &[u8]) -> &mut Self {
            self.cut(false, message, message.len() as u64)
        }

        pub fn said(&self) -> Vec<String> {
            let say = |r: &Request| {
                format!("{} {} {} ns {} B {} B", r.what, r.status, r.duration_ns, r.request_bytes, r.answer_bytes)
            };
            self.done.iter().map(say).collect()
        }

        fn memory(&self) -> usize {
            match &self.tracker.talk {
                Talk::Opening(opening) => opening.bytes.capacity(),
                Talk::Known(known) => known.pairs.memory() + known.client.memory() + known.server.memory(),
                Talk::Joined(_) | Talk::Over => 0,
            }
        }
    }

    /// A command of Redis, by its words.
    pub fn command(words: &str) -> Vec<u8> {
        let words: Vec<&str> = words.split(' ').collect();
        let arguments: String = words.iter().map(|w| format!("${}\r\n{w}\r\n", w.len())).collect();
        format!("*{}\r\n{arguments}", words.len()).into_bytes()
    }

    fn get(path: &str) -> Vec<u8> {
        format!("GET /{path} HTTP/1.1\r\n\r\n").into_bytes()
    }

    fn answer(status: u16) -> Vec<u8> {
        format!("HTTP/1.1 {status} x\r\nContent-Length: 2\r\n\r\nok").into_bytes()
    }

    /// Statuses that were told.
    fn statuses(tap: &Tap) -> Vec<u16> {
        let status = |r: &Request| if let Status::Http(status) = r.status { status } else { 0 };
        tap.done.iter().map(status).collect()
    }

    #[test]
    fn statuses_as_labels() {
        let classes = [100, 204, 302, 404, 503, 700].map(|s| Status::Http(s).class());
        assert_eq!(classes, ["1xx", "2xx", "3xx", "4xx", "5xx", "other"]);
        assert_eq!((Status::Ok.class(), Status::Error.class()), ("ok", "error"));
        assert_eq!(
            [Status::Http(499), Status::Http(500), Status::Ok, Status::Error].map(Status::is_error),
            [false, true, false, true]
        );
        assert_eq!(format!("{} {} {}", Status::Http(200), Status::Ok, Status::Error), "200 ok error");
        assert_eq!(serde_json::to_string(&(Status::Http(200), Protocol::Http1)).unwrap(), r#"["200","http1"]"#);
    }

    #[test]
    fn what_is_not_known_costs_nothing() {
        for first in [
            &b"\x16\x03\x01\x02"[..],
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"SSH-2.0-x\r\n",
            b"PING\r\n",
            &[b'A'; 1000],
        ] {
            let mut tap = Tap::new();
            tap.client(first).client(&get("a")).server(&answer(200));
            assert!(tap.done.is_empty() && tap.tracker.protocol().is_none() && tap.tracker.is_over());
            assert_eq!((tap.memory(), tap.tracker.lost()), (0, 0));
        }
        let mut tap = Tap::new();
        tap.server(b"220 hello\r\n").client(b"HELO a\r\n");
        assert_eq!((tap.memory(), tap.tracker.protocol()), (0, None));
    }

    #[test]
    fn joined_in_the_middle() {
        let mut tap = Tap { offsets: [4711, 815], ..Tap::new() };
        tap.server(b"the end of a body").client(&get("a")).server(&answer(200)).client(&get("b")).server(&answer(404));
        assert_eq!(statuses(&tap), [200, 404]);
        let mut tap = Tap { offsets: [4711, 815], ..Tap::new() };
        tap.client(b"a=b&c=d").server(&answer(500)).client(&get("a")).server(&answer(200));
        assert_eq!(statuses(&tap), [200]);
        let mut tap = Tap { offsets: [4711, 815], ..Tap::new() };
        tap.client(&get("a"))
            .lose(false, 40)
            .client(&get("b"))
            .server(&answer(500))
            .client(&get("c"))
            .server(&answer(200));
        assert_eq!((statuses(&tap), tap.tracker.lost()), (vec![200], 2));
        // In the middle of an answer: what was asked before is not known
        let mut tap = Tap { offsets: [4711, 815], ..Tap::new() };
        tap.client(&get("a")).server(b"half an answer\r\n").server(&answer(500)).client(&get("b")).server(&answer(200));
        assert_eq!(statuses(&tap), [200]);
        let mut tap = Tap { offsets: [1 << 50, 1 << 60], ..Tap::new() };
        tap.client(&command("GET a")).server(b"+a\r\n").client(&command("GET b")).server(b"-b\r\n");
        assert_eq!(tap.done.len(), 2);
    }

    #[test]
    fn a_lost_request() {
        let mut tap = Tap::new();
        tap.client(&get("a"))
            .server(&answer(200))
            .lose(true, 30)
            .server(&answer(500))
            .client(&get("b"))
            .server(&answer(201));
        assert_eq!(statuses(&tap), [200, 201]);
        // With another in front of it
        let mut tap = Tap::new();
        tap.client(&get("a"))
            .lose(true, 30)
            .client(&get("c"))
            .server(&answer(201))
            .server(&answer(500))
            .server(&answer(203));
        assert_eq!((statuses(&tap), tap.tracker.lost()), (vec![], 2));
        // This client does not wait, so its next request tells nothing; silence does
        tap.client(&get("d")).server(&answer(204));
        assert!(statuses(&tap).is_empty());
        tap.at_ns += 60_000_000;
        tap.client(&get("e")).server(&answer(205));
        assert_eq!(statuses(&tap), [205]);
    }

    #[test]
    fn a_lost_answer() {
        let mut tap = Tap::new();
        tap.client(&get("a"))
            .lose(false, 38)
            .client(&get("b"))
            .server(&answer(500))
            .client(&get("c"))
            .server(&answer(200));
        assert_eq!((statuses(&tap), tap.tracker.lost()), (vec![200], 2));
        let mut tap = Tap::new();
        tap.client(&get("a")).server(&answer(200)[..20]).lose(false, 10).server(&answer(200)[30..]);
        tap.client(&get("b")).server(&answer(201));
        assert_eq!(statuses(&tap), [200, 201]);
        // The first of all
        let mut tap = Tap::new();
        tap.client(&command("GET a")).lose(false, 4).client(&command("GET b")).server(b"-b\r\n");
        assert_eq!((tap.done.len(), tap.tracker.lost()), (0, 2));
    }

    #[test]
    fn a_lost_exchange() {
        let mut tap = Tap::new();
        tap.client(&get("a")).lose(false, 40).lose(true, 20).client(&get("b")).server(&answer(500));
        tap.client(&get("c")).server(&answer(200)).client(&get("d")).server(&answer(201));
        assert_eq!(statuses(&tap), [200, 201]);
    }

    #[test]
    fn offsets_that_make_no_sense() {
        let mut tap = Tap::new();
        tap.client(&get("a")).server(&answer(200));
        tap.offsets = [0, 0];
        tap.server(&answer(500)).client(&get("b")).server(&answer(201));
        tap.offsets[1] = u64::MAX;
        tap.cut(true, b"GET", u64::MAX - 1).cut(true, b"", 0);
        assert_eq!(statuses(&tap), [200, 201]);
    }

    #[test]
    fn messages_that_come_in_the_wrong_order() {
        let mut tap = Tap::new();
        tap.client(&get("a")).server(&answer(200));
        tap.at_ns += 10;
        tap.server(&answer(500)).at_ns -= 20;
        tap.client(&get("b")).at_ns += 10;
        tap.client(&get("c")).server(&answer(201));
        assert_eq!(statuses(&tap), [200]);
        // An answer from before the request is not its own
        let mut tap = Tap::new();
        tap.at_ns = 100;
        tap.client(&get("a")).at_ns = 50;
        tap.server(&answer(200)).at_ns = 100;
        tap.client(&get("b")).server(&answer(201));
        assert_eq!((statuses(&tap), tap.tracker.lost()), (vec![201], 1));
    }

    #[test]
    fn waiting_is_bounded() {
        let mut tap = Tap::new();
        for _ in 0..3 * pairs::MOST_WAITING {
            tap.client(&command("GET a"));
        }
        assert_eq!(tap.tracker.lost(), 2 * pairs::MOST_WAITING as u64);
        assert!(tap.memory() < 1 << 20);
        for _ in 0..3 * pairs::MOST_WAITING {
            tap.server(b"+a\r\n");
        }
        assert_eq!(tap.done.len(), pairs::MOST_WAITING);
        tap.at_ns += 60_000_000;
        tap.client(&command("GET a")).server(b"-a\r\n");
        assert_eq!(tap.done.last().unwrap().status, Status::Error);
    }

    /// A request, its answer, and what shall be told: method, status.
    type Exchange = (Vec<u8>, Vec<u8>, &'static str, &'static str);

    fn http() -> impl Strategy<Value = Exchange> {
        let body = || proptest::collection::vec(any::<u8>(), 0..40);
        let framed = |head: String, body: &[u8], form: u8| match form {
            0 => [format!("{head}\r\ncontent-LENGTH: {}\r\n\r\n", body.len()).as_bytes(), body].concat(),
            _ => {
                let mut all = format!("{head}\r\nTransfer-Encoding: chunked\r\n\r\n").into_bytes();
                for chunk in body.chunks(7) {
                    all.extend([format!("{:x};a=b\r\n", chunk.len()).as_bytes(), chunk, b"\r\n"].concat());
                }
                [&all[..], b"0\r\nTrailer: x\r\n\r\n"].concat()
            }
        };
        (0u8..5, body(), body(), 0u8..2, 0u8..2, any::<bool>()).prop_map(
            move |(kind, asked, told, one, other, interim)| {
                let before = if interim { &b"HTTP/1.1 100 Continue\r\n\r\n"[..] } else { b"" };
                let (request, answer, what, status) = match kind {
                    0 => (get("a"), framed("HTTP/1.1 200 OK".into(), &told, other), "GET", "200"),
                    1 => (
                        framed("POST / HTTP/1.1".into(), &asked, one),
                        framed("HTTP/1.1 503 No".into(), &told, other),
                        "POST",
                        "503",
                    ),
                    2 => (
                        b"HEAD / HTTP/1.1\r\n\r\n".to_vec(),
                        b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n".to_vec(),
                        "HEAD",
                        "200",
                    ),
                    3 => (
                        framed("PROPFIND /a HTTP/1.0".into(), &asked, one),
                        b"HTTP/1.1 204 No\r\n\r\n".to_vec(),
                        "other",
                        "204",
                    ),
                    _ => (get("a"), b"HTTP/1.1 304 No\r\nContent-Length: 7\r\n\r\n".to_vec(), "GET", "304"),
                };
                (request, [before, &answer].concat(), what, status)
            },
        )
    }

    fn redis() -> impl Strategy<Value = Exchange> {
        let leaf = prop_oneof![
            Just(b"+OK\r\n".to_vec()),
            Just(b":12\r\n".to_vec()),
            Just(b"$-1\r\n".to_vec()),
            Just(b"_\r\n".to_vec()),
            Just(b"|1\r\n+a\r\n*1\r\n:1\r\n+b\r\n".to_vec()),
            proptest::collection::vec(any::<u8>(), 0..300).prop_map(|b| [
                format!("${}\r\n", b.len()).as_bytes(),
                &b,
                b"\r\n"
            ]
            .concat()),
        ];
        let reply = leaf.prop_recursive(3, 12, 4, |inner| {
            (0u8..3, proptest::collection::vec(inner, 0..4)).prop_map(|(kind, all)| match kind {
                0 => [format!("*{}\r\n", all.len()).as_bytes(), &all.concat()].concat(),
                1 => [format!("~{}\r\n", all.len()).as_bytes(), &all.concat()].concat(),
                _ => [format!("%{}\r\n", all.len()).as_bytes(), &all.concat(), &all.concat()].concat(),
            })
        });
        let value = "[a-z]{1,300}";
        (0u8..4, value, reply, any::<bool>()).prop_map(|(kind, value, reply, pushed)| {
            let before = if pushed { &b">2\r\n+invalidate\r\n*1\r\n+a\r\n"[..] } else { b"" };
            let (request, reply, what, status) = match kind {
                0 => (command("get a"), reply, "GET", "ok"),
                1 => (command(&format!("SET a {value}")), b"-ERR no\r\n".to_vec(), "SET", "error"),
                2 => (b"PING\r\n".to_vec(), reply, "PING", "ok"),
                _ => (command("JSON.GET a"), b"!3\r\nERR\r\n".to_vec(), "other", "error"),
            };
            (request, [before, &reply].concat(), what, status)
        })
    }

    /// The first request of a connection tells its protocol.
    fn conversation() -> impl Strategy<Value = Vec<Exchange>> {
        let ping = || (command("PING"), b"+PONG\r\n".to_vec(), "PING", "ok");
        prop_oneof![
            proptest::collection::vec(http(), 1..12),
            proptest::collection::vec(redis(), 0..12).prop_map(move |all| [vec![ping()], all].concat()),
        ]
    }

    /// Sends bytes in messages of these sizes, over and over.
    fn send(tap: &mut Tap, from_client: bool, mut bytes: &[u8], sizes: &mut impl Iterator<Item = usize>, snap: usize) {
        while !bytes.is_empty() {
            let len = sizes.next().unwrap_or(1).min(bytes.len());
            tap.cut(from_client, &bytes[..len.min(snap)], len as u64);
            bytes = &bytes[len..];
        }
    }

    proptest! {
        #[test]
        fn messages_do_not_matter(all in conversation(), batch in 1usize..5, sizes in proptest::collection::vec(1usize..60, 1..20)) {
            let mut tap = Tap::new();
            let mut sizes = sizes.iter().copied().cycle();
            for some in all.chunks(batch) {
                let (asked, told): (Vec<_>, Vec<_>) = some.iter().map(|(a, t, ..)| (&a[..], &t[..])).unzip();
                send(&mut tap, true, &asked.concat(), &mut sizes, usize::MAX);
                send(&mut tap, false, &told.concat(), &mut sizes, usize::MAX);
            }
            let mut whole = Tap::new();
            for (asked, told, ..) in &all {
                whole.client(asked).server(told);
            }
            let told = |tap: &Tap| -> Vec<_> {
                tap.done.iter().map(|r| (r.what, r.status.to_string(), r.request_bytes, r.answer_bytes)).collect()
            };
            prop_assert_eq!(told(&tap), told(&whole));
            let is: Vec<_> = whole.done.iter().map(|r| (r.what, r.status.to_string())).collect();
            let want: Vec<_> = all.iter().map(|(.., what, status)| (*what, (*status).to_owned())).collect();
            prop_assert_eq!(is, want);
            prop_assert_eq!((tap.tracker.lost(), whole.tracker.lost()), (0, 0));
        }

        /// Messages are lost and cut short; times tell what belongs together.
        #[test]
        fn no_answer_is_for_another_request(
            is_redis in any::<bool>(),
            is_new in any::<bool>(),
            fates in proptest::collection::vec((0u8..8, 0u8..8, 5usize..80, 1usize..4), 1..60),
        ) {
            let mut tap = Tap { offsets: if is_new { [0; 2] } else { [815; 2] }, ..Tap::new() };
            let mut times = std::collections::BTreeSet::new();
            for (n, (to, fro, snap, batch)) in fates.iter().enumerate() {
                // The first exchange is seen: without it, nobody knows what the first answer should be
                let (to, fro) = if n == 0 { (&7, &7) } else { (to, fro) };
                let is_even = n % 2 == 0;
                let (asked, told) = if is_redis {
                    let list = format!("*2\r\n${n}\r\n{}\r\n:1\r\n", "x".repeat(n));
                    (command(if is_even { "GET a" } else { "SET a b" }), if is_even { list } else { "-ERR\r\n".into() }.into_bytes())
                } else if is_even {
                    (get("a"), answer(200))
                } else {
                    let chunked = b"HTTP/1.1 500 x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
                    (b"PUT / HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc".to_vec(), chunked.to_vec())
                };
                let asked_ns = tap.at_ns + 10;
                for (from_client, fate, bytes) in [(true, to, asked.repeat(*batch)), (false, fro, told.repeat(*batch))] {
                    if !from_client {
                        times.insert((asked_ns, tap.at_ns + 10));
                    }
                    match fate {
                        0 => { tap.lose(from_client, bytes.len() as u64); }
                        1 => { tap.cut(from_client, &bytes[..bytes.len().min(*snap)], bytes.len() as u64); }
                        2 if *batch == 1 => send(&mut tap, from_client, &bytes, &mut std::iter::repeat(snap / 2), usize::MAX),
                        _ => { tap.cut(from_client, &bytes, bytes.len() as u64); }
                    }
                }
            }
            for r in &tap.done {
                prop_assert!(times.contains(&(r.began_ns, r.began_ns + r.duration_ns)), "{:?}", r);
                prop_assert!(r.what == "other" || r.status.is_error() == matches!(r.what, "SET" | "PUT"), "{:?}", r);
            }
            prop_assert!(!tap.done.is_empty());
        }

        /// A client that does not wait, and seldom pauses.
        #[test]
        fn losses_among_many_that_wait(steps in proptest::collection::vec((any::<bool>(), 0u8..20), 1..100)) {
            let mut tap = Tap::new();
            // What it is like must have been seen
            tap.client(&command("INCR a")).client(&command("INCR a")).server(b":0\r\n");
            let (mut asked, mut told) = (vec![10, 20], vec![30]);
            for (asks, fate) in &steps {
                let waiting = asked.len() - told.len();
                let from_client = *asks && waiting < 8 || waiting == 0;
                // A pause is one when there is nothing to do
                tap.at_ns += if waiting == 0 && *fate > 15 { 60_000_000 } else { 0 };
                let (message, times) =
                    if from_client { (command("INCR a"), &mut asked) } else { (b":1\r\n".to_vec(), &mut told) };
                times.push(tap.at_ns + 10);
                if *fate == 0 {
                    tap.lose(from_client, message.len() as u64);
                } else {
                    tap.cut(from_client, &message, message.len() as u64);
                }
            }
            let pairs: Vec<_> = asked.into_iter().zip(told).collect();
            for r in &tap.done {
                prop_assert!(pairs.contains(&(r.began_ns, r.began_ns + r.duration_ns)), "{:?}", r);
            }
        }

        #[test]
        fn nothing_panics(
            only in prop_oneof![Just(None), Just(Some(Protocol::Http1)), Just(Some(Protocol::Redis))],
            first in 0usize..4,
            pieces in proptest::collection::vec(
                (any::<bool>(), prop_oneof![4 => 0u64..3, 1 => any::<u64>()], prop_oneof![4 => 0u64..20, 1 => any::<u64>()], any::<u64>(), prop_oneof![
                    proptest::collection::vec(any::<u8>(), 0..50),
                    "(GET / HTTP/1.1|HTTP/1.1 200 OK|[*$>%|~=!]-?[0-9]{1,20}|content-length:[0-9]{1,20}|transfer-encoding:chunked|[+:-]x|[0-9a-f]{1,17}|\r\n|\r\n\r\n|CLIENT|SUBSCRIBE){0,6}"
                        .prop_map(String::into_bytes),
                ]),
                0..60,
            ),
        ) {
            let mut tap = Tap { tracker: Tracker::new(only), ..Tap::new() };
            tap.client([&b""[..], b"GET / HTTP/1.1\r\n\r\n", b"*1\r\n$3\r\nGET\r\n", b"PING\r\n"][first]);
            for (from_client, jump, more, at_ns, seen) in &pieces {
                let offset = &mut tap.offsets[usize::from(*from_client)];
                let (at_ns, len) = (*at_ns, if *more > 20 { *more } else { seen.len() as u64 + more / 10 });
                let piece = Piece { at_ns, from_client: *from_client, offset: offset.wrapping_add(jump / 2), len, seen };
                *offset = piece.offset.wrapping_add(len);
                tap.tracker.feed(&piece, &mut tap.done);
                prop_assert!(tap.memory() < 64 << 10);
            }
            tap.tracker.close(&mut tap.done);
        }
    }
}
