"""The manifests as kustomize renders them (no test itself)."""

import subprocess
from pathlib import Path

import control_plane
import yaml

MANIFESTS = Path(__file__).parents[2] / "manifests"
OVERLAYS = ["overlays/laptop", "overlays/cluster"]
COMPONENTS = [f"components/{name}" for name in ("gpu", "kueue", "pipeline-root", "preflight", "trainer")]


def text(folder):
    """What `kubectl apply -k` would send."""
    command = [control_plane.binary("kubectl"), "kustomize", folder]
    return subprocess.run(command, cwd=MANIFESTS, check=True, capture_output=True, text=True).stdout


def objects(folder):
    return list(yaml.safe_load_all(text(folder)))


def label(thing):
    return f"{thing['kind']}/{thing['metadata']['name']}"


def pod_specs(thing):
    """Pod specifications anywhere within an object, as (specification, labels)."""
    if isinstance(thing, list):
        return [found for each in thing for found in pod_specs(each)]
    if not isinstance(thing, dict):
        return []
    if "containers" in thing.get("spec", {}):
        return [(thing["spec"], thing.get("metadata", {}).get("labels", {}))]
    return [found for each in thing.values() for found in pod_specs(each)]


def environment(things):
    """Variables of all containers."""
    containers = [container for spec, _ in pod_specs(things) for container in spec["containers"]]
    return [each for container in containers for each in container.get("env", [])]
