//! `cargo xtask deny`: licences, sources and duplicates of all dependencies, by the rules in `deny.toml`.
//!
//! It reads the part of `cargo deny check`'s rules that need no network, so that CI can run it anywhere. A key that it does not
//! know is refused; those of `[advisories]` are `cargo deny`'s alone.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use spdx::{Expression, ParseMode};
use toml::Table;

use crate::cargo::cargo;

type Complaints = Vec<String>;

/// A package of the resolved graph.
#[derive(Clone, Debug, Default)]
struct Package {
    name: String,
    version: String,
    /// An SPDX expression.
    license: Option<String>,
    /// `None` for one of the workspace or elsewhere on this disk.
    source: Option<String>,
    member: bool,
    /// Names of dependencies without a path whose version requirement is `*`.
    wildcards: Vec<String>,
}

/// What `deny.toml` says, as far as it is checked here.
#[derive(Debug, Default)]
struct Rules {
    licenses: Vec<String>,
    /// Crates that may have another licence: `name` or `name@version`, and which. No program of ours may contain them.
    exceptions: Vec<(String, Vec<String>)>,
    denied: Vec<String>,
    /// Crates whose version may be there beside another one: `name@version`.
    duplicates: Vec<String>,
}

pub(crate) fn run(root: &Path) -> Result<()> {
    let path = root.join("deny.toml");
    let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    let rules = Rules::parse(&text).context("deny.toml")?;
    let arguments = ["metadata", "--format-version=1", "--locked", "--all-features"];
    let packages = packages(&serde_json::from_str(&crate::output(cargo(root).args(arguments))?)?)?;
    // What the programs are built from: none of them has a feature that is not a default one.
    let built = self::packages(&serde_json::from_str(&crate::output(cargo(root).args(&arguments[..3]))?)?)?;

    let mut complaints = licenses(&rules, &packages);
    complaints.extend(exceptions_in(&rules, &built));
    complaints.extend(sources(&packages));
    complaints.extend(bans(&rules, &packages));
    complaints.extend(duplicates(&rules, &packages));
    complaints.iter().for_each(|complaint| eprintln!("{complaint}"));
    ensure!(complaints.is_empty(), "deny: {} complaints", complaints.len());
    println!("deny: licences, sources and duplicates of {} packages", packages.len());
    Ok(())
}

fn licenses(rules: &Rules, packages: &[Package]) -> Complaints {
    let mut complaints = Vec::new();
    for package in packages {
        let Package { name, version, license, .. } = package;
        let Some(license) = license else {
            complaints.push(format!("{name} {version}: its manifest names no licence"));
            continue;
        };
        match Expression::parse_mode(license, ParseMode::LAX) {
            Ok(expression) if expression.evaluate(|wanted| rules.allow(package, &wanted.to_string())) => {}
            Ok(_) => complaints.push(format!("{name} {version}: {license} is not allowed")),
            Err(error) => complaints.push(format!("{name} {version}: {license}: {}", error.reason)),
        }
    }
    let all: Vec<_> = packages.iter().filter_map(|package| package.license.as_deref()).collect();
    let unused = rules.licenses.iter().filter(|allowed| !all.iter().any(|license| license.contains(allowed.as_str())));
    complaints.extend(unused.map(|license| format!("{license} is allowed, and no package has it")));
    for (excepted, allowed) in &rules.exceptions {
        let of_crate: Vec<_> = packages.iter().filter(|package| package.is(excepted)).collect();
        if of_crate.is_empty() {
            complaints.push(format!("{excepted} is an exception, and is not there any more"));
            continue;
        }
        let has =
            |license: &String| of_crate.iter().any(|p| p.license.as_ref().is_some_and(|all| all.contains(license)));
        let needless = allowed.iter().filter(|license| rules.licenses.contains(license) || !has(license));
        complaints.extend(needless.map(|license| format!("{excepted} needs no exception for {license}")));
    }
    complaints
}

/// Exceptions are for what others may choose with a feature.
fn exceptions_in(rules: &Rules, built: &[Package]) -> Complaints {
    let is_excepted = |package: &&Package| rules.exceptions.iter().any(|(excepted, _)| package.is(excepted));
    let found = built.iter().filter(is_excepted);
    found
        .map(|Package { name, version, .. }| format!("{name} {version} is an exception, and is in what we build"))
        .collect()
}

/// All come from one registry, but those of the workspace: none from a repository, another registry, or elsewhere on this disk.
fn sources(packages: &[Package]) -> Complaints {
    let registry = packages.iter().filter_map(|package| package.source.as_deref()).find(|s| s.starts_with("registry+"));
    let foreign = packages.iter().filter(|package| !package.member && package.source.as_deref() != registry);
    foreign
        .map(|Package { name, version, source, .. }| {
            format!(
                "{name} {version}: comes from {}",
                source.as_deref().unwrap_or("a directory outside of the workspace")
            )
        })
        .collect()
}

fn bans(rules: &Rules, packages: &[Package]) -> Complaints {
    let denied = packages.iter().filter(|package| rules.denied.contains(&package.name));
    let mut complaints: Complaints = denied.map(|p| format!("{} {}: is denied", p.name, p.version)).collect();
    for package in packages.iter().filter(|package| package.member) {
        complaints.extend(package.wildcards.iter().map(|of| format!("{}: any version of {of} will do", package.name)));
    }
    complaints
}

fn duplicates(rules: &Rules, packages: &[Package]) -> Complaints {
    let mut versions = BTreeMap::<&str, BTreeSet<&str>>::new();
    for package in packages.iter().filter(|package| !rules.duplicates.iter().any(|skipped| package.is(skipped))) {
        versions.entry(&package.name).or_default().insert(&package.version);
    }
    let several = versions.iter().filter(|(_, versions)| versions.len() > 1);
    let mut complaints: Complaints = several
        .map(|(name, versions)| {
            let versions: Vec<_> = versions.iter().copied().collect();
            format!("{name}: {}: cargo tree --target all -i {name}@VERSION says whose they are", versions.join(", "))
        })
        .collect();
    let unused = rules.duplicates.iter().filter(|skipped| !packages.iter().any(|package| package.is(skipped)));
    complaints.extend(unused.map(|skipped| format!("{skipped} is skipped as a duplicate, and is not there any more")));
    complaints
}

impl Package {
    /// Whether it is `name`, or `name@version`, where the version may lack its last parts.
    fn is(&self, spec: &str) -> bool {
        let (name, version) = spec.split_once('@').unwrap_or((spec, ""));
        let rest = self.version.strip_prefix(version);
        self.name == name && rest.is_some_and(|rest| rest.is_empty() || version.is_empty() || rest.starts_with('.'))
    }
}

impl Rules {
    fn allow(&self, package: &Package, license: &str) -> bool {
        let of_crate =
            self.exceptions.iter().filter(|(excepted, _)| package.is(excepted)).flat_map(|(_, allowed)| allowed);
        self.licenses.iter().chain(of_crate).any(|allowed| allowed == license)
    }

    fn parse(text: &str) -> Result<Self> {
        let all: Table = text.parse()?;
        let mut rules = Self::default();
        for (section, keys) in &all {
            let keys = keys.as_table().with_context(|| format!("[{section}] is no table"))?;
            for (key, value) in keys {
                match (section.as_str(), key.as_str()) {
                    ("advisories", _) => {}
                    ("graph", "all-features") | ("bans", "allow-wildcard-paths" | "multiple-versions-include-dev")
                        if value.as_bool() == Some(true) => {}
                    ("bans", "multiple-versions" | "wildcards") | ("sources", "unknown-registry" | "unknown-git")
                        if value.as_str() == Some("deny") => {}
                    ("licenses", "allow") => rules.licenses = names(value)?,
                    ("licenses", "exceptions") => rules.exceptions = exceptions(value)?,
                    ("bans", "deny") => rules.denied = names(value)?,
                    ("bans", "skip") => rules.duplicates = names(value)?,
                    _ => bail!("[{section}] {key} = {value} is not checked by cargo xtask deny"),
                }
            }
        }
        Ok(rules)
    }
}

/// A list of tables with a `crate` and what it may have.
fn exceptions(list: &toml::Value) -> Result<Vec<(String, Vec<String>)>> {
    let allowed = |entry: &toml::Value| names(entry.get("allow").with_context(|| format!("{entry} allows nothing"))?);
    let entries = list.as_array().context("expected a list")?;
    names(list)?.into_iter().zip(entries).map(|(name, entry)| Ok((name, allowed(entry)?))).collect()
}

/// A list of names, or of tables with a `crate`.
fn names(list: &toml::Value) -> Result<Vec<String>> {
    let name = |entry: &toml::Value| {
        let name = entry.as_str().or_else(|| entry.get("crate")?.as_str());
        name.map(str::to_owned).with_context(|| format!("{entry} has no name"))
    };
    list.as_array().context("expected a list")?.iter().map(name).collect()
}

fn packages(metadata: &Value) -> Result<Vec<Package>> {
    let list = |value: &Value, key: &str| value[key].as_array().cloned().unwrap_or_default();
    let text = |value: &Value, key: &str| value[key].as_str().map(str::to_owned);
    let members = list(metadata, "workspace_members");
    let mut packages = Vec::new();
    for package in list(metadata, "packages") {
        let of_any_version = |dependency: &Value| {
            dependency["req"] == "*" && dependency["path"].is_null() && !dependency["source"].is_null()
        };
        packages.push(Package {
            name: text(&package, "name").context("cargo metadata has a package without a name")?,
            version: text(&package, "version").unwrap_or_default(),
            license: text(&package, "license"),
            source: text(&package, "source"),
            member: members.contains(&package["id"]),
            wildcards: list(&package, "dependencies")
                .iter()
                .filter(|dependency| of_any_version(dependency))
                .filter_map(|dependency| text(dependency, "name"))
                .collect(),
        });
    }
    Ok(packages)
}

#[cfg(test)]
mod tests;
