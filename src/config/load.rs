//! The one place of this room that touches the file system.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use super::error::ConfigError;
use super::{Config, parse};

/// Reads the configuration at `path`, with the files it names. `cpus` are those the process may run on. On failure
/// tells all that is wrong, not only the first.
pub fn load(path: &Path, cpus: &[usize]) -> Result<Config, Vec<ConfigError>> {
    let text =
        read(path).map_err(|error| vec![ConfigError::of_file(path, format!("cannot be read: {error}"))])?;
    parse(path, &text, cpus, &read)
}

fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(FILE_BYTES_MAX + 1).read_to_string(&mut text)?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("it has more than {FILE_BYTES_MAX} bytes"),
        ));
    }
    Ok(text)
}

/// 64 MiB: a userlist of several hundred thousand users. What is longer is another file by mistake, `/dev/zero` say.
const FILE_BYTES_MAX: u64 = 64 << 20;
