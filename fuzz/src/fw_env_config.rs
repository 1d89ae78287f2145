use twinboot::boot::fw_env::config::parse;
use twinboot::boot::fw_env::{FwEnvConfig, Location};

/// `fw_env.config`.
pub fn fw_env_config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let config = match parse(text) {
        Ok(config) => config,
        Err(error) => return assert!(error.to_string().len() < text.len() + 300, "a message is bounded"),
    };
    let locations = match &config {
        FwEnvConfig::Single(location) => vec![location],
        FwEnvConfig::Redundant([first, second]) => {
            assert_eq!(first.size_bytes, second.size_bytes);
            vec![first, second]
        }
    };
    assert!(locations.iter().all(|location| location.path.is_absolute()));
    assert!(locations.iter().all(|location| (16..=4 << 20).contains(&location.size_bytes)));
    let written: String = locations.into_iter().map(line).collect();
    assert_eq!(parse(&written), Ok(config), "{written}");
}

fn line(location: &Location) -> String {
    let Location { path, offset_bytes, size_bytes, sector_bytes, sectors } = location;
    let sign = if *offset_bytes < 0 { "-" } else { "" };
    let optional = [*sector_bytes, *sectors].into_iter().flatten();
    let optional: String = optional.map(|number| format!(" {number:x}")).collect();
    format!("{} {sign}{:#x} {size_bytes:x}{optional}\n", path.display(), offset_bytes.unsigned_abs())
}
