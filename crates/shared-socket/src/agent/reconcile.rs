//! One round: what runs, what shall be attached, what is; and the steps between.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use datapath::{Attach, Changes, Datapath, LoadOptions};
use serde::Serialize;

use super::config::{Budgets, Config};
use super::ledger::Ledger;
use crate::discovery::{Inventory, Listing, Runtime, kubernetes};
use crate::memory::Memory;
use crate::observe::Names;
use crate::policy::{Decision, Eligibility, Policy, Wanted};

/// How long a round waits for pairs to leave; what cannot leave by then is looked at again.
const DRAIN: Duration = Duration::from_secs(1);
/// The same when the agent ends and shall drain.
const LAST_DRAIN: Duration = Duration::from_secs(15);
/// When what failed is tried again.
const RETRY: Duration = Duration::from_secs(2);
/// How often what is gone is looked at.
const SWEEP: Duration = Duration::from_secs(5);
/// When existing connections are looked at again, after something was attached: what was learned or busy may be ready.
const ADOPTIONS: [Duration; 5] = [
    Duration::from_millis(250),
    Duration::from_secs(1),
    Duration::from_secs(4),
    Duration::from_secs(15),
    Duration::from_secs(60),
];

/// A workload, as the agent sees it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// As `shared-socket attach` takes it.
    pub name: String,
    /// It shares the network of the node.
    pub host_network: bool,
    /// What the rules say.
    pub decision: Decision,
    /// Its cgroups are attached.
    pub attached: bool,
    /// What went wrong with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// How a round went.
#[derive(Debug, Default)]
pub struct Round {
    /// Why the agent is not ready.
    pub unready: Option<String>,
    /// All workloads, but units that nobody asked for.
    pub rows: Vec<Row>,
    /// Whose the cgroups are.
    pub names: Names,
    /// Look again after this.
    pub again: Option<Duration>,
}

/// Brings what is attached to what shall be.
pub struct Reconciler {
    pin_dir: PathBuf,
    memory: Memory,
    ledger: Ledger,
    config: Config,
    policy: Policy,
    inventory: Inventory,
    /// What the Kubernetes API knows, where a selector needs it.
    kubernetes: Option<kubernetes::View>,
    /// Budgets that are in force.
    applied: Option<Config>,
    adoption: Adoptions,
    swept: Option<Instant>,
}

/// When existing connections are looked at next.
#[derive(Debug, Default)]
struct Adoptions {
    step: usize,
    due: Option<Instant>,
}

impl Adoptions {
    fn start(&mut self) {
        *self = Self { step: 0, due: Some(Instant::now() + ADOPTIONS[0]) };
    }

    /// After one of them, which left so many that may be ready later.
    fn went(&mut self, waiting: u64) {
        self.step += 1;
        self.due = (waiting > 0).then(|| Instant::now() + ADOPTIONS[self.step.min(ADOPTIONS.len() - 1)]);
    }
}

/// A list of what is there now, and how the two compare.
#[derive(Debug, Default, PartialEq)]
struct Plan {
    attach: Vec<(u64, Wanted)>,
    detach: Vec<u64>,
    /// Whether it may be captured is different from what was.
    capture: Vec<(u64, bool)>,
    /// In the ledger, and attached no more.
    forget: Vec<u64>,
}

/// What was heard of those who know what runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Heard {
    /// All runtimes answered.
    runtimes: bool,
    /// What the selectors need of the Kubernetes API was listed at least once.
    kubernetes: bool,
}

/// What is of the agent is brought to what is wanted; what a person attached is left as it is. Where a runtime did not answer
/// nothing is detached: its workloads are there all the same. Nor is it where the Kubernetes API was not heard yet, and what
/// is attached keeps its eligibility: another selector may have named it.
fn plan(wanted: &BTreeMap<u64, Wanted>, is: &[datapath::Workload], ledger: &Ledger, heard: Heard) -> Plan {
    let mut plan = Plan::default();
    let by_id: BTreeMap<u64, &datapath::Workload> = is.iter().map(|w| (w.cgroup_id, w)).collect();
    for (id, wanted) in wanted {
        let done = match by_id.get(id) {
            None => false,
            Some(w) if !ledger.has(*id) => !w.draining,
            Some(w) => {
                let same = w.eligibility == datapath::Eligibility::from(wanted.eligibility);
                !w.draining && w.complete && (same || !heard.kubernetes)
            }
        };
        if !done {
            plan.attach.push((*id, wanted.clone()));
        } else if by_id.get(id).is_some_and(|w| w.capture != wanted.capture) {
            plan.capture.push((*id, wanted.capture)); // also of what a person attached
        }
    }
    for id in ledger.ids() {
        if !by_id.contains_key(&id) {
            if !wanted.contains_key(&id) {
                plan.forget.push(id);
            }
        } else if !wanted.contains_key(&id) && heard.runtimes && heard.kubernetes {
            plan.detach.push(id);
        }
    }
    plan
}

/// A runtime that the agent has attached workloads of, and that is not even there at the moment.
fn missing(listing: &Listing, ledger: &Ledger) -> Option<String> {
    let names: Vec<&str> = ledger.ids().filter_map(|id| ledger.name(id)).collect();
    let engine = |name: &str| match name.split('/').next() {
        Some("docker") => "Docker",
        Some("podman") => "Podman",
        Some("unit") => "systemd",
        _ => "CRI",
    };
    let gone = |engine: &str| !listing.looked.iter().any(|l| l.backend.starts_with(engine));
    let engine = names.into_iter().map(engine).find(|e| gone(e))?;
    Some(format!("no socket of {engine} is found; what is attached of it stays"))
}

impl Reconciler {
    /// With what the agent did before. Upgrades programs that another build has pinned.
    pub fn new(pin_dir: &Path, state_dir: &Path, config: Config) -> anyhow::Result<Self> {
        crate::discovery::enter_host_cgroups();
        let mut made = Self {
            pin_dir: pin_dir.to_path_buf(),
            memory: Memory::new(state_dir),
            ledger: Ledger::open(state_dir)?,
            policy: config.policy(),
            inventory: Inventory::new(&config.runtimes())?,
            config,
            kubernetes: None,
            applied: None,
            adoption: Adoptions::default(),
            swept: None,
        };
        made.upgrade()?;
        Ok(made)
    }

    /// Another configuration, from the next round on.
    pub fn configure(&mut self, config: Config) -> anyhow::Result<()> {
        self.inventory = Inventory::new(&config.runtimes())?;
        self.policy = config.policy();
        self.config = config;
        Ok(())
    }

    /// What selectors may need of the Kubernetes API, from the next round on.
    pub fn know(&mut self, kubernetes: Option<kubernetes::View>) {
        self.kubernetes = kubernetes;
    }

    /// New programs under live connections, where those that are pinned are of another build or have other budgets.
    fn upgrade(&mut self) -> anyhow::Result<()> {
        let b = &self.config.budgets;
        let own = datapath::programs_id();
        let budgets = self.applied.as_ref().is_some_and(|a| a.budgets != *b);
        let other = self.ledger.programs() != own;
        if !budgets && !other && self.applied.is_some() {
            return Ok(());
        }
        // what the file said before and does not say any more goes back to the default
        let (defaults, before) = (LoadOptions::default(), self.applied.as_ref().map(|a| &a.budgets));
        let had = |named: fn(&Budgets) -> bool| before.is_some_and(named);
        let mut changes = Changes {
            max_pairs: b.pairs.or_else(|| had(|b| b.pairs.is_some()).then_some(defaults.max_pairs)),
            budget_bytes: (b.per_peer_bytes.map(|b| b.0 as u32))
                .or_else(|| had(|b| b.per_peer_bytes.is_some()).then_some(defaults.budget_bytes)),
            budget_messages: (b.per_peer_messages)
                .or_else(|| had(|b| b.per_peer_messages.is_some()).then_some(defaults.budget_messages)),
            min_messages: (b.min_messages)
                .or_else(|| had(|b| b.min_messages.is_some()).then_some(defaults.min_messages)),
            total_budget_bytes: (b.total_bytes.map(|b| b.0))
                .or_else(|| had(|b| b.total_bytes.is_some()).then_some(defaults.total_budget_bytes)),
            kernel: None,
        };
        if other && self.pin_dir.exists() {
            let mut kernel = crate::check::configuration()?;
            kernel.fionread |= datapath::SHORT_READS;
            changes.kernel = Some(kernel);
        }
        if let Some((view, how)) = Datapath::upgrade(&self.pin_dir, &changes)? {
            self.memory.save(&view);
            let how = match how {
                datapath::Upgrade::InPlace => "in place",
                datapath::Upgrade::NewGeneration => "beside the old ones, which serve the connections that they have",
            };
            tracing::info!("what was pinned has this build's programs and these budgets now, {how}");
        }
        self.ledger.set_programs(own)?;
        self.applied = Some(self.config.clone());
        Ok(())
    }

    fn options(&self) -> anyhow::Result<LoadOptions> {
        let b = &self.config.budgets;
        let defaults = LoadOptions::default();
        let mut kernel = crate::check::configuration_for(&self.pin_dir)?;
        kernel.fionread |= datapath::SHORT_READS;
        Ok(LoadOptions {
            pin_dir: self.pin_dir.clone(),
            max_pairs: b.pairs.unwrap_or(defaults.max_pairs),
            budget_bytes: b.per_peer_bytes.map_or(defaults.budget_bytes, |b| b.0 as u32),
            budget_messages: b.per_peer_messages.unwrap_or(defaults.budget_messages),
            min_messages: b.min_messages.unwrap_or(defaults.min_messages),
            total_budget_bytes: b.total_bytes.map_or(defaults.total_budget_bytes, |b| b.0),
            kernel,
            ..defaults
        })
    }

    /// One round.
    pub fn round(&mut self) -> anyhow::Result<Round> {
        let started = Instant::now();
        let mut round = Round::default();
        self.inventory.refresh()?;
        let mut listing = self.inventory.list();
        round.names = Names::new(&datapath::cgroup2_mount()?, &listing.workloads);
        let mut failed: Vec<String> =
            listing.looked.iter().filter_map(|l| l.error.as_ref().map(|e| format!("{}: {e}", l.backend))).collect();
        failed.extend(missing(&listing, &self.ledger));
        let mut heard = Heard { runtimes: failed.is_empty(), kubernetes: true };
        if let Some(view) = &self.kubernetes {
            // in this order: what is heard between the two counts from the next round on
            heard.kubernetes = view.is_complete();
            view.fill(&mut listing.workloads);
        }
        self.upgrade()?;
        let wanted = self.policy.wanted(&listing.workloads);
        let (mut is, ports_in_force) = self.state()?;
        let plan = plan(&wanted, &is, &self.ledger, heard);
        let ports: BTreeSet<u16> = self.config.ports.leave_alone.iter().copied().collect();
        let mut errors: BTreeMap<u64, String> = BTreeMap::new();
        let changes = !plan.attach.is_empty() || !plan.detach.is_empty() || !plan.capture.is_empty();
        if changes || (!is.is_empty() && ports_in_force != ports) {
            self.apply(&plan, &ports, &mut errors, &mut round)?;
            is = self.state()?.0;
        }
        self.ledger.remove(&plan.forget)?;
        if is.iter().any(|w| w.cgroup.is_none()) && self.swept.is_none_or(|at| at.elapsed() >= SWEEP) {
            // cgroups that were removed are forgotten with their last socket, when what is pinned is opened
            self.swept = Some(Instant::now());
            drop(Datapath::open(&self.pin_dir)?);
            round.again = Some(SWEEP);
        }
        if self.adoption.due.is_some_and(|due| due <= Instant::now()) {
            self.adopt();
        }
        round.rows = self.rows(&listing, &is, &errors);
        if !failed.is_empty() {
            round.unready = Some(failed.join("; "));
            round.again = Some(RETRY);
        }
        if !errors.is_empty() {
            round.again = Some(RETRY);
        }
        if let Some(due) = self.adoption.due {
            let wait = due.saturating_duration_since(Instant::now());
            round.again = Some(round.again.map_or(wait, |again| again.min(wait)));
        }
        tracing::debug!(
            milliseconds = started.elapsed().as_millis() as u64,
            workloads = round.rows.len(),
            attached = round.rows.iter().filter(|r| r.attached).count(),
            "a round"
        );
        Ok(round)
    }

    fn apply(
        &mut self,
        plan: &Plan,
        ports: &BTreeSet<u16>,
        errors: &mut BTreeMap<u64, String>,
        round: &mut Round,
    ) -> anyhow::Result<()> {
        // before it is done, so that an agent that is killed now knows later that it was it
        self.ledger.add(plan.attach.iter().map(|(id, w)| (*id, w.name.clone())))?;
        let datapath = if plan.attach.is_empty() {
            match Datapath::open(&self.pin_dir)? {
                Some(datapath) => datapath,
                None => return Ok(()),
            }
        } else {
            Datapath::open_or_load(&self.options()?)?
        };
        datapath.leave_ports(ports)?;
        for (id, may) in &plan.capture {
            datapath.withhold(*id, !may)?;
        }
        let mut attached = false;
        for (id, wanted) in &plan.attach {
            datapath.withhold(*id, !wanted.capture)?; // before its first connection is seen
            self.memory.load(&datapath, &wanted.path); // before its first connection is judged
            match datapath.attach(&wanted.path, wanted.eligibility.into()) {
                Ok(Attach::Already) => {}
                Ok(how) => {
                    attached = true;
                    let eligibility = if wanted.eligibility == Eligibility::All { "all" } else { "safe" };
                    let how = if how == Attach::Attached { "attached" } else { "changed" };
                    tracing::info!(workload = wanted.name, cgroup = %wanted.path.display(), eligibility, "{how}");
                }
                Err(_) if !wanted.path.exists() => {} // it has ended meanwhile
                Err(e) => {
                    tracing::error!(workload = wanted.name, "not attached: {e}");
                    errors.insert(*id, e.to_string());
                }
            }
        }
        if !plan.detach.is_empty() {
            let remaining = self.detach(&datapath, &plan.detach, DRAIN)?;
            if remaining > 0 {
                tracing::info!(remaining, "halves that hold unread bytes have yet to leave");
                round.again = Some(Duration::from_secs(1));
            }
        }
        datapath.remove_if_idle()?;
        drop(datapath);
        if attached {
            self.adoption.start();
            self.adopt();
        }
        Ok(())
    }

    /// How many halves have yet to leave.
    fn detach(&mut self, datapath: &Datapath, ids: &[u64], patience: Duration) -> anyhow::Result<u64> {
        self.memory.save(datapath);
        for id in ids {
            datapath.start_drain(*id)?;
        }
        let remaining = datapath.drain(patience)?.remaining;
        if remaining == 0 {
            for id in ids {
                datapath.finish_detach(*id)?;
                tracing::info!(workload = self.ledger.name(*id).unwrap_or("?"), "detached");
            }
            self.ledger.remove(ids)?;
        }
        Ok(remaining)
    }

    /// What fails is no reason to stop: what is new is accelerated all the same.
    fn adopt(&mut self) {
        let adopted = match Datapath::open(&self.pin_dir) {
            Ok(Some(datapath)) => {
                let adopted = datapath.adopt(Duration::ZERO);
                self.memory.save(&datapath);
                adopted
            }
            Ok(None) => return self.adoption.went(0),
            Err(e) => Err(e),
        };
        match adopted {
            Ok(adoption) => {
                if adoption.adopted > 0 {
                    tracing::info!(count = adoption.adopted, "connections that existed already are accelerated");
                }
                self.adoption.went(adoption.learning + adoption.busy);
            }
            Err(e @ datapath::Error::Unsupported { .. }) => {
                tracing::debug!("{e}");
                self.adoption.went(0);
            }
            Err(e) => {
                tracing::warn!("connections that exist already were not adopted: {e}");
                self.adoption.went(1);
            }
        }
    }

    /// What is attached, and which ports are left alone.
    fn state(&self) -> anyhow::Result<(Vec<datapath::Workload>, BTreeSet<u16>)> {
        let read = Datapath::reading(&self.pin_dir, |d| anyhow::Ok((d.workloads()?, d.ports()?)))?;
        Ok(read.unwrap_or_default())
    }

    fn rows(&self, listing: &Listing, is: &[datapath::Workload], errors: &BTreeMap<u64, String>) -> Vec<Row> {
        let attached: BTreeSet<u64> = is.iter().filter(|w| !w.draining).map(|w| w.cgroup_id).collect();
        let rows = listing.workloads.iter().filter_map(|w| {
            let decision = self.policy.decide(w);
            if w.runtime == Runtime::Systemd && matches!(decision, Decision::LeaveAlone(_)) {
                return None;
            }
            let places = w.place.as_deref().unwrap_or(&[]);
            Some(Row {
                name: w.to_string(),
                host_network: w.host_network,
                decision,
                attached: !places.is_empty() && places.iter().all(|p| attached.contains(&p.id)),
                error: places.iter().find_map(|p| errors.get(&p.id).cloned()),
            })
        });
        rows.collect()
    }

    /// At the end: what was learned is kept; where the file says so, all that the agent attached is detached.
    pub fn end(&mut self, drain: bool) -> anyhow::Result<()> {
        let Some(datapath) = Datapath::open(&self.pin_dir)? else { return Ok(()) };
        self.memory.save(&datapath);
        if !drain && !self.config.drain_on_exit {
            tracing::info!("acceleration stays on");
            return Ok(());
        }
        let is: BTreeSet<u64> = datapath.workloads()?.iter().map(|w| w.cgroup_id).collect();
        let ids: Vec<u64> = self.ledger.ids().filter(|id| is.contains(id)).collect();
        let remaining = self.detach(&datapath, &ids, LAST_DRAIN)?;
        if remaining > 0 {
            anyhow::bail!(
                "{remaining} halves hold bytes that their application has not read; they stay accelerated until they can \
                 leave: `shared-socket detach --all` tries again"
            );
        }
        datapath.remove_if_idle()?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attached(id: u64, eligibility: datapath::Eligibility, draining: bool) -> datapath::Workload {
        datapath::Workload {
            cgroup_id: id,
            cgroup: Some(format!("/{id}").into()),
            attached_at: 0,
            eligibility,
            draining,
            capture: true,
            complete: true,
        }
    }

    fn wanted(ids: &[u64]) -> BTreeMap<u64, Wanted> {
        ids.iter()
            .map(|id| {
                let path = format!("/{id}").into();
                (*id, Wanted { path, eligibility: Eligibility::Safe, capture: *id != 8, name: format!("x/{id}") })
            })
            .collect()
    }

    #[test]
    fn a_runtime_that_is_not_even_there() {
        let folder = tempfile::tempdir().unwrap();
        let mut ledger = Ledger::open(folder.path()).unwrap();
        let looked = |backend: &str| crate::discovery::Looked { backend: backend.into(), workloads: 0, error: None };
        let units = Listing { looked: vec![looked("systemd units in the cgroup tree")], workloads: Vec::new() };
        assert_eq!(missing(&units, &ledger), None);
        ledger.add([(1, "unit/nginx.service".to_owned())].into_iter()).unwrap();
        assert_eq!(missing(&units, &ledger), None);
        ledger.add([(2, "core/smf-0".to_owned())].into_iter()).unwrap();
        assert!(missing(&units, &ledger).is_some_and(|why| why.contains("CRI")));
        let both =
            Listing { looked: vec![looked("CRI runtime at /x"), looked("systemd units")], workloads: Vec::new() };
        assert_eq!(missing(&both, &ledger), None);
    }

    #[test]
    fn plans() {
        let folder = tempfile::tempdir().unwrap();
        let mut ledger = Ledger::open(folder.path()).unwrap();
        ledger.add((1..=5).map(|id| (id, String::new()))).unwrap();
        let safe = datapath::Eligibility::Safe;
        let is = [
            attached(1, safe, false),                       // as it shall be
            attached(2, datapath::Eligibility::All, false), // another eligibility
            attached(3, safe, true),                        // was to go, and shall stay
            attached(4, safe, false),                       // shall go
            attached(8, datapath::Eligibility::All, false), // by hand, and wanted
            attached(9, safe, false),                       // by hand
        ];
        let wanted = wanted(&[1, 2, 3, 7, 8]);
        let ids = |p: &Plan| p.attach.iter().map(|(id, _)| *id).collect::<Vec<_>>();
        let heard = |runtimes, kubernetes| Heard { runtimes, kubernetes };
        let all = plan(&wanted, &is, &ledger, heard(true, true));
        assert_eq!((ids(&all), all.detach, all.forget), (vec![2, 3, 7], vec![4], vec![5]));
        assert_eq!(all.capture, [(8, false)], "also of what was attached by hand");
        let some = plan(&wanted, &is, &ledger, heard(false, true));
        assert_eq!((ids(&some), some.detach), (vec![2, 3, 7], vec![]));
        let blind = plan(&wanted, &is, &ledger, heard(true, false));
        assert_eq!((ids(&blind), blind.detach, blind.forget), (vec![3, 7], vec![], vec![5]));
    }
}
