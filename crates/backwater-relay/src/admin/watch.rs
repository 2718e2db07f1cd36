//! The configuration file, while the relay runs.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::config::{Config, ConfigError, ConfigFile, Stamp};

/// Notices that the file has changed, and what that means.
pub(super) struct FileWatch {
    /// As the relay was started.
    started: Config,
    /// The file then.
    first: ConfigFile,
    /// The last that was read without a mistake, and the one before it.
    latest: ConfigFile,
    before: ConfigFile,
    /// As it was when last read.
    seen: Option<Stamp>,
    /// A change that may still go on.
    changing: Option<Option<Stamp>>,
    /// What has been said already.
    invalid: Vec<ConfigError>,
    restart: Vec<&'static str>,
}

/// What a change of the file means.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Outcome {
    /// The keys whose new values count from now on.
    pub(super) applied: Vec<&'static str>,
    /// The keys whose new values need a restart.
    pub(super) restart: Vec<&'static str>,
    /// The keys whose new values do not count, and the flag or variable that counts before them.
    pub(super) overruled: BTreeMap<&'static str, String>,
    /// The mistakes in the file. Nothing of it is applied then.
    pub(super) problems: Vec<String>,
    /// Whether a thread has not applied it in time. It does so later.
    #[serde(skip)]
    pub(super) late: bool,
    /// The configuration that counts from now on.
    #[serde(skip)]
    pub(super) config: Option<Box<Config>>,
}

impl FileWatch {
    /// Returns `None` when there is nothing that can be read again.
    pub(super) fn new(started: Config) -> Option<Self> {
        let first = started.file.clone()?;
        let seen = Some(first.stamp()?);
        Some(Self {
            started,
            latest: first.clone(),
            before: first.clone(),
            first,
            seen,
            changing: None,
            invalid: vec![],
            restart: vec![],
        })
    }

    /// Reads the file if it has changed since the last time. What has changed since the last look is looked at the next
    /// time: somebody may be writing it.
    pub(super) fn look(&mut self) -> Outcome {
        let stamp = self.first.stamp_now();
        if stamp == self.seen {
            self.changing = None;
            return Outcome::default();
        }
        if self.changing.replace(stamp) != Some(stamp) {
            return Outcome::default();
        }
        self.read()
    }

    /// Reads the file, whether it has changed or not. What was said already about a mistake in it is said again.
    pub(super) fn read_now(&mut self) -> Outcome {
        self.invalid.clear();
        self.restart.clear();
        self.read()
    }

    fn read(&mut self) -> Outcome {
        (self.changing, self.seen) = (None, self.first.stamp_now());
        match self.read_config() {
            Ok((file, config)) => {
                self.invalid.clear();
                self.compare(file, config)
            }
            Err(errors) => {
                let known = self.invalid.iter().map(ConfigError::without_line);
                let is_known = known.eq(errors.iter().map(ConfigError::without_line));
                let problems = errors.iter().map(ToString::to_string).collect();
                self.invalid = errors;
                if is_known { Outcome::default() } else { Outcome { problems, ..Outcome::default() } }
            }
        }
    }

    /// Reads the file, and the configuration that it makes of the running relay. The relay could be started with either.
    fn read_config(&self) -> Result<(ConfigFile, Config), Vec<ConfigError>> {
        let (file, arguments) = self.first.read_again()?;
        Config::new(&arguments)?;
        let config = Config::new(&arguments.with_fixed_of(&self.first))?.keep_start(&self.started)?;
        Ok((file, config))
    }

    fn compare(&mut self, file: ConfigFile, config: Config) -> Outcome {
        let mut outcome = Outcome::default();
        for key in file.differences(&self.latest).filter(|key| key.is_live) {
            match file.instead(key) {
                Some(by) => drop(outcome.overruled.insert(key.name, by.to_owned())),
                None => outcome.applied.push(key.name),
            }
        }
        if !outcome.applied.is_empty() {
            outcome.config = Some(Box::new(config));
        }
        let restart = file.differences(&self.first).filter(|key| !key.is_live && file.instead(key).is_none());
        let restart: Vec<_> = restart.map(|key| key.name).collect();
        if restart != self.restart {
            self.restart.clone_from(&restart);
            outcome.restart = restart;
        }
        self.before = std::mem::replace(&mut self.latest, file);
        outcome
    }

    /// Forgets the last change, which could not be applied: it is one again when the file is read the next time.
    pub(super) fn undo(&mut self) {
        self.latest.clone_from(&self.before);
    }
}

#[cfg(test)]
mod tests;
