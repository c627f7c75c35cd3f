//! Reading a table of a TOML file by a table of settings, and collecting everything that is wrong with it.
//!
//! The tree is read, not derived: serde stops at the first fault, and an operator wants to hear of all of them.

use std::ops::Range;
use std::path::Path;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::error::ConfigError;
use super::pgbouncer;
use super::settings::Setting;
use super::suggest::did_you_mean;
use super::values::Fault;

/// A stretch of a file's text, in bytes.
pub(super) type Span = Range<usize>;

/// The faults of one file.
pub(super) struct Report<'a> {
    file: &'a Path,
    text: &'a str,
    errors: Vec<ConfigError>,
}

/// A table of a file, with the words to speak of it.
pub(super) struct Section<'a> {
    /// As in the file, `[endpoints.main]`.
    pub title: String,
    /// Where its name stands.
    pub header: Span,
    /// What it says.
    pub table: &'a DeTable<'a>,
}

impl<'a> Report<'a> {
    /// Nothing is wrong with the file yet.
    pub fn new(file: &'a Path, text: &'a str) -> Self {
        Self { file, text, errors: Vec::new() }
    }

    /// Notes a fault.
    pub fn add(&mut self, span: Span, message: impl Into<String>) {
        self.errors.push(ConfigError::at(self.file, self.text, span.start, message));
    }

    /// The file's tree; if it is not TOML, notes why.
    pub fn tree(&mut self) -> Option<Spanned<DeTable<'a>>> {
        let (tree, faults) = DeTable::parse_recoverable(self.text);
        for fault in &faults {
            self.add(fault.span().unwrap_or(0..0), format!("not TOML: {}", fault.message()));
        }
        faults.is_empty().then_some(tree)
    }

    /// Reads all keys of a section into `into`. What is not said keeps its value.
    pub fn read<T>(&mut self, settings: &[Setting<T>], into: &mut T, section: &Section<'_>) {
        for (key, value) in section.table {
            match settings.iter().find(|setting| setting.name == key.get_ref()) {
                Some(setting) => self.read_one(setting, into, value),
                None => self.unknown(settings.iter().map(|setting| setting.name), section, key),
            }
        }
    }

    fn read_one<T>(&mut self, setting: &Setting<T>, into: &mut T, value: &Spanned<DeValue<'_>>) {
        if let Err(Fault { span, text }) = setting.read(into, value) {
            self.add(span, text);
        }
    }

    /// Notes a key that means nothing here.
    pub fn unknown<'k>(
        &mut self,
        known: impl Iterator<Item = &'k str>,
        section: &Section<'_>,
        key: &Spanned<std::borrow::Cow<'_, str>>,
    ) {
        let (name, title) = (key.get_ref(), &section.title);
        let hint = pgbouncer::answer(title, name)
            .map(|answer| format!(": {answer}"))
            .unwrap_or_else(|| did_you_mean(name, known));
        self.add(key.span(), format!("unknown key `{name}` in {title}{hint}"));
    }

    /// All faults, in the order of the file.
    pub fn into_errors(mut self) -> Vec<ConfigError> {
        self.errors.sort_by_key(ConfigError::position);
        self.errors
    }
}

impl<'a> Section<'a> {
    /// Where a key's value stands, or the section's name if it is not given.
    pub fn span_of(&self, key: &str) -> Span {
        self.table.get(key).map_or(self.header.clone(), Spanned::span)
    }

    /// The tables in this one, in the order of the file. Notes what is not a table.
    pub fn tables(&self, report: &mut Report<'_>) -> Vec<(&'a str, Section<'a>)> {
        let mut entries: Vec<_> = self.table.iter().collect();
        entries.sort_by_key(|(key, _)| key.span().start);
        let mut tables = Vec::with_capacity(entries.len());
        for (key, value) in entries {
            let title =
                format!("[{}.{}]", self.title.trim_matches(['[', ']']), bare_or_quoted(key.get_ref()));
            match value.get_ref() {
                DeValue::Table(table) => {
                    tables.push((key.get_ref().as_ref(), Section { title, header: key.span(), table }))
                }
                other => report.add(value.span(), format!("{title} must be a table, not {}", kind(other))),
            }
        }
        tables
    }
}

/// The kind of a value, with its article.
pub(super) fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a fraction",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

/// A key as it must be written in a file.
pub(super) fn bare_or_quoted(key: &str) -> String {
    let bare = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    match !key.is_empty() && key.bytes().all(bare) {
        true => key.to_owned(),
        false => super::values::quoted(key),
    }
}
