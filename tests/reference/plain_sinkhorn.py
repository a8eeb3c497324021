"""Sinkhorn's assignment written out number by number, from SwAV's algorithm 1."""

import math


def sinkhorn(scores: list[list[float]], num_iterations: int = 3, *, rows_first: bool = False) -> list[list[float]]:
    """Rows are images, columns prototypes: by turns every column gets the same, and every row has the sum 1."""
    table = [[math.exp(score) for score in row] for row in scores]
    if rows_first:
        table = [[value / sum(row) for value in row] for row in table]
    least = 1e-12 * len(scores) / len(scores[0]) if rows_first else 0.0
    for _ in range(num_iterations):
        columns = [max(sum(row[k] for row in table), least) for k in range(len(table[0]))]
        table = [[value / column for value, column in zip(row, columns, strict=True)] for row in table]
        table = [[value / sum(row) for value in row] for row in table]
    return table
