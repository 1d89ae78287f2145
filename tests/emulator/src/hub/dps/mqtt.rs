//! The provisioning service as a device meets it on an MQTT connection.

use futures_util::StreamExt as _;
use rumqttc::mqttbytes::QoS;
use rumqttc::mqttbytes::v4::{
    ConnAck, Connect, ConnectReturnCode, Packet, PubAck, Publish, SubAck, SubscribeReasonCode, UnsubAck,
};
use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;

use super::registration::Answer;
use super::{Proof, Refusal};
use crate::hub::mqtt::{Wire, send, silence_limit};
use crate::hub::state::{Shared, State};

/// The one filter there is.
const ANSWERS: &str = "$dps/registrations/res/#";

/// What a device asks for by publishing.
#[derive(Debug, PartialEq, Eq)]
enum Request<'a> {
    Register { request: &'a str },
    Poll { request: &'a str, operation: &'a str },
}

/// A device on its connection.
pub(in crate::hub) struct Visitor {
    registration_id: String,
    password: String,
    chain: Vec<CertificateDer<'static>>,
    /// To [`ANSWERS`]. No session outlives its connection.
    subscribed: bool,
}

/// The id scope and the registration id in `{scope}/registrations/{id}/api-version=…`.
fn scope_and_id(user_name: &str) -> Option<(&str, &str)> {
    let (scope, rest) = user_name.split_once("/registrations/")?;
    let (id, query) = rest.split_once('/')?;
    (query.contains("api-version=") && !scope.contains('/')).then_some((scope, id))
}

/// Who comes to the provisioning service and not to the hub, and what to answer its CONNECT.
pub(in crate::hub) fn visitor(
    state: &State,
    connect: &Connect,
    chain: &[CertificateDer<'static>],
) -> Option<(Visitor, ConnectReturnCode)> {
    let login = connect.login.as_ref()?;
    let (scope, id) = scope_and_id(&login.username)?;
    if state.is_called(scope) {
        return None;
    }
    let code = if !connect.client_id.eq_ignore_ascii_case(id) {
        ConnectReturnCode::BadClientId
    } else if scope != state.dps.id_scope {
        ConnectReturnCode::NotAuthorized
    } else {
        ConnectReturnCode::Success
    };
    let (registration_id, password) = (id.to_owned(), login.password.clone());
    Some((Visitor { registration_id, password, chain: chain.to_vec(), subscribed: false }, code))
}

impl Visitor {
    /// Serves the device until either side closes the connection.
    pub async fn serve<S>(&mut self, wire: &mut Wire<S>, keep_alive_secs: u16, hub: &Shared)
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let id = self.registration_id.clone();
        tracing::info!(id, "dps: connected");
        if !send(wire, Packet::ConnAck(ConnAck::new(ConnectReturnCode::Success, false))).await {
            return;
        }
        while let Ok(Some(Ok(packet))) = timeout(silence_limit(keep_alive_secs), wire.next()).await {
            let Some(answers) = hub.change(|state| self.handle(state, packet)) else { break };
            for answer in answers {
                if !send(wire, answer).await {
                    return;
                }
            }
        }
        tracing::info!(id, "dps: connection closed");
    }

    /// Carries out a packet. Returns the answers, or nothing if the connection is to be closed.
    fn handle(&mut self, state: &mut State, packet: Packet) -> Option<Vec<Packet>> {
        if state.faults.away {
            return None;
        }
        match packet {
            Packet::Subscribe(subscribe) => {
                self.subscribed |= subscribe.filters.iter().any(|filter| filter.path == ANSWERS);
                let codes = subscribe.filters.iter().map(|filter| match filter.qos {
                    _ if filter.path != ANSWERS => SubscribeReasonCode::Failure,
                    QoS::AtMostOnce => SubscribeReasonCode::Success(QoS::AtMostOnce),
                    _ => SubscribeReasonCode::Success(QoS::AtLeastOnce),
                });
                Some(vec![Packet::SubAck(SubAck::new(subscribe.pkid, codes.collect()))])
            }
            Packet::Unsubscribe(unsubscribe) => {
                self.subscribed &= !unsubscribe.topics.iter().any(|topic| topic == ANSWERS);
                Some(vec![Packet::UnsubAck(UnsubAck::new(unsubscribe.pkid))])
            }
            Packet::PingReq => Some(vec![Packet::PingResp]),
            Packet::Publish(publish) => self.publish(state, &publish),
            _ => None,
        }
    }

    fn publish(&self, state: &mut State, publish: &Publish) -> Option<Vec<Packet>> {
        let mut answers = match publish.qos {
            QoS::AtMostOnce => Vec::new(),
            QoS::AtLeastOnce => vec![Packet::PubAck(PubAck::new(publish.pkid))],
            QoS::ExactlyOnce => return None,
        };
        let (request, result) = match parse(&publish.topic)? {
            Request::Register { request } => (request, state.provision(&self.proof(), &publish.payload)),
            Request::Poll { request, operation } => {
                (request, state.dps.poll(&self.registration_id, operation))
            }
        };
        let answer = answer(request, result, state.dps.manner.retry_after_secs);
        tracing::info!(
            id = %self.registration_id, topic = %answer.topic, subscribed = self.subscribed, "dps: answered"
        );
        answers.extend(self.subscribed.then_some(Packet::Publish(answer)));
        Some(answers)
    }

    fn proof(&self) -> Proof<'_> {
        Proof { registration_id: &self.registration_id, password: &self.password, chain: &self.chain }
    }
}

/// Reads the topic of a PUBLISH. The service closes the connection on any topic that means nothing.
fn parse(topic: &str) -> Option<Request<'_>> {
    let (path, query) = topic.strip_prefix("$dps/registrations/")?.split_once("/?")?;
    let field = |name: &str| {
        let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        pairs.find(|(key, _)| *key == name).map(|(_, value)| value).filter(|value| !value.is_empty())
    };
    let request = field("$rid").filter(|request| !request.contains('/'))?;
    match path {
        "PUT/iotdps-register" => Some(Request::Register { request }),
        "GET/iotdps-get-operationstatus" => Some(Request::Poll { request, operation: field("operationId")? }),
        _ => None,
    }
}

/// Clients try again after a refusal from 429 upwards, in as many seconds as the topic says.
fn answer(request: &str, result: Result<Answer, Refusal>, retry_after_secs: u64) -> Publish {
    let (status, body, pause) = match result {
        Ok(answer) => (answer.status, answer.body, answer.retry_after_secs),
        Err(refusal) => (refusal.status, refusal.body(), (refusal.status >= 429).then_some(retry_after_secs)),
    };
    let pause = pause.map(|secs| format!("&retry-after={secs}")).unwrap_or_default();
    let topic = format!("$dps/registrations/res/{status}/?$rid={request}{pause}");
    Publish::new(topic, QoS::AtMostOnce, body.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_names_of_microsofts_kits_are_understood() {
        let python = "0ne00000001/registrations/reg-1/api-version=2019-03-31&ClientVersion=x%2F1";
        assert_eq!(scope_and_id(python), Some(("0ne00000001", "reg-1")));
        assert_eq!(scope_and_id("localhost/registrations/?api-version=2021-04-12"), None);
        assert_eq!(scope_and_id("localhost/dev-1/?api-version=2021-04-12"), None);
        assert_eq!(scope_and_id("0ne00000001/registrations/reg-1"), None);
    }

    #[test]
    fn only_the_two_documented_topics_mean_something() {
        let register = parse("$dps/registrations/PUT/iotdps-register/?$rid=a-1");
        assert_eq!(register, Some(Request::Register { request: "a-1" }));
        let poll = "$dps/registrations/GET/iotdps-get-operationstatus/?$rid=2&operationId=5.ab.cd";
        assert_eq!(parse(poll), Some(Request::Poll { request: "2", operation: "5.ab.cd" }));
        for topic in [
            "$dps/registrations/PUT/iotdps-register/",
            "$dps/registrations/GET/iotdps-get-operationstatus/?$rid=2",
            "$dps/registrations/DELETE/iotdps-register/?$rid=2",
            "$iothub/twin/GET/?$rid=1",
        ] {
            assert_eq!(parse(topic), None, "{topic}");
        }
    }
}
