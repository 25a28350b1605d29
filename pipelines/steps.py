"""The steps that pipelines are made of: each adds its placed tasks to the pipeline that is being built."""

from collections.abc import Mapping
from copy import copy
from typing import Any

from kfp import dsl

from components.blackbox.component import blackbox
from components.derive.component import derive
from components.merge.component import merge
from components.preflight.component import preflight
from components.prepare.component import prepare
from components.report.component import report
from components.retrain.component import retrain
from components.search.component import search
from components.study.component import study
from components.transfer.component import transfer
from components.whitebox.component import whitebox
from pipelines.placement import Placement, place


class Steps:
    """The method's steps in one pipeline.

    Args:
        site: Placement that is fixed at compile time.
        run: The pipeline's parameters of placement, by the names of `pipelines.placement.RUN`.
        told: Its parameters preset and overrides, which every step takes.
        checkpoints, device: Its parameters of that name.
    """

    def __init__(
        self, site: Placement, run: Mapping[str, Any], told: Mapping[str, Any], checkpoints: Any, device: Any
    ) -> None:
        self.site = site
        self.run = run
        self.told = told
        self.varying: dict[str, Any] = {}
        self.reading = {"endpoint": run["endpoint"], **told}
        self.computing = {"checkpoints": checkpoints, "device": device, "gpus": run["gpus"], **self.reading}

    def place(self, task: dsl.PipelineTask) -> dsl.PipelineTask:
        return place(task, self.site, self.run)

    def varied(self, variant: Any) -> "Steps":
        """The same steps, told of a variant: one of a study's loop."""
        steps = copy(self)
        steps.varying = {"variant": variant}
        return steps

    def preflight(self) -> dsl.PipelineTask | None:
        """A look at the cluster, which fails where it lacks what the other tasks need; none where that is off."""
        if not self.site.preflight:
            return None
        asked = {name: self.run[name] for name in ("accelerator", "gpu_pool", "gpu_tolerations", "cpu_pool", "secret")}
        task = preflight(
            task_gpus=self.run["gpus"],  # by its name, this task is given none
            tolerations=[one.model_dump(exclude_none=True) for one in self.site.gpu_tasks.tolerations],
            queue=self.site.gpu_tasks.queue or "",
            checkpoints=self.computing["checkpoints"],
            endpoint=self.run["endpoint"],
            **asked,
        )
        return self.place(task).set_caching_options(False)

    def prepare(self, data: Any, section: str = "prepare", after: dsl.PipelineTask | None = None) -> Any:
        """The image set of a section of the settings: what a pipeline begins with, after preflight where that is on."""
        task = self.place(prepare(data=data, section=section, **self.reading, **self.varying))
        task.set_caching_options(False)  # a cache would not see that the files changed
        if after:
            task.after(after)
        return task.outputs["images"]

    def search(self, images: Any) -> tuple[Any, Any]:
        """The searched supernet, and the genotype that follows from it."""
        supernet = self.place(search(images=images, **self.computing, **self.varying)).outputs["supernet"]
        return supernet, self.place(derive(supernet=supernet)).outputs["genotype"]

    def retrain(self, images: Any, genotype: Any = None, model: Any = "searched") -> Any:
        """A trained network: one of the settings' models, or the variant's."""
        given = {"genotype": genotype} if genotype else {}
        task = self.place(retrain(images=images, model=model, **given, **self.computing, **self.varying))
        return task.outputs["network"]

    def whitebox(self, network: Any, images: Any, shards: Any) -> Any:
        """The white-box evaluation of a network, its samples shared out over tasks."""
        with dsl.ParallelFor(shards, parallelism=self.site.parallelism) as shard:
            task = self.place(whitebox(network=network, images=images, shard=shard, **self.computing))
        return self.place(merge(shards=dsl.Collected(task.outputs["evaluation"]))).outputs["evaluation"]

    def blackbox(self, networks: Any, images: Any) -> Any:
        """The black-box evaluation of networks on one another."""
        return self.place(blackbox(networks=networks, images=images, **self.computing)).outputs["evaluation"]

    def transfer(self, genotype: Any, images: Any) -> tuple[Any, Any]:
        """A network of the genotype, trained on another image set, and its evaluation."""
        outputs = self.place(transfer(genotype=genotype, images=images, **self.computing)).outputs
        return outputs["network"], outputs["evaluation"]

    def study(self, **found: Any) -> Any:
        """What the variants of a study have shown, of artifacts by the names of the component's inputs."""
        return self.place(study(**found, **self.told)).outputs

    def report(self, **found: Any) -> Any:
        """The page and the scores, of artifacts by the names of the component's inputs."""
        return self.place(report(**found, **self.told)).outputs
