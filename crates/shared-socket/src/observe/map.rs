//! A picture of who talks to whom: workloads as nodes, traffic as edges, as SVG, for graphviz, or as data.

use std::collections::{BTreeMap, BTreeSet};
use std::f64::consts::PI;
use std::fmt::Write;

use serde::Serialize;

use super::flows::Flow;

/// A workload.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Connections that it has.
    pub pairs: u64,
    /// Bytes a second, in and out.
    pub bytes_per_second: f64,
}

/// Who talks to whom.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Graph {
    /// Workloads, by name.
    pub nodes: Vec<Node>,
    /// Traffic, by client and server.
    pub edges: Vec<Flow>,
}

impl Graph {
    /// Of flows.
    pub fn of(flows: Vec<Flow>) -> Self {
        let mut nodes: BTreeMap<&str, (u64, f64)> = BTreeMap::new();
        for flow in &flows {
            for name in BTreeSet::from([flow.client.as_str(), flow.server.as_str()]) {
                let node = nodes.entry(name).or_default();
                node.0 += flow.pairs;
                node.1 += flow.rate.bytes();
            }
        }
        let node =
            |(name, (pairs, rate)): (&str, (u64, f64))| Node { name: name.into(), pairs, bytes_per_second: rate };
        Self { nodes: nodes.into_iter().map(node).collect(), edges: flows }
    }
}

/// Colours that people with any kind of colour vision tell apart (after Okabe and Ito); the label says it, too.
fn colour(share: f64) -> &'static str {
    match share {
        s if s >= 0.9 => "#0072b2",
        s if s >= 0.5 => "#56b4e9",
        s if s > 0.0 => "#e69f00",
        _ => "#d55e00",
    }
}

/// From 1 to 10, by the order of magnitude: a rate of ten times as much is twice as wide or so.
fn width(rate: f64) -> f64 {
    1.0 + rate.max(1.0).log10().min(10.0) * 0.9
}

/// A rate for people.
pub fn rate(bytes: f64) -> String {
    format!("{}/s", bytesize::ByteSize::b(bytes.round() as u64).display().iec())
}

fn label(flow: &Flow) -> String {
    format!("{} · {:.0}% fast", rate(flow.rate.bytes()), 100.0 * flow.fast_share)
}

/// No letter of a name has a meaning in XML.
pub fn escape_xml(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            l if l.is_control() || matches!(l, '\u{fffe}' | '\u{ffff}') => out.push('\u{fffd}'),
            l => out.push(l),
        }
    }
    out
}

/// At most so many letters; the end of a name tells more than its beginning.
fn shorten(text: &str, most: usize) -> String {
    let count = text.chars().count();
    if count <= most { text.into() } else { format!("…{}", text.chars().skip(count + 1 - most).collect::<String>()) }
}

/// For graphviz.
pub fn dot(graph: &Graph) -> String {
    let quoted = |s: &str| {
        let clean: String = s.chars().map(|l| if l.is_control() { '\u{fffd}' } else { l }).collect();
        format!("\"{}\"", clean.replace('\\', "\\\\").replace('"', "\\\""))
    };
    let mut out = String::from(
        "digraph shared_socket {\n  rankdir=LR;\n  node [shape=box, style=rounded, fontname=\"sans-serif\"];\n  \
         edge [fontname=\"sans-serif\", fontsize=10];\n",
    );
    for node in &graph.nodes {
        let _ = writeln!(out, "  {};", quoted(&node.name));
    }
    for flow in &graph.edges {
        let _ = writeln!(
            out,
            "  {} -> {} [label={}, color=\"{}\", penwidth={:.1}];",
            quoted(&flow.client),
            quoted(&flow.server),
            quoted(&label(flow)),
            colour(flow.fast_share),
            width(flow.rate.bytes())
        );
    }
    out + "}\n"
}

const BOX: (f64, f64) = (220.0, 44.0);

/// Where the nodes are: on an ellipse, from the top clockwise.
fn places(count: usize) -> (f64, f64, Vec<(f64, f64)>) {
    let around = count.max(2) as f64;
    let (rx, ry) = ((around * 44.0).max(240.0), if count <= 2 { 40.0 } else { (around * 26.0).max(130.0) });
    let (w, h) = (2.0 * rx + BOX.0 + 80.0, 2.0 * ry + BOX.1 + 150.0);
    let (cx, cy) = (w / 2.0, (h - 60.0) / 2.0 + 20.0);
    let at = |n: usize| {
        // two lie side by side, so that the words on the line between them have room
        let angle = 2.0 * PI * n as f64 / count as f64 - if count == 2 { PI } else { PI / 2.0 };
        (cx + rx * angle.cos(), cy + ry * angle.sin())
    };
    (w, h, (0..count).map(at).collect())
}

/// Where the line from the middle of a box to somewhere leaves the box.
fn edge_of_box(from: (f64, f64), to: (f64, f64)) -> (f64, f64) {
    let (dx, dy) = (to.0 - from.0, to.1 - from.1);
    let x = if dx == 0.0 { f64::MAX } else { (BOX.0 / 2.0 + 4.0) / dx.abs() };
    let y = if dy == 0.0 { f64::MAX } else { (BOX.1 / 2.0 + 4.0) / dy.abs() };
    let part = x.min(y).min(1.0);
    (from.0 + dx * part, from.1 + dy * part)
}

/// As a picture, complete in itself; on white, so that it looks the same on any page.
pub fn svg(graph: &Graph) -> String {
    let (w, h, places) = places(graph.nodes.len());
    let index: BTreeMap<&str, usize> =
        graph.nodes.iter().enumerate().map(|(n, node)| (node.name.as_str(), n)).collect();
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {w:.0} {h:.0}\" width=\"{w:.0}\" height=\"{h:.0}\" \
         role=\"img\" font-family=\"sans-serif\" font-size=\"13\">\n<title>Traffic between workloads</title>\n\
         <desc>{} workloads, {} flows</desc>\n<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n",
        graph.nodes.len(),
        graph.edges.len()
    );
    if graph.nodes.is_empty() {
        let _ = writeln!(
            out,
            "<text x=\"{:.0}\" y=\"{:.0}\" text-anchor=\"middle\" fill=\"#1a1a1a\">no connections between attached \
             workloads</text>",
            w / 2.0,
            h / 2.0
        );
    }
    let mut words = String::new();
    for flow in &graph.edges {
        let (a, b) = (places[index[flow.client.as_str()]], places[index[flow.server.as_str()]]);
        let (line, thick) = (colour(flow.fast_share), width(flow.rate.bytes()));
        let (path, middle) = if a == b {
            let (x, y) = (a.0, a.1 - BOX.1 / 2.0);
            let path = format!(
                "M{:.1} {y:.1} C{:.1} {:.1} {:.1} {:.1} {:.1} {y:.1}",
                x - 30.0,
                x - 60.0,
                y - 50.0,
                x + 60.0,
                y - 50.0,
                x + 30.0
            );
            (path, (x, y - 40.0))
        } else {
            // bent to one side, so that there and back are two lines
            let (mx, my) = ((a.0 + b.0) / 2.0, (a.1 + b.1) / 2.0);
            let length = (b.0 - a.0).hypot(b.1 - a.1);
            let bend = 40.0 / length;
            let control = (mx - (b.1 - a.1) * bend, my + (b.0 - a.0) * bend);
            let (from, to) = (edge_of_box(a, control), edge_of_box(b, control));
            let path =
                format!("M{:.1} {:.1} Q{:.1} {:.1} {:.1} {:.1}", from.0, from.1, control.0, control.1, to.0, to.1);
            (path, ((from.0 + 2.0 * control.0 + to.0) / 4.0, (from.1 + 2.0 * control.1 + to.1) / 4.0))
        };
        let tip = format!(
            "{} to {}: {} connections, {} messages, {}",
            flow.client,
            flow.server,
            flow.pairs,
            flow.messages,
            label(flow)
        );
        let dashes = if flow.fast_share > 0.0 { "" } else { " stroke-dasharray=\"8 5\"" };
        let _ = writeln!(
            out,
            "<path d=\"{path}\" fill=\"none\" stroke=\"{line}\" stroke-width=\"{thick:.1}\"{dashes}><title>{}</title></path>",
            escape_xml(&tip)
        );
        // a dot at the server's end, of the line's colour: who accepts
        if a != b {
            let end = path.rsplit(' ').take(2).collect::<Vec<_>>();
            let _ = writeln!(
                out,
                "<circle cx=\"{}\" cy=\"{}\" r=\"{:.1}\" fill=\"{line}\"/>",
                end[1],
                end[0],
                thick / 2.0 + 4.0
            );
        }
        let _ = writeln!(
            words,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\" font-size=\"11\" fill=\"#1a1a1a\" stroke=\"#ffffff\" \
             stroke-width=\"4\" paint-order=\"stroke\">{}</text>",
            middle.0,
            middle.1 + 4.0,
            escape_xml(&label(flow))
        );
    }
    out += &words;
    for (node, (x, y)) in graph.nodes.iter().zip(&places) {
        let (x, y) = (x - BOX.0 / 2.0, y - BOX.1 / 2.0);
        let _ = writeln!(
            out,
            "<g><title>{}</title><rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{}\" height=\"{}\" rx=\"8\" fill=\"#f5f5f5\" \
             stroke=\"#444444\"/><text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\" fill=\"#1a1a1a\">{}</text><text \
             x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\" font-size=\"11\" fill=\"#555555\">{} connections, {}</text></g>",
            escape_xml(&node.name),
            BOX.0,
            BOX.1,
            x + BOX.0 / 2.0,
            y + 18.0,
            escape_xml(&shorten(&node.name, 26)),
            x + BOX.0 / 2.0,
            y + 35.0,
            node.pairs,
            escape_xml(&rate(node.bytes_per_second))
        );
    }
    for (n, (share, text)) in
        [(1.0, "90% fast or more"), (0.6, "half or more"), (0.1, "less than half"), (0.0, "none fast")]
            .into_iter()
            .enumerate()
    {
        let (x, y) = (20.0 + 135.0 * n as f64, h - 24.0);
        let dashes = if share > 0.0 { "" } else { " stroke-dasharray=\"8 5\"" };
        let _ = writeln!(
            out,
            "<line x1=\"{x}\" y1=\"{y:.0}\" x2=\"{}\" y2=\"{y:.0}\" stroke=\"{}\" stroke-width=\"5\"{dashes}/><text x=\"{}\" \
             y=\"{:.0}\" font-size=\"11\" fill=\"#1a1a1a\">{text}</text>",
            x + 24.0,
            colour(share),
            x + 30.0,
            y + 4.0
        );
    }
    out + "</svg>\n"
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::flows::Rate;
    use super::*;

    fn flow(client: &str, server: &str, share: f64) -> Flow {
        let rate = Rate { fast_bytes: 1e6 * share, tcp_bytes: 1e6 * (1.0 - share), ..Rate::default() };
        let (client, server) = (client.into(), server.into());
        Flow { client, server, pairs: 2, messages: 100, fast_share: share, rate, ..Flow::default() }
    }

    #[test]
    fn pictures_are_the_same_each_time() {
        let graph = Graph::of(vec![
            flow("core/a", "core/b", 1.0),
            flow("core/b", "core/<c>", 0.0),
            flow("x\"\\", "x\"\\", 0.4),
        ]);
        insta::assert_snapshot!("map_svg", svg(&graph));
        insta::assert_snapshot!("map_dot", dot(&graph));
        assert_eq!(svg(&graph), svg(&graph));
    }

    proptest! {
        #[test]
        fn names_say_nothing_to_xml(name in "\\PC{0,40}|[\\x00-\\x7f]{0,20}") {
            let drawn = svg(&Graph::of(vec![flow(&name, "b", 0.5)]));
            prop_assert_eq!(drawn.matches("<g>").count(), if name == "b" { 1 } else { 2 });
            prop_assert!(!escape_xml(&name).contains(['<', '>', '"', '\'']));
            dot(&Graph::of(vec![flow(&name, "b", 0.5)]));
        }
    }
}
