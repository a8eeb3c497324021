"""Where a test of a device runs: its body is tried on the CPU in the ordinary suite, and on a GPU by `-m gpu`."""

import pytest

GPU = pytest.param("cuda", marks=pytest.mark.gpu)
DEVICES = ["cpu", GPU]
# Compilers and drivers warn of what is theirs to mend, each machine in its own way.
THEIR_WARNINGS = pytest.mark.filterwarnings("default")
