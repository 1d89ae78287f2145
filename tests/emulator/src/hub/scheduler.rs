//! Carries out jobs when their time has come.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::clock;
use super::device::MethodResponse;
use super::failure::Failure;
use super::job::{Job, JobStatus, Kind};
use super::method;
use super::query::Condition;
use super::state::{Shared, State};
use super::twin::Write;

/// Devices that one job deals with at once.
const CONCURRENCY: usize = 10;
/// The longest wait for the next job: a clock that is set is noticed then.
const WAIT_LIMIT: Duration = Duration::from_secs(60);
/// Jobs kept; the real hub keeps them for 30 days.
const HISTORY_LIMIT: usize = 1000;

/// Runs jobs for ever.
pub(super) async fn run(hub: Arc<Shared>) {
    let due = hub.read(|state| Arc::clone(&state.job_due));
    let mut running = JoinSet::new();
    loop {
        match hub.change(begin_next) {
            Next::Work(work) => {
                running.spawn(carry_out(Arc::clone(&hub), work));
            }
            Next::In(wait) => {
                // Elapsed is fine: then the job's time has come.
                let _ = timeout(wait, due.notified()).await;
            }
        }
        while running.try_join_next().is_some() {}
    }
}

/// A job that has begun.
struct Work {
    id: String,
    kind: Kind,
    content: Value,
    devices: Vec<String>,
    limit: Duration,
}

enum Next {
    Work(Work),
    In(Duration),
}

/// Begins the job that waits longest, if its time has come.
fn begin_next(state: &mut State) -> Next {
    let waiting = state.jobs.iter().filter(|(_, job)| job.status.is_waiting());
    let Some((id, start_millis)) =
        waiting.map(|(id, job)| (id.clone(), job.start_millis)).min_by_key(|(_, start)| *start)
    else {
        return Next::In(WAIT_LIMIT);
    };
    let wait_millis = start_millis.saturating_sub(clock::now_millis());
    if let Ok(millis @ 1..) = u64::try_from(wait_millis) {
        return Next::In(Duration::from_millis(millis).min(WAIT_LIMIT));
    }
    match begin(state, &id) {
        Some(work) => Next::Work(work),
        None => Next::In(Duration::ZERO),
    }
}

/// Begins a job with the devices that meet its condition now. Nothing if there is no condition to meet.
fn begin(state: &mut State, id: &str) -> Option<Work> {
    let condition = Condition::parse(&state.jobs.get(id)?.query_condition);
    let devices = condition.map(|condition| {
        let targeted = state.seen().filter(|seen| condition.holds(seen));
        targeted.map(|seen| seen.key.to_owned()).collect::<Vec<_>>()
    });
    let job = state.jobs.get_mut(id)?;
    match devices {
        Ok(devices) => {
            tracing::info!(job = id, devices = devices.len(), "job begins");
            job.begin(&devices);
            let limit = Duration::from_secs(job.max_execution_secs);
            Some(Work { id: id.to_owned(), kind: job.kind, content: job.content.clone(), devices, limit })
        }
        Err(error) => {
            tracing::info!(job = id, %error, "job has no query");
            job.end(JobStatus::Failed, Some(format!("queryCondition: {error}")));
            None
        }
    }
}

async fn carry_out(hub: Arc<Shared>, work: Work) {
    let each = stream::iter(&work.devices)
        .for_each_concurrent(CONCURRENCY, |device| carry_out_on(&hub, &work, device));
    let in_time = timeout(work.limit, each).await.is_ok();
    let (status, reason) = if in_time {
        (JobStatus::Completed, None)
    } else {
        (JobStatus::Failed, Some("The job took longer than maxExecutionTimeInSeconds.".to_owned()))
    };
    tracing::info!(job = work.id, ?status, "job ends");
    hub.change(|state| state.jobs.get_mut(&work.id).map(|job| job.end(status, reason)));
}

async fn carry_out_on(hub: &Shared, work: &Work, device: &str) {
    hub.change(|state| state.job_row(&work.id, device).map(|row| row.begin(clock::now_text())));
    let outcome = match work.kind {
        Kind::ScheduleDeviceMethod => call(hub, device, &work.content).await,
        Kind::ScheduleUpdateTwin => hub.change(|state| update(state, device, &work.content)),
    };
    hub.change(|state| state.job_row(&work.id, device).map(|row| row.end(outcome, clock::now_text())));
}

async fn call(hub: &Shared, device: &str, content: &Value) -> Result<Value, Failure> {
    let MethodResponse { status, payload } = hub.call(device, &method::Call::from_body(content)?).await?;
    Ok(json!({ "status": status, "payload": payload }))
}

fn update(state: &mut State, device: &str, twin: &Value) -> Result<Value, Failure> {
    let current = state.device(device)?.twin.etag();
    let etag = twin.get("etag").and_then(Value::as_str).map(|etag| etag.trim_matches('"'));
    if etag.is_some_and(|etag| !etag.is_empty() && etag != "*" && etag != current) {
        return Err(Failure::stale(&current));
    }
    state.write_twin(device, Write::Patch, twin)?;
    Ok(Value::Null)
}

impl State {
    fn job_row(&mut self, job: &str, device: &str) -> Option<&mut super::job::Row> {
        self.jobs.get_mut(job)?.rows.get_mut(device)
    }

    /// Takes a new job in; the oldest one that is over makes room for it.
    pub fn keep_job(&mut self, id: &str, job: Job) {
        let over = self.jobs.iter().filter(|(_, job)| !job.status.is_active());
        let oldest = over.min_by_key(|(_, job)| job.start_millis).map(|(id, _)| id.clone());
        if let Some(oldest) = oldest.filter(|_| self.jobs.len() >= HISTORY_LIMIT) {
            self.jobs.remove(&oldest);
        }
        self.jobs.insert(id.to_owned(), job);
        self.job_due.notify_one();
    }

    /// The number of jobs that wait or run.
    pub fn active_jobs(&self) -> usize {
        self.jobs.values().filter(|job| job.status.is_active()).count()
    }

    /// What `devices.jobs` has.
    pub fn job_documents(&self) -> impl Iterator<Item = Value> {
        self.jobs.iter().flat_map(|(id, job): (&String, &Job)| job.documents(id))
    }
}
