"""What KFP's driver does before each task: resolve its inputs, make its pod's patch (backend/src/v2/driver)."""

import json
import re
import threading
import uuid
from dataclasses import dataclass, field


class Refused(Exception):
    """KFP's driver would fail here."""


@dataclass
class Execution:
    """A graph, an iteration of it, or a task, once its driver has run."""

    id: int
    parent: int
    name: str
    component: dict
    parameters: dict
    artifacts: dict
    outputs: dict = field(default_factory=dict)  # of a task: artifacts by name
    count: int | None = None  # of a loop
    iteration: int | None = None


class Driver:
    """All drivers of a run, with what KFP keeps in its metadata store between them.

    Args:
        root: Folder for the artifacts of the run.
    """

    def __init__(self, root):
        self.root = root
        self.executions = {}
        self._lock = threading.Lock()

    def run(self, told):
        """Outputs of the driver that got these arguments."""
        component = json.loads(told["component"])
        if told["type"] == "ROOT_DAG":
            return {"execution-id": str(self._keep(0, "", component, json.loads(told["runtime"]), {}).id)}
        task, parent = json.loads(told["task"]), self.executions[int(told["parent"])]
        name = task["taskInfo"]["name"]
        if told["iteration"]:
            return {"execution-id": str(self._iteration(parent, task, component, int(told["iteration"])).id)}
        parameters = self._parameters(task, component, parent)
        wanted = task.get("inputs", {}).get("artifacts", {})
        artifacts = {key: self._artifact(each, parent) for key, each in wanted.items()}
        execution = self._keep(parent.id, name, component, parameters, artifacts)
        if told["type"] == "IMPORTER":
            return self._import(execution, json.loads(told["container"]))
        if told["type"] == "CONTAINER":
            execution.outputs = self._provision(name, component)
            patch = _patch(execution, json.loads(told["container"]), json.loads(told["kubernetes"]), parent.parameters)
            found = {"pod-spec-patch": json.dumps(patch), "cached-decision": "false"}
            return {"execution-id": str(execution.id), **found}
        if "parameterIterator" in task:
            execution.count = len(_items(task, parameters))
            return {"execution-id": str(execution.id), "iteration-count": str(execution.count)}
        return {"execution-id": str(execution.id)}

    def _keep(self, parent, name, component, parameters, artifacts):
        with self._lock:
            execution = Execution(len(self.executions) + 1, parent, name, component, parameters, artifacts)
            self.executions[execution.id] = execution
        return execution

    def _iteration(self, loop, task, component, index):
        """An iteration has the inputs of its loop, with the item in place of the items."""
        iterator = task["parameterIterator"]
        parameters = dict(loop.parameters)
        item = _items(task, parameters)[index]
        parameters.pop(iterator["items"].get("inputParameter"), None)
        if None in parameters.values():
            raise Refused(f"got null for an input parameter of an iteration: {parameters}")
        parameters[iterator["itemInput"]] = item
        execution = self._keep(loop.id, loop.name, component, parameters, loop.artifacts)
        execution.iteration = index
        return execution

    def _parameters(self, task, component, parent):
        resolved = {}
        for key, each in task.get("inputs", {}).get("parameters", {}).items():
            value = _parameter(each, parent.parameters)
            if value is not None:
                resolved[key] = value
        if "dag" in component:  # a nested pipeline's defaults; a component's own come from its signature
            for key, each in component.get("inputDefinitions", {}).get("parameters", {}).items():
                if key not in resolved and each.get("isOptional"):
                    resolved[key] = each.get("defaultValue")
        iterator = task.get("parameterIterator", {})
        for key, each in component.get("inputDefinitions", {}).get("parameters", {}).items():
            if key not in resolved and not each.get("isOptional") and key != iterator.get("itemInput"):
                raise Refused(f"neither value nor default value provided for non-optional parameter {key!r}")
        return resolved

    def _artifact(self, each, parent):
        """A list of artifacts."""
        if "componentInputArtifact" in each:
            key = each["componentInputArtifact"]
            if key not in parent.artifacts:
                raise Refused(f"parent DAG does not have input artifact {key}")
            return parent.artifacts[key]
        source = each["taskOutputArtifact"]
        return self._output(self._child(parent, source["producerTask"]), source["outputArtifactKey"])

    def _child(self, parent, name):
        found = [each for each in self.executions.values() if each.parent == parent.id and each.name == name]
        if not found:
            raise Refused(f"cannot find producer task {name!r}")
        return found[-1]

    def _output(self, execution, key):
        if execution.count is not None:  # Collected
            iterations = [each for each in self.executions.values() if each.parent == execution.id]
            ordered = sorted(iterations, key=lambda each: each.iteration)
            return [artifact for each in ordered for artifact in self._output(each, key)]
        if "dag" in execution.component:
            selector = execution.component["dag"]["outputs"]["artifacts"][key]["artifactSelectors"][-1]
            return self._output(self._child(execution, selector["producerSubtask"]), selector["outputArtifactKey"])
        if key not in execution.outputs:
            raise Refused(f"cannot find output artifact key {key!r} in producer task {execution.name!r}")
        return [execution.outputs[key]]

    def _provision(self, name, component):
        folder = self.root / name / uuid.uuid4().hex
        defined = component.get("outputDefinitions", {}).get("artifacts", {})
        return {
            key: {"name": key, "type": each["artifactType"], "uri": str(folder / key), "metadata": {}}
            for key, each in defined.items()
        }

    def _import(self, execution, importer):
        told = importer["artifactUri"]
        uri = told["constant"] if "constant" in told else execution.parameters[told["runtimeParameter"]]
        artifact = {"name": "artifact", "type": importer["typeSchema"], "uri": uri, "metadata": {}}
        execution.outputs = {"artifact": artifact}
        return {"execution-id": str(execution.id)}


def _parameter(each, inputs):
    """The value of a parameter; None where an optional one was left out."""
    if "componentInputParameter" in each:
        key = each["componentInputParameter"]
        if key not in inputs:
            raise Refused(f"parent DAG does not have input parameter {key}")
        return inputs[key]
    if "runtimeValue" in each:
        return each["runtimeValue"]["constant"]
    raise Refused(f"a parameter of a kind that is not rehearsed: {each}")


def _items(task, parameters):
    items = task["parameterIterator"]["items"]
    return json.loads(items["raw"]) if "raw" in items else parameters[items["inputParameter"]]


def _resolved(text, execution):
    """Text out of a setting of a pod; KFP's driver looks for texts only, and takes "" for a number."""
    if match := re.fullmatch(r"\{\{\$\.inputs\.parameters\['(.+?)'\]\}\}", text):
        value = execution.parameters.get(match[1])
        if not isinstance(value, str) or not value:
            raise Refused(f"{match[1]} = {value!r} is no text, which KFP's driver would silently take for none")
        return value
    return text


def _patch(execution, container, settings, inputs):
    """The strategic merge patch of the task's pod."""

    def name(each):
        value = _parameter(each["secretNameParameter"], inputs) if "secretNameParameter" in each else each["secretName"]
        if value == "":
            raise Refused(f"expected a non-empty string for {each}")
        return value

    resources = {"limits": {}, "requests": {}}
    wanted = container.get("resources", {})
    for key, (kind, resource) in {
        "resourceCpuRequest": ("requests", "cpu"),
        "resourceCpuLimit": ("limits", "cpu"),
        "resourceMemoryRequest": ("requests", "memory"),
        "resourceMemoryLimit": ("limits", "memory"),
    }.items():
        if key in wanted:
            resources[kind][resource] = _resolved(wanted[key], execution)
    if accelerator := wanted.get("accelerator"):
        kind = _resolved(accelerator["resourceType"], execution)
        resources["limits"][kind] = _resolved(accelerator["resourceCount"], execution)

    inputs_of_executor = {
        "parameterValues": execution.parameters,
        "artifacts": {key: {"artifacts": artifacts} for key, artifacts in execution.artifacts.items()},
    }
    outputs = {key: {"artifacts": [artifact]} for key, artifact in execution.outputs.items()}
    executor_input = {"inputs": inputs_of_executor, "outputs": {"artifacts": outputs, "outputFile": "/tmp/kfp_outputs"}}
    launcher = ["/kfp-launcher/launch", "--execution_id", str(execution.id)]
    main = {
        "name": "main",
        "image": container["image"],
        "command": [*launcher, "--executor_input", json.dumps(executor_input), "--"],
        "args": container["command"] + container["args"],
        "env": list(container.get("env", [])),
        "resources": resources,
        "volumeMounts": [],
    }
    patch = {"containers": [main], "volumes": []}
    if "imagePullPolicy" in settings:
        main["imagePullPolicy"] = settings["imagePullPolicy"]
    if selector := settings.get("nodeSelector"):
        json_ = selector.get("nodeSelectorJson")
        patch["nodeSelector"] = _parameter(json_, inputs) if json_ else selector["labels"]
    for each in settings.get("tolerations", []):
        found = _parameter(each["tolerationJson"], inputs) if "tolerationJson" in each else each
        patch.setdefault("tolerations", []).extend(found if isinstance(found, list) else [found])
    for each in settings.get("nodeAffinity", []):
        patch["affinity"] = {"nodeAffinity": _parameter(each["nodeAffinityJson"], inputs)}
    for each in settings.get("secretAsVolume", []):
        source = {"secretName": name(each), "optional": each.get("optional", False)}
        patch["volumes"].append({"name": name(each), "secret": source})
        main["volumeMounts"].append({"name": name(each), "mountPath": each["mountPath"]})
    for each in settings.get("secretAsEnv", []):
        for key in each["keyToEnv"]:
            reference = {"name": name(each), "key": key["secretKey"], "optional": each.get("optional", False)}
            main["env"].append({"name": key["envVar"], "valueFrom": {"secretKeyRef": reference}})
    if "imagePullSecret" in settings:
        patch["imagePullSecrets"] = [{"name": name(each)} for each in settings["imagePullSecret"]]
    if "activeDeadlineSeconds" in settings:
        patch["activeDeadlineSeconds"] = int(settings["activeDeadlineSeconds"])
    for each in settings.get("emptyDirMounts", []):
        size = {"sizeLimit": each["sizeLimit"]} if "sizeLimit" in each else {}
        patch["volumes"].append({"name": each["volumeName"], "emptyDir": {"medium": each.get("medium", ""), **size}})
        main["volumeMounts"].append({"name": each["volumeName"], "mountPath": each["mountPath"]})
    if context := settings.get("securityContext"):
        numbers = {key: int(context[key]) for key in ("runAsUser", "runAsGroup") if key in context}
        main["securityContext"] = numbers | {"capabilities": {"drop": ["ALL"]}}
        if "runAsNonRoot" in context:
            main["securityContext"]["runAsNonRoot"] = context["runAsNonRoot"]
    return patch
