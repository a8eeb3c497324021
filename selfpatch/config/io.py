"""Settings as plain values and as YAML: write, read with every name and type checked, change by name, compare."""

import dataclasses
import difflib
import functools
import inspect
import math
import re
import textwrap
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import yaml

from selfpatch.config.pretrain import PretrainConfig
from selfpatch.config.ranges import Config, SettingError
from selfpatch.config.renamed import RENAMED, upgrade
from selfpatch.config.values import WrongTypeError, allowed, options, read_value
from selfpatch.errors import UserError

C = TypeVar("C", bound=Config)

# A settings file has a tenth of it, three deep: PyYAML's time grows with the square of the depth.
MAX_BYTES, MAX_DEPTH = 200_000, 16


def to_dict(config: Any) -> Any:
    """Plain dicts, lists and values, as YAML and JSON have them; `from_dict` is the way back."""
    if dataclasses.is_dataclass(config):
        return {field.name: to_dict(getattr(config, field.name)) for field in dataclasses.fields(config)}
    if isinstance(config, tuple | list):
        return [to_dict(value) for value in config]
    return str(config) if isinstance(config, Path) else config


def from_dict(kind: type, values: Any, group: str = "") -> Any:
    """The dataclass `kind` out of what `to_dict` gave; settings that are left out keep their defaults.

    Args:
        values: settings by name, in which dashes may stand for underscores.
        group: dotted name of the group that `kind` is, for messages.

    Raises:
        UserError: an unknown setting (with the nearest name), a value of another type or out of range.
    """
    if not isinstance(values, dict):
        raise UserError(f"{group or 'a settings file'} must be a group of settings, not {values!r}")
    types = get_type_hints(kind)
    settings = [field.name for field in dataclasses.fields(kind)]
    given = {}
    for name, value in values.items():
        setting = str(name).replace("-", "_")
        if setting not in settings:
            raise UserError(f"unknown setting {_join(group, str(name))!r}{_hint(group, setting, settings)}")
        if setting in given:
            raise UserError(f"{_join(group, setting)} is given twice; give it once")
        given[setting] = _value(types[setting], value, group, setting)
    try:
        return kind(**given)
    except SettingError as error:
        raise error.within(group) from None


def _hint(group: str, name: str, settings: list[str]) -> str:
    if today := RENAMED.get(_join(group, name)):
        return f"; it is called {today!r} now"
    nearest = difflib.get_close_matches(name, settings, n=1)
    return f"; did you mean {_join(group, nearest[0])!r}?" if nearest else f"; there are: {', '.join(settings)}"


def _join(group: str, name: str) -> str:
    return f"{group}.{name}" if group else name


def _value(kind: Any, value: Any, group: str, setting: str) -> Any:
    groups = [option for option in options(kind) if dataclasses.is_dataclass(option)]
    if groups and isinstance(value, dict):
        return from_dict(groups[0], value, _join(group, setting))  # type: ignore[arg-type]
    try:
        return read_value(kind, value)
    except WrongTypeError:
        raise SettingError(group, setting, value, f"it must be {allowed(kind)}") from None


def override(config: C, settings: dict[str, Any]) -> C:
    """The configuration with some settings replaced, given by dotted name: {"optim.lr": 1e-3}."""
    values = to_dict(config)
    for name, value in settings.items():
        *groups, last = name.replace("-", "_").split(".")
        group = values
        for key in groups:
            group = group.get(key) if isinstance(group, dict) else None
        if not isinstance(group, dict):
            raise UserError(f"unknown setting {name!r}: these settings have no group {'.'.join(groups)!r}")
        group[last] = to_dict(value)
    return from_dict(type(config), values)


def write_yaml(config: PretrainConfig, path: Path, *, header: str = "") -> None:
    """Write a settings file that says above each setting what it is."""
    text = "".join(f"# {line}\n" for line in header.splitlines())
    path.write_text(text + commented_yaml(config), encoding="utf-8")


def commented_yaml(config: Any, indent: str = "") -> str:
    """Settings as YAML, each below its help as the command line has it."""
    text, helps = "", field_help(type(config))
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        is_group = dataclasses.is_dataclass(value)
        about = (inspect.getdoc(type(value)) or "").splitlines()[0] if is_group else helps.get(field.name, "")
        comment = textwrap.wrap(about, 100 - len(indent), break_long_words=False, break_on_hyphens=False)
        text += "\n" * (is_group and not indent) + "".join(f"{indent}# {line}\n" for line in comment)
        if is_group:
            text += f"{indent}{field.name}:\n{commented_yaml(value, indent + '  ')}"
        else:
            plain = to_dict(value)
            if isinstance(plain, list | dict):
                dumped = f"{field.name}: {yaml.safe_dump(plain, default_flow_style=True, width=math.inf)}"
            else:
                dumped = yaml.safe_dump({field.name: plain}, default_flow_style=False, width=math.inf)
            text += textwrap.indent(dumped, indent)
    return text


@functools.cache
def field_help(kind: type) -> dict[str, str]:
    """The comment above each field of a dataclass, which `--help` shows, in one line."""
    found: dict[str, str] = {}
    for declared in reversed([base for base in kind.__mro__ if dataclasses.is_dataclass(base)]):
        comment: list[str] = []
        for line in inspect.getsource(declared).splitlines():
            if match := re.match(r" {4}# (.*)", line):
                comment.append(match[1])
                continue
            if match := re.match(r" {4}(\w+): ", line):
                found[match[1]] = " ".join(comment)
            comment = []
    return found


def read_yaml(path: Path) -> PretrainConfig:
    """Settings from a config.yaml.

    Raises:
        UserError: no file, no YAML, more than any settings file has in bytes or depth, with aliases (which can grow
            without bound), or wrong settings.
    """
    if not path.is_file():
        raise UserError(f"there is no settings file {path}; give the config.yaml of a run")
    if path.stat().st_size > MAX_BYTES:
        raise UserError(f"{path} is larger than {MAX_BYTES:,} bytes, which no settings file is")
    try:
        text = path.read_text(encoding="utf-8")
        _refuse_bombs(text)
        values = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} is not a settings file in YAML: {reason}; give the config.yaml of a run") from error
    try:
        return config_of(values)
    except ValueError as error:  # a UserError, or a number of too many digits to be shown
        raise UserError(f"{path}: {error}") from error


def _refuse_bombs(text: str) -> None:
    """Read token by token, so that what grows without bound is refused where it begins.

    Raises:
        ValueError: aliases, or groups nested deeper than those of any settings file.
    """
    depth = 0
    for token in yaml.scan(text, Loader=yaml.SafeLoader):
        if isinstance(token, yaml.AliasToken | yaml.AnchorToken):
            raise ValueError("it has YAML aliases, which settings files are written without")
        depth += isinstance(token, _STARTS) - isinstance(token, _ENDS)
        if depth > MAX_DEPTH:
            raise ValueError(f"it is nested more than {MAX_DEPTH} deep")


_STARTS = (
    yaml.BlockMappingStartToken, yaml.BlockSequenceStartToken, yaml.FlowMappingStartToken, yaml.FlowSequenceStartToken,
)  # fmt: skip
_ENDS = (yaml.BlockEndToken, yaml.FlowMappingEndToken, yaml.FlowSequenceEndToken)


def config_of(values: Any) -> PretrainConfig:
    """The configuration out of a settings file or a checkpoint of this or an earlier version.

    Raises:
        UserError: an unknown setting, a value of another type or out of range.
    """
    return from_dict(PretrainConfig, upgrade(values) if isinstance(values, dict) else values)


def differences(old: Any, new: Any, where: str = "") -> list[str]:
    """The settings in which two results of `to_dict` differ, a line each: name: old -> new."""
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            line
            for name in old | new
            for line in differences(old.get(name), new.get(name), f"{where}.{name}".strip("."))
        ]
    return [] if old == new else [f"{where}: {old} -> {new}"]
