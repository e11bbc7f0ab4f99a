"""The frame around every command: exit codes, streams, and one-line errors."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import entry_points, version
from types import ModuleType

import pytest

from shiftscope.errors import LoadError

(SCRIPT,) = entry_points(group="console_scripts", name="shiftscope")
main: Callable[[list[str]], int] = SCRIPT.load()
RUN = [sys.executable, "-c", "import sys; from shiftscope.cli import main; sys.exit(main())"]


def sibling(name: str) -> ModuleType:
    """A module of the command line, found beside its entry point."""
    main_module = sys.modules[main.__module__]
    return sys.modules[f"{main_module.__package__}.{name}"]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], int]], int]:
    """Run ``shiftscope report x`` with another body in place of the command's own."""

    def run(body: Callable[[], int]) -> int:
        def replaced(arguments: argparse.Namespace) -> int:
            return body()

        monkeypatch.setattr(sibling("report"), "run", replaced)
        return main(["report", "x"])

    return run


def raising(error: BaseException) -> Callable[[], int]:
    def body() -> int:
        raise error

    return body


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"shiftscope {version('shiftscope')}\n"


@pytest.mark.parametrize("code", [0, 1])
def test_the_code_of_the_command_is_returned(command: Callable[..., int], code: int) -> None:
    assert command(lambda: code) == code


def test_errors_for_users_take_two_lines(
    command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(raising(LoadError("it is broken", "mend it"))) == 2
    assert capsys.readouterr() == ("", "shiftscope: it is broken\n  try: mend it\n")


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nonsense"],
        ["analyze"],
        ["report"],
        ["report", "x", "--fail-on", "fatal"],
        ["report", "x", "--format", "pdf"],
        ["report", "x", "--format", ""],
        ["report", "x", "y"],
        ["analyze", "x", "--batches", "0"],
        ["analyze", "x", "--batches", "many"],
        ["analyze", "x", "--batch-size", "-3"],
        ["analyze", "x", "--seed", "-1"],
        ["analyze", "x", "--dtype", "float16"],
        ["analyze", "x", "--unheard-of"],
    ],
    ids=" ".join,
)
def test_usage_errors_take_two_lines(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    reason, remedy = err.splitlines()
    assert reason.startswith("shiftscope: ")
    assert remedy.startswith("  try: see shiftscope")
    assert remedy.endswith("--help")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(28, "No space left on device", "out/report.html"), "No space left"),
        (PermissionError(13, "Permission denied", "out"), "Permission denied: out"),
        (FileNotFoundError(2, "No such file or directory", "a.pt"), "No such file"),
        (MemoryError(), "out of memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "out of memory"),
    ],
)
def test_what_the_machine_refuses_is_bad_input(
    command: Callable[..., int], capsys: pytest.CaptureFixture[str], error: Exception, said: str
) -> None:
    assert command(raising(error)) == 2
    reason, remedy = capsys.readouterr().err.splitlines()
    assert said in reason
    assert remedy.startswith("  try: ")


def test_a_defect_is_told_apart(
    command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(raising(ZeroDivisionError("division by zero"))) == 70
    out, err = capsys.readouterr()
    assert out == ""
    assert "ZeroDivisionError: division by zero" in err
    assert "SHIFTSCOPE_DEBUG=1" in err
    assert "Traceback" not in err


def test_the_traceback_is_shown_on_request(
    command: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SHIFTSCOPE_DEBUG", "1")
    assert command(raising(LoadError("it is broken", "mend it"))) == 2
    assert "Traceback" in capsys.readouterr().err


def test_interrupted(command: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert command(raising(KeyboardInterrupt())) == 130
    assert capsys.readouterr() == ("", "shiftscope: interrupted\n")


def test_names_from_a_file_cannot_command_the_terminal(
    command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    name = "layer\x1b[2J\x1b]0;owned\x07\nshiftscope: done\r"
    assert command(raising(LoadError(f"no {name}", f"drop {name}"))) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 2
    assert all(c.isprintable() for line in err.splitlines() for c in line)
    assert r"layer\x1b[2J" in err


def test_a_closed_pipe_is_quiet() -> None:
    """Nobody reads the results: no traceback, and the code of the command stays."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as closed:
        run = subprocess.run([*RUN, "--help"], stdout=closed, stderr=subprocess.PIPE, text=True)
    assert (run.returncode, run.stderr) == (0, "")


def test_plain_ascii_terminals_get_question_marks() -> None:
    env = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "LC_ALL": "C"}
    code = RUN[2].replace("main()", "main(['report', '\\u03b7.npz', '--out', '\\u03b7\\0'])")
    run = subprocess.run([*RUN[:2], code], capture_output=True, text=True, env=env)
    assert run.returncode == 2
    assert len(run.stderr.splitlines()) == 2


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_ctrl_c_ends_with_130() -> None:
    code = (
        "import signal, sys, time\nfrom shiftscope.cli import main\n"
        # A shell that runs tests in the background has its children ignore the signal.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "report = sys.modules['shiftscope.cli.report']\n"
        "def wait(arguments):\n    print('ready', flush=True)\n    time.sleep(60)\n"
        "report.run = wait\nsys.exit(main(['report', 'x']))\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == "ready\n"
        run.send_signal(signal.SIGINT)
        _, err = run.communicate(timeout=30)
    assert (run.returncode, err) == (130, "shiftscope: interrupted\n")
