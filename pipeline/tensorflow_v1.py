"""The one door to TensorFlow: its graphs, sessions and Savers (``tensorflow.compat.v1``), without its chatter.

Importing this module runs TensorFlow, and a process in which that has run cannot be forked any more. So nothing that Luigi imports
may import it at the top; ``tests/test_house.py`` sees to it.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator

from pipeline import tensorflow_import
from pipeline.tensorflow_import import hushed

tensorflow_import.load()
# While it looks for a GPU it chatters whatever the level is. So it looks here, and not at the first session.
with hushed():
    import tensorflow as tf2
    import tensorflow.compat.v1 as tf
    from tensorflow.compat.v1 import device as placed_on
    from tensorflow.core.protobuf.control_flow_pb2 import WhileContextDef
    from tensorflow.core.protobuf.rewriter_config_pb2 import RewriterConfig
    from tensorflow.core.protobuf.saved_model_pb2 import SavedModel
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    tf.config.experimental.list_physical_devices("GPU")

__all__ = [
    "SavedModel",
    "WhileContextDef",
    "control_flow_v1",
    "convert_variables_to_constants_v2",
    "has_gpu",
    "hushed",
    "placed_on",
    "session",
    "tf",
    "tf2",
]

tf.logging.set_verbosity(tf.logging.ERROR)
# TensorFlow warns that its own v1 calls are old. They are what this project is about.
warnings.filterwarnings("ignore", module=r"tensorflow\..*")


def _give_each_op_one_thread() -> None:
    """Size the pool of threads inside an op, which belongs to the process and is made by the first who needs it.

    That may be no session: TensorFlow makes it, a thread to a core, where a graph gets a function (a branch of ``tf.cond``).
    With one thread in it, no sum depends on the number of cores, and many photos at once, each on one thread, take 15 %
    less time than with two.
    """
    with tf.Graph().as_default():
        tf.Session(config=tf.ConfigProto(intra_op_parallelism_threads=1, device_count={"GPU": 0})).close()


_give_each_op_one_thread()
# Float32 is float32: on a GPU, TensorFlow would round what goes into a product to the 10 bits of TF32.
tf.config.experimental.enable_tensor_float_32_execution(False)


def has_gpu() -> bool:
    """Whether TensorFlow sees a GPU."""
    return bool(tf.config.list_physical_devices("GPU"))


def session(threads: int, precision: str = "float32", as_built: bool = False, gpu: bool = False) -> tf.Session:
    """A session on the default graph whose ops run on one thread each, ``threads`` ops at a time.

    It runs on the CPU, or with ``gpu`` on a GPU where there is one, whose memory is taken as needed. With ``precision``
    bfloat16 (a CPU that has it) or float16 (a GPU) TensorFlow's graph optimizer turns the heavy ops to it. ``as_built``
    leaves that optimizer out, which costs tenths of a second at the first runs.
    """
    config = tf.ConfigProto(
        intra_op_parallelism_threads=1,
        inter_op_parallelism_threads=threads,
        use_per_session_threads=True,
        device_count={} if gpu else {"GPU": 0},
    )
    config.gpu_options.allow_growth = True
    rewrites = config.graph_options.rewrite_options
    rewrites.disable_meta_optimizer = as_built
    if precision == "bfloat16":
        rewrites.auto_mixed_precision_onednn_bfloat16 = RewriterConfig.ON
    elif precision == "float16":
        rewrites.auto_mixed_precision = RewriterConfig.ON
    return tf.Session(config=config)


@contextlib.contextmanager
def control_flow_v1() -> Iterator[None]:
    """Build loops as plain nodes.

    The functions that control flow v2 makes carry a counter of the process in their names, so that two exports of one
    model would differ in their bytes.
    """
    was_v2 = tf.control_flow_v2_enabled()
    tf.disable_control_flow_v2()
    try:
        yield
    finally:
        if was_v2:
            tf.enable_control_flow_v2()
