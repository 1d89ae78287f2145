//! Where log lines go: the journal with its fields, or the terminal.

use std::io::{self, IsTerminal};

use nix::sys::stat::fstat;
use tracing::{Level, Subscriber};
use tracing_journald::{Priority, PriorityMappings};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::debug_fn;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::{SubscriberInitExt as _, TryInitError};

use super::environment;
use super::paint::Paint;

/// Starts logging for this process. With the journal on stderr, an event's fields become the journal's own
/// (`journalctl UPDATE_ID=...`); otherwise lines go to stderr, without a time that a device may not know yet.
pub(super) fn init(level: Level) -> Result<(), TryInitError> {
    let filter = LevelFilter::from_level(level);
    let registry = tracing_subscriber::registry().with(filter);
    let journal = stderr_is_journal().then(tracing_journald::layer).and_then(io::Result::ok);
    if let Some(journal) = journal {
        let journal = journal
            .with_field_prefix(None)
            .with_syslog_identifier("twinboot".to_owned())
            // syslog's own words; the crate would call an `info!` a notice.
            .with_priority_mappings(PriorityMappings {
                info: Priority::Informational,
                debug: Priority::Debug,
                ..PriorityMappings::new()
            });
        return registry.with(journal).try_init();
    }
    let ansi = Paint::on(&io::stderr()).is_on();
    registry.with(lines(io::stderr, ansi)).try_init()
}

/// Level, sentence, fields.
fn lines<S, W>(writer: W, ansi: bool) -> impl Layer<S>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: for<'a> MakeWriter<'a> + 'static,
{
    let fields = debug_fn(|writer, field, value| match field.name() {
        "message" => write!(writer, "{value:?}"),
        // For machines that search the journal.
        "MESSAGE_ID" => Ok(()),
        name => write!(writer, " {name}={value:?}"),
    });
    tracing_subscriber::fmt::layer()
        .with_writer(writer)
        .with_ansi(ansi)
        .without_time()
        .with_target(false)
        .fmt_fields(fields)
        .compact()
}

/// As systemd documents it: `JOURNAL_STREAM` names device and inode of the stream that it connected.
fn stderr_is_journal() -> bool {
    let stderr = io::stderr();
    let named = environment("JOURNAL_STREAM");
    let is_same =
        |named: String| fstat(&stderr).is_ok_and(|stat| named == format!("{}:{}", stat.st_dev, stat.st_ino));
    !stderr.is_terminal() && named.is_some_and(is_same)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_line_has_level_sentence_and_fields_but_nothing_for_machines() {
        let written = Lines::default();
        let writer = written.clone();
        let subscriber = tracing_subscriber::registry().with(lines(move || writer.clone(), false));
        tracing::subscriber::with_default(subscriber, || {
            tracing::warn!(MESSAGE_ID = "0c0d", UPDATE_ID = %"u-1", SLOT = "b", "rolled back");
        });
        let text = String::from_utf8(written.0.lock().unwrap().clone()).unwrap();
        assert_eq!(text, " WARN rolled back UPDATE_ID=u-1 SLOT=\"b\"\n");
    }
}
