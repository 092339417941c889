"""The documentation builds without a warning, and its pages load nothing from elsewhere."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
LOADING = re.compile(
    r"<(?:script|img|link|iframe|source|video|audio)\b[^>]*?\b(?:src|href)=[\"']?((?:https?:)?//[^\"' >]+)", re.I
)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    for package in ("mkdocs", "material", "mkdocstrings"):
        pytest.importorskip(package, reason="the extra docs is not installed")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_pages_load_nothing_from_other_hosts(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > 10
    found = {(page.name, address) for page in pages for address in LOADING.findall(page.read_text())}
    found |= {
        (style.name, url) for style in site.rglob("*.css") for url in re.findall(r"url\((https?:[^)]*)", style.read_text())
    }
    assert not found


def test_every_command_and_the_docstrings_are_there(site):
    commands, api = (site / "cli.html").read_text(), (site / "api.html").read_text()
    for name in ("generate", "data encode", "evaluate shapes", "export-run"):
        assert f"nextstep-jax {name}" in commands
    assert "--prompt-suffix" in commands and "nextstep_14b_stage1" in commands
    assert "load_params" in api and "GenerationConfig" in api
