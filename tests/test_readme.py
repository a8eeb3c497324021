"""README, CONTRIBUTING, CHANGELOG and docs/ name commands, options, settings, tasks and files that exist."""

import ast
import re
import shlex
import tomllib
from functools import cache
from pathlib import Path

import pytest
import yaml

import selfpatch
from selfpatch.cli import COMMANDS
from selfpatch.cli.arguments import declared_options, parse
from selfpatch.config.renamed import RENAMED
from selfpatch.evaluation.protocols import TASKS
from selfpatch.recipes import RECIPES

ROOT = Path(__file__).parents[1]
DOCS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
PLACEHOLDERS = {"TASK": "linear-segmentation", "N": "1", "COMMAND": "check"}
# Those of the script that evidence.md names, and of torchrun, srun, TensorBoard, uv and Python.
OTHER_FLAGS = {"--directory", "--group", "--help", "--logdir", "--traceback", "--train", "--val"} | {
    "--master-addr", "--max-restarts", "--nnodes", "--node-rank", "--nproc-per-node", "--ntasks-per-node", "--rdzv-backend",
    "--rdzv-endpoint",
}  # fmt: skip
WRITTEN_BY_BENCHMARKS = "benchmarks/results"

each_document = pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)


@cache
def settings_of_pretrain() -> set[str]:
    """Every setting of every recipe, by its dotted name."""
    kinds = [COMMANDS["pretrain"].options(["--recipe", recipe]) for recipe in RECIPES]
    flags = {option.flag for kind in kinds for option in declared_options(kind)[0]}
    return {flag.removeprefix("--").replace("-", "_") for flag in flags}


@cache
def all_flags() -> set[str]:
    kinds = [command.options([]) for command in COMMANDS.values()]
    kinds += [
        COMMANDS["evaluate"].options(["--task", task, "--preset", preset])
        for task in TASKS
        for preset in TASKS[task].presets
    ]
    kinds.append(COMMANDS["evaluate"].options(["--tasks", "frozen"]))
    flags = {f"--{name}".replace("_", "-") for name in settings_of_pretrain()}
    for option in (option for kind in kinds for option in declared_options(kind)[0]):
        flags |= {option.flag, *(option.negations if option.is_switch else ())}
    of_benchmarks = "".join(file.read_text() for file in (ROOT / "benchmarks").rglob("*.py"))
    return flags | set(re.findall(r'add_argument\(\s*"(--[\w-]+)"', of_benchmarks)) | OTHER_FLAGS


def command_lines(text: str) -> list[str]:
    """Lines of code and phrases in backticks that call the package, as they would be typed."""
    lines = re.findall(r"^    (.*)$", text, re.M) + re.findall(r"`([^`\n]+)`", text)
    lines = [re.sub(r"\[[^\]]*\]", "", line).partition(" #")[0].strip() for line in lines]
    lines = [re.sub(r"^.*uv run ", "", line) for line in lines]
    return sorted({line for line in lines if re.match(r"selfpatch [A-Za-z]", line)})


def parameters_of(function: str) -> tuple[list[str], set[str]]:
    """All parameters and the required ones, from the source: to import it takes the shape checks of all it needs."""
    source = ROOT / f"{selfpatch._PLACES[function].replace('.', '/')}.py"
    (found,) = (node for node in ast.parse(source.read_text()).body if getattr(node, "name", "") == function)
    positional = [argument.arg for argument in found.args.args]
    required = positional[: len(positional) - len(found.args.defaults)]
    by_keyword = {
        argument.arg: default for argument, default in zip(found.args.kwonlyargs, found.args.kw_defaults, strict=True)
    }
    required += [name for name, default in by_keyword.items() if default is None]
    return [*positional, *by_keyword], set(required)


def anchors(path: Path) -> set[str]:
    """The names that GitHub gives the headings of a file."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize(
    "line", sorted({line for path in DOCS for line in command_lines(path.read_text())}), ids=lambda line: line
)
def test_commands_are_accepted(line, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    name, *arguments = [PLACEHOLDERS.get(word, word) for word in shlex.split(line)[1:]]
    if not arguments:
        return  # the command by its name
    if "--help" in arguments:
        with pytest.raises(SystemExit, match=r"^(0|None)$"):
            parse(COMMANDS[name].options(arguments), arguments, f"selfpatch {name}")
    else:
        parse(COMMANDS[name].options(arguments), arguments, f"selfpatch {name}")


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


def test_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {"cff-version", "message", "authors"} <= citation.keys()
    for key, value in {"title": "name", "version": "version", "license": "license", "abstract": "description"}.items():
        assert citation[key] == project[value]


def test_readme_has_every_command():
    text = (ROOT / "README.md").read_text()
    assert not [name for name in COMMANDS if f"selfpatch {name}" not in text]


@each_document
def test_links_lead_to_files_and_headings(path):
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        if re.match(r"https?:", target):
            continue
        file, _, anchor = target.partition("#")
        linked = path.parent / file if file else path
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), target


@each_document
def test_named_files_exist(path):
    text = path.read_text()
    names = {name.rstrip(".") for name in re.findall(r"(?<![\w./-])(?:tests|docs|benchmarks)/[\w./*-]+", text)}
    for module in re.findall(r"-m benchmarks\.(\w+)", text):
        is_folder = (ROOT / "benchmarks" / module).is_dir()
        names.add(f"benchmarks/{module}/__main__.py" if is_folder else f"benchmarks/{module}.py")
    names |= set(re.findall(r"`(selfpatch/[\w./*-]+)`", text))
    assert not [name for name in names if not name.startswith(WRITTEN_BY_BENCHMARKS) and not list(ROOT.glob(name))]


@each_document
def test_options_exist(path):
    """A flag, or a setting by its dotted name; names of before only in the list of what has changed."""
    text, settings = path.read_text(), settings_of_pretrain()
    groups = {name.partition(".")[0] for name in settings if "." in name}
    named = {name for name in re.findall(r'[`"]([a-z]\w*(?:\.\w+)+)[`" ]', text) if name.partition(".")[0] in groups}
    known = settings | {name.rpartition(".")[0] for name in settings}
    flags = {flag.replace("_", "-") for flag in re.findall(r"(?<![\w-])--[a-z][\w.-]*\w", text)}
    known_flags = all_flags() | {"--x", "--no-x"}
    if path.name == "CHANGELOG.md":
        known |= RENAMED.keys()
        known_flags |= {f"--{name}".replace("_", "-") for name in RENAMED}
    assert not named - known
    assert not flags - known_flags


def test_every_renamed_option_is_in_the_changelog():
    text = (ROOT / "CHANGELOG.md").read_text()
    assert not [(old, new) for old, new in RENAMED.items() if f"| `{old}` | `{new}` |" not in text]


def test_tasks_and_presets_are_those_of_the_table():
    rows = re.findall(r"^\| `([\w-]+)` \| ([\w, -]+) \|", (ROOT / "docs/evaluation.md").read_text(), re.M)
    assert {task: presets.split(", ") for task, presets in rows} == {task: list(TASKS[task].presets) for task in TASKS}


def test_python_calls_the_functions_as_they_are():
    (snippet,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    calls = [
        node
        for node in ast.walk(ast.parse(snippet))
        if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("selfpatch.")
    ]
    assert {ast.unparse(call.func).removeprefix("selfpatch.") for call in calls} == set(selfpatch.__all__)
    for call in calls:
        keywords = {keyword.arg: keyword.value for keyword in call.keywords}
        parameters, required = parameters_of(ast.unparse(call.func).removeprefix("selfpatch."))
        given = {*parameters[: len(call.args)], *keywords}
        assert required <= given <= set(parameters)
        if "settings" in keywords:
            assert ast.literal_eval(keywords["settings"]).keys() <= settings_of_pretrain()
        if "recipe" in keywords:
            assert ast.literal_eval(keywords["recipe"]) in RECIPES
