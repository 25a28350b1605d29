"""Components in other people's pipelines: the YAML of one is enough, and each README shows how."""

import http.server
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from kfp import compiler

from arnas import artifacts
from arnas.config import Prepare
from arnas.objects import Bucket
from arnas.stages import prepare
from components.search.component import search
from pipelines.generate import COMPONENTS, ROOT

SETTINGS = Prepare(dataset="digits", holdout_fraction=0.2, train_limit=160, test_limit=60)


def run_foreign(stage: str, root: Path, **uris: str) -> dict[str, Any]:
    """Run foreign.py in a process of its own; returns what its own component learned."""
    file = root / f"{stage}.yaml"
    file.write_bytes((ROOT / "components" / stage / "component.yaml").read_bytes())
    done = subprocess.run(
        [sys.executable, "-W", "ignore", Path(__file__).with_name("foreign.py"), stage, file, root, json.dumps(uris)],
        capture_output=True,
        text=True,
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


def test_foreign_pipelines_train_and_attack_with_the_yaml_of_one_component_each(tmp_path: Path) -> None:
    digest = prepare.run(tmp_path / "images", SETTINGS)["digest"]
    trained = run_foreign("retrain", tmp_path, images=str(tmp_path / "images"))
    (network,) = (tmp_path / "runs").glob("foreign-*/retrain/network")
    attacked = run_foreign("whitebox", tmp_path, images=str(tmp_path / "images"), network=str(network))

    model = artifacts.read(network, "model")
    assert trained["metadata"]["digest"] == attacked["metadata"]["model"] == model["digest"]
    assert trained["metadata"]["images"] == attacked["metadata"]["images"] == digest
    assert trained["metrics"]["parameters"] == model["content"]["parameters"]
    assert {"clean", "fgsm", "pgd20", "pgd100"} <= {name.replace("-", "") for name in attacked["metrics"]}
    assert all(0 <= attacked["metrics"][name] <= 1 for name in attacked["metrics"])


def test_the_store_of_checkpoints_is_a_parameter_of_the_run(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint = os.environ["AWS_ENDPOINT_URL"]
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")  # nobody is there
    prepare.run(tmp_path / "images", SETTINGS)
    paths = {name: tmp_path / name for name in ("images", "supernet", "metrics")}
    search.python_func(
        **{name: SimpleNamespace(path=str(path), metadata={}) for name, path in paths.items()},
        preset="smoke",
        checkpoints=bucket,
        endpoint=endpoint,
        device="cpu",
    )
    digest = artifacts.read(paths["supernet"], "supernet")["digest"]
    names = Bucket(bucket).list()
    assert digest and names


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """The repository, served as a Git host does."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(ROOT))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/components"
        server.shutdown()


@pytest.mark.filterwarnings("ignore::RuntimeWarning:kfp")
@pytest.mark.parametrize("stage", COMPONENTS)
def test_the_pipeline_in_each_readme_loads_by_url_and_compiles(stage: str, address: str, tmp_path: Path) -> None:
    readme = (ROOT / "components" / stage / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", readme, flags=re.DOTALL)
    code, count = re.subn(r'^AT = ".*?"', f'AT = "{address}"', code, flags=re.MULTILINE)
    assert count == 1
    names: dict[str, Any] = {}
    exec(compile(code, stage, "exec"), names)
    compiler.Compiler().compile(names["pipeline"], str(tmp_path / "out.yaml"))

    specification, platform = yaml.safe_load_all((tmp_path / "out.yaml").read_text())
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    assert any(name.removeprefix("exec-").startswith(stage) for name in executors)
    assert set(executors) == set(specification["deploymentSpec"]["executors"])  # every pod passes `restricted`
    assert all(pod["securityContext"]["runAsNonRoot"] for pod in executors.values())
