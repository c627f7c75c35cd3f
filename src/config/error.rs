//! What is wrong with a configuration, and where.

use std::fmt;
use std::path::{Path, PathBuf};

/// One fault, in the words its operator reads: `FILE:LINE:COLUMN: what is wrong and what to do`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    place: Option<Place>,
    message: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    file: PathBuf,
    /// Line and column, both from 1, or none when the fault is the file itself.
    position: Option<(usize, usize)>,
}

impl ConfigError {
    /// A fault that is in no file.
    pub fn new(message: impl Into<String>) -> Self {
        Self { place: None, message: message.into() }
    }

    /// A fault of a file as a whole.
    pub(super) fn of_file(file: &Path, message: impl Into<String>) -> Self {
        Self { place: Some(Place { file: file.to_owned(), position: None }), message: message.into() }
    }

    /// A fault that stands at the byte `offset` of a file's text.
    pub(super) fn at(file: &Path, text: &str, offset: usize, message: impl Into<String>) -> Self {
        let position = Some(position(text, offset));
        Self { place: Some(Place { file: file.to_owned(), position }), message: message.into() }
    }

    /// What is wrong, without where.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The line it stands in, from 1.
    pub fn line(&self) -> Option<usize> {
        self.place.as_ref()?.position.map(|(line, _)| line)
    }

    /// Where it stands, to sort by: the lines of one file in order.
    pub(super) fn position(&self) -> Option<(usize, usize)> {
        self.place.as_ref()?.position
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(place) = &self.place {
            write!(f, "{}:", place.file.display())?;
            if let Some((line, column)) = place.position {
                write!(f, "{line}:{column}:")?;
            }
            f.write_str(" ")?;
        }
        f.write_str(&self.message)
    }
}

impl std::error::Error for ConfigError {}

/// Line and column of a byte, from 1, columns counted in characters as editors do.
fn position(text: &str, offset: usize) -> (usize, usize) {
    let offset = (0..=offset.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    let before = &text[..offset];
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_count_lines_and_characters_from_one() {
        let text = "a\nüb = 1\r\nc";
        assert_eq!(position(text, 0), (1, 1));
        assert_eq!(position(text, 2), (2, 1));
        assert_eq!(position(text, 4), (2, 2));
        assert_eq!(position(text, text.len()), (3, 2));
        assert_eq!(position(text, 1000), (3, 2));
        assert_eq!(position("", 0), (1, 1));
    }
}
