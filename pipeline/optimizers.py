"""Gradient descent on several heads at once, each at a learning rate of its own.

A variable of the heads has its rows head after head: [heads * rows, columns], or [heads * rows].
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from pipeline.heads import for_rows
from pipeline.tensorflow_v1 import tf

OPTIMIZERS = ("sgd", "momentum", "adam")
MOMENTUM = 0.9
BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8
"""Of Adam: D. Kingma, J. Ba, "Adam", ICLR 2015."""

SCHEDULES = ("constant", "cosine", "step")


def schedule_factors(schedule: str, start: int, end: int, steps: int) -> list[float]:
    """What a learning rate is multiplied by at each step from ``start`` (the first step is 0) to before ``end``, of ``steps`` in all.

    ``cosine`` falls along half a cosine from 1 to 0; ``step`` is 1, 0.1 from half of the steps, and 0.01 from three quarters.
    """
    if schedule == "cosine":
        return [0.5 * (1 + math.cos(math.pi * step / steps)) for step in range(start, end)]
    if schedule == "step":
        return [1.0 if 2 * step < steps else 0.1 if 4 * step < 3 * steps else 0.01 for step in range(start, end)]
    return [1.0] * (end - start)


class Optimizer:
    """One of OPTIMIZERS for some variables of the heads; its slots are made with it, in ``collections`` if not the global one."""

    def __init__(self, name: str, variables: Mapping[str, tf.Variable], collections: list[str] | None = None) -> None:
        self._name, self._variables, self._collections = name, variables, collections
        slots = {"sgd": (), "momentum": ("Momentum",), "adam": ("Adam", "Adam_1")}[name]
        self._slots = {key: [self._slot(variable, slot) for slot in slots] for key, variable in variables.items()}

    def _slot(self, variable: tf.Variable, name: str) -> tf.Variable:
        kind = {"initializer": tf.zeros_initializer(), "trainable": False, "use_resource": True, "collections": self._collections}
        return tf.get_variable(f"{variable.op.name}/{name}", variable.shape, **kind)

    @property
    def state(self) -> list[tf.Variable]:
        """The variables with their slots."""
        return [one for name, variable in self._variables.items() for one in (variable, *self._slots[name])]

    def step(
        self, logits: tf.Tensor, logit_gradients: tf.Tensor, rates: tf.Tensor, decays: tf.Tensor, global_step: tf.Tensor
    ) -> list[tf.Operation]:
        """One step down.

        Args:
            logits: float32 [heads, classes, batch], computed from the variables.
            logit_gradients: of each head's loss by its logits, in the same shape.
            rates, decays: float32 [heads], learning rates and weight decays; the latter for matrices, not for biases.
            global_step: int64, steps done before.
        """
        adam = self._name == "adam"
        if not adam:
            # The heads share no variable: a small tensor times the rates here saves a pass over the large gradients.
            logit_gradients, decays = logit_gradients * rates[:, tf.newaxis, tf.newaxis], decays * rates
        updates: list[tf.Operation] = []
        gradients = tf.gradients([logits], list(self._variables.values()), [logit_gradients])
        for (name, variable), gradient in zip(self._variables.items(), gradients):
            if len(variable.shape) == 2:
                gradient = gradient + variable * for_rows(decays, variable)
            if adam:
                updates.append(self._adam(name, gradient, for_rows(rates, variable), tf.cast(global_step + 1, tf.float32)))
            elif self._name == "momentum":
                (accumulator,) = self._slots[name]
                arguments = {"var": variable.handle, "accum": accumulator.handle, "grad": gradient}
                updates.append(tf.raw_ops.ResourceApplyMomentum(**arguments, lr=1.0, momentum=MOMENTUM))
            else:
                updates.append(tf.raw_ops.ResourceApplyGradientDescent(var=variable.handle, alpha=1.0, delta=gradient))
        return updates

    def _adam(self, name: str, gradient: tf.Tensor, rates: tf.Tensor, step: tf.Tensor) -> tf.Operation:
        mean, square = self._slots[name]
        new_mean = mean.assign(BETA1 * mean + (1 - BETA1) * gradient)
        new_square = square.assign(BETA2 * square + (1 - BETA2) * gradient * gradient)
        correction = tf.sqrt(1 - tf.pow(BETA2, step)) / (1 - tf.pow(BETA1, step))
        return self._variables[name].assign_sub(rates * correction * new_mean / (tf.sqrt(new_square) + EPSILON)).op
