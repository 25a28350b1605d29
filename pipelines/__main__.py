"""`python -m pipelines run | compile`."""

import argparse
import sys
from importlib import import_module
from pathlib import Path

from arnas.config import assignments, presets
from arnas.errors import InvalidInput

ROOT = Path(__file__).resolve().parents[1]
STAGES = ("prepare", "search", "derive", "retrain", "whitebox", "merge", "blackbox", "transfer", "report")
PIPELINES = ("arnas", "transfer")


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and do what it says; returns the exit status."""
    told = _parser().parse_args(arguments)
    try:
        if told.command == "compile":
            compile_all()
            return 0
        from pipelines import local

        return local.run(
            told.preset,
            told.output,
            data=told.data,
            overrides=assignments(told.set),
            models=told.models,
            device=told.device,
        )
    except InvalidInput as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def compile_all(root: Path = ROOT) -> list[Path]:
    """Write the YAML of every component and pipeline below `root`; returns the files."""
    from kfp import compiler

    sources = {f"components/{name}/component.yaml": (f"components.{name}.component", name) for name in STAGES}
    sources |= {f"pipelines/{name}.yaml": (f"pipelines.{name}", name) for name in PIPELINES}
    for path, (module, name) in sources.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        compiler.Compiler().compile(getattr(import_module(module), name), str(root / path))
    return [root / path for path in sources]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pipelines", description="The ARNAS pipeline on Kubeflow, or on this machine."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser(
        "run",
        help="run the whole pipeline on this machine",
        description="Run the whole pipeline on this machine: prepare, search, derive, train, attack, report. The same "
        "command run again goes on where it stopped, and reuses what is done.",
        epilog="Example: python -m pipelines run --preset digits --output out/demo --set search.epochs=3",
    )
    run.add_argument("--preset", required=True, help=f"settings: {', '.join(presets())}, or a YAML file of your own")
    run.add_argument(
        "--data", metavar="PATH", help="where the data set lies; digits comes with the library and needs none"
    )
    run.add_argument("--output", metavar="DIR", help="folder for results, checkpoints and log (default: out/PRESET)")
    run.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change a setting, such as search.epochs=3; repeatable",
    )
    run.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:N or mps")
    run.add_argument("--models", nargs="+", metavar="NAME", help="which of the preset's models to train (default: all)")
    commands.add_parser("compile", help="write components/*/component.yaml and pipelines/*.yaml anew")
    return parser


if __name__ == "__main__":
    sys.exit(main())
