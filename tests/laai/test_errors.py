"""What a user is told: one line, whatever was found, and which process a run of several failed in."""

from __future__ import annotations

import pytest
import torch

from laai.errors import LONGEST, UserError, between_processes, ends_in_one_line


def test_a_message_is_one_line_that_steers_no_terminal():
    assert str(UserError("found 'a\nb\x1b[31m'")) == "found 'a b\\x1b[31m'"
    long = str(UserError("x" * (2 * LONGEST) + "end"))
    assert len(long) < LONGEST + 5
    assert long.endswith("end")


LOST, APART = "another process of this run stopped", "the processes of this run cannot reach each other"


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (RuntimeError("[gloo/pair.cc:553] Connection closed by peer [127.0.0.1]. Typically a crash."), LOST),
        (torch.distributed.DistBackendError("NCCL: remote process exited or there was a network error"), LOST),
        (torch.distributed.DistNetworkError("The server socket has failed to listen. Address in use."), APART),
        (RuntimeError("[gloo/device.cc] rendezvous timed out"), APART),
    ],
)
def test_errors_between_processes_take_a_line(error, told):
    line = between_processes(error)
    assert line.startswith(told)
    assert "\n" not in line
    assert str(error).split(". ")[0] in line
    assert "Typically" not in line


def test_an_error_of_this_process_is_its_own():
    assert between_processes(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) is None


class Terminated(SystemExit):
    """As Lightning's own for SIGTERM."""


@pytest.mark.parametrize(
    ("raised", "resume", "code", "said"),
    [
        (UserError("no such\nfile"), "", 2, "error: no such file\n"),
        (
            RuntimeError("gloo: Broken pipe"),
            "",
            3,
            "error: another process of this run stopped (gloo: Broken pipe); its",
        ),
        (RuntimeError("gloo: Broken pipe"), "again", 3, "; its own output says why; to go on: again\n"),
        (KeyboardInterrupt(), "again", 130, "\ninterrupted\n"),
        (Terminated(), "", 143, ""),
        (Terminated(143), "", 143, ""),
        (SystemExit(4), "", 4, ""),
    ],
)
def test_a_command_ends_in_one_line_and_a_code(capsys, raised, resume, code, said):
    @ends_in_one_line(resume)
    def command():
        raise raised

    for _ in range(2):
        with pytest.raises(SystemExit) as end:
            command()
        assert end.value.code == code
        assert said in capsys.readouterr().err


def test_a_defect_comes_through():
    with pytest.raises(RuntimeError, match="shapes"), ends_in_one_line():
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")
