"""The page of the documentation for a mistake, by the room of the package that found it."""

from types import TracebackType

# The longest prefix counts.
PAGES = {
    "selfpatch.backbones": "docs/models.md",
    "selfpatch.commands.check": "docs/data.md",
    "selfpatch.commands.embed": "docs/embeddings.md",
    "selfpatch.commands.export": "docs/models.md",
    "selfpatch.commands.launch.devices": "docs/clusters.md",
    "selfpatch.commands.predict": "docs/evaluation.md",
    "selfpatch.commands.launch.processes": "docs/clusters.md",
    "selfpatch.commands.launch.slurm": "docs/clusters.md",
    "selfpatch.commands.report": "docs/report.md",
    "selfpatch.config.objectives": "docs/methods.md",
    "selfpatch.config.processes": "docs/clusters.md",
    "selfpatch.data": "docs/data.md",
    "selfpatch.evaluation": "docs/evaluation.md",
    "selfpatch.export": "docs/models.md",
    "selfpatch.objectives": "docs/methods.md",
    "selfpatch.output.token_files": "docs/embeddings.md",
    "selfpatch.output.tracking": "docs/trackers.md",
    "selfpatch.recipes": "docs/methods.md",
}


def page_of(traceback: TracebackType | None) -> str | None:
    """The page for an error, by the module that raised it; None: there is none."""
    if traceback is None:
        return None
    while traceback.tb_next is not None:
        traceback = traceback.tb_next
    module = str(traceback.tb_frame.f_globals.get("__name__", ""))
    found = [prefix for prefix in PAGES if module == prefix or module.startswith(f"{prefix}.")]
    return PAGES[max(found, key=len)] if found else None
