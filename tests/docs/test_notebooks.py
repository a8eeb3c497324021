"""The notebooks of the documentation run from the first cell to the last, on tiny data, and show what they should."""

import json
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs/notebooks"
TINY = {
    "start.ipynb": """
OUT, NUM_IMAGES, STEPS = Path("out"), 24, 4
SETTINGS = {"optim.steps": 4, "optim.batch_size": 8, "backbone.depth": 1, "crops.num_local": 1, "run.log_every": 2,
            "efficiency.num_workers": 0, "run.device": "cpu"}
""",
    "study.ipynb": """
OUT, NUM_IMAGES, IMAGES, LABELS, INIT_FROM = Path("out"), 24, None, None, None
STUDY = {"steps": 2, "seeds": 1, "linear_steps": 2, "label_shares": (1,), "image_size": 48, "candidates": ("random", "dino-small"),
         "set": ("crops.global-size=32", "crops.local-size=16", "crops.num-local=1", "optim.batch-size=4",
                 "efficiency.num-workers=0", "backbone.depth=1", "backbone.embed-dim=32", "backbone.num-heads=2",
                 "backbone.patch-size=8")}
""",
}


@pytest.fixture(autouse=True)
def _package_of_this_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def run(name: str, folder: Path) -> nbformat.NotebookNode:
    """The notebook with the outputs of its cells; the cell of its parameters is followed by tiny ones."""
    notebook = nbformat.read(FOLDER / name, as_version=4)
    (parameters,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
    parameters.source += TINY[name]
    NotebookClient(notebook, timeout=280, resources={"metadata": {"path": str(folder)}}).execute()
    return notebook


def texts(notebook: nbformat.NotebookNode) -> str:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "".join(output.get("text", "") + output.get("data", {}).get("text/plain", "") + "\n" for output in outputs)


def pictures(notebook: nbformat.NotebookNode) -> int:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return sum(any(kind.startswith("image/") for kind in output.get("data", {})) for output in outputs)


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.ipynb")), ids=lambda path: path.name)
def test_notebooks_are_kept_without_outputs(path):
    notebook = json.loads(path.read_text())
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in notebook["cells"])
    assert path.name in TINY


@pytest.mark.timeout(600)
def test_start(tmp_path):
    notebook = run("start.ipynb", tmp_path)
    text = texts(notebook)
    assert "step 4/4" in text and "step 2/4" not in text  # one line, replaced in place
    assert "torch.Size([2, 96, 96])" in text and "(8, 12)" in text
    assert pictures(notebook) == 6
    assert "timm:vit_tiny_patch16_224" in (tmp_path / "out/table.md").read_text()


@pytest.mark.timeout(600)
def test_study(tmp_path):
    notebook = run("study.ipynb", tmp_path)
    assert (tmp_path / "out/study/best/backbone.safetensors").is_file()
    assert len(list((tmp_path / "out/features/patches").glob("*.npy"))) == 24
    assert "| dino-small |" in "".join(
        output["data"].get("text/markdown", "")
        for cell in notebook.cells for output in cell.get("outputs", []) if "data" in output
    )  # fmt: skip
    assert pictures(notebook) == 1
