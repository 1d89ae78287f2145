//! Events on their way to the agent: they wait for it here, the session does not.

use std::collections::VecDeque;

use tokio::sync::mpsc;

use super::HubEvent;

/// Holds what the agent has no room for yet. States replace their elders, so at most three wait: a
/// disconnect, the connect after it, and the newest desired section.
#[derive(Debug)]
pub struct Outbox {
    events: mpsc::Sender<HubEvent>,
    waiting: VecDeque<HubEvent>,
}

impl Outbox {
    /// Empty.
    #[must_use]
    pub fn new(events: mpsc::Sender<HubEvent>) -> Self {
        Self { events, waiting: VecDeque::new() }
    }

    /// Takes an event that must arrive.
    pub fn push(&mut self, event: HubEvent) {
        match &event {
            HubEvent::Disconnected { .. } => self.waiting.clear(),
            HubEvent::Desired(_) => self.waiting.retain(|elder| !matches!(elder, HubEvent::Desired(_))),
            HubEvent::Connected | HubEvent::Method(_) => {}
        }
        self.waiting.push_back(event);
        self.flush();
    }

    /// Hands an event over if the agent has room now; `false`: it has none, and the event is gone.
    #[must_use]
    pub fn offer(&mut self, event: HubEvent) -> bool {
        self.flush();
        self.waiting.is_empty() && self.events.try_send(event).is_ok()
    }

    /// Hands one waiting event over as soon as the agent has room; without one it waits for ever, as
    /// it does once the agent is gone. Dropping the future loses nothing.
    pub async fn deliver(&mut self) {
        if !self.waiting.is_empty()
            && let Ok(permit) = self.events.reserve().await
            && let Some(event) = self.waiting.pop_front()
        {
            permit.send(event);
            return;
        }
        std::future::pending().await
    }

    fn flush(&mut self) {
        while !self.waiting.is_empty()
            && let Ok(permit) = self.events.try_reserve()
            && let Some(event) = self.waiting.pop_front()
        {
            permit.send(event);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Map, json};
    use tokio::sync::oneshot;

    use super::*;
    use crate::hub::MethodCall;

    fn method() -> HubEvent {
        HubEvent::Method(MethodCall {
            name: "m".to_owned(),
            payload: bytes::Bytes::new(),
            reply: oneshot::channel().0,
        })
    }

    fn desired(number: u32) -> HubEvent {
        HubEvent::Desired(Map::from_iter([("n".to_owned(), json!(number))]))
    }

    fn lost(reason: &str) -> HubEvent {
        HubEvent::Disconnected { reason: reason.to_owned() }
    }

    #[tokio::test]
    async fn only_the_newest_state_waits_for_a_busy_agent() {
        let (sender, mut agent) = mpsc::channel(1);
        let mut outbox = Outbox::new(sender);
        outbox.push(lost("first"));
        for round in 0..10 {
            outbox.push(HubEvent::Connected);
            outbox.push(desired(round));
            outbox.push(lost("again"));
        }
        outbox.push(HubEvent::Connected);
        outbox.push(desired(98));
        outbox.push(desired(99));
        assert!(!outbox.offer(method()), "a call does not overtake a state");

        let mut seen = Vec::new();
        while seen.len() < 4 {
            tokio::select! {
                event = agent.recv() => seen.push(format!("{:?}", event.unwrap())),
                () = outbox.deliver() => {}
            }
        }
        let expected = [lost("first"), lost("again"), HubEvent::Connected, desired(99)];
        assert_eq!(seen, expected.map(|event| format!("{event:?}")));
        assert!(outbox.offer(method()));
        assert!(!outbox.offer(method()), "the agent has no room");
    }
}
