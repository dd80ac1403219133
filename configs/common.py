"""What config files share."""

from ml_collections import ConfigDict

# The conditions of the paper's table (arXiv 2602.12506), and correct ones beside them.
CONDITIONS = (
    "base",
    "no_cot",
    "stop_think",
    "wrong_think",
    "wrong_think_but",
    "wrong_caption",
    "wrong_caption_disclaimer",
    "correct_think",
    "correct_caption",
)


def parse_arg(arg: str | None, **defaults) -> ConfigDict:
    """Reads what follows the colon in `--config configs/x.py:arg`.

    `arg` is a list of words parted by commas: `name=value` sets an option, `name` alone
    switches it on, and `noname` off. A value has the type of its default; a default
    that is a tuple lists the values there are, its first being the default. Every
    config knows `runlocal`, off by default: the smallest run that goes through every
    step.

    Example:
      >>> parse_arg("runlocal,seed=3", seed=0, recipe="accuracy").seed
      3

    Args:
      arg: the text, '' or None for none.
      **defaults: the options of this config, with their defaults.

    Returns:
      The options, locked.

    Raises:
      ValueError: an unknown option, one given twice, or a value that does not read as
        the type of its default or is none of those listed.
    """
    choices = {n: d for n, d in defaults.items() if isinstance(d, tuple)}
    options = {"runlocal": False, **defaults}
    options |= {name: values[0] for name, values in choices.items()}
    seen = set()
    for word in filter(None, (w.strip() for w in (arg or "").split(","))):
        name, equals, text = word.partition("=")
        switched_off = not equals and name not in options and name.startswith("no")
        name = name[2:] if switched_off else name
        if name not in options:
            known = ", ".join(options)
            raise ValueError(f"unknown option '{name}' after ':'; options: {known}")
        if name in seen:
            raise ValueError(f"option '{name}' is given twice after ':'")
        seen.add(name)
        if not equals:
            if not isinstance(options[name], bool):
                raise ValueError(f"option '{name}' needs a value: {name}=...")
            options[name] = not switched_off
        else:
            options[name] = _read(name, text, options[name])
        if options[name] not in choices.get(name, (options[name],)):
            known = ", ".join(choices[name])
            raise ValueError(f"option '{name}' is '{text}', want one of {known}")
    return ConfigDict(options).lock()


def _read(name: str, text: str, default):
    if isinstance(default, bool):
        words = {"true": True, "1": True, "false": False, "0": False}
        if text.lower() in words:
            return words[text.lower()]
    elif isinstance(default, int | float):
        try:
            return type(default)(text)
        except ValueError:
            pass
    else:  # str, or None for an optional str
        return text
    kind = type(default).__name__
    raise ValueError(f"option '{name}': expected {kind}, got '{text}'")
