"""What the pages quote is what the programs say."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
QUOTED = [line.removeprefix("> ") for line in PAGE.splitlines() if line.startswith("> ")]
QUOTED += re.findall(r'"([^"\n]+)"', "\n".join(line for line in PAGE.splitlines() if line.startswith("| ")))
SOURCES = [
    file for package in ("arnas", "cluster", "components", "pipelines") for file in (ROOT / package).rglob("*.py")
]
TEXTS = [
    node.value
    for file in SOURCES
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
    if isinstance(node, ast.Constant) and isinstance(node.value, str)
]


def said(sentence):
    """Whether each part of a sentence, between the dots of what differs, stands in a text of ours."""
    parts = [part.strip(" ():;,.") for part in sentence.split("…")]
    return all(any(part in text for text in TEXTS) for part in parts if len(part) > 3)


def test_a_sentence_that_nobody_says_is_noticed():
    assert said("… GPU(s) were asked for and … are visible")
    assert not said("… GPU(s) were asked for and … are hidden")


@pytest.mark.parametrize("sentence", QUOTED)
def test_what_is_quoted_is_said(sentence):
    assert said(sentence)


def test_the_page_covers_what_users_ask_about():
    assert len(QUOTED) > 15


@pytest.mark.parametrize(
    "page",
    [
        ROOT / "README.md",
        ROOT / "benchmarks" / "README.md",
        *ROOT.glob("docs/*.md"),
        *ROOT.glob("components/*/README.md"),
    ],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_every_link_leads_to_a_file(page):
    links = re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8"))
    assert [link for link in links if "://" not in link and not (page.parent / link).exists()] == []
