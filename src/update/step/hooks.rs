//! The part of hooks in the policy: what waits for them, and what they hear.

use super::{AFTERWORD_RUNS_MAX, Context, Effect, Step, awaiting, finish, give_up, to_state, unchanged};
use crate::update::hook::{Afterword, Deferral, Gate, Hook, HookRun, Verdict};
use crate::update::record::{Outcome, Record, State, Update};
use crate::update::{Code, Failure, UpdateId};

/// Asks the hooks of a gate.
pub(super) fn ask(
    record: Record,
    update: Update,
    gate: Gate,
    attempt: u8,
    deferral: Option<Deferral>,
) -> Step {
    let again = attempt == 1 && deferral.is_some();
    let run = hook_run(&record, gate.hook(), update.clone(), None, again);
    to_state(record, State::Asking { update, gate, attempt, deferral }, [Effect::Report, run])
}

fn hook_run(record: &Record, hook: Hook, update: Update, reason: Option<String>, again: bool) -> Effect {
    let from_version = record.versions.get(update.target.other()).map(str::to_owned);
    Effect::RunHooks(Box::new(HookRun { hook, update, from_version, reason, again }))
}

/// They answered, or heard.
pub(super) fn hooks_ran(
    context: &Context,
    mut record: Record,
    id: &UpdateId,
    hook: Hook,
    verdict: Verdict,
) -> Step {
    if record.afterword.as_ref().is_some_and(|after| after.hook == hook && after.update.request.id == *id) {
        record.afterword = None;
        return unchanged(record, []);
    }
    let (update, gate, deferral) = match awaiting(&record, id) {
        Some(State::Asking { update, gate, deferral, .. }) if gate.hook() == hook => (update, gate, deferral),
        _ => return unchanged(record, []),
    };
    match verdict {
        Verdict::GoOn => go_on(record, update, gate),
        Verdict::Refuse(why) => give_up(context, record, update, Failure::new(Code::HookRefused, why)),
        Verdict::Later(reason) => {
            let spent_secs = deferral.map_or(0, |deferral| deferral.spent_secs(context.now));
            if spent_secs >= context.policy.defer_limit_secs {
                let message = format!("{reason}; deferred for {spent_secs} s, longer than is allowed");
                return give_up(context, record, update, Failure::new(Code::HookRefused, message));
            }
            let deferral = Deferral { reason, spent_secs, at: context.now };
            ask(record, update, gate, 1, Some(deferral))
        }
    }
}

/// Through a gate.
fn go_on(mut record: Record, update: Update, gate: Gate) -> Step {
    match gate {
        Gate::BeforeInstall => {
            // From now on the target holds nothing.
            record.versions.set(update.target, None);
            record.fallback = record.fallback.filter(|slot| *slot != update.target);
            let effects = [Effect::Report, Effect::Install(update.clone())];
            to_state(record, State::Installing { update, attempt: 1 }, effects)
        }
        Gate::AfterInstall { image } => ask(record, update, Gate::BeforeReboot { image }, 1, None),
        Gate::BeforeReboot { image } => {
            let effects = [Effect::Report, Effect::Activate(update.clone())];
            to_state(record, State::Installed { update, image }, effects)
        }
    }
}

/// After an update that told the boot loader something, hooks hear how it ended.
pub(super) fn finish_with_hooks(
    context: &Context,
    mut record: Record,
    update: Update,
    outcome: Outcome,
    hook: Hook,
) -> Step {
    let update = update.without_secrets();
    let reason = outcome.failure().map(Failure::to_string);
    record.afterword = Some(Box::new(Afterword { hook, update: update.clone(), reason, runs: 0 }));
    with_afterword(context, finish(context, record, update, outcome))
}

/// Lets hooks hear how the last update ended, if they have not heard it yet.
pub(super) fn with_afterword(context: &Context, mut step: Step) -> Step {
    let Some(mut after) = step.record.afterword.take() else { return step };
    let slot =
        if after.hook == Hook::AfterCommit { after.update.target } else { after.update.target.other() };
    // On the other slot it would be told to the wrong system.
    if after.runs < AFTERWORD_RUNS_MAX && context.boot.slot == slot {
        after.runs = after.runs.saturating_add(1);
        let run = hook_run(&step.record, after.hook, after.update.clone(), after.reason.clone(), false);
        step.effects.push(run);
        step.record.afterword = Some(after);
    }
    step
}

#[cfg(test)]
mod tests {
    use super::super::{Environment, Event, Policy, step};
    use super::*;
    use crate::update::{Boot, BootId, Image, Moment, Sha256Digest, Slot, UpdateRequest};

    fn context(boot: u128, slot: Slot, uptime_secs: u64) -> Context {
        let id = BootId(boot);
        Context {
            boot: Boot { id, slot },
            now: Moment { boot: id, uptime_secs, unix_secs: None },
            policy: Policy {
                check_required: false,
                signature_required: false,
                has_keys: false,
                allow_downgrade: false,
                defer_limit_secs: 100,
            },
            environment: Environment::Committed,
            online: true,
            running_version: None,
            min_version: None,
            trial_timeouts: 0,
            desired: None,
        }
    }

    fn update() -> Update {
        let request = UpdateRequest::from_payload(br#""https://host.example/2.img""#).unwrap();
        Update { request, target: Slot::B, online_before: true }
    }

    fn image() -> Image {
        Image { source_digest: Sha256Digest([7; 32]), size_bytes: 1, version: None, keys: None }
    }

    fn asking(gate: Gate) -> Record {
        let versions = crate::update::record::Versions { a: Some("1.0".into()), b: Some("0.9".into()) };
        let record = Record { fallback: Some(Slot::B), versions, ..Record::default() };
        ask(record, update(), gate, 1, None).record
    }

    fn answered(context: &Context, record: Record, hook: Hook, verdict: Verdict) -> Step {
        step(context, record, Event::HooksRan(update().request.id, hook, verdict))
    }

    fn runs(step: &Step) -> Vec<&HookRun> {
        let run = step.effects.iter().map(|effect| match effect {
            Effect::RunHooks(run) => Some(&**run),
            _ => None,
        });
        run.flatten().collect()
    }

    #[test]
    fn a_refusal_before_the_install_leaves_the_way_back() {
        let no = Verdict::Refuse("no".into());
        let over = answered(&context(1, Slot::A, 5), asking(Gate::BeforeInstall), Hook::BeforeInstall, no);
        let State::Idle { last: Some(last) } = &over.record.state else { panic!("not at rest") };
        assert_eq!(last.outcome, Outcome::Failed(Failure::new(Code::HookRefused, "no")));
        assert_eq!(over.record.fallback, Some(Slot::B));
        assert_eq!(over.record.versions.get(Slot::B), Some("0.9"));

        let yes = Verdict::GoOn;
        let on = answered(&context(1, Slot::A, 5), asking(Gate::BeforeInstall), Hook::BeforeInstall, yes);
        assert!(matches!(on.record.state, State::Installing { attempt: 1, .. }));
        assert_eq!((on.record.fallback, on.record.versions.get(Slot::B)), (None, None));
    }

    #[test]
    fn an_answer_of_other_hooks_than_those_asked_changes_nothing() {
        let record = asking(Gate::AfterInstall { image: image() });
        let other = answered(&context(1, Slot::A, 5), record.clone(), Hook::BeforeReboot, Verdict::GoOn);
        assert_eq!((other.record, other.effects.len()), (record, 0));
    }

    #[test]
    fn hooks_may_put_off_for_as_long_as_is_allowed_in_all_boots_together() {
        let later = |context: &Context, record| {
            answered(context, record, Hook::BeforeReboot, Verdict::Later("busy".into()))
        };
        let first = later(&context(1, Slot::A, 50), asking(Gate::BeforeReboot { image: image() }));
        assert!(runs(&first)[0].again, "after a pause");
        let second = later(&context(1, Slot::A, 110), first.record);
        // Off for who knows how long; asked at once, and from a clock that began anew.
        let restarted = step(&context(2, Slot::A, 20), second.record, Event::Started);
        assert!(!runs(&restarted)[0].again);
        let third = later(&context(2, Slot::A, 21), restarted.record);
        let State::Asking { deferral: Some(deferral), attempt: 1, .. } = &third.record.state else {
            panic!("not asking")
        };
        assert_eq!(deferral.spent_secs, 61);
        let last = later(&context(2, Slot::A, 60), third.record);
        let State::Idle { last: Some(last) } = &last.record.state else { panic!("not at rest") };
        let failure = Failure::new(Code::HookRefused, "busy; deferred for 100 s, longer than is allowed");
        assert_eq!(last.outcome, Outcome::Failed(failure));
    }

    #[test]
    fn hooks_hear_how_an_update_ended_until_they_did_but_not_for_ever() {
        let committed = || {
            let since = context(2, Slot::B, 5).now;
            let state = State::Trial { update: update(), image: image(), since, judged: false };
            let record = Record { state, ..asking(Gate::BeforeInstall) };
            let id = update().request.id;
            step(&context(2, Slot::B, 5), record, Event::Committed(id, Ok(())))
        };
        let heard = |step: &Step| {
            runs(step).iter().map(|run| (run.hook, run.from_version.clone())).collect::<Vec<_>>()
        };
        let expected = [(Hook::AfterCommit, Some("1.0".to_owned()))];
        let mut next = committed();
        for _ in 0..AFTERWORD_RUNS_MAX {
            assert_eq!(heard(&next), expected);
            next = step(&context(3, Slot::B, 5), next.record, Event::Started);
        }
        assert_eq!((heard(&next).len(), next.record.afterword), (0, None));

        let answered =
            answered(&context(2, Slot::B, 5), committed().record, Hook::AfterCommit, Verdict::GoOn);
        assert_eq!(answered.record.afterword, None);
        let elsewhere = step(&context(3, Slot::A, 5), committed().record, Event::Started);
        assert_eq!((heard(&elsewhere).len(), elsewhere.record.afterword), (0, None));
    }
}
