//! `twinboot-manual DIRECTORY`: writes the manual pages and the shells' completions of `twinboot` there, laid out
//! as below `/usr/share`. A build step: the device's binary carries none of it.

use std::fs;
use std::io;
use std::path::Path;
use std::process::ExitCode;

use clap::Command;
use clap_complete::aot::{Bash, Fish, Generator, Zsh};
use clap_mangen::Man;

/// Hand-written but for the two marks between `@`.
const CONFIG_PAGE: &str = include_str!("../twinboot-config.5");

/// Every key with its default and its meaning: the page must not say something else.
const CONFIG: &str = include_str!("../../../config/config.toml");

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let [directory] = arguments.as_slice() else {
        eprintln!("usage: twinboot-manual DIRECTORY");
        return ExitCode::from(2);
    };
    match write_all(Path::new(directory)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("twinboot-manual: cannot write below {}: {error}", directory.display());
            ExitCode::FAILURE
        }
    }
}

fn write_all(share: &Path) -> io::Result<()> {
    let mut definition = twinboot::cli::definition().disable_help_subcommand(true);
    definition.build();
    let source = format!("twinboot {}", definition.get_version().unwrap_or_default());
    for command in std::iter::once(&definition).chain(definition.get_subcommands()) {
        let name = command.get_display_name().unwrap_or_else(|| command.get_name());
        write(&share.join(format!("man/man1/{name}.1")), &page(command, &source)?)?;
    }
    let page = CONFIG_PAGE.replace("@SOURCE@", &source).replace("@CONFIG@\n", &literal(CONFIG));
    write(&share.join("man/man5/twinboot-config.5"), page.as_bytes())?;
    complete(Bash, &share.join("bash-completion/completions/twinboot"))?;
    complete(Fish, &share.join("fish/vendor_completions.d/twinboot.fish"))?;
    complete(Zsh, &share.join("zsh/vendor-completions/_twinboot"))
}

fn page(command: &Command, source: &str) -> io::Result<Vec<u8>> {
    // These lines are laid out by hand; the library would fill them.
    let help = command.get_after_long_help().or(command.get_after_help()).map(ToString::to_string);
    let command = command.clone().after_help(None).after_long_help(None);
    let mut page = Vec::new();
    Man::new(command).source(source).render(&mut page)?;
    let notes = help.map(|help| format!(".SH NOTES\n.nf\n{}.fi\n", literal(&help))).unwrap_or_default();
    page.extend_from_slice(notes.as_bytes());
    page.extend_from_slice(b".SH SEE ALSO\n.BR twinboot (1),\n.BR twinboot\\-config (5)\n");
    Ok(page)
}

/// In roff a backslash begins an escape, and a dot or quote at the start of a line a request.
fn literal(text: &str) -> String {
    let escape = |line: &str| line.replace('\\', "\\e").replace('-', "\\-");
    text.lines().map(|line| format!("\\&{}\n", escape(line))).collect()
}

fn complete(shell: impl Generator, path: &Path) -> io::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut twinboot::cli::definition(), "twinboot", &mut script);
    write(path, &script)
}

#[expect(clippy::disallowed_methods, reason = "what is built anew at any time need not survive a power cut")]
fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    path.parent().map_or(Ok(()), fs::create_dir_all)?;
    fs::write(path, bytes)
}
