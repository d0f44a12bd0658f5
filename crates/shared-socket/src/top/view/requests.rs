//! The screen of requests.

use std::collections::BTreeMap;

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Style, Stylize};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Cell, Paragraph, Row, Table, Wrap};

use super::{clean, header, render};
use crate::observe::requests::Row as Sums;
use crate::top::requests::Requests;

const BAD: Style = Style::new().fg(Color::Red);
const LOST: Style = Style::new().fg(Color::Yellow);

/// Four characters: `999`, `9.9k`, `999k`, `9.9M`
fn short(n: u64) -> String {
    let units = [(1_000_000_000, "G"), (1_000_000, "M"), (1_000, "k")];
    match units.into_iter().find(|(unit, _)| n >= *unit) {
        None => n.to_string(),
        Some((unit, name)) if n < 10 * unit => format!("{}.{}{name}", n / unit, n % unit / (unit / 10)),
        Some((unit, name)) => format!("{}{name}", n / unit),
    }
}

/// Five characters: `999ns`, `9.9us`, `999us`, `1.2ms`, `3600s`
fn span(ns: u64) -> String {
    let units = [(1_000_000_000, "s"), (1_000_000, "ms"), (1_000, "us")];
    match units.into_iter().find(|(unit, _)| ns >= *unit) {
        None => format!("{ns}ns"),
        Some((unit, name)) if ns < 10 * unit => format!("{}.{}{name}", ns / unit, ns % unit / (unit / 10)),
        Some((unit, name)) => format!("{}{name}", ns / unit),
    }
}

/// The most frequent first.
fn sorted<'a>(counts: &'a BTreeMap<&'static str, u64>) -> Vec<(&'a &'static str, &'a u64)> {
    let mut list: Vec<_> = counts.iter().collect();
    list.sort_by(|a, b| b.1.cmp(a.1));
    list
}

fn counts(of: &BTreeMap<&'static str, u64>) -> String {
    sorted(of).iter().map(|(name, n)| format!("{name} {n}")).collect::<Vec<_>>().join(", ")
}

/// Sums over all rows, and what is not in them.
fn sums(requests: &Requests) -> Line<'static> {
    let rate = requests.rows.iter().fold(0.0, |sum, (_, rate)| sum + rate); // `sum` of nothing is -0
    let of = |what: fn(&Sums) -> u64| requests.rows.iter().map(|(row, _)| what(row)).sum::<u64>();
    let (all, errors) = (of(|row| row.requests), of(|row| row.errors));
    let mut line = Line::from(vec![
        Span::from(format!("{rate:.0} requests/s, {all} in all, ")),
        Span::styled(format!("{errors} errors"), if errors > 0 { BAD } else { Style::new() }),
    ]);
    for (count, what) in [(requests.seen.lost_pieces, "pieces"), (requests.seen.lost, "answers")] {
        if count > 0 {
            line.push_span(Span::styled(format!("; {what} lost: {count}"), LOST));
        }
    }
    line
}

pub(super) fn draw_requests(frame: &mut Frame<'_>, area: Rect, requests: &Requests, selected: usize) {
    let note = u16::from(requests.note.is_some());
    let [head, said, body, marked] =
        Layout::vertical([Constraint::Length(1), Constraint::Length(note), Constraint::Min(1), Constraint::Length(2)])
            .areas(area);
    frame.render_widget(sums(requests), head);
    frame.render_widget(Line::from(requests.note.as_deref().map(clean).unwrap_or_default()).dim(), said);
    if let Some(problem) = &requests.seen.problem {
        let text = Paragraph::new(clean(problem)).style(LOST).wrap(Wrap { trim: true });
        frame.render_widget(text, body);
        return;
    }
    let rows = requests.rows.iter().map(|(row, rate)| {
        let errors = Cell::from(short(row.errors)).style(if row.errors > 0 { BAD } else { Style::new() });
        let most: Vec<&str> = sorted(&row.by_what).iter().take(3).map(|(name, _)| **name).collect();
        Row::new([
            clean(&row.client).into(),
            clean(&row.server).into(),
            row.protocol.to_string().into(),
            short(rate.round() as u64).into(),
            short(row.requests).into(),
            errors,
            span(row.p50_ns).into(),
            span(row.p99_ns).into(),
            span(row.max_ns).into(),
            most.join(" ").into(),
        ])
    });
    let widths = [
        Constraint::Fill(3),
        Constraint::Fill(3),
        Constraint::Length(5),
        Constraint::Length(5),
        Constraint::Length(4),
        Constraint::Length(4),
        Constraint::Length(5),
        Constraint::Length(5),
        Constraint::Length(5),
        Constraint::Fill(2),
    ];
    let names = ["CLIENT", "SERVER", "PROTO", "REQ/S", "ALL", "ERRS", "P50", "P99", "MAX", "MOST"];
    render(frame, body, Table::new(rows, widths).header(header(&names)), selected);
    // the marked row, with all that is cut short above
    if let Some((row, _)) = requests.rows.get(selected) {
        let lines = vec![
            Line::from(format!("{} > {}", clean(&row.client), clean(&row.server))).bold(),
            Line::from(format!("{} requests: {}; {}", row.requests, counts(&row.by_status), counts(&row.by_what))),
        ];
        frame.render_widget(Paragraph::new(lines), marked);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_short() {
        let all = [0, 999, 1_000, 9_999, 10_000, 999_999, 1_000_000, 12_345_678_901].map(short);
        assert_eq!(all, ["0", "999", "1.0k", "9.9k", "10k", "999k", "1.0M", "12G"]);
        let all = [0, 999, 1_230, 999_999, 1_000_000, 45_600_000, 3_600_000_000_000].map(span);
        assert_eq!(all, ["0ns", "999ns", "1.2us", "999us", "1.0ms", "45ms", "3600s"]);
    }
}
