use std::fmt::Write as _;

use twinboot::config::{Config, Effective, Faults, Loaded};

use crate::part::split;
use crate::scratch::Scratch;

thread_local! {
    static FILES: Scratch = Scratch::new();
}

/// The configuration: the main file, and a drop-in behind a separator.
pub fn configuration(data: &[u8]) {
    let (main, drop_in) = split(data);
    match load(main, drop_in.unwrap_or_default()) {
        Ok(loaded) => {
            // What `twinboot check-config` shows is the configuration.
            let shown = written(&loaded.effective);
            let again = load(shown.as_bytes(), b"").unwrap_or_else(|faults| panic!("{shown}\n{faults}"));
            assert_eq!(shown, written(&again.effective));
        }
        Err(faults) => {
            assert!(!faults.0.is_empty(), "a refusal says why");
            let text = faults.to_string();
            assert_eq!(text.lines().count(), faults.0.len(), "a fault is one line: {text:?}");
            assert!(!text.contains(|c: char| c.is_control() && c != '\n'), "fit for a terminal: {text:?}");
        }
    }
}

fn load(main: &[u8], drop_in: &[u8]) -> Result<Loaded, Faults> {
    FILES.with(|files| {
        files.write("config.toml", main);
        files.write("config.d/50-local.toml", drop_in);
        Config::load(&files.path("config.toml"), None)
    })
}

/// As a file; the default of a path may depend on nothing else.
fn written(effective: &[Effective]) -> String {
    let (mut text, mut section) = (String::new(), "");
    for line in effective {
        if line.section != section {
            section = &line.section;
            match section.strip_prefix("slot ") {
                Some(name) => writeln!(text, "[[slot]]\nname = {name}").expect("a text grows"),
                None => writeln!(text, "[{section}]").expect("a text grows"),
            }
        }
        if line.key != "name" {
            writeln!(text, "{} = {}", line.key, line.value).expect("a text grows");
        }
    }
    text
}
