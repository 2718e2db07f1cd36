//! The files in `packaging/`: each is read by what it is for, as far as that can be had without a cluster and a registry.

use std::{
    collections::{BTreeSet, HashMap},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use backwater_relay::{Arguments, Config};
use serde_json::Value;

use crate::{admin, clients::python_with, program::Program, support::skip};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// All texts with this key, wherever they are.
fn texts(value: &Value, key: &str) -> Vec<String> {
    match value {
        Value::Object(map) => map
            .iter()
            .flat_map(|(name, value)| match value.as_str().filter(|_| name == key) {
                Some(text) => vec![text.to_owned()],
                None => texts(value, key),
            })
            .collect(),
        Value::Array(items) => items.iter().flat_map(|item| texts(item, key)).collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => vec![],
    }
}

#[test]
fn each_metric_of_the_dashboard_is_one_of_the_relays() {
    let dashboard = fs::read_to_string(root().join("packaging/grafana-dashboard.json")).unwrap();
    let dashboard: Value = serde_json::from_str(&dashboard).unwrap();
    let args = ["--listen", "127.0.0.1:0", "--user", "alice:secret", "--drain", "0", "--admin", "127.0.0.1:0"];
    let mut relay = Program::start(&args, 0);
    let addr = relay.line("administration")["admin"].as_str().unwrap().parse().unwrap();
    let (_, metrics) = admin::get(addr, "/metrics");
    let names: BTreeSet<_> = metrics
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| line.split(['{', ' ']).next().unwrap())
        .collect();
    let mut used = BTreeSet::new();
    for expression in [texts(&dashboard, "expr"), texts(&dashboard, "query")].concat() {
        let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let words = expression.split(|c| !is_part(c)).filter(|word| word.starts_with("backwater_"));
        used.extend(words.map(str::to_owned));
    }
    assert!(used.len() > 20, "{used:?}");
    let unknown: Vec<_> = used.iter().filter(|name| !names.contains(name.as_str())).collect();
    assert!(unknown.is_empty(), "{unknown:?}");
    let panels = dashboard["panels"].as_array().unwrap();
    let ids: BTreeSet<_> = panels.iter().map(|panel| panel["id"].as_u64().unwrap()).collect();
    assert_eq!(ids.len(), panels.len());
    for panel in panels {
        assert!(
            !texts(panel, "expr").is_empty() && panel["title"].is_string() && panel["gridPos"]["w"].is_u64(),
            "{panel}"
        );
    }
    assert_eq!(relay.terminate(), Some(0));
}

/// What the API has as types, and what our own configuration says of the same things.
#[test]
fn the_manifests_are_what_the_api_takes_and_the_relay_runs_with_them() {
    let Some(python) = python_with("kubernetes, yaml") else {
        return skip("the Python modules kubernetes and yaml are not installed (pip install kubernetes)");
    };
    let files = ["relay.yaml", "metrics.yaml"].map(|name| root().join("packaging/kubernetes").join(name));
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/relay/manifests.py");
    let read = |files: &[PathBuf]| Command::new(&python).arg(&script).args(files).output().unwrap();
    let out = read(&files);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    // The script notices what it is there for.
    let wrong = std::env::temp_dir().join(format!("backwater-wrong-{}.yaml", std::process::id()));
    let good = fs::read_to_string(&files[0]).unwrap();
    for (right, mistake) in [
        ("hostNetwork: true", "hostNetworks: true"),
        ("containerPort: 3478", "containerPort: x"),
        ("          image: b", "          imag: b"),
    ] {
        assert!(good.contains(right), "{right}");
        fs::write(&wrong, good.replace(right, mistake)).unwrap();
        let out = read(std::slice::from_ref(&wrong));
        assert!(!out.status.success() && !out.stderr.is_empty(), "{mistake}: {}", String::from_utf8_lossy(&out.stderr));
    }
    fs::remove_file(wrong).unwrap();
    let objects = String::from_utf8(out.stdout).unwrap();
    let objects: Vec<Value> = objects.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of = |kind: &str, name: &str| {
        let found = objects.iter().find(|object| object["kind"] == kind && object["metadata"]["name"] == name);
        found.unwrap_or_else(|| panic!("no {kind} {name}"))
    };
    let relay = &of("DaemonSet", "backwater-relay")["spec"]["template"]["spec"];
    let container = &relay["containers"][0];
    let file = std::env::temp_dir().join(format!("backwater-kubernetes-{}.toml", std::process::id()));
    let text = of("ConfigMap", "backwater-relay")["data"]["relay.toml"].as_str().unwrap();
    fs::write(&file, text).unwrap();

    // The container's arguments and variables, as the kubelet makes them.
    let secrets = of("Secret", "backwater-relay")["stringData"].as_object().unwrap();
    let mut env: HashMap<String, String> = HashMap::new();
    for variable in container["env"].as_array().unwrap() {
        let value = match (&variable["value"], &variable["valueFrom"]["secretKeyRef"]["key"]) {
            (Value::String(value), _) => value.replace("$(HOST_IP)", "192.0.2.10"),
            (_, Value::String(key)) => secrets[key].as_str().unwrap().to_owned(),
            _ => "192.0.2.10".to_owned(),
        };
        env.insert(variable["name"].as_str().unwrap().to_owned(), value);
    }
    let args = container["args"].as_array().unwrap().iter().map(|arg| arg.as_str().unwrap());
    let args = args.map(|arg| arg.replace("/etc/backwater/relay.toml", file.to_str().unwrap()));
    let args = std::iter::once("relay".to_owned()).chain(args);
    let matches = Arguments::command().try_get_matches_from(args).unwrap();
    let config = Config::new(&Arguments::read(&matches, env).unwrap()).unwrap();
    fs::remove_file(file).unwrap();
    let grace = relay["terminationGracePeriodSeconds"].as_u64().unwrap();
    assert!(config.drain.as_secs() + 10 < grace, "{:?} in {grace}", config.drain);

    // What the probes and the proxy ask is where admin is.
    let table: toml::Table = text.parse().unwrap();
    let admin = table["admin"].as_str().unwrap();
    for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
        let get = &container[probe]["httpGet"];
        assert_eq!(format!("{}:{}", get["host"].as_str().unwrap(), get["port"]), admin, "{probe}");
    }
    let proxy = &of("DaemonSet", "backwater-metrics-proxy")["spec"]["template"];
    let proxy_args = proxy["spec"]["containers"][0]["args"].to_string();
    assert!(proxy_args.contains(&format!("--upstream=http://{admin}/")), "{proxy_args}");
    let monitor = &of("PodMonitor", "backwater-relay")["spec"];
    assert_eq!(monitor["selector"]["matchLabels"], proxy["metadata"]["labels"]);
    assert_eq!(monitor["podMetricsEndpoints"][0]["port"], proxy["spec"]["containers"][0]["ports"][0]["name"]);
}

/// As the Debian package has it, and with each of its examples.
#[test]
fn the_packages_configuration_is_one_also_with_its_examples() {
    let text = fs::read_to_string(root().join("packaging/debian/relay.toml")).unwrap();
    let is_example = |line: &&str| line.starts_with("# ") && line.contains(" = ");
    let examples: Vec<_> = text.lines().filter(is_example).map(|line| &line[2..]).collect();
    assert_eq!(examples.len(), 5, "{examples:?}");
    let file = std::env::temp_dir().join(format!("backwater-package-{}.toml", std::process::id()));
    for text in [&*text, &examples.join("\n")] {
        fs::write(&file, text).unwrap();
        let matches = Arguments::command().try_get_matches_from(["relay", "--config", file.to_str().unwrap()]).unwrap();
        Config::new(&Arguments::read(&matches, []).unwrap()).unwrap();
    }
    fs::remove_file(file).unwrap();
}

/// The image itself needs a registry; what the build copies has to be there and not be left out.
#[test]
fn the_dockerfile_copies_what_there_is_and_all_that_the_workspace_needs() {
    let dockerfile = fs::read_to_string(root().join("packaging/Dockerfile")).unwrap();
    let ignored = fs::read_to_string(root().join(".dockerignore")).unwrap();
    let copied: Vec<_> = dockerfile
        .lines()
        .filter_map(|line| line.strip_prefix("COPY "))
        .filter(|line| !line.starts_with("--from"))
        .flat_map(|line| line.split_whitespace().rev().skip(1).collect::<Vec<_>>())
        .collect();
    for path in &copied {
        assert!(root().join(path).exists(), "{path}");
        assert!(ignored.lines().any(|line| line == format!("!{path}")), "{path} is left out by .dockerignore");
    }
    for needed in ["Cargo.toml", "Cargo.lock", "rust-toolchain.toml", ".cargo", "crates", "xtask"] {
        assert!(copied.contains(&needed), "{needed}: {copied:?}");
    }
    let manifest = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let manifest: toml::Table = manifest.parse().unwrap();
    let rust = manifest["workspace"]["package"]["rust-version"].as_str().unwrap();
    assert!(dockerfile.contains(&format!("FROM rust:{rust}-")), "the image has another compiler than {rust}");
}
