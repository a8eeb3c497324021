"""Seeded mutations: of bytes, and of trees of values as JSON and YAML hold them."""

import copy
from typing import Any

import numpy as np

DEEP: Any = []
for _ in range(400):
    DEEP = [DEEP]
VALUES: list[Any] = [
    0, -1, 1, 2**31, 2**63, 10**30, 1_000_000, 1e308, -1e308, 1e-320, float("nan"), float("inf"), 0.5, None, True, "",
    "../../canary", "/etc/passwd", "\x1b[31m", "a" * 100_000, "\ud800", "=1+1", [], {}, [0] * 100, {"a": {"b": 1}}, DEEP,
]  # fmt: skip
EXTREMES = [b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\0\x01", b"\x01\0\0\0"]


def mutated(content: bytes, rng: np.random.Generator, other: bytes = b"") -> bytes:
    """One to three of: bits turned, numbers made extreme, cut, doubled, swapped; half of them near the start."""
    data = bytearray(content)
    for _ in range(rng.integers(1, 4)):
        size = len(data)
        if size < 8:
            break
        reach = min(size, 256) if rng.random() < 0.5 else size
        place = int(rng.integers(0, reach))
        match rng.integers(0, 7):
            case 0 | 1:
                for _ in range(rng.integers(1, 9)):
                    data[int(rng.integers(0, reach))] ^= 1 << int(rng.integers(0, 8))
            case 2 | 3:
                extreme = EXTREMES[rng.integers(0, len(EXTREMES))][: rng.choice([1, 2, 4])]
                data[place : place + len(extreme)] = extreme
            case 4:
                del data[place:]
            case 5:
                end = int(rng.integers(place, size))
                data[place:place] = bytes(data[place:end]) * int(rng.integers(1, 4))
            case 6:
                end = int(rng.integers(place, min(size, place + 64)))
                data[place:end] = other[place:end] if rng.random() < 0.5 else rng.bytes(end - place)
    return bytes(data)


def mutated_tree(tree: Any, rng: np.random.Generator) -> Any:
    """One or two values replaced, taken out, or put under another name."""
    tree = copy.deepcopy(tree)
    for _ in range(rng.integers(1, 3)):
        node = tree
        while True:
            keys = list(node) if isinstance(node, dict) else list(range(len(node))) if isinstance(node, list) else []
            if not keys:
                break
            key = keys[rng.integers(0, len(keys))]
            if isinstance(node[key], dict | list) and node[key] and rng.random() < 0.8:
                node = node[key]
                continue
            value = VALUES[rng.integers(0, len(VALUES))]
            match rng.integers(0, 6) if isinstance(node, dict) else 0:
                case 4:
                    del node[key]
                case 5:
                    node[f"{key}\x1b"] = node.pop(key)
                case _:
                    node[key] = value
            break
    return tree
