//! A picture of what goes between workloads: the same graph as JSON, for Graphviz, and as a drawing of our own.

use std::collections::{BTreeMap, BTreeSet};
use std::f64::consts::TAU;
use std::fmt::Write as _;

use serde::Serialize;

use super::flows::{Flow, Key, Rate};
use super::{Name, human};

/// Workloads, and what goes between them.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Map {
    /// Over which time the rates were measured, in seconds.
    pub interval_seconds: f64,
    /// By name.
    pub workloads: Vec<Name>,
    /// By the names of both ends.
    pub edges: Vec<Edge>,
}

/// The connections of one workload to another.
#[derive(Debug, Clone, Serialize)]
pub struct Edge {
    /// Number of the workload that connected.
    pub from: usize,
    /// Number of the one that accepted.
    pub to: usize,
    /// Live connections, and what they have carried.
    #[serde(flatten)]
    pub flow: Flow,
    /// What they carry a second.
    pub rate: Rate,
    /// Part of the messages that was fast: of those in the interval, else of all so far.
    pub fast_share: Option<f64>,
}

/// Colours for the fast share: blue is fast, orange is TCP. To be told apart by people who do not see red from green.
const FAST: [f64; 3] = [0.0, 90.0, 181.0];
const SLOW: [f64; 3] = [220.0, 110.0, 0.0];
const SIZE: f64 = 900.0;

impl Map {
    /// From sums and rates of the same moment.
    pub fn new(flows: &BTreeMap<Key, Flow>, rates: &BTreeMap<Key, Rate>, interval_seconds: f64) -> Self {
        let names: BTreeSet<&Name> = flows.keys().flat_map(|(a, b)| [a, b]).collect();
        let workloads: Vec<Name> = names.into_iter().cloned().collect();
        let number = |name: &Name| workloads.binary_search(name).unwrap_or(0);
        let edges = flows
            .iter()
            .map(|(key, flow)| {
                let rate = rates.get(key).copied().unwrap_or_default();
                let (fast, all) =
                    (flow.up.fast_messages + flow.down.fast_messages, flow.up.messages() + flow.down.messages());
                let fast_share = rate.fast_share().or_else(|| (all > 0).then(|| fast as f64 / all as f64));
                Edge { from: number(&key.0), to: number(&key.1), flow: *flow, rate, fast_share }
            })
            .collect();
        Self { interval_seconds, workloads, edges }
    }

    /// For Graphviz: `shared-socket map -o dot | dot -Tpng > map.png`.
    pub fn dot(&self) -> String {
        let mut text = String::from(
            "digraph shared_socket {\n  rankdir=LR;\n  node [shape=box, style=rounded, fontname=\"sans-serif\"];\n  edge \
             [fontname=\"sans-serif\", fontsize=10];\n",
        );
        for (number, name) in self.workloads.iter().enumerate() {
            let _ = writeln!(text, "  n{number} [label=\"{}\"];", dot_text(&name.name));
        }
        for edge in &self.edges {
            let _ = writeln!(
                text,
                "  n{} -> n{} [label=\"{}\", penwidth={:.1}, color=\"{}\"];",
                edge.from,
                edge.to,
                dot_text(&edge.label()),
                self.width(edge),
                edge.colour()
            );
        }
        text + "}\n"
    }

    /// Workloads on a circle, connections as arrows between them.
    pub fn svg(&self) -> String {
        let centre = SIZE / 2.0;
        let radius = SIZE * 0.27;
        let place = |number: usize| {
            let angle = TAU * number as f64 / self.workloads.len().max(1) as f64 - TAU / 4.0;
            (angle, centre + radius * angle.cos(), centre + radius * angle.sin())
        };
        let mut text = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {SIZE} {SIZE}\" role=\"img\" \
             font-family=\"sans-serif\" font-size=\"15\">\n<title>Traffic between workloads</title>\n<desc>{} workloads and \
             {} flows between them. An arrow goes from the end that connected; its width is the rate, blue is the fast \
             path, orange is TCP.</desc>\n<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n",
            self.workloads.len(),
            self.edges.len()
        );
        for edge in &self.edges {
            self.arrow(&mut text, edge, place(edge.from), place(edge.to), centre);
        }
        for (number, name) in self.workloads.iter().enumerate() {
            let (angle, x, y) = place(number);
            let (dx, dy) = (angle.cos(), angle.sin());
            let anchor = if dx.abs() < 0.3 {
                "middle"
            } else if dx > 0.0 {
                "start"
            } else {
                "end"
            };
            let (label_x, label_y) = (x + 18.0 * dx, y + 18.0 * dy + 5.0 + if dx.abs() < 0.3 { 6.0 * dy } else { 0.0 });
            let _ = writeln!(
                text,
                "<g><circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"9\" fill=\"#333\"/><text x=\"{label_x:.1}\" y=\"{label_y:.1}\" \
                 text-anchor=\"{anchor}\" fill=\"#111\">{}</text></g>",
                xml(&shortened(&name.name))
            );
        }
        let _ = writeln!(
            text,
            "<text x=\"20\" y=\"30\" fill=\"#111\" font-weight=\"bold\">Traffic between workloads</text>\n<text x=\"20\" \
             y=\"52\" fill=\"#444\">width: bytes a second, over {:.3} s</text>\n<g><rect x=\"20\" y=\"{y}\" width=\"40\" \
             height=\"6\" fill=\"{}\"/><text x=\"68\" y=\"{t}\" fill=\"#111\">fast path</text><rect x=\"160\" y=\"{y}\" \
             width=\"40\" height=\"6\" fill=\"{}\"/><text x=\"208\" y=\"{t}\" fill=\"#111\">TCP</text><rect x=\"270\" \
             y=\"{y}\" width=\"40\" height=\"6\" fill=\"#999\"/><text x=\"318\" y=\"{t}\" fill=\"#111\">nothing \
             sent</text></g>\n</svg>",
            self.interval_seconds,
            mixed(1.0),
            mixed(0.0),
            y = SIZE - 34.0,
            t = SIZE - 26.0,
        );
        text
    }

    fn arrow(&self, text: &mut String, edge: &Edge, from: (f64, f64, f64), to: (f64, f64, f64), centre: f64) {
        let (colour, width) = (edge.colour(), self.width(edge));
        let title = format!("{} to {}: {}", self.workloads[edge.from], self.workloads[edge.to], edge.label());
        let _ = write!(text, "<g fill=\"none\" stroke=\"{colour}\"><title>{}</title>", xml(&title));
        if edge.from == edge.to {
            // to itself: a loop inside, as the names are outside
            let (angle, x, y) = from;
            let (cx, cy) = (x - 22.0 * angle.cos(), y - 22.0 * angle.sin());
            let _ = writeln!(text, "<circle cx=\"{cx:.1}\" cy=\"{cy:.1}\" r=\"20\" stroke-width=\"{width:.1}\"/></g>");
            return;
        }
        let ((_, x1, y1), (_, x2, y2)) = (from, to);
        // the two directions of one pair bend to different sides, away from the line between them
        let (mx, my) = ((x1 + x2) / 2.0, (y1 + y2) / 2.0);
        let (nx, ny) = ((y1 - y2) * 0.12, (x2 - x1) * 0.12);
        let pull = 0.25;
        let (qx, qy) = (mx + (centre - mx) * pull + nx, my + (centre - my) * pull + ny);
        // ends short of the circle, where the head is
        let length = ((x2 - qx).powi(2) + (y2 - qy).powi(2)).sqrt().max(1.0);
        let (ux, uy) = ((x2 - qx) / length, (y2 - qy) / length);
        let head = 8.0 + width;
        let (ex, ey) = (x2 - ux * (10.0 + head), y2 - uy * (10.0 + head));
        let (tip_x, tip_y) = (x2 - ux * 10.0, y2 - uy * 10.0);
        let (sx, sy) = (-uy * head * 0.6, ux * head * 0.6);
        let _ = writeln!(
            text,
            "<path d=\"M{x1:.1} {y1:.1} Q{qx:.1} {qy:.1} {ex:.1} {ey:.1}\" stroke-width=\"{width:.1}\"/><path d=\"M{tip_x:.1} \
             {tip_y:.1} L{:.1} {:.1} L{:.1} {:.1} Z\" fill=\"{colour}\" stroke=\"none\"/></g>",
            ex + sx,
            ey + sy,
            ex - sx,
            ey - sy
        );
    }

    /// 1 to 10, by the logarithm of the rate: the largest has 10, a thousandth of it 1.
    fn width(&self, edge: &Edge) -> f64 {
        let most = self.edges.iter().map(|e| e.rate.bytes()).fold(0.0, f64::max);
        if edge.rate.bytes() <= 0.0 {
            return 1.0;
        }
        (10.0 + 3.0 * (edge.rate.bytes() / most).log10()).clamp(1.0, 10.0)
    }
}

impl Edge {
    /// Connections, rate and fast share, in words.
    pub fn label(&self) -> String {
        let share = self.fast_share.map_or_else(|| "nothing sent".to_owned(), |s| format!("{:.0} % fast", s * 100.0));
        format!(
            "{} connections, {}/s, {} messages/s, {share}",
            self.flow.connections,
            human::bytes(self.rate.bytes()),
            human::count(self.rate.messages())
        )
    }

    fn colour(&self) -> String {
        self.fast_share.map_or_else(|| "#999999".to_owned(), mixed)
    }
}

fn mixed(share: f64) -> String {
    let part = |n: usize| (SLOW[n] + (FAST[n] - SLOW[n]) * share.clamp(0.0, 1.0)).round() as u8;
    format!("#{:02x}{:02x}{:02x}", part(0), part(1), part(2))
}

/// A long name keeps its end, which tells more.
fn shortened(name: &str) -> String {
    const LONGEST: usize = 30;
    let length = name.chars().count();
    if length <= LONGEST {
        name.to_owned()
    } else {
        format!("…{}", name.chars().skip(length - LONGEST + 1).collect::<String>())
    }
}

/// Names come from whoever made a pod or a cgroup.
fn xml(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        match c {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '"' => out += "&quot;",
            '\'' => out += "&#39;",
            c if c.is_control() => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

fn dot_text(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect::<String>()
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::flows::Sent;

    fn map() -> Map {
        let name = |n: &str| Name { name: n.into(), ..Name::default() };
        let sent = |fast_messages, tcp_messages| Sent { fast_messages, tcp_messages, ..Sent::default() };
        let flow = |fast, tcp| Flow { connections: 2, fast_connections: 1, up: sent(fast, tcp), down: sent(fast, tcp) };
        let mut flows = BTreeMap::new();
        flows.insert((name("core/smf"), name("core/upf")), flow(100, 0));
        flows.insert((name("core/upf"), name("core/smf")), flow(1, 3));
        flows.insert((name("<b>\"&'\u{7}\\"), name("core/smf")), flow(0, 0));
        flows.insert((name("core/smf"), name("core/smf")), flow(5, 5));
        let rate = Rate { fast_messages: 10.0, fast_bytes: 2048.0, ..Rate::default() };
        let rates = BTreeMap::from([((name("core/smf"), name("core/upf")), rate)]);
        Map::new(&flows, &rates, 1.0)
    }

    #[test]
    fn a_graph() {
        let map = map();
        assert_eq!(map.workloads.len(), 3);
        let share = |from: &str, to: &str| {
            let edge = map.edges.iter().find(|e| map.workloads[e.from].name == from && map.workloads[e.to].name == to);
            edge.unwrap().fast_share
        };
        assert_eq!(share("core/smf", "core/upf"), Some(1.0));
        assert_eq!(share("core/upf", "core/smf"), Some(0.25));
        assert_eq!(share("<b>\"&'\u{7}\\", "core/smf"), None);
    }

    #[test]
    fn names_are_escaped() {
        assert!(map().svg().contains("&lt;b&gt;&quot;&amp;&#39;\u{fffd}\\"));
        assert!(!map().svg().contains("<b>"));
        assert!(map().dot().contains("label=\"<b>\\\"&'\u{fffd}\\\\\""));
    }

    #[test]
    fn drawn() {
        insta::assert_snapshot!(map().dot());
        insta::assert_snapshot!(map().svg());
    }

    #[test]
    fn nothing_to_draw() {
        let empty = Map::default();
        assert!(empty.svg().ends_with("</svg>\n") && empty.dot().ends_with("}\n"));
    }
}
