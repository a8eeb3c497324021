"""The parts of the loss: each an `Objective` over the same encoded views."""
