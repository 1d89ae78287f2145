use std::collections::BTreeMap;

use proptest::collection::{btree_map, vec};
use proptest::prelude::*;

use super::*;

const REDUNDANT: Layout = Layout { size_bytes: 0x200, redundant: true, byte_order: ByteOrder::Little };
const SINGLE: Layout = Layout { redundant: false, ..REDUNDANT };

fn environment(text: &str) -> Environment {
    Environment::parse(text.replace('|', "\0").as_bytes())
}

fn patch(changes: &[(&str, Option<&str>)]) -> EnvPatch {
    EnvPatch(changes.iter().map(|(name, value)| ((*name).to_owned(), value.map(str::to_owned))).collect())
}

/// What the boot loader takes of two copies on the medium.
fn boot_loader_takes(layout: Layout, scheme: FlagScheme, copies: &[Vec<u8>; 2]) -> Option<Environment> {
    let good = copies.each_ref().map(|copy| layout.decode(copy));
    let taken = select(scheme, good.map(|copy| copy.map(|copy| copy.flags)))?;
    taken.of(&good).map(|copy| Environment::parse(copy.data))
}

#[test]
fn a_copy_is_laid_out_as_u_boot_reads_it() {
    let layout = Layout { size_bytes: 16, ..REDUNDANT };
    let copy = layout.encode(&environment("a=1|b=2"), 7).unwrap();
    let data = b"a=1\0b=2\0\0\0\0";
    assert_eq!(copy[..4], crc32fast::hash(data).to_le_bytes());
    assert_eq!(copy[4], 7);
    assert_eq!(&copy[5..], data);

    let layout = Layout { redundant: false, byte_order: ByteOrder::Big, ..layout };
    let copy = layout.encode(&environment("a=1|b=2"), 7).unwrap();
    let data = b"a=1\0b=2\0\0\0\0\0";
    assert_eq!(copy[..4], crc32fast::hash(data).to_be_bytes());
    assert_eq!(&copy[4..], data);
}

#[test]
fn a_copy_of_the_other_byte_order_or_of_another_length_is_bad() {
    let copy = SINGLE.encode(&environment("a=1"), 0).unwrap();
    assert!(SINGLE.decode(&copy).is_some());
    assert!(Layout { byte_order: ByteOrder::Big, ..SINGLE }.decode(&copy).is_none());
    assert!(SINGLE.decode(&copy[..copy.len() - 1]).is_none());
    assert!(SINGLE.decode(&[]).is_none());
}

#[test]
fn data_that_is_not_ended_ends_with_the_data() {
    assert_eq!(environment("a=1|b=2").entries().collect::<Vec<_>>(), [b"a=1", b"b=2"]);
    assert_eq!(environment("a=1||b=2").entries().collect::<Vec<_>>(), [b"a=1"]);
    assert_eq!(environment(""), Environment::default());
    assert_eq!(environment("||"), Environment::default());
}

#[test]
fn selection_follows_the_flags() {
    use CopyIndex::{First, Second};
    use FlagScheme::{Boolean, Incremental};
    let table = [
        (Incremental, [None, None], None),
        (Incremental, [Some(0), None], Some(First)),
        (Incremental, [None, Some(0)], Some(Second)),
        (Incremental, [Some(5), Some(5)], Some(First)),
        (Incremental, [Some(5), Some(6)], Some(Second)),
        (Incremental, [Some(6), Some(5)], Some(First)),
        (Incremental, [Some(3), Some(200)], Some(Second)),
        (Incremental, [Some(0xFF), Some(0)], Some(Second)),
        (Incremental, [Some(0), Some(0xFF)], Some(First)),
        (Incremental, [Some(0xFF), Some(1)], Some(First)),
        (Boolean, [Some(1), Some(0)], Some(First)),
        (Boolean, [Some(0), Some(1)], Some(Second)),
        (Boolean, [Some(1), Some(1)], Some(First)),
        (Boolean, [Some(0), Some(0)], Some(First)),
        (Boolean, [Some(0xFF), Some(0)], Some(First)),
        (Boolean, [Some(0), Some(0xFF)], Some(Second)),
        (Boolean, [Some(1), Some(0xFF)], Some(Second)),
        (Boolean, [None, Some(0)], Some(Second)),
        (Boolean, [None, None], None),
    ];
    for (scheme, flags, taken) in table {
        assert_eq!(select(scheme, flags), taken, "{scheme:?} {flags:?}");
    }
}

#[test]
fn the_successor_wins_over_every_serial_number_even_where_it_wraps() {
    for current in 0..=u8::MAX {
        let next = FlagScheme::Incremental.successor(current);
        assert_eq!(
            select(FlagScheme::Incremental, [Some(current), Some(next)]),
            Some(CopyIndex::Second),
            "{current} {next}"
        );
        assert_eq!(
            select(FlagScheme::Incremental, [Some(next), Some(current)]),
            Some(CopyIndex::First),
            "{next} {current}"
        );
    }
}

#[test]
fn six_hundred_writes_alternate_the_copies_and_the_newest_is_taken_each_time() {
    let mut copies = [REDUNDANT.encode(&environment("n=start"), 1).unwrap(), vec![0; REDUNDANT.size_bytes]];
    for n in 0..600 {
        let good = copies.each_ref().map(|copy| REDUNDANT.decode(copy));
        let current = select(FlagScheme::Incremental, good.map(|copy| copy.map(|c| c.flags))).unwrap();
        let flags = current.of(&good).unwrap().flags;
        let new = REDUNDANT
            .encode(&environment(&format!("n={n}")), FlagScheme::Incremental.successor(flags))
            .unwrap();
        copies[usize::from(current == CopyIndex::First)] = new;
        let taken = boot_loader_takes(REDUNDANT, FlagScheme::Incremental, &copies).unwrap();
        assert_eq!(taken.get("n"), Some(n.to_string().as_bytes()));
    }
}

#[test]
fn variables_keep_their_place_and_new_ones_come_last() {
    let before = environment("ethaddr=00:11|b=2|odd entry|empty=|a=1");
    let after =
        before.patched(&patch(&[("a", Some("9")), ("b", None), ("new", Some("x=y"))]), 0x100).unwrap();
    assert_eq!(after, environment("ethaddr=00:11|odd entry|empty=|a=9|new=x=y"));
}

#[test]
fn what_is_not_utf8_survives_a_rewrite() {
    let before = Environment::parse(b"a=\xff\xfe\0\xc3=1\0b=2\0\0");
    let after = before.patched(&patch(&[("b", Some("3"))]), 0x100).unwrap();
    assert_eq!(after, Environment::parse(b"a=\xff\xfe\0\xc3=1\0b=3\0\0"));
    assert_eq!(after.get("a"), Some(&b"\xff\xfe"[..]));
    assert_eq!(after.variables().get("a").map(String::as_str), Some("\u{fffd}\u{fffd}"));
    assert_eq!(after.variables().len(), 2);
}

#[test]
fn of_duplicates_the_last_counts_and_a_write_leaves_one() {
    let before = environment("a=1|b=2|a=3");
    assert_eq!(before.get("a"), Some(&b"3"[..]));
    assert_eq!(before.variables().get("a").map(String::as_str), Some("3"));
    assert_eq!(before.patched(&patch(&[("a", Some("4"))]), 0x100).unwrap(), environment("a=4|b=2"));
    assert_eq!(before.patched(&patch(&[("a", None)]), 0x100).unwrap(), environment("b=2"));
}

#[test]
fn an_empty_value_deletes_as_it_does_in_u_boot() {
    let after = environment("a=1|b=2").patched(&patch(&[("a", Some("")), ("c", Some(""))]), 0x100).unwrap();
    assert_eq!(after, environment("b=2"));
}

/// Shows F9.
#[test]
fn a_patch_with_one_bad_part_is_refused_whole() {
    let before = environment("a=1");
    let refused = |name: &str, value: &str| {
        before.patched(&patch(&[("a", Some("2")), (name, Some(value))]), 0x100).unwrap_err()
    };
    for name in ["", "x=y", "x\0", " x", "\tx", "#x"] {
        assert_eq!(refused(name, "1"), PatchError::BadName(name.to_owned()));
    }
    assert_eq!(refused("x", "1\u{0}2"), PatchError::NulInValue("x".to_owned()));
    assert!(matches!(refused("x", &"1".repeat(0x100)), PatchError::DoesNotFit(_)));
}

#[test]
fn an_environment_may_be_full_to_the_last_byte_and_not_one_more() {
    // "a=" and two NULs go off the room for the value.
    let room = REDUNDANT.data_bytes() - 4;
    let full = Environment::default()
        .patched(&patch(&[("a", Some(&"x".repeat(room)))]), REDUNDANT.data_bytes())
        .unwrap();
    let copy = REDUNDANT.encode(&full, 1).unwrap();
    assert_eq!(Environment::parse(REDUNDANT.decode(&copy).unwrap().data), full);

    let over = patch(&[("a", Some(&"x".repeat(room + 1)))]);
    let error = Environment::default().patched(&over, REDUNDANT.data_bytes()).unwrap_err();
    assert_eq!(
        error,
        PatchError::DoesNotFit(DoesNotFit {
            needed_bytes: REDUNDANT.data_bytes() + 1,
            capacity_bytes: REDUNDANT.data_bytes()
        })
    );
}

/// Writes the successor of what the boot loader takes, stopping after each number of bytes.
fn every_cut_is_all_or_nothing(scheme: FlagScheme, flags: [u8; 2], data: [&str; 3]) {
    let [first, second, new] = data.map(environment);
    let start = [REDUNDANT.encode(&first, flags[0]).unwrap(), REDUNDANT.encode(&second, flags[1]).unwrap()];
    let current = select(scheme, flags.map(Some)).unwrap();
    let old = boot_loader_takes(REDUNDANT, scheme, &start).unwrap();
    let image = REDUNDANT.encode(&new, scheme.successor(*current.of(&flags))).unwrap();
    let target = usize::from(current == CopyIndex::First);

    let mut copies = start.clone();
    for cut in 0..=image.len() {
        copies[target][..cut].copy_from_slice(&image[..cut]);
        let taken = boot_loader_takes(REDUNDANT, scheme, &copies).expect("one copy is always good");
        assert!(taken == old || taken == new, "cut after {cut} bytes");
    }
    if scheme == FlagScheme::Boolean {
        copies[1 - target][FLAGS_OFFSET_BYTES] = OBSOLETE;
    }
    assert_eq!(boot_loader_takes(REDUNDANT, scheme, &copies), Some(new), "{scheme:?} {flags:?}");
}

/// Shows nerves-project/nerves_runtime#375.
#[test]
fn a_cut_after_any_byte_of_a_write_leaves_the_old_or_the_new_environment() {
    let long = "x=0123456789".repeat(30);
    for data in [
        ["slot=a", "slot=b", "slot=c"],
        // The superseded copy already holds the new data: only the flags tell them apart.
        ["slot=a", "slot=b", "slot=a"],
        ["slot=a", "slot=b", "slot=b"],
        ["slot=a", &long, "slot=c|long=x"],
    ] {
        for flags in [[1, 2], [2, 1], [7, 7], [0xFE, 0xFF], [0xFF, 0], [0, 0xFF], [3, 200]] {
            every_cut_is_all_or_nothing(FlagScheme::Incremental, flags, data);
        }
        for flags in [[1, 0], [0, 1], [1, 1], [0xFF, 0], [0, 0xFF], [1, 0xFF]] {
            every_cut_is_all_or_nothing(FlagScheme::Boolean, flags, data);
        }
    }
}

/// Sectors may reach the medium in any order: any mix of old and new ones is what a cut can leave.
/// Shows F7.
#[test]
fn a_cut_that_leaves_any_mix_of_sectors_leaves_the_old_or_the_new_environment() {
    let filler = |c: &str| format!("slot={c}|filler={}", c.repeat(0x1a0));
    let [first, second, new] = ["a", "b", "c"].map(|c| environment(&filler(c)));
    let start = [REDUNDANT.encode(&first, 4).unwrap(), REDUNDANT.encode(&second, 5).unwrap()];
    let image = REDUNDANT.encode(&new, 6).unwrap();
    let sector = REDUNDANT.size_bytes / 8;
    for landed in 0..=u8::MAX {
        let mut copies = start.clone();
        for n in (0..8).filter(|n| landed >> n & 1 == 1) {
            copies[0][n * sector..(n + 1) * sector].copy_from_slice(&image[n * sector..(n + 1) * sector]);
        }
        let taken = boot_loader_takes(REDUNDANT, FlagScheme::Incremental, &copies).unwrap();
        assert!(taken == second || taken == new, "{landed:08b}");
        // Without the sector of the CRC and the flags it cannot win.
        assert!(landed & 1 == 1 || taken == second, "{landed:08b}");
        assert!(landed != u8::MAX || taken == new);
    }
}

fn layouts() -> impl Strategy<Value = Layout> {
    (16_usize..0x400, any::<bool>(), any::<bool>()).prop_map(|(size_bytes, redundant, big)| Layout {
        size_bytes,
        redundant,
        byte_order: if big { ByteOrder::Big } else { ByteOrder::Little },
    })
}

proptest! {
    #[test]
    fn an_environment_that_fits_comes_back_unchanged(
        layout in layouts(), flags: u8, entries in vec(vec(1_u8.., 1..40), 0..12)
    ) {
        let before = Environment { entries };
        match layout.encode(&before, flags) {
            Ok(bytes) => {
                prop_assert_eq!(bytes.len(), layout.size_bytes);
                let copy = layout.decode(&bytes).unwrap();
                prop_assert_eq!(copy.flags, if layout.redundant { flags } else { 0 });
                prop_assert_eq!(Environment::parse(copy.data), before);
            }
            Err(error) => prop_assert!(error.needed_bytes > error.capacity_bytes),
        }
    }

    #[test]
    fn arbitrary_bytes_are_read_without_panic(layout in layouts(), bytes in vec(any::<u8>(), 0..0x400)) {
        prop_assert!(layout.decode(&bytes).is_none_or(|copy| copy.data.len() == layout.data_bytes()));
        let environment = Environment::parse(&bytes);
        prop_assert!(environment.variables().len() <= environment.entries().count());
    }

    #[test]
    fn any_single_wrong_byte_of_the_data_or_the_crc_is_noticed(at in 0..REDUNDANT.size_bytes, wrong in 1_u8..) {
        prop_assume!(at != FLAGS_OFFSET_BYTES);
        let mut bytes = REDUNDANT.encode(&environment("a=1|b=2"), 3).unwrap();
        bytes[at] ^= wrong;
        prop_assert_eq!(REDUNDANT.decode(&bytes), None);
    }

    #[test]
    fn after_a_patch_the_variables_are_as_it_says_and_the_others_as_before(
        before in btree_map("[a-e]", "[x-z]{1,3}", 0..5),
        changes in btree_map("[c-g]", proptest::option::of("[x-z]{1,3}"), 0..5),
    ) {
        let entries = before.iter().map(|(name, value)| format!("{name}={value}").into_bytes()).collect();
        let after = Environment { entries }.patched(&EnvPatch(changes.clone()), 0x400).unwrap();
        let mut expected: BTreeMap<String, String> = before;
        for (name, value) in changes {
            match value {
                Some(value) => expected.insert(name, value),
                None => expected.remove(&name),
            };
        }
        prop_assert_eq!(after.variables(), expected);
    }
}
