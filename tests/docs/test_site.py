"""The site of the documentation: built strictly, whole without network, and each question of users is found in it."""

import html
import json
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).parents[2]

# What users of such tools ask for, by words that they would search for.
DEMANDS = [
    "loss flat collapse NaN", "without labels which checkpoint", "batch size learning rate momentum gradient accumulation",
    "plain folder one GPU no SLURM ImageNet layout", "continue public weights domain", "patch features embeddings",
    "dense evaluation mmcv", "published segmentation numbers reproduce", "non-square variable size",
    "resume wrong weights", "ONNX patch tokens dynamic size timm Hugging Face", "PCA attention similarity pictures",
    "dense features decay late", "multi-channel 16-bit", "shards memory multi-crop", "how much data licence",
    "continued self-supervised DINOv3 one command", "LeJEPA global segmentation down", "ultrasound noise texture blurry",
    "published recipe reach", "keep k best checkpoints metric monitor mode", "pretraining help task leak labelled",
    "ViT-S ViT-B configs one machine", "JEPA latent prediction method", "other frameworks geospatial YOLO document",
    "pretrain segment detect one tool",
]  # fmt: skip


def build(out: Path, script: Path = ROOT / "docs/build_site.py") -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, str(script), str(out)], capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="session")
def site(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("site")
    result = build(out)
    assert result.returncode == 0, result.stdout + result.stderr
    return out


@pytest.fixture(scope="session")
def sections(site) -> list[dict]:
    return json.loads((site / "search.json").read_text(encoding="utf-8"))["items"]


def plain(text: str) -> str:
    return html.unescape(re.sub(r"<[^>]+>", "", text))


@pytest.mark.parametrize("words", DEMANDS)
def test_a_search_for_the_words_of_a_demand_finds_an_answer(words, sections):
    """One section has all the words, as beginnings of its own, and says something."""
    found = []
    for section in sections:
        text = plain(f"{section['title']} {section['text']}").lower()
        if len(text) > 200 and all(re.search(rf"\b{re.escape(word)}", text) for word in words.lower().split()):
            found.append(section["location"])
    assert found


def test_there_are_as_many_questions_as_demands():
    assert len(DEMANDS) == len(set(DEMANDS)) == 26
    assert len(re.findall("^## ", (ROOT / "docs/faq.md").read_text(), re.M)) == 26


def test_every_page_of_the_documentation_is_in_the_navigation(site):
    settings = (ROOT / "zensical.toml").read_text()
    for page in (ROOT / "docs").rglob("*.md"):
        name = page.relative_to(ROOT / "docs").as_posix()
        assert f'"{name}"' in settings, name
        assert (site / name).with_suffix(".html").is_file()


def test_links_lead_to_pages_pictures_and_headings(site):
    """Also those that are no Markdown: of the navigation, to pictures, of the Python reference."""
    pages = {path: path.read_text(encoding="utf-8") for path in site.rglob("*.html") if path.name != "404.html"}
    names = {path: set(re.findall(r'\bid="?([^"\s>]+)', text)) for path, text in pages.items()}
    broken = []
    for path, text in pages.items():
        for target in re.findall(r'(?:href|src)="?([^"\s>]+)', text):
            if re.match(r"[a-z]+:|//", target):
                continue
            file, _, anchor = unquote(html.unescape(target)).partition("#")
            linked = (path.parent / file).resolve() if file else path
            linked = linked / "index.html" if linked.is_dir() else linked
            if not linked.is_file() or (anchor and linked in names and anchor not in names[linked]):
                broken.append((path.name, target))
    assert not broken


def test_pages_load_nothing_from_elsewhere(site):
    """No script, style, font, picture or frame of another host; links for readers are no loading."""
    loads = re.compile(
        r"<(?:script|link|img|iframe|source|audio|video)\b[^>]*?(?:src|href)=[\"']?((?:https?:)?//[^\"' >]+)"
    )
    assert not {path.name: found for path in site.rglob("*.html") if (found := loads.findall(path.read_text()))}
    assert not [path for path in site.rglob("*.css") if re.search(r"url\([\"']?(?:https?:)?//", path.read_text())]


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("pretrain", ["recipe", "init_from", "dry_run", "UserError", "FailedElsewhereError"]),
        ("load_backbone", ["pos_embed_interpolation", "num_channels", "mean, std", "UserError"]),
        ("Tokens", ["patch_tokens", "B N D", "grid_size"]),
        ("embed", ["level", "image_size", "[images, D]", "UserError"]),
    ],
)
def test_the_python_reference_shows_arguments_shapes_and_errors(name, shown, site):
    page = (site / "api.html").read_text(encoding="utf-8")
    entry = re.search(rf'<h3 id="selfpatch[.\w]*\.{name}"(.*?)(?:<h3 |</article)', page, re.S)
    assert entry
    text = plain(entry[1])
    assert not [words for words in shown if words not in text]


def test_every_public_function_is_in_the_python_reference():
    import selfpatch

    page = (ROOT / "docs/api.md").read_text()
    assert not [name for name in selfpatch.__all__ if f"::: selfpatch.{name}\n" not in page]


@pytest.mark.parametrize("link", ["[x](nowhere.md)", "[x](start.md#nowhere)"])
def test_a_broken_link_is_an_error(link, tmp_path):
    (tmp_path / "copy").mkdir()
    for name in ("docs", "zensical.toml", "selfpatch", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"):
        if name == "docs":
            subprocess.run(["cp", "-r", str(ROOT / name), str(tmp_path / "copy")], check=True)
        else:
            (tmp_path / "copy" / name).symlink_to(ROOT / name)
    page = tmp_path / "copy/docs/start.md"
    page.write_text(page.read_text() + f"\n{link}\n")
    result = build(tmp_path / "out", tmp_path / "copy/docs/build_site.py")
    assert result.returncode != 0
    assert "does not exist" in result.stdout + result.stderr
    assert not (tmp_path / "out").exists()
