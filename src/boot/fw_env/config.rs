//! `fw_env.config`: where the copies of the environment are.
//!
//! Read as `fw_printenv` reads it, of which two things surprise: the offset is decimal unless it begins with `0x`
//! (octal with `0`), while the sizes and the count are hexadecimal with or without it. Where the tools skip a line
//! that they cannot read, this parser names it: a redundant environment must not quietly become a single one.

use std::path::PathBuf;

/// The largest environment taken. Real ones are 4 to 256 KiB; the limit bounds memory where a size is mistyped.
const MAX_SIZE_BYTES: usize = 4 << 20;

/// Where one copy is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Location {
    /// Device or file.
    pub path: PathBuf,
    /// From the start, or from the end where negative.
    pub offset_bytes: i64,
    /// Of one copy: `CONFIG_ENV_SIZE`.
    pub size_bytes: usize,
    /// Erase size of flash; the device knows it better, so it is read and not used.
    pub sector_bytes: Option<u64>,
    /// Sectors that the copy may use: for NAND.
    pub sectors: Option<u64>,
}

/// One copy, or two of the same size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FwEnvConfig {
    /// One line.
    Single(Location),
    /// Two lines: a redundant environment.
    Redundant([Location; 2]),
}

/// What is wrong with a `fw_env.config`, and in which line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// libubootenv's other format.
    #[error(
        "line {line} looks like the YAML format of libubootenv, which is not read here; \
         write a line `DEVICE OFFSET SIZE` for each copy"
    )]
    Yaml {
        /// From 1.
        line: usize,
    },
    /// Fewer than three fields.
    #[error("line {line} needs at least `DEVICE OFFSET SIZE`")]
    TooFewFields {
        /// From 1.
        line: usize,
    },
    /// The tools take a relative path from wherever they are started.
    #[error("line {line}: the device `{device}` is no absolute path")]
    RelativePath {
        /// From 1.
        line: usize,
        /// As written.
        device: String,
    },
    /// Not a number of the field's kind.
    #[error("line {line}: `{text}` is no {field}")]
    BadNumber {
        /// From 1.
        line: usize,
        /// What the field means, and how it is written.
        field: &'static str,
        /// As written.
        text: String,
    },
    /// Zero, or absurd.
    #[error(
        "line {line}: an environment of {size_bytes:#x} bytes is out of range (0x10 to {MAX_SIZE_BYTES:#x})"
    )]
    BadSize {
        /// From 1.
        line: usize,
        /// As read: hexadecimal.
        size_bytes: u64,
    },
    /// More than two copies.
    #[error("line {line} is one too many: an environment has at most two copies")]
    TooManyLines {
        /// From 1.
        line: usize,
    },
    /// Only comments.
    #[error("no line says where the environment is")]
    Empty,
    /// The two copies have different lengths.
    #[error("the two copies have different sizes: {first_bytes:#x} and {second_bytes:#x}")]
    UnequalSizes {
        /// First line.
        first_bytes: usize,
        /// Second line.
        second_bytes: usize,
    },
}

/// Reads the text of a `fw_env.config`.
///
/// # Errors
/// The first thing that is wrong.
pub fn parse(text: &str) -> Result<FwEnvConfig, ConfigError> {
    let mut locations = Vec::new();
    for (index, content) in text.lines().enumerate() {
        let line = index + 1;
        let fields: Vec<&str> =
            content.split_whitespace().take_while(|field| !field.starts_with('#')).collect();
        if fields.is_empty() {
            continue;
        }
        if locations.is_empty() && is_yaml(&fields) {
            return Err(ConfigError::Yaml { line });
        }
        if locations.len() == 2 {
            return Err(ConfigError::TooManyLines { line });
        }
        locations.push(parse_location(line, &fields)?);
    }

    let mut locations = locations.into_iter();
    match (locations.next(), locations.next()) {
        (None, _) => Err(ConfigError::Empty),
        (Some(only), None) => Ok(FwEnvConfig::Single(only)),
        (Some(first), Some(second)) if first.size_bytes != second.size_bytes => {
            Err(ConfigError::UnequalSizes { first_bytes: first.size_bytes, second_bytes: second.size_bytes })
        }
        (Some(first), Some(second)) => Ok(FwEnvConfig::Redundant([first, second])),
    }
}

/// The first line of a YAML document is a marker, a directive, or a key.
fn is_yaml(fields: &[&str]) -> bool {
    match fields {
        ["---", ..] | ["%YAML", ..] => true,
        [first, ..] if first.starts_with('{') || first.ends_with(':') => true,
        [_, second, ..] => second.starts_with(':'),
        _ => false,
    }
}

fn parse_location(line: usize, fields: &[&str]) -> Result<Location, ConfigError> {
    let [device, offset, size, rest @ ..] = fields else {
        return Err(ConfigError::TooFewFields { line });
    };
    if !device.starts_with('/') {
        return Err(ConfigError::RelativePath { line, device: (*device).to_owned() });
    }
    let number = |field, text: &str, parsed: Option<u64>| {
        parsed.ok_or_else(|| ConfigError::BadNumber { line, field, text: text.to_owned() })
    };
    let optional = |field, text: Option<&&str>| {
        text.map(|text| number(field, text, parse_hexadecimal(text))).transpose()
    };

    let offset_bytes = parse_offset(offset).ok_or_else(|| ConfigError::BadNumber {
        line,
        field: "offset (decimal, or hexadecimal with 0x; negative from the end)",
        text: (*offset).to_owned(),
    })?;
    let size = number("size (hexadecimal)", size, parse_hexadecimal(size))?;
    let size_bytes = usize::try_from(size).ok().filter(|size| (0x10..=MAX_SIZE_BYTES).contains(size));
    Ok(Location {
        path: PathBuf::from(device),
        offset_bytes,
        size_bytes: size_bytes.ok_or(ConfigError::BadSize { line, size_bytes: size })?,
        sector_bytes: optional("sector size (hexadecimal)", rest.first())?,
        sectors: optional("number of sectors (hexadecimal)", rest.get(1))?,
    })
}

/// As `%lli` of scanf.
fn parse_offset(text: &str) -> Option<i64> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let magnitude = if let Some(hexadecimal) = strip_0x(digits) {
        parse_digits(hexadecimal, 16)?
    } else if digits.starts_with('0') {
        parse_digits(digits, 8)?
    } else {
        parse_digits(digits, 10)?
    };
    let magnitude = i64::try_from(magnitude).ok()?;
    Some(if negative { -magnitude } else { magnitude })
}

/// As `%lx` of scanf, without its negative numbers.
fn parse_hexadecimal(text: &str) -> Option<u64> {
    parse_digits(strip_0x(text).unwrap_or(text), 16)
}

fn strip_0x(text: &str) -> Option<&str> {
    text.strip_prefix("0x").or_else(|| text.strip_prefix("0X"))
}

/// Digits only: the standard library would take a sign.
fn parse_digits(text: &str, radix: u32) -> Option<u64> {
    if text.chars().all(|c| c.is_digit(radix)) { u64::from_str_radix(text, radix).ok() } else { None }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn location(path: &str, offset_bytes: i64, size_bytes: usize) -> Location {
        Location { path: path.into(), offset_bytes, size_bytes, sector_bytes: None, sectors: None }
    }

    #[test]
    fn one_line_is_a_single_environment_and_two_are_a_redundant_one() {
        assert_eq!(
            parse("/boot/uboot.env 0x0000 0x4000\n"),
            Ok(FwEnvConfig::Single(location("/boot/uboot.env", 0, 0x4000)))
        );
        let text = "# comment\n\n  # indented\n/dev/mmcblk0 0x100000 0x4000 # first\n\t/dev/mmcblk0\t0x140000\t0x4000";
        assert_eq!(
            parse(text),
            Ok(FwEnvConfig::Redundant([
                location("/dev/mmcblk0", 0x10_0000, 0x4000),
                location("/dev/mmcblk0", 0x14_0000, 0x4000)
            ]))
        );
    }

    #[test]
    fn numbers_are_read_as_the_tools_read_them() {
        let read = |line: &str| match parse(line) {
            Ok(FwEnvConfig::Single(location)) => location,
            other => panic!("{line}: {other:?}"),
        };
        assert_eq!(read("/e 4096 4000").offset_bytes, 4096, "decimal offset");
        assert_eq!(read("/e 4096 4000").size_bytes, 0x4000, "hexadecimal size");
        assert_eq!(read("/e 010 4000").offset_bytes, 8, "octal offset");
        assert_eq!(read("/e 0X10 0X4000").offset_bytes, 16);
        assert_eq!(read("/e -0x20000 0x20000").offset_bytes, -0x2_0000);
        assert_eq!(read("/e 0 0x20000").offset_bytes, 0);
        let full = read("/dev/mtd0 0x4000 0x4000 20000 10");
        assert_eq!((full.sector_bytes, full.sectors), (Some(0x2_0000), Some(16)));
        assert_eq!(read("/dev/mtd0 0x4000 0x4000 0x20000 2 1").sectors, Some(2), "libubootenv's sixth field");
    }

    #[test]
    fn a_line_that_the_tools_would_skip_is_an_error_that_names_it() {
        let good = "/dev/a 0x0 0x4000\n";
        for (text, error) in [
            ("", ConfigError::Empty),
            ("# only\n", ConfigError::Empty),
            ("/dev/a 0x0", ConfigError::TooFewFields { line: 1 }),
            ("dev/a 0x0 0x4000", ConfigError::RelativePath { line: 1, device: "dev/a".into() }),
            ("/dev/a 0x0 0", ConfigError::BadSize { line: 1, size_bytes: 0 }),
            ("/dev/a 0x0 0x40000000", ConfigError::BadSize { line: 1, size_bytes: 0x4000_0000 }),
            (&format!("{good}/dev/b 0x0"), ConfigError::TooFewFields { line: 2 }),
            (&format!("{good}{good}\n{good}"), ConfigError::TooManyLines { line: 4 }),
            (
                &format!("{good}/dev/b 0 0x2000"),
                ConfigError::UnequalSizes { first_bytes: 0x4000, second_bytes: 0x2000 },
            ),
        ] {
            assert_eq!(parse(text), Err(error), "{text:?}");
        }
        for line in
            ["/d 0xg 1000", "/d 09 1000", "/d - 1000", "/d 0 -1000", "/d 0 4k", "/d 0 1000 z", "/d +-1 10"]
        {
            assert!(matches!(parse(line), Err(ConfigError::BadNumber { line: 1, .. })), "{line}");
        }
    }

    #[test]
    fn a_yaml_file_is_refused_as_such() {
        for text in [
            "uboot:\n  size : 0x4000\n  devices:\n    - path : /dev/mtd0\n",
            "# c\nuboot :\n  size: 1\n",
            "---\nuboot:\n",
        ] {
            assert!(matches!(parse(text), Err(ConfigError::Yaml { .. })), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_panic(text in "(?s).{0,200}") {
            if let Ok(FwEnvConfig::Single(location)) = parse(&text) {
                prop_assert!(location.path.is_absolute());
            }
        }

        #[test]
        fn any_line_of_numbers_is_read_without_panic(
            offset in "[-+]?(0x)?[0-9a-f]{0,20}", size in "(0x)?[0-9a-f]{0,20}"
        ) {
            if let Ok(FwEnvConfig::Single(location)) = parse(&format!("/dev/a {offset} {size}")) {
                prop_assert!(location.size_bytes <= MAX_SIZE_BYTES);
            }
        }
    }
}
