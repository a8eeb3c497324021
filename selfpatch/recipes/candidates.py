"""Candidates of a study: weights as they are, random weights, and recipes; which ones are tried if nobody says."""

from collections.abc import Sequence

from selfpatch.errors import UserError, unknown_name
from selfpatch.recipes import RECIPES
from selfpatch.recipes.continue_from import CONTINUE_RECIPES

AS_IS = "as-is"  # the weights that are given, not trained
RANDOM = "random"  # weights as they are drawn, not trained: the floor
UNTRAINED = (AS_IS, RANDOM)

WITH_WEIGHTS = (AS_IS, "continue-dino", "continue-selfpatch", "dino-selfpatch-small")
WITHOUT_WEIGHTS = (RANDOM, "dino-small", "dino-selfpatch-small")
FROM_SCRATCH = "dino-small"  # its network is that of random weights, where no candidate is from scratch


def find_candidates(given: Sequence[str], *, has_weights: bool) -> tuple[str, ...]:
    """The candidates that are given, or those for weights or none.

    Raises:
        UserError: an unknown candidate, one that needs weights where there are none, or fewer than two.
    """
    names: Sequence[str] = given or (WITH_WEIGHTS if has_weights else WITHOUT_WEIGHTS)
    allowed = [*UNTRAINED, *RECIPES]
    if unknown := [name for name in names if name not in allowed]:
        raise unknown_name("candidate", unknown[0], allowed)
    for name in names:
        if needs_weights(name) and not has_weights:
            raise UserError(
                f"candidate {name} is about weights, and none are given; name them by --init-from: a run folder, an "
                "exported file, a checkpoint or folder of another program, or timm:NAME.TAG; or leave it out"
            )
    if len(names) < 2:
        raise UserError(f"one candidate, {names[0]}, cannot be compared; give two or more, or none for the usual ones")
    return tuple(names)


def needs_weights(name: str) -> bool:
    return name == AS_IS or name in CONTINUE_RECIPES


def trains(name: str) -> bool:
    return name not in UNTRAINED


def recipe_of(name: str, names: Sequence[str]) -> str:
    """The recipe of a candidate among these; of random weights the first from scratch, for its network."""
    if name != RANDOM:
        return name
    return next((other for other in names if trains(other) and not needs_weights(other)), FROM_SCRATCH)


def reference_of(names: Sequence[str]) -> str:
    """The candidate that others are compared with: the one that costs nothing."""
    return next((name for name in UNTRAINED if name in names), names[0])


def describe_candidate(name: str, weights: str | None) -> str:
    """As the subject of a sentence.

    Args:
        weights: what the weights are called.
    """
    if name == AS_IS:
        return f"{weights} as it is"
    if name == RANDOM:
        return "random weights"
    return f"continuing {weights} by {name}" if name in CONTINUE_RECIPES else f"from scratch by {name}"
