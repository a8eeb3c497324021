"""The ranking of the candidates: mean scores, paired differences with intervals, and what they allow to say."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from selfpatch.data.image_folder import plural
from selfpatch.evaluation.segmentation.intervals import LEVEL, Difference, difference_of_overlaps
from selfpatch.evaluation.segmentation.overlaps import unpack
from selfpatch.output.markdown import as_markdown, mean_and_spread, with_interval
from selfpatch.recipes.candidates import AS_IS, RANDOM, describe_candidate, reference_of, trains

# The scores whose mean ranks candidates: both tasks with all labels.
HEADLINE = ("in-context 1", "linear 1")
# With fewer validation images a bootstrap over them is too narrow.
MANY_IMAGES = 20

UNDECIDED = "no difference that these labels can show"

Records = dict[str, dict[int, dict[str, Any]]]  # candidate -> seed -> record of a cell that is done


class Ranked(NamedTuple):
    """A candidate's place.

    Args:
        mean: mIoU, a fraction: over seeds, and over the scores that rank.
        by_score: mIoU by score and seed.
        against_reference, against_best: of the headline; None: of itself, or no seed in common.
        by_share: against the reference, by score.
    """

    candidate: str
    seeds: list[int]
    mean: float
    by_score: dict[str, list[float]]
    against_reference: Difference | None
    against_best: Difference | None
    by_share: dict[str, Difference]


def rank(records: Records, columns: list[str]) -> list[Ranked]:
    """The best first."""
    means = {
        name: float(np.mean([[record["scores"][column]["mIoU"] for column in HEADLINE] for record in by_seed.values()]))
        for name, by_seed in records.items()
    }
    order = sorted(means, key=lambda name: -means[name])
    best, reference = next((name for name in order if name != RANDOM), order[0]), reference_of(list(records))
    return [
        Ranked(
            name,
            sorted(records[name]),
            means[name],
            {column: values(records[name], column) for column in columns},
            difference(records, name, reference, HEADLINE),
            difference(records, name, best, HEADLINE),
            {
                column: found
                for column in columns
                if (found := difference(records, name, reference, (column,))) is not None
            },
        )
        for name in order
    ]


def values(by_seed: dict[int, dict[str, Any]], column: str) -> list[float]:
    return [by_seed[seed]["scores"][column]["mIoU"] for seed in sorted(by_seed)]


def difference(records: Records, name: str, other: str, columns: tuple[str, ...]) -> Difference | None:
    """Paired over seeds and validation images, of the mean of the columns; None: with itself, or without a pair.

    Weights as they are have one seed, which stands for all.
    """
    if name == other:
        return None
    seeds = {n: sorted(records[n]) for n in (name, other)}
    common = [s for n, o in ((name, other), (other, name)) if o == AS_IS for s in seeds[n]] or [
        seed for seed in seeds[name] if seed in seeds[other]
    ]
    if not common:
        return None
    first, second = (
        np.stack([[overlaps(records[n], seed, column) for seed in common] for column in columns]) for n in (name, other)
    )
    if first.shape[2] < 2:  # one image cannot say how others would score
        return difference_of_overlaps(first, second)._replace(low=None, high=None)
    return difference_of_overlaps(first, second, images_alone=True)


def overlaps(by_seed: dict[int, dict[str, Any]], seed: int, column: str) -> Int[np.ndarray, "G 2 C"]:
    record = by_seed.get(seed) or next(iter(by_seed.values()))  # weights as they are
    return unpack(record["scores"][column]["overlaps"])


def verdict(found: Difference) -> str:
    """ "better", "worse" or "undecided"."""
    if found.low is None or found.high is None:
        return "undecided"
    return "better" if found.low > 0 else "worse" if found.high < 0 else "undecided"


def interval_sentence(ranking: list[Ranked], num_val: int) -> str:
    """Which interval it is, and of what."""
    num_seeds = max(len(ranked.seeds) for ranked in ranking)
    if num_seeds == 1:
        drawn = "validation images alone, as there is one seed: the chance of a training is not in them"
    else:
        drawn = f"validation images and {num_seeds} seeds"
    few = (
        f"; {plural(num_val, 'validation image is', 'validation images are')} few, so that they are rather too narrow"
        if num_val < MANY_IMAGES
        else ""
    )
    return (
        f"intervals of {LEVEL:.0%} by a paired bootstrap over {drawn}{few}; mIoU is the mean of in-context and linear"
    )


def sentences(ranking: list[Ranked], *, weights: str | None, best_file: str) -> list[str]:
    """The answer in words: what training gave over what costs nothing, where the others are, which file to take."""
    names = [ranked.candidate for ranked in ranking]
    reference = reference_of(names)
    best = best_of(ranking)
    says = {name: describe_candidate(name, weights) for name in names}
    trained = [ranked for ranked in ranking if ranked.candidate != reference]
    texts = []
    # 1. The best of the others against the reference, then those that are behind it.
    if trained:
        texts.append(against(trained[0], says, reference))
    for ranked in trained[1:]:
        if ranked.against_best is not None:
            texts.append(behind(ranked, says, best))
    # 2. What to take.
    found = best.against_reference
    if found is not None and verdict(found) == "undecided" and not trains(reference):
        texts.append(
            f"{says[best.candidate]} has the highest mean, but {says[reference]} may be as good, without training"
        )
    elif best.candidate == reference and not trains(reference):
        texts.append(f"no other candidate is above {says[reference]}")
    if names[0] == RANDOM:
        texts.append("nothing is above random weights: these candidates have learned nothing that these labels ask for")
    texts.append(f"best file: {best_file} ({says[best.candidate]})")
    return texts


def best_of(ranking: list[Ranked]) -> Ranked:
    """The first that is not the floor."""
    return next((ranked for ranked in ranking if ranked.candidate != RANDOM), ranking[0])


def against(ranked: Ranked, says: dict[str, str], reference: str) -> str:
    found = ranked.against_reference
    assert found is not None
    points = with_interval(found.mean, found.low, found.high)
    match verdict(found):
        case "better":
            return f"{says[ranked.candidate]} gave {points} mIoU over {says[reference]}"
        case "worse":
            return f"{says[ranked.candidate]} gave {points} mIoU against {says[reference]}: it is worse"
    return f"{says[ranked.candidate]} gave {points} mIoU against {says[reference]}: {UNDECIDED}"


def behind(ranked: Ranked, says: dict[str, str], best: Ranked) -> str:
    found = ranked.against_best
    assert found is not None
    points = with_interval(found.mean, found.low, found.high)
    unclear = f": {UNDECIDED}" if verdict(found) == "undecided" else ""
    return f"{says[ranked.candidate]}: {points} mIoU against {says[best.candidate]}{unclear}"


def ranking_table(ranking: list[Ranked], columns: list[str], reference: str) -> str:
    """Markdown: mean mIoU and spread over seeds in %, and the difference to the reference in points."""
    rows = [["candidate", "seeds", "mIoU", f"against {reference}", *columns]]
    for ranked in ranking:
        found = ranked.against_reference
        per_seed = np.mean([ranked.by_score[column] for column in HEADLINE], axis=0).tolist()
        rows.append(
            [
                ranked.candidate,
                str(len(ranked.seeds)),
                mean_and_spread(per_seed),
                with_interval(found.mean, found.low, found.high) if found else "",
                *(mean_and_spread(ranked.by_score[column]) for column in columns),
            ]
        )
    return as_markdown(rows)


def as_json(ranked: Ranked) -> dict[str, Any]:
    """For study.json; fractions, no percent."""

    def of(found: Difference | None) -> dict[str, Any] | None:
        return None if found is None else found._asdict() | {"verdict": verdict(found)}

    return {
        "candidate": ranked.candidate,
        "seeds": ranked.seeds,
        "mIoU": ranked.mean,
        "scores": {
            column: {
                "by_seed": values,
                "mean": float(np.mean(values)),
                "against_reference": of(ranked.by_share.get(column)),
            }
            for column, values in ranked.by_score.items()
        },
        "against_reference": of(ranked.against_reference),
        "against_best": of(ranked.against_best),
    }
