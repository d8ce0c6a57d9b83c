"""Signals are heard at once, and lines reach terminals of any encoding."""

import hashlib
import io
import os
import signal
import sys
from threading import Timer

import pytest
from PIL import Image

from ic_jax import cli, signals
from ic_jax.signals import answered, interrupts_arrive
from infer.picture_file import FORMATS, can_write, encode, parameters, read_metadata
from tests.test_infer_output import METADATA
from train.run_folder import StopRequest


def compute() -> None:
    """Be in one call for a while, as in a compilation: Python's handlers wait for its end."""
    hashlib.pbkdf2_hmac("sha256", b"a", b"b", 1_500_000)


def test_a_signal_is_answered_before_its_handler_can_run():
    order = []
    before = signal.signal(signal.SIGUSR1, lambda *_: order.append("handler"))
    with answered(lambda number: order.append(number)):
        Timer(0.05, os.kill, (os.getpid(), signal.SIGUSR1)).start()
        compute()
    signal.signal(signal.SIGUSR1, before)
    assert order == [signal.SIGUSR1, "handler"]


def test_an_interrupt_that_has_to_wait_is_acknowledged(monkeypatch, capfd):
    monkeypatch.setattr(signals, "PATIENCE", 0)

    def work() -> None:
        with interrupts_arrive():
            Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()
            compute()

    with pytest.raises(KeyboardInterrupt):
        work()
    assert "interrupted: waiting for what is being computed" in capfd.readouterr().err


def test_a_request_to_stop_is_acknowledged_once(capfd):
    with StopRequest() as request:
        Timer(0.05, os.kill, (os.getpid(), signal.SIGTERM)).start()
        compute()
        assert request.wanted
    assert capfd.readouterr().err.count("stopping after this step, to save") == 1


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_every_text_is_printed_on_every_terminal(monkeypatch, encoding):
    output = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(output, encoding))
    assert cli.run(lambda: cli.say("drew \u4e00-\udcff.png")) == 0
    sys.stdout.flush()
    shown = {"utf-8": "drew \u4e00".encode()}.get(encoding, b"drew \\u4e00")
    assert output.getvalue() == shown + b"-\\udcff.png\n"


@pytest.mark.parametrize("ending", [ending for ending in FORMATS if can_write(ending)])
def test_a_picture_tells_names_that_are_not_utf8(tmp_path, ending):
    metadata = METADATA | {"model": os.fsdecode(b"/m\xff"), "lora": [os.fsdecode(b"a\xfe=1.0")]}
    file = tmp_path / f"a{ending}"
    file.write_bytes(encode(Image.new("RGB", (16, 16)), ending, metadata))
    assert read_metadata(file) == metadata
    assert "\udcfe" in parameters(metadata)
