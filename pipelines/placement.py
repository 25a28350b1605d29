"""Where tasks run and what they may take: the one file that knows accelerators, pools, shm, retries and secrets.

What Kubeflow can take as a run's parameter is a parameter of the pipelines (`RUN`); the rest is fixed when they are
compiled. pipelines/placement.yaml holds the committed choice. Every pod that comes of it passes the pod security
standard `restricted`: Kubeflow itself forbids privilege escalation, drops all capabilities and sets the seccomp
profile; that the user is not root is said here.
"""

import inspect
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from kfp import dsl, kubernetes
from kfp.kubernetes.node_affinity import validate_node_affinity
from kubernetes.utils.quantity import parse_quantity
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator

from arnas.config import validate
from arnas.errors import InvalidInput

COMMITTED = Path(__file__).with_suffix(".yaml")

#: Placement that a run may choose: fields of Placement that are parameters of the pipelines
RUN = ("gpus", "accelerator", "gpu_pool", "gpu_tolerations", "cpu_pool", "endpoint", "secret", "pull_secret")

#: Seconds that a pod may wait for its turn, all attempts together
QUEUED = 30 * 24 * 3600

CA_FOLDER = "/var/run/arnas-s3"

Cpu = Annotated[str, StringConstraints(pattern=r"^([1-9]\d*m|\d+(\.\d+)?)$")]
Bytes = Annotated[str, StringConstraints(pattern=r"^[1-9]\d*(Ki|Mi|Gi|Ti|K|M|G|T)?$")]
Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")]
Key = Annotated[str, StringConstraints(pattern=r"^[-._a-zA-Z0-9]{1,253}$")]
Variable = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]

#: Within a variable's name, and whole words at its end; TOKENIZERS_PARALLELISM, KEYBOARD and SSH_KEY_FILE are none
CONFIDENTIAL = re.compile(
    r"SECRET|TOKEN(?!IZ)|PASSW(OR)?D|PASSPHRASE|(ACCESS|API|PRIVATE)_?KEY|(^|_)(KEYS?|PASS|CREDENTIALS?)$|_PWD$",
    re.IGNORECASE,
)
USER = re.compile(r"://[^/\s]*@|^[^/\s]+:[^/\s]+@")  # within an address


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _Share(_Model):
    request: str
    limit: str | None

    @model_validator(mode="after")
    def _is_within_the_limit(self) -> Self:
        if self.limit and parse_quantity(self.request) > parse_quantity(self.limit):
            raise ValueError("the request is above the limit; give both, or no limit (null)")
        return self


class CpuShare(_Share):
    """Processor time, in cores: "2", "0.5" or "500m"."""

    request: Cpu = Field(description="Kept free for the task.")
    limit: Cpu | None = Field(description="At most; none where the node decides.")


class Memory(_Share):
    """Memory, such as 2Gi."""

    request: Bytes = Field(description="Kept free for the task.")
    limit: Bytes | None = Field(description="A task that takes more is killed; none where the node decides.")


class Toleration(_Model):
    """Of a node's taint, as in a pod."""

    key: str | None = None
    operator: Literal["Exists", "Equal"] = "Equal"
    value: str | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    tolerationSeconds: int | None = None


class Tasks(_Model):
    """What tasks of one kind take."""

    cpu: CpuShare
    memory: Memory
    shared_memory: Bytes | None = Field(description="Size of /dev/shm, in memory; none leaves the runtime's 64Mi.")
    hours: float = Field(gt=0, le=24 * 365, description="An attempt that lasts longer is stopped, and tried again.")
    tolerations: list[Toleration] = Field(description="Of taints on the nodes.")
    affinity: dict[str, Any] = Field(description="A Kubernetes NodeAffinity, beside the pool's labels.")
    queue: Name | None = Field(description="Local queue of Kueue.")
    priority: Name | None = Field(description="WorkloadPriorityClass of Kueue.")

    @field_validator("affinity")
    @classmethod
    def _is_node_affinity(cls, affinity: dict[str, Any]) -> dict[str, Any]:
        validate_node_affinity(affinity)
        return affinity


class Retries(_Model):
    """What is done about a failed attempt; the next one goes on from the checkpoint."""

    count: int = Field(ge=0, le=100, description="Attempts after the first.")
    wait: int = Field(ge=0, le=3600, description="Seconds before the second attempt.")
    factor: int = Field(ge=1, le=10, description="By which each further wait is longer; Argo takes whole numbers only.")
    longest: int = Field(ge=0, le=24 * 3600, description="Seconds that no wait may be longer than.")

    @model_validator(mode="after")
    def _wait_no_longer(self) -> Self:
        """Argo multiplies without end, so a last wait that is too long is refused here."""
        last = max(self.waits(), default=0)
        if last > self.longest:
            raise ValueError(
                f"the last wait would be of {last} s, above the longest; lower count, wait or factor, or raise longest"
            )
        return self

    def waits(self) -> list[int]:
        """Seconds before each attempt after the first."""
        return [self.wait * self.factor**attempt for attempt in range(self.count)]


class SecretKey(_Model):
    """A value in a Kubernetes secret."""

    secret: Name = Field(description="Name of the secret, in the namespace of the runs; it must be there.")
    key: Key = Field(description="Which of its keys.")


class Placement(_Model):
    """A site's choice; see pipelines/placement.yaml."""

    gpus: str = Field(
        pattern=r"^\d{1,2}$", description="GPUs of each task that searches, trains or attacks, as text; 0 for none."
    )
    accelerator: str = Field(
        pattern=r"^[a-z0-9.-]+/[A-Za-z0-9._-]+$",
        description="Name of the GPUs as a resource, such as nvidia.com/gpu, nvidia.com/mig-1g.10gb or amd.com/gpu.",
    )
    gpu_pool: dict[str, str] = Field(description='Labels of the nodes of these tasks, such as {"pool": "gpu"}.')
    gpu_tolerations: list[Toleration] = Field(
        description="Tolerations of these tasks, as in a pod, besides those that were compiled in."
    )
    cpu_pool: dict[str, str] = Field(description="Labels of the nodes of all other tasks.")
    endpoint: str = Field(
        pattern=r"^(https?://[^\s@]+)?$", description="Address of the store, where checkpoints or data are s3://..."
    )
    secret: Name = Field(
        description="Secret with keys accesskey and secretkey, which say who we are there; it may be absent."
    )
    pull_secret: Name = Field(description="Secret to pull the image with; it may be absent.")

    gpu_tasks: Tasks
    cpu_tasks: Tasks
    preflight: bool = Field(description="Whether the first task asks the cluster for what the others need.")
    parallelism: int = Field(ge=1, le=1000, description="Tasks of a loop at a time, at most.")
    retries: Retries
    scratch: Bytes = Field(description="Size of /tmp.")
    user: int = Field(ge=1, lt=2**31, description="Number of user and group; not root.")
    pull_policy: Literal["IfNotPresent", "Always", "Never"]
    private_ca: bool = Field(description="Whether the secret's ca.crt signed the store's certificate.")
    environment: dict[Variable, str] = Field(
        description="Environment of every task; compiled into the YAML, so no secrets."
    )
    secret_environment: dict[Variable, SecretKey] = Field(
        description="More environment of every task, each value out of a Kubernetes secret."
    )

    def parameters(self) -> dict[str, Any]:
        """Defaults of the pipelines' parameters of placement, as JSON values."""
        values = self.model_dump(include=set(RUN), exclude_none=True)
        return {name: values[name] for name in RUN}

    def seconds(self, tasks: Tasks) -> int:
        """How long one attempt may last."""
        return round(tasks.hours * 3600)

    def endurance(self, tasks: Tasks) -> int:
        """Seconds that all attempts take at most, with the waits between them and a month in queues.

        Argo begins no attempt later than that after the first one, and stops the one that runs: KFP's default of an
        hour would end every long training at its first eviction.
        """
        return (self.retries.count + 1) * self.seconds(tasks) + sum(self.retries.waits()) + QUEUED


def load(file: str | Path | None = None) -> Placement:
    """The committed placement, changed by a site's file.

    Raises:
        InvalidInput: The file cannot be read, or holds an unknown key or a value that cannot be.
    """
    values = yaml.safe_load(COMMITTED.read_text(encoding="utf-8"))
    if file is not None:
        try:
            changes = yaml.safe_load(Path(file).read_text(encoding="utf-8")) or {}
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise InvalidInput(f"{file} cannot be read ({' '.join(str(error).split())}); give a YAML file.") from None
        if not isinstance(changes, dict):
            raise InvalidInput(f"{file} must hold keys such as gpu_pool:, but is a {type(changes).__name__}.")
        values = _merged(values, changes)
    _require_no_secrets(values)
    return validate(Placement, values, f"placement {file or COMMITTED.name}")


def _require_no_secrets(values: Mapping[str, Any]) -> None:
    """What stands in the compiled YAML is for everybody to read; and so is the message, which repeats no value."""
    for section in ("environment", "secret_environment"):
        if not isinstance(values[section], Mapping):
            raise InvalidInput(f"{section} must be a mapping of variables, such as {{}}.")
    name = "secret_environment: {VARIABLE: {secret: NAME, key: KEY}}"
    for variable, value in values["environment"].items():
        if CONFIDENTIAL.search(str(variable)):
            raise InvalidInput(f"environment: {variable} would stand in the compiled YAML; name its secret: {name}.")
        if USER.search(str(value)):
            raise InvalidInput(f"environment: {variable} holds a user or password; name its secret: {name}.")
    for variable, value in values["secret_environment"].items():
        if not isinstance(value, Mapping) or value.keys() != {"secret", "key"}:
            raise InvalidInput(f"secret_environment: {variable} must name a secret and its key, such as {name}.")
    if "@" in str(values["endpoint"]):
        raise InvalidInput("endpoint holds a user or password, which belong into the secret; give the address alone.")


def _merged(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Sections are merged; labels, tolerations and the like are replaced as a whole."""
    sections = {"gpu_tasks", "cpu_tasks", "cpu", "memory", "retries"}
    return {**values} | {
        key: _merged(values[key], value) if key in sections and isinstance(value, Mapping) and key in values else value
        for key, value in changes.items()
    }


def pipeline(name: str, site: Placement) -> Callable[[Callable[..., Any]], Any]:
    """Like `dsl.pipeline`, for a function whose last parameter is `run`: the placement that a run may choose.

    The pipeline has in its place the parameters of RUN, with the site's defaults; the function gets them as a mapping.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        *own, _ = inspect.signature(function).parameters.values()

        def build(*channels: Any) -> Any:
            return function(*channels[: len(own)], dict(zip(RUN, channels[len(own) :], strict=True)))

        more = [
            inspect.Parameter(key, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=value, annotation=type(value))
            for key, value in site.parameters().items()
        ]
        explained = "\n".join(f"    {key}: {Placement.model_fields[key].description}" for key in RUN)
        before, returns, after = (inspect.getdoc(function) or "").partition("\n\nReturns:")
        build.__doc__ = f"{before}\n{explained}{returns}{after}"
        build.__signature__ = inspect.signature(function).replace(parameters=[*own, *more])  # type: ignore[attr-defined]
        return dsl.pipeline(name=name)(build)

    return decorate


def place(task: dsl.PipelineTask, site: Placement, run: Mapping[str, Any]) -> dsl.PipelineTask:
    """Place a task; it is one for a GPU if its component has an input `gpus`, and knows the store if `endpoint`.

    Args:
        task: A task of one of our components, in the pipeline that is being built.
        site: What is fixed at compile time.
        run: The pipeline's parameters, by the names of RUN.

    Returns:
        The task.
    """
    if "gpus" in task.inputs:
        tasks = site.gpu_tasks
        task.register_pipeline_channels([run["accelerator"], run["gpus"]])  # KFP forgets them in loops
        task.set_accelerator_type(run["accelerator"]).set_accelerator_limit(run["gpus"])
        kubernetes.add_node_selector_json(task, run["gpu_pool"])
        kubernetes.add_toleration_json(task, run["gpu_tolerations"])
    else:
        tasks = site.cpu_tasks
        kubernetes.add_node_selector_json(task, run["cpu_pool"])
    _give(task, tasks)
    _endure(task, site, tasks)
    if "endpoint" in task.inputs:
        _introduce(task, site, run["secret"])
    for name, value in site.environment.items():
        task.set_env_variable(name, value)
    for name, source in site.secret_environment.items():
        kubernetes.use_secret_as_env(task, source.secret, {source.key: name})
    kubernetes.empty_dir_mount(task, "scratch", "/tmp", size_limit=site.scratch)
    kubernetes.set_security_context(task, run_as_user=site.user, run_as_group=site.user, run_as_non_root=True)
    kubernetes.set_image_pull_policy(task, site.pull_policy)
    kubernetes.set_image_pull_secrets(task, [run["pull_secret"]])
    kubernetes.add_pod_label(task, "app.kubernetes.io/part-of", "arnas")
    return task


def _give(task: dsl.PipelineTask, tasks: Tasks) -> None:
    """Processor, memory, nodes, and a place in Kueue's queue."""
    task.set_cpu_request(tasks.cpu.request).set_memory_request(tasks.memory.request)
    if tasks.cpu.limit:
        task.set_cpu_limit(tasks.cpu.limit)
    if tasks.memory.limit:
        task.set_memory_limit(tasks.memory.limit)
    if tasks.shared_memory:
        kubernetes.empty_dir_mount(task, "shm", "/dev/shm", medium="Memory", size_limit=tasks.shared_memory)
    for each in tasks.tolerations:
        kubernetes.add_toleration(task, each.key, each.operator, each.value, each.effect, each.tolerationSeconds)
    if tasks.affinity:
        kubernetes.add_node_affinity_json(task, tasks.affinity)
    if tasks.queue:
        kubernetes.add_pod_label(task, "kueue.x-k8s.io/queue-name", tasks.queue)
    if tasks.priority:
        kubernetes.add_pod_label(task, "kueue.x-k8s.io/priority-class", tasks.priority)


def _endure(task: dsl.PipelineTask, site: Placement, tasks: Tasks) -> None:
    """Retries, and a limit of time for each attempt."""
    kubernetes.set_timeout(task, site.seconds(tasks))
    task.set_retry(
        num_retries=site.retries.count,
        backoff_duration=f"{site.retries.wait}s",
        backoff_factor=float(site.retries.factor),
        backoff_max_duration=f"{site.endurance(tasks)}s",
    )


def _introduce(task: dsl.PipelineTask, site: Placement, secret: Any) -> None:
    """The store's credentials, by name: their values stand nowhere but in the pod."""
    keys = {"accesskey": "AWS_ACCESS_KEY_ID", "secretkey": "AWS_SECRET_ACCESS_KEY"}
    kubernetes.use_secret_as_env(task, secret, keys, optional=True)
    if site.private_ca:
        kubernetes.use_secret_as_volume(task, secret, CA_FOLDER)
        task.set_env_variable("AWS_CA_BUNDLE", f"{CA_FOLDER}/ca.crt")
