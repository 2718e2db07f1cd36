//! What a mistyped name may have meant, and files that are another program's.

use crate::coturn;

/// Similarity (Jaro-Winkler, 0 to 1) from which on a name is taken for a slip of another.
const SIMILAR: f64 = 0.85;

/// Returns the name that `found` is most similar to, if it is similar enough.
pub(super) fn closest<'a>(found: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let similarity = |name: &str| strsim::jaro_winkler(found, name);
    names.max_by(|a, b| similarity(a).total_cmp(&similarity(b))).filter(|name| similarity(name) >= SIMILAR)
}

/// Returns what is wrong with a file if `least` of coturn's keys are in it: which of them stand for which of this relay's.
pub(super) fn coturn(text: &str, least: usize) -> Option<String> {
    let keys = text.lines().map(|line| line.split('=').next().unwrap_or_default().trim());
    let mut known: Vec<_> = keys.filter_map(|key| coturn::foreign().find(|(name, _)| *name == key)).collect();
    known.dedup();
    if known.len() < least {
        return None;
    }
    let same: Vec<_> = known.iter().filter_map(|(name, ours)| Some(format!("{name} is {}", (*ours)?))).collect();
    let same = if same.is_empty() { String::new() } else { format!("; here, {}", same.join(", ")) };
    Some(format!(
        "this is a configuration of coturn's turnserver, expected a TOML file of this relay's keys: backwater-relay import translates it{same}"
    ))
}
