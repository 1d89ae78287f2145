use proptest::prelude::*;

use super::*;

const MENDER: Scheme = Scheme::Mender { part_a: 2, part_b: 11 };
const SCHEMES: [Scheme; 3] = [Scheme::Bootcount, Scheme::Rauc, MENDER];

fn variables(text: &str) -> Variables {
    text.split_terminator('|')
        .map(|entry| entry.split_once('=').unwrap())
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

fn patch(text: &str) -> EnvPatch {
    EnvPatch(variables(text).into_iter().map(|(name, value)| (name, Some(value))).collect())
}

fn apply(variables: &mut Variables, patch: &EnvPatch) {
    for (name, value) in &patch.0 {
        match value {
            Some(value) => variables.insert(name.clone(), value.clone()),
            None => variables.remove(name),
        };
    }
}

fn commit(scheme: Scheme, variables: &mut Variables, slot: Slot) {
    let patch = scheme.commit(slot, 3, variables).unwrap();
    apply(variables, &patch);
}

/// What the boot script of a scheme does at one power-on, from its documentation: the slot that it boots.
fn boot(scheme: Scheme, variables: &mut Variables) -> Slot {
    let text = |variables: &Variables, name: &str| variables.get(name).cloned().unwrap_or_default();
    let number = |variables: &Variables, name: &str, radix| {
        u32::from_str_radix(&text(variables, name), radix).unwrap_or(0)
    };
    if scheme == Scheme::Rauc {
        if text(variables, "BOOT_ORDER").is_empty() {
            variables.insert("BOOT_ORDER".into(), "A B".into());
        }
        for slot in ["A", "B"] {
            variables.entry(format!("BOOT_{slot}_LEFT")).or_insert_with(|| "3".into());
        }
        for name in text(variables, "BOOT_ORDER").split(' ') {
            let left = format!("BOOT_{name}_LEFT");
            let attempts = number(variables, &left, 16);
            if attempts > 0 {
                variables.insert(left, format!("{:x}", attempts - 1));
                return if name == "A" { Slot::A } else { Slot::B };
            }
        }
        panic!("no slot is left: {variables:?}");
    }
    if number(variables, "upgrade_available", 10) != 0 {
        let count = number(variables, "bootcount", 10) + 1;
        variables.insert("bootcount".into(), count.to_string());
        let limit = number(variables, "bootlimit", 10);
        if limit != 0 && count > limit {
            // altbootcmd: the other slot, for good.
            let other = if scheme == MENDER { "2" } else { "a" };
            for name in ["boot_slot", "mender_boot_part", "mender_boot_part_hex"] {
                if variables.contains_key(name) {
                    variables.insert(name.into(), other.into());
                }
            }
            variables.insert("upgrade_available".into(), "0".into());
        }
    }
    let b = if scheme == MENDER {
        text(variables, "mender_boot_part_hex") == "b"
    } else {
        text(variables, "boot_slot") == "b"
    };
    if b { Slot::B } else { Slot::A }
}

/// A board that runs slot a, committed.
fn committed(scheme: Scheme) -> Variables {
    let mut variables = variables("other=kept");
    apply(&mut variables, &scheme.roll_back(Slot::A, 3));
    commit(scheme, &mut variables, Slot::A);
    variables
}

#[test]
fn the_bootcount_scheme_writes_these_variables() {
    let scheme = Scheme::Bootcount;
    assert_eq!(scheme.activate(Slot::B, 3), patch("boot_slot=b|upgrade_available=1|bootcount=0|bootlimit=3"));
    let committed = patch("boot_slot=b|upgrade_available=0|bootcount=0");
    assert_eq!(scheme.commit(Slot::B, 3, &Variables::new()), Ok(committed));
    assert_eq!(scheme.roll_back(Slot::A, 3), patch("boot_slot=a|upgrade_available=0|bootcount=0"));
    assert_eq!(scheme.disable(Slot::B), EnvPatch::default());
    assert_eq!(scheme.confirm(Slot::B, 3, &Variables::new()), Ok(EnvPatch::default()));
}

#[test]
fn the_mender_scheme_writes_these_variables() {
    let scheme = MENDER;
    assert_eq!(
        scheme.activate(Slot::B, 1),
        patch("mender_boot_part=11|mender_boot_part_hex=b|upgrade_available=1|bootcount=0|bootlimit=1")
    );
    let committed = patch("mender_boot_part=11|mender_boot_part_hex=b|upgrade_available=0|bootcount=0");
    assert_eq!(scheme.commit(Slot::B, 1, &Variables::new()), Ok(committed));
    assert_eq!(
        scheme.roll_back(Slot::A, 1),
        patch("mender_boot_part=2|mender_boot_part_hex=2|upgrade_available=0|bootcount=0")
    );
    assert_eq!(scheme.disable(Slot::B), EnvPatch::default());
}

/// Shows rauc/rauc#1157.
#[test]
fn the_rauc_scheme_writes_these_variables_with_attempts_in_hexadecimal() {
    let scheme = Scheme::Rauc;
    assert_eq!(scheme.disable(Slot::B), patch("BOOT_ORDER=A|BOOT_B_LEFT=0"));
    assert_eq!(scheme.activate(Slot::B, 10), patch("BOOT_ORDER=B A|BOOT_B_LEFT=a|BOOT_A_LEFT=a"));
    assert_eq!(scheme.roll_back(Slot::A, 3), patch("BOOT_ORDER=A|BOOT_B_LEFT=0|BOOT_A_LEFT=3"));
}

#[test]
fn a_boot_of_rauc_that_is_confirmed_costs_no_attempt_and_ends_what_has_none_left() {
    let confirmed = |text: &str| Scheme::Rauc.confirm(Slot::A, 12, &variables(text)).unwrap();
    assert_eq!(confirmed("BOOT_ORDER=A B|BOOT_A_LEFT=b|BOOT_B_LEFT=3"), patch("BOOT_A_LEFT=c"));
    assert_eq!(confirmed("BOOT_ORDER=A B|BOOT_A_LEFT=0|BOOT_B_LEFT=3"), patch("BOOT_A_LEFT=c"));
    assert_eq!(confirmed("BOOT_ORDER=A B|BOOT_A_LEFT=c|BOOT_B_LEFT=3"), EnvPatch::default());
    // Armed meanwhile: not ours to take back.
    assert_eq!(confirmed("BOOT_ORDER=B A|BOOT_A_LEFT=b|BOOT_B_LEFT=1"), patch("BOOT_A_LEFT=c"));
    // Slot b was committed, and did not come up any more.
    let ended = "BOOT_ORDER=B A|BOOT_A_LEFT=b|BOOT_B_LEFT=0";
    assert_eq!(confirmed(ended), patch("BOOT_ORDER=A|BOOT_A_LEFT=c"));
    let mut left = variables(ended);
    assert!(Scheme::Rauc.view(&left).unwrap().trial, "no update is taken before");
    apply(&mut left, &confirmed(ended));
    assert!(!Scheme::Rauc.view(&left).unwrap().trial);
}

#[test]
fn a_rauc_commit_keeps_the_other_slot_only_if_that_may_be_booted() {
    let committed = |text: &str| Scheme::Rauc.commit(Slot::B, 3, &variables(text)).unwrap();
    let with_fallback = patch("BOOT_ORDER=B A|BOOT_B_LEFT=3");
    let alone = patch("BOOT_ORDER=B|BOOT_B_LEFT=3");
    assert_eq!(committed("BOOT_ORDER=B A|BOOT_A_LEFT=3|BOOT_B_LEFT=2"), with_fallback);
    assert_eq!(committed("BOOT_ORDER=A B|BOOT_A_LEFT=1|BOOT_B_LEFT=0"), with_fallback);
    assert_eq!(committed("BOOT_ORDER=B|BOOT_A_LEFT=3|BOOT_B_LEFT=2"), alone);
    assert_eq!(committed("BOOT_ORDER=A B|BOOT_A_LEFT=0|BOOT_B_LEFT=2"), alone);
}

/// Shows F13.
#[test]
fn a_trial_that_is_never_committed_falls_back_after_its_attempts() {
    for scheme in SCHEMES {
        for attempts in [1, 3, 12] {
            let mut variables = committed(scheme);
            assert_eq!(boot(scheme, &mut variables), Slot::A, "{scheme:?}");
            apply(&mut variables, &scheme.activate(Slot::B, attempts));
            for attempt in 1..=attempts {
                assert_eq!(boot(scheme, &mut variables), Slot::B, "{scheme:?} attempt {attempt}");
            }
            assert_eq!(boot(scheme, &mut variables), Slot::A, "{scheme:?} {variables:?}");
        }
    }
}

/// Shows rauc/rauc#643, #165, meta-rauc-community#33.
#[test]
fn a_committed_slot_stays_and_a_rolled_back_one_is_not_booted_again() {
    for scheme in SCHEMES {
        let mut variables = committed(scheme);
        apply(&mut variables, &scheme.activate(Slot::B, 3));
        assert_eq!(boot(scheme, &mut variables), Slot::B);
        let mut rolled_back = variables.clone();

        commit(scheme, &mut variables, Slot::B);
        for _ in 0..10 {
            assert_eq!(boot(scheme, &mut variables), Slot::B, "{scheme:?}");
            let patch = scheme.confirm(Slot::B, 3, &variables).unwrap();
            apply(&mut variables, &patch);
        }

        apply(&mut rolled_back, &scheme.roll_back(Slot::A, 3));
        for _ in 0..3 {
            assert_eq!(boot(scheme, &mut rolled_back), Slot::A, "{scheme:?}");
        }
        assert_eq!(rolled_back["other"], "kept");
    }
}

#[test]
fn a_disabled_target_is_not_booted_even_when_the_running_slot_was_never_refilled() {
    let mut variables = committed(Scheme::Rauc);
    apply(&mut variables, &Scheme::Rauc.activate(Slot::B, 3));
    commit(Scheme::Rauc, &mut variables, Slot::B);
    apply(&mut variables, &Scheme::Rauc.disable(Slot::A));
    assert_eq!(Scheme::Rauc.view(&variables).unwrap().bootable(Slot::A), Some(false));
    for _ in 0..3 {
        assert_eq!(boot(Scheme::Rauc, &mut variables), Slot::B);
    }
}

#[test]
fn each_decision_made_twice_is_the_decision_made_once() {
    for scheme in SCHEMES {
        let start = committed(scheme);
        let decisions: [&dyn Fn(&Variables) -> EnvPatch; 5] = [
            &|_| scheme.activate(Slot::B, 3),
            &|variables| scheme.commit(Slot::B, 3, variables).unwrap(),
            &|_| scheme.roll_back(Slot::A, 3),
            &|_| scheme.disable(Slot::B),
            &|variables| scheme.confirm(Slot::A, 3, variables).unwrap(),
        ];
        for decide in decisions {
            let mut once = start.clone();
            apply(&mut once, &decide(&start));
            let mut twice = once.clone();
            apply(&mut twice, &decide(&once));
            assert_eq!(once, twice, "{scheme:?}");
        }
    }
}

#[test]
fn the_view_after_each_decision_is_what_was_decided() {
    for scheme in SCHEMES {
        let mut variables = committed(scheme);
        let view = |variables: &Variables| scheme.view(variables).unwrap();
        assert_eq!((view(&variables).primary, view(&variables).trial), (Slot::A, false));

        apply(&mut variables, &scheme.activate(Slot::B, 3));
        assert_eq!((view(&variables).primary, view(&variables).attempts_left), (Slot::B, Some(3)));
        assert_eq!(view(&variables).trial, scheme != Scheme::Rauc);
        boot(scheme, &mut variables);
        assert_eq!((view(&variables).primary, view(&variables).attempts_left), (Slot::B, Some(2)));

        commit(scheme, &mut variables, Slot::B);
        assert_eq!((view(&variables).primary, view(&variables).trial), (Slot::B, false));
        apply(&mut variables, &scheme.roll_back(Slot::A, 3));
        assert_eq!((view(&variables).primary, view(&variables).trial), (Slot::A, false));
    }
}

#[test]
fn on_the_last_attempt_either_slot_may_run() {
    let mut variables = committed(Scheme::Rauc);
    apply(&mut variables, &Scheme::Rauc.activate(Slot::B, 1));
    assert_eq!(boot(Scheme::Rauc, &mut variables), Slot::B);
    let view = Scheme::Rauc.view(&variables).unwrap();
    assert_eq!((view.primary, view.trial), (Slot::A, true));
}

#[test]
fn missing_variables_are_what_u_boot_takes_them_for() {
    let view = Scheme::Rauc.view(&Variables::new()).unwrap();
    assert_eq!((view.primary, view.trial, view.attempts_left), (Slot::A, false, Some(3)));
    assert_eq!((view.a_bootable, view.b_bootable), (Some(true), Some(true)));
    assert_eq!(Scheme::Rauc.view(&variables("BOOT_ORDER=")), Ok(view));

    let view = Scheme::Bootcount.view(&variables("boot_slot=b")).unwrap();
    assert_eq!((view.primary, view.trial, view.attempts_left), (Slot::B, false, None));
    let view = Scheme::Bootcount.view(&variables("boot_slot=b|upgrade_available=1")).unwrap();
    assert_eq!((view.trial, view.attempts_left), (true, None), "without a limit nothing is counted");
    assert_eq!(MENDER.view(&variables("mender_boot_part=11")).unwrap().primary, Slot::B);
}

/// Shows rauc/rauc#1157.
#[test]
fn a_variable_that_says_nothing_about_the_slots_is_named() {
    for (scheme, text, name) in [
        (Scheme::Bootcount, "", "boot_slot"),
        (Scheme::Bootcount, "boot_slot=c", "boot_slot"),
        (Scheme::Bootcount, "boot_slot=a|upgrade_available=yes", "upgrade_available"),
        (Scheme::Bootcount, "boot_slot=a|bootcount=-1", "bootcount"),
        (Scheme::Bootcount, "boot_slot=a|bootlimit=+3", "bootlimit"),
        (MENDER, "mender_boot_part_hex=2", "mender_boot_part"),
        (MENDER, "mender_boot_part=3", "mender_boot_part"),
        (MENDER, "mender_boot_part=11|mender_boot_part_hex=2", "mender_boot_part_hex"),
        (Scheme::Rauc, "BOOT_ORDER=A R", "BOOT_ORDER"),
        (Scheme::Rauc, "BOOT_B_LEFT=three", "BOOT_B_LEFT"),
    ] {
        let message = scheme.view(&variables(text)).unwrap_err().to_string();
        assert!(message.contains(&format!("`{name}")), "{text}: {message}");
    }
}

/// Shows F14.
#[test]
fn with_no_attempts_left_anywhere_the_first_slot_is_primary() {
    let view = Scheme::Rauc.view(&variables("BOOT_ORDER=B A|BOOT_A_LEFT=0|BOOT_B_LEFT=0")).unwrap();
    assert_eq!((view.primary, view.trial, view.attempts_left), (Slot::B, true, Some(0)));
}

proptest! {
    #[test]
    fn any_values_are_read_without_panic(
        order in "[AB ]{0,8}", left in "(0x)?[0-9a-fg]{0,10}", slot in "[abc]?", count in "[0-9]{0,12}"
    ) {
        let variables = variables(&format!(
            "BOOT_ORDER={order}|BOOT_A_LEFT={left}|boot_slot={slot}|upgrade_available=1|bootcount={count}|bootlimit=3"
        ));
        for scheme in SCHEMES {
            if let Ok(view) = scheme.view(&variables) {
                prop_assert!(view.bootable(view.primary) != Some(false) || view.attempts_left == Some(0));
            }
            if let Ok(patch) = scheme.commit(Slot::A, 3, &variables) {
                prop_assert!(patch.0.values().all(|value| value.as_deref().is_some_and(|text| !text.is_empty())));
            }
        }
    }
}
