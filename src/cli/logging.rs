//! Where log lines go: the journal with its fields, or the terminal.

use std::io::{self, IsTerminal};

use nix::sys::stat::fstat;
use tracing::Level;
use tracing_journald::{Priority, PriorityMappings};
use tracing_subscriber::field::MakeExt as _;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::format::debug_fn;
use tracing_subscriber::layer::SubscriberExt as _;
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
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(io::stderr)
        .with_ansi(Paint::on(&io::stderr()).is_on())
        .without_time()
        .with_target(false)
        .fmt_fields(
            debug_fn(|writer, field, value| match field.name() {
                "message" => write!(writer, "{value:?}"),
                // For machines that search the journal.
                "MESSAGE_ID" => Ok(()),
                name => write!(writer, "{name}={value:?}"),
            })
            .delimited(" "),
        )
        .compact();
    registry.with(lines).try_init()
}

/// As systemd documents it: `JOURNAL_STREAM` names device and inode of the stream that it connected.
fn stderr_is_journal() -> bool {
    let stderr = io::stderr();
    let named = environment("JOURNAL_STREAM");
    let is_same =
        |named: String| fstat(&stderr).is_ok_and(|stat| named == format!("{}:{}", stat.st_dev, stat.st_ino));
    !stderr.is_terminal() && named.is_some_and(is_same)
}
