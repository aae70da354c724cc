"""Gradient descent on several heads at once, each at a learning rate of its own.

A variable of the heads is a matrix [rows, heads * columns], or a vector [heads * columns]: head after head, side by side.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from pipeline.tensorflow_v1 import tf

OPTIMIZERS = ("sgd", "momentum", "adam")
MOMENTUM = 0.9
BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8
"""Of Adam: D. Kingma, J. Ba, "Adam", ICLR 2015."""

SCHEDULES = ("constant", "cosine", "step")


def schedule_factor(schedule: str, step: int, steps: int) -> float:
    """What a learning rate is multiplied by at a step (from 0).

    ``cosine`` falls along half a cosine from 1 to 0; ``step`` is 1, 0.1 from half of the steps, and 0.01 from three quarters.
    """
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * step / steps))
    if schedule == "step":
        return 1.0 if 2 * step < steps else 0.1 if 4 * step < 3 * steps else 0.01
    return 1.0


def minimize(
    optimizer: str, losses: tf.Tensor, variables: Sequence[tf.Variable], decays: Sequence[tf.Tensor | None], rates: tf.Tensor
) -> tf.Operation:
    """One step down, and one more of the global step.

    Args:
        optimizer: of OPTIMIZERS.
        losses: float32 [heads], one of each head.
        variables: those to train.
        decays: for each of them the weight decay, float32 [heads], or None for none.
        rates: float32 [heads], the learning rates at this step.
    """
    step = tf.train.get_or_create_global_step()
    adam = optimizer == "adam"
    # The heads share no variable, so a loss times its rate has the gradient times that rate: one pass less over the weights.
    gradients = tf.gradients(tf.reduce_sum(losses if adam else losses * rates), variables)
    updates = []
    for variable, gradient, decay in zip(variables, gradients, decays):
        if decay is not None:
            gradient = gradient + variable * _columns(decay if adam else decay * rates, variable)
        if adam:
            updates += _adam(variable, gradient, _columns(rates, variable), tf.cast(step + 1, tf.float32))
        elif optimizer == "momentum":
            accumulator = _slot(variable, "Momentum")
            updates.append(
                tf.raw_ops.ResourceApplyMomentum(var=variable.handle, accum=accumulator.handle, lr=1.0, grad=gradient, momentum=MOMENTUM)
            )
        else:
            updates.append(tf.raw_ops.ResourceApplyGradientDescent(var=variable.handle, alpha=1.0, delta=gradient))
    with tf.control_dependencies(updates):
        return step.assign_add(1).op


def _columns(of_heads: tf.Tensor, variable: tf.Variable) -> tf.Tensor:
    """A value of each head [heads] for each column of a variable [heads * columns]."""
    heads = int(of_heads.shape[0])
    return tf.repeat(of_heads, int(variable.shape[-1]) // heads)


def _slot(variable: tf.Variable, name: str) -> tf.Variable:
    return tf.get_variable(
        f"{variable.op.name}/{name}", variable.shape, initializer=tf.zeros_initializer(), trainable=False, use_resource=True
    )


def _adam(variable: tf.Variable, gradient: tf.Tensor, rates: tf.Tensor, step: tf.Tensor) -> list[tf.Operation]:
    first, second = _slot(variable, "Adam"), _slot(variable, "Adam_1")
    mean = first.assign(BETA1 * first + (1 - BETA1) * gradient)
    square = second.assign(BETA2 * second + (1 - BETA2) * gradient * gradient)
    correction = tf.sqrt(1 - tf.pow(BETA2, step)) / (1 - tf.pow(BETA1, step))
    return [variable.assign_sub(rates * correction * mean / (tf.sqrt(square) + EPSILON)).op]
