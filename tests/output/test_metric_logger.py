"""The log of a run that was killed: no line is lost, and none comes twice."""

import pytest

from selfpatch.output.metric_logger import MetricLogger, read_metrics


def test_a_run_that_goes_on_keeps_the_lines_up_to_its_checkpoint(tmp_path):
    path = tmp_path / "metrics.jsonl"
    logger = MetricLogger(path)
    for step in (1, 2, 3, 4):
        logger.log(step, {"loss": 0.5})
    MetricLogger(path, first_step=2).log(3, {"loss": 0.25})
    assert [(line["step"], line["loss"]) for line in read_metrics(path)] == [(1, 0.5), (2, 0.5), (3, 0.25)]


def test_a_run_that_begins_again_keeps_none(tmp_path):
    """Killed before its first checkpoint: the score before training is made and written again."""
    path = tmp_path / "metrics.jsonl"
    for _ in range(2):
        MetricLogger(path, first_step=0).log(0, {"in_context/mIoU": 0.125})
    assert read_metrics(path) == [{"step": 0, "in_context/mIoU": 0.125}]


@pytest.mark.parametrize(
    "damaged",
    [b"3", b"{}", b'{"loss": 1}', b'{"step": "2"}', b"\xff\xfe", b'{"step": 2, "lo', b"\0" * 8, b"[" * 100_000],
)
def test_damaged_lines_are_passed_over(damaged, tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + damaged + b'\n{"step": 3}\n')
    assert read_metrics(path) == [{"step": 1}, {"step": 3}]
    MetricLogger(path, first_step=3)
    assert read_metrics(path) == [{"step": 1}, {"step": 3}]
