import json
import os
import re
import subprocess
import sys
from xml.etree import ElementTree

import numpy as np
import pytest
from reporting.fixtures import score, study

from arnas.reporting import histories, plots
from arnas.space.operations import OPERATIONS

SVG = "{http://www.w3.org/2000/svg}"


def search_history(epochs=3, steps=4, seed=0):
    random = np.random.default_rng(seed)
    columns = [
        "epoch",
        "step",
        "natural_loss",
        "adversarial_loss",
        "train_loss",
        "gamma",
        "natural_norm",
        "adversarial_norm",
    ]
    record = [
        {
            "epoch": epoch,
            "entropy": {kind: 1.9 - 0.1 * epoch for kind in plots.COLOURS},
            "skips": {kind: epoch for kind in plots.COLOURS},
            "weights": {kind: random.dirichlet(np.ones(7), 14).tolist() for kind in plots.COLOURS},
        }
        for epoch in range(epochs)
    ]
    return {"columns": columns, "steps": random.random((epochs * steps, 8)).tolist(), "epochs": record}


def training_history():
    epochs = [
        {"epoch": e, "train_accuracy": 0.1 * e, "clean": 0.2 + 0.1 * e, "robust": 0.1 + 0.05 * e} for e in range(5)
    ]
    return {"epochs": epochs}, {"best": epochs[3], "last": epochs[4]}


def every_figure():
    history = search_history()
    models = {name: {"clean": score([1, 1, 1, 0]), "autoattack": score([1, 0, 0, 0])} for name in ("a", "b")}
    return {
        "losses": plots.search_losses(history),
        "gradients": plots.search_gradients(history),
        "weights": plots.operation_weights(history, list(OPERATIONS)),
        "entropy": plots.entropy(history, 7),
        "skips": plots.skips(history, 4),
        "training": plots.training("a", *training_history()),
        "matrix": plots.matrix(
            {"a": {"a": score([1, 0]), "b": score([1, 1])}, "b": {"a": score([1, 0, 0]), "b": score([0])}}
        ),
        "scatter": plots.scatter(models, "autoattack", "AutoAttack", ["a"], 0.1),
        "curves": plots.curves({"a": [{"epsilon": e / 255, **score([1, e < 9])} for e in (0, 2, 4, 8, 255)]}, "linf"),
        "operations": plots.operations(study("seeds")["operations"]),
    }


@pytest.fixture(scope="module")
def figures():
    return every_figure()


def texts(figure):
    return [element.text for element in ElementTree.fromstring(figure).iter(f"{SVG}text")]


def test_every_figure_is_one_labelled_svg_element_in_the_colours_and_fonts_of_its_page(figures):
    for name, figure in figures.items():
        root = ElementTree.fromstring(figure)
        assert root.tag == f"{SVG}svg" and root.get("role") == "img" and root.get("aria-label"), name
        assert root.get("width") is None and root.get("viewBox"), name
        assert not list(root.iter(f"{SVG}style")) and not list(root.iter(f"{SVG}image")), name
        assert "font-family" not in figure and "currentColor" in figure, name
        inks = {element.get("style", "") for element in root.iter(f"{SVG}text")}
        assert all("fill: currentColor" in ink for ink in inks) or name == "matrix"
        assert "#000000" not in figure or name == "matrix", name
        assert len(list(root.iter(f"{SVG}text"))) > 3, name


def test_identifiers_do_not_meet_on_one_page(figures):
    ids = [found for figure in figures.values() for found in re.findall(r' id="([^"]+)"', figure)]
    assert len(ids) == len(set(ids))
    for figure in figures.values():
        assert set(re.findall(r"(?:href=\"|url\()#([\w-]+)", figure)) == set(re.findall(r' id="([^"]+)"', figure))


def test_the_same_data_give_the_same_bytes_in_another_process(figures):
    code = (
        "import json, sys; from arnas.reporting import histories, plots; "
        "sys.stdout.write(plots.training('a', *json.load(sys.stdin)))"
    )
    environment = os.environ | {"PYTHONHASHSEED": "7", "SOURCE_DATE_EPOCH": "1", "TZ": "Asia/Tokyo"}
    data = json.dumps(training_history())
    done = subprocess.run(
        [sys.executable, "-c", code], input=data, capture_output=True, text=True, env=environment, check=True
    )
    assert done.stdout == figures["training"]


def test_a_long_history_is_averaged_in_equal_pieces():
    history = search_history(epochs=5, steps=960)
    values = np.array(history["steps"])[:, history["columns"].index("natural_loss")]
    means = np.array([piece.mean() for piece in np.array_split(values, histories.POINTS)])
    figure = ElementTree.fromstring(plots.search_losses(history))
    curves = [
        path.get("d") for path in figure.iter(f"{SVG}path") if f"stroke: {plots.SERIES[0]}" in path.get("style", "")
    ]
    x, y = np.array(re.findall(r"[ML] ([-\d.]+) ([-\d.]+)", max(curves, key=len)), dtype=float).T
    pieces = ((x - x[0]) / (x[-1] - x[0]) * (histories.POINTS - 1)).round().astype(int)
    assert len(set(pieces)) > 0.9 * histories.POINTS  # matplotlib leaves points out that lie on a straight line
    slope, offset = np.polyfit(means[pieces], y, 1)  # heights on the page are means, but for the axis
    assert slope < 0 and np.allclose(slope * means[pieces] + offset, y, atol=0.5)
    assert f"validation, natural from {means[0]:.2f} to {means[-1]:.2f}" in figure.get("aria-label")


def test_zero_gradients_are_drawn_too():
    history = search_history()
    for row in history["steps"]:
        row[6] = 0.0
    assert "<svg" in plots.search_gradients(history)


def test_a_history_of_one_step_is_drawn_too():
    assert "<svg" in plots.search_losses(search_history(epochs=1, steps=1))


def test_the_heat_map_writes_every_score_into_its_cell(figures):
    assert [text for text in texts(figures["matrix"]) if "%" in text] == ["50.0%", "100.0%", "33.3%", "0.0%"]


def test_a_source_that_was_not_tried_on_a_target_leaves_its_cell_empty():
    figure = plots.matrix({"a": {"b": score([1, 0])}, "b": {"a": score([1, 1])}})
    assert [text for text in texts(figure) if "%" in text] == ["50.0%", "100.0%"]


def test_the_training_label_tells_best_and_last_epoch(figures):
    label = ElementTree.fromstring(figures["training"]).get("aria-label")
    assert "best epoch 3 with 50.0% clean and 25.0% robust, last epoch 4 with 60.0% clean and 30.0% robust" in label


def test_a_name_is_drawn_as_it_is():
    figure = plots.training('<i>$\\alpha$</i> & "x"', *training_history())
    assert 'accuracy of <i>$\\alpha$</i> & "x"' in texts(figure)
