"""More objectives for a recipe, by one line of Python or one option of the command line (`--add`)."""

from dataclasses import replace

from selfpatch.config import AggregatorConfig, ObjectivesConfig, PretrainConfig
from selfpatch.errors import UserError, unknown_name


def add_objectives(config: PretrainConfig, *names: str) -> PretrainConfig:
    """The recipe with more objectives, at their default settings: `add_objectives(moco_v3(), "selfpatch")`.

    An objective that aggregates patches brings an aggregator along. As in the SelfPatch paper the image token then
    comes from it, which trains it, and its norm is the final norm; so the backbone does without a class token, unless
    `backbone.class_token` asks for one, and without a final norm of its own.

    Raises:
        UserError: an unknown objective, or one that the recipe has already.
    """
    kinds = ObjectivesConfig.kinds()
    for name in names:
        setting = name.replace("-", "_")
        if setting not in kinds:
            raise unknown_name("objective", name, [kind.replace("_", "-") for kind in kinds])
        if getattr(config.objectives, setting) is not None:
            raise UserError(
                f"{config.recipe} has the objective {name} already; leave it out here, and change its settings by "
                f"--objectives.{name}.*"
            )
        added = kinds[setting]()
        if added.needs_aggregator and config.aggregator is None:
            backbone = replace(config.backbone, class_token=config.backbone.class_token or False, final_norm=False)
            config = replace(config, backbone=backbone, aggregator=AggregatorConfig())
        config = replace(config, objectives=replace(config.objectives, **{setting: added}))
    return config
