"""The table of benchmarks.gpu, out of its results."""

from typing import Any

from rich.console import Console
from rich.table import Table


def show(results: dict[str, Any]) -> None:
    table = Table(title=f"{results['device']}, {results['peak_tflops']:.1f} TFLOP/s in a matrix product")
    for heading in ("backbone", "batch", "images/s", "plain", "times plain", "of the peak", "GiB", "plain GiB"):
        table.add_column(heading, justify="left" if heading == "backbone" else "right")
    for row in results["steps"]:
        ours, plain, times = row.get("ours", {}), row.get("plain", {}), row.get("times_plain", {})
        table.add_row(
            row["backbone"],
            str(row["batch_size"]),
            number(ours.get("images_per_second", "does not fit"), ".0f"),
            number(plain.get("images_per_second", "does not fit"), ".0f"),
            f"{times['median']:.2f} ({times['spread'][0]:.2f} to {times['spread'][1]:.2f})" if times else "",
            number(ours.get("share_of_peak"), ".0%"),
            number(ours.get("memory_gib"), ".1f"),
            number(plain.get("memory_gib"), ".1f"),
        )
    console = Console(width=120)
    console.print(table)
    fed = results["fed"]
    rates = fed["images_per_second"]
    console.print(
        f"Fed by JPEGs ({fed['backbone']}, batch {fed['batch_size']}, {fed['workers']} workers): "
        f"{rates['JPEGs']:.0f} images/s, {fed['share']:.0%} of the rate on random tensors "
        f"({fed['spread'][0]:.0%} to {fed['spread'][1]:.0%})"
    )


def number(value: float | str | None, digits: str) -> str:
    return value or "" if isinstance(value, str | None) else f"{value:{digits}}"
