//! `shared-socket agent`: keeps what is attached on this node at what its file says.
//!
//! [`watch`] tells that something may have changed, [`reconcile`] looks and acts, [`ledger`] remembers whose work an
//! attachment is, [`serve`] tells the rest of the world. The loop is one thread; a round is idempotent, and killing the
//! agent at any moment leaves what is attached attached.

mod config;
mod ledger;
mod page;
mod reconcile;
mod requests;
mod serve;
mod tls;
mod watch;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::Context;
use tokio::task::JoinHandle;

pub use config::{Config, Format, Level};
use reconcile::Reconciler;
use serve::{Shared, told};
use watch::Wake;

use crate::discovery::kubernetes::{Changed, Kubernetes, Source};

/// A round without a cause, in case something was not told.
const TICK: Duration = Duration::from_secs(30);
/// A cgroup is there before its runtime calls it running: after a change the runtime is asked so often.
const LOOKS: [Duration; 4] =
    [Duration::from_millis(20), Duration::from_millis(150), Duration::from_millis(500), Duration::from_millis(1500)];

/// After a change that may be nobody's.
const ASIDE: Duration = Duration::from_millis(900);

/// How the agent is started.
#[derive(Debug, Clone)]
pub struct Options {
    /// The configuration file.
    pub config: PathBuf,
    /// Where the datapath is pinned.
    pub pin_dir: PathBuf,
    /// Where the ledger and remembered hazards are.
    pub state_dir: PathBuf,
    /// Drain when the agent ends, whatever the file says.
    pub drain_on_exit: bool,
}

/// Changes how much is logged.
pub type SetLevel = Box<dyn Fn(Level) + Send>;

struct Agent {
    options: Options,
    config: Config,
    text: Vec<u8>,
    shared: Shared,
    wakes: Sender<Wake>,
    tokio: tokio::runtime::Runtime,
    servers: Vec<JoinHandle<()>>,
    events: Option<(PathBuf, JoinHandle<()>)>,
    kubernetes: Option<Kubernetes>,
    level: Level,
    set_level: SetLevel,
}

/// Runs until SIGTERM or SIGINT.
pub fn run(options: Options, config: Config, set_level: SetLevel) -> anyhow::Result<()> {
    let (wakes, woken) = channel();
    // from here on a signal ends it in order
    watch::signals(wakes.clone())?;
    let tokio =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().context("starting tokio")?;
    let text = std::fs::read(&options.config).unwrap_or_default();
    let shared = Shared::default();
    told(&shared).unready = Some("starting".into());
    told(&shared).pin_dir.clone_from(&options.pin_dir);
    let (servers, events, kubernetes) = (Vec::new(), None, None);
    let config_level = config.log.level;
    let mut agent = Agent {
        options,
        config,
        text,
        shared,
        wakes,
        tokio,
        servers,
        events,
        kubernetes,
        level: config_level,
        set_level,
    };
    agent.wire(None);
    let reconciler = Reconciler::new(&agent.options.pin_dir, &agent.options.state_dir, agent.config.clone())?;
    watch::config(&agent.options.config, agent.wakes.clone())?;
    // debug: to try that the events of a runtime are enough
    if std::env::var_os("SHARED_SOCKET_DEBUG_NO_CGROUP_WATCH").is_none() {
        watch::cgroups(&datapath::cgroup2_mount()?, agent.wakes.clone())?;
    }
    guard(agent.options.pin_dir.clone())?;
    agent.work(reconciler, &woken)
}

/// Events of the datapath are logged, and connections that are stuck are reset (`shared-socket guard`).
fn guard(pin_dir: PathBuf) -> anyhow::Result<()> {
    let mut guard = datapath::Guard::new(pin_dir, Duration::from_secs(1));
    let serve = move || {
        loop {
            let served = guard.serve(Duration::from_secs(5), |event| {
                tracing::warn!(
                    what = ?event.what, cookie = event.cookie, cgroup = event.cgroup_id, local = ?event.local,
                    remote = ?event.remote, hazards = event.hazards.join(" "), "an event of the datapath"
                );
            });
            match served {
                Ok(true) => continue,
                Ok(false) => {}
                Err(e) => tracing::debug!("reading the datapath's events: {e}"),
            }
            std::thread::sleep(Duration::from_secs(2));
        }
    };
    std::thread::Builder::new().name("guard".into()).spawn(serve).context("starting a thread")?;
    Ok(())
}

/// When to look next: soon after a change and again a few times, but not more often than looking takes.
#[derive(Debug)]
struct Schedule {
    due: Vec<Instant>,
    tick: Instant,
    last: Instant,
    cost: Duration,
}

impl Schedule {
    fn new(now: Instant) -> Self {
        Self { due: vec![now], tick: now + TICK, last: now, cost: Duration::ZERO }
    }

    fn changed(&mut self, now: Instant) {
        // what was due before stays: a stream of changes must not put it off for ever
        let first = self.due.iter().min().copied().filter(|at| *at <= now + LOOKS[0]);
        self.due = LOOKS.iter().map(|after| now + *after).collect();
        self.due.extend(first);
    }

    /// One look, not at once: what made it may make many.
    fn aside(&mut self, now: Instant) {
        if self.due.is_empty() {
            self.due.push(now + ASIDE);
        }
    }

    fn again(&mut self, at: Instant) {
        self.due.push(at);
    }

    fn next(&self) -> Instant {
        let gap = self.last + (self.cost * 4).min(Duration::from_secs(1));
        self.due.iter().copied().min().unwrap_or(self.tick).min(self.tick).max(gap)
    }

    fn ran(&mut self, began: Instant, now: Instant) {
        self.due.retain(|at| *at > began);
        (self.last, self.cost, self.tick) = (now, now - began, now + TICK);
    }
}

impl Agent {
    /// Starts what depends on the file, and what of it has changed again.
    fn wire(&mut self, before: Option<&Config>) {
        self.level = self.config.log.level;
        (self.set_level)(self.level);
        told(&self.shared).max_flows = self.config.metrics.max_flows;
        let wanted = (&self.config.requests, self.config.metrics.max_flows);
        if before.is_none_or(|b| (&b.requests, b.metrics.max_flows) != wanted) {
            let start = || {
                requests::start(wanted.0, self.options.pin_dir.clone(), self.shared.clone(), wanted.1)
                    .inspect_err(|e| tracing::error!("requests are not seen: {e:#}"))
            };
            let looking = if wanted.0.enabled { start().ok() } else { None };
            let old = std::mem::replace(&mut told(&self.shared).requests, looking);
            drop(old); // not under the lock: it waits for its thread, which may wait for that
        }
        if before.is_none_or(|b| b.endpoints != self.config.endpoints) {
            for server in self.servers.drain(..) {
                server.abort();
            }
            told(&self.shared).tls_error = None;
            let served = serve::servers(&self.config.endpoints, &self.shared);
            let start = |server: serve::Server| self.tokio.spawn(server.serve(self.shared.clone()));
            self.servers = served.into_iter().map(start).collect();
        }
    }

    /// What the selectors need of the Kubernetes API; what is known stays known where it is still needed.
    fn ask_kubernetes(&mut self, reconciler: &mut Reconciler) {
        let api = &self.config.kubernetes_api;
        let needs = self.config.policy().needs();
        let view = if api.enabled && (needs.namespace_labels || needs.services) {
            let node = std::env::var("NODE_NAME").ok().filter(|name| !name.is_empty());
            let source = Source { kubeconfig: api.kubeconfig.clone(), node };
            let mut kubernetes = match self.kubernetes.take().filter(|k| *k.source() == source) {
                Some(same) => same,
                None => Kubernetes::new(source),
            };
            let wakes = self.wakes.clone();
            let changed: Changed = Arc::new(move || {
                let _ = wakes.send(Wake::Changed);
            });
            let view = kubernetes.follow(needs, self.tokio.handle(), &changed);
            self.kubernetes = Some(kubernetes);
            Some(view)
        } else {
            self.kubernetes = None;
            None
        };
        told(&self.shared).kubernetes = view.clone();
        reconciler.know(view);
    }

    /// The stream of events of the runtime that is there now.
    fn listen(&mut self) {
        let socket = crate::discovery::cri_endpoint(self.config.runtimes().cri.as_deref()).ok().flatten();
        if self.events.as_ref().map(|(at, _)| at) == socket.as_ref() {
            return;
        }
        if let Some((_, task)) = self.events.take() {
            task.abort();
        }
        if let Some(socket) = socket {
            let task = self.tokio.spawn(watch::runtime(socket.clone(), self.wakes.clone()));
            self.events = Some((socket, task));
        }
    }

    /// The file, if it is another one; one that cannot be used is told and changes nothing.
    fn reload(&mut self, reconciler: &mut Reconciler) -> bool {
        let path = self.options.config.clone();
        let text = std::fs::read(&path).unwrap_or_default();
        if text == self.text {
            return false;
        }
        self.text = text;
        let applied = Config::read(&path).and_then(|config| {
            reconciler.configure(config.clone())?;
            Ok(config)
        });
        match applied {
            Ok(config) => {
                let before = std::mem::replace(&mut self.config, config);
                self.wire(Some(&before));
                self.ask_kubernetes(reconciler);
                told(&self.shared).config_error = None;
                tracing::info!(file = %path.display(), "the configuration was read again");
                true
            }
            Err(e) => {
                tracing::error!("the configuration before stays in force: {e:#}");
                told(&self.shared).config_error = Some(format!("{e:#}"));
                false
            }
        }
    }

    fn round(&mut self, reconciler: &mut Reconciler) -> Option<Duration> {
        told(&self.shared).busy_since = Some(Instant::now());
        let result = reconciler.round();
        let mut told = told(&self.shared);
        told.busy_since = None;
        told.rounds += 1;
        let (unready, again) = match result {
            Ok(round) => {
                told.workloads = round.rows;
                told.names = Arc::new(round.names);
                (round.unready, round.again)
            }
            Err(e) => (Some(format!("{e:#}")), Some(Duration::from_secs(2))),
        };
        if let Some(why) = unready.as_ref().filter(|why| told.unready.as_ref() != Some(why)) {
            tracing::error!("not all is as it shall be: {why}");
        } else if unready.is_none() && told.unready.is_some() {
            tracing::info!("ready");
            let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
        }
        told.unready = unready;
        again
    }

    fn work(&mut self, mut reconciler: Reconciler, woken: &Receiver<Wake>) -> anyhow::Result<()> {
        self.ask_kubernetes(&mut reconciler);
        let mut schedule = Schedule::new(Instant::now());
        loop {
            let wake = match woken.recv_timeout(schedule.next().saturating_duration_since(Instant::now())) {
                Ok(wake) => Some(wake),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => Some(Wake::Stop),
            };
            match wake {
                Some(Wake::Stop) => break,
                Some(Wake::Level { more }) => {
                    self.level = self.level.step(more);
                    (self.set_level)(self.level);
                    tracing::error!(level = ?self.level, "the log's level was changed by a signal");
                }
                Some(Wake::Config) => {
                    if self.reload(&mut reconciler) {
                        schedule.changed(Instant::now());
                    }
                }
                Some(Wake::Aside) => schedule.aside(Instant::now()),
                Some(Wake::Changed) => schedule.changed(Instant::now()),
                None => {
                    self.listen();
                    let began = Instant::now();
                    let again = self.round(&mut reconciler);
                    schedule.ran(began, Instant::now());
                    if let Some(after) = again {
                        schedule.again(Instant::now() + after);
                    }
                }
            }
        }
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
        tracing::info!("ending");
        let looking = told(&self.shared).requests.take();
        drop(looking); // takes its tap out
        reconciler.end(self.options.drain_on_exit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_of_changes_puts_nothing_off() {
        let start = Instant::now();
        let mut schedule = Schedule::new(start);
        schedule.ran(start, start);
        let mut looks = 0;
        for ms in 0..1000 {
            let now = start + Duration::from_millis(ms);
            schedule.changed(now);
            if schedule.next() <= now {
                looks += 1;
                schedule.ran(now, now);
            }
        }
        assert!((40..=60).contains(&looks), "{looks}");
    }

    #[test]
    fn what_takes_long_is_done_rarely() {
        let start = Instant::now();
        let mut schedule = Schedule::new(start);
        schedule.ran(start, start + Duration::from_millis(100));
        schedule.changed(start + Duration::from_millis(100));
        assert_eq!(schedule.next(), start + Duration::from_millis(500));
    }
}
