import pytest
from pydantic import ValidationError

from arnas import config
from arnas.errors import InvalidInput


@pytest.mark.parametrize("preset", config.presets())
def test_every_preset_is_valid_and_trains_its_models(preset):
    settings = config.load(preset)
    assert all(settings.recipe(model) for model in settings.models)


def test_the_defaults_are_the_papers():
    settings = config.load("cifar10")
    search, retrain = settings.search, settings.retrain
    assert (search.channels, search.layers, search.epochs, search.batch_size) == (24, 8, 50, 32)
    assert (search.learning_rate, search.final_learning_rate, search.adversarial_weight) == (0.025, 0.001, 0.1)
    assert (search.epsilon, search.step_size, search.attack_steps) == (8 / 255, 2 / 255, 7)
    assert (search.hypergradient, search.combination) == ("finite_difference", "min_norm")
    assert (retrain.channels or config.CHANNELS, retrain.layers, retrain.epochs) == (64, 20, 200)
    assert (retrain.step_size, retrain.milestones) == (0.01, (0.5, 0.75))
    assert (retrain.cutout, retrain.auxiliary_weight, retrain.weight_decay) == (16, 0.4, 1e-4)


@pytest.mark.parametrize("overrides", [{"search.epochs": 3}, {"search": {"epochs": 3}}, {"search": {"epochs": "3"}}])
def test_overrides_are_dotted_or_nested_and_leave_the_rest(overrides):
    changed, plain = config.load("digits", overrides), config.load("digits")
    assert changed.search == plain.search.model_copy(update={"epochs": 3})
    assert changed.retrain == plain.retrain


def test_a_variant_follows_the_overrides_and_its_name_changes_nothing():
    overrides = {"retrain.layout": "A1 D1", "search.epochs": 5}
    variant = {"name": "deeper", "retrain.layout": "A1 D1 R2", "retrain": {"epochs": 4}}
    changed = config.load("digits", overrides, variant)
    assert changed == config.load("digits", overrides | {"retrain.layout": "A1 D1 R2", "retrain.epochs": 4})
    assert config.load("digits", overrides, {"name": "as it is"}) == config.load("digits", overrides)
    with pytest.raises(InvalidInput, match=r"no setting retrain\.layot; near it are layout"):
        config.load("digits", {}, {"name": "mistyped", "retrain.layot": "A1"})


def test_what_the_caller_has_stays_as_it_is():
    overrides = {"search": {"epochs": 3}}  # a section that the preset has not
    seeds = [config.load("cifar10", overrides, {"name": str(seed), "seed": seed}).search.seed for seed in (1, 2)]
    assert seeds == [1, 2] and overrides == {"search": {"epochs": 3}}


def test_an_architecture_may_lie_in_a_bucket():
    for place in ("s3://bucket/genotype.json", "minio://bucket/v2/artifacts/genotype"):
        assert config.load("digits", {"retrain.architecture": place}).retrain.architecture == place


def test_one_seed_reaches_every_stage_that_has_none_of_its_own():
    settings = config.load("digits", {"seed": 7, "search.seed": 8})
    assert (settings.prepare.seed, settings.search.seed, settings.retrain.seed, settings.transfer.seed) == (7, 8, 7, 7)
    assert settings.recipe("resnet18").seed == 7


@pytest.mark.parametrize(("text", "value"), [("8/255", 8 / 255), ("0.03", 0.03), (0.5, 0.5), (1, 1.0)])
def test_intensities_are_numbers_or_fractions(text, value):
    assert config.load("digits", {"whitebox.epsilon": text}).whitebox.epsilon == value


def test_a_ball_that_adds_up_pixels_may_be_larger_than_one_of_them():
    for norm, epsilon in (("l2", 1.5), ("l1", 12)):
        assert config.load("digits", {"whitebox.norm": norm, "whitebox.epsilon": epsilon}).whitebox.epsilon == epsilon


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ({"whitebox.step_size": "9/8"}, "whitebox.step_size = .9/8.: 1.125 is outside .0, 1., .* choose another norm"),
        ({"whitebox.epsilon": -1}, "-1.0 is below zero; write for example 8/255"),
        ({"search.epsilon": "9/8"}, "9/8 is outside .0, 1., the range of pixels"),
        ({"whitebox.norm": "l0"}, "whitebox.norm = 'l0'"),
        ({"search.epoch": 3}, "preset digits has no setting search.epoch; near it are epochs"),
        ({"serch.epochs": 3}, "has no setting serch; near it are search"),
        ({"search.epochs": 0}, "search.epochs = 0: .*greater than or equal to 1"),
        ({"search.epochs": "many"}, "search.epochs = 'many'"),
        ({"search.hypergradient": "third_order"}, "search.hypergradient = 'third_order'"),
        (
            {"whitebox.epsilon": 8},
            "whitebox.epsilon = 8: 8 is outside .0, 1., the range of pixels; write for example 8/255",
        ),
        ({"whitebox.epsilon": "8/0"}, "'8/0' is no pixel intensity"),
        ({"search.adversarial_weight": 0}, "search.adversarial_weight = 0: .*greater than 0"),
        ({"search.channels": 1}, "search.channels = 1: .*greater than or equal to 2"),
        ({"search.learning_rate": float("nan")}, "search.learning_rate = nan"),
        ({"models.searched.los": "trades"}, "models.searched has no setting los; near it are loss"),
        ({"search": 3}, "search = 3"),
        ({"seed": -1}, "seed = -1"),
        ({"search.layout": "A1 X2"}, "search.layout = 'A1 X2'"),
        (
            {"models.resnet18.architecture": "resnet"},
            "models.resnet18: architecture = 'resnet': there is no architecture or genotype file of that name; "
            "near it are resnet18",
        ),
        ({"retrain.milestones": [0.75, 0.5]}, "must rise, and be epochs such as 30 60 or shares such as 0.5 0.75"),
        ({"retrain.milestones": [0.5, 60]}, "not both"),
        ({"retrain.milestones": [0]}, "greater than 0"),
        ({"retrain.stem_stride": 4}, "retrain.stem_stride = 4: .*less than or equal to 3"),
    ],
)
def test_a_mistake_is_one_sentence_with_value_and_place(overrides, sentence):
    with pytest.raises(InvalidInput, match=sentence) as refusal:
        config.load("digits", overrides)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [("search: [", "not readable YAML"), ("- search", "must have sections"), ("search: {epochs: -1}", "epochs = -1")],
)
def test_a_presets_own_file_is_checked_alike(tmp_path, text, sentence):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(InvalidInput, match=sentence):
        config.load(str(tmp_path / "mine.yaml"))


def test_an_unknown_preset_names_those_that_exist():
    with pytest.raises(InvalidInput, match=r"no preset 'cifar'; name one of cifar10, .*digits"):
        config.load("cifar")


def test_an_unknown_model_names_those_that_exist():
    with pytest.raises(InvalidInput, match="models has no 'vgg'; it has searched"):
        config.load("digits").recipe("vgg")


def test_transfer_trains_as_the_searched_model_was_trained():
    settings = config.load("digits", {"models.searched.loss": "trades", "retrain.architecture": "resnet18"})
    assert settings.transferred().architecture == "searched"
    settings = config.load("digits", {"models.searched.loss": "trades"})
    assert settings.transferred() == settings.recipe("searched") != settings.retrain


def test_settings_cannot_be_changed_behind_a_digest():
    with pytest.raises(ValidationError, match="frozen"):
        config.load("digits").search.epochs = 5
