"""Prepare a published set, or one of your own: find or download its files, build it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

from vlmrl.data import build, fetch, loader, own, reading
from vlmrl.data.reading import Set
from vlmrl.data.sets import SETS
from vlmrl.types import Example, UserError

# (description, total) → a context whose value is called with the number of items done.
Bar = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]


class Request(NamedTuple):
    """What to prepare, and from where."""

    name: str
    data_dir: Path  # root of the prepared data
    downloads: Path  # root of what is downloaded
    splits: tuple[str, ...] = ()  # () for all that have files
    source: str = "hub"  # or a directory of published files
    pin: fetch.Pin | None = None  # of a published set
    seed: int = 0  # of option order, suggested options and wrong answers

    @property
    def root(self) -> Path:
        """Return the directory of the published files."""
        return self.downloads / self.name if self.hub else Path(self.source)

    @property
    def hub(self) -> bool:
        return self.source == "hub"


def prepare(request: Request, bar: Bar, report: Callable[[str], None]) -> list[str]:
    """Prepare the splits of a set and return a summary, one entry per split and step.

    Args:
      bar: see `Bar`.
      report: called with a line of text as files arrive.

    Raises:
      UserError: unknown set or split, missing files, wrong checksums, or no usable row.
    """
    name, root = request.name, request.root
    pin = request.pin or fetch.Pin()
    bench = _set_of(request)
    if unknown := [s for s in request.splits if s not in bench.files]:
        known = ", ".join(bench.files)
        raise UserError(f"{name}: expected a split of {known}, got '{unknown[0]}'")
    if request.hub:
        _download(bench, pin, request, report)
    splits = request.splits or tuple(bench.files)
    files = {split: reading.find(bench, split, root) for split in splits}
    files = {s: paths for s, paths in files.items() if paths or s in request.splits}
    steps = fetch.by_hand(pin, root)
    if not files:
        patterns = ", ".join(p for alike in bench.files.values() for p in alike)
        message = f"{name}: expected {patterns} in {root}, found none. "
        raise UserError((message + "; ".join(steps)).rstrip(". "))
    fetch.check_sums(pin, dict.fromkeys(p for paths in files.values() for p in paths))
    summary = []
    for split, paths in files.items():
        if request.hub and pin.images:
            counts = _images(name, paths, pin, root, bar)
            summary.append(f"{name} {split} images: {counts}")
        total = sum(map(reading.estimate, paths)) or bench.splits.get(split) or 1
        with bar(f"{name} {split}", total) as advance:
            path, counts = build.build(
                bench,
                split,
                root,
                request.data_dir,
                seed=request.seed,
                progress=advance,
            )
        summary.append(f"{name} {split}: {counts.line}\n  {path}")
    missing = [s for s in bench.files if s not in files and not request.splits]
    if missing:
        summary.append(f"{name}: no files of {', '.join(missing)}")
    return summary + [f"{name}: left to do: {step}" for step in steps]


def _set_of(request: Request) -> Set:
    if not request.hub and not request.root.is_dir():
        raise UserError(f"--source: no directory {request.root}")
    if request.name in SETS:
        return SETS[request.name]
    if request.hub:
        raise UserError(
            f"data prepare: '{request.name}' is not one of {_known()}; for data of your"
            " own give --source=DIR"
        )
    return own.bench(request.name, request.root)


def _known() -> str:
    return ", ".join([*loader.SOURCES, *SETS])


def _download(bench: Set, pin: fetch.Pin, request: Request, report) -> None:
    name, root = request.name, request.root
    root.mkdir(parents=True, exist_ok=True)
    arrived = lambda file: report(f"{name}: {file}")  # noqa: E731
    splits = request.splits or tuple(bench.files)
    resolved = fetch.from_hub(bench, splits, pin, root, progress=arrived)
    if resolved != pin:
        report(f"{name}: {pin.repo} at {pin.revision} is {resolved.revision}")
    fetch.from_urls(pin, root, arrived)


def _images(name: str, files: Sequence[Path], pin: fetch.Pin, root: Path, bar) -> str:
    """Download the images that rows name by address; return counts by status."""
    url, sha = pin.images["url"], pin.images["sha256"]
    pairs = [(row[url], row[sha]) for file in files for row in reading.rows(file)]
    with bar(f"{name} images", len({sha for _, sha in pairs})) as advance:
        counts = fetch.images(pairs, root, advance)
    text = ", ".join(f"{n} {status}" for status, n in sorted(counts.items()))
    return f"{text}; each in {root / 'images' / 'manifest.jsonl'}"


def stored(
    name: str, wanted: Sequence[str], data_dir: str | Path
) -> Iterator[tuple[str, Sequence[Example], build.BuildReport]]:
    """Yield (split, examples, build report) of the wanted splits; () is all of them.

    Raises:
      UserError: no set of this name, or a split that is not prepared.
    """
    splits = loader.splits_of(name, data_dir)
    if not splits and name not in SETS:
        raise UserError(f"data: '{name}' is not one of {_known()}, nor a prepared one")
    if not splits:
        raise UserError(
            f"{name} is not prepared; run `vlmrl data prepare {name}` first"
        )
    if unknown := [s for s in wanted if s not in splits]:
        known = ", ".join(splits)
        raise UserError(f"{name}: split '{unknown[0]}' is not prepared; {known} are")
    for split in wanted or splits:
        examples = loader.examples_of(name, split, 0, data_dir)
        yield split, examples, build.report(loader.where(name, split, data_dir))


def sizes(words: Sequence[str]) -> dict[str, int]:
    """Parse `train=2400`, `validation=96` into split → number of examples."""
    out = {}
    for word in words:
        split, equals, number = word.partition("=")
        if not (split and equals and number.isascii() and number.isdigit()):
            raise UserError(f"--size: '{word}' is not of the form SPLIT=NUMBER")
        out[split] = int(number)
    if not out:
        raise UserError("--size: must be given, as --size=train=2400,validation=96")
    return out
