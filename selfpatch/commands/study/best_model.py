"""The best model of a study as a file that timm loads, with its model card."""

from pathlib import Path

from selfpatch.backbones.backbone import Backbone
from selfpatch.commands.export import training_of
from selfpatch.commands.study.folder import StudyFolder
from selfpatch.export.formats import FORMATS
from selfpatch.export.model_card import Training, write_card
from selfpatch.output.terminal import say
from selfpatch.recipes.candidates import trains


def export_best(
    backbone: Backbone, folder: StudyFolder, *, candidate: str, seed: int, weights: str | None, scores: dict[str, float]
) -> str:
    """Write OUT/best/backbone.safetensors and README.md; returns the Python that loads the file.

    Args:
        weights: what the weights are called that were given.
        scores: mIoU of this very file, by score.
    """
    chosen = FORMATS["timm"]
    folder.best.mkdir(exist_ok=True)
    place = chosen.place(folder.best)
    line = chosen.write(backbone, place)
    training: Training | None = None
    if trains(candidate) and (found := training_of(folder.run(candidate, seed))) is not None:
        rows = [(found.step or 0, f"mIoU, {name} of the labels", value) for name, value in scores.items()]
        training = found._replace(scores=rows)
    name = Path(weights).name if weights and not weights.startswith("timm:") else weights
    model = f"{candidate}, seed {seed}, of a study" if trains(candidate) else str(name or candidate)
    load = line.replace(repr(str(place)), repr(place.name))
    if not write_card(folder.best, backbone, load=load, library=chosen.library, model=model, training=training):
        say(f"{folder.best / 'README.md'} is your own and stays as it is")
    return line
