import json
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from manifests.rendered import objects

#: Go modules that hold the definitions of objects that Kubernetes itself does not have, and where
DEFINITIONS = {
    "components/trainer": ("github.com/kubeflow/trainer/v2@v2.3.0", "manifests/base/crds/trainer.kubeflow.org_*.yaml"),
    "components/kueue": ("sigs.k8s.io/kueue@v0.15.0", "config/components/crd/bases/kueue.x-k8s.io_*.yaml"),
}


@pytest.fixture(scope="session")
def installed(cluster):
    """The cluster with the namespaces, accounts and rights of the manifests."""
    for namespace in ("kubeflow", "gpu-operator"):  # KFP and NVIDIA's operator bring them
        cluster.kubectl("create", "namespace", namespace)
    kinds = ("Namespace", "ServiceAccount", "Role", "RoleBinding")
    found = [thing for thing in objects("overlays/laptop") if thing["kind"] in kinds]
    cluster.kubectl("apply", "--server-side", "-f-", stdin=yaml.safe_dump_all(found))
    return cluster


@pytest.fixture(scope="session")
def define(cluster, tmp_path_factory):
    """Gives the cluster the definitions that a component needs; skips where Go's proxy does not have them."""

    def define(component):
        if component not in DEFINITIONS:
            return
        module, pattern = DEFINITIONS[component]
        if not shutil.which("go"):
            pytest.skip(f"The definitions of {module} come by Go, which is not here.")
        command = ["go", "mod", "download", "-json", module]
        done = subprocess.run(command, cwd=tmp_path_factory.mktemp("go"), capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"Go's proxy does not give {module}: {json.loads(done.stdout)['Error'].splitlines()[-1]}")
        files = sorted(Path(json.loads(done.stdout)["Dir"]).glob(pattern))
        assert files, f"{module} has no {pattern}"
        for file in files:
            cluster.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(file))
        cluster.kubectl("wait", "--for=condition=established", "crd", "--all", "--timeout=30s")

    return define
