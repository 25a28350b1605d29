"""`python -m pipelines run | study | compile | submit | preflight`."""

import argparse
import sys
from typing import Any

from arnas.config import assignments, presets
from arnas.errors import InvalidInput
from pipelines.studies import STUDIES


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and do what it says; returns the exit status."""
    told = _parser().parse_args(arguments)
    try:
        if told.command == "compile":
            from pipelines import generate

            generate.compile_all(told.output, image=told.image, placement=told.placement)
            return 0
        if told.command == "submit":
            return _submit(told)
        if told.command == "preflight":
            return _preflight(told)
        from pipelines import local, studies

        if told.command == "study":
            return local.study(
                told.study,
                told.preset,
                studies.told(told.study, told.values, told.count, told.variants),
                told.output,
                data=told.data,
                overrides=assignments(told.set),
                genotype=told.genotype,
                device=told.device,
            )
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


def _submit(told: argparse.Namespace) -> int:
    from pipelines import compiled, submit

    if told.retries < 0 or (told.retries and not (told.wait or told.follow)):
        raise InvalidInput(f"--retries {told.retries} must be 0 or more, and is of use to who follows; give --wait.")
    place = submit.Place(**{name: getattr(told, name) for name in submit.Place.__dataclass_fields__})
    if told.follow:
        return submit.follow(told.follow, place, told.retries)
    if not told.preset:
        raise InvalidInput(f"Give --preset: {', '.join(presets())}, or a YAML file.")
    pipeline = compiled.find(told.pipeline, told.image, told.placement)
    if told.no_cache:
        pipeline.without_cache()
    arguments = submit.arguments(pipeline, told.preset, assignments(told.set), told.models, told.parameter)
    return submit.submit(pipeline, arguments, place, wait=told.wait, retries=told.retries)


def _preflight(told: argparse.Namespace) -> int:
    from cluster import pods, preflight
    from pipelines import compiled

    pipeline = compiled.find(told.pipeline, told.image, told.placement)
    asked = {name: getattr(told, name) for name in ("namespace", "service_account", "trainer")}
    needs = pipeline.needs(pipeline.told(told.parameter), **asked)
    findings = preflight.run(preflight.Cluster(pods.connect(), told.endpoint), needs)
    if told.json:
        print(preflight.as_json(findings))
    else:
        print("\n".join(finding.line(check) for check, finding in findings.items()))
    return 0 if preflight.ready(findings) else 1


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
    _add_here(run, "out/PRESET")
    run.add_argument("--models", nargs="+", metavar="NAME", help="which of the preset's models to train (default: all)")
    _add_study(commands)
    build = commands.add_parser(
        "compile",
        help="write components/*/component.yaml, their READMEs, pipelines/*.yaml and pipelines/studies/*.yaml",
        description="Write the components, their READMEs and the pipelines. Without options these are the committed "
        "files; a site with a registry or a placement of its own writes them to a folder of its own.",
        epilog="Example: python -m pipelines compile --image registry.example.org/arnas:0.1.0 --placement my.yaml "
        "--output out/compiled",
    )
    build.add_argument("--image", help="the image that the tasks run in, with a version tag or a digest")
    build.add_argument("--placement", metavar="FILE", help="what differs from pipelines/placement.yaml, as YAML")
    build.add_argument("--output", metavar="DIR", help="folder to write to (default: this repository)")
    _add_submit(commands)
    _add_preflight(commands)
    return parser


def _add_here(parser: argparse.ArgumentParser, output: str) -> None:
    """What runs on this machine is told: the same words for run and study."""
    parser.add_argument("--preset", required=True, help=f"settings: {', '.join(presets())}, or a YAML file of your own")
    parser.add_argument(
        "--data",
        metavar="PLACE",
        help="where the data set lies: a folder, or s3://BUCKET/PREFIX; digits comes with the library and needs none",
    )
    parser.add_argument("--output", metavar="DIR", help=f"folder for results, checkpoints and log (default: {output})")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change a setting, such as search.epochs=3; repeatable",
    )
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:N or mps")


def _add_study(commands: Any) -> None:
    study = commands.add_parser(
        "study",
        help="run a study on this machine: one recipe, several variants, one page",
        description="Run a study on this machine, and leave study.html, study.json, study.csv and models/. The same "
        "command run again computes only what is missing.\n\n"
        + "\n".join(
            f"{name}: {about.sentence}" + (f" Values: {about.values}." if about.values else "")
            for name, about in STUDIES.items()
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Example: python -m pipelines study placement 'A1 D2 R2' 'R1 D2 A2' --preset digits",
    )
    study.add_argument("study", choices=list(STUDIES), metavar="STUDY", help=", ".join(STUDIES))
    study.add_argument("values", nargs="*", metavar="VALUE", help="what is varied (default: the study's own)")
    _add_here(study, "out/STUDY-PRESET")
    study.add_argument("--count", type=int, metavar="N", help="study seeds: as many seeds, from 0 (the paper: 40)")
    study.add_argument(
        "--variants", metavar="FILE", help="YAML list of variants instead of values: mappings of name and settings"
    )
    study.add_argument(
        "--genotype",
        metavar="PLACE",
        help="studies placement and transfer: a published genotype, a file, or s3://... (default: arnas-cifar10)",
    )


def _add_submit(commands: Any) -> None:
    submit = commands.add_parser(
        "submit",
        help="send a pipeline to Kubeflow Pipelines",
        description="Send a compiled pipeline to Kubeflow Pipelines and print the link of its run; KFP is found as by "
        "`kfp`. Exit status: 0, 1 where the run failed, 2 where nothing was sent, 130 where a follower stopped.",
        epilog="Example: python -m pipelines submit --preset digits --set search.epochs=3 --parameter gpus=0 --wait",
    )
    submit.add_argument("--preset", help=f"settings: {', '.join(presets())}, or a YAML file of your own")
    submit.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting, such as search.epochs=3"
    )
    submit.add_argument(
        "--models", nargs="+", metavar="NAME", help="which of the preset's models to train (default: all)"
    )
    _add_target(submit)
    submit.add_argument("--experiment", metavar="NAME", help="in which runs are compared (default: Default)")
    submit.add_argument("--run-name", metavar="NAME", help="name of the run (default: the pipeline's, and the time)")
    submit.add_argument("--pipeline-root", metavar="URL", help="where artifacts go, s3://BUCKET/... (default: KFP's)")
    submit.add_argument("--no-cache", action="store_true", help="compute all tasks anew")
    submit.add_argument("--wait", action="store_true", help="follow the run to its end")
    submit.add_argument("--follow", metavar="RUN_ID", help="follow a run that was submitted earlier, and submit none")
    submit.add_argument(
        "--retries", type=int, default=0, metavar="N", help="while following, let KFP go on with a failed run, N times"
    )


def _add_preflight(commands: Any) -> None:
    preflight = commands.add_parser(
        "preflight",
        help="ask a cluster whether it has what a run needs",
        description="Ask a cluster whether it has what a run of a pipeline needs, and change nothing there. One line a "
        "finding. Exit status: 0, 1 where something is missing, 2 where the input is wrong or nobody answers.",
        epilog="Example: python -m pipelines preflight --parameter gpus=2 --parameter 'gpu_pool={pool: gpu}' --json",
    )
    _add_target(preflight)
    preflight.add_argument("--trainer", metavar="NAME", help="TrainingRuntime of Kubeflow Trainer that is needed, too")
    preflight.add_argument("--json", action="store_true", help="one JSON object; cluster/preflight.py explains it")


def _add_target(parser: argparse.ArgumentParser) -> None:
    """Which pipeline, and where: the same words for submit and preflight."""
    parser.add_argument("--pipeline", default="arnas", metavar="NAME", help="arnas (default), a study, or a file")
    parser.add_argument("--image", help="the image that the tasks run in, with a version tag or a digest")
    parser.add_argument("--placement", metavar="FILE", help="what differs from pipelines/placement.yaml, as YAML")
    parser.add_argument(
        "--parameter",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a parameter of the pipeline, such as gpus=1; repeatable",
    )
    parser.add_argument("--endpoint", metavar="URL", help="address of KFP, such as http://localhost:8888")
    parser.add_argument("--namespace", help="yours, where KFP serves several users; else the one KFP is installed in")
    parser.add_argument("--service-account", metavar="NAME", help="as whom the pods work (default: KFP's)")


if __name__ == "__main__":
    sys.exit(main())
