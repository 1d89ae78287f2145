use twinboot::update::Record;
use twinboot::update::record::RecordError;

/// The state file: as it is on the medium, and as the content of one whose header is right.
pub fn state_file(data: &[u8]) {
    file(data);
    if let Ok(content) = std::str::from_utf8(data) {
        file(&whole(1, content));
        let newer = whole(2, content);
        assert!(matches!(Record::decode(&newer), Err(RecordError::Schema { found: 2 })));
        let object = serde_json::from_str::<serde_json::Map<_, serde_json::Value>>(content).is_ok();
        assert_eq!(Record::safe_part(&newer).is_some(), object, "of a newer file something is taken");
    }
}

fn whole(schema: u32, content: &str) -> Vec<u8> {
    let checksum = crc32fast::hash(content.as_bytes());
    format!("twinboot-state {schema} {checksum:08x} {}\n{content}\n", content.len()).into_bytes()
}

fn file(bytes: &[u8]) {
    let safe = Record::safe_part(bytes);
    assert!(safe.as_ref().is_none_or(|safe| safe.state.update().is_none()), "nothing is under way");
    match Record::decode(bytes) {
        Ok(record) => {
            let written = record.encode().expect("any record can be written");
            assert_eq!(Record::decode(&written).expect("what was written is read"), record);
            let safe = Record::safe_part(&written).expect("what was written is whole");
            assert_eq!(safe.denied, record.denied);
            assert_eq!((safe.versions, safe.min_version), (record.versions, record.min_version));
            assert_eq!((safe.keys, safe.fallback, safe.times), (record.keys, record.fallback, record.times));
            damaged(written);
        }
        Err(RecordError::Schema { .. } | RecordError::Content(_)) => {}
        Err(_) => assert_eq!(safe, None, "nothing is taken of a file that is not whole"),
    }
}

/// A bit of the content that changed is found.
fn damaged(mut bytes: Vec<u8>) {
    let content = bytes.iter().position(|byte| *byte == b'\n').expect("it has a header") + 1;
    let place = content + (bytes.len() - 1 - content) / 2;
    bytes[place] ^= 1;
    assert!(Record::decode(&bytes).is_err());
    assert_eq!(Record::safe_part(&bytes), None);
}
