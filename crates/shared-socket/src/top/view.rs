//! How the screen looks.

mod requests;

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style, Stylize};
use ratatui::text::{Line, Text};
use ratatui::widgets::{Block, Clear, Paragraph, Row, Sparkline, Table, TableState};

use datapath::Sampling;

use self::requests::draw_requests;
use super::model::{Model, Screen};
use crate::observe::flows::Rate;
use crate::observe::map::rate as bytes_rate;
use crate::observe::{Connection, End, share};

const HELP: &str = "\
Up Down     mark a row (also k, j, PgUp, PgDn)
Enter       look closer
Esc         back
s           sort by the next key
r           the other way round
/           filter: dst port 6379 and not path fast
p           pause, go on
?           this help
q           end";

/// What the help says of screens, and below the keys.
fn screens(model: &Model) -> [&'static str; 2] {
    if model.requests.is_some() {
        return [
            "Tab         workloads, connections, requests (also l)",
            "Messages are copied for the requests, until the end.",
        ];
    }
    [
        "Tab         workloads, connections",
        "`top --requests` has requests (HTTP/1, Redis), too:\nmessages are copied while it runs, which takes time.",
    ]
}

fn clean(text: &str) -> String {
    text.chars().map(|l| if l.is_control() { '\u{fffd}' } else { l }).collect()
}

fn all_or(filter: &str) -> String {
    if filter.is_empty() { "all".into() } else { clean(filter) }
}

fn percent(share: f64) -> String {
    format!("{:.0}%", 100.0 * share)
}

fn fast_share(rate: &Rate, otherwise: f64) -> String {
    let whole = rate.messages();
    percent(if whole > 0.0 { rate.fast_messages / whole } else { otherwise })
}

fn path(c: &Connection) -> (&'static str, Style) {
    match c.path {
        datapath::Path::Fast => ("fast", Style::new().fg(Color::Cyan)),
        datapath::Path::Tcp => ("tcp", Style::new().fg(Color::Yellow)),
        datapath::Path::Left => ("left", Style::new().add_modifier(Modifier::DIM)),
    }
}

fn name(e: &Option<End>) -> String {
    e.as_ref().map_or_else(|| "(gone)".into(), |e| clean(&e.name()))
}

/// Draws all of it.
pub fn draw(frame: &mut Frame<'_>, model: &Model) {
    let [head, rates, body, foot] =
        Layout::vertical([Constraint::Length(1), Constraint::Length(3), Constraint::Min(3), Constraint::Length(1)])
            .areas(frame.area());
    let total = &model.total;
    let title = format!(
        "shared-socket top  {} connections  {:.0} messages/s  {}  {} fast{}",
        model.pairs.len(),
        total.messages(),
        bytes_rate(total.bytes()),
        fast_share(total, 0.0),
        if model.paused { "  PAUSED" } else { "" }
    );
    frame.render_widget(Line::from(title).bold(), head);
    draw_rates(frame, rates, model);
    match model.screen {
        Screen::Flows => draw_flows(frame, body, model),
        Screen::Pairs => draw_pairs(frame, body, model),
        Screen::Detail(_) => draw_detail(frame, body, model),
        Screen::Requests => {
            if let Some(requests) = &model.requests {
                draw_requests(frame, body, requests, model.selected);
            }
        }
    }
    let asked = model.requests.as_ref().filter(|_| model.screen == Screen::Requests);
    let sorted = match (asked, model.sorted) {
        (Some(requests), _) => format!("{:?}", requests.order).to_lowercase(),
        (None, Some(key)) => format!("{key:?}").to_lowercase(),
        (None, None) => "rate".into(),
    };
    let filter = match asked {
        Some(requests) => format!("filter of the start: {}", all_or(&requests.filter)),
        None => format!("/ filter: {}", all_or(&model.filter)),
    };
    let foot_text = match (&model.problem, model.typing) {
        (Some(problem), true) => format!("/{}_  {problem}", clean(&model.filter)),
        (None, true) => format!("/{}_", clean(&model.filter)),
        _ => format!(
            "? help  q end  Tab view  {filter}  s sort: {sorted}{}",
            if model.reverse { ", reversed" } else { "" }
        ),
    };
    frame.render_widget(Line::from(foot_text).reversed(), foot);
    if model.help {
        let area = frame.area();
        let [first, last] = screens(model);
        let text = Text::from(format!("{first}\n{HELP}\n\n{last}"));
        let (w, h) = (58.min(area.width), (text.height() as u16 + 2).min(area.height));
        let place = Rect::new((area.width - w) / 2, (area.height - h) / 2, w, h);
        frame.render_widget(Clear, place);
        frame.render_widget(Paragraph::new(text).block(Block::bordered().title(" Keys ")), place);
    }
}

fn spark(frame: &mut Frame<'_>, area: Rect, label: &str, values: impl Iterator<Item = u64>, style: Style) {
    let [left, right] = Layout::horizontal([Constraint::Length(22), Constraint::Min(1)]).areas(area);
    let all: Vec<u64> = values.collect();
    let now = all.last().copied().unwrap_or(0);
    frame.render_widget(Line::from(format!("{label} {now:>10}/s")), left);
    let shown = &all[all.len().saturating_sub(right.width.into())..];
    frame.render_widget(Sparkline::default().data(shown).style(style), right);
}

fn draw_rates(frame: &mut Frame<'_>, area: Rect, model: &Model) {
    let [fast, tcp, _] =
        Layout::vertical([Constraint::Length(1), Constraint::Length(1), Constraint::Length(1)]).areas(area);
    spark(frame, fast, "fast ", model.history.0.iter().copied(), Style::new().fg(Color::Cyan));
    spark(frame, tcp, "tcp  ", model.history.1.iter().copied(), Style::new().fg(Color::Yellow));
}

fn header(cells: &[&'static str]) -> Row<'static> {
    Row::new(cells.to_vec()).style(Style::new().add_modifier(Modifier::BOLD))
}

fn render(frame: &mut Frame<'_>, area: Rect, table: Table<'_>, selected: usize) {
    let mut state = TableState::default().with_selected(selected);
    let table = table.row_highlight_style(Style::new().add_modifier(Modifier::REVERSED)).highlight_symbol("> ");
    frame.render_stateful_widget(table, area, &mut state);
}

fn draw_flows(frame: &mut Frame<'_>, area: Rect, model: &Model) {
    let rows = model.flows.iter().map(|f| {
        Row::new([
            clean(&f.client),
            clean(&f.server),
            f.pairs.to_string(),
            format!("{:.0}", f.rate.messages()),
            bytes_rate(f.rate.bytes()),
            fast_share(&f.rate, f.fast_share),
        ])
    });
    let widths = [
        Constraint::Fill(1),
        Constraint::Fill(1),
        Constraint::Length(6),
        Constraint::Length(9),
        Constraint::Length(13),
        Constraint::Length(5),
    ];
    let table = Table::new(rows, widths).header(header(&["CLIENT", "SERVER", "PAIRS", "MSGS/S", "RATE", "FAST"]));
    render(frame, area, table, model.selected);
}

fn draw_pairs(frame: &mut Frame<'_>, area: Rect, model: &Model) {
    let rows = model.pairs.iter().map(|(c, rate)| {
        let (path, style) = path(c);
        Row::new([
            name(&c.client),
            name(&c.server),
            c.server.as_ref().map_or("-".into(), |e| e.port.to_string()),
            path.into(),
            c.reason().into(),
            format!("{:.0}", rate.messages()),
            bytes_rate(rate.bytes()),
        ])
        .style(style)
    });
    let widths = [
        Constraint::Fill(1),
        Constraint::Fill(1),
        Constraint::Length(5),
        Constraint::Length(4),
        Constraint::Length(12),
        Constraint::Length(8),
        Constraint::Length(13),
    ];
    let names = ["CLIENT", "SERVER", "PORT", "PATH", "REASON", "MSGS/S", "RATE"];
    render(frame, area, Table::new(rows, widths).header(header(&names)), model.selected);
}

fn draw_detail(frame: &mut Frame<'_>, area: Rect, model: &Model) {
    let Some((c, rate)) = model.detail() else {
        frame.render_widget(Line::from("this connection has ended (Esc: back)"), area);
        return;
    };
    let [text, waits, history] =
        Layout::vertical([Constraint::Min(1), Constraint::Length(1), Constraint::Length(2)]).areas(area);
    let mut lines = vec![Line::from(format!(
        "path {}, {:.0} s old, {:.0} messages/s, {}, {} of all messages fast",
        path(c).0,
        c.age_seconds,
        rate.messages(),
        bytes_rate(rate.bytes()),
        percent(c.fast_share())
    ))];
    for (role, end) in [("client", &c.client), ("server", &c.server)] {
        let Some(e) = end else {
            lines.push(Line::from(format!("{role}: closed")));
            continue;
        };
        let known = |n: Option<u64>| n.map_or("?".into(), |n| n.to_string());
        let process = e.command.as_ref().map_or("?".into(), |command| clean(command));
        lines.push(Line::from(format!("{role}  {}", clean(&e.name()))).bold());
        lines.push(Line::from(format!(
            "  {}  {}/{process}  {}",
            e.address(),
            e.pid.map_or("?".into(), |p| p.to_string()),
            e.state.unwrap_or("?")
        )));
        lines.push(Line::from(format!(
            "  sent {} messages ({} fast), {} bytes, {} handoffs",
            e.messages(),
            percent(share(e.fast_messages, e.messages())),
            e.bytes(),
            e.handoffs
        )));
        lines.push(Line::from(format!(
            "  unread: {} fast, {} TCP; unacknowledged: {}; reserved: {}",
            known(e.fast_unread_bytes),
            known(e.tcp_unread_bytes),
            known(e.tcp_unacked_bytes),
            e.reserved_bytes
        )));
        let reasons: Vec<String> = e.reasons.iter().map(|(name, n)| format!("{name} {n}")).collect();
        lines.push(Line::from(format!("  reasons: {}", reasons.join(", "))));
    }
    // the newest that there is room for
    let events = model.events_of(c);
    let room = usize::from(text.height).saturating_sub(lines.len() + 1);
    if !events.is_empty() && room > 0 {
        lines.push(Line::from("events").bold());
        for event in &events[events.len().saturating_sub(room)..] {
            let time = event.time.strftime("%H:%M:%S%.3fZ");
            lines.push(Line::from(format!("  {time} {}: {}", event.kind.name(), clean(&event.what()))));
        }
    }
    frame.render_widget(Paragraph::new(lines), text);
    let values = model.histories.get(&c.id()).into_iter().flatten().copied();
    spark(frame, history, "all  ", values, Style::new().fg(Color::Green));
    draw_waits(frame, waits, c, model);
}

fn duration(ns: u64) -> String {
    match ns {
        0..1_000 => format!("{ns} ns"),
        1_000..1_000_000 => format!("{} us", ns / 1_000),
        1_000_000..10_000_000_000 => format!("{} ms", ns / 1_000_000),
        _ => format!("{} s", ns / 1_000_000_000),
    }
}

/// Why there is no figure of a connection.
fn unsampled(c: &Connection, model: &Model) -> String {
    if c.ends().all(|e| e.fast_messages == 0) {
        return "nothing was fast yet".into();
    }
    match model.sampling {
        None => "nothing was sampled lately".into(),
        Some(Sampling::Never) => "not measured (attach --latency-samples; Linux 6.3)".into(),
        Some(Sampling::Everywhere(n)) => format!("one message in {n} is sampled, none was lately"),
        Some(Sampling::Safe(n)) => {
            format!("none of 1 in {n} lately; `all`: attach --latency-samples")
        }
    }
}

/// How long messages waited for their reader.
fn draw_waits(frame: &mut Frame<'_>, area: Rect, c: &Connection, model: &Model) {
    let history = model.waits.get(&c.id());
    let Some((history, newest)) = history.and_then(|h| Some((h, h.iter().rev().find_map(|ns| *ns)?))) else {
        frame.render_widget(Line::from(format!("wait p50 -  {}", unsampled(c, model))), area);
        return;
    };
    let [left, right] = Layout::horizontal([Constraint::Length(22), Constraint::Min(1)]).areas(area);
    frame.render_widget(Line::from(format!("wait p50 {:>9}", duration(newest))), left);
    let shown = history.iter().skip(history.len().saturating_sub(right.width.into())).copied();
    frame.render_widget(Sparkline::default().data(shown).style(Style::new().fg(Color::Magenta)), right);
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::super::model::Key;
    use super::super::requests::Requests;
    use super::*;
    use crate::observe::connections_for_tests as connection;
    use crate::observe::requests::{Protocol, Request, Seen, Status, Table};

    fn screen(model: &Model) -> String {
        let mut terminal = Terminal::new(TestBackend::new(80, 24)).unwrap();
        terminal.draw(|frame| draw(frame, model)).unwrap();
        terminal.backend().to_string()
    }

    fn model() -> Model {
        let mut model = Model::default();
        model.sample(vec![connection()], 1.0);
        for n in 1..20 {
            let mut later = connection();
            later.client.as_mut().unwrap().fast_messages += n * n * 10;
            later.server.as_mut().unwrap().tcp_bytes += n * 2048;
            model.sample(vec![later], 1.0);
        }
        model
    }

    #[test]
    fn flows_pairs_detail_help() {
        let mut model = model();
        insta::assert_snapshot!("flows", screen(&model));
        model.press(Key::Enter);
        insta::assert_snapshot!("pairs", screen(&model));
        model.press(Key::Enter);
        insta::assert_snapshot!("detail", screen(&model));
        model.sample(Vec::new(), 1.0);
        assert!(screen(&model).contains("has ended"));
        model.press(Key::Char('?'));
        assert!(screen(&model).contains("Keys"));
        assert!(!model.press(Key::Escape) && model.press(Key::Char('q')));
    }

    /// As many messages in a slot, that the server's end has read, as so many looks have found.
    fn waited(looks: &[(usize, u64)]) -> Model {
        let mut model = Model::default();
        let mut waits = datapath::Histogram::default();
        waits.0[20] = 1000; // before the first look
        for (slot, n) in looks {
            waits.0[*slot] += n;
            let mut c = connection();
            c.server.as_mut().unwrap().waits = Some(Box::new(waits));
            model.sample(vec![c], 1.0);
        }
        model.press(Key::Tab);
        model.press(Key::Enter);
        model
    }

    #[test]
    fn how_long_messages_wait() {
        let model = waited(&[(13, 0), (13, 4), (14, 4), (13, 0), (15, 4), (12, 1)]);
        insta::assert_snapshot!("waits", screen(&model));
        assert!(
            screen(&waited(&[(13, 1), (13, 9), (13, 0)])).contains("wait p50     12 us"),
            "the newest that there is"
        );
    }

    #[test]
    fn why_no_wait_is_known() {
        let mut model = waited(&[(13, 5), (13, 0)]);
        assert!(screen(&model).contains("wait p50 -  nothing was sampled lately"));
        for (sampling, words) in [
            (Sampling::Never, "not measured (attach --latency-samples; Linux 6.3)"),
            (Sampling::Safe(1 << 20), "none of 1 in 1048576 lately; `all`: attach --latency-samples"),
            (Sampling::Everywhere(64), "one message in 64 is sampled, none was lately"),
        ] {
            model.sampling = Some(sampling);
            assert!(screen(&model).contains(words), "{}", screen(&model));
        }
        let mut slow = connection();
        slow.client.as_mut().unwrap().fast_messages = 0;
        slow.server.as_mut().unwrap().fast_messages = 0;
        model.sample(vec![slow], 1.0);
        assert!(screen(&model).contains("nothing was fast yet"));
    }

    #[test]
    fn durations_are_short() {
        let all = [0, 999, 1_000, 999_999, 1_000_000, 9_999_999_999, 10_000_000_000].map(duration);
        assert_eq!(all, ["0 ns", "999 ns", "1 us", "999 us", "1 ms", "9999 ms", "10 s"]);
    }

    #[test]
    fn filter_sort_pause() {
        let mut model = model();
        for letter in "/port 80".chars() {
            model.press(Key::Char(letter));
        }
        assert!(model.pairs.is_empty() && screen(&model).contains("/port 80_"));
        model.press(Key::Char(' '));
        model.press(Key::Char('x'));
        assert!(screen(&model).contains("at column 9"));
        model.press(Key::Escape);
        assert_eq!(model.pairs.len(), 1);
        model.press(Key::Char('s'));
        assert!(screen(&model).contains("sort: age"));
        model.press(Key::Char('p'));
        model.sample(Vec::new(), 1.0);
        assert!(model.pairs.len() == 1 && screen(&model).contains("PAUSED"));
    }

    /// A thousand requests in two looks, of which three went wrong.
    fn asked() -> Model {
        let mut model = model();
        model.requests = Some(Requests::default());
        let mut table = Table::new(9);
        for n in 0..1000u64 {
            let what = if n % 5 == 0 { "SET" } else { "GET" };
            let status = if n % 400 == 0 { Status::Error } else { Status::Ok };
            let request = |protocol, what, status| Request {
                protocol,
                what,
                status,
                began_ns: n,
                duration_ns: 12_000 + n * n,
                request_bytes: 30,
                answer_bytes: 5,
            };
            table.add("core/web-1/main", "core/redis-0/main", &request(Protocol::Redis, what, status));
            if n % 100 == 7 {
                let (from, to) = ("core/web-1/main", "\u{1b}a-namespace-with-a-long-name/api-7d9f8/main");
                table.add(from, to, &request(Protocol::Http1, "GET", Status::Http(200)));
            }
            if n == 499 {
                model.asked(Seen { rows: table.rows(), ..Seen::default() }, 1.0);
            }
        }
        model.asked(Seen { rows: table.rows(), lost: 1, lost_pieces: 17, problem: None }, 2.0);
        model
    }

    #[test]
    fn requests() {
        let mut model = asked();
        model.press(Key::Tab);
        model.press(Key::Tab);
        insta::assert_snapshot!("requests", screen(&model));
        model.press(Key::Char('/'));
        assert!(!model.typing, "a tap has its filter");
        model.press(Key::Char('s'));
        assert!(screen(&model).contains("sort: requests"));
        model.press(Key::Char('r'));
        model.press(Key::Down);
        assert!(model.requests.as_ref().unwrap().rows[0].0.requests == 10 && model.selected == 1);
        model.press(Key::Char('p'));
        model.asked(Seen::default(), 1.0);
        assert!(screen(&model).contains("1010 in all"));
        model.press(Key::Char('p'));
        let problem = Some("requests are not seen: 3 captures run already".to_owned());
        model.asked(Seen { problem, ..Seen::default() }, 1.0);
        assert!(screen(&model).contains("3 captures run already") && model.selected == 0);
        model.press(Key::Char('?'));
        assert!(screen(&model).contains("requests (also l)"));
        model.press(Key::Tab);
        model.press(Key::Escape);
        model.press(Key::Char('l'));
        assert_eq!(model.screen, Screen::Requests);
    }

    #[test]
    fn without_a_tap_there_are_no_requests() {
        let mut model = model();
        for key in [Key::Char('l'), Key::Tab, Key::Tab] {
            model.press(key);
        }
        assert_eq!(model.screen, Screen::Flows);
        model.press(Key::Char('?'));
        insta::assert_snapshot!("help", screen(&model));
    }

    #[test]
    fn no_size_panics() {
        let mut model = asked();
        for key in [Key::Tab, Key::Tab, Key::Char('l'), Key::Tab, Key::Tab, Key::Enter, Key::Char('?')] {
            for (w, h) in [(1, 1), (10, 3), (30, 6), (200, 60)] {
                let mut terminal = Terminal::new(TestBackend::new(w, h)).unwrap();
                terminal.draw(|frame| draw(frame, &model)).unwrap();
            }
            model.press(key);
        }
    }
}
