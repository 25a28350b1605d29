"""The `arnas` program: every stage as a command. Options and their help come from the settings models."""

import json
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from cyclopts import App, CycloptsError, Group, Parameter, validators
from pydantic import ValidationError

import arnas
from arnas import config
from arnas.errors import Diverged, InvalidInput, ProcessLost, Unreachable

# Stages, and torch with them, are imported inside the commands, so that help comes at once.

Section = TypeVar("Section", bound=config.Stage)

app = App(
    name="arnas",
    version=arnas.__version__,
    help="Search, train and certify image classifiers that are accurate and withstand adversarial attack.\n\n"
    "A run in order: prepare, search, derive, retrain, whitebox, blackbox, transfer, report. A command that is "
    "interrupted saves its state, and goes on from there when it is started again.",
    help_format="plaintext",
    suppress_keyboard_interrupt=False,  # main says so
)


def _shown(value: Any) -> str:
    """Intensities read best as n/255; what has no default says so."""
    if value is None:
        return "none"
    # larger ones are no intensities: a learning rate of 0.2 is none of 51/255
    return config.intensity(value) if isinstance(value, float) and value <= 16 / 255 else str(value)


SETTINGS = Group("Settings (the defaults are the paper's; the preset replaces them, and options replace the preset's)")
Flat = Parameter(name="*", group=SETTINGS, show_default=_shown)
Named = Parameter(group=SETTINGS, show_default=_shown)
Preset = Annotated[
    str, Parameter(help=f"Settings to begin with: {', '.join(config.presets())}, or a YAML file of your own.")
]
Checkpoints = Annotated[
    str | None,
    Parameter(
        help="Folder or s3://BUCKET/PREFIX of finished and unfinished work (default: .checkpoints beside the output)."
    ),
]
Device = Annotated[str, Parameter(help="auto, cpu, cuda, cuda:N or mps.")]
Several = Parameter(consume_multiple=True, negative="")  # --models A B
Changes = Annotated[list[str] | None, Several]
Positive = Annotated[int | None, Parameter(validator=validators.Number(gte=1))]


@app.command
def prepare(
    output: Path,
    /,
    *,
    preset: Preset = "cifar10",
    section: Literal["prepare", "transfer"] = "prepare",
    settings: Annotated[config.Prepare, Flat] = config.Prepare(),
) -> dict[str, Any]:
    """Read a data set, check it, and split it: weights, architecture, hold-out, test.

    Example: arnas prepare out/images --dataset digits

    Parameters
    ----------
    output
        Folder to write: the image set.
    section
        Section of the preset to begin with: its first data set, or the one for the transfer.
    """
    from arnas.stages import prepare

    return prepare.run(output, _changed(getattr(config.load(preset), section), settings))


@app.command
def search(
    images: Path,
    output: Path,
    /,
    *,
    preset: Preset = "cifar10",
    checkpoints: Checkpoints = None,
    device: Device = "auto",
    settings: Annotated[config.Search, Flat] = config.Search(),
) -> dict[str, Any]:
    """Search an architecture: train a supernet and choose among its operations, for accuracy and robustness at once.

    Example: arnas search out/images out/supernet --preset digits --epochs 3 --epsilon 8/255

    Parameters
    ----------
    images
        Image set, as written by arnas prepare.
    output
        Folder to write: the searched supernet with its history.
    """
    from arnas.stages import search

    chosen = _changed(config.load(preset).search, settings)
    return search.run(images, output, chosen, checkpoints=_kept(checkpoints, output), device=device)


@app.command
def derive(supernet: Path, output: Path, /, *, drawing: Path | None = None) -> dict[str, Any]:
    """Derive the architecture (genotype) that a searched supernet prefers.

    Example: arnas derive out/supernet out/genotype.json --drawing out/cells.svg

    Parameters
    ----------
    supernet
        Searched supernet, as written by arnas search.
    output
        JSON file to write: the genotype.
    drawing
        SVG file to write: the three cells, drawn.
    """
    from arnas.stages import derive

    return derive.run(supernet, output, drawing=drawing)


@app.command
def retrain(
    images: str,
    output: str,
    /,
    *,
    genotype: str | None = None,
    model: str = "searched",
    preset: Preset = "cifar10",
    set: Changes = None,
    checkpoints: Checkpoints = None,
    device: Device = "auto",
    processes: Annotated[int, Parameter(validator=validators.Number(gte=1))] = 1,
    settings: Annotated[config.Retrain, Flat] = config.Retrain(),
) -> dict[str, Any]:
    """Train one network adversarially, and keep the weights that are most robust on the hold-out.

    Example: arnas retrain out/images out/model --genotype out/genotype.json --preset digits

    Parameters
    ----------
    images
        Image set, as written by arnas prepare: a folder, or s3://BUCKET/PREFIX.
    output
        Folder or s3://BUCKET/PREFIX to write: the trained model with its history.
    genotype
        Genotype file, as written by arnas derive, here or s3://...; needed where the architecture is "searched".
    model
        Which of the preset's models to train; also the name that the result goes by.
    set
        Changes of the preset, such as retrain.epochs=3.
    processes
        Processes that share every batch, each on a GPU of its own; on the CPU they share its cores. Where torchrun's
        variables PET_NNODES, PET_NODE_RANK, PET_MASTER_ADDR and PET_MASTER_PORT are set, so many on every node.
    """
    from arnas import objects
    from arnas.stages import retrain

    with ExitStack() as stack:
        kept = checkpoints or (
            f"{output.rstrip('/')}-checkpoints" if objects.is_place(output) else _kept(None, Path(output))
        )
        folder = stack.enter_context(objects.stored(output))
        return retrain.run(
            stack.enter_context(objects.fetched(images)),
            folder,
            _changed(config.load(preset, config.assignments(set or [])).recipe(model), settings),
            name=model,
            genotype=stack.enter_context(objects.fetched(genotype)) if genotype else None,
            checkpoints=kept,
            device=device,
            processes=processes,
        )


@app.command
def adopt(
    output: Path,
    /,
    *,
    images: Path,
    model: str | None = None,
    state: Path | None = None,
    program: Path | None = None,
    name: str | None = None,
) -> dict[str, Any]:
    """Make a network of your own a model like ours, to attack and report it: a factory and its weights, or a program.

    It takes images [N, channels, height, width] with pixels in [0, 1], and returns logits [N, classes]; a network that
    normalises its input does so itself.

    Example: arnas adopt out/mine --model mynet:resnet50 --state mynet.safetensors --images out/images

    Parameters
    ----------
    output
        Folder to write: the model.
    images
        Image set, as written by arnas prepare, that the network classifies.
    model
        What makes the network, package.module:factory, called without arguments; it is imported again whenever the
        model is read. It is code: name what you would run yourself.
    state
        Its state dict: safetensors, or a file of torch.save that holds tensors alone. Nothing else is unpickled.
    program
        A program that torch.export wrote (.pt2), for batches of any size, in place of --model and --state.
    name
        Name in tables (default: that of the factory or file).
    """
    from arnas.stages import adopt

    return adopt.run(output, images=images, model=model, state=state, program=program, name=name)


@app.command
def export(
    model: Path,
    output: Path,
    /,
    *,
    images: Path,
    formats: Annotated[list[Literal["state", "program", "onnx"]] | None, Several] = None,
    settings: Annotated[config.Export, Flat] = config.Export(),
) -> dict[str, Any]:
    """Write a model for others, and prove that what they will load is the same network: predictions, robustness.

    Example: arnas export out/model out/exported --images out/images --epsilon 8/255

    Parameters
    ----------
    model
        Model, as written by arnas retrain or adopt.
    output
        Folder to write: weights.safetensors with network.json, program.pt2, model.onnx, and proof.json.
    images
        Image set, as written by arnas prepare; the first of its test images are what is compared.
    formats
        Which to write: state, program (torch.export), onnx, which needs the extra packages of arnas[export] (default:
        all).
    """
    from arnas.stages import export

    return export.run(model, output, settings, images=images, formats=formats)


@app.command
def whitebox(
    model: Path,
    image_set: Annotated[Path, Parameter(name="IMAGES")],
    output: Path,
    /,
    *,
    preset: Preset = "cifar10",
    checkpoints: Checkpoints = None,
    device: Device = "auto",
    shard: str = "1/1",
    settings: Annotated[config.Whitebox, Flat] = config.Whitebox(),
) -> dict[str, Any]:
    """Attack a model with full sight of it: FGSM, PGD-20, PGD-100, AutoAttack.

    Example: arnas whitebox out/model out/images out/evaluation --images 500 --autoattack-images 100

    Parameters
    ----------
    model
        Trained model, as written by arnas retrain.
    image_set
        Image set, as written by arnas prepare; its test part is attacked.
    output
        Folder to write: accuracies with intervals, and the outcome for every image.
    shard
        Attack a share of the images alone, such as 2/4; arnas merge puts the shares together.
    """
    from arnas.stages import whitebox

    chosen = _changed(config.load(preset).whitebox, settings)
    kept = _kept(checkpoints, output)
    return whitebox.run(model, image_set, output, chosen, checkpoints=kept, device=device, shard=shard)


@app.command
def merge(output: Path, /, *shards: Path) -> dict[str, Any]:
    """Put the shards of a white-box evaluation together; the result is that of one run over all images.

    Example: arnas merge out/evaluation out/shard-1 out/shard-2

    Parameters
    ----------
    output
        Folder to write: accuracies with intervals, and the outcome for every image.
    shards
        What arnas whitebox wrote for each share.
    """
    from arnas.stages import merge

    return merge.run(list(shards), output)


@app.command
def blackbox(
    image_set: Annotated[Path, Parameter(name="IMAGES")],
    output: Path,
    /,
    *models: Path,
    preset: Preset = "cifar10",
    checkpoints: Checkpoints = None,
    device: Device = "auto",
    settings: Annotated[config.Blackbox, Flat] = config.Blackbox(),
) -> dict[str, Any]:
    """Attack models without sight of them: adversarial examples carried from each model to each, and Square.

    Example: arnas blackbox out/images out/blackbox out/model-a out/model-b --images 500

    Parameters
    ----------
    image_set
        Image set, as written by arnas prepare; its test part is attacked.
    output
        Folder to write: the matrix of accuracies, source by target, and those under Square.
    models
        Trained models, as written by arnas retrain.
    """
    from arnas.stages import blackbox

    chosen = _changed(config.load(preset).blackbox, settings)
    kept = _kept(checkpoints, output)
    return blackbox.run(list(models), image_set, output, chosen, checkpoints=kept, device=device)


@app.command
def transfer(
    genotype: Path,
    images: Path,
    model_output: Path,
    evaluation_output: Path,
    /,
    *,
    preset: Preset = "cifar10",
    checkpoints: Checkpoints = None,
    device: Device = "auto",
    retrain: Annotated[config.Retrain, Named] = config.Retrain(),
    whitebox: Annotated[config.Whitebox, Named] = config.Whitebox(),
) -> dict[str, Any]:
    """Train and attack a searched architecture on another data set.

    Example: arnas transfer out/genotype.json out/other-images out/other-model out/other-evaluation --retrain.epochs 30

    Parameters
    ----------
    genotype
        Genotype file, as written by arnas derive.
    images
        Image set of the other data, as written by arnas prepare.
    model_output
        Folder to write: the trained model.
    evaluation_output
        Folder to write: its white-box evaluation.
    """
    from arnas.stages import transfer

    base = config.load(preset)
    return transfer.run(
        genotype,
        images,
        model_output,
        evaluation_output,
        _changed(base.transferred(), retrain),
        _changed(base.whitebox, whitebox),
        checkpoints=_kept(checkpoints, model_output),
        device=device,
    )


@app.command
def report(
    html: Path,
    scores: Path,
    /,
    *,
    images: Path,
    supernet: Path | None = None,
    genotype: Path | None = None,
    models: Annotated[list[Path] | None, Several] = None,
    evaluations: Annotated[list[Path] | None, Several] = None,
    blackbox: Path | None = None,
    transfer: Annotated[tuple[Path, Path] | None, Several] = None,
    preset: Preset = "cifar10",
    set: Changes = None,
) -> dict[str, Any]:
    """Write one page with everything that was found, and the scores as JSON; what is not given is left out.

    Example: arnas report out/report.html out/scores.json --images out/images --supernet out/supernet
    --genotype out/genotype.json --models out/model --evaluations out/evaluation --blackbox out/blackbox

    Parameters
    ----------
    html
        HTML file to write; it needs no other file.
    scores
        JSON file to write.
    images
        Image set, as written by arnas prepare.
    supernet
        Searched supernet, as written by arnas search.
    genotype
        Genotype file, as written by arnas derive.
    models
        Trained models, as written by arnas retrain.
    evaluations
        Their evaluations by arnas whitebox, in any order.
    blackbox
        Evaluation by arnas blackbox.
    transfer
        The model and the evaluation that arnas transfer wrote.
    set
        Changes that were made to the preset, such as search.epochs=3.
    """
    from arnas.stages import report

    return report.run(
        html,
        scores,
        images=images,
        supernet=supernet,
        genotype=genotype,
        models=models or [],
        evaluations=evaluations or [],
        blackbox=blackbox,
        transfer=transfer,
        settings=config.load(preset, config.assignments(set or [])),
    )


@app.command
def study(
    output: Path,
    /,
    *,
    models: Annotated[list[Path], Several],
    evaluations: Annotated[list[Path], Several],
    blackbox: Path | None = None,
    page: Path | None = None,
    table: Path | None = None,
    name: str = "comparison",
    preset: Preset = "cifar10",
    set: Changes = None,
) -> dict[str, Any]:
    """Compare models that were attacked alike, image by image: figures as JSON, a page, a table.

    Example: arnas study out/study.json --models out/model out/mine --evaluations out/evaluation out/mine-evaluation
    --page out/study.html

    Parameters
    ----------
    output
        JSON file to write: every figure.
    models
        Models of different names, as written by arnas retrain or adopt, in the order in which they are to appear.
    evaluations
        Their evaluations by arnas whitebox, in any order.
    blackbox
        Evaluation of all of them by arnas blackbox.
    page
        HTML file to write; it needs no other file.
    table
        CSV file to write, a row for each model.
    name
        What the page calls the study, and its models: placement, comparison, transfer, seeds, ablation, or another.
    set
        Changes that were made to the preset, such as whitebox.images=500.
    """
    from arnas.stages import study

    return study.run(
        [],
        models,
        evaluations,
        output,
        name=name,
        settings=config.load(preset, config.assignments(set or [])),
        blackbox=blackbox,
        page=page,
        table=table,
    )


@app.command
def upload(folder: Path, place: str, /) -> None:
    """Copy a data set into a bucket, from where arnas prepare --path reads it; half an upload is not read.

    Example: arnas upload cifar-10-batches-py s3://arnas/data/cifar-10

    Parameters
    ----------
    folder
        Folder to copy, with all that is in it.
    place
        Empty place to copy it to: s3://BUCKET/PREFIX.
    """
    from arnas import objects

    objects.upload(folder, place)


@app.command
def info(
    genotype: str | None = None,
    /,
    *,
    supernet: Annotated[bool, Parameter(negative="")] = False,
    channels: Positive = None,
    layers: Positive = None,
    layout: str | None = None,
    stem_stride: Positive = None,
    classes: Positive = 10,
    image_size: Positive = 32,
    json: Annotated[bool, Parameter(negative="")] = False,
) -> dict[str, Any] | str:
    """Size of a network: parameters and multiply-accumulates for one RGB image, without the auxiliary head.

    Example: arnas info arnas-cifar10 --channels 36 --layers 20

    Parameters
    ----------
    genotype
        Genotype file, or the name of a published genotype (arnas-cifar10, darts-v2, pdarts, advrush, racl) or of a
        hand-made network (resnet18, preactresnet18, wrn-28-10, wrn-34-10, densenet121, mobilenetv2).
    supernet
        The supernet of the search instead.
    channels
        Initial number of filters, C (default: as the architecture was published; 24 for the supernet).
    layers
        Number of cells, L, of a genotype (default: 20; 8 for the supernet).
    layout
        Cell kinds and widths of a genotype, such as "A1 A1 D2 A2 A2 D2 R2 R2" (default: its authors' for L cells).
    stem_stride
        Stride of the first convolution (default: 2 for images of 64 pixels a side or more, else 1).
    classes
        Number of classes.
    image_size
        Pixels a side.
    json
        Print JSON.
    """
    from arnas.space import size

    described = size.info(
        genotype,
        supernet=supernet,
        channels=channels,
        layers=layers,
        layout=layout,
        stem_stride=stem_stride,
        classes=classes or 10,
        image_size=image_size or 32,
    )
    if json:
        return described
    stride = f", stem of stride {described['stem_stride']}" if described["stem_stride"] > 1 else ""
    lines = {
        "network": f"{described['network']}, C={described['channels']}, {described['classes']} classes{stride}",
        "layout": described.get("layout", "-"),
        "parameters": f"{described['parameters']:,} ({described['parameters'] / 1e6:.3f} M)",
        "multiply-accumulates": f"{described['macs']:,} ({described['macs'] / 1e9:.3f} G) "
        f"for an image of {described['image_size']} x {described['image_size']} pixels",
    }
    return "\n".join(f"{name:<22}{text}" for name, text in lines.items())


def main(arguments: list[str] | None = None) -> None:
    """Run one command; prints what it returns, as JSON.

    Exit status: 0, 2 for input that cannot be used, 3 for a loss that is no longer finite, 4 for a store that stayed
    away, 5 for a process that was killed amid others, 128 + N for signal N.
    """
    try:
        figures = app(arguments, print_error=False, exit_on_error=False, result_action="return_value")
    except CycloptsError as error:
        _leave(2, _sentence(error))
    except InvalidInput as error:
        _leave(2, str(error))
    except Diverged as error:
        _leave(3, str(error))
    except Unreachable as error:
        _leave(4, str(error))
    except ProcessLost as error:
        _leave(5, str(error))
    except KeyboardInterrupt:
        _leave(130, "Interrupted.")
    if figures:
        print(figures if isinstance(figures, str) else json.dumps(figures, indent=1))


def _changed(base: Section, given: Section) -> Section:
    """The preset's section with those options that were given."""
    explicit = {name: getattr(given, name) for name in given.model_fields_set}
    return config.validate(type(base), base.model_dump() | explicit, "options")


def _kept(checkpoints: str | None, output: Path) -> str | Path:
    return checkpoints or output.parent / ".checkpoints"


def _sentence(error: CycloptsError) -> str:
    """Cyclopts' complaint on one line; where it quotes pydantic, the options and what is wrong with them."""
    if not isinstance(error.__cause__, ValidationError):
        return " ".join(str(error).split())
    group = f"{error.argument.name}." if error.argument and error.argument.name != "*" else "--"
    complaints = []
    for item in error.__cause__.errors():
        option = ".".join(str(part).replace("_", "-") for part in item["loc"])
        complaints.append(f"{group}{option} {item['input']}: {item['msg'].removeprefix('Value error, ').rstrip('.')}")
    return "; ".join(complaints) + "."


def _leave(status: int, message: str) -> None:
    print(message, file=sys.stderr)
    sys.exit(status)


if __name__ == "__main__":
    main()
