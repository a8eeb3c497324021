"""Shapes and types of the whole package are checked on every call, from its first import on."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does, and before anything imports torch

from jaxtyping import install_import_hook

import tests.shape_checks

install_import_hook("selfpatch", f"{tests.shape_checks.__name__}.check")
