"""Transfer: the searched architecture, retrained and attacked on another data set."""

from typing import NamedTuple

from kfp import dsl

from components.prepare.component import prepare
from components.transfer.component import transfer as transfer_component


class Outputs(NamedTuple):
    network: dsl.Model
    evaluation: dsl.Artifact


@dsl.pipeline(name="transfer")
def transfer(
    genotype: dsl.Input[dsl.Artifact],
    preset: str = "cifar10",
    data: str = "",
    overrides: dict = {},
    checkpoints: str = "/checkpoints",
    device: str = "auto",
) -> Outputs:
    """Prepare the data set of the settings' section transfer; train and attack the genotype on it.

    Args:
        genotype: Genotype, as written by the derive component.
        preset: Name of a preset of settings, or path of a YAML file.
        data: Where the other data set lies; none where it comes with the library, or where the settings say it.
        overrides: Changes of the preset, such as {"transfer.train_limit": 1000}.
        checkpoints: Folder that outlives the tasks; an interrupted task goes on from there.
        device: auto, cpu, cuda, cuda:N or mps.

    Returns:
        network: Trained model.
        evaluation: Its white-box evaluation.
    """
    prepared = prepare(preset=preset, overrides=overrides, data=data, section="transfer")
    prepared.set_caching_options(False)  # a cache would not see that the files changed
    transferred = transfer_component(
        genotype=genotype,
        images=prepared.outputs["images"],
        preset=preset,
        overrides=overrides,
        checkpoints=checkpoints,
        device=device,
    )
    return Outputs(transferred.outputs["network"], transferred.outputs["evaluation"])
