import pytest
from reporting.fixtures import write_run

from arnas.stages import report


@pytest.fixture(scope="session")
def written(tmp_path_factory):
    """A whole run's artifacts."""
    return write_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="session")
def reported(written, tmp_path_factory):
    """The page and the scores of the whole run, as files."""
    folder = tmp_path_factory.mktemp("report")
    report.run(folder / "report.html", folder / "scores.json", **written.arguments())
    return folder
