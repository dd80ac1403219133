"""Files of the checkout that commands read: `configs/` and `third_party/`.

Both are links into the checkout; a wheel holds copies of what they point to, so that
the commands work the same from either.
"""

from pathlib import Path

DIRECTORY = Path(__file__).parent


def locate(name: str) -> Path:
    """Return the path that a file's name stands for: relative names are looked up from
    the current directory, then here. What exists in neither is returned as given."""
    ours = DIRECTORY / name
    return ours if ours.exists() and not Path(name).exists() else Path(name)
