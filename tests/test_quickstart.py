"""docs/quickstart.ipynb runs, and what is stored of it is small and tells nothing of a machine."""

import nbformat
import pytest

from tests import quickstart

MOST = 300_000  # bytes


def outputs(notebook):
    """Return the results of each cell."""
    cells = (cell.get("outputs", []) for cell in notebook.cells)
    return [[output for output in cell if output.output_type != "stream"] for cell in cells]


def test_what_is_stored_is_small_and_whole():
    stored = outputs(nbformat.read(quickstart.FILE, as_version=4))
    assert quickstart.FILE.stat().st_size < MOST
    results = [output for cell in stored for output in cell]
    assert sum("image/png" in output.data for output in results) >= 5
    for output in results:
        assert output.output_type == "execute_result"
        assert output.data.keys() <= set(quickstart.KEPT)
        assert "/" not in output.data["text/plain"]


@pytest.mark.slow  # a kernel of its own, which compiles the small model's programs
def test_the_notebook_runs():
    run = outputs(quickstart.run())
    stored = outputs(nbformat.read(quickstart.FILE, as_version=4))
    kinds = [["image/png" in output.data for output in cell] for cell in run]
    assert kinds == [["image/png" in output.data for output in cell] for cell in stored]
    results = [output.data for cell in run for output in cell]
    assert any("use subject_image" in data["text/plain"] for data in results)
    assert any("seed 0" in data.get("text/html", "") for data in results)
