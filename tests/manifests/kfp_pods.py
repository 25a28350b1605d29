"""The pods that KFP makes of a compiled pipeline (no test itself).

After KFP 2.17: backend/src/v2/compiler/argocompiler (container.go, security_context.go) writes the pod's frame,
backend/src/v2/driver (driver.go, k8s.go) puts the task's image, resources and Kubernetes settings into it, and Argo
adds its own containers, with the security context that KFP's workflow-controller-configmap gives them. Only what
Kubernetes looks at when it admits a pod is made here: commands are left out.
"""

import re

import yaml

RESTRICTED = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "seccompProfile": {"type": "RuntimeDefault"},
}
SYSTEM = RESTRICTED | {"runAsNonRoot": True}
SCRATCH = {  # by name: where KFP mounts them into each task
    "kfp-launcher": "/kfp-launcher",
    "gcs-scratch": "/gcs",
    "s3-scratch": "/s3",
    "minio-scratch": "/minio",
    "dot-local-scratch": "/.local",
    "dot-cache-scratch": "/.cache",
    "dot-config-scratch": "/.config",
}
KNOWN = {  # what is read of a task's Kubernetes settings
    "activeDeadlineSeconds",
    "emptyDirMounts",
    "imagePullPolicy",
    "imagePullSecret",
    "nodeAffinity",
    "nodeSelector",
    "podMetadata",
    "secretAsEnv",
    "secretAsVolume",
    "securityContext",
    "tolerations",
}


def pods(file, service_account, **arguments):
    """Pods of every task of a compiled pipeline, by the name of the task's executor.

    Args:
        file: The YAML, as `kfp` compiled it.
        service_account: As whom the run works.
        arguments: Of the run, where they differ from the pipeline's defaults.
    """
    spec, platform = [*yaml.safe_load_all(file.read_text(encoding="utf-8")), {}][:2]
    defined = spec["root"]["inputDefinitions"]["parameters"]
    values = {name: each.get("defaultValue") for name, each in defined.items()} | arguments
    settings = platform.get("platforms", {}).get("kubernetes", {}).get("deploymentSpec", {}).get("executors", {})
    return {
        name: _pod(name, each["container"], settings.get(name, {}), values, service_account)
        for name, each in spec["deploymentSpec"]["executors"].items()
        if "container" in each  # an importer is a pod of KFP's own
    }


def _pod(name, container, settings, values, service_account):
    assert not settings.keys() - KNOWN, f"{name} has settings that are not looked at: {settings.keys() - KNOWN}"

    def told(setting):
        """The value of a run's parameter, which keeps its name on the way into loops; or what was compiled in."""
        if "runtimeValue" in setting:
            return setting["runtimeValue"]["constant"]
        return values[setting["componentInputParameter"].removeprefix("pipelinechannel--")]

    def secret(setting):
        return told(setting["secretNameParameter"]) if "secretNameParameter" in setting else setting["secretName"]

    volumes = [{"name": volume, "emptyDir": {}} for volume in SCRATCH]
    mounts = [{"name": volume, "mountPath": path} for volume, path in SCRATCH.items()]
    for each in settings.get("emptyDirMounts", []):
        size = {"sizeLimit": each["sizeLimit"]} if each.get("sizeLimit") else {}
        volumes.append({"name": each["volumeName"], "emptyDir": {"medium": each.get("medium", ""), **size}})
        mounts.append({"name": each["volumeName"], "mountPath": each["mountPath"]})
    for each in settings.get("secretAsVolume", []):
        source = {"secretName": secret(each), "optional": each.get("optional", False)}
        volumes.append({"name": secret(each), "secret": source})
        mounts.append({"name": secret(each), "mountPath": each["mountPath"]})
    environment = list(container.get("env", []))
    for each in settings.get("secretAsEnv", []):
        for key in each["keyToEnv"]:
            reference = {"name": secret(each), "key": key["secretKey"], "optional": each.get("optional", False)}
            environment.append({"name": key["envVar"], "valueFrom": {"secretKeyRef": reference}})
    user = settings.get("securityContext", {})
    context = {key: value if isinstance(value, bool) else int(value) for key, value in user.items()}
    spec = {
        "serviceAccountName": service_account,
        "restartPolicy": "Never",
        "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}},
        "initContainers": [
            {"name": "init", "image": "argoexec:1", "securityContext": SYSTEM | {"runAsUser": 65532}},
            {"name": "kfp-launcher", "image": "kfp-launcher:2.17.0", "securityContext": SYSTEM},
        ],
        "containers": [
            {"name": "wait", "image": "argoexec:1", "securityContext": SYSTEM | {"runAsUser": 65532}},
            {
                "name": "main",
                "image": container["image"],
                "imagePullPolicy": settings.get("imagePullPolicy", ""),
                "env": environment,
                "resources": _resources(container.get("resources", {}), values),
                "securityContext": RESTRICTED | context,
                "volumeMounts": mounts,
            },
        ],
        "volumes": volumes,
    }
    if "activeDeadlineSeconds" in settings:
        spec["activeDeadlineSeconds"] = int(settings["activeDeadlineSeconds"])
    if "imagePullSecret" in settings:
        spec["imagePullSecrets"] = [{"name": secret(each)} for each in settings["imagePullSecret"]]
    if "nodeSelector" in settings:
        pool = settings["nodeSelector"]
        spec["nodeSelector"] = told(pool["nodeSelectorJson"]) if "nodeSelectorJson" in pool else pool["labels"]
    for each in settings.get("tolerations", []):
        found = told(each["tolerationJson"]) if "tolerationJson" in each else each
        spec.setdefault("tolerations", []).extend(found if isinstance(found, list) else [found])
    for each in settings.get("nodeAffinity", []):
        spec["affinity"] = {"nodeAffinity": told(each["nodeAffinityJson"])}
    metadata = {"name": name, "labels": settings.get("podMetadata", {}).get("labels", {})}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def _resources(resources, values):
    def resolved(text):
        return re.sub(r"\{\{\$\.inputs\.parameters\['(?:pipelinechannel--)?(\w+)'\]\}\}", lambda m: values[m[1]], text)

    found = {"requests": {}, "limits": {}}
    for name, (kind, resource) in {
        "resourceCpuRequest": ("requests", "cpu"),
        "resourceCpuLimit": ("limits", "cpu"),
        "resourceMemoryRequest": ("requests", "memory"),
        "resourceMemoryLimit": ("limits", "memory"),
    }.items():
        if name in resources:
            found[kind][resource] = resolved(resources[name])
    if accelerator := resources.get("accelerator"):
        found["limits"][resolved(accelerator["resourceType"])] = resolved(accelerator["resourceCount"])
    return found
