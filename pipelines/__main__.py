"""`python -m pipelines run | compile`."""

import argparse
import sys

from arnas.config import assignments, presets
from arnas.errors import InvalidInput


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and do what it says; returns the exit status."""
    told = _parser().parse_args(arguments)
    try:
        if told.command == "compile":
            from pipelines import generate

            generate.compile_all(told.output, image=told.image, placement=told.placement)
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
    build = commands.add_parser(
        "compile",
        help="write components/*/component.yaml, their READMEs and pipelines/*.yaml",
        description="Write the components, their READMEs and the pipelines. Without options these are the committed "
        "files; a site with a registry or a placement of its own writes them to a folder of its own.",
        epilog="Example: python -m pipelines compile --image registry.example.org/arnas:0.1.0 --placement my.yaml "
        "--output out/compiled",
    )
    build.add_argument("--image", help="the image that the tasks run in, with a version tag or a digest")
    build.add_argument("--placement", metavar="FILE", help="what differs from pipelines/placement.yaml, as YAML")
    build.add_argument("--output", metavar="DIR", help="folder to write to (default: this repository)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
