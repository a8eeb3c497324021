"""Shapes and types of the whole package are checked on every call, from its first import on."""

import os

if "PYTEST_XDIST_WORKER" in os.environ:  # beside others: a thread each
    os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does, and before anything imports torch
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS refuses deterministic algorithms

import pytest
from jaxtyping import install_import_hook

import tests.shape_checks

install_import_hook("selfpatch", f"{tests.shape_checks.__name__}.check")


@pytest.fixture(autouse=True)
def float32_unless_asked_for(monkeypatch):
    """Numbers are compared that a CPU with bf16 would round otherwise: to pretraining none has it here."""
    monkeypatch.setattr("selfpatch.training.precision.cpu_bf16_instructions", lambda: None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that need a GPU are skipped where there is none; `python -m pytest -m gpu` runs them where there is one."""
    import torch

    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a GPU"))
