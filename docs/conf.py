"""How Sphinx builds the manual as a site: ``python -m sphinx -W -c docs . FOLDER``, where README.md is.

The pages are plain Markdown, so that a forge shows them as well. What only a site has is added here: the
navigation, made of the lists of links on ``docs/README.md``, and the docstrings of the API.
"""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import mqauth

if TYPE_CHECKING:
    from sphinx.application import Sphinx
    from sphinx.environment import BuildEnvironment

project = "mqauth"
copyright = "the mqauth authors; Apache-2.0"
release = version = mqauth.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
include_patterns = ["README.md", "CHANGELOG.md", ".github/*.md", "docs/**.md"]
# Folders without pages: looking through them takes longer than reading some pages.
exclude_patterns = [".venv", ".git", ".*_cache", "mqauth", "tests", "integration"]
root_doc = "docs/README"
_LISTS = {root_doc, "docs/decisions/README"}
_API = "docs/reference/api"
html_theme = "furo"
html_title = f"mqauth {version}"
html_extra_path = ["site"]
html_copy_source = False
html_search_scorer = str(Path(__file__).with_name("search_scorer.js"))
# Headings have the anchors that a forge gives them: one link leads to a place on both.
myst_heading_anchors = 6
# The docstrings of a client's wrapper need no client.
autodoc_mock_imports = [
    name
    for name in (
        "aio_pika", "aiokafka", "aiormq", "confluent_kafka", "faststream", "kafka", "opentelemetry", "pamqp",
        "pika", "prometheus_client", "redis", "taskiq", "taskiq_aio_pika", "dramatiq", "celery", "kombu", "amqp",
    )
    if find_spec(name) is None
]  # fmt: skip
autodoc_typehints = "none"
autodoc_member_order = "bysource"
# Fragments of messages and shortened output are no valid JSON, and are shown as they are.
suppress_warnings = ["misc.highlighting_failure"]
_SECTION = re.compile(r"^##? (?P<title>.+)\n(?P<text>(?:(?!## ).*\n?)*)", re.MULTILINE)
_PAGE = re.compile(r"^\* \[[^]]+\]\((?P<page>[^)#:]+)\.md\)", re.MULTILINE)
_DOOR = re.compile(r"^## `(?P<module>[\w.]+)`\n(?:(?!## ).*\n?)*", re.MULTILINE)


def _toctree(section: re.Match[str]) -> str:
    """Return a section, and the pages that it lists as a part of the navigation."""
    pages = "\n".join(dict.fromkeys(_PAGE.findall(section["text"])))
    tree = (
        f"```{{toctree}}\n:hidden:\n:caption: {section['title']}\n\n{pages}\n```\n"
        if pages
        else ""
    )
    return f"{section[0]}\n{tree}\n"


def _docstrings(door: re.Match[str]) -> str:
    """Return the section of a module of the API, and the docstrings of its public names."""
    directive = f".. automodule:: {door['module']}\n   :members:\n   :imported-members:\n   :noindex:"
    return f"{door[0]}\n```{{eval-rst}}\n{directive}\n```\n\n"


def _read(app: Sphinx, page: str, source: list[str]) -> None:
    """Add to a page what only the site has."""
    if page in _LISTS:
        source[0] = _SECTION.sub(_toctree, source[0])
    elif page == _API:
        source[0] = _DOOR.sub(_docstrings, source[0])


def _unsearched(app: Sphinx, env: BuildEnvironment) -> None:
    """Leave the decisions out of the index: who searches has a task, and wants no history."""
    for page in env.found_docs:
        if page.startswith("docs/decisions/"):
            env.metadata[page]["nosearch"] = ""


def setup(app: Sphinx) -> None:
    """Be called by Sphinx."""
    app.connect("source-read", _read)
    app.connect("env-updated", _unsearched)
