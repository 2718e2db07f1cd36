"""Reads Kubernetes manifests as the API's own types: a field that the API does not have, one of a wrong type, or a required one that is missing
is an error. Prints each object as a line of JSON."""

import json
import sys

import yaml
from kubernetes import client

KINDS = {
    ("v1", "Namespace"): "V1Namespace",
    ("v1", "ServiceAccount"): "V1ServiceAccount",
    ("v1", "ConfigMap"): "V1ConfigMap",
    ("v1", "Secret"): "V1Secret",
    ("apps/v1", "DaemonSet"): "V1DaemonSet",
    ("rbac.authorization.k8s.io/v1", "ClusterRole"): "V1ClusterRole",
    ("rbac.authorization.k8s.io/v1", "ClusterRoleBinding"): "V1ClusterRoleBinding",
}

# The part of the Prometheus operator's PodMonitor that is used: a dictionary's keys, or the type of a value.
POD_MONITOR = {
    "apiVersion": str,
    "kind": str,
    "metadata": {"name": str, "namespace": str, "labels": dict},
    "spec": {
        "selector": {"matchLabels": dict},
        "podMetricsEndpoints": [
            {
                "port": str,
                "path": str,
                "scheme": str,
                "interval": str,
                "authorization": {"type": str, "credentials": {"name": str, "key": str}},
                "tlsConfig": {"insecureSkipVerify": bool},
            }
        ],
    },
}


def unlike(value, schema, path):
    """Says where a value is not as the schema."""
    if isinstance(schema, dict):
        if not isinstance(value, dict):
            return [f"{path}: no object"]
        unknown = [f"{path}.{key}: unknown" for key in value if key not in schema]
        return unknown + [line for key in value if key in schema for line in unlike(value[key], schema[key], f"{path}.{key}")]
    if isinstance(schema, list):
        return [line for item in value for line in unlike(item, schema[0], f"{path}[]")]
    return [] if isinstance(value, schema) else [f"{path}: {value!r} is no {schema.__name__}"]


def differences(given, back, path):
    """Says what of `given` the API's types have not kept."""
    if isinstance(given, dict) and isinstance(back, dict):
        keys = given.keys() | back.keys()
        return [line for key in keys for line in differences(given.get(key), back.get(key), f"{path}.{key}")]
    if isinstance(given, list) and isinstance(back, list) and len(given) == len(back):
        return [line for i, pair in enumerate(zip(given, back)) for line in differences(*pair, f"{path}[{i}]")]
    return [] if given == back and type(given) is type(back) else [f"{path}: {given!r} is read as {back!r}"]


def main():
    api = client.ApiClient()
    failed = False
    for name in sys.argv[1:]:
        for document in yaml.safe_load_all(open(name, encoding="utf-8")):
            kind = (document["apiVersion"], document["kind"])
            if kind == ("monitoring.coreos.com/v1", "PodMonitor"):
                problems = unlike(document, POD_MONITOR, kind[1])
            elif kind in KINDS:
                try:
                    back = api.sanitize_for_serialization(api.deserialize(json.dumps(document), KINDS[kind], "application/json"))
                    problems = differences(document, back, kind[1])
                except (ValueError, TypeError) as error:
                    problems = [f"{kind[1]}: {error}"]
            else:
                problems = [f"{kind}: unknown"]
            for problem in problems:
                print(f"{name}: {problem}", file=sys.stderr)
            failed |= bool(problems)
            print(json.dumps(document))
    sys.exit(failed)


main()
