"""Exported programs (torch.export, .pt2) of others, read so that nothing in them is run but the network.

torch.export.load is for files that one trusts. It unpickles tensor subclasses, custom objects, example inputs and older
files, loads compiled libraries, evaluates sizes and guards as Python, and finds operators by name from the module
torch, from which a name leads to all of Python. Here only this is taken out of a file: a graph of ATen operators, its
sizes, and tensors as raw bytes, every text in it of harmless form. torch reads an archive written anew of these.

Read against torch 2.15: torch/export/pt2_archive/_package.py, torch/_export/serde/serialize.py.
"""

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.export.pt2_archive import PT2ArchiveReader, PT2ArchiveWriter, constants
from torch.export.pt2_archive._package import load_pt2
from torch.utils import _pytree as pytree

from arnas.errors import InvalidInput

#: Forms of text by the key that it stands under; all other text, and every key, is a dotted path
_FORMS = {
    key: re.compile(form, re.ASCII)
    for key, form in {
        "target": r"torch\.ops\.aten\.((?!from_file)_?[a-z]\w*|__(and|or|xor)__)\.[A-Za-z]\w*"
        r"|_operator\.(getitem|add|sub|mul|floordiv|truediv|mod|neg|pos|abs|eq|ne|lt|le|gt|ge|and_|or_)"
        r"|math\.(ceil|floor|trunc)|torch\.sym_[a-z]+",
        "as_operator": r"",
        "expr_str": r"(Symbol\('[a-z]+\d+'(, [a-z]+=(True|False))*\)|Integer|Rational|Add|Mul|Pow|Max|Min|Mod|PythonMod"
        r"|FloorDiv|CeilDiv|[suz]?\d+|[-+*/(), ])+",
        "name": r"([A-Za-z_]\w*)?",
        "as_name": r"[A-Za-z_]\w*",
        "as_string": r"[\w.,<>=+ -]*",
        "torch_version": r"[\w.<=+]*",
    }.items()
}
_PATH = re.compile(r"[\w.]*", re.ASCII)

# images alone, by position, and logits alone
_CALL = {
    "in_spec": pytree.treespec_dumps(pytree.tree_structure(((0,), {}))),
    "out_spec": pytree.treespec_dumps(pytree.tree_structure(0)),
}

# where the tensors lie: the folder, the file that lists them, and what each of their files is called
_TENSORS = (
    (constants.WEIGHTS_DIR, constants.WEIGHTS_CONFIG_FILENAME_FORMAT, constants.WEIGHT_FILENAME_PREFIX),
    (constants.CONSTANTS_DIR, constants.CONSTANTS_CONFIG_FILENAME_FORMAT, constants.TENSOR_CONSTANT_FILENAME_PREFIX),
)


def read(path: str | Path) -> ExportedProgram:
    """Read a program from images [N, C, H, W] to logits, on the CPU, for batches of any size from 2.

    Raises:
        InvalidInput: It cannot be read, holds more than a network of ATen operators, takes or returns anything but one
            tensor, lies on another device, or has a fixed or bounded batch size.
    """
    try:
        return _read(str(path))
    except InvalidInput:
        raise
    except Exception as error:  # of whatever kind, since the file may hold anything
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].split(". ")[0]
        raise InvalidInput(
            f"{path} is no exported program that torch {torch.__version__} reads ({reason}); write it with "
            "torch.export.save, in this version of torch or one not much older."
        ) from None


def _read(path: str) -> ExportedProgram:
    archive, buffer = PT2ArchiveReader(path), io.BytesIO()
    with PT2ArchiveWriter(buffer) as clean:
        clean.write_string(constants.ARCHIVE_VERSION_PATH, archive.read_string(constants.ARCHIVE_VERSION_PATH))
        for folder, format, prefix in _TENSORS:
            listed = json.loads(archive.read_bytes(format.format("model")))
            _require_harmless(listed, path)
            clean.write_string(format.format("model"), json.dumps(listed))
            for name in sorted({_raw(entry, prefix, path) for entry in listed["config"].values()}):
                clean.write_bytes(folder + name, archive.read_bytes(folder + name))
        file = constants.MODELS_FILENAME_FORMAT.format("model")
        model = _bare(json.loads(archive.read_bytes(file)), path)
        _require_any_batch(model, path)
        clean.write_string(file, json.dumps(model))
        clean.write_bytes(constants.SAMPLE_INPUTS_FILENAME_FORMAT.format("model"), b"")
    buffer.seek(0)
    return load_pt2(buffer).exported_programs["model"]


def _raw(entry: dict[str, Any], prefix: str, path: str) -> str:
    """Name of the file of a tensor, which holds its bytes."""
    name: str = entry["path_name"]
    if entry["use_pickle"] or not name.startswith(prefix):
        raise InvalidInput(f"{path} holds pickled objects, which are not opened; export a network of plain tensors.")
    return name


def _bare(model: dict[str, Any], path: str) -> dict[str, Any]:
    """The program, all of it harmless, without what only describes it or is evaluated as Python."""
    module = model["graph_module"]
    root = next(entry for entry in module["module_call_graph"] if entry["fqn"] == "")
    if any(json.loads(root["signature"].pop(side)) != json.loads(spec) for side, spec in _CALL.items()):
        raise InvalidInput(
            f"{path} must take images alone, by position, and return logits alone; export a module with such a forward."
        )
    module |= {"module_call_graph": [root], "metadata": {}, "treespec_namedtuple_fields": {}}
    model |= {"graph_module": module, "guards_code": []}
    for node in _dictionaries(module["graph"]):
        if "metadata" in node:
            node["metadata"] = {}
    _require_harmless(model, path)
    root["signature"] |= _CALL
    return model


def _dictionaries(part: Any) -> Iterator[dict[str, Any]]:
    if isinstance(part, dict):
        yield part
    for value in part.values() if isinstance(part, dict) else part if isinstance(part, list) else ():
        yield from _dictionaries(value)


def _require_harmless(part: Any, path: str, key: str = "") -> None:
    """Every text has the form that belongs to its key, and no tensor lies on a GPU."""
    if isinstance(part, dict):
        for name, value in part.items():
            _require_harmless(name, path)
            _require_harmless(value, path, name)
    elif isinstance(part, list):
        for value in part:
            _require_harmless(value, path, key)
    elif key == "type" and part != "cpu":
        raise InvalidInput(
            f"{path} was exported on {part!r}; export it on the CPU (model.cpu()), it runs anywhere then."
        )
    elif isinstance(part, str) and not _FORMS.get(key, _PATH).fullmatch(part):
        raise InvalidInput(
            f"{path} holds {part[:80]!r} ({key or 'a name'}), which is not of a plain graph of ATen operators; hand "
            "the network over by --model and --state."
        )


def _require_any_batch(model: dict[str, Any], path: str) -> None:
    graph = model["graph_module"]["graph"]
    name = next(
        spec["user_input"]["arg"]["as_tensor"]["name"]
        for spec in model["graph_module"]["signature"]["input_specs"]
        if "user_input" in spec
    )
    size = graph["tensor_values"][name]["sizes"][0]
    if "as_int" in size:
        takes = f"batches of {size['as_int']} images alone"
    else:
        text, ranges = size["as_expr"]["expr_str"], model["range_constraints"]
        bounds: dict[str, Any] = next((ranges[name] for name in ranges if f"'{name}'" in text), {})
        least, most = bounds.get("min_val") or 0, bounds.get("max_val")
        if least <= 2 and most is None:  # 2 is what torch.export assumes of Dim.AUTO and Dim.DYNAMIC
            return
        takes = f"{least} images at once or more" if most is None else f"{least} to {most} images at once"
    raise InvalidInput(
        f"{path} takes {takes}; export it for any number, with "
        'dynamic_shapes=({0: torch.export.Dim("batch")},) and two images as the example.'
    )
