//! The provisioning service over HTTPS: for devices that have no MQTT, and for those who enroll them.

use std::collections::BTreeMap;

use hyper::Method;
use hyper::header::{AUTHORIZATION, IF_MATCH};
use serde_json::{Value, json};

use super::registration::{Answer, Registration};
use super::{Enrollment, OWNER, Proof, Provisioning, Refusal};
use crate::hub::clock;
use crate::hub::https::{Call, Reply, check_api_version};
use crate::hub::sas::Token;
use crate::hub::state::State;

impl From<Refusal> for Reply {
    fn from(refusal: Refusal) -> Self {
        Self::json(refusal.status, &refusal.body())
    }
}

/// Whether a path is the provisioning service's.
pub(in crate::hub) fn is_path(state: &State, segments: &[&str]) -> bool {
    match segments {
        ["enrollments" | "enrollmentGroups" | "registrations", ..] => true,
        [scope, "registrations", ..] => *scope == state.dps.id_scope,
        _ => false,
    }
}

/// Carries out a request.
pub(in crate::hub) fn respond(state: &mut State, call: &Call) -> Reply {
    if state.faults.away {
        return Refusal::new(503, 503_001, "The service is away.").into();
    }
    if let Err(failure) = check_api_version(&call.head.uri) {
        return Refusal::bad_request(failure.message).into();
    }
    let result = match call.segments {
        [scope, "registrations", id, rest @ ..] if *scope == state.dps.id_scope => {
            call.of_device(state, id, rest)
        }
        _ => call.authorize(state).and_then(|()| call.of_service(&mut state.dps)),
    };
    result.unwrap_or_else(Reply::from)
}

fn ok(body: Value) -> Reply {
    Reply::json(200, &body)
}

impl Call<'_> {
    fn of_device(&self, state: &mut State, id: &str, rest: &[&str]) -> Result<Reply, Refusal> {
        let password = self.header(AUTHORIZATION.as_str()).unwrap_or_default();
        let proof = Proof { registration_id: id, password, chain: self.chain };
        let answer = match (&self.head.method, rest) {
            (&Method::PUT, ["register"]) => state.provision(&proof, self.body)?,
            (&Method::GET, ["operations", operation]) => {
                state.dps.attest(&proof)?;
                state.dps.poll(id, operation)?
            }
            (&Method::POST, []) => {
                state.dps.attest(&proof)?;
                return state.dps.registration(id);
            }
            _ => return Err(self.nothing_there()),
        };
        Ok(self.reply(answer, id, &state.dps.id_scope))
    }

    fn reply(&self, answer: Answer, id: &str, scope: &str) -> Reply {
        let reply = Reply::json(answer.status, &answer.body);
        let Some(secs) = answer.retry_after_secs else { return reply };
        let host = self.header("host").unwrap_or("localhost");
        let operation = &answer.operation_id;
        let location = format!("https://{host}/{scope}/registrations/{id}/operations/{operation}");
        reply.with("retry-after", secs.to_string()).with("location", location)
    }

    fn of_service(&self, dps: &mut Provisioning) -> Result<Reply, Refusal> {
        match (&self.head.method, self.segments) {
            (method, ["enrollments", rest @ ..]) => {
                let reply = self.enrollments(Kind::Individual, &mut dps.enrollments, method, rest)?;
                dps.forget_orphans();
                Ok(reply)
            }
            (method, ["enrollmentGroups", rest @ ..]) => {
                let reply = self.enrollments(Kind::Group, &mut dps.groups, method, rest)?;
                dps.forget_orphans();
                Ok(reply)
            }
            (&Method::POST, ["registrations", group, "query"]) => {
                let of_group = |one: &Registration| one.group.as_deref() == Some(*group);
                let found = dps.registrations.iter().filter(|(_, one)| of_group(one));
                Ok(ok(found.map(|(id, one)| one.state(id)).collect()))
            }
            (&Method::GET, ["registrations", id]) => dps.registration(id),
            (&Method::DELETE, ["registrations", id]) => {
                let removed = dps.registrations.remove(&id.to_ascii_lowercase());
                removed.map(|_| Reply::empty(204)).ok_or_else(|| Refusal::not_found("Registration"))
            }
            _ => Err(self.nothing_there()),
        }
    }

    fn enrollments(
        &self,
        kind: Kind,
        all: &mut BTreeMap<String, Enrollment>,
        method: &Method,
        rest: &[&str],
    ) -> Result<Reply, Refusal> {
        let missing = || Refusal::not_found("Enrollment");
        match (method, rest) {
            (&Method::POST, ["query"]) => {
                Ok(ok(all.iter().map(|(id, one)| one.for_service(kind.id_name(), id)).collect()))
            }
            (&Method::GET, [id]) => Ok(ok(all.get(*id).ok_or_else(missing)?.for_service(kind.id_name(), id))),
            (&Method::POST, [id, "attestationmechanism"]) => {
                Ok(ok(json!(all.get(*id).ok_or_else(missing)?.attestation)))
            }
            (&Method::PUT, [id]) => {
                self.check_etag(all.get(*id))?;
                let enrollment = Enrollment::from_body(self.json()?, kind == Kind::Group)?;
                let shown = enrollment.for_service(kind.id_name(), id);
                all.insert((*id).to_owned(), enrollment);
                Ok(ok(shown))
            }
            (&Method::DELETE, [id]) => {
                let stored = all.get(*id).ok_or_else(missing)?;
                if self.header(IF_MATCH.as_str()).is_some() {
                    self.check_etag(Some(stored))?;
                }
                all.remove(*id);
                Ok(Reply::empty(204))
            }
            _ => Err(self.nothing_there()),
        }
    }

    /// Without `If-Match` a write creates and does nothing else.
    fn check_etag(&self, stored: Option<&Enrollment>) -> Result<(), Refusal> {
        match (self.header(IF_MATCH.as_str()), stored) {
            (None, None) => Ok(()),
            (None, Some(_)) => Err(Refusal::new(409, 409_201, "The enrollment exists already.")),
            (Some(_), None) => Err(Refusal::not_found("Enrollment")),
            (Some(asked), Some(stored)) => {
                let same = asked == "*" || asked.trim_matches('"') == stored.etag.trim_matches('"');
                let stale = || Refusal::new(412, 412_201, "The enrollment has another etag.");
                same.then_some(()).ok_or_else(stale)
            }
        }
    }

    fn authorize(&self, state: &State) -> Result<(), Refusal> {
        let token = self.header(AUTHORIZATION.as_str()).and_then(Token::parse);
        let good = token.is_some_and(|token| {
            token.policy.as_deref() == Some(OWNER)
                && token.is_signed_with(&state.dps.owner_key)
                && token.is_for(&state.host_names)
                && token.covers(&self.segments.join("/"))
                && clock::until(token.expiry).is_some()
        });
        good.then_some(()).ok_or_else(Refusal::unauthorized)
    }

    fn json(&self) -> Result<Value, Refusal> {
        let refuse = |error| Refusal::bad_request(format!("The body is not JSON: {error}"));
        serde_json::from_slice(self.body).map_err(refuse)
    }

    fn nothing_there(&self) -> Refusal {
        Refusal::not_found(&format!("{} {}", self.head.method, self.head.uri.path()))
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Individual,
    Group,
}

impl Kind {
    fn id_name(self) -> &'static str {
        match self {
            Self::Individual => "registrationId",
            Self::Group => "enrollmentGroupId",
        }
    }
}

impl Provisioning {
    fn registration(&self, id: &str) -> Result<Reply, Refusal> {
        let found = self.registrations.get(&id.to_ascii_lowercase());
        found.map(|one| ok(one.state(id))).ok_or_else(|| Refusal::not_found("Registration"))
    }

    /// A registration goes with its enrollment.
    fn forget_orphans(&mut self) {
        let (enrollments, groups) = (&self.enrollments, &self.groups);
        self.registrations.retain(|id, registration| match &registration.group {
            Some(group) => groups.contains_key(group),
            None => enrollments.keys().any(|enrolled| enrolled.eq_ignore_ascii_case(id)),
        });
    }
}
