"""Shapes and types of the whole package are checked on every call, from its first import on."""

from jaxtyping import install_import_hook

import tests.shape_checks

install_import_hook("selfpatch", f"{tests.shape_checks.__name__}.check")
