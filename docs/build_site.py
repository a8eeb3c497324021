"""Builds the site of the documentation: `python docs/build_site.py OUT`. Warnings, such as a broken link, are errors.

Pages are this folder's, and those of the repository's root that the site has too. Links in them are made for GitHub;
what leads out of the pages of the site (to a folder of the source, say) becomes plain text.
"""

import argparse
import os
import posixpath
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import nbformat

ROOT = Path(__file__).parents[1]
# Of the repository's root: file, page of the site.
ROOT_PAGES = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security-policy.md",
    "README.md": "index.md",
}
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)\s]+)\)")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path, help="the folder to write the site to; it must be empty or new")
    out = parser.parse_args().out.resolve()
    if out.exists() and any(out.iterdir()):
        sys.exit(f"{out} is not empty; give a new folder")
    with tempfile.TemporaryDirectory() as staging:
        stage(Path(staging))
        command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean"]
        result = subprocess.run(command, cwd=staging, env={**os.environ, "NO_COLOR": "1"})
        if result.returncode:
            sys.exit("the site has warnings, which are errors here: see above")
        shutil.copytree(Path(staging) / "site", out, dirs_exist_ok=True)


def stage(folder: Path) -> None:
    """Everything that the builder reads: its settings, pages with the links of the site, the package's source."""
    shutil.copy(ROOT / "zensical.toml", folder)
    (folder / "selfpatch").symlink_to(ROOT / "selfpatch")
    pages = folder / "docs"
    shutil.copytree(ROOT / "docs", pages, ignore=shutil.ignore_patterns("*.py", "__pycache__", ".ipynb_checkpoints"))
    for file, page in ROOT_PAGES.items():
        if page != "index.md":
            (pages / page).write_text((ROOT / file).read_text(encoding="utf-8"), encoding="utf-8")
    for notebook in (pages / "notebooks").glob("*.ipynb"):
        notebook.with_suffix(".md").write_text(as_markdown(notebook), encoding="utf-8")
    sources = {page: "" for file, page in ROOT_PAGES.items() if page != "index.md"}
    for path in pages.rglob("*.md"):
        name = path.relative_to(pages).as_posix()
        # The folder, seen from the repository's root, that links of the page start from.
        base = sources.get(name, posixpath.dirname(f"docs/{name}"))
        text = path.read_text(encoding="utf-8")
        path.write_text(LINK.sub(lambda found: for_site(found, name, base), text), encoding="utf-8")  # noqa: B023


def for_site(found: re.Match[str], page: str, base: str) -> str:
    """A link as the site has it; the text alone of one to a file or folder of the repository that is no page of it."""
    text, target = found.groups()
    if re.match(r"[a-z]+:|#", target):
        return found.group()
    file, _, anchor = target.partition("#")
    file = posixpath.normpath(posixpath.join(base, file))
    place = ROOT_PAGES.get(file, file.removeprefix("docs/") if file.startswith("docs/") else "")
    place = place.replace(".ipynb", ".md")
    if not place and (ROOT / file).exists():
        return text
    place = posixpath.relpath(place or file, posixpath.dirname(page) or ".")
    return f"[{text}]({place}{'#' + anchor if anchor else ''})"


def as_markdown(path: Path) -> str:
    """The cells of a notebook as a page, with a link to the notebook itself."""
    cells = nbformat.read(path, as_version=4).cells
    parts = [f"```python\n{cell.source}\n```" if cell.cell_type == "code" else cell.source for cell in cells]
    download = f'<p><a href="{path.name}" download>Download this notebook</a></p>'
    return "\n\n".join([parts[0], download, *parts[1:]]) + "\n"


if __name__ == "__main__":
    main()
