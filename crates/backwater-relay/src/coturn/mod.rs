//! A configuration of coturn's turnserver, as one of this relay's.

use std::fmt;

mod keys;
mod ranges;
mod translate;

pub(crate) use keys::foreign;
use keys::{Counterpart, counterpart};
use translate::Translation;

use crate::{Arguments, Config};

/// What a configuration of coturn's is here.
pub struct Import {
    /// The configuration file, in TOML.
    pub config: String,
    /// What of coturn's configuration is not in it, in the order of its lines.
    pub notes: Vec<Note>,
}

/// Something that is not in the configuration, and why.
#[derive(Debug)]
pub struct Note {
    /// The line and the key, unless it is about a default.
    pub place: Option<(usize, String)>,
    /// Why it is not there, or what is there instead.
    pub reason: String,
    /// Whether clients that coturn serves, or addresses that it protects, depend on it.
    pub is_essential: bool,
}

/// Translates the text of a `turnserver.conf`.
///
/// If the relay could not be started with what comes of it, that is an essential note.
pub fn import(text: &str) -> Import {
    let mut t = Translation::new(text.lines().enumerate().filter_map(|(at, line)| Given::read(at + 1, line)).collect());
    t.keys_without_counterpart();
    t.listeners();
    t.ports();
    t.credentials();
    t.peers();
    t.limits();
    t.logs_and_administration();
    let Translation { values, mut notes, .. } = t;
    let lines = values.iter().map(|(key, value)| format!("{key} = {value}\n"));
    let config = format!("# Made of a turnserver.conf by backwater-relay import.\n{}", lines.collect::<String>());
    let checked = Arguments::from_toml("the relay's configuration", &config).and_then(|a| Config::new(&a));
    // What has its own note already is not said twice.
    if let Err(errors) = checked
        && !notes.iter().any(|note| note.is_essential)
    {
        let note = |error: &dyn fmt::Display| Note { place: None, reason: error.to_string(), is_essential: true };
        notes.extend(errors.iter().map(|error| note(error)));
    }
    notes.sort_by_key(|note| note.place.as_ref().map_or(usize::MAX, |(line, _)| *line));
    Import { config, notes }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some((line, key)) = &self.place {
            write!(f, "line {line}: {key}: ")?;
        }
        write!(f, "{}{}", if self.is_essential { "NOT POSSIBLE: " } else { "" }, self.reason)
    }
}

/// A key of coturn's with its value.
#[derive(Clone)]
struct Given {
    line: usize,
    key: String,
    value: String,
}

impl Given {
    /// Reads a line as coturn does: blanks or `=` behind the key, and quotation marks around the value, if any.
    fn read(line: usize, text: &str) -> Option<Self> {
        let text = text.trim();
        if text.is_empty() || text.starts_with('#') {
            return None;
        }
        let separator = [' ', '\t', '='];
        let (key, value) = text.split_once(separator).unwrap_or((text, ""));
        let value = value.trim_start_matches(separator);
        let value = value.strip_prefix('"').map_or(value, |value| value.strip_suffix('"').unwrap_or(value));
        Some(Self { line, key: key.to_owned(), value: value.to_owned() })
    }

    /// Whether a switch is on. One without a value is.
    fn is_on(&self) -> bool {
        !(self.value.starts_with(['0', 'n', 'N', 'f', 'F']) || self.value.eq_ignore_ascii_case("off"))
    }
}

#[cfg(test)]
mod tests;
