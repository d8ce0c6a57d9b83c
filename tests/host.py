"""One of the processes of tests that have several hosts: python -m tests.host WHAT ... FLAGS."""

import argparse
import json
import os
import pickle
import signal
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from ic_jax import cli, multihost
from ic_jax.multihost import heartbeat
from ic_jax.sharding import make_mesh, parse, to_global_array
from infer.commands import main as infer
from train import checkpoints
from train.commands import main as train
from train.run_folder import StopAgreement

DIES = "die in step 2's save"


def meet(flags: list[str]) -> int:
    """Agree on a stop that only host 1 was asked for, then wait for host 3, which comes late."""

    def command() -> None:
        join(flags)
        stop = SimpleNamespace(wanted=False)
        agreement, answers = StopAgreement(stop, make_mesh(parse("data=8"))), []  # type: ignore[arg-type]
        for step in range(4):
            stop.wanted = multihost.process_index() == 1 and step >= 1
            answers.append(agreement.wanted())
        print(json.dumps({"stopping": answers, "first": multihost.is_first()}), flush=True)
        if multihost.process_index() == 3:
            signal.pause()
        multihost.barrier("here", 3)

    return cli.run(command)


def lose_the_first(flags: list[str]) -> int:
    """Host 0 is killed; host 1 waits for it, host 2 computes, host 3 is in a collective."""

    def command() -> None:
        join(flags)
        everywhere = NamedSharding(make_mesh(parse("data=8")), P("data"))
        summed = jax.jit(jnp.sum, out_shardings=NamedSharding(everywhere.mesh, P()))
        assert int(summed(to_global_array(np.arange(8), everywhere, np.int32))) == 28
        multihost.barrier("summed")
        if multihost.process_index() == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        if multihost.process_index() == 1:
            multihost.barrier("never", 60)
        if multihost.process_index() == 2:
            while True:
                pass
        print(int(summed(to_global_array(np.arange(8), everywhere, np.int32))))

    return cli.run(command)


def join(flags: list[str]) -> None:
    parser = argparse.ArgumentParser()
    cli.add_multiprocess(parser)
    given = parser.parse_args(flags)
    multihost.initialize(given.coordinator, given.num_processes, given.process_id)


def note_what_is_resumed() -> None:
    """Write the pieces of the state that this host has read, before it trains on."""
    restore = checkpoints.Checkpoints.restore

    def noted(self, abstract, facts, step=None):
        state = restore(self, abstract, facts, step)
        pieces = [
            (jax.tree_util.keystr(path), piece.index, jax.device_get(piece.data))
            for path, x in jax.tree_util.tree_leaves_with_path(state)
            for piece in x.addressable_shards
        ]
        run = self._steps.parent
        (run / f"resumed-{multihost.process_index()}.pickle").write_bytes(pickle.dumps(pieces))
        return state

    checkpoints.Checkpoints.restore = noted  # type: ignore[method-assign]


def note_what_is_compiled() -> list[str]:
    """The names of programs that JAX compiles from now on."""
    names: list[str] = []

    def listen(event: str, seconds: float, *, fun_name: str = "", **_: object) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            names.append(fun_name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    return names


def die_in_the_save_of_step_2() -> None:
    """Host 3 has written its part and has not told the others yet."""
    from orbax.checkpoint._src.multihost import multihost as orbax_multihost

    before = orbax_multihost.get_barrier_sync_fn

    def mortal(**how):
        wait = before(**how)

        def sync(*, key, timeout_ms):
            if (
                multihost.process_index() == 3
                and "async_write_complete" in key
                and key.endswith(".2")
            ):
                os.kill(os.getpid(), signal.SIGKILL)
            return wait(key=key, timeout_ms=timeout_ms)

        return sync

    orbax_multihost.get_barrier_sync_fn = mortal


if __name__ == "__main__":
    what, *rest = sys.argv[1:]
    heartbeat.SILENCE, heartbeat.PULSE, heartbeat.FAREWELL = 20.0, 1.0, 3.0
    note_what_is_resumed()
    if what == DIES:
        die_in_the_save_of_step_2()
    compiled = note_what_is_compiled()
    code = {"meet": meet, "lose the first": lose_the_first, "infer": infer}.get(what, train)(rest)
    print(json.dumps({"compiled": compiled}))
    sys.exit(code)
