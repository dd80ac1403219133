"""What a program costs, read from its jaxpr and from its compiled text.

FLOPs come from the jaxpr (every matrix product and convolution, loops multiplied out),
because XLA's own count takes a loop's body once. Collectives come from the compiled
text, where the partitioner has put them.
"""

from __future__ import annotations

import math
import re
from typing import NamedTuple

import jax
import numpy as np

_SIZES = {"pred": 1, "s4": 0.5, "u4": 0.5, "s8": 1, "u8": 1, "s16": 2, "u16": 2,
          "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8,
          "f64": 8}  # fmt: skip
_KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all",
          "collective-permute")  # fmt: skip
_NAME = r"\s*(?:ROOT )?%?([\w.\-]+)"  # of the instruction of a line


class Collective(NamedTuple):
    """One collective of a program.

    `bytes` is what a device sends for it in a ring, all its runs together: (n − 1) / n
    of the whole for a gather or a scatter over n devices, twice that for a reduction.
    """

    kind: str
    devices: int  # of a group, n
    runs: int
    bytes: float
    group: tuple[int, ...]  # one group's device numbers, () if not said


def flops(function, *args, trips: int = 1) -> float:
    """Multiply-adds × 2 of all matrix products and convolutions of function(*args).

    Args:
      args: arrays or shapes.
      trips: of every `while_loop`, whose number a jaxpr does not say.
    """
    return _flops(jax.make_jaxpr(function)(*args).jaxpr, trips)


def _flops(jaxpr, trips: int) -> float:
    total = 0.0
    for eqn in jaxpr.eqns:
        name, params = eqn.primitive.name, eqn.params
        if name == "dot_general":
            (contract, _), _ = params["dimension_numbers"]
            shape = eqn.invars[0].aval.shape
            inner = math.prod(shape[i] for i in contract)
            total += 2 * inner * math.prod(eqn.outvars[0].aval.shape)
        elif name == "conv_general_dilated":
            kernel = eqn.invars[1].aval.shape
            out = params["dimension_numbers"].rhs_spec[0]
            inner = math.prod(kernel) // kernel[out]
            total += 2 * inner * math.prod(eqn.outvars[0].aval.shape)
        elif name == "scan":
            total += params["length"] * _flops(params["jaxpr"].jaxpr, trips)
        elif name == "while":
            total += trips * _flops(params["body_jaxpr"].jaxpr, trips)
        elif name == "cond":
            total += max(_flops(b.jaxpr, trips) for b in params["branches"])
        else:
            total += sum(_flops(j, trips) for j in _inner(params))
    return total


def _inner(params):
    """Jaxprs among the parameters of an equation: calls, remat, custom rules."""
    for value in params.values():
        for x in value if isinstance(value, tuple | list) else (value,):
            if hasattr(x, "eqns"):
                yield x
            elif hasattr(x, "jaxpr") and hasattr(x.jaxpr, "eqns"):
                yield x.jaxpr


def collectives(text: str) -> list[Collective]:
    """Collectives of a compiled program's text (`compiled.as_text()`).

    A loop's number of runs is the constant that its condition compares with: the length
    of a scan, and for sampling the largest number of tokens. An all-reduce of which
    every device reads its slice alone counts as the reduce-scatter that compilers for
    accelerators make of it; that for CPUs doesn't.
    """
    bodies = _computations(text)
    runs = _runs(bodies)
    by_key: dict = {}
    for name, lines in bodies.items():
        for line in lines:
            match = re.search(rf"= (.+?) ({'|'.join(_KINDS)})(-start)?\(", line)
            if not match or not runs.get(name):
                continue
            kind, groups, size = match[2], *_groups(line)
            if size < 2:
                continue
            local_bytes = _bytes(match[1], largest=bool(match[3]))
            share = 1 if kind == "collective-permute" else (size - 1) / size
            whole = local_bytes * size if kind == "reduce-scatter" else local_bytes
            sliced = _sliced(line, lines, bodies) if kind == "all-reduce" else 0
            parts = [(kind, whole - sliced), ("reduce-scatter", sliced)]
            for kind, whole in parts if sliced else parts[:1]:
                factor = share * (2 if kind == "all-reduce" else 1)
                sent = whole * factor * runs[name]
                one = Collective(kind, size, runs[name], sent, groups)
                # An asynchronous one is written down where it starts, goes on and ends.
                # Those of one `shard_map` share a channel.
                channel = re.search(r"channel_id=(\d+)", line)
                source = re.search(r'op_name="([^"]*)"', line)
                key = (channel[1], source and source[1]) if channel else (name, line)
                key = kind, *key
                if key not in by_key or by_key[key].bytes < sent:
                    by_key[key] = one
    return list(by_key.values())


def _sliced(line: str, lines: list[str], bodies: dict[str, list[str]]) -> float:
    """Return the bytes of an all-reduce's results that nothing but slices read."""
    name, shapes = re.match(rf"{_NAME} = (.+?) all-reduce", line).groups()
    if not shapes.startswith("("):
        return _bytes(shapes) if _only_sliced(name, lines, bodies) else 0.0
    element = re.compile(rf"{_NAME} = (\S+) get-tuple-element\(%?{re.escape(name)}\)")
    parts = [m.groups() for x in lines if (m := element.match(x))]
    return sum(_bytes(s) for part, s in parts if _only_sliced(part, lines, bodies))


def _only_sliced(name: str, lines: list[str], bodies: dict[str, list[str]]) -> bool:
    """Whether every use of a value in its computation, fusions included, takes a
    dynamic slice of it."""
    users = [x for x in lines if re.search(rf"[(, ]%?{re.escape(name)}[,)]", x)]
    for user in users:
        operands = re.search(r" ([\w\-]+)\((.*?)\)", user.split(" = ", 1)[1])
        kind, names = operands[1], re.findall(r"%?([\w.\-]+)(?:,|$)", operands[2])
        if kind in ("bitcast", "copy", "convert", "transpose", "reshape"):
            inner = re.match(_NAME, user)[1]
            if not _only_sliced(inner, lines, bodies):
                return False
        elif kind in ("fusion", "call"):
            body = bodies[re.search(r"(?:calls|to_apply)=%?([\w.\-]+)", user)[1]]
            for i in (i for i, n in enumerate(names) if n == name):
                inner = next(
                    m[1]
                    for x in body
                    if (m := re.match(rf"\s*%?([\w.\-]+) = .* parameter\({i}\)", x))
                )
                if not _only_sliced(inner, body, bodies):
                    return False
        elif kind != "dynamic-slice" or names[0] != name:
            return False
    return bool(users)


def by_axis(collectives: list[Collective], mesh) -> dict[str, float]:
    """Bytes sent per device by mesh axis ('fsdp', 'data+fsdp', …)."""
    numbers = np.arange(mesh.devices.size).reshape(mesh.devices.shape)
    names = [n for n in mesh.axis_names if mesh.shape[n] > 1]
    out: dict[str, float] = {}
    for one in collectives:
        label = f"groups of {one.devices}"
        for axes in _subsets(names):
            if math.prod(mesh.shape[a] for a in axes) != one.devices:
                continue
            at = tuple(slice(None) if a in axes else 0 for a in mesh.axis_names)
            if not one.group or set(one.group) == set(numbers[at].ravel().tolist()):
                label = "+".join(axes)
                break
        out[label] = out.get(label, 0) + one.bytes
    return out


def _subsets(names):
    for bits in range(1, 2 ** len(names)):
        yield [n for i, n in enumerate(names) if bits >> i & 1]


def _computations(text: str) -> dict[str, list[str]]:
    """Lines of every computation, by its name."""
    out: dict[str, list[str]] = {}
    name = None
    for line in text.splitlines():
        head = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line)
        if head:
            name = head[2]
            out[name] = []
            if head[1]:
                out["ENTRY"] = out[name]
        elif line.startswith("}"):
            name = None
        elif name:
            out[name].append(line)
    return out


def _runs(bodies: dict[str, list[str]]) -> dict[str, int]:
    """How often each computation runs in one run of the program."""
    runs: dict[str, int] = {}

    def visit(name: str, times: int) -> None:
        if name not in bodies or times <= runs.get(name, 0):
            return
        runs[name] = times
        for line in bodies[name]:
            loop = re.search(r"condition=%?([\w.\-]+), body=%?([\w.\-]+)", line)
            if loop:
                known = re.search(r'known_trip_count.{0,6}"n":"(\d+)"', line)
                count = int(known[1]) if known else _limit(bodies.get(loop[1], []))
                visit(loop[2], times * count)
                visit(loop[1], times * count)
                continue
            for match in re.finditer(
                r"(?:calls|to_apply|branch_computations|true_computation|"
                r"false_computation|called_computations)="
                r"\{?([^,}\s]+(?:, ?%[^,}\s]+)*)",
                line,
            ):
                for called in re.findall(r"[\w.\-]+", match[1]):
                    visit(called, times)

    visit(next((n for n, b in bodies.items() if b is bodies.get("ENTRY")), ""), 1)
    return runs


def _limit(lines: list[str]) -> int:
    """The largest integer scalar of a loop's condition."""
    numbers = [
        int(m[1])
        for line in lines
        if (m := re.search(r"= s(?:32|64)\[\]\S* constant\((\d+)\)", line))
    ]
    return max(numbers, default=1)


def _bytes(shape: str, largest: bool = False) -> float:
    """Of 'bf16[2,512]{…}' or a tuple of such; of the largest member where a tuple holds
    a collective's input beside its output."""
    sizes = [
        _SIZES[kind] * math.prod(int(d) for d in dims.split(",") if d)
        for kind, dims in re.findall(r"(\w+)\[([\d,]*)\]", shape)
        if kind in _SIZES
    ]
    if not sizes:
        return 0.0
    return max(sizes) if largest else sum(sizes)


def _groups(line: str) -> tuple[tuple[int, ...], int]:
    """(device numbers of the first group, its size)."""
    listed = re.search(r"replica_groups=\{\{([\d,]+)\}", line)
    if listed:
        one = tuple(int(i) for i in listed[1].split(","))
        return one, len(one)
    iota = re.search(
        r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", line
    )
    if iota:
        shape, dims, turn = (
            [int(i) for i in x.split(",")] if x else None for x in iota.groups()
        )
        numbers = np.arange(math.prod(dims)).reshape(dims)
        numbers = numbers.transpose(turn) if turn else numbers
        one = numbers.reshape(shape)[0] if len(shape) > 1 else numbers.reshape(-1)
        return tuple(int(i) for i in np.ravel(one)), int(np.size(one))
    mesh = re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", line)
    if mesh:
        sizes = {n: int(s) for n, s in re.findall(r"'(\w+)'=(\d+)", mesh[1])}
        used = re.findall(r"'(\w+)'", mesh[2])
        numbers = np.arange(math.prod(sizes.values())).reshape(list(sizes.values()))
        at = tuple(slice(None) if n in used else 0 for n in sizes)
        one = numbers[at].ravel()
        return tuple(int(i) for i in one), len(one)
    pairs = re.search(r"source_target_pairs=\{\{(\d+),(\d+)\}", line)
    return ((), 2) if pairs else ((), 1)
