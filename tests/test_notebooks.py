"""The notebooks, from their first cell to the last, at small settings."""

import json
import os
import re
import shutil
import sys
from pathlib import Path

import nbclient
import nbformat
import pytest

from conftest import ROOT, process_env

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SMALL = {"STEPS": 24, "SEEDS": 2, "ARTICLES": 400}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """As much of a clone as the notebooks need, shared by all: the last one uses what the first one made."""
    folder = tmp_path_factory.mktemp("notebooks")
    shutil.copytree(ROOT / "configs", folder / "configs")
    return folder


def execute(path: Path, place: Path) -> list[str]:
    """Runs a notebook; returns what each code cell printed. A cell that raises ends the run."""
    notebook = nbformat.read(path, as_version=4)
    (settings,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ()))
    names = re.findall(r"^(\w+) =", settings.source, re.M)
    settings.source = "\n".join(f"{name} = {SMALL[name]}" for name in names)
    for cell in notebook.cells:  # no seed learns anything in so few steps: none is restarted for that
        cell.source = cell.source.replace("electra_jax.finetune ", "electra_jax.finetune --config.max_restarts=0 ")
    own = os.environ.copy()
    path_of_python = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    try:
        os.environ.update(
            process_env({"PATH": path_of_python, "MPLBACKEND": "module://matplotlib_inline.backend_inline"})
        )
        nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(place)}}).execute()
    finally:
        os.environ.clear()
        os.environ.update(own)
    printed = []
    for cell in notebook.cells:
        if cell.cell_type == "code":
            printed.append("".join(output.get("text", "") or str(output.get("data", "")) for output in cell.outputs))
            # A shell command that fails does not raise.
            assert not re.search(r"^error: |Traceback|rror:", printed[-1], re.M), printed[-1]
    return printed


@pytest.mark.slow
def test_quickstart(place):
    printed = execute(ROOT / "notebooks" / "quickstart.ipynb", place)
    assert "finished at step 24" in printed[2]
    assert "image/png" in printed[3]
    assert "step 4" in printed[4] and "step 24" in printed[4] and "rgba(230, 60, 60, 0." in printed[4]
    assert (place / "runs" / "quickstart" / "report.html").exists()


@pytest.mark.slow
def test_your_own_corpus(place):
    printed = execute(ROOT / "notebooks" / "your_own_corpus.ipynb", place)
    assert "9955 documents" in printed[3] and "finished at step 24" in printed[5]
    assert re.search(r"disc_auc +0\.\d+", printed[6])
    assert "▁Paris" in printed[8] and re.search(r"\(1, \d+, 128\)", printed[8])
    assert len(re.findall(r"'[^']+'", printed[9].replace("text/plain", ""))) >= 5
    (there,) = re.findall(r"```python\n(# french.py.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert (place / "french.py").read_text().rstrip() == there.rstrip()  # the README has the same script
    card = (place / "french-electra" / "discriminator" / "README.md").read_text()
    assert "language: fr" in card.replace("- fr", "language: fr")


@pytest.mark.slow
def test_finetune_and_export(place):
    printed = execute(ROOT / "notebooks" / "finetune_and_export.ipynb", place)
    found = json.loads((place / "runs" / "topics" / "results.json").read_text())
    assert f"test accuracy {found['mean']:.4f}" in printed[5] and len(found["values"]) == 2
    assert "image/png" in printed[7]
    labels = [json.loads(line)["label"] for line in printed[9].splitlines() if line.startswith("{")]
    there = re.findall(r"(\w[\w ]*) \| ", printed[10])
    assert len(labels) == 2 and labels == there


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_is_committed(path):
    """The badge opens this very notebook in Colab; of the cells' outputs only pictures and HTML are kept."""
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    badge = f"colab.research.google.com/github/OWNER/electra_jax/blob/main/notebooks/{path.name}"
    assert badge in notebook.cells[0].source
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            assert output.output_type in ("display_data", "execute_result")
            assert output.data.keys() & {"image/png", "text/html"}
