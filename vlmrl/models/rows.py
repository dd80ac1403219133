"""Rows of parameter tables, for the layers that families share.

Every function takes the name of a parameter and that of its tensors without '.weight',
and returns name → `Param`. Rows are stacked where the number of `layers` is not 0.
"""

from __future__ import annotations

import math

from vlmrl.models.api import Param

# Logical axes of linear layers [inputs, outputs].
UP, DOWN, OUT = ("embed", "mlp"), ("mlp", "embed"), (None, "embed")


def linear(
    name, stored, layers, size, axes, *, bias: bool, residual: bool = False
) -> dict[str, Param]:
    """Return the rows of a linear layer [inputs, outputs] = `size` (stored the other
    way round), stacked if `layers` is not 0.

    Random weights (tests, a tiny model's start) keep activations at unit scale: 1 / √
    of the inputs' number, less where a layer adds to the `residual` stream.
    """
    shape, axes = _stack(layers, size, axes)
    std = (size[0] * (2 * layers if residual else 1)) ** -0.5
    rows = {name: Param(shape, axes, std, stored + ".weight", "o i -> i o", {})}
    if bias:
        shape, axes = _stack(layers, size[1:], (axes[-1],))
        rows[name + "_bias"] = vector(shape, axes, stored + ".bias")
    return rows


def linears(
    name, stored, layers, specs: dict[str, tuple], *, bias: bool = True, residual=()
) -> dict[str, Param]:
    """Return the rows of several linear layers below the prefixes `name`, `stored`.

    Args:
      specs: name → (name in files, (inputs, outputs), axes).
      residual: names of those that add to the residual stream.
    """
    out = {}
    for key, (file, size, axes) in specs.items():
        adds = key in residual
        out |= linear(
            name + key, stored + file, layers, size, axes, bias=bias, residual=adds
        )
    return out


def heads(
    name, stored, layers, width, size: dict[str, int], *, bias: bool
) -> dict[str, Param]:
    """Return the rows of a stacked linear layer from `width` to several axes, which are
    stored as one: queries, keys and values.

    Args:
      size: axis letter → length; k and a are split over devices.
    """
    letters, shape = " ".join(size), tuple(size.values())
    axes = tuple("kv_heads" if letter in "ka" else None for letter in size)
    rows = {
        name: Param(
            (layers, width, *shape),
            (None, "embed", *axes),
            width**-0.5,
            stored + ".weight",
            f"({letters}) e -> e {letters}",
            size,
        )
    }
    if bias:
        layout, shape = f"({letters}) -> {letters}", (layers, *shape)
        row = vector(shape, (None, *axes), stored + ".bias")
        rows[name + "_bias"] = row._replace(layout=layout, sizes=size)
    return rows


def norm(name, stored, layers, size, *, bias: bool = False) -> dict[str, Param]:
    """Return the rows of a norm over `size` channels, stacked if `layers` is not 0."""
    shape, axes = _stack(layers, (size,), (None,))
    weight = vector(shape, axes, stored + ".weight")
    weight = weight._replace(init=-1, float32=True)
    rows = {name: weight}
    if bias:
        rows[name + "_bias"] = weight._replace(init=0, name=stored + ".bias")
    return rows


def patch(
    stored, width, size: dict[str, int], *, std=0.02, bias: bool
) -> dict[str, Param]:
    """Return the rows of a tower's first layer, a convolution without overlap: patches
    of `size` (axis letter → length) → `width`."""
    letters, n = " ".join(size), math.prod(size.values())
    layout = f"e {letters} -> ({letters}) e"
    weight = Param((n, width), (None, "embed"), std, stored + ".weight", layout, size)
    rows = {"vision.patch": weight}
    if bias:
        rows["vision.patch_bias"] = vector((width,), ("embed",), stored + ".bias")
    return rows


def vector(shape, axes, stored) -> Param:
    """Return the row of a bias or the like: zeros at the start, no weight decay."""
    return Param(shape, axes, 0, stored, "... -> ...", {}, decay=False)


def _stack(layers: int, shape: tuple, axes: tuple) -> tuple[tuple, tuple]:
    return ((layers, *shape), (None, *axes)) if layers else (tuple(shape), tuple(axes))


def tower(rows: dict[str, Param]) -> dict[str, Param]:
    """Return rows with the role of a vision tower and its merger."""
    return {name: p._replace(role="vision") for name, p in rows.items()}
