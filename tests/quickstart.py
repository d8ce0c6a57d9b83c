"""docs/quickstart.ipynb: run it, and keep of its outputs what every viewer shows.

`python -m tests.quickstart` runs the notebook and writes it back with its texts and its pictures,
in few colours. The HTML of a result is left out, which would hold each picture once more, and so
are progress bars.
"""

import base64
import io
import os
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image

ROOT = Path(__file__).parent.parent
FILE = ROOT / "docs" / "quickstart.ipynb"
KEPT = ("image/png", "text/plain")


def run() -> nbformat.NotebookNode:
    """Return the notebook with its outputs; an exception where a cell fails."""
    notebook = nbformat.read(FILE, as_version=4)
    where = {"metadata": {"path": str(FILE.parent)}}
    # The checkout's own ic_jax, and the programs that tests have compiled.
    environment = {"PYTHONPATH": str(ROOT), "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".cache/jax")}
    client = NotebookClient(notebook, timeout=600, resources=where)
    client.execute(env=os.environ | environment)
    return notebook


def keep(notebook: nbformat.NotebookNode) -> None:
    """Reduce a notebook to what is stored."""
    notebook.metadata = {"kernelspec": notebook.metadata.kernelspec}
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type != "code":
            continue
        cell.outputs = [output for output in cell.outputs if output.output_type != "stream"]
        for output in cell.outputs:
            if "image/png" in output.data:
                output.data["text/plain"] = "a picture"
                output.data["image/png"] = _small(output.data["image/png"])
            output.data = {kind: output.data[kind] for kind in KEPT if kind in output.data}


def _small(png: str) -> str:
    """Return a picture of 64 colours, which is enough to look at and a quarter of the bytes."""
    picture = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    file = io.BytesIO()
    picture.quantize(64, dither=Image.Dither.NONE).save(file, format="PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


if __name__ == "__main__":
    executed = run()
    keep(executed)
    nbformat.write(executed, FILE)
