//! What the two ends of a connection saw, held against what plain TCP allows.
//!
//! Each end checks its bytes by itself. What only both together tell: that no byte is missing before an end of stream,
//! that an end of stream or a reset had a cause at the other end, and that a call which said EAGAIN on a blocking socket
//! is one of the cases that `--eligibility all` is documented to have.

use crate::end::{Ended, Record, Seen};
use crate::plan::Plan;

/// What is known of the run when a connection is judged.
#[derive(Clone, Copy, Debug)]
pub struct Context {
    /// `--eligibility all`: hazard H4's remainder is admissible.
    pub all: bool,
}

/// A connection's verdict.
#[derive(Clone, Debug, Default)]
pub struct Verdict {
    /// What plain TCP would not have done.
    pub failures: Vec<String>,
    /// EAGAIN of blocking calls, by case; admissible ones too.
    pub again: Vec<&'static str>,
    /// Resets seen, by call, error and cause.
    pub resets: Vec<String>,
    /// A send that said EPIPE or ECONNRESET one call earlier than TCP (documented: it crossed a close).
    pub early: u64,
    /// Only a probe brought the reset, which had a cause: the peer's own was dropped on its way, or never sent.
    pub untold: Vec<String>,
}

/// The other end's kind of end allows a reset to be seen.
fn may_reset(other: &Record, me: &Record) -> bool {
    match other.ended {
        Ended::Aborted | Ended::Disconnected => true,
        // closed with bytes unread, or bytes came after the close
        Ended::Closed => other.got < me.sent || me.seen_by_send,
    }
}

/// One end, given the other.
fn judge_end(me: &Record, other: &Record, context: Context, verdict: &mut Verdict) {
    let who = if me.server { "server" } else { "client" };
    let mut fail = |what: String| verdict.failures.push(format!("{who}: {what}"));
    if me.got > other.sent {
        fail(format!("received {} bytes, sent were {}", me.got, other.sent));
    }
    let in_order = (other.fin || other.ended == Ended::Closed) && me.got == other.sent;
    match me.seen {
        // where a send took the reset's error, 0 is what is left for recv to say
        Seen::Eof if in_order || ((me.seen_by_send || me.swallowed) && may_reset(other, me)) => {}
        Seen::Eof if me.got != other.sent => {
            fail(format!(
                "LOST: end of stream after {} bytes of {}, other end {other:?}, this end {me:?}",
                me.got, other.sent
            ));
        }
        Seen::Eof => fail(format!("end of stream without a FIN: other end {:?}", other.ended)),
        Seen::Reset if !may_reset(other, me) => {
            fail(format!("reset without a cause: other end {:?} having read {} of {}", other.ended, other.got, me.sent))
        }
        Seen::Reset => {
            if me.seen_by_send && other.ended == Ended::Closed && other.got == me.sent {
                // the peer had read all that was sent and closed: TCP takes the first send after that and answers
                // with a RST, so the error comes with the second
                verdict.early += 1;
            }
        }
        Seen::Open => {}
    }
    if me.seen == Seen::Reset && me.probed {
        verdict.untold.push(format!("{who}: only a probe brought the reset; other end {:?}", other.ended));
    }
    if me.seen == Seen::Reset {
        let by = if me.seen_by_send { "send" } else { "recv" };
        let state = match (other.ended, other.gave_up) {
            (_, true) => "gave up after EAGAIN",
            (Ended::Closed, _) if other.got < me.sent => "closed with bytes unread, or sent later",
            (Ended::Closed, _) => "closed having read all",
            (Ended::Aborted, _) => "aborted",
            (Ended::Disconnected, _) => "disconnected",
        };
        verdict.resets.push(format!("{by} said {}, other end {state}", me.error));
    }
    for again in &me.again {
        // the cases of a wake-up without data, all of them in the documentation of `all`
        let (fin_began, fin_ended) = again.fin_at;
        let calling = other.calls.iter().any(|&(began, ended)| began <= fin_ended && ended >= fin_began);
        let name = if again.then.contains("reset") || again.then.contains("pipe") {
            if may_reset(other, me) { "a RST came while it waited" } else { "" }
        } else if again.after_fin && (me.got > again.got_at_fin || me.gave_up) {
            // what arrived after the FIN was unread or in flight when it was sent
            "own FIN acknowledged, bytes were unread at it"
        } else if again.after_fin && calling {
            // the peer was in a call, so that its message, long delivered and read, counted as in flight (leave.bpf.h, L2)
            "own FIN acknowledged, the peer was in a call at it"
        } else if again.waited {
            "room in the send buffer after a send that waited"
        } else {
            ""
        };
        verdict.again.push(if name.is_empty() { "NO CAUSE" } else { name });
        if !context.all || name.is_empty() {
            verdict.failures.push(format!("{who}: a blocking recv said EAGAIN ({name}): {again:?}"));
        }
    }
    verdict.failures.extend(me.failures.iter().map(|failure| format!("{who}: {failure}")));
}

/// Both ends are known.
pub fn judge(client: &Record, server: &Record, context: Context) -> Verdict {
    let mut verdict = Verdict::default();
    judge_end(client, server, context, &mut verdict);
    judge_end(server, client, context, &mut verdict);
    verdict
}

/// Only one end is known: the other's process was killed, or it never learned which connection it was.
pub fn judge_alone(record: &Record, plan: &Plan, killed: bool) -> Vec<String> {
    let mut failures = record.failures.clone();
    if killed {
        return failures;
    }
    // a client that was reset, or reset it, before its first bytes were read
    let rough = record.ended != Ended::Closed || record.seen == Seen::Reset;
    let unread = record.got == 0 && matches!(plan.client.finish, crate::plan::Finish::Close);
    if record.server || !(rough || unread) {
        let who = if record.server { "server" } else { "client" };
        failures.push(format!("{who}: the other end never said what it saw"));
    }
    failures
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends(sent: u64) -> (Record, Record) {
        let client = Record { sent, fin: true, seen: Seen::Eof, ..Record::default() };
        let server = Record { server: true, got: sent, fin: true, seen: Seen::Eof, ..Record::default() };
        (client, server)
    }

    const CONTEXT: Context = Context { all: false };

    #[test]
    fn an_orderly_connection_passes() {
        let (client, server) = ends(100);
        assert_eq!(judge(&client, &server, CONTEXT).failures, Vec::<String>::new());
    }

    #[test]
    fn a_lost_tail_is_seen() {
        let (client, mut server) = ends(100);
        server.got = 90;
        assert!(judge(&client, &server, CONTEXT).failures.iter().any(|f| f.contains("LOST")));
    }

    #[test]
    fn a_reset_needs_a_cause() {
        let (mut client, mut server) = ends(100);
        server.seen = Seen::Reset;
        assert!(!judge(&client, &server, CONTEXT).failures.is_empty());
        client.ended = Ended::Aborted;
        assert!(judge(&client, &server, CONTEXT).failures.is_empty());
        client.ended = Ended::Closed;
        server.sent = 10; // unread at the client's close
        client.seen = Seen::Open;
        assert!(judge(&client, &server, CONTEXT).failures.is_empty());
    }

    #[test]
    fn an_end_of_stream_needs_a_fin() {
        let (mut client, server) = ends(5);
        client.fin = false;
        client.ended = Ended::Aborted;
        assert!(judge(&client, &server, CONTEXT).failures.iter().any(|f| f.contains("without a FIN")));
    }

    #[test]
    fn eagain_of_a_blocking_call_is_a_failure_in_safe() {
        let (mut client, server) = ends(5);
        client.got = 5;
        client.again.push(crate::end::Again { after_fin: true, ..Default::default() });
        let mut server = server;
        server.sent = 5;
        assert!(!judge(&client, &server, CONTEXT).failures.is_empty());
        assert!(judge(&client, &server, Context { all: true }).failures.is_empty());
        // nothing came after the FIN: that is no case of the documented ones
        client.again[0].got_at_fin = 5;
        client.again[0].fin_at = (100, 110);
        assert!(!judge(&client, &server, Context { all: true }).failures.is_empty());
        server.calls = vec![(10, 99), (111, 300)];
        assert!(!judge(&client, &server, Context { all: true }).failures.is_empty());
        // unless the peer was in a call just then
        server.calls.push((50, 105));
        assert!(judge(&client, &server, Context { all: true }).failures.is_empty());
        assert!(!judge(&client, &server, CONTEXT).failures.is_empty());
        server.calls.clear();
        // or room came back after a send that had to wait
        client.again[0].waited = true;
        assert!(judge(&client, &server, Context { all: true }).failures.is_empty());
    }
}
