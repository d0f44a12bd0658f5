//! What a bench found: rows, the machine they hold for, and their table.

use std::collections::BTreeMap;

use comfy_table::{Attribute, Cell as Field, CellAlignment, Color, ContentArrangement, LineStyle, Table, TableStyle};
use serde::Serialize;

use super::matrix::{Case, Cell, Path, Placement, Size, Unit};
use super::runner::Sample;
use super::stats::{Spread, share};

/// The machine a figure holds for.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// `uname -r`.
    pub kernel: String,
    /// `uname -m`.
    pub architecture: String,
    /// CPUs online.
    pub cpus: usize,
    /// The CPU's name for itself.
    pub model: String,
}

/// One case, size and placement by one path.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// What the ends did.
    pub case: Case,
    /// Bytes a message (redis: connections).
    pub size: Size,
    /// On which CPUs.
    pub placement: Placement,
    /// By which path.
    pub path: Path,
    /// The unit of `median`, `min` and `max`.
    pub unit: Unit,
    /// Over rounds, of the p50 or the rate.
    pub median: Option<f64>,
    /// The least of the rounds.
    pub min: Option<f64>,
    /// The most of the rounds.
    pub max: Option<f64>,
    /// Microseconds, median over rounds; only where round trips are timed.
    pub p90: Option<f64>,
    /// As `p90`.
    pub p99: Option<f64>,
    /// As `p90`.
    pub p999: Option<f64>,
    /// `median` over that of `tcp` in the same case, size and placement.
    pub ratio_to_tcp: Option<f64>,
    /// The part of the messages that took the fast path; only where there is one.
    pub fast_share: Option<f64>,
    /// Nobody saw a message, on a path of which that is the sense.
    #[serde(skip)]
    pub unseen: bool,
    /// How many rounds gave a figure.
    pub rounds: usize,
    /// How many rounds failed.
    pub failed: usize,
    /// What a reader must know about the row.
    pub notes: Vec<String>,
}

/// All of it.
#[derive(Clone, Debug, Serialize)]
pub struct Results {
    /// Where.
    pub machine: Machine,
    /// What.
    pub rows: Vec<Row>,
}

impl Machine {
    /// This machine.
    pub fn here() -> Self {
        let name = nix::sys::utsname::uname();
        let field = |get: fn(&nix::sys::utsname::UtsName) -> &std::ffi::OsStr| {
            name.as_ref().map(|name| get(name).to_string_lossy().into_owned()).unwrap_or_default()
        };
        let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let cpus =
            text.lines().filter(|line| line.split(':').next().is_some_and(|key| key.trim() == "processor")).count();
        Self {
            kernel: field(|name| name.release()),
            architecture: field(|name| name.machine()),
            cpus: cpus.max(1),
            model: model(&text),
        }
    }
}

/// The CPU's name in a `/proc/cpuinfo`; on arm64 its implementer and part.
fn model(text: &str) -> String {
    let value = |key: &str| {
        text.lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(name, _)| name.trim() == key)
            .map(|(_, value)| value.trim().to_owned())
    };
    value("model name").unwrap_or_else(|| match (value("CPU implementer"), value("CPU part")) {
        (Some(implementer), Some(part)) => format!("implementer {implementer} part {part}"),
        _ => "unknown".into(),
    })
}

impl Row {
    /// A row of what its rounds gave.
    pub fn new(cell: &Cell, path: Path, samples: &[Sample], failures: &[String]) -> Self {
        let spread = Spread::of(samples.iter().map(|sample| sample.value));
        let middle =
            |get: fn(&Sample) -> Option<f64>| Spread::of(samples.iter().filter_map(get)).map(|spread| spread.median);
        let sum = |get: fn(&Sample) -> u64| samples.iter().map(get).sum::<u64>();
        let (fast, tcp, again, nomem) = (sum(|s| s.fast), sum(|s| s.tcp), sum(|s| s.again), sum(|s| s.nomem));
        let fast_share = path.is_accelerated().then(|| share(fast, tcp).unwrap_or(0.0));
        let mut notes = Vec::new();
        if fast_share == Some(0.0) && cell.case.is_for_the_fast_path() && !samples.is_empty() {
            notes.push(format!("NO MESSAGE TOOK THE FAST PATH ({tcp} by TCP): this row shows nothing of it"));
        }
        if fast > 0 && cell.case == Case::Remote {
            notes.push(format!("{fast} messages on the fast path, though the other end is not attached"));
        }
        let (seen, lost) = (sum(|s| s.watched.messages), sum(|s| s.watched.lost));
        if path.is_watched() {
            let requests = sum(|s| s.watched.requests);
            let what = if path == Path::Requests { format!(", {requests} requests") } else { String::new() };
            notes.push(format!("{seen} messages seen{what}; {lost} pieces lost, as the buffer was full"));
        }
        let unseen = path.is_watched() && seen == 0 && !samples.is_empty();
        if again > 0 {
            notes.push(format!("a blocking call said EAGAIN {again} times and was repeated"));
        }
        if nomem > 0 {
            notes.push(format!("send said ENOMEM {nomem} times and was repeated"));
        }
        let mut reasons: BTreeMap<&str, usize> = BTreeMap::new();
        for failure in failures {
            *reasons.entry(failure).or_default() += 1;
        }
        let rounds = samples.len() + failures.len();
        notes.extend(reasons.iter().map(|(why, count)| format!("{count} of {rounds} rounds FAILED: {why}")));
        Self {
            case: cell.case,
            size: cell.size,
            placement: cell.placement,
            path,
            unit: cell.case.unit(cell.size),
            median: spread.map(|spread| spread.median),
            min: spread.map(|spread| spread.min),
            max: spread.map(|spread| spread.max),
            p90: middle(|sample| sample.p90),
            p99: middle(|sample| sample.p99),
            p999: middle(|sample| sample.p999),
            ratio_to_tcp: None,
            fast_share,
            unseen,
            rounds: samples.len(),
            failed: failures.len(),
            notes,
        }
    }

    /// Whether the row must not be taken for a measurement of its path.
    pub fn is_broken(&self) -> bool {
        self.failed > 0 || ((self.fast_share == Some(0.0) || self.unseen) && self.case.is_for_the_fast_path())
    }

    fn is_beside(&self, other: &Self) -> bool {
        (self.case, self.size, self.placement) == (other.case, other.size, other.placement)
    }
}

impl Results {
    /// Puts rows together and computes their ratios.
    pub fn new(machine: Machine, mut rows: Vec<Row>) -> Self {
        let tcp: Vec<Row> = rows.iter().filter(|row| row.path == Path::Tcp).cloned().collect();
        for row in &mut rows {
            let base = tcp.iter().find(|base| base.is_beside(row)).and_then(|base| base.median);
            row.ratio_to_tcp = row.median.zip(base).filter(|(_, base)| *base > 0.0).map(|(median, base)| median / base);
        }
        Self { machine, rows }
    }

    /// Whether any row is broken.
    pub fn is_broken(&self) -> bool {
        self.rows.iter().any(Row::is_broken)
    }

    /// The table for people.
    pub fn table(&self) -> String {
        let Machine { kernel, architecture, cpus, model } = &self.machine;
        let mut table = Table::new();
        let rule = LineStyle::none().fill('─').junction('─');
        table.load_style(TableStyle::new().header_separator(rule).bottom_border(rule));
        table.set_content_arrangement(ContentArrangement::Disabled);
        table.set_header([
            "case",
            "size",
            "placement",
            "path",
            "median",
            "",
            "min .. max",
            "p99",
            "p99.9",
            "x tcp",
            "fast share",
        ]);
        for (index, row) in self.rows.iter().enumerate() {
            let first = index == 0 || !self.rows[index - 1].is_beside(row);
            if first && index > 0 {
                // A blank line between groups reads better than a rule after every row.
                table.add_row([""; 11]);
            }
            table.add_row(fields(row, first));
        }
        for index in 4..11 {
            if let Some(column) = table.column_mut(index) {
                column.set_cell_alignment(if index == 5 { CellAlignment::Left } else { CellAlignment::Right });
            }
        }
        let mut text = format!(
            "{}\n\nLinux {kernel} {architecture}, {cpus} CPUs, {model}. Medians over rounds; us: less is better, /s: more.\n",
            table.trim_fmt()
        );
        for row in self.rows.iter().filter(|row| !row.notes.is_empty()) {
            let Row { case, size, placement, path, .. } = row;
            for note in &row.notes {
                text.push_str(&format!("* {case} {} {placement} {path}: {note}\n", case.size_label(*size)));
            }
        }
        text
    }
}

fn fields(row: &Row, first: bool) -> Vec<Field> {
    let once = |text: String| Field::new(if first { text } else { String::new() });
    let number = |value: Option<f64>| value.map(figure).unwrap_or_else(|| "-".into());
    let ratio = match row.ratio_to_tcp {
        Some(ratio) if row.path != Path::Tcp => {
            let field = Field::new(format!("{ratio:.2}"));
            let better = if row.unit.less_is_better() { ratio < 0.98 } else { ratio > 1.02 };
            let worse = if row.unit.less_is_better() { ratio > 1.02 } else { ratio < 0.98 };
            match (better, worse) {
                (true, _) => field.fg(Color::Green),
                (_, true) => field.fg(Color::Red),
                _ => field,
            }
        }
        _ => Field::new(""),
    };
    let share = match row.fast_share {
        Some(0.0) if row.is_broken() => Field::new("0 % !!!").fg(Color::Red).add_attribute(Attribute::Bold),
        Some(share) if share > 0.0 && share < 0.001 => Field::new("< 0.1 %"),
        Some(share) => Field::new(format!("{:.1} %", share * 100.0)),
        None => Field::new(""),
    };
    let mark = if row.failed > 0 { "FAILED " } else { "" };
    vec![
        once(row.case.to_string()),
        once(row.case.size_label(row.size)),
        once(row.placement.to_string()),
        Field::new(row.path),
        Field::new(format!("{mark}{}", number(row.median))),
        Field::new(row.unit),
        Field::new(format!("{} .. {}", number(row.min), number(row.max))),
        Field::new(number(row.p99)),
        Field::new(number(row.p999)),
        ratio,
        share,
    ]
}

/// Three digits or a little more.
pub fn figure(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(path: Path, samples: &[Sample], failures: &[String]) -> Row {
        let cell = Cell { case: Case::Pingpong, size: 64, placement: Placement::OneCore, paths: vec![path] };
        Row::new(&cell, path, samples, failures)
    }

    fn sample(value: f64, fast: u64, tcp: u64) -> Sample {
        Sample { value, p99: Some(value * 2.0), fast, tcp, ..Sample::default() }
    }

    fn machine() -> Machine {
        Machine { kernel: "6.18".into(), architecture: "x86_64".into(), cpus: 2, model: "m".into() }
    }

    #[test]
    fn a_ratio_is_to_tcp_of_the_same_cell() {
        let tcp = row(Path::Tcp, &[sample(20.0, 0, 0), sample(30.0, 0, 0), sample(22.0, 0, 0)], &[]);
        let fast = row(Path::Fast, &[sample(11.0, 9, 1)], &[]);
        let results = Results::new(machine(), vec![tcp, fast]);
        let fast = &results.rows[1];
        assert_eq!((fast.ratio_to_tcp, fast.fast_share, fast.p99), (Some(0.5), Some(0.9), Some(22.0)));
        assert_eq!(
            (results.rows[0].median, results.rows[0].min, results.rows[0].max),
            (Some(22.0), Some(20.0), Some(30.0))
        );
        assert!(!results.is_broken());
        assert!(results.table().contains("0.50"), "{}", results.table());
    }

    #[test]
    fn a_fast_row_without_fast_messages_says_so_loudly() {
        let results = Results::new(machine(), vec![row(Path::Fast, &[sample(11.0, 0, 7)], &[])]);
        assert!(results.is_broken());
        assert!(results.table().contains("NO MESSAGE TOOK THE FAST PATH (7 by TCP)"));
        assert_eq!(results.rows[0].ratio_to_tcp, None);
    }

    #[test]
    fn failures_are_counted_and_told() {
        let failures = vec!["the client hangs".to_owned(), "the client hangs".to_owned()];
        let row = row(Path::Tuple, &[], &failures);
        assert_eq!(row.notes, ["2 of 2 rounds FAILED: the client hangs"]);
        let json = serde_json::to_value(&row).unwrap();
        assert!(json["median"].is_null() && json["case"] == "pingpong" && json["unit"] == "us");
    }

    #[test]
    fn a_cpu_names_itself() {
        assert_eq!(model("processor\t: 0\nmodel\t\t: 2\nmodel name\t: Fast CPU\n"), "Fast CPU");
        assert_eq!(
            model("processor\t: 0\nCPU implementer\t: 0x41\nCPU part\t: 0xd0c\n"),
            "implementer 0x41 part 0xd0c"
        );
        assert_eq!(model(""), "unknown");
    }
}
