import base64
import csv
import hashlib
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from reporting.fixtures import write_run
from safetensors.numpy import load_file

from arnas.config import Settings, load
from arnas.reporting import render
from arnas.reporting.scores import ATTACKS, COLUMNS
from arnas.space.operations import OPERATIONS
from arnas.stages import report

VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """The page's tags, identifiers and visible text; complains of tags that are not closed in order."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.ids, self.open, self.text, self.headings = [], [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self._note(tag, attributes)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self._note(tag, attributes)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"style", "pre", "script"} & set(self.open):
            self.text.append(data)
        if self.open and self.open[-1] in ("h1", "h2"):
            self.headings.append(data)

    def _note(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.ids += [value for name, value in attributes if name == "id"]

    @property
    def words(self):
        return " ".join(" ".join(self.text).split())


@pytest.fixture(scope="module")
def source(reported):
    return (reported / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def scores(reported):
    return json.loads((reported / "scores.json").read_text(encoding="utf-8"))


def test_the_page_is_well_formed_and_says_its_title_and_language(source):
    assert source.startswith("<!DOCTYPE html>")
    page = Page(source)
    assert ("html", {"lang": "en"}) in page.tags
    assert "<title>ARNAS report: digits</title>" in source
    assert page.headings[0].startswith("searched classifies")


def test_identifiers_are_unique_and_every_reference_finds_its_own(source):
    ids = Page(source).ids
    assert len(ids) == len(set(ids)) > 0
    references = re.findall(r"(?:href=\"|url\()#([\w-]+)", source)
    assert set(references) == set(ids)


def test_the_page_asks_nothing_of_the_network(source):
    page = Page(source)
    assert not {"link", "iframe", "object", "embed", "form"} & {tag for tag, _ in page.tags}
    for tag, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes), tag
        for name in ("src", "href", "xlink:href", "srcset", "data", "action"):
            address = attributes.get(name, "#")
            held = address.startswith("data:") if "download" in attributes else address.startswith("data:image/png;")
            assert held or address.startswith("#"), (tag, attributes)
    addresses = set(re.findall(r"[a-z]{1,9}://[^\s\"'<>]+", source))
    assert addresses == {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert "@import" not in source and "@font-face" not in source
    assert not re.search(r"url\((?!#)", source)


def test_the_policy_allows_the_one_script_by_its_hash_and_nothing_else(source):
    (script,) = re.findall(r"<script>(.*?)</script>", source, re.DOTALL)
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', source)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules["script-src"] == f"'sha256-{digest}'" and rules["default-src"] == "'none'"
    assert set(rules) == {"default-src", "script-src", "style-src", "img-src", "base-uri", "form-action"}


def test_the_downloads_hold_scores_json_and_every_score_of_it_once(source, reported, scores):
    held = re.findall(r'<a download="[\w.-]+" href="data:([\w/]+);base64,([^"]+)"', source)
    assert [media for media, _ in held] == ["application/json", "text/csv", "text/csv"]
    document, flat, _ = (base64.b64decode(text).decode() for _, text in held)
    assert document == (reported / "scores.json").read_text(encoding="utf-8")
    lines = list(csv.DictReader(io.StringIO(flat)))
    told = [(int(line["correct"]), int(line["total"]), float(line["low"]), float(line["high"])) for line in lines]
    assert sorted(told) == sorted(every_score(scores))
    digests = set(re.findall(r'"([0-9a-f]{64})"', json.dumps(scores["digests"])))
    assert {line["artifact"] for line in lines} < digests
    for line in lines:
        if line["attack"] in ATTACKS and line["dataset"] == "digits":
            assert float(line["accuracy"]) == scores["models"][line["model"]][line["attack"]]["accuracy"]
    assert len({(line["model"], line["dataset"], line["attack"]) for line in lines}) == len(lines)


def test_all_of_the_document_is_in_a_download_as_csv_and_can_be_put_together_from_it(source, scores):
    text = base64.b64decode(re.findall(r'-all\.csv" href="data:text/csv;base64,([^"]+)"', source)[0]).decode()
    lines = list(csv.DictReader(io.StringIO(text)))
    assert len({line["path"] for line in lines}) == len(lines)
    for line in lines:
        value = scores
        for key in line["path"].split("/")[1:]:
            value = value[int(key) if isinstance(value, list) else key.replace("~1", "/").replace("~0", "~")]
        assert line["value"] == (value if isinstance(value, str) else json.dumps(value))
    assert len(lines) == how_many(scores)


def how_many(part):
    """Values of a document that hold no other."""
    parts = list(part.values()) if isinstance(part, dict) else part if isinstance(part, list) else []
    return sum(map(how_many, parts)) if parts else 1


def test_a_path_of_the_flattened_document_is_a_json_pointer():
    assert list(render.leaves({"a/b": [1, None, {"~": "x"}], "c": {}})) == [
        ("/a~1b/0", "1"),
        ("/a~1b/1", "null"),
        ("/a~1b/2/~0", "x"),
        ("/c", "{}"),
    ]


def test_what_the_figures_of_search_and_training_show_and_what_artifacts_took_is_in_the_document(scores, written):
    history = json.loads((written.models[0] / "history.json").read_text())["epochs"]
    for name, figures in scores["models"]["searched"]["training"].items():
        assert np.allclose(figures, [epoch[name] for epoch in history], rtol=1e-4)
    search = json.loads((written.supernet / "history.json").read_text())
    losses = [step[search["columns"].index("natural_loss")] for step in search["steps"]]
    assert np.allclose(scores["search"]["natural_loss"], losses, rtol=1e-4)
    assert scores["search"]["skips"]["robust"] == [epoch["skips"]["robust"] for epoch in search["epochs"]]
    chosen = np.mean(search["epochs"][-1]["weights"]["robust"], axis=0)
    found = [weights[-1] for weights in scores["search"]["weights"]["robust"].values()]
    assert list(scores["search"]["weights"]["robust"]) == list(OPERATIONS) and np.allclose(found, chosen, rtol=1e-4)
    assert scores["artifacts"]["model searched"] == {"seconds": 74.31, "peak_memory_mib": 812, "device": "cpu"}
    assert len(scores["artifacts"]) == 1 + 1 + 3 + 3 + 1 + 2


def every_score(part):
    """Counts and ends of everything in the document that has the form of a score."""
    if isinstance(part, dict) and {"correct", "total", "interval"} <= set(part):
        return [(part["correct"], part["total"], *part["interval"])]
    parts = part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
    return [found for each in parts for found in every_score(each)]


def test_a_violated_check_is_said_before_the_table_and_other_warnings_after_it(source):
    violated, table = source.index("natural: pgd20 leaves 11 of 360"), source.index("<table")
    assert violated < table < source.index("search: the accurate cell has 4 skip connections")
    assert source.count("<li>natural: pgd20 leaves 11 of 360") == 1


def test_every_drawing_and_image_has_words_for_those_who_cannot_see_it(source):
    tags = Page(source).tags
    drawings = [attributes for tag, attributes in tags if tag == "svg"]
    assert len(drawings) == 3 + 5 + 3 + 3  # cells, search, training, under attack
    assert all(drawing["role"] == "img" and len(drawing["aria-label"]) > 20 for drawing in drawings)
    images = [attributes for tag, attributes in tags if tag == "img"]
    assert len(images) == 3 * 6 * 3 and all(image["alt"] for image in images)
    assert source.count("<figure>") == source.count("<figcaption>") == 12


def test_every_score_stands_on_the_page_as_in_scores_json(source, scores):
    rows = dict(re.findall(r'<th scope="row">(\w+)</th>\s*(<td class="score".*?)</tr>', source, re.DOTALL)[:3])
    assert list(rows) == list(scores["models"]) == ["searched", "resnet18", "natural"]
    for name, entry in scores["models"].items():
        shown = re.findall(r"<b>([\d.]+)%</b><small>([\d.]+)%–([\d.]+)%<br>(\d+)/(\d+)", rows[name])  # noqa: RUF001
        for attack, (accuracy, low, high, correct, total) in zip(COLUMNS, shown, strict=True):
            score = entry[attack]
            assert (int(correct), int(total)) == (score["correct"], score["total"])
            figures = [score["accuracy"], *score["interval"]]
            assert np.allclose([float(accuracy), float(low), float(high)], np.multiply(figures, 100), atol=0.0501)


def test_digests_seeds_versions_and_settings_needed_to_repeat_the_run_are_there(source, scores, tmp_path):
    digests = re.findall(r"<code>([0-9a-f]{64})</code>", source)
    named = {text for text in re.findall(r'"([0-9a-f]{64})"', json.dumps(scores["digests"]))}
    assert set(digests) == named and len(named) == 1 + 1 + 1 + 3 + 3 + 1 + 2
    assert "1 min 14 s" in source and "812 MiB" in source and "2.15.0" in source
    preset = tmp_path / "again.yaml"
    preset.write_text(re.search(r"<pre>(.*?)</pre>", source, re.DOTALL)[1].replace("&#39;", "'"))
    again = load(str(preset))
    assert "epsilon: 8/255" in preset.read_text()
    assert again == Settings.model_validate(scores["settings"])


def test_examples_show_the_stored_pixels_and_the_perturbation_at_full_scale(source, written):
    tensors = load_file(written.evaluations[0] / "examples.safetensors")
    shown = re.findall(r'src="data:image/png;base64,([^"]+)"', source)[:3]
    clean, change, attacked = (
        np.asarray(Image.open(io.BytesIO(base64.b64decode(text))), dtype=float) / 255 for text in shown
    )
    assert np.abs(clean - tensors["images"][0, 0]).max() <= 0.5 / 255
    assert np.abs(attacked - tensors["adversarial"][0, 0]).max() <= 0.5 / 255
    difference = tensors["adversarial"][0, 0] - tensors["images"][0, 0]
    assert np.abs((2 * change - 1) * 8 / 255 - difference).max() <= 8 / 255 / 255 + 1e-6


PARTS = {
    "supernet": ["The search", "gamma", "hypergradient", "entropy", "search:"],
    "genotype": ["The architecture", "c_{k-1}", "genotype searched"],
    "blackbox": ["black-box", "Square", "transferred examples", "made on (source)"],
    "transfer": ["On another data set", "transferred model", "glyphs"],
    "evaluations": ["AutoAttack", "PGD-20", "FGSM", "perturbation", "upper bound", "interval"],
}


@pytest.mark.parametrize("part", PARTS)
def test_a_missing_part_leaves_no_trace(part, written, source, tmp_path):
    empty = [] if part == "evaluations" else None
    more = {"blackbox": None, "transfer": None} if part == "evaluations" else {}
    more |= {"supernet": None} if part != "supernet" else {}  # its plots take time
    report.run(tmp_path / "report.html", tmp_path / "scores.json", **written.arguments(**{part: empty}, **more))
    whole, page = Page(source), Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    labels = " ".join(attributes.get("aria-label") or "" for _, attributes in page.tags)
    present = [trace for trace in PARTS[part] if trace in page.words + labels]
    assert present == []
    assert any(trace in whole.words for trace in PARTS[part])
    assert not re.search(r"\bNone\b|\bnan\b|Undefined", page.words)
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert part not in scores and not scores["digests"].get(part)


def test_without_autoattack_the_next_strongest_attack_carries_the_claim(tmp_path):
    run = write_run(tmp_path / "run", attacks=("fgsm", "pgd20"))
    report.run(tmp_path / "report.html", tmp_path / "scores.json", **run.arguments(supernet=None))
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "when PGD-20 may change every pixel" in page.headings[0]
    assert "AutoAttack" not in page.words and "PGD-100" not in page.words


def test_the_same_inputs_give_the_same_bytes(reported, written, tmp_path):
    report.run(tmp_path / "report.html", tmp_path / "scores.json", **written.arguments())
    for name in ("report.html", "scores.json"):
        assert (tmp_path / name).read_bytes() == (reported / name).read_bytes()


def test_no_path_of_the_machine_stands_on_the_page(source, written, tmp_path):
    assert str(Path(written.images).parent) not in source
    prepare = written.settings.prepare.model_copy(update={"path": "/secret/place"})
    settings = written.settings.model_copy(update={"prepare": prepare, "transfer": prepare})
    report.run(tmp_path / "report.html", tmp_path / "scores.json", images=written.images, settings=settings)
    assert "secret" not in (tmp_path / "report.html").read_text() + (tmp_path / "scores.json").read_text()


def test_names_are_shown_as_they_are_and_not_as_markup(tmp_path, monkeypatch):
    name = '<b>$x_1$</b> & "co"'
    monkeypatch.setattr(
        "reporting.fixtures.CHANCES", {name: {"clean": 0.9, "pgd20": 0.5, "autoattack": 0.4, "square": 0.5}}
    )
    run = write_run(tmp_path / "run", attacks=("pgd20", "autoattack"))
    report.run(tmp_path / "report.html", tmp_path / "scores.json", **run.arguments(supernet=None))
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert page.headings[0].startswith(name + " classifies")
    assert f"accuracy of {name}" in page.words  # the title of a plot
    assert f"Training of {name}" in " ".join(attributes.get("aria-label") or "" for _, attributes in page.tags)
