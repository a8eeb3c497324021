"""What another crop shows at the place of a patch: point by point, through the image."""

import math


def place_of(patch, count, first, last):
    """First and last edge in the image of one of `count` patches between two edges of a crop."""
    return first + (last - first) * patch / count, first + (last - first) * (patch + 1) / count


def token_at(tokens, grid, box, x, y):
    """The token of a crop at a point of the image, bilinear between the middles of patches, constant beyond them."""
    rows, columns = grid
    left, top, right, bottom = box
    across = min(max((x - left) / (right - left) * columns - 0.5, 0), columns - 1)
    down = min(max((y - top) / (bottom - top) * rows - 0.5, 0), rows - 1)
    column, row = min(int(across), max(columns - 2, 0)), min(int(down), max(rows - 2, 0))
    found = 0
    for r, share_down in ((row, 1 - (down - row)), (min(row + 1, rows - 1), down - row)):
        for c, share_across in ((column, 1 - (across - column)), (min(column + 1, columns - 1), across - column)):
            found = found + share_down * share_across * tokens[r * columns + c]
    return found


def mean_token(tokens, grid, box, across, down):
    """The mean over a rectangle of the image, from `across` and `down`, of a crop's tokens: one or more points a patch."""
    (left, top, right, bottom), (rows, columns) = box, grid
    num_x = max(math.ceil(abs(across[1] - across[0]) / (abs(right - left) / columns) - 1e-6), 1)
    num_y = max(math.ceil(abs(down[1] - down[0]) / (abs(bottom - top) / rows) - 1e-6), 1)
    points = [
        (across[0] + (across[1] - across[0]) * (i + 0.5) / num_x, down[0] + (down[1] - down[0]) * (j + 0.5) / num_y)
        for i in range(num_x)
        for j in range(num_y)
    ]
    return sum(token_at(tokens, grid, box, x, y) for x, y in points) / len(points)


def shown_by(tokens, grid, own_box, box, index):
    """What the crop with this box shows where a patch of one with `own_box` lies; None if it shows a part or nothing."""
    row, column = divmod(index, grid[1])
    across = place_of(column, grid[1], own_box[0], own_box[2])
    down = place_of(row, grid[0], own_box[1], own_box[3])
    for edges, first, last in ((across, box[0], box[2]), (down, box[1], box[3])):
        if min(edges) < min(first, last) - 1e-3 or max(edges) > max(first, last) + 1e-3:
            return None
    return mean_token(tokens, grid, box, across, down)
