"""The published sets by name, and a catalogue of all sources."""

from collections.abc import Mapping

from vlmrl.data import (
    blink,
    cv_bench,
    drawing,
    fetch,
    geometry3k,
    hallusionbench,
    mathvista,
    mmbench,
    mme_realworld_lite,
    mmvp,
    pixmo_count,
    pope,
    refcoco,
    sat,
    scenes,
    spatial_mm,
    threedsrbench,
    vstar,
    whatsup,
)

SETS = {
    part.SET.name: part.SET
    for part in (
        threedsrbench,
        cv_bench,
        spatial_mm,
        whatsup,
        vstar,
        mme_realworld_lite,
        mmbench,
        sat,
        pixmo_count,
        geometry3k,
        blink,
        mmvp,
        pope,
        hallusionbench,
        mathvista,
        refcoco,
    )
}


# Procedural sources: name → (description, splits, tasks).
PROCEDURAL = {
    "scenes": (
        "shapes on a grid, drawn from a seed: made on the spot, of any size",
        tuple(drawing.SPLITS),
        tuple(scenes.TASKS),
    )
}


def catalogue(pins: Mapping[str, fetch.Pin]) -> str:
    """Return every source as text: splits, tasks, origin, licence, citation."""
    out = [
        f"{name}: {about}\n  splits  {', '.join(splits)}\n  tasks   {', '.join(tasks)}"
        for name, (about, splits, tasks) in PROCEDURAL.items()
    ]
    for name, bench in SETS.items():
        pin = pins.get(name, fetch.Pin())
        counts = [s if n is None else f"{s} ({n})" for s, n in bench.splits.items()]
        origin = f"{pin.repo} at {pin.revision}" if pin.repo else "by hand, see prepare"
        out.append(
            f"{name}: {bench.about}\n"
            f"  splits  {', '.join(counts)}\n"
            f"  tasks   {', '.join(bench.tasks)}\n"
            f"  from    {origin}\n"
            f"  terms   {pin.licence}\n"
            f"  cite    {pin.citation}"
        )
    return "\n".join(out)
