"""One of the processes of a multi-process test: python -m tests.process WHAT ... FLAGS."""

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
from jax._src import cache_key, compiler
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from ic_jax import cli, multihost
from ic_jax.multihost import heartbeat
from ic_jax.sharding import make_mesh, parse, to_global_array
from infer.commands import main as infer
from train import checkpoints
from train.commands import main as train
from train.run_folder import StopAgreement

DIE_IN_SAVE = "die in step 2's save"


def meet(flags: list[str]) -> int:
    """Agree on a stop that only process 1 was asked for, then wait for process 3, which is late."""

    def command() -> None:
        join(flags)
        stop = SimpleNamespace(wanted=False)
        mesh = make_mesh(parse("data=8"))
        agreement, answers = StopAgreement(stop, mesh), []  # type: ignore[arg-type]
        any_asked = jax.jit(jnp.max, out_shardings=NamedSharding(mesh, P()))
        for step in range(4):
            stop.wanted = multihost.process_index() == 1 and step >= 1
            answers.append(agreement.wanted(any_asked(agreement.asked())))
        print(json.dumps({"stopping": answers, "first": multihost.is_first()}), flush=True)
        if multihost.process_index() == 3:
            signal.pause()
        multihost.barrier("here", 3)

    return cli.run(command)


def lose_the_first(flags: list[str]) -> int:
    """Kill process 0 while 1 waits for it, 2 computes and 3 is in a collective."""

    def command() -> None:
        join(flags)
        sharded = NamedSharding(make_mesh(parse("data=8")), P("data"))
        total = jax.jit(jnp.sum, out_shardings=NamedSharding(sharded.mesh, P()))
        assert int(total(to_global_array(np.arange(8), sharded, np.int32))) == 28
        multihost.barrier("summed")
        if multihost.process_index() == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        if multihost.process_index() == 1:
            multihost.barrier("never", 60)
        if multihost.process_index() == 2:
            while True:
                pass
        print(int(total(to_global_array(np.arange(8), sharded, np.int32))))

    return cli.run(command)


def join(flags: list[str]) -> None:
    """Join the other processes, as the commands do."""
    parser = argparse.ArgumentParser()
    cli.add_multiprocess(parser)
    args = parser.parse_args(flags)
    multihost.initialize(args.coordinator, args.num_processes, args.process_id)


def compile_once() -> None:
    """Let process 0 compile a program of all processes, and the others take it.

    Cores are few here, and gloo's collectives time out after 30 s while a process still compiles.
    """
    # On CPUs the topology's fingerprint differs from process to process, and with it the key.
    cache_key._hash_accelerator_config = cache_key._hash_devices
    jax.config.update("jax_share_binary_between_hosts", True)
    jax.config.update("jax_share_binary_between_hosts_timeout_ms", 900_000)


def record_resumed_state() -> None:
    """Write the shards of the state that this process restores, before it trains on."""
    restore = checkpoints.Checkpoints.restore

    def recorded(self, abstract, run_metadata, step=None):
        state = restore(self, abstract, run_metadata, step)
        shards = [
            (jax.tree_util.keystr(path), shard.index, jax.device_get(shard.data))
            for path, x in jax.tree_util.tree_leaves_with_path(state)
            for shard in x.addressable_shards
        ]
        run = self._steps.parent
        (run / f"resumed-{multihost.process_index()}.pickle").write_bytes(pickle.dumps(shards))
        return state

    checkpoints.Checkpoints.restore = recorded  # type: ignore[method-assign]


def record_compiled_programs() -> list[str]:
    """Return a list that receives the name of every program that XLA compiles from now on.

    A program read from the compilation cache is not compiled.
    """
    names: list[str] = []
    compile_program = compiler.backend_compile_and_load

    def recorded(backend, module, *args, **kwargs):
        names.append(module.operation.attributes["sym_name"].value)
        return compile_program(backend, module, *args, **kwargs)

    compiler.backend_compile_and_load = recorded
    return names


def die_in_the_save_of_step_2() -> None:
    """Kill process 3 when it has written its shards and has not told the others yet."""
    from orbax.checkpoint._src.multihost import multihost as orbax_multihost

    get_sync = orbax_multihost.get_barrier_sync_fn

    def get_mortal_sync(**settings):
        wait = get_sync(**settings)

        def sync(*, key, timeout_ms):
            if (
                multihost.process_index() == 3
                and "async_write_complete" in key
                and key.endswith(".2")
            ):
                os.kill(os.getpid(), signal.SIGKILL)
            return wait(key=key, timeout_ms=timeout_ms)

        return sync

    orbax_multihost.get_barrier_sync_fn = get_mortal_sync


if __name__ == "__main__":
    what, *rest = sys.argv[1:]
    heartbeat.TIMEOUT, heartbeat.INTERVAL, heartbeat.EXIT_TIMEOUT = 20.0, 1.0, 3.0
    compile_once()
    record_resumed_state()
    if what == DIE_IN_SAVE:
        die_in_the_save_of_step_2()
    compiled = record_compiled_programs()
    code = {"meet": meet, "lose the first": lose_the_first, "infer": infer}.get(what, train)(rest)
    print(json.dumps({"compiled": compiled}))
    sys.exit(code)
