use twinboot::boot::EnvPatch;
use twinboot::boot::env::{
    ByteOrder, CopyIndex, Environment, FLAGS_OFFSET_BYTES, FlagScheme, Layout, PatchError, select,
};

/// The U-Boot environment: as a copy on the medium, and as the data in one.
pub fn environment(data: &[u8]) {
    for redundant in [false, true] {
        for byte_order in [ByteOrder::Little, ByteOrder::Big] {
            copy(&Layout { size_bytes: data.len(), redundant, byte_order }, data);
        }
    }
    let environment = Environment::parse(data);
    assert!(environment.entries().all(|entry| !entry.is_empty() && !entry.contains(&0)));
    written_is_read(&environment, data.len());
    patched(&environment, data.len());
    if let [first, second, ..] = *data {
        flags(first, second);
    }
}

/// A copy that is good is written again as it was, but for what stands behind the end of the variables.
fn copy(layout: &Layout, data: &[u8]) {
    let Some(good) = layout.decode(data) else { return };
    let environment = Environment::parse(good.data);
    let Ok(again) = layout.encode(&environment, good.flags) else {
        let has_end = good.data.starts_with(&[0]) || good.data.windows(2).any(|two| two == [0, 0]);
        assert!(!has_end, "an environment that has its end fits where it was");
        return;
    };
    let reread = layout.decode(&again).expect("what was written is good");
    assert_eq!((reread.flags, Environment::parse(reread.data)), (good.flags, environment));
}

fn written_is_read(environment: &Environment, data_bytes: usize) {
    let size_bytes = FLAGS_OFFSET_BYTES + 1 + data_bytes + 2;
    let layout = Layout { size_bytes, redundant: true, byte_order: ByteOrder::NATIVE };
    let copy = layout.encode(environment, 7).expect("there is room for its end");
    assert_eq!(copy.len(), size_bytes);
    let good = layout.decode(&copy).expect("what was written is good");
    assert_eq!((good.flags, &Environment::parse(good.data)), (7, environment));
    let mut damaged = copy;
    damaged[FLAGS_OFFSET_BYTES + 1 + data_bytes / 2] ^= 1;
    assert_eq!(layout.decode(&damaged), None, "a bit that changed is found");
}

/// A patch changes what it names, and nothing else.
fn patched(environment: &Environment, data_bytes: usize) {
    let before = environment.variables();
    let gone = before.keys().next().cloned();
    let mut patch = EnvPatch([("boot_slot".to_owned(), Some("b".to_owned()))].into());
    patch.0.extend(gone.clone().filter(|name| name != "boot_slot").map(|name| (name, None)));
    let after = match environment.patched(&patch, data_bytes + 16) {
        Ok(after) => after,
        Err(PatchError::BadName(name)) => return assert_eq!(Some(name), gone),
        Err(error) => panic!("there is room for one more: {error}"),
    };
    assert_eq!(after.get("boot_slot"), Some(b"b".as_slice()));
    let mut expected = before;
    for (name, value) in &patch.0 {
        expected.remove(name);
        expected.extend(value.clone().map(|value| (name.clone(), value)));
    }
    assert_eq!(after.variables(), expected);
    assert_eq!(after.patched(&patch, data_bytes + 16), Ok(after), "a patch is safe to apply twice");
}

/// A copy is never passed over for one that is bad, and its successor goes before it.
fn flags(first: u8, second: u8) {
    for scheme in [FlagScheme::Incremental, FlagScheme::Boolean] {
        assert_eq!(select(scheme, [Some(first), None]), Some(CopyIndex::First));
        assert_eq!(select(scheme, [None, Some(second)]), Some(CopyIndex::Second));
        assert!(select(scheme, [Some(first), Some(second)]).is_some());
    }
    let next = Some(FlagScheme::Incremental.successor(first));
    assert_eq!(select(FlagScheme::Incremental, [Some(first), next]), Some(CopyIndex::Second));
    assert_eq!(select(FlagScheme::Incremental, [next, Some(first)]), Some(CopyIndex::First));
}
