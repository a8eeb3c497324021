"""The way out: a backbone as files that other libraries load, without this package."""

from selfpatch.export.timm_file import export_timm

__all__ = ["export_timm"]
