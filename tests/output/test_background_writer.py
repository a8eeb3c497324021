"""One job at a time, errors by the next call, and nothing is left behind at the end but after Ctrl-C."""

import threading

import pytest

from selfpatch.output.background_writer import BackgroundWriter


def test_a_job_runs_beside_its_caller_and_the_next_waits_for_it():
    done: list[str] = []
    go_on = threading.Event()
    with BackgroundWriter() as writer:
        writer.submit(lambda: (go_on.wait(10), done.append("first")))
        assert done == []
        threading.Timer(0.05, go_on.set).start()
        writer.submit(lambda: done.append("second"))
        assert done[0] == "first"
    assert done == ["first", "second"]


@pytest.mark.parametrize("call", ["wait", "raise_error", "submit", "leave"])
def test_an_error_is_raised_once_by_the_next_call(call):
    def fail():
        raise OSError("the disk is full")

    writer = BackgroundWriter()
    writer.submit(fail)
    writer._thread.join()
    with pytest.raises(OSError, match="the disk is full"):
        match call:
            case "submit":
                writer.submit(lambda: None)
            case "leave":
                writer.__exit__(None, None, None)
            case _:
                getattr(writer, call)()
    writer.wait()


def test_an_error_of_training_waits_for_the_file_and_ctrl_c_does_not():
    for error, waits in ((ValueError, True), (KeyboardInterrupt, False)):
        go_on, done = threading.Event(), threading.Event()
        threading.Timer(0.05 if waits else 1.0, go_on.set).start()
        with pytest.raises(error), BackgroundWriter() as writer:
            writer.submit(lambda go_on=go_on, done=done: (go_on.wait(10), done.set()))
            raise error
        assert done.is_set() == waits
        go_on.set()
