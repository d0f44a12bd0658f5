//! What the screen knows, and what keys and samples do to it.

use std::collections::{HashMap, HashSet, VecDeque};

use datapath::{Histogram, Sampling};

use super::requests::Requests;
use crate::observe::filter::Filter;
use crate::observe::flows::{Flow, Mark, Rate, flows};
use crate::observe::requests::Seen;
use crate::observe::{Connection, Event, Key as SortKey, sort};

/// Seconds of history.
pub const HISTORY: usize = 120;
/// Events that are kept of each socket, and of how many sockets before those of connections that are gone are dropped.
const EVENTS: usize = 16;
const SOCKETS: usize = 65_536;

/// A key, as far as it has a meaning here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Key {
    /// A letter.
    Char(char),
    /// Up.
    Up,
    /// Down.
    Down,
    /// A page up.
    PageUp,
    /// A page down.
    PageDown,
    /// Enter.
    Enter,
    /// Escape.
    Escape,
    /// Backspace.
    Backspace,
    /// Tab.
    Tab,
}

/// What is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Screen {
    /// Workloads and what they say to each other.
    Flows,
    /// Connections.
    Pairs,
    /// One of them, by its id.
    Detail(u64),
    /// What workloads ask of each other; there is none without a tap.
    Requests,
}

/// Everything that is drawn.
#[derive(Debug)]
pub struct Model {
    /// What is looked at.
    pub screen: Screen,
    /// Connections that the filter lets through, sorted, with their rates.
    pub pairs: Vec<(Connection, Rate)>,
    /// Flows of these, the busiest first.
    pub flows: Vec<Flow>,
    /// Of all of them, lately.
    pub total: Rate,
    /// Messages a second by the fast path, and by TCP, the newest last.
    pub history: (VecDeque<u64>, VecDeque<u64>),
    /// Messages a second of each connection.
    pub histories: HashMap<u64, VecDeque<u64>>,
    /// How long messages of each connection waited: the median of each interval, in nanoseconds. None where nothing was sampled.
    pub waits: HashMap<u64, VecDeque<Option<u64>>>,
    /// Of which messages that is measured, if it is known.
    pub sampling: Option<Sampling>,
    /// What a tap sees, if one is wanted.
    pub requests: Option<Requests>,
    /// What happened to each socket, by its cookie; the newest last.
    events: HashMap<u64, VecDeque<Event>>,
    /// The row with the mark.
    pub selected: usize,
    /// None: by rate.
    pub sorted: Option<SortKey>,
    /// The other way round.
    pub reverse: bool,
    /// The filter's text.
    pub filter: String,
    /// Why it is not understood.
    pub problem: Option<String>,
    /// It is being typed.
    pub typing: bool,
    /// Nothing is taken in.
    pub paused: bool,
    /// The keys are explained.
    pub help: bool,
    all: Vec<(Connection, Rate)>,
    chosen: Filter,
    mark: Mark,
    /// What of each socket was sampled until the last look.
    sampled: HashMap<u64, Histogram>,
    begun: bool,
}

impl Default for Model {
    fn default() -> Self {
        Self {
            screen: Screen::Flows,
            pairs: Vec::new(),
            flows: Vec::new(),
            total: Rate::default(),
            history: Default::default(),
            histories: HashMap::new(),
            waits: HashMap::new(),
            sampling: None,
            requests: None,
            events: HashMap::new(),
            selected: 0,
            sorted: None,
            reverse: false,
            filter: String::new(),
            problem: None,
            typing: false,
            paused: false,
            help: false,
            all: Vec::new(),
            chosen: Filter::ALL,
            mark: Mark::default(),
            sampled: HashMap::new(),
            begun: false,
        }
    }
}

fn ends(c: &Connection) -> (String, String) {
    let name = |e: &Option<crate::observe::End>| e.as_ref().map_or_else(|| "(gone)".to_owned(), |e| e.name());
    (name(&c.client), name(&c.server))
}

fn remember<T>(history: &mut VecDeque<T>, value: T) {
    if history.len() == HISTORY {
        history.pop_front();
    }
    history.push_back(value);
}

fn whole(value: f64) -> u64 {
    value.round() as u64
}

impl Model {
    /// One that begins with a filter.
    pub fn new(filter: &str, chosen: Filter) -> Self {
        Self { filter: filter.into(), chosen, ..Self::default() }
    }

    /// Takes in all connections, so many seconds after the last time.
    pub fn sample(&mut self, list: Vec<Connection>, seconds: f64) {
        if self.paused {
            return;
        }
        // what was before the first look is no rate
        let seconds = if self.begun { seconds } else { 0.0 };
        let before = std::mem::replace(&mut self.mark, Mark::of(&list));
        self.all = list.into_iter().map(|c| (Rate::of(&c, &before, seconds), c)).map(|(r, c)| (c, r)).collect();
        self.total = Rate::default();
        let mut histories = HashMap::new();
        for (c, rate) in &self.all {
            self.total += *rate;
            let mut history = self.histories.remove(&c.id()).unwrap_or_default();
            remember(&mut history, whole(rate.messages()));
            histories.insert(c.id(), history);
        }
        self.histories = histories;
        self.sample_waits();
        if self.begun {
            remember(&mut self.history.0, whole(self.total.fast_messages));
            remember(&mut self.history.1, whole(self.total.tcp_messages));
        }
        self.begun = true;
        self.arrange();
    }

    /// What waited since the last look. A connection has a history from its first sample on.
    fn sample_waits(&mut self) {
        let (mut sampled, mut histories) = (HashMap::new(), HashMap::new());
        for (c, _) in &self.all {
            let mut lately = Histogram::default();
            for (cookie, waits) in c.ends().filter_map(|e| Some((e.cookie, e.waits.as_deref()?))) {
                lately += &waits.since(self.sampled.get(&cookie).unwrap_or(&Histogram::default()));
                sampled.insert(cookie, *waits);
            }
            let median = lately.median().filter(|_| self.begun);
            let history = self.waits.remove(&c.id());
            if let Some(mut history) = history.or_else(|| median.map(|_| VecDeque::new())) {
                remember(&mut history, median);
                histories.insert(c.id(), history);
            }
        }
        (self.sampled, self.waits) = (sampled, histories);
    }

    /// Takes in which requests were seen until now, so many seconds after the last time.
    pub fn asked(&mut self, seen: Seen, seconds: f64) {
        if let Some(requests) = &mut self.requests {
            requests.sample(seen, seconds, self.paused);
        }
        self.arrange();
    }

    /// Takes in what happened. Also while it is paused: what is looked at stays, and its history is whole afterwards.
    pub fn told(&mut self, events: impl IntoIterator<Item = Event>) {
        for event in events.into_iter().filter(|e| e.cookie != 0) {
            let kept = self.events.entry(event.cookie).or_default();
            if kept.len() == EVENTS {
                kept.pop_front();
            }
            kept.push_back(event);
        }
        if self.events.len() > SOCKETS {
            let live: HashSet<u64> = self.all.iter().flat_map(|(c, _)| c.ends().map(|e| e.cookie)).collect();
            self.events.retain(|cookie, _| live.contains(cookie));
        }
    }

    /// What happened to both ends of a connection, the newest last.
    pub fn events_of(&self, connection: &Connection) -> Vec<&Event> {
        let mut list: Vec<&Event> = connection.ends().filter_map(|e| self.events.get(&e.cookie)).flatten().collect();
        list.sort_by_key(|e| e.monotonic_ns);
        list
    }

    /// Filters and sorts what was taken in.
    fn arrange(&mut self) {
        let rates: HashMap<u64, Rate> = self.all.iter().map(|(c, r)| (c.id(), *r)).collect();
        let mut list: Vec<Connection> =
            self.all.iter().map(|(c, _)| c).filter(|c| self.chosen.matches(c)).cloned().collect();
        let rate = |c: &Connection| rates.get(&c.id()).copied().unwrap_or_default();
        match self.sorted {
            Some(key) => sort(&mut list, &[key]),
            None => {
                sort(&mut list, &[SortKey::Messages]);
                list.sort_by(|a, b| rate(b).messages().total_cmp(&rate(a).messages()));
            }
        }
        if self.reverse {
            list.reverse();
        }
        let mut between: HashMap<(String, String), Rate> = HashMap::new();
        for c in &list {
            *between.entry(ends(c)).or_default() += rate(c);
        }
        self.flows = flows(&list, &Mark::default(), 0.0);
        for flow in &mut self.flows {
            flow.rate = between.get(&(flow.client.clone(), flow.server.clone())).copied().unwrap_or_default();
        }
        self.flows.sort_by(|a, b| b.rate.messages().total_cmp(&a.rate.messages()));
        self.pairs = list.into_iter().map(|c| (rate(&c), c)).map(|(r, c)| (c, r)).collect();
        if let Some(requests) = &mut self.requests {
            requests.arrange(self.reverse);
        }
        self.selected = self.selected.min(self.rows().saturating_sub(1));
    }

    fn rows(&self) -> usize {
        match self.screen {
            Screen::Flows => self.flows.len(),
            Screen::Requests => self.requests.as_ref().map_or(0, |r| r.rows.len()),
            _ => self.pairs.len(),
        }
    }

    /// The connection that is looked at closely, if it is still there.
    pub fn detail(&self) -> Option<&(Connection, Rate)> {
        match self.screen {
            Screen::Detail(id) => self.all.iter().find(|(c, _)| c.id() == id),
            _ => None,
        }
    }

    fn type_key(&mut self, key: Key) {
        match key {
            Key::Char(letter) => self.filter.push(letter),
            Key::Backspace => {
                self.filter.pop();
            }
            Key::Escape => {
                self.filter.clear();
                self.typing = false;
            }
            Key::Enter => self.typing = false,
            _ => return,
        }
        match self.filter.parse() {
            Ok(filter) => (self.chosen, self.problem) = (filter, None),
            // what was in force stays until the text is whole
            Err(e) => self.problem = Some(format!("{e}")),
        }
        self.arrange();
    }

    /// A key; true: the end.
    pub fn press(&mut self, key: Key) -> bool {
        if self.typing {
            self.type_key(key);
            return false;
        }
        if self.help {
            self.help = false;
            return key == Key::Char('q');
        }
        match key {
            Key::Char('q') => return true,
            Key::Char('?' | 'h') => self.help = true,
            Key::Char('p' | ' ') => self.paused = !self.paused,
            // a tap keeps the filter that it began with
            Key::Char('/' | 'f') => self.typing = self.screen != Screen::Requests,
            Key::Char('l') if self.requests.is_some() => {
                self.screen = Screen::Requests;
                self.selected = 0;
            }
            Key::Char('r') => {
                self.reverse = !self.reverse;
                self.arrange();
            }
            Key::Char('s') if self.screen == Screen::Requests => {
                if let Some(requests) = &mut self.requests {
                    requests.sort_by_next();
                }
                self.arrange();
            }
            Key::Char('s') => {
                let next = self.sorted.map_or(Some(0), |k| SortKey::ALL.iter().position(|a| *a == k).map(|n| n + 1));
                self.sorted = next.and_then(|n| SortKey::ALL.get(n)).copied();
                self.arrange();
            }
            Key::Tab => {
                self.screen = match self.screen {
                    Screen::Flows => Screen::Pairs,
                    Screen::Pairs if self.requests.is_some() => Screen::Requests,
                    _ => Screen::Flows,
                };
                self.selected = 0;
            }
            Key::Up | Key::Char('k') => self.selected = self.selected.saturating_sub(1),
            Key::Down | Key::Char('j') => self.selected += 1,
            Key::PageUp => self.selected = self.selected.saturating_sub(10),
            Key::PageDown => self.selected += 10,
            Key::Enter => self.enter(),
            Key::Escape | Key::Backspace => {
                self.screen = match self.screen {
                    Screen::Detail(_) => Screen::Pairs,
                    _ => Screen::Flows,
                }
            }
            Key::Char(_) => {}
        }
        self.selected = self.selected.min(self.rows().saturating_sub(1));
        false
    }

    fn enter(&mut self) {
        match self.screen {
            Screen::Flows => {
                // to the connections of this flow: its first one is marked
                let Some(flow) = self.flows.get(self.selected) else { return };
                let first = self.pairs.iter().position(|(c, _)| ends(c) == (flow.client.clone(), flow.server.clone()));
                self.selected = first.unwrap_or(0);
                self.screen = Screen::Pairs;
            }
            Screen::Pairs => {
                if let Some((c, _)) = self.pairs.get(self.selected) {
                    self.screen = Screen::Detail(c.id());
                }
            }
            // all that is known of a row is on the screen
            Screen::Detail(_) | Screen::Requests => {}
        }
    }
}
