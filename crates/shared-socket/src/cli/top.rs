//! `shared-socket top`

use std::io::IsTerminal;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use datapath::{Datapath, Journal, Start, TapOptions};
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use super::Context;
use super::connections::filter;
use super::keyboard::{Came, Keyboard};
use super::known::Names as Naming;
use super::target::RuntimeArgs;
use crate::observe::filter::{Filter, GRAMMAR};
use crate::observe::requests::{Looking, SNAPLEN, Wanted};
use crate::observe::{Event as What, Names, clock_offset, read_connections};
use crate::top::model::{Key, Model, Screen};
use crate::top::requests::Requests;
use crate::top::view::draw;

/// Pairs of workloads that have a row: as by default of `requests`.
const ROWS: usize = 1000;

/// A screen that shows workloads, pairs and rates as they change. `?` explains the keys.
#[derive(Debug, clap::Args)]
#[command(after_help = GRAMMAR)]
pub struct Args {
    /// Which connections, in words: ns core and port 6379
    #[arg(value_name = "FILTER")]
    filter: Vec<String>,
    /// Seconds between two looks
    #[arg(long, value_name = "SECONDS", default_value_t = 1.0)]
    interval: f64,
    /// Print one frame as text, and end
    #[arg(long)]
    once: bool,
    /// One more screen (Tab, or l): requests of HTTP/1 and Redis. While it runs, messages are copied, as by `requests`
    #[arg(long)]
    requests: bool,
    /// No names: runtimes are not asked whose the connections are
    #[arg(short, long)]
    numeric: bool,
    #[command(flatten)]
    runtimes: RuntimeArgs,
}

fn key(event: KeyEvent) -> Option<Key> {
    if event.kind == KeyEventKind::Release {
        return None;
    }
    Some(match event.code {
        KeyCode::Char('c') if event.modifiers.contains(KeyModifiers::CONTROL) => return None,
        KeyCode::Char(letter) => Key::Char(letter),
        KeyCode::Up => Key::Up,
        KeyCode::Down => Key::Down,
        KeyCode::PageUp => Key::PageUp,
        KeyCode::PageDown => Key::PageDown,
        KeyCode::Enter => Key::Enter,
        KeyCode::Esc => Key::Escape,
        KeyCode::Backspace => Key::Backspace,
        KeyCode::Tab => Key::Tab,
        _ => return None,
    })
}

impl Args {
    pub(super) fn run(self, context: &Context) -> anyhow::Result<ExitCode> {
        let pause = Duration::try_from_secs_f64(self.interval).map_err(|e| anyhow::anyhow!("--interval: {e}"))?;
        let mut model = Model::new(&self.filter.join(" "), filter(&self.filter)?);
        let names = if self.numeric { None } else { Some(self.runtimes.names()?) };
        if !self.once && !std::io::stdout().is_terminal() {
            anyhow::bail!("top needs a terminal; `top --once` prints one frame as text");
        }
        // also for one frame: who is ended by a signal leaves no tap behind
        let ended = Arc::new(AtomicBool::new(false));
        for signal in [signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT, signal_hook::consts::SIGHUP] {
            signal_hook::flag::register(signal, ended.clone()).context("catching signals")?;
        }
        let looking = if self.requests { Some(self.look_at_requests(context, &mut model)?) } else { None };
        let mut world = World { context, names: names.as_ref(), looking, pause, ended: &ended };
        if self.once {
            world.once(&mut model)?;
            return Ok(ExitCode::SUCCESS);
        }
        let keyboard = Keyboard::new().context("finding the terminal for keys")?;
        // restores the terminal on a panic, too
        let mut terminal = ratatui::try_init().context("taking the terminal")?;
        let done = world.follow(&mut terminal, &keyboard, &mut model);
        if keyboard.is_gone() {
            // to give it back would fail, which is told on the terminal, which panics, which gives it back
            std::mem::forget(terminal);
            return Ok(ExitCode::SUCCESS);
        }
        ratatui::restore();
        done.map(|()| ExitCode::SUCCESS)
    }

    /// Puts a tap in, for what the filter means all the time.
    fn look_at_requests(&self, context: &Context, model: &mut Model) -> anyhow::Result<Looking> {
        let filter = filter(&self.filter)?;
        let word = filter.changing_word();
        model.requests = Some(match word {
            None => Requests::new(self.filter.join(" "), None),
            Some(word) => {
                let note = format!("all connections: `{word}`, a word of the filter, changes while a connection lives");
                Requests::new("", Some(note))
            }
        });
        let filter = if word.is_none() { filter } else { Filter::ALL };
        let wanted = Wanted {
            pin_dir: context.pin_dir.clone(),
            filter,
            one_in: 1,
            tap: TapOptions { snaplen: SNAPLEN, ..TapOptions::default() },
            only: None,
            rows: ROWS,
        };
        let (numeric, runtimes) = (self.numeric, self.runtimes.clone());
        Looking::start(wanted, move || Naming::new(numeric, &runtimes), |_| ()) // the screen says why
    }
}

/// Where the model has it from.
struct World<'a> {
    context: &'a Context,
    names: Option<&'a Names>,
    looking: Option<Looking>,
    pause: Duration,
    ended: &'a AtomicBool,
}

impl World<'_> {
    /// Takes in what there is now.
    fn look(&self, model: &mut Model, seconds: f64) -> anyhow::Result<()> {
        let read = |d: Datapath| anyhow::Ok((read_connections(&d, self.names)?, d.sampling().ok()));
        let (list, sampling) = Datapath::reading(&self.context.pin_dir, read)?.unwrap_or_default();
        model.sampling = sampling;
        model.sample(list, seconds);
        if let Some(looking) = &self.looking {
            model.asked(looking.read(), seconds);
        }
        Ok(())
    }

    /// Until it is so, or it is the end.
    fn wait(&self, is_so: impl Fn() -> bool) {
        while !is_so() && !self.ended.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(20).min(self.pause));
        }
    }

    fn once(&mut self, model: &mut Model) -> anyhow::Result<()> {
        self.wait(|| self.looking.as_ref().is_none_or(Looking::has_begun));
        self.look(model, 0.0)?;
        let began = Instant::now();
        self.wait(|| began.elapsed() >= self.pause);
        if let Some(looking) = &mut self.looking {
            looking.end();
            model.screen = Screen::Requests;
        }
        self.look(model, began.elapsed().as_secs_f64())?;
        let (width, height) =
            ratatui::crossterm::terminal::size().ok().filter(|_| std::io::stdout().is_terminal()).unwrap_or((120, 40));
        let mut terminal = Terminal::new(TestBackend::new(width.max(80), height.max(24)))?;
        terminal.draw(|frame| draw(frame, model))?;
        let buffer = terminal.backend().buffer();
        let text: String = buffer
            .content
            .chunks(buffer.area.width.into())
            .map(|line| line.iter().map(|c| c.symbol()).collect::<String>().trim_end().to_owned() + "\n")
            .collect();
        print!("{text}");
        Ok(())
    }

    fn follow(
        &self,
        terminal: &mut ratatui::DefaultTerminal,
        keyboard: &Keyboard,
        model: &mut Model,
    ) -> anyhow::Result<()> {
        let mut last = Instant::now();
        let unnamed = Names::default();
        // what happened before is told, too; without a journal (nothing attached yet, an older version) there is none
        let mut journal = Journal::open(&self.context.pin_dir, Start::Oldest).ok();
        let mut listen = |model: &mut Model| {
            if let Some(Ok(batch)) = journal.as_mut().map(|j| j.read(false)) {
                let offset = clock_offset();
                model.told(batch.entries.iter().map(|e| What::new(e, self.names.unwrap_or(&unnamed), offset)));
            }
        };
        self.look(model, 0.0)?;
        listen(model);
        loop {
            match terminal.draw(|frame| draw(frame, model)) {
                Err(_) if keyboard.is_gone() => return Ok(()),
                drawn => drawn?,
            };
            let rest = self.pause.saturating_sub(last.elapsed()).min(Duration::from_millis(200));
            match keyboard.wait(rest)? {
                Came::HangUp => return Ok(()),
                Came::Event(Event::Key(pressed)) => {
                    let control = pressed.modifiers.contains(KeyModifiers::CONTROL);
                    let interrupted = pressed.code == KeyCode::Char('c') && control;
                    if interrupted || key(pressed).is_some_and(|k| model.press(k)) {
                        return Ok(());
                    }
                }
                _ => {}
            }
            if self.ended.load(Ordering::Relaxed) {
                return Ok(());
            }
            if last.elapsed() >= self.pause {
                let seconds = last.elapsed().as_secs_f64();
                last = Instant::now();
                self.look(model, seconds)?;
                listen(model);
            }
        }
    }
}
