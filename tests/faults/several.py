"""`python -m train` as one of several processes on this machine, with short timeouts."""

from ic_jax.multihost import heartbeat
from tests.process import compile_once
from train.commands import main as train


def main(arguments: list[str]) -> int:
    """Train with the flags of a process among several."""
    heartbeat.TIMEOUT, heartbeat.INTERVAL, heartbeat.EXIT_TIMEOUT = 20.0, 1.0, 3.0
    compile_once()
    return train(arguments)
