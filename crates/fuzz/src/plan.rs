//! What the two ends of a connection are going to do: a function of the seed and the connection's number, so that both
//! ends, and whoever judges them, know it.

use serde::{Deserialize, Serialize};

use crate::stream::Random;

/// Which connections are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mix {
    /// Anything an application may do.
    Safe,
    /// Without what the documentation excludes in `--eligibility all`: `MSG_WAITALL`, two threads on a blocking socket.
    All,
    /// Blocking sockets only, a thread each, that take turns: hazard H4.
    Blocking,
    /// Blocking sockets only, that write all and then read all while the other does the same: hazard H4.
    Burst,
    /// Lives of a moment, most of them ended roughly: the windows of the races.
    Rush,
    /// Short lives, for the soak.
    Churn,
}

/// Port classes: what is learned of one kind must not spoil another's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Non-blocking ends that read to the end.
    Clean = 0,
    /// Anything.
    Any = 1,
    /// As `Clean`, and so few bytes that they are no stream to `safe`, whoever reads them when.
    Small = 2,
}

impl Class {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Clean, Self::Any, Self::Small];
}

/// Bytes one way at most of [`Class::Small`]: half of what begins a stream (bpf/clean.bpf.h).
const SMALL: u64 = 128 << 10;

/// How an end reads and writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// Non-blocking, one thread, sends and receives in random order.
    Free,
    /// Non-blocking, one thread sends and one receives.
    TwoThreads,
    /// Both ends take turns, each turn of a size both know; `blocking` says how this end waits.
    Turns {
        /// The descriptor is a blocking one.
        blocking: bool,
    },
    /// Blocking: everything is written, then everything is read. So little that both can do it at once.
    Burst,
}

impl Manner {
    /// The descriptor is a blocking one.
    pub fn is_blocking(self) -> bool {
        matches!(self, Self::Turns { blocking: true } | Self::Burst)
    }
}

/// How an end finishes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// shutdown(SHUT_WR), read to the end, close.
    Shutdown,
    /// Read to the end, close.
    ReadThenClose,
    /// Close, whatever is unread.
    Close,
    /// `SO_LINGER` 0 and close: a RST.
    Abort,
    /// connect(AF_UNSPEC); a client connects the same socket again.
    Disconnect,
}

/// One end.
#[derive(Clone, Copy, Debug)]
pub struct Side {
    /// How it reads and writes.
    pub manner: Manner,
    /// Bytes that it sends if all goes well (not used by turns).
    pub total: u64,
    /// Never reads (free manner only).
    pub deaf: bool,
    /// How it ends.
    pub finish: Finish,
    /// In turns: the turn before which it ends; the number of turns or more: after all of them.
    pub quit_turn: usize,
    /// Chance in a hundred of a pause before an operation.
    pub pauses: u64,
}

/// How a client reaches a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// IPv4, pod to pod.
    V4,
    /// IPv6, pod to pod.
    V6,
    /// IPv4 address on an IPv6 socket.
    Mapped,
    /// A service address, translated and masqueraded.
    Service,
    /// 127.0.0.1.
    Loopback4,
    /// ::1.
    Loopback6,
}

/// A connection.
#[derive(Clone, Debug)]
pub struct Plan {
    /// How the client gets there.
    pub route: Route,
    /// Which listener.
    pub class: Class,
    /// The one that connects.
    pub client: Side,
    /// The one that accepts.
    pub server: Side,
    /// Turns: (the client's?, bytes).
    pub turns: Vec<(bool, u64)>,
    /// connect() on a blocking socket.
    pub blocking_connect: bool,
}

fn size(random: &mut Random) -> u64 {
    match random.below(100) {
        0..15 => 1,
        15..35 => random.between(1, 64),
        35..65 => random.between(1, 2000),
        65..90 => random.between(1, 40_000),
        90..98 => random.between(1, 300_000),
        _ => random.between(1, 1 << 20),
    }
}

fn finish(random: &mut Random, blocking_only: bool) -> Finish {
    match random.below(100) {
        0..40 => Finish::Shutdown,
        40..65 => Finish::ReadThenClose,
        65..85 => Finish::Close,
        85..95 => Finish::Abort,
        _ if blocking_only => Finish::Close,
        _ => Finish::Disconnect,
    }
}

impl Plan {
    /// The plan of a connection.
    pub fn new(seed: u64, connection: u32, mix: Mix) -> Self {
        let mut random = Random::new(seed, u64::from(connection));
        let random = &mut random;
        let route = *random.pick(&[
            Route::V4,
            Route::V4,
            Route::V4,
            Route::V6,
            Route::V6,
            Route::Mapped,
            Route::Service,
            Route::Service,
            Route::Loopback4,
            Route::Loopback6,
        ]);
        let kind = match mix {
            Mix::Safe => *random.pick(&["free", "free", "free", "two", "turns", "turns", "clean turns", "burst"]),
            Mix::All => *random.pick(&["free", "free", "two", "turns", "turns", "turns", "burst"]),
            Mix::Blocking => "blocking",
            Mix::Burst => "burst",
            Mix::Rush => *random.pick(&["free", "burst", "two"]),
            Mix::Churn => *random.pick(&["clean turns", "turns"]),
        };
        let manner = |random: &mut Random| match kind {
            "free" => Manner::Free,
            "two" => *random.pick(&[Manner::TwoThreads, Manner::Free]),
            "clean turns" => Manner::Turns { blocking: false },
            "blocking" => Manner::Turns { blocking: true },
            "burst" => Manner::Burst,
            _ => Manner::Turns { blocking: random.percent(60) },
        };
        let (one, other) = (manner(random), manner(random));
        let rush = mix == Mix::Rush;
        let count = if mix == Mix::Churn { random.between(1, 3) } else { random.between(1, 12) } as usize;
        let turns: Vec<(bool, u64)> = (0..count)
            .map(|_| (random.percent(50), if mix == Mix::Churn { random.between(1, 3000) } else { size(random) }))
            .collect();
        let side = |random: &mut Random, manner| {
            let many = random.between(1, 12);
            let total = match manner {
                // what two send buffers take, whoever reads
                Manner::Burst => {
                    *random.pick(&[0, 1, random.clone().between(1, 2000), random.clone().between(1, 40_000)])
                }
                _ if rush => random.clone().below(3000),
                _ => (0..many).map(|_| size(random)).sum(),
            };
            let deaf = manner == Manner::Free && random.percent(6);
            let mut finish = finish(random, matches!(mix, Mix::Blocking | Mix::Burst));
            if rush && random.percent(50) {
                finish = *random.pick(&[Finish::Disconnect, Finish::Disconnect, Finish::Abort, Finish::Close]);
            }
            // who never reads cannot read to the end
            if deaf && matches!(finish, Finish::Shutdown | Finish::ReadThenClose) {
                finish = Finish::Close;
            }
            let quit_turn = if random.percent(25) { random.below(count as u64) as usize } else { count };
            // who leaves in the middle must say so, or the other waits for its turn for ever
            if quit_turn < count && finish == Finish::ReadThenClose {
                finish = Finish::Shutdown;
            }
            let pauses = *random.pick(&[0, 0, 0, 5, 30]);
            Side { manner, total, deaf, finish, quit_turn, pauses }
        };
        let (client, mut server) = (side(random, one), side(random, other));
        // somebody must end it
        if client.finish == Finish::ReadThenClose && server.finish == Finish::ReadThenClose {
            server.finish = Finish::Shutdown;
        }
        // closing with bytes unread is a hazard of its kind, too
        let clean = |side: &Side| {
            let orderly = matches!(side.finish, Finish::Shutdown | Finish::ReadThenClose);
            !side.manner.is_blocking() && orderly && !side.deaf && side.quit_turn >= count
        };
        let sends = |side: &Side, is_client: bool| match side.manner {
            Manner::Turns { .. } => turns.iter().filter(|(of_client, _)| *of_client == is_client).map(|(_, n)| n).sum(),
            _ => side.total,
        };
        let class = match clean(&client) && clean(&server) {
            false => Class::Any,
            true if sends(&client, true).max(sends(&server, false)) <= SMALL => Class::Small,
            true => Class::Clean,
        };
        Self { route, class, client, server, turns, blocking_connect: random.percent(50) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_plan_comes_to_an_end() {
        for connection in 0..5000 {
            let plan = Plan::new(3, connection, Mix::Safe);
            let waits = |side: &Side| side.finish == Finish::ReadThenClose;
            assert!(!(waits(&plan.client) && waits(&plan.server)), "{plan:?}");
            assert!(!plan.client.deaf || !waits(&plan.client), "{plan:?}");
        }
    }

    #[test]
    fn blocking_ends_never_meet_the_clean_listener() {
        for connection in 0..5000 {
            let plan = Plan::new(4, connection, Mix::All);
            let blocks = |side: &Side| side.manner.is_blocking();
            assert!(plan.class == Class::Any || !(blocks(&plan.client) || blocks(&plan.server)), "{plan:?}");
        }
    }
}
