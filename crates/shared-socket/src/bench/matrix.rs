//! What is measured: cases, message sizes, placements and paths, and the choice among them.

use std::fmt;

use anyhow::{Result, bail};
use clap::ValueEnum;
use serde::{Serialize, Serializer};

/// What the two ends do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Case {
    /// One message there, one back, time of the round trip
    Pingpong,
    /// Small messages in one direction
    Oneway,
    /// Large writes in one direction
    Stream,
    /// Connect, one request, one reply, close
    Crr,
    /// Ping-pong through a service address: DNAT and masquerade
    Nat,
    /// An attached client and a server that is not: must cost nothing
    Remote,
    /// sockperf: ping-pong (64 B, half a round trip) and throughput (1 KiB)
    Sockperf,
    /// redis-benchmark GET; its size is the number of connections
    Redis,
}

/// Which CPUs the two ends are pinned to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Placement {
    /// Both ends on the first CPU
    OneCore,
    /// The client on the first CPU, the server on the second
    TwoCore,
}

/// The way the bytes take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Path {
    /// TCP in cgroups that nothing is attached to
    Tcp,
    /// Shared Socket, every pair eligible
    Fast,
    /// A Unix stream socket
    Uds,
    /// The textbook sockmap program keyed by 4-tuple
    Tuple,
    /// As fast, while every message is captured; only when asked for
    Captured,
    /// As fast, while requests are looked at (case redis); only when asked for
    Requests,
}

impl Path {
    /// What is measured when nothing is asked for.
    pub const USUAL: [Self; 4] = [Self::Tcp, Self::Fast, Self::Uds, Self::Tuple];

    /// By Shared Socket.
    pub fn is_accelerated(self) -> bool {
        matches!(self, Self::Fast | Self::Captured | Self::Requests)
    }

    /// While somebody looks at the messages.
    pub fn is_watched(self) -> bool {
        matches!(self, Self::Captured | Self::Requests)
    }
}

/// How a figure is expressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Microseconds: less is better.
    Micros,
    /// Gigabits per second: more is better.
    Gigabits,
    /// Thousands per second: more is better.
    Thousands,
}

/// A message size in bytes (for [`Case::Redis`] a number of connections).
pub type Size = u64;

/// One thing to measure, on one placement, by several paths.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cell {
    /// What the ends do.
    pub case: Case,
    /// With which size.
    pub size: Size,
    /// On which CPUs.
    pub placement: Placement,
    /// By which paths, in order.
    pub paths: Vec<Path>,
}

/// What the user chose; an empty list means everything.
#[derive(Clone, Debug, Default)]
pub struct Choice {
    /// Cases.
    pub cases: Vec<Case>,
    /// Sizes.
    pub sizes: Vec<Size>,
    /// Placements.
    pub placements: Vec<Placement>,
    /// Paths.
    pub paths: Vec<Path>,
}

impl Case {
    /// The sizes this case is measured with.
    pub fn sizes(self) -> &'static [Size] {
        match self {
            Self::Pingpong => &[64, 1 << 10, 16 << 10],
            Self::Oneway => &[64, 1 << 10],
            Self::Stream => &[16 << 10, 64 << 10, 256 << 10, 1 << 20],
            Self::Crr | Self::Nat => &[64],
            Self::Remote => &[64, 64 << 10],
            Self::Sockperf => &[64, 1 << 10],
            Self::Redis => &[1, 50],
        }
    }

    /// Whether the case makes sense on a path.
    pub fn runs_on(self, path: Path) -> bool {
        match self {
            Self::Redis => !matches!(path, Path::Uds | Path::Tuple),
            _ if path == Path::Requests => false,
            Self::Pingpong | Self::Oneway | Self::Stream | Self::Crr => true,
            Self::Nat | Self::Remote => path != Path::Uds,
            Self::Sockperf => !matches!(path, Path::Uds | Path::Tuple),
        }
    }

    /// What the figure of this case and size is.
    pub fn unit(self, size: Size) -> Unit {
        match self {
            Self::Pingpong | Self::Nat => Unit::Micros,
            Self::Oneway | Self::Stream => Unit::Gigabits,
            Self::Crr | Self::Redis => Unit::Thousands,
            Self::Remote | Self::Sockperf if size == 64 => Unit::Micros,
            Self::Remote | Self::Sockperf => Unit::Gigabits,
        }
    }

    /// Whether messages of this case belong on the fast path. A connection that lives for one request, and one whose
    /// other end is not attached, do not.
    pub fn is_for_the_fast_path(self) -> bool {
        !matches!(self, Self::Crr | Self::Remote)
    }

    /// The size as a person writes it.
    pub fn size_label(self, size: Size) -> String {
        match self {
            Self::Redis => format!("-c {size}"),
            _ => size_label(size),
        }
    }
}

impl Unit {
    /// Whether a smaller figure is the better one.
    pub fn less_is_better(self) -> bool {
        self == Self::Micros
    }
}

impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Micros => "us",
            Self::Gigabits => "Gbit/s",
            Self::Thousands => "k/s",
        })
    }
}

impl Serialize for Unit {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

macro_rules! display_as_value {
    ($($kind:ty),*) => {$(
        impl fmt::Display for $kind {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self.to_possible_value() {
                    Some(value) => f.pad(value.get_name()),
                    None => Ok(()),
                }
            }
        }
    )*};
}
display_as_value!(Case, Placement, Path);

impl Choice {
    /// The cells to measure, in the order of the matrix.
    pub fn cells(&self) -> Result<Vec<Cell>> {
        let cases = or_all(&self.cases);
        if let Some(odd) = self.sizes.iter().find(|size| !cases.iter().any(|case| case.sizes().contains(size))) {
            let known: Vec<String> = cases
                .iter()
                .map(|case| {
                    let sizes: Vec<String> = case.sizes().iter().map(u64::to_string).collect();
                    format!("{case}: {}", sizes.join(", "))
                })
                .collect();
            bail!("--size {odd} is in none of the chosen cases; there are {}", known.join("; "));
        }
        let chosen = if self.paths.is_empty() { &Path::USUAL[..] } else { &self.paths };
        let paths = or_all(chosen);
        let mut cells = Vec::new();
        for case in cases {
            for &size in case.sizes().iter().filter(|size| self.sizes.is_empty() || self.sizes.contains(size)) {
                for placement in or_all(&self.placements) {
                    let paths: Vec<Path> = paths.iter().copied().filter(|path| case.runs_on(*path)).collect();
                    if !paths.is_empty() {
                        cells.push(Cell { case, size, placement, paths });
                    }
                }
            }
        }
        if cells.is_empty() {
            bail!(
                "nothing to measure: none of the chosen cases runs on the chosen paths (nat and remote have no uds, sockperf \
                 and redis have no uds and no tuple, requests is of redis only); widen --case or --path"
            );
        }
        Ok(cells)
    }
}

/// What was chosen, in the order of the enum and without repeats; everything if nothing was.
fn or_all<T: ValueEnum + Ord + Copy>(chosen: &[T]) -> Vec<T> {
    let mut all = if chosen.is_empty() { T::value_variants().to_vec() } else { chosen.to_vec() };
    all.sort();
    all.dedup();
    all
}

/// Reads `64`, `64B`, `16k`, `16KiB`, `1M`, `1MiB`.
pub fn parse_size(text: &str) -> Result<Size, String> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let factor = match text[digits.len()..].trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kb" | "kib" => 1 << 10,
        "m" | "mb" | "mib" => 1 << 20,
        other => return Err(format!("unknown unit {other:?}; write 64, 16k or 1M")),
    };
    match digits.parse::<u64>().ok().and_then(|number| number.checked_mul(factor)) {
        Some(size) if size > 0 => Ok(size),
        _ => Err("not a size; write 64, 16k or 1M".into()),
    }
}

/// Writes a size as a person does.
pub fn size_label(size: Size) -> String {
    match size {
        _ if size >= 1 << 20 && size.is_multiple_of(1 << 20) => format!("{} MiB", size >> 20),
        _ if size >= 1 << 10 && size.is_multiple_of(1 << 10) => format!("{} KiB", size >> 10),
        _ => format!("{size} B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        for (text, size) in
            [("64", 64), ("64B", 64), ("16k", 16384), ("16KiB", 16384), ("1M", 1 << 20), ("1 MiB", 1 << 20)]
        {
            assert_eq!(parse_size(text), Ok(size), "{text}");
        }
        for text in ["", "k", "-1", "0", "12x", "99999999999999999999", "99999999999999999M"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_label_reads_back() {
        for size in Case::value_variants().iter().flat_map(|case| case.sizes()) {
            assert_eq!(parse_size(&size_label(*size)), Ok(*size));
        }
    }

    #[test]
    fn everything_is_the_default_and_each_cell_is_there_once() {
        let cells = Choice::default().cells().unwrap();
        assert_eq!(cells.len(), 2 * (3 + 2 + 4 + 1 + 1 + 2 + 2 + 2));
        assert!(cells.iter().all(|cell| cell.paths.starts_with(&[Path::Tcp, Path::Fast])));
        let only = Choice {
            cases: vec![Case::Stream],
            sizes: vec![64 << 10],
            paths: vec![Path::Uds, Path::Tcp],
            ..Choice::default()
        };
        let cells = only.cells().unwrap();
        assert_eq!(cells.len(), 2);
        assert_eq!(cells[0].paths, [Path::Tcp, Path::Uds]);
    }

    #[test]
    fn an_impossible_choice_says_what_there_is() {
        let odd = Choice { cases: vec![Case::Oneway], sizes: vec![77], ..Choice::default() };
        assert!(odd.cells().unwrap_err().to_string().contains("oneway: 64, 1024"));
        let none = Choice { cases: vec![Case::Nat], paths: vec![Path::Uds], ..Choice::default() };
        assert!(none.cells().unwrap_err().to_string().contains("nothing to measure"));
    }

    #[test]
    fn names_are_those_of_the_report() {
        let json = serde_json::to_string(&(Case::Pingpong, Placement::OneCore, Path::Uds, Unit::Gigabits)).unwrap();
        assert_eq!(json, r#"["pingpong","one-core","uds","Gbit/s"]"#);
        assert_eq!(format!("{} {} {}", Case::Crr, Placement::TwoCore, Path::Tuple), "crr two-core tuple");
    }

    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_size_that_is_written_is_read(size in 1u64..1 << 50) {
            prop_assert_eq!(parse_size(&size_label(size)), Ok(size));
        }

        #[test]
        fn any_text_is_a_size_or_an_error(text in "[0-9]{0,22}[ kKmMiIbB\\PC]{0,5}") {
            prop_assert!(parse_size(&text).is_ok_and(|size| size > 0) || parse_size(&text).is_err());
        }
    }
}
