//! `/jobs/v2`: methods and twin updates for many devices.

use serde_json::Value;

use super::query::Page;
use super::{Answer, Call};
use crate::hub::failure::Failure;
use crate::hub::job::{Job, JobStatus, unknown};

pub(super) fn put(call: &Call, id: &str) -> Result<Answer, Failure> {
    let job = Job::new(id, call.json()?)?;
    call.hub.change(|state| {
        if state.jobs.contains_key(id) {
            let message = format!("A job with ID '{id}' already exists.");
            return Err(Failure::new(409, "JobAlreadyExists", message));
        }
        if state.active_jobs() >= state.active_jobs_limit {
            let message = format!("At most {} jobs may be active at once.", state.active_jobs_limit);
            return Err(Failure::new(429, "ThrottlingMaxActiveJobCountExceeded", message));
        }
        // Whatever the start time, the hub says so at first.
        let mut made = job.clone();
        made.status = JobStatus::Queued;
        state.keep_job(id, job);
        Ok(Answer::ok(made.for_service(id)))
    })
}

/// A job that never was is an answer, too.
pub(super) fn get(call: &Call, id: &str) -> Result<Answer, Failure> {
    let job = call.hub.read(|state| state.jobs.get(id).map(|job| job.for_service(id)));
    Ok(Answer::ok(job.unwrap_or_else(|| unknown(id))))
}

/// Only a job that has not begun can be cancelled.
pub(super) fn cancel(call: &Call, id: &str) -> Result<Answer, Failure> {
    call.hub.change(|state| {
        let not_found = || Failure::new(404, "JobNotFound", format!("Job '{id}' was not found."));
        let job = state.jobs.get_mut(id).ok_or_else(not_found)?;
        if !job.status.is_waiting() {
            let message = format!("The job cannot be cancelled: it is {:?}.", job.status);
            return Err(Failure::new(405, "OperationNotAllowedInCurrentState", message));
        }
        job.end(JobStatus::Cancelled, None);
        Ok(Answer::ok(job.for_service(id)))
    })
}

/// All jobs, or those of `jobType` and `jobStatus`, page by page.
pub(super) fn query(call: &Call) -> Result<Answer, Failure> {
    let page = Page::of(call)?;
    let matches = |job: &Value, member: &str, parameter: &str| {
        let asked = call.parameter(parameter);
        let is = job.get(member).and_then(Value::as_str);
        asked.is_none_or(|asked| is.is_some_and(|is| is.eq_ignore_ascii_case(asked)))
    };
    let jobs = call.hub.read(|state| {
        let jobs = state.jobs.iter().map(|(id, job)| job.for_service(id));
        let found = jobs.filter(|job| matches(job, "type", "jobType") && matches(job, "status", "jobStatus"));
        found.skip(page.skip).take(page.wanted()).collect()
    });
    Ok(page.answer(jobs, "JobResponse"))
}
