"""Nodes, as Kubernetes' scheduler looks at them: which of them a pod may go to."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Pool:
    """Nodes that tasks of one kind may go to, in the words of a pod.

    Attributes:
        labels: Its nodeSelector.
        affinity: Its nodeAffinity.
        tolerations: Of taints.
    """

    labels: dict[str, str] = field(default_factory=dict)
    affinity: dict[str, Any] = field(default_factory=dict)
    tolerations: list[dict[str, Any]] = field(default_factory=list)

    def holds(self, node: Any) -> bool:
        """Whether a node has the labels that the pod asks for."""
        labels = node.metadata.labels or {}
        required = self.affinity.get("requiredDuringSchedulingIgnoredDuringExecution")
        if not self.labels.items() <= labels.items():
            return False
        return not required or any(_matches(term, node) for term in required["nodeSelectorTerms"])

    def obstacle(self, node: Any) -> str | None:
        """What keeps a new pod from a node of the pool; None where nothing does."""
        if node.spec.unschedulable:
            return "it is cordoned"
        conditions = {condition.type: condition.status for condition in node.status.conditions or []}
        if conditions.get("Ready", "True") != "True":
            return "it is not ready"
        for taint in node.spec.taints or []:
            if taint.effect != "PreferNoSchedule" and not any(_tolerates(one, taint) for one in self.tolerations):
                return f"taint {taint.key}={taint.value or ''}:{taint.effect}"
        return None


_OPERATORS: dict[str, Callable[[str | None, list[str]], bool]] = {
    "In": lambda label, values: label in values,
    "NotIn": lambda label, values: label not in values,
    "Exists": lambda label, values: label is not None,
    "DoesNotExist": lambda label, values: label is None,
    "Gt": lambda label, values: (label or "").isdecimal() and int(label or 0) > int(values[0]),
    "Lt": lambda label, values: (label or "").isdecimal() and int(label or 0) < int(values[0]),
}


def _matches(term: dict[str, Any], node: Any) -> bool:
    """Whether all expressions of a term hold; an empty one matches nothing, as in Kubernetes."""
    labels, fields = node.metadata.labels or {}, {"metadata.name": node.metadata.name}
    asked = [(one, labels) for one in term.get("matchExpressions") or []]
    asked += [(one, fields) for one in term.get("matchFields") or []]
    return bool(asked) and all(
        _OPERATORS[one["operator"]](known.get(one["key"]), one.get("values", [])) for one, known in asked
    )


def _tolerates(toleration: dict[str, Any], taint: Any) -> bool:
    if toleration.get("effect") not in (None, "", taint.effect):
        return False
    if toleration.get("operator") == "Exists":
        return toleration.get("key") in (None, "", taint.key)
    return bool(toleration.get("key") == taint.key and toleration.get("value", "") == (taint.value or ""))
