//! HTTP/1.0 and HTTP/1.1 (RFC 9112): what frames a message is read, all else passes by.

use super::pairs::Pairs;
use super::stream::{Item, Want, decimal};
use super::{Grammar, LINE, Next, Status};

/// Heads that are longer are not understood.
const LONGEST_HEAD: u64 = 64 << 10;
/// Methods that are told by name.
const METHODS: [&str; 9] = ["CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE"];
const LONGEST_METHOD: usize = 24;

/// Does a request begin like this? `None`: more bytes would tell. The preface of HTTP/2 does not.
pub(super) fn begins(seen: &[u8]) -> Option<bool> {
    let len = seen.iter().take_while(|b| b.is_ascii_uppercase() || **b == b'-').count();
    let (method, rest) = seen.split_at(len);
    let is_usual = METHODS.iter().any(|m| m.as_bytes() == method);
    match rest {
        [] => {
            if len > LONGEST_METHOD {
                Some(false)
            } else {
                None
            }
        }
        [b' '] if (3..=LONGEST_METHOD).contains(&len) => None,
        [b' ', first, ..] => {
            Some((3..=LONGEST_METHOD).contains(&len) && (*first == b'/' || is_usual && first.is_ascii_graphic()))
        }
        _ => Some(false),
    }
}

/// `GET` of `GET /path...`, whatever follows.
fn method(line: &[u8]) -> Option<&'static str> {
    let word = line.split(|b| *b == b' ').next()?;
    let known = METHODS.iter().find(|m| m.as_bytes() == word);
    (begins(line) == Some(true)).then(|| known.copied().unwrap_or("other"))
}

/// 200 of `HTTP/1.1 200 OK`.
fn status(line: &[u8]) -> Option<u16> {
    let rest = line.strip_prefix(b"HTTP/1.")?;
    match rest {
        [b'0'..=b'9', b' ', code @ ..] if code.get(3).is_none_or(|b| *b == b' ') => {
            let code = decimal(code.get(..3)?)?;
            u16::try_from(code).ok().filter(|code| (100..=999).contains(code))
        }
        _ => None,
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Part {
    #[default]
    Start,
    Head,
    Body,
    Size,
    Chunk,
    Trailer,
}

/// One direction.
#[derive(Debug, Default)]
struct Side {
    part: Part,
    /// Offset of the head.
    head: u64,
    status: u16,
    length: Option<u64>,
    is_chunked: bool,
    /// By something else than chunks.
    is_coded: bool,
}

impl Side {
    fn goes_to(&mut self, part: Part, next: Next) -> Next {
        self.part = part;
        next
    }

    /// False: nobody could tell what this says.
    fn header(&mut self, item: &Item<'_>) -> bool {
        let line = item.line();
        let Some(colon) = line.iter().position(|b| *b == b':') else { return true };
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        if name.eq_ignore_ascii_case(b"content-length") {
            let length = decimal(value);
            let is_same = self.length.is_none() || self.length == length;
            self.length = length;
            return is_same && length.is_some() && item.is_whole();
        }
        if name.eq_ignore_ascii_case(b"transfer-encoding") {
            let last = value.rsplit(|b| *b == b',').next().unwrap_or_default().trim_ascii();
            self.is_chunked = last.eq_ignore_ascii_case(b"chunked");
            self.is_coded = !self.is_chunked;
            return item.is_whole();
        }
        true
    }
}

/// Both directions.
#[derive(Debug, Default)]
pub(super) struct Http1 {
    client: Side,
    server: Side,
}

impl Http1 {
    fn side(&mut self, from_client: bool) -> &mut Side {
        if from_client { &mut self.client } else { &mut self.server }
    }

    fn starts(&mut self, from_client: bool, item: &Item<'_>, pairs: &mut Pairs) -> Next {
        let line = item.line();
        // Some end a body by an empty line too many
        if line.is_empty() && item.len <= 2 {
            return LINE;
        }
        let mut side = Side { part: Part::Head, head: item.offset, ..Side::default() };
        if from_client {
            let Some(method) = method(line) else { return Next::Broken };
            if item.is_whole() && !line.ends_with(b" HTTP/1.1") && !line.ends_with(b" HTTP/1.0") {
                return Next::Broken;
            }
            pairs.request(method, item.began_ns, item.offset);
        } else {
            let Some(status) = status(line) else { return Next::Broken };
            side.status = status;
            if status >= 200 || status == 101 {
                pairs.answer(Status::Http(status), item.began_ns, item.offset);
            }
        }
        *self.side(from_client) = side;
        LINE
    }

    fn head_ends(&mut self, from_client: bool, end: u64, pairs: &mut Pairs) -> Next {
        let side = self.side(from_client);
        if !from_client {
            let what = pairs.answered();
            match (side.status, what) {
                (101, _) => return Next::Over,
                (100..=199, _) => return side.goes_to(Part::Start, LINE),
                // Whether a body follows depends on what was asked
                (_, None) => return Next::Broken,
                (200..=299, Some("CONNECT")) => return Next::Over,
                (204 | 304, _) | (_, Some("HEAD")) => return self.message_ends(from_client, end, pairs),
                _ => {}
            }
        }
        match side.length {
            _ if side.is_chunked => side.goes_to(Part::Size, LINE),
            // Until the connection is closed
            _ if side.is_coded && !from_client => Next::Over,
            None if !from_client => Next::Over,
            _ if side.is_coded => Next::Broken,
            None | Some(0) => self.message_ends(from_client, end, pairs),
            Some(length) => side.goes_to(Part::Body, Next::Want(Want::Bytes(length))),
        }
    }

    fn message_ends(&mut self, from_client: bool, end: u64, pairs: &mut Pairs) -> Next {
        if from_client {
            pairs.request_ends(end);
        } else {
            pairs.answer_ends(end);
        }
        self.side(from_client).goes_to(Part::Start, LINE)
    }
}

/// Of a line with the size of a chunk.
fn chunk_size(line: &[u8]) -> Option<u64> {
    let digits = line.split(|b| *b == b';').next()?.trim_ascii();
    let is_hex = !digits.is_empty() && digits.iter().all(u8::is_ascii_hexdigit);
    is_hex.then(|| u64::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok())?
}

impl Grammar for Http1 {
    fn item(&mut self, from_client: bool, item: &Item<'_>, pairs: &mut Pairs) -> Next {
        let side = self.side(from_client);
        let is_empty = item.len <= 2 && item.line().is_empty();
        match side.part {
            Part::Start => self.starts(from_client, item, pairs),
            Part::Head if item.end().saturating_sub(side.head) > LONGEST_HEAD => Next::Broken,
            Part::Head if is_empty => {
                let next = self.head_ends(from_client, item.end(), pairs);
                if next == Next::Over {
                    pairs.answer_ends(item.end());
                }
                next
            }
            Part::Head => {
                if side.header(item) {
                    LINE
                } else {
                    Next::Broken
                }
            }
            Part::Size => match chunk_size(item.line()) {
                Some(0) => side.goes_to(Part::Trailer, LINE),
                // With the end of its line
                Some(size) if size < u64::MAX - 2 => side.goes_to(Part::Chunk, Next::Want(Want::Bytes(size + 2))),
                _ => Next::Broken,
            },
            Part::Chunk => side.goes_to(Part::Size, LINE),
            Part::Trailer if !is_empty => LINE,
            Part::Trailer | Part::Body => self.message_ends(from_client, item.end(), pairs),
        }
    }

    fn cut(&mut self, from_client: bool, item: &Item<'_>, pairs: &mut Pairs) {
        if self.side(from_client).part == Part::Start {
            self.starts(from_client, &Item { len: u64::MAX, ..*item }, pairs);
        }
    }

    fn is_between(&self, from_client: bool) -> bool {
        let side = if from_client { &self.client } else { &self.server };
        side.part == Part::Start
    }

    fn restart(&mut self, from_client: bool) {
        *self.side(from_client) = Side::default();
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::Tap;
    use super::super::{Protocol, Tracker};
    use super::*;

    const GET: &[u8] = b"GET /a HTTP/1.1\r\nHost: b\r\n\r\n";
    const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";

    #[test]
    fn begins_like_http() {
        for yes in
            ["GET /", "POST /a HTTP/1.1", "CONNECT a:1", "OPTIONS *", "PROPFIND /x", "M-SEARCH /", "GET http://a/"]
        {
            assert_eq!(begins(yes.as_bytes()), Some(true), "{yes}");
        }
        for no in [
            "get /",
            "GET  /",
            "PRI * HTTP/2.0",
            "HELO a",
            "*1\r\n$4",
            "\x16\x03\x01",
            "GE /",
            "GET\r\n",
            "AAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
        ] {
            assert_eq!(begins(no.as_bytes()), Some(false), "{no}");
        }
        for open in ["", "G", "GET", "GET ", "FOO", "CONNECT "] {
            assert_eq!(begins(open.as_bytes()), None, "{open}");
        }
    }

    #[test]
    fn lines() {
        assert_eq!(status(b"HTTP/1.1 200 OK"), Some(200));
        assert_eq!(status(b"HTTP/1.0 404"), Some(404));
        for no in ["HTTP/2 200", "HTTP/1.1 20", "HTTP/1.1 2000", "HTTP/1.1  200", "HTTP/1.1 abc", "", "HTTP/1.1 099 x"]
        {
            assert_eq!(status(no.as_bytes()), None, "{no}");
        }
        assert_eq!(chunk_size(b"1aF;name=value"), Some(0x1af));
        assert_eq!(chunk_size(b"0"), Some(0));
        for no in ["", "-1", "+1", "x", "fffffffffffffffff"] {
            assert_eq!(chunk_size(no.as_bytes()), None, "{no}");
        }
    }

    #[test]
    fn keep_alive() {
        let mut tap = Tap::new();
        tap.client(GET)
            .server(OK)
            .client(b"PURGE /x HTTP/1.1\r\n\r\n")
            .server(b"HTTP/1.1 503 no\r\ncontent-length:0\r\n\r\n");
        tap.client(GET);
        assert_eq!(tap.said(), ["GET 200 10 ns 28 B 43 B", "other 503 10 ns 21 B 37 B"]);
        assert_eq!((tap.tracker.protocol(), tap.tracker.lost()), (Some(Protocol::Http1), 0));
        assert_eq!(tap.done[0].began_ns, 10);
    }

    #[test]
    fn pipelined() {
        let mut tap = Tap::new();
        tap.client(&[GET, b"DELETE /b HTTP/1.1\r\n\r\n", GET].concat());
        tap.server(OK).server(&[b"HTTP/1.1 204 No\r\n\r\n", OK].concat());
        assert_eq!(tap.said(), ["GET 200 10 ns 28 B 43 B", "DELETE 204 20 ns 22 B 19 B", "GET 200 20 ns 28 B 43 B"]);
    }

    #[test]
    fn bodies_and_their_absence() {
        let mut tap = Tap::new();
        let head_of = b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n";
        tap.client(b"HEAD / HTTP/1.1\r\n\r\n").server(head_of);
        tap.client(GET).server(b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5000\r\n\r\n");
        tap.client(b"POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\n").client(b"GET /").server(OK);
        tap.client(b"PUT / HTTP/1.1\r\nTransfer-Encoding: gzip, Chunked\r\n\r\n5;x=y\r\nGET /\r\n")
            .client(b"0\r\nA: b\r\n\r\n");
        tap.server(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n").server(b"00\r\n\r\n");
        tap.client(GET).server(OK);
        let what: Vec<_> = tap.said().iter().map(|s| s.split(' ').take(4).collect::<Vec<_>>().join(" ")).collect();
        assert_eq!(what, ["HEAD 200 10 ns", "GET 304 10 ns", "POST 200 20 ns", "PUT 200 20 ns", "GET 200 10 ns"]);
        assert_eq!((tap.done[2].request_bytes, tap.done[3].answer_bytes), (43, 61));
        assert_eq!(tap.tracker.lost(), 0);
    }

    #[test]
    fn bodies_pass_by_their_length() {
        let mut tap = Tap::new();
        tap.client(b"POST / HTTP/1.1\r\nContent-Length: 1000000\r\n\r\n");
        tap.cut(true, b"", 400_000).lose(true, 100_000).cut(true, b"POST / HTTP/1.1\r\n", 500_000);
        tap.cut(false, b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nab", 541).lose(false, 500).client(GET);
        tap.server(OK);
        assert_eq!(tap.said(), ["POST 200 40 ns 1000044 B 1041 B", "GET 200 10 ns 28 B 43 B"]);
        assert_eq!(tap.tracker.lost(), 0);
    }

    #[test]
    fn interim_answers() {
        let mut tap = Tap::new();
        tap.client(b"POST / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n");
        tap.server(b"HTTP/1.1 100 Continue\r\n\r\n")
            .client(b"ab")
            .server(b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n");
        tap.server(OK);
        assert_eq!(tap.said(), ["POST 200 40 ns 62 B 43 B"]);
    }

    #[test]
    fn other_protocols_take_over() {
        let mut tap = Tap::new();
        tap.client(GET)
            .server(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n\x81\x05hello")
            .client(GET)
            .server(OK);
        assert_eq!(tap.said(), ["GET 101 10 ns 28 B 56 B"]);
        assert!(tap.tracker.is_over());
        let mut tap = Tap::new();
        let connect = b"CONNECT a:443 HTTP/1.1\r\n\r\n";
        tap.client(connect).server(b"HTTP/1.1 407 no\r\nContent-Length: 2\r\n\r\nno").client(connect);
        tap.server(b"HTTP/1.1 200 OK\r\n\r\n").client(b"\x16\x03\x01").server(OK);
        assert_eq!(tap.said(), ["CONNECT 407 10 ns 26 B 40 B", "CONNECT 200 10 ns 26 B 19 B"]);
        assert!(tap.tracker.is_over());
        assert_eq!(tap.tracker.protocol(), Some(Protocol::Http1));
    }

    #[test]
    fn until_close() {
        let mut tap = Tap::new();
        tap.client(b"GET / HTTP/1.0\r\n\r\n").server(b"HTTP/1.0 200 OK\r\n\r\nabc").server(b"HTTP/1.0 500 No\r\n\r\n");
        assert_eq!(tap.said(), ["GET 200 10 ns 18 B 19 B"]);
        let mut tap = Tap::new();
        tap.client(GET).server(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n");
        assert!(tap.said().is_empty());
        tap.tracker.close(&mut tap.done);
        assert_eq!(tap.said(), ["GET 200 10 ns 28 B 55 B"]);
    }

    #[test]
    fn an_answer_before_the_request_has_ended() {
        let mut tap = Tap::new();
        tap.client(b"POST / HTTP/1.1\r\nContent-Length: 10\r\n\r\nabc")
            .server(b"HTTP/1.1 413 big\r\nContent-Length: 0\r\n\r\n");
        tap.client(b"defghij").client(GET).server(OK);
        assert_eq!(tap.said(), ["POST 413 10 ns 42 B 39 B", "GET 200 10 ns 28 B 43 B"]);
    }

    #[test]
    fn heads_that_are_cut_short() {
        let mut tap = Tap::new();
        for _ in 0..3 {
            tap.cut(true, b"GET /long", 900).cut(false, b"HTTP/1.1 404 No", 300).cut(false, b"whatever", 5000);
        }
        tap.client(GET).server(OK);
        let long = "GET 404 10 ns 900 B 300 B";
        assert_eq!(tap.said(), [long, long, long, "GET 200 10 ns 28 B 43 B"]);
        assert_eq!(tap.tracker.lost(), 0);
    }

    #[test]
    fn chunks_that_are_cut_short() {
        let mut tap = Tap::new();
        let head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab";
        for _ in 0..3 {
            tap.client(GET).cut(false, head, 5000).server(b"HTTP/1.1 500 in a chunk\r\n\r\n");
        }
        let one = "GET 200 10 ns 28 B 5000 B";
        assert_eq!(tap.said(), [one, one, one]);
        // Seen up to the end of a chunk: nothing is lost
        tap.client(GET)
            .cut(false, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab", 57)
            .server(b"0\r\n\r\n");
        assert_eq!(tap.said()[3], "GET 200 10 ns 28 B 62 B");
    }

    #[test]
    fn long_heads() {
        for (headers, is_told) in [(600, true), (700, false)] {
            let mut tap = Tap::new();
            tap.client(b"GET / HTTP/1.1\r\n");
            for _ in 0..headers {
                tap.client(&[b"X: ", &[b'y'; 95][..], b"\r\n"].concat());
            }
            tap.client(b"\r\n").server(OK).client(GET).server(OK);
            // Its method was told by its first line, and its answer is its own
            assert_eq!(tap.done.len(), 2);
            assert_eq!(tap.done[0].request_bytes, 18 + headers * 100, "{is_told}");
        }
        let mut tap = Tap::new();
        tap.client(GET).server(&[b"HTTP/1.1 200 OK\r\nX: ".as_slice(), &[b'y'; 70_000]].concat());
        assert_eq!(tap.said(), ["GET 200 10 ns 28 B 70020 B"]);
    }

    #[test]
    fn what_contradicts_itself() {
        for head in [
            "POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
            "POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
            "POST / HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n",
        ] {
            let mut tap = Tap::new();
            // The request is one, but nobody knows where it ends
            tap.client(head.as_bytes()).client(b"abc").server(OK).client(GET).server(OK);
            assert_eq!(tap.done.len(), 2, "{head}");
        }
        let mut tap = Tap::new();
        tap.client(b"GET / FTP/1.1\r\n\r\n").server(OK).client(GET).server(b"nonsense\r\n").client(GET).server(OK);
        assert_eq!(tap.said(), ["GET 200 10 ns 28 B 43 B"]);
        assert_eq!(tap.tracker.lost(), 1);
    }

    #[test]
    fn an_answer_to_nothing() {
        let mut tap = Tap::new();
        let timeout = b"HTTP/1.1 408 Timeout\r\nContent-Length: 0\r\n\r\n";
        tap.client(GET).server(OK).server(timeout).client(GET).server(OK);
        assert_eq!(tap.said(), ["GET 200 10 ns 28 B 43 B", "GET 200 10 ns 28 B 43 B"]);
    }

    #[test]
    fn only_others() {
        let mut tap = Tap { tracker: Tracker::new(Some(Protocol::Redis)), ..Tap::new() };
        tap.client(GET).server(OK);
        assert!(tap.done.is_empty() && tap.tracker.is_over() && tap.tracker.protocol().is_none());
    }
}
