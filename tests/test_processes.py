"""Two real processes train together: one process's losses, also when one of them is killed.

They talk over the loopback interface. Every wait has a limit, and what was started is killed.
"""

import contextlib
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

WORKER = pathlib.Path(__file__).with_name("process_worker.py")
LIMIT = 90.0  # seconds that a run may take
DEVICES, STEPS, SAVE_EVERY, KILL_AFTER = 4, 10, 3, 5


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Run:
    """The processes of one run, each the leader of its own process group."""

    def __init__(self, processes, checkpoints, last_waits_after=None):
        self.options = {
            "processes": processes,
            "port": free_port(),
            "steps": STEPS,
            "save_every": SAVE_EVERY,
            "checkpoints": str(checkpoints),
        }
        self.waits_after = [*[None] * (processes - 1), last_waits_after]
        self.deadline = time.monotonic() + LIMIT
        self.lines = [[] for _ in range(processes)]
        self.workers, self.readers = [], []

    def __enter__(self):
        devices = DEVICES // self.options["processes"]
        flags = f"--xla_force_host_platform_device_count={devices}"
        for i, wait_after in enumerate(self.waits_after):
            options = {**self.options, "process": i, "wait_after": wait_after}
            worker = subprocess.Popen(
                [sys.executable, str(WORKER), json.dumps(options)],
                env={**os.environ, "XLA_FLAGS": flags},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
            self.workers.append(worker)
            reader = threading.Thread(target=self._read, args=(i, worker), daemon=True)
            reader.start()
            self.readers.append(reader)
        return self

    def __exit__(self, *_):
        for worker in self.workers:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(worker.pid, signal.SIGKILL)
        for worker, reader in zip(self.workers, self.readers, strict=True):
            worker.wait(10)
            reader.join(10)
            worker.stdin.close()
            worker.stdout.close()

    def _read(self, i, worker):
        self.lines[i].extend(line.strip() for line in worker.stdout)

    def wait(self):
        """Until all have ended by themselves."""
        for i, worker in enumerate(self.workers):
            try:
                worker.wait(max(0.0, self.deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                pytest.fail(f"process {i} took more than {LIMIT} s:\n" + self.output(i))
            self.readers[i].join(10)
            assert worker.returncode == 0, self.output(i)
        return self

    def wait_for(self, line):
        """Until every process has printed a line that starts so."""
        while not all(any(s.startswith(line) for s in lines) for lines in self.lines):
            for i, worker in enumerate(self.workers):
                assert worker.poll() is None, self.output(i)
            assert time.monotonic() < self.deadline, "\n".join(
                map(self.output, range(len(self.lines)))
            )
            time.sleep(0.05)

    def kill(self, i):
        os.killpg(self.workers[i].pid, signal.SIGKILL)
        self.workers[i].wait(10)

    def output(self, i):
        return f"process {i}:\n" + "\n".join(self.lines[i][-40:])

    def losses(self, i=0):
        """The loss of each step that process `i` has seen."""
        found = re.findall(r"^(\d+) (\S+)$", "\n".join(self.lines[i]), re.MULTILINE)
        return {int(step): float(loss) for step, loss in found}


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    """A run in one process with as many devices, uninterrupted."""
    with Run(1, tmp_path_factory.mktemp("one")) as run:
        return run.wait()


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A run in two processes, one killed while the other waits for it; the run that takes it up."""
    checkpoints = tmp_path_factory.mktemp("two")
    with Run(2, checkpoints, last_waits_after=KILL_AFTER) as first:
        first.wait_for(f"{KILL_AFTER - 1} ")
        first.kill(1)
    with Run(2, checkpoints) as second:
        second.wait()
    return first, second


def assert_same_losses(losses, expected):
    for step, loss in losses.items():
        np.testing.assert_allclose(loss, expected[step], rtol=1e-5, err_msg=f"step {step}")


def test_the_loss_falls(one_process):
    losses = one_process.losses()
    assert losses[STEPS - 1] < 0.5 * losses[0]


def test_two_processes_have_the_losses_of_one(killed, one_process):
    first, _ = killed
    assert list(first.losses()) == list(range(KILL_AFTER))
    assert_same_losses(first.losses(), one_process.losses())


def test_restarted_processes_take_up_the_uninterrupted_trajectory(killed, one_process):
    _, second = killed
    assert list(second.losses()) == list(range(SAVE_EVERY, STEPS))
    assert_same_losses(second.losses(), one_process.losses())


def test_both_processes_see_the_same_losses(killed):
    for run in killed:
        assert run.losses(0) == run.losses(1)


def test_the_sums_of_weights_are_kept_over_processes_and_restarts(killed):
    """As centralize after Adam's scaling does; Adam alone moves them by 0.03 a step and weight."""
    _, second = killed
    for lines in second.lines:
        ((_, drift),) = [line.split() for line in lines if line.startswith("drift")]
        assert float(drift) < 1e-5


def test_no_process_is_left_behind(killed, one_process):
    for run in (*killed, one_process):
        for worker in run.workers:
            with pytest.raises(ProcessLookupError):
                os.killpg(worker.pid, 0)
