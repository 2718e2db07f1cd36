//! What cargo knows about the workspace.

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};
use serde_json::Value;

/// `cargo metadata`, as far as it is used here.
#[derive(Debug, Default)]
pub(crate) struct Metadata {
    pub(crate) target_directory: PathBuf,
    /// Names and manifests of our crates.
    pub(crate) members: Vec<(String, PathBuf)>,
    /// Package ids by name of ours, and names by id.
    names: BTreeMap<String, String>,
    /// The oldest Rust that a package promises to build with, by its name; the newest of several versions' one.
    rust_versions: BTreeMap<String, RustVersion>,
    /// Features of our crates but `default`, by the name of the crate.
    features: BTreeMap<String, Vec<String>>,
    /// Normal dependencies, on any platform, by package id.
    normal: BTreeMap<String, Vec<String>>,
}

/// A version of Rust: major, minor, patch.
pub(crate) type RustVersion = [u32; 3];

/// The cargo that runs us.
pub(crate) fn cargo(root: &Path) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root);
    command
}

impl Metadata {
    pub(crate) fn read(root: &Path) -> Result<Self> {
        let text = crate::output(cargo(root).args(["metadata", "--format-version=1", "--locked"]))?;
        Self::parse(&text)
    }

    pub(crate) fn parse(text: &str) -> Result<Self> {
        let all: Value = serde_json::from_str(text)?;
        let mut metadata = Self { target_directory: text_of(&all, "target_directory")?.into(), ..Self::default() };
        let ours: BTreeSet<_> = list(&all, "workspace_members").filter_map(Value::as_str).collect();
        for package in list(&all, "packages") {
            let (id, name) = (text_of(package, "id")?, text_of(package, "name")?);
            metadata.names.insert(id.into(), name.into());
            if let Some(version) = package["rust_version"].as_str().and_then(rust_version) {
                let newest = metadata.rust_versions.entry(name.into()).or_default();
                *newest = version.max(*newest);
            }
            if ours.contains(id) {
                metadata.members.push((name.into(), text_of(package, "manifest_path")?.into()));
                let features = package["features"].as_object().into_iter().flat_map(|all| all.keys());
                metadata.features.insert(name.into(), features.filter(|name| *name != "default").cloned().collect());
            }
        }
        for node in list(&all["resolve"], "nodes") {
            let normal = list(node, "deps")
                .filter(|dep| list(dep, "dep_kinds").any(|kind| kind["kind"].is_null()))
                .filter_map(|dep| dep["pkg"].as_str().map(str::to_owned));
            metadata.normal.insert(text_of(node, "id")?.into(), normal.collect());
        }
        Ok(metadata)
    }

    /// The features of one of our crates, without `default`.
    pub(crate) fn features(&self, name: &str) -> Vec<&str> {
        self.features.get(name).into_iter().flatten().map(String::as_str).collect()
    }

    /// The oldest Rust that the package of this name promises to build with.
    pub(crate) fn rust_version(&self, name: &str) -> Option<RustVersion> {
        self.rust_versions.get(name).copied()
    }

    /// The packages that `name` needs to be built, directly or not, on some platform or other; without those of its
    /// tests and build scripts, and without what only `leaf` needs.
    pub(crate) fn reached_from(&self, name: &str, leaf: &str) -> BTreeSet<&str> {
        let mut ids: Vec<&String> = self.names.iter().filter(|(_, n)| *n == name).map(|(id, _)| id).collect();
        let mut seen = BTreeSet::new();
        while let Some(id) = ids.pop() {
            if seen.insert(id) && self.names.get(id).is_none_or(|n| n != leaf) {
                ids.extend(self.normal.get(id).into_iter().flatten());
            }
        }
        seen.into_iter().filter_map(|id| self.names.get(id)).map(String::as_str).collect()
    }
}

/// Reads `1.88` or `1.88.0`.
fn rust_version(text: &str) -> Option<RustVersion> {
    let mut version = [0; 3];
    for (at, part) in text.split('.').enumerate() {
        *version.get_mut(at)? = part.parse().ok()?;
    }
    Some(version)
}

fn list<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> + use<'a> {
    value[key].as_array().into_iter().flatten()
}

fn text_of<'a>(value: &'a Value, key: &str) -> Result<&'a str> {
    value[key].as_str().with_context(|| format!("cargo metadata has no {key}"))
}
