//! What one end of a connection sends, cut into lines and blocks: HTTP/1 and RESP are made of nothing else.
//!
//! Of each only the beginning is kept, so that memory is bounded whatever the network says. A block passes by its length,
//! seen or not; a line must be seen.

/// Of a line or a block so much is kept: what is looked at (a method, the headers that frame a body) is shorter.
const KEPT: usize = 256;
/// A line that is longer than this is none.
const LONGEST_LINE: u64 = 64 << 10;

/// What comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Want {
    /// All up to a line feed.
    Line,
    /// So many bytes; never 0.
    Bytes(u64),
    /// Nothing that could be understood: the thread is lost.
    Lost,
}

/// Bytes in a row. Those that were sent and are not seen come last.
#[derive(Debug, Clone, Copy)]
pub(super) struct Run<'a> {
    pub at_ns: u64,
    pub offset: u64,
    pub seen: &'a [u8],
    pub unseen: u64,
}

impl Run<'_> {
    fn pass(&mut self, bytes: u64) {
        let of_seen = bytes.min(self.seen.len() as u64);
        self.seen = &self.seen[of_seen as usize..];
        self.unseen -= bytes - of_seen;
        self.offset += bytes;
    }

    fn left(&self) -> u64 {
        self.seen.len() as u64 + self.unseen
    }
}

/// A line or a block.
#[derive(Debug, Clone, Copy)]
pub(super) struct Item<'a> {
    /// Its beginning.
    pub bytes: &'a [u8],
    /// With the end of the line.
    pub len: u64,
    /// When its first byte was sent.
    pub began_ns: u64,
    /// Of its first byte.
    pub offset: u64,
}

impl Item<'_> {
    /// The offset behind it.
    pub fn end(&self) -> u64 {
        self.offset.saturating_add(self.len)
    }

    /// All of it was kept.
    pub fn is_whole(&self) -> bool {
        self.bytes.len() as u64 == self.len
    }

    /// Without the end of the line.
    pub fn line(&self) -> &[u8] {
        let line = self.bytes.strip_suffix(b"\n").unwrap_or(self.bytes);
        line.strip_suffix(b"\r").unwrap_or(line)
    }
}

/// What a run gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Taken {
    /// [`Stream::item`] is complete.
    Item,
    /// A line goes on in bytes that are not seen, or has no end. [`Stream::item`] is its beginning.
    Cut,
    /// The run is used up.
    All,
}

/// One direction of a connection.
#[derive(Debug)]
pub(super) struct Stream {
    /// The offset that the next piece should have, once it is known.
    pub next: Option<u64>,
    want: Want,
    kept: Vec<u8>,
    /// Bytes of the present item so far.
    passed: u64,
    began_ns: u64,
    offset: u64,
    /// The present item is complete; the next byte begins another.
    is_complete: bool,
}

impl Stream {
    pub fn new() -> Self {
        Self { next: None, want: Want::Lost, kept: Vec::new(), passed: 0, began_ns: 0, offset: 0, is_complete: true }
    }

    /// Begins anew: what is half read is forgotten.
    pub fn restart(&mut self, want: Want) {
        self.want = want;
        self.kept.clear();
        self.passed = 0;
        self.is_complete = true;
    }

    /// What comes after the item that was just taken.
    pub fn want(&mut self, want: Want) {
        self.want = want;
    }

    pub fn is_lost(&self) -> bool {
        self.want == Want::Lost
    }

    /// Nothing is half read.
    pub fn is_between(&self) -> bool {
        self.is_complete
    }

    /// So many bytes may pass unseen without harm.
    pub fn may_miss(&self, bytes: u64) -> bool {
        matches!(self.want, Want::Bytes(left) if left >= bytes)
    }

    /// The item that was taken last.
    pub fn item(&self) -> Item<'_> {
        Item { bytes: &self.kept, len: self.passed, began_ns: self.began_ns, offset: self.offset }
    }

    /// Takes an item from a run.
    pub fn take(&mut self, run: &mut Run<'_>) -> Taken {
        if run.left() == 0 {
            return Taken::All;
        }
        if self.is_complete && self.want != Want::Lost {
            self.kept.clear();
            self.passed = 0;
            (self.began_ns, self.offset) = (run.at_ns, run.offset);
            self.is_complete = false;
        }
        match self.want {
            Want::Lost => run.pass(run.left()),
            Want::Line => {
                let end = run.seen.iter().position(|b| *b == b'\n');
                let bytes = end.map_or(run.seen.len(), |at| at + 1);
                self.keep(run, bytes as u64);
                self.is_complete = end.is_some();
                if self.passed > LONGEST_LINE || !self.is_complete && run.unseen > 0 {
                    return Taken::Cut;
                }
            }
            Want::Bytes(left) => {
                let bytes = left.min(run.left());
                self.keep(run, bytes);
                self.want = Want::Bytes(left - bytes);
                self.is_complete = left == bytes;
            }
        }
        if self.is_complete && self.want != Want::Lost { Taken::Item } else { Taken::All }
    }

    fn keep(&mut self, run: &mut Run<'_>, bytes: u64) {
        // What is kept is the beginning, without holes
        let room = if self.passed == self.kept.len() as u64 { KEPT.saturating_sub(self.kept.len()) } else { 0 };
        let kept = room.min(run.seen.len()).min(usize::try_from(bytes).unwrap_or(usize::MAX));
        self.kept.extend_from_slice(&run.seen[..kept]);
        self.passed = self.passed.saturating_add(bytes);
        run.pass(bytes);
    }

    /// Memory that it holds, besides its own.
    #[cfg(test)]
    pub fn memory(&self) -> usize {
        self.kept.capacity()
    }
}

/// A number in decimal digits, and nothing else.
pub(super) fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(seen: &[u8], unseen: u64) -> Run<'_> {
        Run { at_ns: 1, offset: 10, seen, unseen }
    }

    #[test]
    fn lines_and_blocks() {
        let mut stream = Stream::new();
        stream.restart(Want::Line);
        let mut some = run(b"one\r\n\ntwo", 0);
        assert_eq!(stream.take(&mut some), Taken::Item);
        assert_eq!((stream.item().line(), stream.item().offset, stream.item().end()), (&b"one"[..], 10, 15));
        assert_eq!(stream.take(&mut some), Taken::Item);
        assert_eq!(stream.item().line(), b"");
        assert_eq!(stream.take(&mut some), Taken::All);
        assert!(!stream.is_between());
        let mut more = Run { at_ns: 2, offset: 19, seen: b"\nabc", unseen: 5 };
        assert_eq!(stream.take(&mut more), Taken::Item);
        assert_eq!((stream.item().line(), stream.item().began_ns), (&b"two"[..], 1));
        stream.want(Want::Bytes(8));
        assert_eq!(stream.take(&mut more), Taken::Item);
        assert_eq!((stream.item().bytes, stream.item().len), (&b"abc"[..], 8));
        assert_eq!(stream.take(&mut more), Taken::All);
    }

    #[test]
    fn a_line_must_be_seen_a_block_need_not() {
        let mut stream = Stream::new();
        stream.restart(Want::Line);
        assert_eq!(stream.take(&mut run(b"GET /", 7)), Taken::Cut);
        assert_eq!(stream.item().bytes, b"GET /");
        stream.restart(Want::Bytes(u64::MAX));
        assert!(stream.may_miss(u64::MAX));
        assert_eq!(stream.take(&mut run(b"", 7)), Taken::All);
        assert_eq!(stream.take(&mut run(b"seen", 0)), Taken::All);
        assert!(stream.item().bytes.is_empty(), "no hole is kept");
        assert!(!stream.may_miss(u64::MAX));
    }

    #[test]
    fn little_is_kept() {
        let mut stream = Stream::new();
        stream.restart(Want::Line);
        let mut taken = Taken::All;
        for _ in 0..=LONGEST_LINE {
            assert_eq!(taken, Taken::All);
            taken = stream.take(&mut run(b"x", 0));
        }
        assert_eq!(taken, Taken::Cut);
        assert!(stream.memory() <= 2 * KEPT);
    }

    #[test]
    fn decimals() {
        assert_eq!(decimal(b"012"), Some(12));
        for no in [&b""[..], b"+1", b"-1", b" 1", b"1a", b"99999999999999999999"] {
            assert_eq!(decimal(no), None);
        }
    }
}
