"""Settings as plain values and as YAML: write, read with every name and type checked, change by name, compare."""

import dataclasses
import difflib
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, cast, get_args, get_origin, get_type_hints

import yaml

from selfpatch.config.pretrain import PretrainConfig
from selfpatch.config.ranges import SettingError
from selfpatch.errors import UserError


def to_dict(config: Any) -> Any:
    """Plain dicts, lists and values, as YAML and JSON have them; `from_dict` is the way back."""
    if dataclasses.is_dataclass(config):
        return {field.name: to_dict(getattr(config, field.name)) for field in dataclasses.fields(config)}
    if isinstance(config, tuple | list):
        return [to_dict(value) for value in config]
    return str(config) if isinstance(config, Path) else config


def from_dict(kind: type, values: Any, where: str = "") -> Any:
    """The dataclass `kind` out of what `to_dict` gave; settings that are left out keep their defaults.

    Raises:
        UserError: an unknown setting (with the nearest name), or a value of another type.
    """
    if not isinstance(values, dict):
        raise UserError(f"{where or 'the settings'} must be a group of settings, not {values!r}")
    types = get_type_hints(kind)
    for name in values:
        if name not in types:
            nearest = difflib.get_close_matches(str(name), types, n=1)
            hint = f"; did you mean {where + nearest[0]!r}?" if nearest else f"; there are: {', '.join(types)}"
            raise UserError(f"unknown setting {where + str(name)!r}{hint}")
    parts = {name: _value(types[name], value, where + name) for name, value in values.items()}
    try:
        return kind(**parts)
    except SettingError as error:
        raise error.within(where.removesuffix(".")) from None


def _value(kind: Any, value: Any, where: str) -> Any:
    """`value` as the annotated type `kind`: a dataclass, Path, Literal, tuple, union, or a plain type."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        fitting = [k for k in arguments if k is not NoneType]
        if value is None and NoneType in arguments:
            return None
        for option in fitting[:-1]:
            try:
                return _value(option, value, where)
            except ValueError:
                continue
        return _value(fitting[-1], value, where)
    if dataclasses.is_dataclass(kind):
        return from_dict(cast(type, kind), value, f"{where}.")
    if origin is Literal and value in arguments:
        return value
    if origin is tuple and isinstance(value, list | tuple) and len(value) == len(arguments):
        return tuple(_value(k, v, f"{where}[{i}]") for i, (k, v) in enumerate(zip(arguments, value, strict=True)))
    if kind is Path and isinstance(value, str | Path):
        return Path(value)
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if kind in (int, str, bool) and type(value) is kind:
        return value
    allowed = " or ".join(map(repr, arguments)) if origin is Literal else getattr(kind, "__name__", str(kind))
    raise UserError(f"setting {where} is {value!r}; it must be {allowed}")


def override(config: PretrainConfig, settings: dict[str, Any]) -> PretrainConfig:
    """The configuration with some settings replaced, given by dotted name: {"optim.lr": 1e-3}."""
    values = to_dict(config)
    for name, value in settings.items():
        *groups, last = name.replace("-", "_").split(".")
        group = values
        for key in groups:
            group = group.get(key) if isinstance(group, dict) else None
        if not isinstance(group, dict):
            raise UserError(f"unknown setting {name!r}: this run has no group {'.'.join(groups)!r}")
        group[last] = to_dict(value)
    return from_dict(type(config), values)


def write_yaml(config: PretrainConfig, path: Path, *, header: str = "") -> None:
    text = "".join(f"# {line}\n" for line in header.splitlines())
    path.write_text(text + yaml.safe_dump(to_dict(config), sort_keys=False), encoding="utf-8")


def read_yaml(path: Path) -> PretrainConfig:
    """Settings from a config.yaml.

    Raises:
        UserError: no file, no YAML, larger than 1 MB, with aliases (which can grow without bound), or wrong settings.
    """
    if not path.is_file():
        raise UserError(f"there is no settings file {path}; give the config.yaml of a run")
    if path.stat().st_size > 1_000_000:
        raise UserError(f"{path} is larger than 1 MB, which no settings file is")
    try:
        text = path.read_text(encoding="utf-8")
        has_aliases = any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text, Loader=yaml.SafeLoader))
        values = None if has_aliases else yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} is not a settings file in YAML: {reason}; give the config.yaml of a run") from error
    if has_aliases:
        raise UserError(f"{path} has YAML aliases; settings files are written without")
    try:
        return from_dict(PretrainConfig, values)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error


def differences(old: Any, new: Any, where: str = "") -> list[str]:
    """The settings in which two results of `to_dict` differ, a line each: name: old -> new."""
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            line
            for name in old | new
            for line in differences(old.get(name), new.get(name), f"{where}.{name}".strip("."))
        ]
    return [] if old == new else [f"{where}: {old} -> {new}"]
