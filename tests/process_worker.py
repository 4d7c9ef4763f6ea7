"""One process of a training run over several processes; test_processes.py starts and ends it.

Reads a JSON object of options from its argument, prints the loss of every step as ``step loss``.
"""

import json
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from optax_gc import centralize

DATA, MODEL = 2, 2
BATCH, FEATURES = 24, 20


class Network(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(32, name="hidden")(x))
        x = nn.relu(nn.Dense(12, name="narrow")(x))
        return nn.Dense(3, name="head")(x)


def sharding_of(mesh, x):
    """The rows of kernels, which are their fan-in, over the devices of both mesh axes."""
    rows = DATA * MODEL
    split = len(x.shape) == 2 and x.shape[0] % rows == 0
    return NamedSharding(mesh, P(("data", "model")) if split else P())


def batch_of(step, sharding):
    """A batch that depends on the step alone; every process makes the rows that it holds."""
    rng = np.random.default_rng(step)
    x = rng.random((BATCH, FEATURES), np.float32)
    y = np.stack([x[:, :5].sum(1), x[:, 3] * x[:, 7], x.std(1)], 1)
    return [jax.make_array_from_callback(a.shape, sharding, lambda i, a=a: a[i]) for a in (x, y)]


def connect(process, processes, port):
    """Joins the other processes; before anything is computed."""
    jax.config.update("jax_platforms", "cpu")
    if processes > 1:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        address = f"127.0.0.1:{port}"
        jax.distributed.initialize(
            address,
            processes,
            process,
            coordinator_bind_address=None if process else address,
            initialization_timeout=60,
        )


def drift(params, first):
    """How far the sum over the fan-in of any unit's weights has moved."""
    sums = jax.tree.map(lambda w: w.sum(0) if w.ndim == 2 else jnp.zeros(1), (params, first))
    return jnp.stack(jax.tree.leaves(jax.tree.map(lambda a, b: abs(a - b).max(), *sums))).max()


def main(options):
    connect(options["process"], options["processes"], options["port"])
    mesh = jax.make_mesh((DATA, MODEL), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    network = Network()
    tx = optax.chain(optax.scale_by_adam(), centralize(), optax.scale_by_learning_rate(3e-2))

    def start():
        params = network.init(jax.random.key(0), jnp.zeros((1, FEATURES)))["params"]
        return params, tx.init(params)

    shardings = jax.tree.map(lambda x: sharding_of(mesh, x), jax.eval_shape(start))
    state = jax.jit(start, out_shardings=shardings)()
    first = state[0]

    @jax.jit
    def train(state, x, y):
        params, opt_state = state
        loss, grads = jax.value_and_grad(
            lambda p: ((network.apply({"params": p}, x) - y) ** 2).mean()
        )(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), loss

    with ocp.CheckpointManager(options["checkpoints"]) as manager:
        done = manager.latest_step()
        if done is not None:
            target = jax.tree.map(
                lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, shardings
            )
            state = manager.restore(done, args=ocp.args.StandardRestore(target))
        for step in range(0 if done is None else done, options["steps"]):
            x, y = batch_of(step, NamedSharding(mesh, P("data")))
            state, loss = train(state, x, y)
            print(step, f"{float(loss):.9e}", flush=True)
            if (step + 1) % options["save_every"] == 0:
                manager.save(step + 1, args=ocp.args.StandardSave(state))
                manager.wait_until_finished()
                print("saved", step + 1, flush=True)
            if step + 1 == options["wait_after"]:
                sys.stdin.read()  # until it is killed
    print("drift", float(jax.jit(drift)(state[0], first)), flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
