"""Everything that is generated: the YAML of components and pipelines, and the components' READMEs."""

import ast
import json
import pprint
import re
import sys
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml
from kfp import compiler
from kfp.components import load_component_from_file

import arnas
from arnas._image import IMAGE, require_immutable
from arnas.errors import InvalidInput
from pipelines import arnas as whole
from pipelines import study
from pipelines.placement import Placement, load
from pipelines.studies import STUDIES

ROOT = Path(__file__).resolve().parents[1]
STAGES = ("prepare", "search", "derive", "retrain", "whitebox", "merge", "blackbox", "transfer", "report", "study")
COMPONENTS = ("preflight", *STAGES, "trainjob")
PIPELINES = ("arnas", *STUDIES)


def compile_all(
    root: str | Path | None = None, *, image: str | None = None, placement: str | Path | None = None
) -> list[Path]:
    """Write components, their READMEs and pipelines.

    Args:
        root: Folder to write to (default: this repository).
        image: What the tasks run in (default: the name that `make image` gives).
        placement: File with what differs from the committed placement.

    Returns:
        The files.

    Raises:
        InvalidInput: The image is mutable, the placement is wrong, or the repository's own files would be changed by
            options.
    """
    image = require_immutable(image or IMAGE)
    load(placement)  # refused before anything is written
    root = Path(root) if root else ROOT
    if root.resolve() == ROOT and (image != IMAGE or placement):
        raise InvalidInput("The committed files fit every site; with --image or --placement give --output a folder.")
    written = []
    for stage in COMPONENTS:
        file = root / "components" / stage / "component.yaml"
        written += [_compile(getattr(import_module(f"components.{stage}.component"), stage), file, image)]
        written += [file.with_name("README.md")]
        written[-1].write_text(readme(file), encoding="utf-8")
    for name in PIPELINES:
        written += [compile_pipeline(name, place_of(name, root), image=image, placement=placement)]
    return written


def place_of(pipeline: str, root: Path = ROOT) -> Path:
    """Where a pipeline is written to."""
    return root / "pipelines" / (f"studies/{pipeline}.yaml" if pipeline in STUDIES else f"{pipeline}.yaml")


def compile_pipeline(name: str, file: Path, *, image: str | None = None, placement: str | Path | None = None) -> Path:
    """Write one pipeline; image and placement as for `compile_all`."""
    return _compile(build(name, load(placement)), file, require_immutable(image or IMAGE))


def build(name: str, site: Placement) -> Any:
    """One of PIPELINES, placed as a site wants it."""
    return study.build(name, site) if name in STUDIES else whole.build(site)


def _compile(component: Any, file: Path, image: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    compiler.Compiler().compile(component, str(file))
    text = re.sub(r"(?<= \[Default: )[\[{].*(?=\]$)", _ordered, file.read_text(encoding="utf-8"), flags=re.MULTILINE)
    file.write_text(text.replace(f"image: {IMAGE}\n", f"image: {image}\n"), encoding="utf-8")
    return file


def _ordered(default: re.Match[str]) -> str:
    """KFP tells the defaults in a comment, dictionaries in an order that differs from process to process."""
    return pprint.pformat(ast.literal_eval(default[0]), width=sys.maxsize, sort_dicts=True)


# --------------------------------------------------------------------------------------------- a component's README

PREPARED = """\
prepared = prepare(preset="digits")
"""
SEARCHED = f"""\
{PREPARED}searched = search(images=prepared.outputs["images"], preset="digits", **STORE)
derived = derive(supernet=searched.outputs["supernet"])
"""
TRAINED = f"""\
{PREPARED}trained = retrain(images=prepared.outputs["images"], model="resnet18", preset="digits", **STORE)
"""
EXAMPLES = {
    "preflight": f"""\
asked = preflight(**STORE)
{PREPARED}prepared.after(asked)
""",
    "prepare": PREPARED,
    "search": "\n".join(SEARCHED.splitlines()[:2]),
    "derive": SEARCHED,
    "retrain": TRAINED,
    "trainjob": f"""\
{PREPARED}given = {{"images": prepared.outputs["images"], "preset": "digits", **STORE}}
trained = trainjob(model="resnet18", nodes=2, gpus_per_node=4, **given)
""",
    "whitebox": f"""\
{TRAINED}given = {{"network": trained.outputs["network"], "images": prepared.outputs["images"]}}
attacked = whitebox(**given, preset="digits", **STORE)
""",
    "merge": f"""\
{TRAINED}given = {{"network": trained.outputs["network"], "images": prepared.outputs["images"]}}
with dsl.ParallelFor(["1/2", "2/2"]) as shard:
    attacked = whitebox(**given, shard=shard, preset="digits", **STORE)
merged = merge(shards=dsl.Collected(attacked.outputs["evaluation"]))
""",
    "blackbox": f"""\
{PREPARED}with dsl.ParallelFor(["resnet18", "searched"]) as model:
    trained = retrain(
        images=prepared.outputs["images"],
        model=model,
        preset="digits",
        overrides={{"models.searched.architecture": "arnas-cifar10"}},
        **STORE,
    )
networks = dsl.Collected(trained.outputs["network"])
attacked = blackbox(networks=networks, images=prepared.outputs["images"], preset="digits", **STORE)
""",
    "transfer": f"""\
{SEARCHED}others = prepare(preset="digits", section="transfer")
given = {{"genotype": derived.outputs["genotype"], "images": others.outputs["images"]}}
transferred = transfer(**given, preset="digits", **STORE)
""",
    "study": f"""\
{PREPARED}given = {{"images": prepared.outputs["images"], "preset": "digits"}}
with dsl.ParallelFor(variants) as variant:
    trained = retrain(variant=variant, overrides={{"retrain.architecture": "arnas-cifar10"}}, **given, **STORE)
    attacked = whitebox(network=trained.outputs["network"], **given, **STORE)
collected = study(
    networks=dsl.Collected(trained.outputs["network"]),
    evaluations=dsl.Collected(attacked.outputs["evaluation"]),
    name="placement",
    variants=variants,
    preset="digits",
    overrides={{"retrain.architecture": "arnas-cifar10"}},
)
""",
    "report": f"""\
{SEARCHED}given = {{"images": prepared.outputs["images"], "preset": "digits"}}
with dsl.ParallelFor(["searched", "resnet18"]) as model:
    trained = retrain(genotype=derived.outputs["genotype"], model=model, **given, **STORE)
    attacked = whitebox(network=trained.outputs["network"], **given, **STORE)
crossed = blackbox(networks=dsl.Collected(trained.outputs["network"]), **given, **STORE)
reported = report(
    supernet=searched.outputs["supernet"],
    genotype=derived.outputs["genotype"],
    networks=dsl.Collected(trained.outputs["network"]),
    evaluations=dsl.Collected(attacked.outputs["evaluation"]),
    blackbox=crossed.outputs["evaluation"],
    **given,
)
""",
}

#: Parameters of an example's pipeline
PARAMETERS = {
    "study": 'variants: list = [{"name": text, "retrain.layout": text} for text in ("A1 D2 R2", "R1 D2 A2")]',
}

EXAMPLE = """\
from kfp import components, dsl, kubernetes

AT = "https://git.example.org/arnas/raw/v{version}/components"  # where these files are kept
STORE = {{"checkpoints": "s3://mlpipeline/arnas/checkpoints", "endpoint": "http://minio-service.kubeflow:9000"}}
KEYS = {{"accesskey": "AWS_ACCESS_KEY_ID", "secretkey": "AWS_SECRET_ACCESS_KEY"}}
{loads}


@dsl.pipeline(name="with-{stage}")
def pipeline({parameters}):
{body}
    for task in ({tasks}):
        kubernetes.set_security_context(task, run_as_user=1000, run_as_group=1000, run_as_non_root=True)
        kubernetes.use_secret_as_env(task, "mlpipeline-minio-artifact", KEYS, optional=True)
"""

README = """\
# {stage}

{description}

{inputs}
{outputs}
## In a pipeline of yours

```python
{example}```

The loop at the end is for pods: the user for namespaces of pod security `restricted`, the secret (here that of a stock
KFP) for the store, where work that was interrupted goes on from. {gpu}[docs/reuse.md](../../docs/reuse.md) says more.
{trainer}
Generated from [component.py](component.py) by `make generate`.
"""

GPU = """\
For a GPU give `gpus="1"` in the call, and
`task.set_accelerator_type("nvidia.com/gpu").set_accelerator_limit(1)`. """

TRAINER = """
Besides, the namespace needs the runtime and its rights (`kubectl apply -k manifests/components/trainer`), the run the
account that has them (`create_run_from_pipeline_package(..., service_account="arnas-runner")`), and the nodes the
store's keys, from `secret`: `"arnas-s3"` with `endpoint="http://minio.arnas:9000"` where the store is that of our
manifests. [docs/multi-gpu.md](../../docs/multi-gpu.md) tells the rest.
"""


def readme(file: Path) -> str:
    """A component's README, out of its compiled YAML."""
    spec = yaml.safe_load(file.read_text(encoding="utf-8"))
    stage = spec["pipelineInfo"]["name"]
    inputs = spec["root"].get("inputDefinitions", {})
    return README.format(
        stage=stage,
        description=load_component_from_file(str(file)).description.splitlines()[0],
        inputs=_table("Inputs", ["input", "type", "default", "what it is"], _rows(inputs, defaults=True)),
        outputs=_table("Outputs", ["output", "type", "what it is"], _rows(spec["root"]["outputDefinitions"])),
        example=example(stage),
        gpu=GPU if "gpus" in inputs.get("parameters", {}) else "",
        trainer=TRAINER if stage == "trainjob" else "",
    )


def example(stage: str) -> str:
    """A pipeline that uses a stage's component, as Python."""
    body = EXAMPLES[stage].strip()
    called = re.findall(r"^ *(\w+) = (\w+)\(", body, flags=re.MULTILINE)
    tasks = {task: component for task, component in called if component in COMPONENTS}
    load = '{0} = components.load_component_from_url(f"{{AT}}/{0}/component.yaml")'
    return EXAMPLE.format(
        version=arnas.__version__,
        stage=stage,
        parameters=PARAMETERS.get(stage, ""),
        loads="\n".join(load.format(name) for name in COMPONENTS if name in tasks.values()),
        body="\n".join(f"    {line}" for line in body.splitlines()),
        tasks=", ".join(tasks) + ("," if len(tasks) == 1 else ""),
    )


def _rows(definitions: Mapping[str, Any], defaults: bool = False) -> Iterator[list[str]]:
    kinds = {"STRING": "text", "NUMBER_INTEGER": "whole number", "STRUCT": "dictionary", "LIST": "list"}
    for name, entry in definitions.get("artifacts", {}).items():
        kind = entry["artifactType"]["schemaTitle"].removeprefix("system.")
        kind = f"list of {kind}" if entry.get("isArtifactList") else kind
        default = ["none" if entry.get("isOptional") else "needed"] if defaults else []
        yield [name, kind, *default, _line(entry["description"])]
    for name, entry in definitions.get("parameters", {}).items():
        kind, value = kinds[entry["parameterType"]], entry["defaultValue"]  # all of them have one
        text = json.dumps(int(value) if kind == "whole number" else value)  # KFP writes 2.0
        yield [name, kind, f"`{text}`", _line(entry["description"])]


def _line(text: str) -> str:
    return " ".join(text.split()).replace("|", r"\|")


def _table(title: str, head: list[str], rows: Iterator[list[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in (head, *rows)]
    return "\n".join([f"## {title}\n", lines[0], "|---" * len(head) + "|", *lines[1:]]) + "\n"
