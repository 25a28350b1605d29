"""Somebody else's pipeline, which knows of ours only the YAML of one component: python foreign.py STAGE YAML ROOT URIS.

It runs here as the tests start it: with the packages of this project out of reach, except for the component's own task.
"""

import json
import sys
from importlib.abc import MetaPathFinder

OURS = ("arnas", "cluster", "components", "pipelines")


class Barrier(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in OURS:
            raise ImportError(f"a foreign process asked for {name}")


sys.meta_path.insert(0, Barrier())

from kfp import components, dsl, local  # noqa: E402

stage, file, root, uris = sys.argv[1:]
theirs = components.load_component_from_file(file)
uris = json.loads(uris)


@dsl.component(base_image="python:3.11", install_kfp_package=False)
def own(figures: dsl.Input[dsl.Metrics], artifact: dsl.Input[dsl.Artifact]) -> dict:
    """What another component learns of our outputs: metrics and metadata alone."""
    return {"metrics": dict(figures.metadata), "metadata": dict(artifact.metadata)}


@dsl.pipeline(name="foreign")
def foreign(images: str, network: str = "") -> dict:
    given = {"images": dsl.importer(artifact_uri=images, artifact_class=dsl.Dataset).output}
    if stage == "whitebox":
        given["network"] = dsl.importer(artifact_uri=network, artifact_class=dsl.Model).output
    more = {"model": "resnet18"} if stage == "retrain" else {"overrides": {"whitebox.autoattack_images": 0.0}}
    task = theirs(**given, **more, preset="smoke", checkpoints=f"{root}/checkpoints", device="cpu")
    made = task.outputs["network" if stage == "retrain" else "evaluation"]
    return own(figures=task.outputs["metrics"], artifact=made).output


assert not {name.split(".")[0] for name in sys.modules} & set(OURS)
local.init(local.SubprocessRunner(use_venv=False), pipeline_root=f"{root}/runs", raise_on_error=True)
print(json.dumps(foreign(**uris).output))
