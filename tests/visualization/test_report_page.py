"""The page holds what it should, nothing in it is markup, it is bounded, and it never costs a run."""

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from selfpatch.commands.compare import compare
from selfpatch.commands.report import run_report
from selfpatch.commands.report.evaluation_report import comparison_page, evaluation_page, frozen_page
from selfpatch.commands.report.run_report import RunReport, run_page
from selfpatch.commands.report.study_report import study_page
from selfpatch.evaluation.comparison import compare as compare_results
from selfpatch.pretraining.run_folder import RunFolder
from selfpatch.recipes.derive import ResolvedSetting
from selfpatch.visualization.report import curves, page
from selfpatch.visualization.report.blocks import Page, Section, texts
from selfpatch.visualization.report.earlier_pictures import (
    MAX_PAGE_BYTES,
    MAX_STEPS,
    EarlierPictures,
    Frame,
    fitting,
    frames_of_run,
    thinned_steps,
)
from selfpatch.visualization.report.similarities import MAX_PAIRS, quantized, read_similarities, similarities
from tests.visualization.made_pages import EVIL, encoded, made_result, made_run, made_study, picture


class Elements(HTMLParser):
    """Tags with their attributes, and the text of each script."""

    def __init__(self, html: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.scripts: dict[str, str] = {}
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        tag, attributes = self.tags[-1] if self.tags else ("", {})
        if tag == "script":
            name = attributes.get("id") or ""
            self.scripts[name] = self.scripts.get(name, "") + data


def content_of(html: str) -> dict:
    return json.loads(Elements(html).scripts["content"])


def blocks_of(made: Page, kind: str) -> list[dict]:
    return [block for section in made.sections for block in section.blocks if block["kind"] == kind]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> RunFolder:
    return RunFolder(made_run(tmp_path_factory.mktemp("run") / "a run"))


def test_a_run_shows_curves_scores_health_pictures_settings_and_how_to_load(run):
    made = run_page(run, state="finished")
    titles = [section.title for section in made.sections]
    assert titles[:6] == ["Overview", "Curves", "Pictures", "Similarity, patch by patch", "Load it", "Settings"]
    shown = {tile["label"]: tile for tile in blocks_of(made, "tiles")[0]["tiles"]}
    assert shown["In-context mIoU"]["value"] == "40.0 %" and "+10.0 since the start" in shown["In-context mIoU"]["note"]
    assert shown["Health"] == {"label": "Health", "value": "OK", "note": "health OK (docs/health.md)", "tone": "good"}
    by_title = {chart["title"]: chart for block in blocks_of(made, "charts") for chart in block["charts"]}
    score = by_title["In-context segmentation"]["series"][0]
    assert (score["name"], score["steps"], score["values"][-1]) == ("mIoU", [0, 20, 40, 60], 0.4)
    assert [series["name"] for series in by_title["Loss"]["series"]] == ["loss", "dino", "selfpatch"]
    assert "lr" in by_title and "images_per_second" in by_title  # every number of the log
    (shown_pictures,) = blocks_of(made, "pictures")
    assert [p["label"] for p in shown_pictures["pictures"]] == ["PCA of patches", "Positives", "Predictions 1"]
    assert [frame["step"] for frame in shown_pictures["pictures"][0]["frames"]] == [0, 20, 40, 60]
    assert all(frame["asset"] in made.assets for p in shown_pictures["pictures"] for frame in p["frames"])
    rows = {row[0]["text"]: row for row in blocks_of(made, "table")[1]["rows"]}
    assert rows["optim.batch_size"][3]["text"].startswith("no GPU, and at least four")
    assert rows["crops.global_size"][1]["text"] == "32"
    lines = [block["text"] for block in blocks_of(made, "code")]
    assert lines[0].startswith("import selfpatch; ") and lines[1].startswith("import timm; ")


def test_health_in_the_words_of_show(run, tmp_path):
    other = RunFolder(made_run(tmp_path / "other"))
    lines = [{"step": step, "loss": 4.0, "crops/std": 0.01} for step in (61, 62, 63)]
    with other.metrics_file.open("a") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
    made = run_page(other, state="running")
    (alert,) = blocks_of(made, "text")
    assert alert["tone"] == "bad" and alert["lines"][0].startswith("health COLLAPSED (blank images): crops have")


@pytest.mark.parametrize("kind", ["run", "evaluation", "frozen", "comparison", "study"])
def test_nothing_that_has_a_name_is_markup(kind, run, tmp_path):
    result = made_result(EVIL, 0.5, classes=(EVIL, "b", "c"))
    match kind:
        case "run":
            made = run_page(RunFolder(made_run(tmp_path / "r", name=EVIL)), state=EVIL)
        case "evaluation":
            made = evaluation_page(tmp_path, result)
        case "frozen":
            made = frozen_page(tmp_path, {"linear-segmentation": result}, {"knn": EVIL}, EVIL)
        case "comparison":
            made = comparison_page(compare_results([(Path("a"), result)]), [(EVIL, result)])
        case "study":
            made = study_page(tmp_path, made_study(tmp_path, weights=EVIL))
    made = made._replace(title=EVIL)
    html = page.as_html(made)
    elements = Elements(html)
    allowed = {"html", "head", "meta", "link", "title", "style", "body", "div", "noscript", "script"}
    assert {tag for tag, _ in elements.tags} == allowed
    assert (
        len(re.findall(r"</script", html)) == 3 and "<!--" not in html.partition("<body")[2].rpartition("<script>")[0]
    )
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u202e]", html)
    text = json.dumps(content_of(html), ensure_ascii=False)
    assert "</script><img src=x onerror=alert(1)>" in text  # as text, whole
    assert (
        "\\\\u2028\\\\x1b[2J\\\\u202e" in text
    )  # and what moves a cursor or turns a line around is shown as an escape


def test_the_policy_allows_its_own_script_and_no_connection(run):
    html = page.as_html(run_page(run, state="finished"))
    (policy,) = (
        attributes["content"]
        for tag, attributes in Elements(html).tags
        if attributes.get("http-equiv", "").startswith("Content-S")
    )
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "connect-src" not in policy and "unsafe" not in policy and "http" not in policy
    assert html.index("Content-Security-Policy") < html.index("<style>")
    assert not re.search(r"(?:src|href)=[\"'](?!data:)", html.partition("<body")[0])
    script = Elements(html).scripts[""]
    assert "innerHTML" not in script and "insertAdjacentHTML" not in script and "eval(" not in script
    assert "connect-src 'self'" in page.as_html(run_page(run, state="finished"), live=True)


def test_numbers_that_are_not_finite_are_no_numbers():
    lines = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": float("nan")}, {"step": 3, "loss": float("inf")}]
    charts = curves.main_charts(lines)
    assert charts[0]["series"][0]["values"] == [2.0, None, None]
    made = Page(
        "b", "t", "s", [Section("x", [{"kind": "charts", "charts": charts, "small": False}, {"n": float("nan")}])]
    )
    assert content_of(page.as_html(made))["sections"][0]["blocks"][1] == {"n": None}


def test_long_runs_keep_their_spikes():
    points = [(step, 1.0) for step in range(100_000)]
    points[54_321] = (54_321, 99.0)
    kept = curves.thinned(points)
    assert len(kept) <= curves.MAX_POINTS and (54_321, 99.0) in kept
    assert kept == sorted(kept) and kept[0] == points[0] and kept[-1] == points[-1]
    assert curves.thinned([(step, None) for step in range(1000)])[0] == (0, None)


def test_earlier_pictures_are_few_small_and_of_this_attempt(tmp_path):
    def draw(step: int) -> None:
        cv2.imwrite(str(tmp_path / "pca.png"), picture(step, width=2200))
        cv2.imwrite(str(tmp_path / "curves.png"), picture(step))

    earlier = EarlierPictures(tmp_path, first_step=0)
    for step in range(0, 300, 10):
        draw(step)
        earlier.keep(step)
        earlier.keep(step + 5)  # nothing new
    frames = frames_of_run(tmp_path)
    steps = [frame.step for frame in frames["pca"]]
    assert frames.keys() == {"pca"} and len(steps) == MAX_STEPS and (steps[0], steps[-1]) == (0, 290)
    assert max(np.diff(steps)) <= 60
    assert all(frame.width == 1000 and frame.height == 500 for frame in frames["pca"])
    assert EarlierPictures(tmp_path, first_step=100) and max(f.step for f in frames_of_run(tmp_path)["pca"]) <= 100
    assert EarlierPictures(tmp_path, first_step=0) and not frames_of_run(tmp_path)


def test_pages_take_a_hundredth_of_the_time_and_the_last_pictures_are_there(tmp_path, monkeypatch):
    run, now, written = RunFolder(tmp_path), [0.0], []
    monkeypatch.setattr(run_report.time, "perf_counter", lambda: now[0])

    def costly_page(_, *, state: str) -> Page:
        written.append(state)
        now[0] += 3.0
        return Page("", "", state, [])

    monkeypatch.setattr(run_report, "run_page", costly_page)
    run.pictures.mkdir()
    report = RunReport(run, [], first_step=0, writes=True)
    for step in range(0, 1000, 10):
        now[0] += 10.0
        cv2.imwrite(str(run.pictures / "pca.png"), picture(step))
        report.update(step)
    assert 3 <= len(written) <= 0.01 * now[0] / 3 + 1
    assert report.finish(state="finished") and written[-1] == "finished"
    frames = frames_of_run(run.pictures)["pca"]
    assert [frame.step for frame in frames][-1] == 990 and len(frames) == len(written)


def test_the_page_is_bounded():
    frames = {name: [Frame(step, bytes(400_000), 10, 10) for step in range(12)] for name in "abc"}
    kept = fitting(frames)
    assert sum(4 * 400_000 / 3 * len(found) for found in kept.values()) <= MAX_PAGE_BYTES
    assert all(found[-1].step == 11 for found in kept.values()) and min(map(len, kept.values())) >= 4
    assert fitting({"a": [Frame(None, bytes(9_000_000), 1, 1)]}) == {}
    assert thinned_steps([0, 1, 2, 50, 100], 3) == [0, 50, 100]


def test_similarities_are_those_of_the_tokens(tmp_path):
    first, second = encoded("a", 3, 4), encoded("b", 2, 2, seed=1)
    found = similarities([first, second])
    tokens = torch.cat([first.tokens.patch_tokens[0], second.tokens.patch_tokens[0]])
    expected = torch.nn.functional.cosine_similarity(tokens[:, None], tokens[None], dim=-1)
    values = np.frombuffer(base64.b64decode(found["pairs"]), np.uint8)
    total = len(tokens)
    assert len(values) == total * (total + 1) // 2
    for i, j in [(0, 0), (0, 5), (4, 13), (12, 15), (15, 15)]:
        at = i * total - i * (i - 1) // 2 + j - i  # as the script has it
        assert found["low"] + (1 - found["low"]) * values[at] / 255 == pytest.approx(float(expected[i, j]), abs=0.005)
    assert [(image["rows"], image["columns"]) for image in found["images"]] == [(3, 4), (2, 2)]


def test_large_grids_are_pooled_and_many_images_left_out():
    found = similarities([encoded("a", 60, 56), encoded("b", 60, 56)])
    assert [(image["rows"], image["columns"]) for image in found["images"]] == [(30, 28)]
    assert len(base64.b64decode(found["pairs"])) <= MAX_PAIRS
    assert quantized(torch.ones(3, 2))[1].tolist() == [255] * 6  # all alike
    assert quantized(torch.full((2, 2), float("nan")))[1].shape == (3,)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"images": [], "pairs": "AA==", "low": 0.0}', "[" * 100_000])
def test_similarities_of_others_are_not_trusted(text, tmp_path):
    (tmp_path / "s.json").write_text(text)
    assert read_similarities(tmp_path / "s.json") is None
    assert read_similarities(tmp_path / "nothing") is None


def test_written_whole_or_not_at_all(tmp_path, monkeypatch):
    made = Page("b", "t", "s", [Section("x", [texts(["old"])])])
    page.write_page(made, tmp_path / "report.html")
    before = (tmp_path / "report.html").read_bytes()
    monkeypatch.setattr(page, "as_html", lambda _: "half \ud800")  # fails while it is written
    with pytest.raises(UnicodeEncodeError):
        page.write_page(made, tmp_path / "report.html")
    assert (tmp_path / "report.html").read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_a_page_that_fails_is_told_once_and_ends_nothing(run, monkeypatch, capsys):
    monkeypatch.setattr(run_report, "run_page", lambda *_, **__: 1 / 0)
    report = RunReport(run, [], first_step=60, writes=True)
    assert report.update(60) == {} and report.update(61) == {}
    assert report.finish(state="finished") is False
    said = capsys.readouterr().out
    assert said.count("warning: ") == 1 and "report.html is not written (ZeroDivisionError" in said


def test_reasons_are_kept_for_later_pages(run):
    RunReport(run, [ResolvedSetting("optim.lr", 1e-3, f"as {EVIL}")], first_step=60, writes=True)
    assert run_report.read_reasons(run.path / run_report.DERIVED) == {"optim.lr": f"as {EVIL}"}
    (run.path / run_report.DERIVED).write_text('{"optim.lr": 3}')
    assert run_report.read_reasons(run.path / run_report.DERIVED) == {}


def test_other_ranks_write_nothing(tmp_path):
    report = RunReport(RunFolder(tmp_path), [], first_step=0, writes=False)
    assert report.update(1) == {} and report.finish(state="finished") is False
    assert not list(tmp_path.iterdir())


def test_a_study_has_its_answer_its_whiskers_and_its_curves(tmp_path):
    content = made_study(tmp_path)
    made = study_page(tmp_path, content)
    (ranking,) = blocks_of(made, "intervals")
    assert ranking["rows"][0]["name"] == "continue-selfpatch"
    reference = next(row for row in ranking["rows"] if row["name"] == "as-is")
    assert reference["difference"] is None and len(ranking["rows"][0]["values"]) == 3
    assert ranking["rows"][0]["difference"]["verdict"] == "better"
    answer = blocks_of(made, "text")[0]["lines"]
    assert answer[0].startswith("Continuing dinov2_vits14.pth by continue-selfpatch gave +")
    charts = blocks_of(made, "charts")[0]["charts"]
    assert [chart["title"] for chart in charts] == ["continue-selfpatch", "continue-dino", "dino-selfpatch-small"]
    assert [series["name"] for series in charts[0]["series"]] == ["seed 0", "seed 1", "seed 2"]
    links = {cell["link"] for table in blocks_of(made, "table") for row in table["rows"] for cell in row}
    assert "runs/continue-dino-1/report.html" in links


def test_a_study_that_has_just_begun(tmp_path):
    content = made_study(tmp_path, done=False)
    content |= {"cells": [], "progress": {}}
    made = study_page(tmp_path / "none", content)
    assert made.sections[0].title == "Progress" and not blocks_of(made, "intervals")


def test_compare_writes_a_page(tmp_path):
    for i, name in enumerate(("a.pth", "b.pth")):
        made_result(name, 0.4 + 0.1 * i).write(tmp_path / name / "result.json")
    compare([tmp_path / "a.pth", tmp_path / "b.pth"], out=tmp_path / "report.html")
    content = content_of((tmp_path / "report.html").read_text())
    table = content["sections"][0]["blocks"][0]
    assert [[cell["text"] for cell in row] for row in table["rows"]] == [["a.pth", "40.00"], ["b.pth", "50.00"]]
    assert table["rows"][1][1]["is_best"]
    bars = content["sections"][2]["blocks"][0]
    assert bars["categories"] == ["tree", "road", "sky"]
    assert {one["name"]: one["values"][0] for one in bars["series"]} == {"a.pth": 0.5, "b.pth": 0.6}
