import json
import random

import pytest

from arnas import artifacts
from arnas.errors import InvalidInput
from arnas.evaluation.statistics import score
from arnas.space import genotype as genotypes
from arnas.space.layout import KINDS
from arnas.space.operations import OPERATIONS
from arnas.stages import seeds

SETTINGS = {"epsilon": 0.1}


@pytest.fixture
def write(tmp_path):
    """A function of a seed and accuracies in percent: a genotype file of random operations, and an evaluation."""

    def write(seed, settings=SETTINGS, **percents):
        chance = random.Random(seed)
        nodes = [[[chance.choice(list(OPERATIONS)), 0], [chance.choice(list(OPERATIONS)), 1]] for _ in range(4)]
        found = genotypes.Genotype.from_json(dict.fromkeys(KINDS.values(), nodes), "test")
        file = tmp_path / f"genotype-{seed}.json"
        file.write_text(json.dumps(genotypes.document(found, "searched", None, {"seed": seed})))
        scores = {name: score(percent, 100) for name, percent in percents.items()}
        content = {"model": "searched", "images": "i", "settings": settings, "scores": scores}
        with artifacts.publish(tmp_path / f"evaluation-{seed}") as folder:
            folder.mkdir()
            artifacts.write(folder, "evaluation", content, {})
        return file, tmp_path / f"evaluation-{seed}"

    return write


def test_the_summary_has_a_row_a_seed_and_the_mean_and_the_spread_of_each_accuracy(write, tmp_path):
    files = [write(seed, clean=clean, pgd20=pgd) for seed, clean, pgd in ((3, 80, 40), (7, 90, 46), (11, 70, 40))]
    returned = seeds.run(*zip(*files, strict=True), tmp_path / "seeds.json")
    summary = json.loads((tmp_path / "seeds.json").read_text())
    assert [(row["seed"], row["clean"], row["pgd20"]) for row in summary["seeds"]] == [
        (3, 0.8, 0.4),
        (7, 0.9, 0.46),
        (11, 0.7, 0.4),
    ]
    assert summary["accuracy"]["pgd20"] == {
        "seeds": 3,
        "mean": pytest.approx(0.42),
        "spread": pytest.approx(0.0012**0.5),  # (0.02^2 + 0.04^2 + 0.02^2) / 2
        "lowest": 0.4,
        "highest": 0.46,
    }
    assert returned["clean_mean"] == pytest.approx(0.8) and returned["clean_spread"] == pytest.approx(0.1)


def test_operations_are_counted_over_all_seeds(write, tmp_path):
    files = [write(seed, clean=50) for seed in range(5)]
    seeds.run(*zip(*files, strict=True), tmp_path / "seeds.json")
    operations = json.loads((tmp_path / "seeds.json").read_text())["operations"]
    for kind in KINDS.values():
        cells = [genotypes.load(str(file))[0].cells[kind] for file, _ in files]
        for name in OPERATIONS:
            assert operations[kind][name] == str(cells).count(f"'{name}'")
        assert sum(operations[kind].values()) == 5 * 8


def test_a_single_seed_has_no_spread(write, tmp_path):
    file, evaluation = write(0, clean=50)
    returned = seeds.run([file], [evaluation], tmp_path / "seeds.json")
    assert "clean_spread" not in returned and returned["clean_mean"] == 0.5


def test_what_cannot_be_compared_is_refused(write, tmp_path):
    first, other = write(0, clean=50), write(1, settings={"epsilon": 0.2}, clean=50)
    for pairs, complaint in (
        ([], "seeds got 0 genotypes and 0 evaluations"),
        ([first, first], "are of the seeds 0, 0; give each seed once"),
        ([first, other], "differ in their images or settings"),
    ):
        with pytest.raises(InvalidInput, match=complaint):
            seeds.run([file for file, _ in pairs], [evaluation for _, evaluation in pairs], tmp_path / "seeds.json")
    assert not (tmp_path / "seeds.json").exists()
