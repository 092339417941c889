"""Every notebook runs from its text, shrunk, and the executed one beside it holds the same cells."""

import nbformat
import pytest

from notebooks.execute import FOLDER, NAMES, execute, images, read_text


def test_no_notebook_is_left_out():
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_text_and_executed_notebook_are_paired(name):
    written = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    cells = [(cell.cell_type, cell.source) for cell in read_text(name).cells]
    assert [(cell.cell_type, cell.source) for cell in written.cells] == cells, f"run: python -m notebooks.execute {name}"
    assert written.metadata.jupytext.formats == "ipynb,py:percent"
    assert len(images(written)) >= 3
    errors = [output for cell in written.cells for output in cell.get("outputs", ()) if output.output_type == "error"]
    assert not errors


@pytest.mark.parametrize("name", NAMES)
def test_runs_shrunk(name):
    notebook = execute(name, fast=True)
    assert len(images(notebook)) >= 3
