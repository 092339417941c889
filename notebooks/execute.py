"""Execute the notebooks: the text NAME.py (jupytext's percent format) becomes NAME.ipynb beside it, with all its images.

    python -m notebooks.execute [NAME ...] [--fast] [--out DIR]

--fast shrinks every notebook to what CI executes; use it with --out, so that the images of a full run stay. A full run of
`quickstart` also writes its first image as quickstart.png. Needs the extra `notebooks`.
"""

import argparse
import base64
import io
import os
import pathlib
import time

import jupytext
import nbformat
from nbclient import NotebookClient
from PIL import Image

FOLDER = pathlib.Path(__file__).parent
NAMES = ("quickstart", "anatomy", "porting", "training", "post_training", "paper")
FAST = "NEXTSTEP_NOTEBOOKS_FAST"  # the environment variable that plots.py reads
SECONDS = 1800  # longest time one cell may take


def read_text(name: str) -> nbformat.NotebookNode:
    """The notebook NAME as its text has it, without outputs; the ids of its cells are their numbers."""
    notebook = jupytext.read(FOLDER / f"{name}.py")
    for number, cell in enumerate(notebook.cells):
        cell.id = f"{name}-{number}"
    return notebook


def execute(name: str, fast: bool = False) -> nbformat.NotebookNode:
    """Run the text of notebook NAME in a fresh kernel, inside notebooks/. A cell that raises ends it: CellExecutionError."""
    notebook = read_text(name)
    client = NotebookClient(
        notebook, timeout=SECONDS, kernel_name="python3", record_timing=False, resources={"metadata": {"path": str(FOLDER)}}
    )
    client.execute(env=os.environ | {FAST: str(int(fast)), "TQDM_DISABLE": "1"})
    for cell in notebook.cells:
        if cell.cell_type == "code":  # what libraries say about the machine is not part of the notebook
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
            for output in cell.outputs:
                if "image/png" in output.get("data", {}):
                    output.data["image/png"] = _smaller(output.data["image/png"])
    notebook.metadata.pop("language_info", None)  # of the Python that happened to run it
    return notebook


def images(notebook: nbformat.NotebookNode) -> list[bytes]:
    """The PNG files of a notebook's figures, in order."""
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return [base64.b64decode(output.data["image/png"]) for output in outputs if "image/png" in output.get("data", {})]


def _smaller(png: str) -> str:
    """A PNG, in base64, with a palette of 256 colors: a third of the bytes."""
    image = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    image.save(buffer := io.BytesIO(), "png", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)} [all]")
    parser.add_argument("--fast", action="store_true", help="shrink sizes, as CI does")
    parser.add_argument("--out", type=pathlib.Path, default=FOLDER, help="folder for the executed notebooks [notebooks/]")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(NAMES):
        parser.error(f"no such notebook: {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in arguments.names or NAMES:
        start = time.perf_counter()
        notebook = execute(name, arguments.fast)
        path = arguments.out / f"{name}.ipynb"
        nbformat.write(notebook, path)
        print(f"{path}: {len(images(notebook))} images, {time.perf_counter() - start:.0f} s, {path.stat().st_size:,} bytes")
        if name == "quickstart" and not arguments.fast:
            (arguments.out / "quickstart.png").write_bytes(images(notebook)[0])


if __name__ == "__main__":
    main()
