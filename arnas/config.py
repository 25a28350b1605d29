"""The settings of every stage: one frozen model each, YAML presets, overrides; nothing unknown passes."""

import copy
import difflib
from collections.abc import Iterable, Mapping
from fractions import Fraction
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, TypeVar, get_args

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from arnas.errors import InvalidInput

Model = TypeVar("Model", bound=BaseModel)


def _number(value: float | str) -> float:
    try:
        number = float(Fraction(value)) if isinstance(value, str) else float(value)
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"{value!r} is no pixel intensity; write a number or a fraction such as 8/255") from None
    if number < 0:
        raise ValueError(f"{value} is below zero; write for example 8/255")
    return number


def _intensity(value: float | str) -> float:
    number = _number(value)
    if number > 1:
        raise ValueError(f"{value} is outside [0, 1], the range of pixels; write for example 8/255")
    return number


def intensity(value: float) -> str:
    """8/255 for 0.03137...; a number that is no multiple of 1/255, or above 1 as in other norms, as it is."""
    levels = round(255 * value)
    return f"{levels}/255" if 0 < levels <= 255 and levels / 255 == value else f"{value:.4g}"


if TYPE_CHECKING:
    Intensity = float
    Length = float
else:  # a string is accepted so that files and command lines can say 8/255
    Intensity = Annotated[float | str, AfterValidator(_intensity)]
    Length = Annotated[float | str, AfterValidator(_number)]  # in a norm that adds up pixels


#: Initial number of filters, C, of the paper's networks
CHANNELS = 64

#: The hand-made networks of `arnas.space.rivals` by name, with their published widths in the sense of `channels`
RIVALS = {
    "resnet18": 64,
    "preactresnet18": 64,
    "wrn-28-10": 16,
    "wrn-34-10": 16,
    "densenet121": 32,
    "mobilenetv2": 32,
}

LAYOUT = r"^[ADR][1-9]\d?( [ADR][1-9]\d?)*$"  # arnas.space.layout explains it


def genotypes() -> list[str]:
    """Names of the published genotypes that come with the package."""
    files = resources.files("arnas.space").joinpath("genotypes").iterdir()
    return sorted(file.name.removesuffix(".json") for file in files if file.name.endswith(".json"))


class Stage(BaseModel):
    """What all stages have in common."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    seed: int = Field(0, ge=0, lt=2**63, description="Seed of every random choice of the stage.")


class Prepare(Stage):
    """Data preparation: which images, and how they are split."""

    dataset: Literal["digits", "glyphs", "cifar10", "cifar100", "svhn", "tiny-imagenet", "folder"] = Field(
        "cifar10",
        description="digits (bundled with scikit-learn), glyphs (letters A-J drawn in matplotlib's fonts), cifar10 "
        "(a cifar-10-batches-py folder), cifar100 (cifar-100-python), svhn (train_32x32.mat and test_32x32.mat), "
        "tiny-imagenet (tiny-imagenet-200), or folder (a folder of class folders, or one with train/ and test/ in it).",
    )
    path: str | None = Field(
        None, description="Where the data set lies: a folder, or s3://BUCKET/PREFIX; digits and glyphs need none."
    )
    download: bool = Field(
        False,
        description="Fetch the data set into path where it is not there (without path: for this time only).",
    )
    allow_damaged: int = Field(
        0, ge=0, description="Leave out this many image files that cannot be used; more stop the stage."
    )
    image_size: int | None = Field(
        None, ge=8, le=512, description="Resize to this many pixels a side (default: as stored)."
    )
    train_limit: int | None = Field(None, ge=1, description="Use at most this many training images, class by class.")
    test_limit: int | None = Field(None, ge=1, description="Use at most this many test images, class by class.")
    test_fraction: float = Field(
        0.2, gt=0, lt=1, description="Share of the images kept for the test where the data set has no test part."
    )
    holdout_fraction: float = Field(
        0.05, gt=0, lt=1, description="Share of the training images held out to select the best model."
    )

    @property
    def located(self) -> bool:
        """Whether it is said where the data come from: they are bundled, fetched, or at a path."""
        return self.dataset in ("digits", "glyphs") or self.download or self.path is not None

    @model_validator(mode="after")
    def _download_is_possible(self) -> Self:
        if self.download and self.dataset in ("digits", "glyphs", "folder"):
            raise ValueError(f"data set {self.dataset} cannot be downloaded; leave download out")
        if self.download and self.path is not None and self.path.startswith("s3:"):
            raise ValueError(f"nothing is downloaded into {self.path}; download into a folder, then use arnas upload")
        return self


class Augmentation(BaseModel):
    """Random changes of training images."""

    crop_padding: int = Field(4, ge=0, le=64, description="Random crop after padding by this many pixels.")
    flip: bool = Field(True, description="Random horizontal flip.")


class Adversary(BaseModel):
    """The linf PGD adversary of search and training."""

    epsilon: Intensity = Field(8 / 255, description="Radius of the linf ball around an image, in [0, 1].")
    step_size: Intensity = Field(2 / 255, description="Step of one PGD iteration, in [0, 1].")
    attack_steps: int = Field(7, ge=1, le=1000, description="PGD iterations.")


class Search(Adversary, Augmentation, Stage):
    """Supernet search (paper section 3; the reference settings are the defaults)."""

    channels: int = Field(24, ge=2, description="Initial number of filters, C.")
    layers: int = Field(8, ge=3, le=100, description="Number of cells, L, where no layout is given.")
    layout: str | None = Field(
        None,
        pattern=LAYOUT,
        description='Cell kinds and widths in multiples of C, such as "A1 D2 A2 D2 R2" (default: as the paper).',
    )
    stem_stride: int | None = Field(
        None,
        ge=1,
        le=3,
        description="Stride of the first convolution (default: 2 for images of 64 pixels a side or more, else 1).",
    )
    epochs: int = Field(50, ge=1, description="Passes over each half of the training set.")
    batch_size: int = Field(32, ge=2, description="Images a step, from each half of the training set.")
    adversarial_weight: float = Field(
        0.1, gt=0, description="Weight lambda of the adversarial objective; without it search with combination natural."
    )
    hypergradient: Literal["finite_difference", "exact", "first_order"] = Field(
        "finite_difference", description="How the architecture's gradient passes through the virtual weight step."
    )
    combination: str = Field(
        "min_norm",
        description="How the two hypergradients are combined: min_norm, sum, natural or adversarial (that one alone), "
        "or an aggregator of torchjd by name.",
    )
    learning_rate: float = Field(0.025, gt=0, description="Of the weights, at the start of a cosine.")
    final_learning_rate: float = Field(0.001, ge=0, description="Of the weights, at the end of the cosine.")
    momentum: float = Field(0.9, ge=0, lt=1, description="Of the weights' SGD.")
    weight_decay: float = Field(3e-4, ge=0, description="Of the weights' SGD.")
    gradient_clip: float = Field(5.0, gt=0, description="Largest norm of the weights' gradient.")
    architecture_learning_rate: float = Field(3e-4, gt=0, description="Of Adam on the architecture parameters.")
    architecture_weight_decay: float = Field(1e-3, ge=0, description="Of Adam on the architecture parameters.")
    collapse_limit: int = Field(
        4, ge=1, le=8, description="Report a collapse when a normal cell has this many skip connections or more."
    )


class Retrain(Adversary, Augmentation, Stage):
    """Adversarial training of one network."""

    architecture: str = Field(
        "searched",
        description="searched (the genotype handed over), a genotype file, here or s3://..., or by name: a published "
        f"genotype ({', '.join(genotypes())}) or a hand-made network ({', '.join(RIVALS)}).",
    )
    channels: int | None = Field(
        None,
        ge=1,
        description="Initial number of filters, C; of wrn-28-10 and wrn-34-10 before they are widened by 10, of "
        f"densenet121 the growth rate (default: as the architecture was published; {CHANNELS} for a searched one).",
    )
    layers: int = Field(20, ge=3, le=100, description="Number of cells, L, of a genotype where no layout is given.")
    layout: str | None = Field(
        None,
        pattern=LAYOUT,
        description="Cell kinds of a genotype, and widths in multiples of C (default: its authors' placement of L "
        "cells).",
    )
    stem_stride: int | None = Field(
        None,
        ge=1,
        le=3,
        description="Stride of the first convolution (default: 2 for images of 64 pixels a side or more, else 1).",
    )
    epochs: int = Field(200, ge=1, description="Passes over the training set.")
    batch_size: int = Field(32, ge=2, description="Images a step.")
    loss: Literal["pgd_at", "trades", "mart", "natural"] = Field(
        "pgd_at", description="natural trains without attacks."
    )
    beta: float = Field(6.0, ge=0, description="Weight of the robustness term of trades and mart.")
    schedule: Literal["piecewise", "cyclic"] = Field(
        "piecewise",
        description="piecewise: x0.1 at each milestone; cyclic: rises to two fifths, falls to zero.",
    )
    milestones: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (0.5, 0.75), description="Of the piecewise schedule: epochs, or below 1 shares of all epochs, in order."
    )
    learning_rate: float = Field(0.1, gt=0, description="The schedule's largest.")
    momentum: float = Field(0.9, ge=0, lt=1, description="Of the weights' SGD.")
    weight_decay: float = Field(1e-4, ge=0, description="Of SGD.")
    gradient_clip: float = Field(5.0, gt=0, description="Largest norm of the gradient.")
    step_size: Intensity = Field(0.01, description="Step of one PGD iteration, in [0, 1].")
    cutout: int = Field(16, ge=0, description="Side of the square that is blanked, in pixels; 0 for none.")
    auxiliary_weight: float = Field(
        0.4, ge=0, description="Weight of a genotype's auxiliary head at the last reduction; 0 leaves it out."
    )
    drop_path: float = Field(
        0.0, ge=0, lt=1, description="Largest probability of dropping a genotype's path; rises linearly."
    )
    weight_averaging: float = Field(
        0.0, ge=0, lt=1, description="Decay of the averaged weights that are kept in place of the raw ones; 0 for none."
    )
    precision: Literal["fp32", "tf32", "bf16"] = Field(
        "fp32",
        description="Arithmetic of the training attack and step: tf32 (NVIDIA GPUs) and bf16 are faster and not exact. "
        "Selection and evaluation are true fp32.",
    )
    selection_steps: int = Field(10, ge=1, description="PGD steps on the hold-out that select the best epoch.")
    selection_images: int = Field(2500, ge=1, description="Hold-out images used for it, at most.")

    @field_validator("architecture")
    @classmethod
    def _architecture_exists(cls, name: str) -> str:
        known = ["searched", *RIVALS, *genotypes()]
        if name.startswith(("s3://", "minio://")):
            return name  # whoever reads it finds out
        if name not in known and not Path(name).is_file():
            raise ValueError(f"there is no architecture or genotype file of that name; near it are {near(name, known)}")
        return name

    @field_validator("milestones")
    @classmethod
    def _milestones_rise(cls, milestones: tuple[float, ...]) -> tuple[float, ...]:
        if list(milestones) != sorted(set(milestones)) or len({milestone < 1 for milestone in milestones}) > 1:
            raise ValueError("must rise, and be epochs such as 30 60 or shares such as 0.5 0.75, not both")
        return milestones


class Whitebox(Stage):
    """Attacks that see the network: FGSM, PGD-20, PGD-100, AutoAttack; the curve over epsilon; corruptions."""

    norm: Literal["linf", "l2", "l1"] = Field(
        "linf", description="Norm of the ball around an image; in l1 there is AutoAttack alone."
    )
    epsilon: Length = Field(
        8 / 255, description="Radius of the ball; in linf in [0, 1], in l2 for example 0.5, in l1 12."
    )
    step_size: Length | None = Field(
        None,
        description="Step of PGD-20 and PGD-100 (default: a quarter of epsilon); on the curve it grows with epsilon.",
    )
    images: int = Field(10_000, ge=1, description="Test images attacked, at most.")
    autoattack_images: int = Field(
        10_000, ge=0, description="Of those, the first this many under AutoAttack; 0 leaves it out."
    )
    autoattack_version: Literal["standard", "plus", "rand"] = Field(
        "standard", description="plus has more attacks and restarts, rand is for networks that are random."
    )
    curve_images: int = Field(
        1_000,
        ge=0,
        description="Of the images, the first this many for accuracy against epsilon and for more random starts of "
        "PGD-20; 0 leaves both out.",
    )
    corruption_images: int = Field(
        10_000,
        ge=0,
        description="Of the images, the first this many under noise, blur, low contrast and JPEG; 0 leaves them out.",
    )
    block_size: int = Field(
        1000,
        ge=1,
        description="Images of which those that still matter are attacked together; the unit of sharing work.",
    )
    batch_size: int = Field(250, ge=1, description="Images that pass through a network at once.")
    examples: int = Field(6, ge=0, description="Attacked images kept for the report.")

    @field_validator("epsilon", "step_size")
    @classmethod
    def _linf_is_within_pixels(cls, length: float | None, known: ValidationInfo) -> float | None:
        if length is not None and known.data.get("norm") == "linf" and length > 1:
            raise ValueError(
                f"{length:g} is outside [0, 1], the range of pixels; write for example 8/255, or choose another norm"
            )
        return length


class Blackbox(Stage):
    """Attacks that do not see the network: transferred examples, and Square."""

    epsilon: Intensity = Field(8 / 255, description="Radius of the linf ball, in [0, 1].")
    step_size: Intensity = Field(2 / 255, description="Step of the sources' PGD, in [0, 1].")
    attack_steps: int = Field(20, ge=1, description="PGD steps on the source network.")
    images: int = Field(10_000, ge=1, description="Test images attacked, at most.")
    square_images: int = Field(1_000, ge=0, description="Of those, the first this many under Square; 0 leaves it out.")
    square_queries: int = Field(5_000, ge=1, description="Queries Square may ask for an image.")
    block_size: int = Field(
        1000,
        ge=1,
        description="Images of which those that still matter are attacked together.",
    )
    batch_size: int = Field(250, ge=1, description="Images that pass through a network at once.")


class Export(Adversary, Stage):
    """The proof that a network which was written for others is the same network."""

    attack_steps: int = Field(10, ge=1, le=1000, description="PGD iterations.")
    checked_images: int = Field(100, ge=1, description="Test images it is compared on, without and with attack.")
    batch_size: int = Field(50, ge=1, description="Images that pass through a network at once.")


class Settings(BaseModel):
    """Everything that one run of the pipeline is told."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prepare: Prepare = Prepare()
    search: Search = Search()
    retrain: Retrain = Retrain()
    models: dict[str, dict[str, Any]] = {"searched": {}}
    whitebox: Whitebox = Whitebox()
    blackbox: Blackbox = Blackbox()
    transfer: Prepare = Prepare()

    def recipe(self, model: str) -> Retrain:
        """The training settings of one of `models`: the common recipe with the model's own changes.

        Raises:
            InvalidInput: No model of that name.
        """
        if model not in self.models:
            raise InvalidInput(f"models has no {model!r}; it has {', '.join(self.models)}.")
        return validate(Retrain, self.retrain.model_dump() | self.models[model], f"models.{model}")

    def transferred(self) -> Retrain:
        """How the searched genotype is trained on the other data set: as the first of `models` that is searched."""
        recipes = (self.recipe(model) for model in self.models)
        searched = (recipe for recipe in recipes if recipe.architecture == "searched")
        return next(searched, self.retrain).model_copy(update={"architecture": "searched"})

    @model_validator(mode="after")
    def _models_train(self) -> Self:
        for model in self.models:
            self.recipe(model)
        return self


def presets() -> list[str]:
    """Names of the presets that come with the package."""
    return sorted(
        entry.name[:-5] for entry in resources.files("arnas.presets").iterdir() if entry.name.endswith(".yaml")
    )


def load(
    preset: str = "cifar10", overrides: Mapping[str, Any] | None = None, variant: Mapping[str, Any] | None = None
) -> Settings:
    """Read a preset and change some of it.

    Args:
        preset: Name of a preset of the package, or path of a YAML file with the same sections.
        overrides: Changes, nested (`{"search": {"epochs": 3}}`) or dotted (`{"search.epochs": 3}`). `seed` sets the
            seed of every stage that has none of its own.
        variant: One of a study: changes that follow the overrides, and a `name`, which changes nothing.

    Raises:
        InvalidInput: The preset does not exist or a setting is unknown or out of range.
    """
    values = _read_preset(preset)
    changes = {key: value for key, value in (variant or {}).items() if key != "name"}
    for key, value in [*(overrides or {}).items(), *changes.items()]:
        _assign(values, key.split("."), value)
    seed = values.pop("seed", 0)
    for name, field in Settings.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Stage):
            section = values.setdefault(name, {})
            if isinstance(section, dict):
                section.setdefault("seed", seed)
    return validate(Settings, values, f"preset {preset}")


def assignments(texts: Iterable[str]) -> dict[str, Any]:
    """Overrides from command-line words such as `search.epochs=3`; values are YAML.

    Raises:
        InvalidInput: A word is no assignment.
    """
    overrides = {}
    for text in texts:
        key, equals, value = text.partition("=")
        try:
            if not (key and equals):
                raise ValueError
            overrides[key] = yaml.safe_load(value)
        except (ValueError, yaml.YAMLError):
            raise InvalidInput(f"{text!r} sets nothing; write KEY=VALUE, such as search.epochs=3.") from None
    return overrides


def near(name: str, known: Iterable[str]) -> str:
    """Those of the known names that a mistaken one may mean, or all of them, as a list in a sentence."""
    return ", ".join(difflib.get_close_matches(name, list(known), n=3, cutoff=0.5) or known)


def validate(model: type[Model], values: Any, place: str) -> Model:
    """Build a settings model; a mistake becomes a sentence with the value, the place and what would be right."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise InvalidInput("; ".join(_explain(model, item, place) for item in error.errors()) + ".") from None


def _read_preset(preset: str) -> dict[str, Any]:
    if preset in presets():
        text = resources.files("arnas.presets").joinpath(f"{preset}.yaml").read_text()
    elif Path(preset).is_file():
        text = _read_file(Path(preset))
    else:
        raise InvalidInput(f"There is no preset {preset!r}; name one of {', '.join(presets())}, or a YAML file.")
    try:
        values = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise InvalidInput(f"{preset} is not readable YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(values, dict):
        raise InvalidInput(f"{preset} must have sections such as search: and retrain:, but holds {values!r}.")
    return values


def _read_file(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path} cannot be read ({error}); give a YAML file.") from None


def _assign(values: dict[str, Any], path: list[str], value: Any) -> None:
    """values.a.b = value; a mapping is merged into the one that is there."""
    *sections, last = path
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise InvalidInput(f"{'.'.join(path)} cannot be set, since {section} is no section.")
    if isinstance(value, Mapping) and isinstance(values.get(last), dict):
        for key, inner in value.items():
            _assign(values[last], key.split("."), inner)
    else:
        values[last] = copy.deepcopy(value)  # or what follows would change what the caller has


def _explain(model: type[BaseModel], error: Any, place: str) -> str:
    where = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        known = _fields(model, error["loc"][:-1])
        return f"{place} has no setting {where}; near it are {near(str(error['loc'][-1]), known)}"
    message = error["msg"].removeprefix("Value error, ").rstrip(".")
    return f"{place}: {where} = {error['input']!r}: {message}" if where else f"{place}: {message}"


def _fields(model: type[BaseModel], path: tuple[str | int, ...]) -> list[str]:
    found: Any = model
    for part in path:  # into a section, or into what a list or mapping holds
        found = found.model_fields[str(part)].annotation if hasattr(found, "model_fields") else get_args(found)[-1]
    return list(found.model_fields)
