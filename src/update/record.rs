//! Everything that survives a power cut, and its form on disk.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::hook::{Afterword, Deferral, Gate};
use super::{BootId, Code, Failure, Image, KeyList, Moment, Sha256Digest, Slot, UpdateId, UpdateRequest};

/// Everything that survives a power cut.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Record {
    /// Where the update stands.
    pub state: State,
    /// Images that were rolled back on this device, oldest first.
    pub denied: Vec<Denied>,
    /// What each slot holds, as far as an update put it there.
    pub versions: Versions,
    /// The version that was committed last: nothing older is taken, whatever the running slot holds. The boot
    /// loader's variables hold it too.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_version: Option<String>,
    /// Whose signatures count, once an update has said so; before, it is those whose keys the image brings.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keys: Option<KeyList>,
    /// The slot with the system that was committed before the running one, until it is overwritten.
    pub fallback: Option<Slot>,
    /// The update that was committed last; it brought the system that runs where the other slot is the fallback.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub committed: Option<Box<Update>>,
    /// The newest desired request that was dealt with: it is not started again until it changes.
    pub desired: Option<UpdateId>,
    /// Of the whole of that request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub desired_digest: Option<Sha256Digest>,
    /// The desired request that was refused for what the device is like, and for what: told once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused: Option<(Sha256Digest, Code)>,
    /// When what happened.
    pub times: Times,
    /// Hooks that have not heard yet how an update ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub afterword: Option<Box<Afterword>>,
    /// Why the record before this one is not known, or not in all: told until an update ends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fault: Option<Failure>,
}

/// Versions by slot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct Versions {
    /// Of slot a.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub a: Option<String>,
    /// Of slot b.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub b: Option<String>,
}

impl Versions {
    /// What `slot` holds, where known.
    #[must_use]
    pub fn get(&self, slot: Slot) -> Option<&str> {
        match slot {
            Slot::A => self.a.as_deref(),
            Slot::B => self.b.as_deref(),
        }
    }

    /// Notes what `slot` holds.
    pub fn set(&mut self, slot: Slot, version: Option<String>) {
        match slot {
            Slot::A => self.a = version,
            Slot::B => self.b = version,
        }
    }
}

/// The moments that the twin tells.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Times {
    /// The last update was accepted.
    pub accepted: Option<Moment>,
    /// Its image was completely fetched.
    pub downloaded: Option<Moment>,
    /// The new slot began to be activated.
    pub applying: Option<Moment>,
    /// It ended, one way or the other.
    pub finished: Option<Moment>,
    /// An update last succeeded.
    pub succeeded: Option<Moment>,
}

impl Times {
    /// An update begins: what is told of the one before is over.
    pub(super) fn begin(&mut self, now: Moment) {
        *self = Self { accepted: Some(now), succeeded: self.succeeded, ..Self::default() };
    }

    /// Gives every moment of this boot its wall time.
    pub(super) fn resolve(&mut self, now: Moment) {
        let Self { accepted, downloaded, applying, finished, succeeded } = self;
        for moment in [accepted, downloaded, applying, finished, succeeded].into_iter().flatten() {
            *moment = moment.resolved_by(now);
        }
    }
}

/// An image that was given up on this device.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Denied {
    /// SHA-256 of the bytes at its URI.
    pub source_digest: Sha256Digest,
    /// Why.
    pub failure: Failure,
}

impl Denied {
    /// Why an image is not taken again, if it is among these.
    #[must_use]
    pub fn refusal(denied: &[Self], source_digest: Sha256Digest) -> Option<Failure> {
        let denied = denied.iter().find(|denied| denied.source_digest == source_digest)?;
        let message = format!("this image was rolled back on this device: {}", denied.failure);
        Some(Failure::new(Code::RolledBackBefore, message))
    }
}

/// An update that is under way.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Update {
    /// What was asked for.
    pub request: UpdateRequest,
    /// Where it goes.
    pub target: Slot,
    /// Whether the hub was seen before the reboot: the session was up when it began or was installed, or a method asked.
    pub online_before: bool,
}

impl Update {
    /// Without what of its address may be a credential: nothing is fetched from it any more.
    pub(super) fn without_secrets(mut self) -> Self {
        self.request.forget_secrets();
        self
    }
}

/// An update that is over.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Finished {
    /// The update.
    pub update: Update,
    /// How it ended.
    pub outcome: Outcome,
}

/// How an update ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "outcome", content = "failure", rename_all = "camelCase")]
pub enum Outcome {
    /// The new slot is committed.
    Succeeded,
    /// Nothing was activated, or that was undone before a boot; or the boot loader does not obey.
    Failed(Failure),
    /// The new slot was activated and then given up.
    RolledBack(Failure),
}

impl Outcome {
    /// Why it did not succeed.
    #[must_use]
    pub fn failure(&self) -> Option<&Failure> {
        match self {
            Self::Succeeded => None,
            Self::Failed(failure) | Self::RolledBack(failure) => Some(failure),
        }
    }
}

/// Where an update stands. A state exists only if a restart must behave differently in it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum State {
    /// Nothing is under way.
    Idle {
        /// How the last one ended.
        last: Option<Box<Finished>>,
    },
    /// Hooks are asked whether the update may go on.
    Asking {
        /// Which.
        update: Update,
        /// Where it stands.
        gate: Gate,
        /// Counts interrupted attempts to get an answer.
        attempt: u8,
        /// Their last answer, if they had one.
        deferral: Option<Deferral>,
    },
    /// The target is not bootable and is being overwritten.
    Installing {
        /// Which.
        update: Update,
        /// Counts interrupted attempts that made no headway.
        attempt: u8,
    },
    /// The target holds the image: written, synced, read back, digest equal. All hooks agree to its activation.
    Installed {
        /// Which.
        update: Update,
        /// What.
        image: Image,
    },
    /// The boot loader will try the target; the reboot has been asked for.
    Rebooting {
        /// Which.
        update: Update,
        /// What.
        image: Image,
        /// The boot that asked.
        armed_in: BootId,
    },
    /// Running on the target, not committed: any reset may fall back.
    Trial {
        /// Which.
        update: Update,
        /// What.
        image: Image,
        /// When its present boot was first seen to be one: its time limit counts from there, however often
        /// the daemon starts.
        since: Moment,
        /// It passed its health checks, or an operator was told that it will be committed: it is not judged any more.
        #[serde(default, rename = "byHand")]
        judged: bool,
    },
    /// Giving the target up.
    RollingBack {
        /// Which.
        update: Update,
        /// What, once the slot held it.
        image: Option<Image>,
        /// The slot that was known good.
        to: Slot,
        /// Why.
        failure: Failure,
        /// The boot that last asked for the reboot into `to`.
        asked_in: Option<BootId>,
        /// How many boots have asked for it.
        reboots: u8,
        /// How often the transaction failed in `to`.
        #[serde(default)]
        tries: u8,
    },
}

impl Default for State {
    fn default() -> Self {
        Self::Idle { last: None }
    }
}

impl State {
    /// The update that is under way, or else the last one.
    #[must_use]
    pub fn subject(&self) -> Option<&Update> {
        if let Self::Idle { last: Some(last) } = self { Some(&last.update) } else { self.update() }
    }

    /// The update that is under way.
    #[must_use]
    pub fn update(&self) -> Option<&Update> {
        match self {
            Self::Idle { .. } => None,
            Self::Asking { update, .. }
            | Self::Installing { update, .. }
            | Self::Installed { update, .. }
            | Self::Rebooting { update, .. }
            | Self::Trial { update, .. }
            | Self::RollingBack { update, .. } => Some(update),
        }
    }

    /// Whether nothing is under way.
    #[must_use]
    pub fn is_at_rest(&self) -> bool {
        self.update().is_none()
    }

    /// The id of the update that is under way.
    #[must_use]
    pub fn update_id(&self) -> Option<&UpdateId> {
        self.update().map(|update| &update.request.id)
    }
}

/// Why a state file's bytes are not taken.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// It does not begin as a state file does.
    #[error("not a state file: its first line is not `{MAGIC} <schema> <crc32> <length>`")]
    Header,
    /// It was written by a newer version.
    #[error(
        "state file of schema {found}; this version reads schema {SCHEMA}, and of a newer one \
         the versions, the denied images, the times and the last outcome alone"
    )]
    Schema {
        /// What it says.
        found: u32,
    },
    /// Bytes are missing or were added.
    #[error("state file has {found} bytes of content, its header says {expected}")]
    Length {
        /// By its header.
        expected: usize,
        /// In fact.
        found: usize,
    },
    /// Bytes changed.
    #[error("state file is damaged: checksum {found:08x}, its header says {expected:08x}")]
    Checksum {
        /// By its header.
        expected: u32,
        /// In fact.
        found: u32,
    },
    /// The content is not a record.
    #[error("state file has a content that is not understood")]
    Content(#[source] serde_json::Error),
}

const MAGIC: &str = "twinboot-state";

/// Raised only for a change that an older reader must not try to read: fields may be added without it,
/// since the daemon of the old slot reads this file after a roll back. The header stays as it is for ever, and
/// so does the meaning of each name beside `state`: an older reader takes those of any schema.
const SCHEMA: u32 = 1;

/// The largest state file: some ten times what the largest record takes (16 denied images of 4 KiB each).
pub const SIZE_BYTES_MAX: usize = 1 << 20;

impl Record {
    /// Whether this desired request is the one that was dealt with.
    #[must_use]
    pub fn has_dealt_with(&self, desired: &UpdateRequest) -> bool {
        self.desired.as_ref() == Some(&desired.id)
            && self.desired_digest.is_none_or(|digest| digest == desired.digest())
    }

    /// It is not started again until it changes.
    pub(super) fn deal_with(&mut self, desired: &UpdateRequest) {
        self.desired = Some(desired.id.clone());
        self.desired_digest = Some(desired.digest());
        self.refused = None;
    }

    /// The bytes of the state file.
    ///
    /// # Errors
    /// When the record cannot be put into JSON, which no record of this type is known to refuse.
    pub fn encode(&self) -> Result<Vec<u8>, RecordError> {
        let content = serde_json::to_string(self).map_err(RecordError::Content)?;
        let checksum = crc32fast::hash(content.as_bytes());
        Ok(format!("{MAGIC} {SCHEMA} {checksum:08x} {}\n{content}\n", content.len()).into_bytes())
    }

    /// Reads the bytes of a state file.
    ///
    /// # Errors
    /// When they are not, to the last bit, what [`Record::encode`] of some version of this schema wrote.
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        match content(bytes)? {
            (SCHEMA, content) => serde_json::from_str(content).map_err(RecordError::Content),
            (found, _) => Err(RecordError::Schema { found }),
        }
    }

    /// What an undamaged file that [`Record::decode`] does not take says all the same: of a newer version, which
    /// was here before a downgrade. What was under way is not understood, and left out: to be at rest is safe,
    /// and the desired request counts as not dealt with.
    #[must_use]
    pub fn safe_part(bytes: &[u8]) -> Option<Self> {
        let (_, content) = content(bytes).ok()?;
        let fields: Map<String, Value> = serde_json::from_str(content).ok()?;
        let known = fields.get("state").and_then(|state| State::deserialize(state).ok());
        let at_rest = known.filter(State::is_at_rest);
        let denied: Vec<Value> = field(&fields, "denied");
        Some(Self {
            desired: at_rest.as_ref().and_then(|_| field(&fields, "desired")),
            desired_digest: field(&fields, "desiredDigest"),
            refused: field(&fields, "refused"),
            state: at_rest.unwrap_or_default(),
            // One by one: an entry of a new kind must not set the others free.
            denied: denied.iter().filter_map(|entry| Denied::deserialize(entry).ok()).collect(),
            versions: field(&fields, "versions"),
            min_version: field(&fields, "minVersion"),
            keys: field(&fields, "keys"),
            fallback: field(&fields, "fallback"),
            committed: field(&fields, "committed"),
            times: field(&fields, "times"),
            // Hooks that were not run to the end are of the newer version too.
            afterword: None,
            fault: field(&fields, "fault"),
        })
    }
}

fn field<T: Default + DeserializeOwned>(fields: &Map<String, Value>, name: &str) -> T {
    fields.get(name).and_then(|value| T::deserialize(value).ok()).unwrap_or_default()
}

/// Schema and content of a state file that is whole.
fn content(bytes: &[u8]) -> Result<(u32, &str), RecordError> {
    let text = std::str::from_utf8(bytes).map_err(|_| RecordError::Header)?;
    let (header, rest) = text.split_once('\n').ok_or(RecordError::Header)?;
    let mut words = header.split(' ');
    if words.next() != Some(MAGIC) {
        return Err(RecordError::Header);
    }
    let schema = words.next().and_then(|word| word.parse().ok()).ok_or(RecordError::Header)?;
    let hexadecimal = |word| u32::from_str_radix(word, 16).ok();
    let expected_checksum = words.next().and_then(hexadecimal).ok_or(RecordError::Header)?;
    let expected_length = words.next().and_then(|word| word.parse().ok()).ok_or(RecordError::Header)?;
    let content = rest.strip_suffix('\n').unwrap_or(rest);
    if content.len() != expected_length {
        return Err(RecordError::Length { expected: expected_length, found: content.len() });
    }
    let checksum = crc32fast::hash(content.as_bytes());
    if checksum != expected_checksum {
        return Err(RecordError::Checksum { expected: expected_checksum, found: checksum });
    }
    Ok((schema, content))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        let request = UpdateRequest {
            id: "fw-2".parse().unwrap(),
            uri: "https://host.example/2.img?sig=abc".into(),
            check_value: Some(Sha256Digest([7; 32])),
            version: Some("2.0".into()),
            size_bytes: Some(1024),
            force: false,
        };
        let update = Update { request, target: Slot::B, online_before: true };
        let failure = Failure::new(Code::HealthCheckFailed, "unit `app.service` is failed");
        let keys = KeyList { serial: 3, trusted: [("release".to_owned(), "RWQ".to_owned())].into() };
        let source_digest = Sha256Digest([7; 32]);
        let image = Image { source_digest, size_bytes: 4096, version: None, keys: Some(keys.clone()) };
        Record {
            committed: Some(Box::new(update.clone())),
            state: State::RollingBack {
                update,
                image: Some(image),
                to: Slot::A,
                failure: failure.clone(),
                asked_in: Some(BootId(5)),
                reboots: 1,
                tries: 2,
            },
            denied: vec![Denied { source_digest: Sha256Digest([7; 32]), failure: failure.clone() }],
            versions: Versions { a: Some("1.0".into()), b: None },
            min_version: Some("1.0".into()),
            keys: Some(keys),
            fallback: None,
            desired: Some("fw-2".parse().unwrap()),
            desired_digest: Some(Sha256Digest([9; 32])),
            refused: Some((Sha256Digest([9; 32]), Code::Unverifiable)),
            times: Times {
                accepted: Some(Moment { boot: BootId(5), uptime_secs: 17, unix_secs: None }),
                ..Times::default()
            },
            afterword: None,
            fault: Some(failure),
        }
    }

    #[test]
    fn a_record_comes_back_as_it_was_written() {
        assert_eq!(Record::decode(&record().encode().unwrap()).unwrap(), record());
    }

    /// Shows F12; rauc/rauc#1907, dividat/playos#293.
    #[test]
    fn any_flipped_bit_is_noticed() {
        let bytes = record().encode().unwrap();
        // The final line feed is no content: a file without it is whole.
        for index in 0..bytes.len() - 1 {
            for bit in 0..8 {
                let mut damaged = bytes.clone();
                damaged[index] ^= 1 << bit;
                match Record::decode(&damaged) {
                    Err(_) => {}
                    // Hex digits of the checksum may change their case without changing their value.
                    Ok(same) => assert_eq!(same, record(), "byte {index} bit {bit}"),
                }
            }
        }
    }

    /// Shows rauc/rauc#1907, dividat/playos#293.
    #[test]
    fn a_file_cut_short_is_noticed() {
        let bytes = record().encode().unwrap();
        for length in 0..bytes.len() - 1 {
            assert!(Record::decode(&bytes[..length]).is_err(), "{length} bytes");
        }
    }

    fn file(schema: u32, content: &str) -> Vec<u8> {
        let checksum = crc32fast::hash(content.as_bytes());
        format!("{MAGIC} {schema} {checksum:08x} {}\n{content}\n", content.len()).into_bytes()
    }

    #[test]
    fn fields_and_codes_of_a_newer_version_are_no_damage() {
        let content = r#"{"state":{"state":"idle","last":null,"new":1},"denied":[{"sourceDigest":
            "0000000000000000000000000000000000000000000000000000000000000000",
            "failure":{"code":"CodeOfTomorrow","message":"m"}}],"newer":{}}"#;
        let record = Record::decode(&file(1, content)).unwrap();
        assert_eq!(record.denied[0].failure.code, Code::Unknown);
    }

    fn at_rest() -> Record {
        Record { state: State::default(), desired: None, ..record() }
    }

    /// Shows F24.
    #[test]
    fn of_a_newer_schema_all_is_taken_but_what_was_under_way() {
        let mut content = serde_json::to_value(record()).unwrap();
        let fields = content.as_object_mut().unwrap();
        fields["denied"].as_array_mut().unwrap().insert(0, "of a new kind".into());
        fields.insert("fallback".to_owned(), "c".into());
        let bytes = file(2, &content.to_string());
        assert!(matches!(Record::decode(&bytes), Err(RecordError::Schema { found: 2 })));
        assert_eq!(Record::safe_part(&bytes), Some(at_rest()));
    }

    #[test]
    fn a_state_of_a_newer_version_costs_nothing_but_itself() {
        let mut content = serde_json::to_value(record()).unwrap();
        content["state"] = serde_json::json!({ "state": "stateOfTomorrow" });
        let bytes = file(1, &content.to_string());
        assert!(matches!(Record::decode(&bytes), Err(RecordError::Content(_))));
        assert_eq!(Record::safe_part(&bytes), Some(at_rest()));
    }

    #[test]
    fn the_last_outcome_is_taken_of_any_schema() {
        let State::RollingBack { update, failure, .. } = record().state else { unreachable!() };
        let last = Some(Box::new(Finished { update, outcome: Outcome::RolledBack(failure) }));
        let over = Record { state: State::Idle { last }, ..record() };
        let bytes = file(2, &serde_json::to_string(&over).unwrap());
        assert_eq!(Record::safe_part(&bytes), Some(over));
    }

    #[test]
    fn damage_has_no_safe_part() {
        let mut bytes = file(2, &serde_json::to_string(&record()).unwrap());
        bytes[40] ^= 1;
        assert_eq!(Record::safe_part(&bytes), None);
    }
}
