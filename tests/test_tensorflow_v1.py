"""The one door to TensorFlow: what holds for every process that comes through it."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

BUSY_CORES = """
import time
import numpy as np
from pipeline.tensorflow_v1 import session, tf

with tf.Graph().as_default():
    first = tf.placeholder(tf.float32, [2000, 2000])
    # Its branches are functions, and with the first function TensorFlow makes the process its pool of threads.
    tf.cond(tf.size(first) > 0, lambda: first, lambda: first + 1)
    run = session(threads=1).make_callable(first @ first, [first])
    given = np.ones([2000, 2000], np.float32)
    run(given)
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(10):
        run(given)
    print((time.process_time() - cpu) / (time.perf_counter() - wall))
"""


def test_an_op_has_one_thread_whatever_was_built_before_the_session() -> None:
    done = subprocess.run([sys.executable, "-c", BUSY_CORES], capture_output=True, text=True, check=True)
    # A thread is busy for no more than the time that goes by; several would be for a multiple of it.
    assert float(done.stdout) < 1.3


def test_one_dnn_computes_on_every_x86_cpu() -> None:
    """TensorFlow leaves it out where the CPU has no AVX512-VNNI, and a photo takes half as long again."""
    if platform.machine() != "x86_64":
        return
    code = "from pipeline.tensorflow_v1 import tf\nfrom tensorflow.python.util import _pywrap_util_port as port\nprint(port.IsMklEnabled())"
    environment = {name: value for name, value in os.environ.items() if name != "TF_ENABLE_ONEDNN_OPTS"}
    assert subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True).stdout == "True\n"
