"""The Argo workflow that KFP makes of a compiled pipeline (backend/src/v2/compiler/argocompiler)."""

import json

import yaml

RESTRICTED = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "seccompProfile": {"type": "RuntimeDefault"},
}
SYSTEM = RESTRICTED | {"runAsNonRoot": True}
SECCOMP = {"seccompProfile": {"type": "RuntimeDefault"}}
SCRATCH = {
    "kfp-launcher": "/kfp-launcher",
    "gcs-scratch": "/gcs",
    "s3-scratch": "/s3",
    "minio-scratch": "/minio",
    "dot-local-scratch": "/.local",
    "dot-cache-scratch": "/.cache",
    "dot-config-scratch": "/.config",
}
# What a driver is told, and what it finds
TOLD = ("type", "component", "task", "container", "kubernetes", "parent", "iteration", "runtime")
FOUND = ("execution-id", "iteration-count", "pod-spec-patch", "cached-decision")
RETRY = ("retry-max-count", "retry-backoff-duration", "retry-backoff-factor", "retry-backoff-max-duration")


def workflow(file, arguments, service_account):
    """The workflow of a run of a compiled pipeline with these arguments.

    Raises:
        ValueError: KFP's API server would refuse to create the run.
    """
    spec, *more = yaml.safe_load_all(file.read_text(encoding="utf-8"))
    root = spec["root"]
    compiler = _Compiler(spec, more[0] if more else {})
    compiler.save("components-root", root)
    compiler.graph("root", root["dag"])
    runtime = json.dumps(_values(root, arguments))
    told = {"type": "ROOT_DAG", "component": _global("components-root"), "runtime": runtime}
    driver = _driver("root-driver", told)
    tasks = [driver, _after(driver, {"name": "root", "template": "root"}, _output(driver, "execution-id"))]
    compiler.templates.append({"name": "entrypoint", "dag": {"tasks": tasks}})
    return {
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "Workflow",
        "metadata": {"generateName": f"{spec['pipelineInfo']['name']}-"},
        "spec": {
            "entrypoint": "entrypoint",
            "serviceAccountName": service_account,
            "securityContext": SECCOMP | {"runAsNonRoot": True},
            "podMetadata": {"labels": {"pipelines.kubeflow.org/v2_component": "true"}},
            "arguments": {"parameters": _parameters(compiler.saved)},
            "templates": [_DRIVER, *compiler.templates],
        },
    }


def _values(root, arguments):
    """Values of the pipeline's parameters, checked as KFP's API server does (template/v2_template.go)."""
    inputs = root.get("inputDefinitions", {})
    if "artifacts" in inputs:
        raise ValueError(f"a run has no artifacts to give, but the pipeline takes {sorted(inputs['artifacts'])}")
    kinds = {"STRING": str, "BOOLEAN": bool, "LIST": list, "STRUCT": dict, "NUMBER_INTEGER": int}
    defined = inputs.get("parameters", {})
    if unknown := arguments.keys() - defined.keys():
        raise ValueError(f"parameter(s) provided are not required by pipeline: {sorted(unknown)}")
    for name, each in defined.items():
        if name not in arguments and not each.get("isOptional") and "defaultValue" not in each:
            raise ValueError(f"parameter {name} is not optional, yet has neither default value nor user provided value")
        if name in arguments and type(arguments[name]) is not kinds[each["parameterType"]]:
            raise ValueError(f"input parameter {name} requires type {each['parameterType']}, got {arguments[name]!r}")
    return {name: each.get("defaultValue") for name, each in defined.items()} | arguments


class _Compiler:
    def __init__(self, spec, platform):
        self.components = spec["components"]
        self.executors = spec["deploymentSpec"]["executors"]
        settings = platform.get("platforms", {}).get("kubernetes", {}).get("deploymentSpec", {})
        self.settings = settings.get("executors", {})
        self.saved, self.templates = {}, []

    def save(self, name, value):
        """KFP hands components to the drivers through the workflow's arguments; Argo substitutes tags in them."""
        self.saved[name] = json.dumps(value)
        return _global(name)

    def add(self, template):
        if template["name"] not in [each["name"] for each in self.templates]:
            self.templates.append(template)
        return template["name"]

    def graph(self, name, dag):
        tasks = [step for key, task in sorted(dag["tasks"].items()) for step in self.task(key, task)]
        return self.add({"name": name, "inputs": {"parameters": [{"name": "parent"}]}, "dag": {"tasks": tasks}})

    def task(self, name, task, iteration=None):
        component = task["componentRef"]["name"]
        body = self.components[component]
        told = {
            "component": self.save(f"components-{component}", body),
            "task": json.dumps(task),
            "parent": "{{inputs.parameters.parent}}",
        }
        if "parameterIterator" in task and iteration is None:
            return [self.loop(name, task, told)]
        if iteration is not None:
            told["iteration"] = iteration
        needs = " && ".join(f"{each}.Succeeded" for each in task.get("dependentTasks", [])) if iteration is None else ""
        if "dag" in body:
            driver = _driver(f"{name}-driver", told | {"type": "DAG"}, needs)
            step = {"name": name, "template": self.graph(component, body["dag"])}
            return [driver, _after(driver, step, _output(driver, "execution-id"))]
        executor = self.executors[body["executorLabel"]]
        if "importer" in executor:
            importer = self.save(f"implementations-{component}", executor["importer"])
            return [_driver(name, told | {"type": "IMPORTER", "container": importer}, needs)]
        settings = self.settings.get(body["executorLabel"], {})
        told["container"] = self.save(f"implementations-{component}", executor["container"])
        told["kubernetes"] = self.save(f"kubernetes-{component}", settings)
        driver = _driver(f"{name}-driver", told | {"type": "CONTAINER"}, needs)
        return [driver, self.execution(name, task, settings, driver)]

    def loop(self, name, task, told):
        """A template that finds out how many iterations there are, and one that runs each."""
        driver = _driver("iteration-driver", told | {"type": "DAG"})
        component = task["componentRef"]["name"]
        item = self.task("iteration-item", task, "{{inputs.parameters.iteration}}")
        inputs = {"parameters": [{"name": "parent"}, {"name": "iteration"}]}
        once = self.add({"name": f"{component}-iteration", "inputs": inputs, "dag": {"tasks": item}})
        each = _after(driver, {"name": "iteration-iterations", "template": once}, _output(driver, "execution-id"))
        each["arguments"]["parameters"].append({"name": "iteration", "value": "{{item}}"})
        each["withSequence"] = {"count": _output(driver, "iteration-count")}
        template = {"name": f"{component}-{name}-iterator", "inputs": {"parameters": [{"name": "parent"}]}}
        template["dag"] = {"tasks": [driver, each]}
        if limit := task.get("iteratorPolicy", {}).get("parallelismLimit"):
            template["parallelism"] = limit
        step = {"name": name, "template": self.add(template)}
        step["arguments"] = {"parameters": _parameters({"parent": told["parent"]})}
        if needs := task.get("dependentTasks"):
            step["depends"] = " && ".join(f"{each}.Succeeded" for each in needs)
        return step

    def execution(self, name, task, settings, driver):
        """The task's own pod, which the driver's patch makes what it is."""
        metadata = settings.get("podMetadata", {})
        given = {"pod-spec-patch": _output(driver, "pod-spec-patch")}
        for number, (key, value) in enumerate(sorted(metadata.get("labels", {}).items()), 1):
            given |= {f"pod-metadata-label-key-{number}": key, f"pod-metadata-label-val-{number}": value}
        kind = f"metadata-{len(metadata.get('labels', {}))}-" if metadata else ""
        if retry := task.get("retryPolicy"):
            kind += "retry-"
            seconds = [str(retry[key]).removesuffix("s") for key in ("backoffDuration", "backoffMaxDuration")]
            factor = f"{retry['backoffFactor']:g}"
            given |= dict(zip(RETRY, (str(retry["maxRetryCount"]), seconds[0], factor, seconds[1]), strict=True))
        implementation = self.add(_implementation(f"{kind}system-container-impl", given, bool(retry)))
        passed = {key: f"{{{{inputs.parameters.{key}}}}}" for key in given}
        inner = {"name": "executor", "template": implementation, "arguments": {"parameters": _parameters(passed)}}
        inner["when"] = "{{inputs.parameters.cached-decision}} != true"
        inputs = {"parameters": [{"name": key} for key in (*given, "cached-decision")]}
        template = {"name": f"{kind}system-container-executor", "inputs": inputs, "dag": {"tasks": [inner]}}
        given["cached-decision"] = _output(driver, "cached-decision")
        step = {"name": name, "template": self.add(template), "depends": f"{driver['name']}.Succeeded"}
        return step | {"arguments": {"parameters": _parameters(given)}}


def _implementation(name, given, retried):
    mounts = [{"name": volume, "mountPath": path} for volume, path in SCRATCH.items()]
    launcher = {
        "name": "kfp-launcher",
        "image": "kfp-launcher:2.17.0",
        "command": ["launcher-v2"],
        "args": ["--copy", "/kfp-launcher/launch"],
        "securityContext": SYSTEM,
        "volumeMounts": mounts[:1],
    }
    main = {
        "image": "should-be-overridden-during-runtime",
        "command": ["should-be-overridden-during-runtime"],
        "securityContext": RESTRICTED,
        "volumeMounts": mounts,
    }
    labels = {
        f"{{{{inputs.parameters.{key}}}}}": f"{{{{inputs.parameters.{key.replace('-key-', '-val-')}}}}}"
        for key in given
        if "-key-" in key
    }
    template = {
        "name": name,
        "inputs": {"parameters": [{"name": key} for key in given]},
        "metadata": {"labels": labels},
        "podSpecPatch": "{{inputs.parameters.pod-spec-patch}}",
        "securityContext": SECCOMP,
        "volumes": [{"name": volume, "emptyDir": {}} for volume in SCRATCH],
        "initContainers": [launcher],
        "container": main,
    }
    if retried:
        limit, duration, factor, longest = (f"{{{{inputs.parameters.{key}}}}}" for key in RETRY)
        backoff = {"duration": duration, "factor": factor, "maxDuration": longest}
        template["retryStrategy"] = {"limit": limit, "backoff": backoff}  # no policy: Argo's default is OnFailure
        main["env"] = [{"name": "KFP_RETRY_INDEX", "value": "{{retries}}"}]
    return template


_DRIVER = {
    "name": "system-driver",
    "inputs": {"parameters": [{"name": name, "default": ""} for name in TOLD]},
    "outputs": {
        "parameters": [{"name": name, "valueFrom": {"path": f"/tmp/outputs/{name}", "default": ""}} for name in FOUND]
    },
    "securityContext": SECCOMP | {"runAsNonRoot": True},
    "container": {
        "image": "kfp-driver:2.17.0",
        "command": ["driver"],
        "args": [word for name in TOLD for word in (f"--{name}", f"{{{{inputs.parameters.{name}}}}}")],
        "securityContext": SYSTEM,
    },
}


def _driver(name, told, needs=""):
    step = {"name": name, "template": "system-driver", "arguments": {"parameters": _parameters(told)}}
    return step | ({"depends": needs} if needs else {})


def _after(driver, step, parent):
    arguments = {"parameters": _parameters({"parent": parent})}
    return step | {"depends": f"{driver['name']}.Succeeded", "arguments": arguments}


def _output(driver, name):
    return f"{{{{tasks.{driver['name']}.outputs.parameters.{name}}}}}"


def _global(name):
    return f"{{{{workflow.parameters.{name}}}}}"


def _parameters(values):
    return [{"name": name, "value": value} for name, value in values.items()]
