"""Send a pipeline to Kubeflow Pipelines, and follow its run to the end."""

import contextlib
import json
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from arnas import config
from arnas.errors import InvalidInput
from cluster import kubeflow, pods
from pipelines import studies
from pipelines.compiled import Compiled
from pipelines.local import clock, require_data

POLL = 5.0  # seconds between two looks at a run
LONGEST = 10_000  # characters of all parameters of a run; KFP's limit
BASE = "cifar10"  # the preset that is changed where a preset is not in the image
BY_DATA = "--parameter data=s3://BUCKET/PREFIX"
BY_VARIANT = "--parameter 'variants=[{name: NAME, prepare.path: s3://BUCKET/PREFIX}]'"
DATA = {  # how each pipeline is told where the data sets of its sections lie
    "arnas": {"prepare": BY_DATA, "transfer": "--set transfer.path=s3://BUCKET/PREFIX"},
    **{name: {"prepare": BY_VARIANT if study.prepares else BY_DATA} for name, study in studies.STUDIES.items()},
}
ENDED = ("SUCCEEDED", "SKIPPED", "FAILED", "CANCELED")


@dataclass(frozen=True)
class Place:
    """Where KFP is, and as whom a run works there."""

    endpoint: str | None = None
    namespace: str | None = None
    experiment: str | None = None
    run_name: str | None = None
    service_account: str | None = None
    pipeline_root: str | None = None

    def __post_init__(self) -> None:
        if self.pipeline_root and not re.match(r"(s3|minio|gs)://[^/]+", self.pipeline_root):
            raise InvalidInput(
                f"--pipeline-root {self.pipeline_root} is no place in a bucket; write s3://BUCKET/PREFIX."
            )


def arguments(
    pipeline: Compiled, preset: str, overrides: dict[str, Any], models: list[str] | None, more: list[str]
) -> dict[str, Any]:
    """Parameters of a run; all that can be mistyped is refused here.

    Args:
        pipeline: What will run.
        preset: Name of a preset, or path of a YAML file, whose settings are sent.
        overrides: Changes of the preset.
        models: Which of the settings' models to train (default: all).
        more: Other parameters of the pipeline, as NAME=VALUE.

    Raises:
        InvalidInput: A setting, model or parameter does not exist, is of the wrong kind, or is missing.
    """
    named = pipeline.told(more)
    for name, option in {"preset": "--preset", "overrides": "--set", "models": "--models"}.items():
        if name in named:
            raise InvalidInput(f"{name} is no --parameter here, since it is checked; give {option}.")
    if study := pipeline.name in studies.STUDIES:
        overrides = studies.common(pipeline.name, overrides)
    settings = config.load(preset, overrides)
    every = [settings]
    if study:
        variants = named.get("variants", pipeline.parameters["variants"]["defaultValue"])
        every = studies.require(pipeline.name, variants, preset, overrides)
    asked = {section: option for section, option in DATA.get(pipeline.name, {}).items() if option != BY_DATA}
    for each in every:
        require_data(each, asked if named.get("data") else DATA.get(pipeline.name, {}))
    if preset not in config.presets():  # a file of this machine, which the cluster does not have
        preset, overrides = BASE, _differences(settings)
    if models and "models" not in pipeline.parameters:
        raise InvalidInput(f"{pipeline.name} has no parameter models; leave --models out.")
    for model in models or []:
        settings.recipe(model)
    told = {"preset": preset, "overrides": overrides, "models": models or list(settings.models)}
    told = {name: value for name, value in told.items() if name in pipeline.parameters} | named
    pipeline.require(told)
    pipeline.needs(told)  # a number of GPUs and labels that cannot be are refused
    if (size := len(json.dumps(told))) >= LONGEST:
        raise InvalidInput(
            f"The run's parameters take {size} characters, and KFP less than {LONGEST}; set fewer of them."
        )
    return told


def submit(pipeline: Compiled, told: dict[str, Any], place: Place, *, wait: bool = False, retries: int = 0) -> int:
    """Start a run, print its link, and with `wait` follow it.

    Args:
        pipeline: What will run.
        told: Its parameters.
        place: Where it runs, and as whom.
        wait: Whether to stay until the run ends.
        retries: How often KFP is asked to go on with a run that failed.

    Returns:
        Exit status: 0, or 1 where the run failed.

    Raises:
        InvalidInput: KFP cannot be reached, or refuses the run.
    """
    client = kubeflow.connect(place.endpoint)
    with kubeflow.answered(place.endpoint), pipeline.package() as package:
        run = client.create_run_from_pipeline_package(  # it prints the links
            str(package),
            arguments=told,
            run_name=place.run_name or f"{pipeline.name} {time.strftime('%Y-%m-%d %H-%M-%S')}",
            experiment_name=place.experiment,
            namespace=place.namespace,
            pipeline_root=place.pipeline_root,
            service_account=place.service_account,
        )
    return _follow(client, run.run_id, place, retries) if wait else 0


def follow(run: str, place: Place, retries: int = 0) -> int:
    """Follow a run that was submitted earlier.

    Raises:
        InvalidInput: KFP cannot be reached, or has no such run.
    """
    return _follow(kubeflow.connect(place.endpoint), run, place, retries)


def _differences(settings: config.Settings) -> dict[str, Any]:
    """Overrides that make the same settings out of BASE."""
    base, mine = config.load(BASE), settings.model_dump(mode="json")
    theirs = base.model_dump(mode="json")
    found = {name: _changed(section, theirs[name]) for name, section in mine.items() if name != "models"}
    for name in settings.models:
        recipe = settings.recipe(name).model_dump(mode="json")
        inherited = {key: value for key, value in mine["retrain"].items() if key not in base.models.get(name, {})}
        found[f"models.{name}"] = _changed(recipe, inherited)
    return found


def _changed(mine: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in mine.items() if key not in theirs or theirs[key] != value}


def _follow(client: Any, run_id: str, place: Place, retries: int) -> int:
    watch = _Watch(client, run_id, place)
    try:
        while (state := watch.until_it_ends()) == "FAILED" and retries:
            with kubeflow.answered(place.endpoint):
                client.runs.run_service_retry_run(run_id, _request_timeout=kubeflow.TIMEOUT)
            retries -= 1
            print("The run failed; KFP tries its failed tasks again.", flush=True)
    except KeyboardInterrupt:
        at = f"--endpoint {place.endpoint} " if place.endpoint else ""
        print(
            f"\nNo longer followed; the run goes on. python -m pipelines submit {at}--follow {run_id} follows it "
            "again, and Terminate in the UI ends it.",
            file=sys.stderr,
        )
        return 130
    if state in ("SUCCEEDED", "SKIPPED"):
        print("The run succeeded.")
        return 0
    print(f"The run {state.lower()}.", file=sys.stderr)
    print("\n".join(watch.explained()), file=sys.stderr)
    return 1


class _Watch:
    """One run, seen through KFP and, where there is a kubeconfig, through Kubernetes."""

    def __init__(self, client: Any, run_id: str, place: Place):
        from kubernetes.client import CoreV1Api

        self.client, self.run_id = client, run_id
        self.namespace = place.namespace or client.get_user_namespace() or kubeflow.NAMESPACE
        self.view = _View()
        self.core: Any = None
        with contextlib.suppress(InvalidInput):  # it is a help, and not needed
            self.core = CoreV1Api(pods.connect())

    def until_it_ends(self) -> str:
        """Show the tasks as they begin and end; returns the run's last state."""
        for run in self._states():
            self.view.show(run)
            self.view.show_waiting(self._waiting())
            if run.state in ENDED:
                return str(run.state)
        raise AssertionError  # it goes on until then

    def _states(self) -> Iterator[Any]:
        """The run, every few seconds, for as long as it takes; a lost connection is waited for."""
        import kfp_server_api
        from urllib3.exceptions import HTTPError

        pause = POLL
        while True:
            try:
                run = self.client.runs.run_service_get_run(self.run_id, _request_timeout=kubeflow.TIMEOUT)
            except (kfp_server_api.ApiException, HTTPError, OSError) as error:
                status = getattr(error, "status", None) or 0
                if 400 <= status < 500 and status not in (408, 429):
                    raise InvalidInput(f"KFP does not tell of run {self.run_id}: {kubeflow.reason(error)}.") from None
                if pause == POLL:
                    said = kubeflow.reason(error)
                    print(f"KFP does not answer ({said}); the run goes on, and is asked for again.", flush=True)
                pause = min(2 * pause, 60)
            else:
                if pause > POLL:
                    print("KFP answers again.", flush=True)
                pause = POLL
                yield run
            time.sleep(pause)

    def _waiting(self) -> dict[str, str]:
        """What keeps tasks from starting; nothing where Kubernetes cannot be asked, which is no reason to stop."""
        if self.core is not None:
            with contextlib.suppress(*pods.silence()):
                return pods.waiting(self.core, self.namespace, self.run_id)
        return {}

    def explained(self) -> list[str]:
        """Lines that say why tasks failed, or who knows."""
        try:
            found = list(pods.failures(self.core, self.namespace, self.run_id)) if self.core else []
        except pods.silence():
            found = []
        command = (
            f"kubectl -n {self.namespace} logs -l pipeline/runid={self.run_id} -c main --tail {pods.LINES} --prefix"
        )
        hint = f"Its failed pods are not to be found from here; the UI has their logs, and so has {command}"
        return found or [hint]


@dataclass
class _View:
    """Shows the tasks of a run as they begin and end, and what keeps one from beginning."""

    shown: dict[str, str] = field(default_factory=dict)  # a task's id, and its state when it was last told of
    names: dict[str, str] = field(default_factory=dict)
    waiting: dict[str, str] = field(default_factory=dict)

    def show_waiting(self, found: dict[str, str]) -> None:
        for task, reason in found.items():
            if self.waiting.get(task) != reason:
                print(f"{task} waits: {reason}", flush=True)
        self.waiting = found

    def show(self, run: Any) -> None:
        known = _tasks(run.pipeline_spec or {})
        details = (run.run_details and run.run_details.task_details) or []
        for task in sorted(details, key=lambda task: str(task.start_time)):
            if task.display_name not in known or task.state in (None, "PENDING", self.shown.get(task.task_id)):
                continue
            name = self._name(task)
            if task.task_id not in self.shown:
                print(f"{name} ...", flush=True)
            if task.state in ENDED:
                seconds = (task.end_time - task.start_time).total_seconds()
                ending = {"SUCCEEDED": "done", "SKIPPED": "skipped"}.get(task.state, task.state.lower())
                print(f"{name} {ending} after {clock(seconds)}", flush=True)
            self.shown[task.task_id] = task.state

    def _name(self, task: Any) -> str:
        """The task's name; where a loop makes several of it, with a number."""
        if task.task_id not in self.names:
            again = sum(name.split()[0] == task.display_name for name in self.names.values())
            self.names[task.task_id] = f"{task.display_name} {again + 1}" if again else task.display_name
        return self.names[task.task_id]


def _tasks(specification: dict[str, Any]) -> set[str]:
    """Names of the tasks that do work, in all nested pipelines; KFP lists its drivers and loops beside them."""
    pipeline = specification.get("pipeline_spec", specification)
    components = pipeline.get("components", {})
    return {
        name
        for part in [pipeline.get("root", {}), *components.values()]
        for name, task in part.get("dag", {}).get("tasks", {}).items()
        if "executorLabel" in components.get(task["componentRef"]["name"], {})
    }
