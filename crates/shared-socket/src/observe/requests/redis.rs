//! RESP, versions 2 and 3, as Redis talks it: commands and what answers them.

use super::pairs::Pairs;
use super::stream::{Item, Want, decimal};
use super::{Grammar, LINE, Next, Status};

/// Commands that are told by name, in order.
const COMMANDS: &str = "\
    ACL APPEND ASKING AUTH BGREWRITEAOF BGSAVE BITCOUNT BITFIELD BITFIELD_RO BITOP BITPOS BLMOVE BLMPOP BLPOP \
    BRPOP BRPOPLPUSH BZMPOP BZPOPMAX BZPOPMIN CLIENT CLUSTER COMMAND CONFIG COPY DBSIZE DEBUG DECR DECRBY DEL \
    DISCARD DUMP ECHO EVAL EVALSHA EVALSHA_RO EVAL_RO EXEC EXISTS EXPIRE EXPIREAT EXPIRETIME FAILOVER FCALL \
    FCALL_RO FLUSHALL FLUSHDB FUNCTION GEOADD GEODIST GEOHASH GEOPOS GEORADIUS GEORADIUSBYMEMBER \
    GEORADIUSBYMEMBER_RO GEORADIUS_RO GEOSEARCH GEOSEARCHSTORE GET GETBIT GETDEL GETEX GETRANGE GETSET HDEL HELLO \
    HEXISTS HEXPIRE HEXPIREAT HEXPIRETIME HGET HGETALL HGETDEL HGETEX HINCRBY HINCRBYFLOAT HKEYS HLEN HMGET HMSET \
    HPERSIST HPEXPIRE HPEXPIREAT HPEXPIRETIME HPTTL HRANDFIELD HSCAN HSET HSETEX HSETNX HSTRLEN HTTL HVALS INCR \
    INCRBY INCRBYFLOAT INFO KEYS LASTSAVE LATENCY LCS LINDEX LINSERT LLEN LMOVE LMPOP LOLWUT LPOP LPOS LPUSH \
    LPUSHX LRANGE LREM LSET LTRIM MEMORY MGET MIGRATE MODULE MONITOR MOVE MSET MSETNX MULTI OBJECT PERSIST PEXPIRE \
    PEXPIREAT PEXPIRETIME PFADD PFCOUNT PFMERGE PING PSETEX PSUBSCRIBE PSYNC PTTL PUBLISH PUBSUB PUNSUBSCRIBE QUIT \
    RANDOMKEY READONLY READWRITE RENAME RENAMENX REPLCONF REPLICAOF RESET RESTORE ROLE RPOP RPOPLPUSH RPUSH RPUSHX \
    SADD SAVE SCAN SCARD SCRIPT SDIFF SDIFFSTORE SELECT SET SETBIT SETEX SETNX SETRANGE SHUTDOWN SINTER SINTERCARD \
    SINTERSTORE SISMEMBER SLAVEOF SLOWLOG SMEMBERS SMISMEMBER SMOVE SORT SORT_RO SPOP SPUBLISH SRANDMEMBER SREM \
    SSCAN SSUBSCRIBE STRLEN SUBSCRIBE SUBSTR SUNION SUNIONSTORE SUNSUBSCRIBE SWAPDB SYNC TIME TOUCH TTL TYPE \
    UNLINK UNSUBSCRIBE UNWATCH WAIT WAITAOF WATCH XACK XADD XAUTOCLAIM XCLAIM XDEL XGROUP XINFO XLEN XPENDING \
    XRANGE XREAD XREADGROUP XREVRANGE XSETID XTRIM ZADD ZCARD ZCOUNT ZDIFF ZDIFFSTORE ZINCRBY ZINTER ZINTERCARD \
    ZINTERSTORE ZLEXCOUNT ZMPOP ZMSCORE ZPOPMAX ZPOPMIN ZRANDMEMBER ZRANGE ZRANGEBYLEX ZRANGEBYSCORE ZRANGESTORE \
    ZRANK ZREM ZREMRANGEBYLEX ZREMRANGEBYRANK ZREMRANGEBYSCORE ZREVRANGE ZREVRANGEBYLEX ZREVRANGEBYSCORE ZREVRANK \
    ZSCAN ZSCORE ZUNION ZUNIONSTORE";
const LONGEST_COMMAND: usize = 24;
/// Elements of one list, bytes of one string: Redis itself allows less.
const MOST_ELEMENTS: u64 = i32::MAX as u64;
const LONGEST_STRING: u64 = 1 << 40;

/// What a command is called.
fn command(word: &[u8]) -> &'static str {
    let matches = |name: &&str| name.as_bytes().eq_ignore_ascii_case(word);
    if word.len() > LONGEST_COMMAND { None } else { COMMANDS.split(' ').find(matches) }.unwrap_or("other")
}

/// After its answer come messages that answer nothing.
fn is_last(what: &str) -> bool {
    what == "MONITOR" || what == "SYNC" || what == "PSYNC" || is_subscription(what)
}

fn is_subscription(what: &str) -> bool {
    what.ends_with("SUBSCRIBE")
}

/// Does a command begin like this (`*2`, then `$3`)? `None`: more bytes would tell.
pub(super) fn begins(seen: &[u8]) -> Option<bool> {
    let rest = match seen {
        [] => return None,
        [b'*', rest @ ..] => rest,
        _ => return Some(false),
    };
    let digits = rest.iter().take_while(|b| b.is_ascii_digit()).count();
    match &rest[digits..] {
        _ if digits > 10 => Some(false),
        [] => None,
        [b'\r'] | [b'\r', b'\n'] if digits > 0 => None,
        [b'\r', b'\n', b'$', ..] => Some(digits > 0),
        _ => Some(false),
    }
}

/// Is it a command as one types it (`PING`)? A line of HTTP is none.
pub(super) fn begins_inline(seen: &[u8]) -> Option<bool> {
    if !seen.first().is_none_or(u8::is_ascii_alphabetic) {
        return Some(false);
    }
    let Some(end) = seen.iter().position(|b| *b == b'\n') else {
        let is_text = seen.iter().all(|b| b.is_ascii_graphic() || b" \t\r".contains(b));
        return if is_text { None } else { Some(false) };
    };
    let line = seen[..end].trim_ascii();
    Some(
        command(words(line).next().unwrap_or_default()) != "other"
            && !line.ends_with(b" HTTP/1.1")
            && !line.ends_with(b" HTTP/1.0"),
    )
}

fn words(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty())
}

/// The number behind the sign of a type. `-1` is null: `Some(None)`.
fn number(text: &[u8], most: u64) -> Option<Option<u64>> {
    if text == b"-1" {
        return Some(None);
    }
    decimal(text).filter(|n| *n <= most).map(Some)
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Part {
    #[default]
    Line,
    Block,
}

/// What the client sends.
#[derive(Debug, Default)]
struct Commands {
    part: Part,
    /// Arguments of the present command that are to come, and its first byte.
    left: u64,
    began: (u64, u64),
    /// Arguments that were there.
    argument: u64,
    is_client: bool,
}

/// What the server sends.
#[derive(Debug, Default)]
struct Replies {
    part: Part,
    /// Values of the present reply that are to come. Nesting needs no memory: a list only adds to them.
    left: u64,
    /// These are of an attribute, and the reply itself comes afterwards.
    is_attribute: bool,
    /// A reply, or the attributes before it, has begun: its first byte.
    began: Option<(u64, u64)>,
    /// The next value tells what kind of push message this is.
    is_push: bool,
}

/// Both directions.
#[derive(Debug, Default)]
pub(super) struct Redis {
    commands: Commands,
    replies: Replies,
}

/// `CLIENT REPLY` changes what is answered at all: nothing can be told any more.
fn silences(word: Option<&[u8]>) -> bool {
    word.is_some_and(|word| word.eq_ignore_ascii_case(b"REPLY"))
}

/// What a reply of this type says to a command.
fn answers(kind: u8) -> Option<Status> {
    match kind {
        b'-' | b'!' => Some(Status::Error),
        b'+' | b':' | b',' | b'#' | b'_' | b'(' | b'$' | b'=' | b'*' | b'~' | b'%' => Some(Status::Ok),
        _ => None,
    }
}

impl Commands {
    fn line(&mut self, item: &Item<'_>, pairs: &mut Pairs) -> Next {
        let line = item.line();
        match line {
            // An argument
            [b'$', length @ ..] if self.left > 0 => match number(length, LONGEST_STRING) {
                Some(Some(length)) => {
                    self.part = Part::Block;
                    Next::Want(Want::Bytes(length + 2))
                }
                _ => Next::Broken,
            },
            _ if self.left > 0 => Next::Broken,
            [b'*', count @ ..] => match number(count, MOST_ELEMENTS) {
                Some(count) => {
                    *self = Self { left: count.unwrap_or(0), began: (item.began_ns, item.offset), ..Self::default() };
                    LINE
                }
                None => Next::Broken,
            },
            // As one types it
            [first, ..] if first.is_ascii_graphic() || *first == b' ' => {
                let mut words = words(line);
                let what = command(words.next().unwrap_or_default());
                if what == "CLIENT" && silences(words.next()) {
                    return Next::Over;
                }
                pairs.request(what, item.began_ns, item.offset);
                pairs.request_ends(item.end());
                LINE
            }
            [] => LINE,
            _ => Next::Broken,
        }
    }

    fn argument(&mut self, item: &Item<'_>, pairs: &mut Pairs) -> Next {
        let word = item.line();
        if self.argument == 0 {
            let what = command(word);
            self.is_client = what == "CLIENT";
            pairs.request(what, self.began.0, self.began.1);
        } else if self.argument == 1 && self.is_client && silences(Some(word)) {
            return Next::Over;
        }
        self.part = Part::Line;
        self.argument += 1;
        self.left -= 1;
        if self.left == 0 {
            pairs.request_ends(item.end());
        }
        LINE
    }
}

impl Replies {
    fn line(&mut self, item: &Item<'_>, pairs: &mut Pairs) -> Next {
        let [kind, rest @ ..] = item.line() else { return Next::Broken };
        let of_each = match kind {
            b'+' | b'-' | b':' | b',' | b'#' | b'_' | b'(' | b'$' | b'!' | b'=' => 0,
            b'*' | b'~' | b'>' => 1,
            b'%' | b'|' => 2,
            _ => return Next::Broken,
        };
        let size = match kind {
            b'$' | b'!' | b'=' => number(rest, LONGEST_STRING),
            _ if of_each > 0 => number(rest, MOST_ELEMENTS),
            _ => Some(None),
        };
        let Some(size) = size else { return Next::Broken };
        let began = *self.began.get_or_insert((item.began_ns, item.offset));
        let is_top = self.left == 0;
        if is_top {
            self.left = 1;
            // A push message answers nothing, unless it tells that a subscription is made
            self.is_push = *kind == b'>';
            if let Some(status) = answers(*kind) {
                pairs.answer(status, began.0, began.1);
            }
        }
        if of_each == 0 {
            let Some(length) = size else { return self.value(item, pairs) };
            self.part = Part::Block;
            return Next::Want(Want::Bytes(length + 2));
        }
        // No reply lasts until this overflows, but nobody keeps a peer from trying
        let Some(left) = self.left.checked_add(of_each * size.unwrap_or(0)) else { return Next::Broken };
        self.left = left;
        match kind {
            // What it is an attribute of is still to come
            b'|' if !is_top => LINE,
            b'|' => {
                self.is_attribute = true;
                self.value_ends(item.end(), pairs)
            }
            _ => self.value_ends(item.end(), pairs),
        }
    }

    /// A value that is no list.
    fn value(&mut self, item: &Item<'_>, pairs: &mut Pairs) -> Next {
        self.part = Part::Line;
        if std::mem::take(&mut self.is_push) {
            let kind = item.line();
            let is_told = kind.len() >= 9 && kind[kind.len() - 9..].eq_ignore_ascii_case(b"subscribe");
            if is_told && pairs.oldest().is_some_and(is_subscription) {
                let (at_ns, offset) = self.began.unwrap_or((item.began_ns, item.offset));
                pairs.answer(Status::Ok, at_ns, offset);
            }
        }
        self.value_ends(item.end(), pairs)
    }

    fn value_ends(&mut self, end: u64, pairs: &mut Pairs) -> Next {
        self.left -= 1;
        if self.left > 0 || std::mem::take(&mut self.is_attribute) {
            return LINE;
        }
        *self = Self::default();
        let is_over = pairs.answered().is_some_and(is_last);
        pairs.answer_ends(end);
        if is_over { Next::Over } else { LINE }
    }
}

impl Grammar for Redis {
    fn item(&mut self, from_client: bool, item: &Item<'_>, pairs: &mut Pairs) -> Next {
        let part = if from_client { self.commands.part } else { self.replies.part };
        if part == Part::Block && item.is_whole() && !item.bytes.ends_with(b"\r\n") {
            return Next::Broken;
        }
        match (from_client, part) {
            (true, Part::Line) => self.commands.line(item, pairs),
            (true, Part::Block) => self.commands.argument(item, pairs),
            (false, Part::Line) => self.replies.line(item, pairs),
            (false, Part::Block) => self.replies.value(item, pairs),
        }
    }

    fn cut(&mut self, from_client: bool, item: &Item<'_>, pairs: &mut Pairs) {
        // A long error tells as much by its first byte as by all
        if !from_client
            && self.replies.left == 0
            && let Some(status) = item.bytes.first().and_then(|kind| answers(*kind))
        {
            let (at_ns, offset) = self.replies.began.unwrap_or((item.began_ns, item.offset));
            pairs.answer(status, at_ns, offset);
        }
    }

    fn is_between(&self, from_client: bool) -> bool {
        if from_client { self.commands.left == 0 } else { self.replies.began.is_none() }
    }

    fn restart(&mut self, from_client: bool) {
        if from_client {
            self.commands = Commands::default();
        } else {
            self.replies = Replies::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Tap, command as ask};
    use super::super::{Protocol, Tracker};
    use super::*;

    #[test]
    fn names() {
        let names: Vec<&str> = COMMANDS.split(' ').collect();
        assert!(names.is_sorted() && names.len() > 200);
        assert!(
            names.iter().all(|n| n.len() <= LONGEST_COMMAND && n.bytes().all(|b| b.is_ascii_uppercase() || b == b'_'))
        );
        assert_eq!(
            (command(b"get"), command(b"GET"), command(b"GET SET"), command(b"")),
            ("GET", "GET", "other", "other")
        );
    }

    #[test]
    fn begins_like_redis() {
        for yes in ["*1\r\n$4\r\nPING\r\n", "*12\r\n$"] {
            assert_eq!(begins(yes.as_bytes()), Some(true), "{yes}");
        }
        for no in ["PING\r\n", "*\r\n", "*a", "*1\n", "*1\r\nx", "*99999999999", "$3"] {
            assert_eq!(begins(no.as_bytes()), Some(false), "{no}");
        }
        for open in ["", "*", "*1", "*1\r", "*1\r\n"] {
            assert_eq!(begins(open.as_bytes()), None, "{open}");
        }
        assert_eq!(begins_inline(b"ping\r\n"), Some(true));
        assert_eq!(begins_inline(b"GET a\n"), Some(true));
        assert_eq!(begins_inline(b"GET / HTTP/1.1\r\n"), Some(false));
        assert_eq!(begins_inline(b"HELO a\r\n"), Some(false));
        assert_eq!(begins_inline(b"\x16\x03"), Some(false));
        assert_eq!(begins_inline(b"PIN"), None);
    }

    #[test]
    fn pipelines() {
        let mut tap = Tap::new();
        tap.client(&[ask("set a 1"), ask("GET a"), ask("FOO.BAR")].concat())
            .server(b"+OK\r\n$1\r\n1\r\n")
            .server(b"-ERR unknown\r\n");
        assert_eq!(tap.said(), ["SET ok 10 ns 27 B 5 B", "GET ok 10 ns 20 B 7 B", "other error 20 ns 17 B 14 B"]);
        assert_eq!(tap.tracker.protocol(), Some(Protocol::Redis));
    }

    #[test]
    fn replies_of_all_types() {
        let replies = [
            "+OK\r\n",
            ":-1\r\n",
            "$-1\r\n",
            "$0\r\n\r\n",
            "*-1\r\n",
            "*0\r\n",
            "*2\r\n*1\r\n:1\r\n*2\r\n$3\r\n*1\r\r\n*-1\r\n",
            "_\r\n",
            "#t\r\n",
            ",1.5\r\n",
            "(3492890328409238509324850943850943825024385\r\n",
            "=6\r\ntxt:ab\r\n",
            "%2\r\n+a\r\n*1\r\n:1\r\n+b\r\n%0\r\n",
            "~2\r\n:1\r\n:2\r\n",
            "|1\r\n+ttl\r\n:5\r\n*1\r\n|1\r\n+x\r\n%1\r\n+y\r\n:1\r\n:7\r\n",
            "|0\r\n+OK\r\n",
            "*1\r\n-ERR inside\r\n",
        ];
        let mut tap = Tap::new();
        for reply in replies {
            tap.client(&ask("GET a")).server(reply.as_bytes());
        }
        let want: Vec<_> = replies.iter().map(|r| format!("GET ok 10 ns 20 B {} B", r.len())).collect();
        assert_eq!(tap.said(), want);
        tap.client(&ask("EVAL x")).server(b"!5\r\nERR x\r\n");
        assert_eq!(tap.said().last().unwrap(), "EVAL error 10 ns 21 B 11 B");
        assert_eq!(tap.tracker.lost(), 0);
    }

    #[test]
    fn push_messages_answer_nothing() {
        let mut tap = Tap::new();
        tap.client(&ask("GET a")).server(b">2\r\n$10\r\ninvalidate\r\n*1\r\n$1\r\nb\r\n$1\r\n1\r\n").server(b">0\r\n");
        tap.client(&ask("GET b")).server(b"|1\r\n+a\r\n+b\r\n>1\r\n+x\r\n").server(b":1\r\n");
        assert_eq!(tap.said(), ["GET ok 10 ns 20 B 7 B", "GET ok 20 ns 20 B 4 B"]);
    }

    #[test]
    fn subscribers_are_left_alone() {
        for (command, reply) in [
            ("SUBSCRIBE a b", "*3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:1\r\n"),
            ("SUBSCRIBE a b", ">3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:1\r\n"),
            ("PSUBSCRIBE a*", ">3\r\n+psubscribe\r\n$1\r\na\r\n:1\r\n"),
            ("MONITOR", "+OK\r\n"),
        ] {
            let mut tap = Tap::new();
            tap.client(&ask("PING"))
                .server(b"+PONG\r\n")
                .client(&ask(command))
                .server(reply.as_bytes())
                .server(reply.as_bytes());
            tap.client(&ask("GET a")).server(b"+OK\r\n");
            assert_eq!(tap.done.len(), 2, "{command}");
            assert!(command.starts_with(tap.done[1].what) && tap.tracker.is_over());
        }
        let mut tap = Tap::new();
        tap.client(&ask("SYNC")).server(b"$100\r\n").lose(false, 102).server(b"*1\r\n$4\r\nPING\r\n");
        assert!(tap.done.len() == 1 && tap.tracker.is_over());
        let mut tap = Tap::new();
        tap.client(&[ask("SUBSCRIBE a"), ask("GET b")].concat()).server(b">2\r\n+invalidate\r\n*0\r\n");
        assert!(tap.done.is_empty() && !tap.tracker.is_over());
        tap.server(b"-NOPERM\r\n");
        assert_eq!((tap.said().len(), tap.tracker.lost()), (1, 1));
    }

    #[test]
    fn silence_is_not_understood() {
        for silent in [ask("CLIENT REPLY OFF"), b"client reply skip\r\n".to_vec()] {
            let mut tap = Tap::new();
            tap.client(&ask("CLIENT SETNAME reply"))
                .server(b"+OK\r\n")
                .client(&ask("GET a"))
                .client(&silent)
                .server(b"+OK\r\n");
            assert_eq!(tap.said().len(), 1);
            assert!(tap.tracker.is_over() && tap.tracker.lost() >= 1);
        }
    }

    #[test]
    fn transactions() {
        let mut tap = Tap::new();
        tap.client(&ask("MULTI")).server(b"+OK\r\n").client(&[ask("INCR a"), ask("INCR b"), ask("EXEC")].concat());
        tap.server(b"+QUEUED\r\n+QUEUED\r\n*2\r\n:1\r\n-ERR\r\n");
        let what: Vec<_> = tap.done.iter().map(|r| (r.what, r.status, r.answer_bytes)).collect();
        let ok = Status::Ok;
        assert_eq!(what, [("MULTI", ok, 5), ("INCR", ok, 9), ("INCR", ok, 9), ("EXEC", ok, 14)]);
    }

    #[test]
    fn inline_commands() {
        let mut tap = Tap { tracker: Tracker::new(Some(Protocol::Redis)), ..Tap::new() };
        tap.client(b"PI")
            .client(b"NG\r\n")
            .server(b"+PONG\r\n")
            .client(b"\r\nset a  b\nget a\r\n*0\r\n")
            .server(b"+OK\r\n+b\r\n");
        assert_eq!(tap.said(), ["PING ok 20 ns 6 B 7 B", "SET ok 10 ns 9 B 5 B", "GET ok 10 ns 7 B 4 B"]);
        let mut tap = Tap { tracker: Tracker::new(Some(Protocol::Redis)), ..Tap::new() };
        tap.client(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        assert!(tap.tracker.is_over());
        // After the first command in an array, one as typed may follow, whatever is looked for
        let mut tap = Tap::new();
        tap.client(&ask("GET a")).server(b"+a\r\n").client(b"PING\r\n").server(b"+PONG\r\n");
        assert_eq!(tap.said()[1], "PING ok 10 ns 6 B 7 B");
    }

    #[test]
    fn long_strings_pass_by_their_length() {
        let mut tap = Tap::new();
        tap.cut(true, b"*3\r\n$3\r\nSET\r\n$1\r\na\r\n$100000\r\nabc", 60_000)
            .lose(true, 30_000)
            .cut(true, b"", 10_031);
        tap.server(b"+OK\r\n").client(&ask("GET a")).cut(false, b"$100000\r\nabc", 100_011);
        tap.client(&ask("DEL a")).server(b":1\r\n");
        let want = ["SET ok 30 ns 100031 B 5 B", "GET ok 10 ns 20 B 100011 B", "DEL ok 10 ns 20 B 4 B"];
        assert_eq!(tap.said(), want);
    }

    #[test]
    fn pipelines_that_are_cut_short() {
        let mut tap = Tap::new();
        for _ in 0..3 {
            // Two of four commands are seen; the answers to all
            tap.cut(true, &[ask("GET a"), ask("GET b"), b"*2\r\n$".to_vec()].concat(), 80);
            tap.server(b"+a\r\n-b\r\n+c\r\n").server(b"+d\r\n");
        }
        let (a, b) = ("GET ok 10 ns 20 B 4 B", "GET error 10 ns 20 B 4 B");
        assert_eq!(tap.said(), [a, b, a, b, a, b]);
        let mut tap = Tap::new();
        for _ in 0..3 {
            tap.client(&[ask("LRANGE a 0 9"), ask("GET b")].concat())
                .cut(false, b"*10\r\n:1\r\n:", 80)
                .server(b"+b\r\n");
        }
        assert_eq!(tap.said(), ["LRANGE ok 10 ns 37 B 80 B"; 3]);
        assert_eq!(tap.tracker.lost(), 3);
        let mut tap = Tap::new();
        tap.client(&ask("GET b")).cut(false, b"-ERR a long", 80).client(&ask("GET b")).server(b"+b\r\n");
        assert_eq!(tap.said(), ["GET error 10 ns 20 B 80 B", "GET ok 10 ns 20 B 4 B"]);
    }

    #[test]
    fn nonsense() {
        for reply in ["hello\r\n", "$x\r\n", "*99999999999999\r\n", "\r\n", "$3\r\nabcde\r\n", "*1\r\n?\r\n"] {
            let mut tap = Tap::new();
            tap.client(&ask("GET a")).server(reply.as_bytes()).client(&ask("GET b")).server(b"+b\r\n");
            assert_eq!(tap.done.last().unwrap().status, Status::Ok, "{reply}");
            assert_eq!(tap.done.len() as u64 + tap.tracker.lost(), 2, "{reply}");
        }
        for sent in ["*1\r\n+PING\r\n", "*1\r\n$-1\r\n", "*-2\r\n", "\x01\r\n", "*1\r\n$1\r\nabc\r\n"] {
            let mut tap = Tap::new();
            tap.client(&ask("GET a"))
                .server(b"+a\r\n")
                .client(sent.as_bytes())
                .server(b"-ERR\r\n")
                .client(&ask("GET b"))
                .server(b"+b\r\n");
            assert_eq!(tap.said(), ["GET ok 10 ns 20 B 4 B"; 2], "{sent}");
        }
        // Deep lists only count
        let mut tap = Tap::new();
        tap.client(&ask("GET a")).server(&b"*1\r\n".repeat(100_000)).server(b":1\r\n");
        assert_eq!(tap.said(), ["GET ok 10 ns 20 B 400004 B"]);
    }
}
