"""A small image set and small models, made without the stages that make them, for the tests of those that read them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch import nn

from arnas import artifacts
from arnas.data.image_set import load
from arnas.space.network import build

FOUR = ["zero", "one", "two", "three"]


@pytest.fixture(scope="session")
def write_image_set(tmp_path_factory):
    """A function of the class names: the image set of the digits of those classes."""

    def write(classes):
        torch.manual_seed(0)
        digits = load_digits(n_class=len(classes))
        images = torch.tensor(digits.images / 16 * 255, dtype=torch.uint8)[:, None]
        order = torch.randperm(len(images))
        names = ("test", "holdout", "weights", "architecture")
        splits = dict(zip(names, order.split(len(order) // 4 + 1), strict=True))
        content = {
            "settings": {},
            "dataset": "digits",
            "classes": classes,
            "shape": [1, 8, 8],
            "counts": {name: len(part) for name, part in splits.items()},
        }
        with artifacts.publish(tmp_path_factory.mktemp("images") / "images") as folder:
            folder.mkdir()
            save_file(
                {"images": images, "labels": torch.tensor(digits.target), **splits}, folder / "images.safetensors"
            )
            artifacts.write(folder, "image_set", content, {})
        return folder.parent.parent / "images"

    return write


@pytest.fixture(scope="session")
def images(write_image_set):
    """An image set of 720 digits from 0 to 3."""
    return write_image_set(FOUR)


@pytest.fixture(scope="session")
def write_model(tmp_path_factory):
    """A function of a name, an image set and a seed: a small derived network, trained shortly without attacks."""

    def write(name, images, seed=0):
        torch.set_num_threads(1)
        torch.manual_seed(seed)
        image_set = load(images)
        node = [["skip_connect", 0], ["avg_pool_3x3", 1]]
        description = {
            "architecture": "genotype",
            "channels": 4,
            "classes": len(image_set.classes),
            "channels_in": 1,
            "cells": {kind: [node] * 4 for kind in ("accurate", "reduce", "robust")},
            "layout": "A1",
            "auxiliary": False,
            "drop_path": 0.0,
        }
        network = build(description).train()
        optimizer = torch.optim.Adam(network.parameters(), 0.02)
        for _ in range(150):
            batch, labels = image_set.batch(torch.cat([image_set.splits["weights"], image_set.splits["architecture"]]))
            chosen = torch.randint(len(labels), (64,))
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(batch[chosen]), labels[chosen]).backward()
            optimizer.step()
        content = {
            "name": name,
            "network": description,
            "settings": {},
            "images": image_set.digest,
            "data": {"dataset": "digits", "classes": image_set.classes, "shape": [1, 8, 8]},
            "parameters": sum(parameter.numel() for parameter in network.parameters()),
            "macs": 1,
            "selection": {},
        }
        with artifacts.publish(tmp_path_factory.mktemp("model") / name) as folder:
            folder.mkdir()
            for weights in ("best", "last"):
                save_file(network.state_dict(), folder / f"{weights}.safetensors")
            (folder / "history.json").write_text(json.dumps({"epochs": []}))
            artifacts.write(folder, "model", content, {})
        return folder.parent.parent / name

    return write


@pytest.fixture(scope="session")
def models(write_model, images):
    """Two models of the names a and b."""
    return [write_model("a", images, 0), write_model("b", images, 1)]


@pytest.fixture
def kill_and_resume(tmp_path):
    """A function that runs a stage, killed at the given moments and resumed each time; it gives the output's folder.

    What the stage said is in the file `said` beside it.
    """

    def run(stage, inputs, settings, kills, checkpoints=None, **extra):
        script = Path(__file__).with_name("kill_and_resume.py")
        output, checkpoints = str(tmp_path / "out"), checkpoints or str(tmp_path / "checkpoints")
        arguments = [
            stage,
            *(json.dumps(given, default=str) for given in (inputs, extra)),
            settings.model_dump_json(),
            output,
            checkpoints,
        ]
        result = subprocess.run(
            [sys.executable, str(script), *arguments, json.dumps(kills)],
            capture_output=True,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )
        assert result.returncode == 0, result.stderr
        assert "goes on after" in result.stderr
        (tmp_path / "said").write_text(result.stderr)
        return tmp_path / "out"

    return run
