"""LOST with loops over patches: degrees, seed, its expansion, the component around it, and the overlap of boxes."""

import numpy as np


def find_object(vectors: np.ndarray, rows: int, columns: int, num_candidates: int):
    """Degrees [N], seed and box (left, top, right, bottom; exclusive) in patches, of vectors [N, D] in row-major order."""
    n = len(vectors)
    similarity = [[float(vectors[i] @ vectors[j]) for j in range(n)] for i in range(n)]
    degrees = [sum(similarity[i][j] > 0 for j in range(n) if j != i) for i in range(n)]
    order = sorted(range(n), key=lambda i: degrees[i])  # keeps the order of equal ones
    seed = order[0]
    alike = [i for i in order[:num_candidates] if similarity[seed][i] > 0]
    belongs = {j for j in range(n) if sum(similarity[i][j] for i in alike) > 0}

    component, waiting = {seed}, [seed]
    while waiting:
        row, column = divmod(waiting.pop(), columns)
        for r, c in ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)):
            place = r * columns + c
            if 0 <= r < rows and 0 <= c < columns and place in belongs - component:
                component.add(place)
                waiting.append(place)
    rows_of, columns_of = zip(*(divmod(place, columns) for place in component), strict=True)
    return degrees, seed, (min(columns_of), min(rows_of), max(columns_of) + 1, max(rows_of) + 1)


def iou(a, b) -> float:
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    area_a, area_b = ((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return width * height / (area_a + area_b - width * height)
