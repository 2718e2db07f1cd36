//! The configuration file: its form, and what it said when it was read.

use std::{
    collections::{BTreeMap, HashMap},
    fs::File,
    io,
    path::{Path, PathBuf},
    time::SystemTime,
};

use backwater_ops::exposed_mode;

use super::{
    Arguments, ConfigError, Given,
    keys::{KEYS, Key},
    suggest,
};

/// The file that a configuration was read from, and what the command line and the environment say instead.
#[derive(Clone, Debug)]
pub(crate) struct ConfigFile {
    pub(super) path: PathBuf,
    pub(super) stamp: Option<Stamp>,
    /// Its mode, if others than its owner may use it.
    pub(super) exposed: Option<u32>,
    pub(super) values: HashMap<&'static str, Given>,
    /// Keys that are unknown, and values of the wrong type.
    pub(super) errors: Vec<ConfigError>,
    pub(super) instead: HashMap<&'static str, Given>,
}

/// By what a change of a file is noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    modified: SystemTime,
    len: u64,
}

/// A file that is longer is not read again: it is something else than a configuration.
const MAX_LEN: u64 = 1 << 20;

impl ConfigFile {
    /// # Errors
    /// That it cannot be read, or is no TOML.
    pub(super) fn read(path: PathBuf) -> Result<Self, Vec<ConfigError>> {
        // Before its content: what is written in between is noticed as a change.
        let stamp = Stamp::of(&path);
        let name = path.display().to_string();
        let read = || {
            let file = File::open(&path)?;
            Ok((exposed_mode(&file), io::read_to_string(file)?))
        };
        let (exposed, text) = read().map_err(|error: io::Error| {
            vec![ConfigError { key: name.clone(), problem: format!("cannot be read: {error}") }]
        })?;
        let (values, errors) = parse(&name, &text)?;
        Ok(Self { path, stamp, exposed, values, errors, instead: HashMap::new() })
    }

    /// What to say of passwords in it that others can read.
    pub(super) fn exposed_secrets(&self) -> Option<String> {
        let has_secrets = || KEYS.iter().any(|key| key.is_secret && self.values.contains_key(key.name));
        let mode = self.exposed.filter(|_| has_secrets())?;
        let path = self.path.display();
        Some(format!("{path}: others can read the passwords in it (mode {mode:04o}): chmod 600 it"))
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// As it was when it was read. `None` for what is no file, such as a pipe: reading that again would be wrong.
    pub(crate) fn stamp(&self) -> Option<Stamp> {
        self.stamp
    }

    /// As it is now.
    pub(crate) fn stamp_now(&self) -> Option<Stamp> {
        Stamp::of(&self.path)
    }

    /// Reads it again, with the same command line and environment.
    ///
    /// # Errors
    /// That it cannot be read, or is no TOML.
    pub(crate) fn read_again(&self) -> Result<(Self, Arguments), Vec<ConfigError>> {
        if self.stamp_now().is_none_or(|stamp| stamp.len > MAX_LEN) {
            let problem = format!("cannot be read: expected a file of at most {MAX_LEN} bytes");
            return Err(vec![ConfigError { key: self.path.display().to_string(), problem }]);
        }
        let mut file = Self::read(self.path.clone())?;
        file.instead.clone_from(&self.instead);
        Ok((file.clone(), Arguments::of_file(file)))
    }

    /// Returns the flag or the variable that counts before the file's value of this key.
    pub(crate) fn instead(&self, key: &Key) -> Option<&str> {
        self.instead.get(key.name).map(|given| given.place.as_str())
    }

    /// The keys of which the two say something different.
    pub(crate) fn differences<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = &'static Key> + 'a {
        let value = |file: &'a Self, key: &Key| file.values.get(key.name).map(|given| &given.values);
        KEYS.iter().copied().filter(move |&key| value(self, key) != value(other, key))
    }
}

impl Stamp {
    fn of(path: &Path) -> Option<Self> {
        let metadata = std::fs::metadata(path).ok().filter(std::fs::Metadata::is_file)?;
        Some(Self { modified: metadata.modified().ok()?, len: metadata.len() })
    }
}

/// The values, and what is wrong with them.
pub(super) type Parsed = (HashMap<&'static str, Given>, Vec<ConfigError>);

pub(super) fn parse(name: &str, text: &str) -> Result<Parsed, Vec<ConfigError>> {
    let error = |key: String, problem: String| vec![ConfigError { key, problem }];
    // One of coturn's keys alone may be a slip, where all else is TOML.
    if let Some(problem) = suggest::coturn(text, 2) {
        return Err(error(name.to_owned(), problem));
    }
    let line = |at: usize| 1 + text.get(..at).unwrap_or_default().matches('\n').count();
    let table: BTreeMap<toml::Spanned<String>, toml::Value> = toml::from_str(text).map_err(|e| {
        if let Some(problem) = suggest::coturn(text, 1) {
            return error(name.to_owned(), problem);
        }
        let line = e.span().map_or(1, |span| line(span.start));
        error(format!("{name}, line {line}"), e.message().replace('\n', " "))
    })?;
    let (mut found, mut errors) = (HashMap::new(), Vec::new());
    for (key, value) in table {
        let place = format!("{name}, line {}: {}", line(key.span().start), key.get_ref());
        let key = key.into_inner();
        let Some(known) = KEYS.iter().find(|k| k.name == key) else {
            let names: Vec<_> = KEYS.iter().map(|k| k.name).collect();
            let problem = match suggest::closest(&key, names.iter().copied()) {
                Some(name) => format!("unknown; did you mean {name}?"),
                None => format!("unknown; expected one of {}", names.join(", ")),
            };
            errors.push(ConfigError { key: place, problem });
            continue;
        };
        match texts(known, &value) {
            Ok(values) => drop(found.insert(known.name, Given { place, values })),
            Err(problem) => errors.push(ConfigError { key: place, problem }),
        }
    }
    Ok((found, errors))
}

/// Returns the values as flags would have them, or what was found instead.
fn texts(key: &Key, value: &toml::Value) -> Result<Vec<String>, String> {
    let text = |value: &toml::Value| match value {
        toml::Value::String(text) => Ok(text.clone()),
        toml::Value::Integer(number) => Ok(number.to_string()),
        toml::Value::Boolean(on) if key.is_switch => Ok(on.to_string()),
        toml::Value::Float(_)
        | toml::Value::Boolean(_)
        | toml::Value::Datetime(_)
        | toml::Value::Array(_)
        | toml::Value::Table(_) => {
            let expected = if key.is_list { "an array of strings" } else { "a string or a number" };
            let article = if matches!(value, toml::Value::Integer(_) | toml::Value::Array(_)) { "an" } else { "a" };
            Err(format!("expected {expected}: {}, found {article} {}", key.value, value.type_str()))
        }
    };
    match value.as_array().filter(|_| key.is_list) {
        Some(values) => values.iter().map(text).collect(),
        None => Ok(vec![text(value)?]),
    }
}
