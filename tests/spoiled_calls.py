"""Calls with one thing wrong, each of which has to raise the same sentence on every framework."""

import numpy as np
from arguments import Argument, Memory

# What is wrong: (the losses that have it, what the options become)
OPTIONS = {
    "reduce": ("", {"reduce": "average"}),
    "denom beside a sum": ("", {"reduce": "sum", "denom": 2.0}),
    "denom of a shape": ("", {"reduce": "mean", "denom": np.ones(1)}),
    "much smoothing": ("", {"label_smoothing": 1.5}),
    "smoothing of NaN": ("", {"label_smoothing": float("nan")}),
    "smoothing in words": ("", {"label_smoothing": "0.1"}),
    "smoothing in an array": ("", {"label_smoothing": np.array(0.1)}),
    "infinite z_loss": ("sparse_ce softmax_ce linear_ce", {"z_loss": float("inf")}),
    "z_loss of True": ("sparse_ce softmax_ce linear_ce", {"z_loss": True}),
    "axis outside": ("sparse_ce softmax_ce log_prob entropy", {"axis": 9}),
    "axis in between": ("sparse_ce softmax_ce log_prob entropy", {"axis": 0.5}),
    "ignore_index in between": ("sparse_ce log_prob linear_ce", {"ignore_index": 1.5}),
    "invalid": ("sparse_ce log_prob linear_ce", {"invalid": "drop"}),
    "stats": ("sparse_ce linear_ce", {"stats": 1}),
    "softcap of 0": ("linear_ce sparse_ce softmax_ce log_prob entropy", {"softcap": 0.0}),
    "a scale beyond float32": ("sparse_ce softmax_ce log_prob entropy", {"logit_scale": 1e50}),
    "no rows a chunk": ("linear_ce", {"chunk_rows": 0}),
    "complex weights": ("", {"sample_weight": np.array(1j)}),
    "weights of a shape": ("", {"sample_weight": np.ones((2, 2, 2, 2, 2, 2, 2))}),
    "class weights of a shape": ("sparse_ce softmax_ce linear_ce", {"class_weight": np.ones(2000)}),
    "pos_weight of a shape": ("sigmoid_ce", {"pos_weight": np.ones((2, 2, 2, 2, 2, 2, 2))}),
}


def spoiled(draw, call):
    """The call with one thing wrong."""
    choices = [name for name, (losses, _) in OPTIONS.items() if not losses or call.loss in losses.split()]
    choices += ["labels of another shape", "labels that are complex"] if "labels" in call.arguments else []
    if call.loss != "linear_ce":
        choices += ["integer logits"]
    what = draw.pick(choices)
    arguments, options = dict(call.arguments), dict(call.options)
    if what in OPTIONS:
        changed = OPTIONS[what][1]
        arguments = {name: k for name, k in arguments.items() if name not in changed}
        options |= changed
        if "reduce" in changed and "denom" not in changed:
            arguments.pop("denom", None)
        if options.get("reduce") != "mean" and "denom" in arguments:
            arguments.pop("denom")
    elif what == "labels of another shape":
        shape = (*arguments["labels"].values.shape, 2)
        arguments["labels"] = Argument(np.zeros(shape, int), "numpy", "int64", Memory())
    elif what == "labels that are complex":
        values = np.zeros(arguments["labels"].values.shape, complex)
        arguments["labels"] = Argument(values, "numpy", "complex64", Memory())
    else:
        values = np.zeros(arguments["logits"].values.shape, int)
        arguments["logits"] = Argument(values, "own", "int32", Memory())
    return call._replace(arguments=arguments, options=options, how="value", wanted=(), spoiled=what)
