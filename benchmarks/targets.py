"""TPUs and GPUs that are not here: XLA compiles for them, and says what a program will move.

``jax[tpu]`` brings the compiler for TPUs, ``jax[cuda12]`` the one for GPUs; neither needs a device
or a driver. What a compiled program says is exact, and the same on every run, but it is no time.
"""

import importlib.util
import math
import os
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

# Before JAX makes a client: nothing is asked of a machine in the cloud, or of a driver.
jax.config.update("jax_platforms", "cpu")
for _name, _value in {
    "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # without a device there is none to share
}.items():
    os.environ.setdefault(_name, _value)

# One topology, and one of 16 chips. No smaller one is known than a host's.
_TPUS = {"v5e": ("v5e:2x2", "v5e:4x4"), "v6e": ("v6e:2x2", "v6e:4x4"), "v4": ("v4:2x2x1", "")}
# What the compiler asks about a GPU, from NVIDIA's data sheets of the H100 and the A100 (SXM).
_GPU = """
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_core: {shared}
  shared_memory_per_block_optin: {optin} core_count: {cores} fpus_per_core: {lanes}
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: {bandwidth} l2_cache_size: {cache} clock_rate_ghz: {clock}
  device_memory_size: {memory} cuda_compute_capability {{ major: {major} }}
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}}
platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 1 patch: 0 }}
device_description_str: "NVIDIA {chip}"
"""
_GPUS: dict[str, dict[str, Any]] = {
    "H100": {
        "major": 9, "cores": 132, "lanes": 128, "clock": 1.98, "cache": 50 * 2**20,
        "shared": 228 * 2**10, "optin": 227 * 2**10, "bandwidth": 3352320000000,
        "memory": 84978434048,
    },
    "A100": {
        "major": 8, "cores": 108, "lanes": 64, "clock": 1.41, "cache": 40 * 2**20,
        "shared": 164 * 2**10, "optin": 163 * 2**10, "bandwidth": 1555200000000,
        "memory": 42410180608,
    },
}  # fmt: skip
CHIPS = (*_TPUS, *_GPUS)
# Autotuning needs a device, without it Triton finds no tiles for some products, and command buffers
# hide kernels from the program's text.
_OPTIONS = {
    "xla_gpu_autotune_level": 0,
    "xla_gpu_enable_triton_gemm": False,
    "xla_gpu_enable_command_buffer": "",
}


class Target(NamedTuple):
    """What is compiled for: a kind of chip, and a mesh of one or many."""

    chip: str
    mesh: Mesh

    def structs(self, tree: Any, specs: Any = None) -> Any:
        """The structs of `tree`, placed on this mesh: replicated, or as `specs` say."""
        specs = jax.tree.map(lambda x: PartitionSpec(), tree) if specs is None else specs
        return jax.tree.map(
            lambda x, spec: jax.ShapeDtypeStruct(
                x.shape, x.dtype, sharding=NamedSharding(self.mesh, spec)
            ),
            tree,
            specs,
        )

    def compile(self, step: Any, *args: Any, **kwargs: Any) -> Any:
        """The program of a jitted step on structs that lie on this mesh."""
        options = _OPTIONS if self.chip in _GPUS else None
        return step.lower(*args, **kwargs).compile(compiler_options=options)


def installed() -> list[str]:
    """The chips for which this environment has a compiler."""
    plugins = {"libtpu": _TPUS, "jax_cuda12_plugin": _GPUS}
    return [chip for name in plugins if importlib.util.find_spec(name) for chip in plugins[name]]


def target(chip: str, *, many: bool = False) -> Target:
    """One chip; or, if many, a mesh (x, y) of 4 by 4 TPUs or 4 by 2 GPUs."""
    if chip in _TPUS:
        name = _TPUS[chip][many]
        devices = topologies.get_topology_desc(platform="tpu", topology_name=name).devices
    else:
        devices = topologies.get_topology_desc(
            platform="cuda",
            topology_name=chip,
            topology="1x1x8" if many else "1x1x1",
            target_config=_GPU.format(chip=chip, **_GPUS[chip]),
        ).devices
    chosen = np.array(devices if many else devices[:1])
    return Target(chip, Mesh(chosen.reshape(4, -1) if many else chosen.reshape(1, 1), ("x", "y")))


# ---- what a program says

# S(1) and above, in an array's layout, is memory on the chip.
_ARRAY = re.compile(
    r"\b(?:pred|[a-z]+(?P<bits>\d+)\w*)\[(?P<shape>[\d,]*)\](?P<on_chip>\{[^}]*S\([1-9]\))?"
)
_INSTRUCTION = re.compile(
    r"\s*(?:ROOT )?%(?P<name>[\w.-]+) = (?P<result>.*?) (?P<kind>[a-z][\w-]*)\((?P<operands>[^)]*)"
)
_MOVES_NOTHING = {"parameter", "tuple", "get-tuple-element", "bitcast", "constant", "slice-start"}
_READS_A_PART = {"slice", "dynamic-slice", "slice-done"}
_COLLECTIVE = re.compile(
    r" = (?P<result>.*?) (?:all-gather|all-reduce|all-to-all|reduce-scatter|collective-permute|"
    r"collective-broadcast|ragged-all-to-all)(?:-start)?\("
)


def moved(program: str) -> int:
    """Bytes that the entry computation reads from main memory and writes there.

    Not what it moves on the chip, where a TPU's compiler brings pieces ahead of their use; and not
    what the bodies of loops move.
    """
    sizes: dict[str, int] = {}
    total = 0
    for line in _entry(program):
        if not (found := _INSTRUCTION.match(line)):
            continue
        kind, result = found["kind"], found["result"]
        sizes[found["name"]] = written = nbytes(result, main_memory=True)
        if kind in _READS_A_PART:
            total += nbytes(result) + written
        elif kind not in _MOVES_NOTHING:
            read = sum(sizes.get(name, 0) for name in re.findall(r"%([\w.-]+)", found["operands"]))
            # Of an asynchronous instruction the first half reads, and the second writes.
            total += read * (not kind.endswith("-done")) + written * (not kind.endswith("-start"))
    return total


def collectives(program: str) -> list[int]:
    """The bytes of each collective's result, on one device."""
    return [nbytes(found["result"]) for found in _COLLECTIVE.finditer(program)]


def nbytes(text: str, *, main_memory: bool = False) -> int:
    """The size of the arrays whose types a piece of a program names; a bool takes a byte."""
    return sum(
        math.prod(int(n) for n in found["shape"].split(",") if n) * int(found["bits"] or 8) // 8
        for found in _ARRAY.finditer(text)
        if not (main_memory and found["on_chip"])
    )


def _entry(program: str) -> Iterator[str]:
    lines = iter(program.splitlines())
    for line in lines:
        if line.startswith("ENTRY"):
            break
    for line in lines:
        if line.startswith("}"):
            return
        yield line
