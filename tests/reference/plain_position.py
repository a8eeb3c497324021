"""Position on tokens by numpy's least squares, row by row, and its removal round by round on the tokens themselves."""

import numpy as np


def positions_of(rows: int, columns: int) -> np.ndarray:
    """[N, 2] from the middle of the first patch to that of the last, on an image from -1 to 1."""
    return np.array(
        [(-1 + 2 * (r + 0.5) / rows, -1 + 2 * (c + 0.5) / columns) for r in range(rows) for c in range(columns)]
    )


def plain_r2(fitted, fitted_positions, tokens, positions) -> float:
    """Mean over both coordinates, of a regression with an intercept."""
    weights, *_ = np.linalg.lstsq(np.c_[fitted, np.ones(len(fitted))], fitted_positions, rcond=None)
    predicted = np.c_[tokens, np.ones(len(tokens))] @ weights
    errors = ((positions - predicted) ** 2).sum(axis=0)
    return float(np.mean(1 - errors / ((positions - positions.mean(axis=0)) ** 2).sum(axis=0)))


def plain_removal(tokens, positions, num_rounds: int) -> np.ndarray:
    """The tokens after so many rounds: fit, take two directions at right angles, subtract each token's part in them."""
    for _ in range(num_rounds):
        centered = tokens - tokens.mean(axis=0)
        weights, *_ = np.linalg.lstsq(centered, positions - positions.mean(axis=0), rcond=1e-9)
        first = weights[:, 0] / np.linalg.norm(weights[:, 0])
        second = weights[:, 1] - (weights[:, 1] @ first) * first
        second /= np.linalg.norm(second)
        tokens = np.array([t - (t @ first) * first - (t @ second) * second for t in tokens])
    return tokens
