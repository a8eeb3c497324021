"""The page of a run: how it does, what its patches see, its settings, how to load it; made from its folder alone."""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from selfpatch.commands.callbacks.best_checkpoints import SCORES
from selfpatch.commands.report.picture_blocks import pictures_and_similarity
from selfpatch.commands.show import health_of, how_to_load, last_and_best, length
from selfpatch.config import PretrainConfig
from selfpatch.config.io import read_yaml, to_dict
from selfpatch.output.atomic_files import atomic_write
from selfpatch.output.checkpoint import is_loss
from selfpatch.output.metric_logger import read_metrics
from selfpatch.pretraining.health import State
from selfpatch.pretraining.run_folder import RunFolder
from selfpatch.recipes import RECIPES
from selfpatch.recipes.derive import ResolvedSetting
from selfpatch.visualization.report import blocks
from selfpatch.visualization.report.blocks import Block, Cell, Page, Section
from selfpatch.visualization.report.curves import main_charts, other_charts
from selfpatch.visualization.report.earlier_pictures import EarlierPictures
from selfpatch.visualization.report.page import REPORT, page_or_warning, write_page

DERIVED = "derived_settings.json"
LARGEST_DERIVED = 1_000_000
# Of a run's time; the page at its end is written in any case.
MAX_FRACTION = 0.01
SHOWN_DIFFERENCE = 0.0005  # what is smaller is shown as 0.0 points
TONES: dict[State, blocks.Tone] = {State.OK: "good", State.WARN: "warn", State.COLLAPSED: "bad"}


class RunReport:
    """Writes OUT/report.html at evaluations and at the end; what fails is printed once and costs the page alone."""

    def __init__(self, run: RunFolder, resolved: Sequence[ResolvedSetting], *, first_step: int, writes: bool):
        self._run, self._writes, self._file = run, writes, run.path / REPORT
        self._start, self._spent = time.perf_counter(), 0.0
        self._earlier: EarlierPictures | None = None
        if writes:
            self._guarded(lambda: self._begin(resolved, first_step))

    def _begin(self, resolved: Sequence[ResolvedSetting], first_step: int) -> None:
        self._earlier = EarlierPictures(self._run.pictures, first_step=first_step)
        write_derived(resolved, self._run.path / DERIVED)

    def update(self, step: int) -> dict[str, float]:
        """Keep the pictures of this step and write the page, if that is cheap. A callback of the loop; logs nothing."""
        if self._earlier is not None and self._writes:
            earlier, start = self._earlier, time.perf_counter()
            is_cheap = self._spent <= MAX_FRACTION * (start - self._start)
            if self._guarded(lambda: earlier.keep(step, is_cheap=is_cheap)) and is_cheap:
                self._guarded(lambda: write_page(run_page(self._run, state=f"running, as of step {step}"), self._file))
            self._spent += time.perf_counter() - start
        return {}

    def finish(self, *, state: str) -> bool:
        """Write the page once more, with the newest pictures; returns False if it is not there."""

        def write() -> None:
            if self._earlier is not None:
                self._earlier.keep_last()
            write_page(run_page(self._run, state=state), self._file)

        return self._writes and self._guarded(write)

    def _guarded(self, call: Any) -> bool:
        if not page_or_warning(call, self._file):
            self._writes = False
        return self._writes


def write_derived(resolved: Sequence[ResolvedSetting], path: Path) -> None:
    """Settings that nobody gave, with what they became and why."""
    derived = {setting: {"value": to_dict(value), "reason": reason} for setting, value, reason in resolved}
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(derived, indent=1, default=str) + "\n", encoding="utf-8")


def read_reasons(path: Path) -> dict[str, str]:
    """Why settings are what they are, by their dotted names; empty where that is not known."""
    try:
        values = json.loads(path.read_text(encoding="utf-8")) if path.stat().st_size <= LARGEST_DERIVED else {}
        return {name.replace("-", "_"): str(value["reason"]) for name, value in values.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return {}


def run_page(run: RunFolder, *, state: str) -> Page:
    """
    Args:
        state: whether it trains, in words; a page that is passed on says nothing of processes and machines.
    """
    config, lines = read_yaml(run.config_file), read_metrics(run.metrics_file)
    saved_step, num_steps, num_images = length(run, config)
    done = max(saved_step, lines[-1]["step"] if lines else 0)
    pictures, assets = pictures_and_similarity(run.pictures)
    sections = [
        Section("Overview", overview(config, lines, done=done, num_steps=num_steps)),
        Section("Curves", curves(lines), "Hover for values, drag to zoom all charts, click a name to hide its line."),
        *pictures,
        Section("Load it", [blocks.code(label, line) for label, line in load_lines(run)]),
        *settings_sections(config, read_reasons(run.path / DERIVED)),
    ]
    if others := other_charts(lines):
        sections.append(Section("All other numbers of the log", [blocks.charts(others, small=True)], closed=True))
    images = f", {num_images:,} images" if num_images else ""
    return Page(
        "Pretraining run",
        run.path.absolute().name,
        f"{config.recipe}, {config.backbone.name}{images}; {state}",
        [section for section in sections if section.blocks],
        assets,
    )


def overview(config: PretrainConfig, lines: list[dict[str, Any]], *, done: int, num_steps: int | None) -> list[Block]:
    shown = [blocks.tile("Steps", f"{done:,}", f"of {num_steps:,}" if num_steps else "")]
    found = {one.name: one for one in last_and_best(lines)}
    if score := found.get(SCORES[0]):
        start = next((line[SCORES[0]] for line in lines if line["step"] == 0 and SCORES[0] in line), None)
        gain = "" if start is None else f"{100 * (score.last - start):+.1f} since the start, "
        best = f"{gain}best {100 * score.best:.1f} at step {score.best_step:,}"
        tone: blocks.Tone = ""
        if start is not None and abs(score.last - start) >= SHOWN_DIFFERENCE:
            tone = "good" if score.last > start else "warn"
        shown.append(blocks.tile("In-context mIoU", f"{100 * score.last:.1f} %", best, tone))
    if loss := found.get("loss"):
        shown.append(blocks.tile("Loss", f"{loss.last:.3f}", f"least {loss.best:.3f} at step {loss.best_step:,}"))
    health, words = health_of(lines)
    if lines:
        shown.append(blocks.tile("Health", health.name, words if health is State.OK else "", TONES[health]))
    if rate := next((line["images_per_second"] for line in reversed(lines) if "images_per_second" in line), None):
        shown.append(blocks.tile("Speed", f"{rate:,.0f}", "images per second"))
    content = [blocks.tiles(*shown)]
    if lines and health is not State.OK:
        content.append(blocks.texts([words], tone=TONES[health]))
    rows = [
        [name, number(name, last), step_cell(last_step), number(name, best), step_cell(best_step)]
        for name, last, last_step, best, best_step in found.values()
    ]
    if rows:
        columns = ["number", "last", "at step", "best", "at step"]
        content.append(blocks.table(columns, rows, name="Losses and scores", numeric=4))
    return content


def number(name: str, value: float) -> Cell:
    return Cell(f"{value:.4f}" if is_loss(name) else f"{100 * value:.2f} %", blocks.finite(value))


def step_cell(step: int) -> Cell:
    return Cell(f"{step:,}", step)


def curves(lines: list[dict[str, Any]]) -> list[Block]:
    shown = main_charts(lines)
    return [blocks.charts(shown)] if shown else []


def load_lines(run: RunFolder) -> list[tuple[str, str]]:
    found = list(how_to_load(run))
    labels = ("With its tokens", "In plain timm")
    return list(zip(labels, found, strict=True)) if len(found) == len(labels) else []


def settings_sections(config: PretrainConfig, reasons: Mapping[str, str]) -> list[Section]:
    """Those that differ from the recipe, with the reasons of the derived ones; all others behind a heading."""
    ours = flat(to_dict(config))
    recipe = flat(to_dict(RECIPES[config.recipe]())) if config.recipe in RECIPES else ours
    changed: list[list[Cell | str]] = []
    usual: list[list[Cell | str]] = []
    for name, value in ours.items():
        before, reason = recipe.get(name), reasons.get(name, "")
        is_other = value != before
        cell = Cell(written(value), blocks.finite(value))
        if reason:
            changed.append([name, cell, "derived", reason])
        elif is_other:
            usually = "the recipe leaves it open" if before is None else f"the recipe has {written(before)}"
            changed.append([name, cell._replace(is_best=True), "given", usually])
        else:
            usual.append([name, cell])
    lead = f"Left open by recipe {config.recipe}, or other than in it. config.yaml starts the same run again."
    own = blocks.table(["setting", "value", "origin", "reason"], changed, name="Settings that are not the recipe's")
    rest = blocks.table(["setting", "value"], usual, name="Settings as in the recipe")
    return [
        Section("Settings", [own] if changed else [blocks.texts(["All are those of the recipe."])], lead),
        Section(f"Settings as in recipe {config.recipe}", [rest], closed=True),
    ]


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """By dotted names; groups that are absent are one setting."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict) and value:
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found


def written(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    if isinstance(value, float):
        return f"{value:.6g}"
    return ", ".join(map(written, value)) if isinstance(value, list | tuple) else str(value)
