//! All pipelines of a process: keeps each one going, whatever becomes of the others, and answers for those that do not run.
//! Opens nothing itself.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use metrics_exporter_prometheus::PrometheusHandle;
use tokio::sync::watch;

use super::pipeline::{Common, Pipeline};
use super::serving::Shared;
use super::{AppError, measures, process};
use crate::capture::{Phase, Status};
use crate::config::{Config, Configs, Role};
use crate::metrics::{self, PipelineMetrics};
use crate::remedy;
use crate::retry::{Chain, Retry};
use crate::serve::control::ControlFn;
use crate::serve::health::{self, Component, Report};
use crate::serve::status::State;
use crate::serve::{SearchAnswer, SearchError, SearchFn, SearchRequest, Service, Services};

/// Between the attempts at a pipeline that has failed: each opens log and mirror again.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// Who has lasted this long has met the fault before no more.
const LASTED: Duration = Duration::from_secs(60);
/// When it makes sense to ask a pipeline again that does not run, in seconds.
const RETRY_AFTER_S: u64 = 5;
/// Why a pipeline that is being opened cannot answer.
const OPENING: &str = "it is being opened";
/// The component of a pipeline that does not run.
const PIPELINE: &str = "pipeline";

/// What a pipeline is doing.
#[derive(Clone)]
enum Doing {
    /// It is being opened.
    Starting,
    Running(Arc<Shared>),
    /// Why it does not run. It is tried again.
    Failed(String),
}

/// One pipeline, as everybody else sees it.
struct Slot {
    name: String,
    /// The same, where there are others.
    one_of_several: Option<Arc<str>>,
    filters: Vec<String>,
    captures: bool,
    serves: bool,
    stores: Vec<&'static str>,
    metrics: PipelineMetrics,
    doing: RwLock<Doing>,
    /// Whether it has failed at any time.
    has_failed: AtomicBool,
    /// What it failed of, until an attempt since then has come further.
    fault: RwLock<Option<String>>,
}

/// All of them.
pub(super) struct Fleet {
    slots: Vec<Arc<Slot>>,
    default: usize,
    /// Whether the process was ready at any time.
    was_ready: AtomicBool,
    /// How many of them have come to run or failed.
    settled: watch::Sender<usize>,
}

impl Fleet {
    pub fn new(configs: &Configs) -> Arc<Fleet> {
        let is_one = configs.pipelines.len() == 1;
        let slots = configs.pipelines.iter().map(|config| Arc::new(Slot::new(config, is_one))).collect();
        let (was_ready, settled) = (AtomicBool::new(false), watch::channel(0).0);
        Arc::new(Fleet { slots, default: configs.default, was_ready, settled })
    }

    /// Whether there is one alone: then its end is the end of the process.
    pub fn is_one(&self) -> bool {
        self.slots.len() == 1
    }

    /// Waits until the first one runs.
    pub async fn has_begun(&self) {
        // Its sender is ours.
        let _ = self.settled.subscribe().wait_for(|settled| *settled > 0).await;
    }

    /// Runs one pipeline until the process ends. Where it fails and others do not, it is opened again after a pause.
    pub async fn keep(self: Arc<Self>, place: usize, config: Config, common: Common) -> Result<(), AppError> {
        let slot = &self.slots[place];
        remedy::about(slot.one_of_several.clone(), Box::pin(self.keep_one(slot, config, common))).await
    }

    async fn keep_one(&self, slot: &Slot, config: Config, common: Common) -> Result<(), AppError> {
        let mut retry = Retry::paced(PIPELINE, FIRST_PAUSE, LONGEST_PAUSE);
        loop {
            let began = Instant::now();
            let Err(error) = self.attempt(slot, config.clone(), &common).await else { return Ok(()) };
            if self.is_one() || common.shutdown.is_raised() {
                return Err(error);
            }
            let fault = slot.told(Chain(&error).to_string());
            slot.fails(&fault);
            if let Some(faults) = self.all_failed() {
                return Err(AppError::AllFailed(faults));
            }
            if began.elapsed() > LASTED {
                retry.reset();
            }
            if !retry.wait(&format!("pipeline {}: {fault}", slot.name), &common.shutdown).await {
                return Ok(());
            }
            slot.now(Doing::Starting);
        }
    }

    /// Until all are to end, or this one fails.
    async fn attempt(&self, slot: &Slot, config: Config, common: &Common) -> Result<(), AppError> {
        let mut pipeline = tokio::select! {
            opened = Pipeline::open(config, common) => opened?,
            () = common.shutdown.raised() => return Ok(()),
        };
        slot.now(Doing::Running(Arc::clone(&pipeline.shared)));
        self.settled.send_modify(|settled| *settled += 1);
        let ended = pipeline.run().await;
        if let Err(error) = &ended {
            if self.is_one() {
                // Who searches is answered to the end.
                common.shutdown.raise();
            } else {
                slot.fails(&slot.told(Chain(error).to_string()));
            }
        }
        ended.and(pipeline.close().await)
    }

    /// What every pipeline has failed of; `None`: one of them runs, or is being opened.
    fn all_failed(&self) -> Option<String> {
        let faults = self.slots.iter().map(|slot| match slot.doing() {
            Doing::Failed(fault) => Some(format!("{}: {fault}", slot.name)),
            Doing::Starting | Doing::Running(_) => None,
        });
        faults.collect::<Option<Vec<_>>>().map(|faults| faults.join("; "))
    }

    /// What the query server answers.
    /// `controls`: what does the commands about each pipeline.
    pub fn services(
        self: &Arc<Self>,
        controls: Vec<Arc<ControlFn>>,
        registry: PrometheusHandle,
        started_ms: i64,
    ) -> Services {
        let (asked, begun, measured) = (Arc::clone(self), Arc::clone(self), Arc::clone(self));
        Services {
            pipelines: self.slots.iter().zip(controls).map(|(slot, control)| service(slot, control)).collect(),
            default: self.default,
            ready: Arc::new(move || asked.ready()),
            started: Arc::new(move || begun.started()),
            metrics: Arc::new(move || {
                measured.slots.iter().for_each(|slot| slot.measure());
                metrics::process(&process::taken(started_ms as f64 / 1000.0));
                metrics::exposition(&registry)
            }),
        }
    }

    /// Whether the process is ready, or what it waits for: a pipeline that is, and at the beginning for every other one that
    /// has nothing in its way. Afterwards none keeps the others from being asked.
    fn ready(&self) -> Result<(), String> {
        let is_ready: Vec<Result<(), String>> = self.slots.iter().map(|slot| slot.report().readiness()).collect();
        let named = |place: usize, why: &str| format!("pipeline {}: {why}", self.slots[place].name);
        let waits = |(place, is_ready): (usize, &Result<(), String>)| Some(named(place, is_ready.as_ref().err()?));
        if is_ready.iter().all(Result::is_err) {
            return Err(is_ready.iter().enumerate().filter_map(waits).collect::<Vec<_>>().join("; "));
        }
        if !self.was_ready.load(Ordering::Relaxed) {
            let begins = is_ready.iter().enumerate().filter(|(place, _)| self.slots[*place].begins());
            let begins: Vec<String> = begins.filter_map(waits).collect();
            if !begins.is_empty() {
                return Err(begins.join("; "));
            }
            self.was_ready.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Ready, and every pipeline has held its whole table, or what is waited for. One that something is in the way of keeps no
    /// others out.
    fn started(&self) -> Result<(), String> {
        self.ready()?;
        let waits = |slot: &Arc<Slot>| Some(format!("pipeline {}: {}", slot.name, slot.report().started().err()?));
        let waits: Vec<String> = self.slots.iter().filter(|slot| !slot.is_kept()).filter_map(waits).collect();
        if waits.is_empty() { Ok(()) } else { Err(waits.join("; ")) }
    }
}

impl Slot {
    fn new(config: &Config, is_one: bool) -> Slot {
        let does = |role| config.roles.contains(&role);
        let mut stores = vec![];
        if does(Role::Serve) || does(Role::Index) {
            stores.push(super::LOCAL);
            stores.extend(config.qdrant.as_ref().map(|_| crate::index::primary::STORE));
        }
        Slot {
            name: config.pipeline.name.clone(),
            one_of_several: (!is_one).then(|| config.pipeline.name.as_str().into()),
            filters: config.pipeline.filters.clone(),
            captures: does(Role::Capture),
            serves: does(Role::Serve),
            stores,
            metrics: PipelineMetrics::new(&config.pipeline.name),
            doing: RwLock::new(Doing::Starting),
            has_failed: AtomicBool::new(false),
            fault: RwLock::default(),
        }
    }

    fn doing(&self) -> Doing {
        self.doing.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn now(&self, doing: Doing) {
        *self.doing.write().unwrap_or_else(PoisonError::into_inner) = doing;
    }

    fn fails(&self, fault: &str) {
        self.has_failed.store(true, Ordering::Relaxed);
        *self.fault.write().unwrap_or_else(PoisonError::into_inner) = Some(fault.to_owned());
        self.now(Doing::Failed(fault.to_owned()));
    }

    /// What it failed of before, as long as it has not come further since: that it is opened again says nothing yet.
    fn fault_before(&self, shared: Option<&Shared>) -> Option<String> {
        let known = self.fault.read().unwrap_or_else(PoisonError::into_inner).clone()?;
        let follows = |shared: &Shared| {
            let streams = |status: &watch::Receiver<Status>| {
                matches!(status.borrow().phase, Phase::Streaming | Phase::Standby(_))
            };
            shared.status.as_ref().is_none_or(streams) && shared.report().readiness().is_ok()
        };
        if shared.is_some_and(follows) {
            *self.fault.write().unwrap_or_else(PoisonError::into_inner) = None;
            return None;
        }
        Some(known)
    }

    /// Whether it is on its way for the first time, and nothing is known to be in its way.
    fn begins(&self) -> bool {
        if self.has_failed.load(Ordering::Relaxed) {
            return false;
        }
        match self.doing() {
            Doing::Starting => true,
            Doing::Failed(_) => false,
            Doing::Running(shared) => {
                let is_captured = |status: &watch::Receiver<Status>| {
                    matches!(status.borrow().phase, Phase::Starting | Phase::Streaming)
                };
                shared.status.as_ref().is_none_or(is_captured)
            }
        }
    }

    /// Whether something is known to be in the way of its becoming whole.
    fn is_kept(&self) -> bool {
        let is_refused =
            |status: &watch::Receiver<Status>| matches!(status.borrow().phase, Phase::Retrying(_) | Phase::Refused(_));
        match self.doing() {
            Doing::Starting => self.has_failed.load(Ordering::Relaxed),
            Doing::Failed(_) => true,
            Doing::Running(shared) => {
                self.fault_before(Some(&shared)).is_some() || shared.status.as_ref().is_some_and(is_refused)
            }
        }
    }

    /// A text of this pipeline, whose commands name it where there are others.
    fn told(&self, text: String) -> String {
        match &self.one_of_several {
            Some(name) => remedy::named(&text, name).into_owned(),
            None => text,
        }
    }

    fn report(&self) -> Report {
        let mut report = self.report_as_is();
        for error in report.components.iter_mut().filter_map(|component| component.error.as_mut()) {
            *error = self.told(std::mem::take(error));
        }
        report.ready = report.ready.map_err(|why| self.told(why));
        report
    }

    fn report_as_is(&self) -> Report {
        let (mut report, status) = match self.doing() {
            Doing::Running(shared) => match self.fault_before(Some(&shared)) {
                None => return shared.report(),
                Some(_) => (shared.report(), health::Status::Degraded),
            },
            Doing::Starting => (self.report_of_none(OPENING), health::Status::Degraded),
            Doing::Failed(fault) => (self.report_of_none(&fault), health::Status::Unhealthy),
        };
        let reason = self.reason(report.ready.as_ref().err().map_or("", String::as_str));
        report.components.insert(0, Component { error: Some(reason.clone()), ..Component::new(PIPELINE, status) });
        report.ready = report.ready.map_err(|_| reason);
        report
    }

    fn report_of_none(&self, why: &str) -> Report {
        Report { components: vec![], ready: Err(why.to_owned()), serves: self.serves, is_whole: false }
    }

    /// Why it cannot answer now, with what it failed of before.
    fn reason(&self, now: &str) -> String {
        match &*self.fault.read().unwrap_or_else(PoisonError::into_inner) {
            Some(fault) if fault == now || now.is_empty() => format!("it failed and is tried again: {fault}"),
            Some(fault) => format!("it failed and is tried again: {fault}; now: {now}"),
            None => now.to_owned(),
        }
    }

    /// Makes a search, if the pipeline runs.
    async fn search(&self, request: SearchRequest) -> Result<SearchAnswer, SearchError> {
        self.search_as_is(request).await.map_err(|error| match error {
            SearchError::Unavailable { reason, retry_after_s } => {
                SearchError::Unavailable { reason: self.told(reason), retry_after_s }
            }
            other => other,
        })
    }

    async fn search_as_is(&self, request: SearchRequest) -> Result<SearchAnswer, SearchError> {
        let now = match self.doing() {
            Doing::Running(shared) => match shared.search(request).await {
                Err(SearchError::Unavailable { reason, .. }) if self.fault_before(Some(&shared)).is_some() => reason,
                answered => return answered,
            },
            Doing::Starting => OPENING.to_owned(),
            Doing::Failed(fault) => fault,
        };
        let reason = format!("pipeline {}: {}", self.name, self.reason(&now));
        Err(SearchError::Unavailable { reason, retry_after_s: RETRY_AFTER_S })
    }

    /// Sets the metrics of this moment, also of a pipeline that does not run: what was true before is not now.
    fn measure(&self) {
        if let Doing::Running(shared) = self.doing() {
            self.metrics.is_up(self.fault_before(Some(&shared)).is_none());
            measures::refresh(&shared);
        } else {
            self.metrics.is_up(false);
            measures::refresh_without(&self.metrics, self.captures, &self.stores);
        }
    }
}

/// What one pipeline answers.
fn service(slot: &Arc<Slot>, control: Arc<ControlFn>) -> Service {
    let (searching, reporting, looking) = (Arc::clone(slot), Arc::clone(slot), Arc::clone(slot));
    let search: Arc<SearchFn> = Arc::new(move |request| {
        let slot = Arc::clone(&searching);
        Box::pin(async move { slot.search(request).await })
    });
    Service {
        pipeline: slot.name.clone(),
        search: slot.serves.then_some(search),
        filters: slot.filters.clone(),
        health: Arc::new(move || reporting.report()),
        state: Arc::new(move || match looking.doing() {
            Doing::Running(shared) => shared.state(),
            Doing::Starting | Doing::Failed(_) => State::default(),
        }),
        control: Some(control),
    }
}
