//! Which answer is for which request: both protocols answer in the order of asking, so a queue tells, as long as the thread is
//! not lost.

use std::collections::VecDeque;

use super::{Protocol, Request, Status};

/// Requests that wait for their answers. A connection with more is given up until it is quiet.
pub(super) const MOST_WAITING: usize = 4096;
/// For so long nobody must have said a word before a connection whose client does not wait for answers can be understood again
/// (or for [`QUIET_LONGEST`] times the longest that an answer took): whatever was asked before is answered by then.
const QUIET_NS: u64 = 50_000_000;
const QUIET_LONGEST: u64 = 8;

#[derive(Debug)]
struct Waiting {
    what: &'static str,
    began_ns: u64,
    offset: u64,
    /// Offset behind it, once it is known.
    end: Option<u64>,
    /// Number of the piece in which it began.
    piece: u64,
    /// Status, time and offset of its answer.
    answer: Option<(Status, u64, u64)>,
}

/// The queue of one connection.
#[derive(Debug)]
pub(super) struct Pairs {
    /// How they talk.
    pub protocol: Protocol,
    waiting: VecDeque<Waiting>,
    /// The youngest has not ended yet and is still in the queue.
    is_asking: bool,
    /// Requests may be added: none before them is unknown.
    pub open: bool,
    /// What has its answer, until it is fetched.
    pub done: Vec<Request>,
    /// Requests without answer, as the thread was lost.
    pub lost: u64,
    /// Offset that the client has come to.
    pub asked: u64,
    /// Number of the present piece.
    pub piece: u64,
    longest_ns: u64,
    /// The client is known not to wait for answers.
    overlaps: bool,
    /// It looks like that, if no answer was lost.
    seems_to_overlap: bool,
}

impl Pairs {
    pub fn new(protocol: Protocol) -> Self {
        Self {
            protocol,
            waiting: VecDeque::new(),
            is_asking: false,
            open: false,
            done: Vec::new(),
            lost: 0,
            asked: 0,
            piece: 0,
            longest_ns: 0,
            overlaps: false,
            seems_to_overlap: false,
        }
    }

    /// A request begins.
    pub fn request(&mut self, what: &'static str, began_ns: u64, offset: u64) {
        if self.open && self.waiting.len() == MOST_WAITING {
            self.open = false;
        }
        self.is_asking = self.open;
        if !self.open {
            self.lost = self.lost.saturating_add(1);
            return;
        }
        self.seems_to_overlap |= self.waiting.front().is_some_and(|first| first.piece != self.piece);
        self.waiting.push_back(Waiting { what, began_ns, offset, end: None, piece: self.piece, answer: None });
    }

    /// The youngest request ends.
    pub fn request_ends(&mut self, end: u64) {
        if std::mem::take(&mut self.is_asking)
            && let Some(youngest) = self.waiting.back_mut()
        {
            youngest.end = Some(end);
        }
    }

    /// A final answer begins: whose is it? When it is nobody's, something was not understood.
    pub fn answer(&mut self, status: Status, began_ns: u64, offset: u64) {
        match self.waiting.front_mut() {
            Some(first) if first.began_ns <= began_ns => first.answer = Some((status, began_ns, offset)),
            _ => self.lose(offset),
        }
    }

    /// What the oldest request is.
    pub fn oldest(&self) -> Option<&'static str> {
        self.waiting.front().map(|first| first.what)
    }

    /// The request that is being answered.
    pub fn answered(&self) -> Option<&'static str> {
        self.waiting.front().filter(|first| first.answer.is_some()).map(|first| first.what)
    }

    /// The answer ends.
    pub fn answer_ends(&mut self, end: u64) {
        let Some((status, at_ns, from)) = self.waiting.front().and_then(|first| first.answer) else { return };
        let Some(first) = self.waiting.pop_front() else { return };
        // An answer may come before its request has ended
        self.is_asking &= !self.waiting.is_empty();
        let duration_ns = at_ns.saturating_sub(first.began_ns);
        self.longest_ns = self.longest_ns.max(duration_ns);
        self.done.push(Request {
            protocol: self.protocol,
            what: first.what,
            status,
            began_ns: first.began_ns,
            duration_ns,
            request_bytes: first.end.unwrap_or(self.asked).saturating_sub(first.offset),
            answer_bytes: end.saturating_sub(from),
        });
    }

    /// The thread is lost: what has an answer is done, the others will never have one.
    pub fn lose(&mut self, end: u64) {
        self.answer_ends(end);
        self.lost = self.lost.saturating_add(self.waiting.len() as u64);
        self.waiting = VecDeque::new();
        self.is_asking = false;
        self.open = false;
    }

    /// The server sent on where it had stopped: no answer was lost.
    pub fn confirm(&mut self, is_whole: bool) {
        let seems = std::mem::take(&mut self.seems_to_overlap);
        self.overlaps |= seems && is_whole;
    }

    /// A message begins that looks like a request. Is all answered that was asked before? A client that waits for answers
    /// tells by asking; where it does not wait, only time tells.
    pub fn reopen(&mut self, is_turn: bool, quiet_ns: u64) {
        let calm = is_turn && self.waiting.is_empty();
        self.seems_to_overlap |= !calm;
        let quiet = quiet_ns >= QUIET_NS.max(self.longest_ns.saturating_mul(QUIET_LONGEST));
        self.open = calm && (quiet || !self.overlaps);
    }

    /// One was asked after another, in a message of its own.
    pub fn overlaps(&self) -> bool {
        let ends = self.waiting.front().zip(self.waiting.back());
        ends.is_some_and(|(first, last)| first.piece != last.piece)
    }

    /// Memory that it holds, besides its own.
    #[cfg(test)]
    pub fn memory(&self) -> usize {
        self.waiting.capacity() * size_of::<Waiting>() + self.done.capacity() * size_of::<Request>()
    }
}
