"""A user's own module among the ops."""

from . import bias_act


def halved(x):
    return bias_act.bias_act(x, act="linear", gain=0.5)
