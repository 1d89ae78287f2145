//! Colours, where somebody sees them.

use std::io::IsTerminal;

/// Whether, and how, to colour a text.
#[derive(Clone, Copy, Debug)]
pub struct Paint {
    on: bool,
}

impl Paint {
    /// Colours only on a terminal that can, and for a person who wants them (<https://no-color.org>).
    #[must_use]
    pub fn on(stream: &impl IsTerminal) -> Self {
        let wanted = super::environment("NO_COLOR").is_none();
        let able = super::environment("TERM").is_some_and(|terminal| terminal != "dumb");
        Self { on: stream.is_terminal() && wanted && able }
    }

    /// Whether there are colours at all.
    #[must_use]
    pub fn is_on(self) -> bool {
        self.on
    }

    /// A heading.
    #[must_use]
    pub fn bold(self, text: &str) -> String {
        self.paint("1", text)
    }

    /// What is not urgent.
    #[must_use]
    pub fn faint(self, text: &str) -> String {
        self.paint("2", text)
    }

    /// What is as it should be.
    #[must_use]
    pub fn good(self, text: &str) -> String {
        self.paint("32", text)
    }

    /// What is under way, or wants a look.
    #[must_use]
    pub fn notable(self, text: &str) -> String {
        self.paint("33", text)
    }

    /// What went wrong.
    #[must_use]
    pub fn bad(self, text: &str) -> String {
        self.paint("31", text)
    }

    fn paint(self, code: &str, text: &str) -> String {
        if self.on { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// A text of foreign origin, such as a version that the cloud sent, without what a terminal would obey.
#[must_use]
pub fn harmless(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_foreign_text_cannot_steer_the_terminal() {
        assert_eq!(harmless("1.4\x1b[2J\n2"), "1.4\u{fffd}[2J\u{fffd}2");
    }

    #[test]
    fn without_colours_a_text_is_itself() {
        assert_eq!(Paint { on: false }.bad("failed"), "failed");
        assert_eq!(Paint { on: true }.bad("failed"), "\x1b[31mfailed\x1b[0m");
    }
}
