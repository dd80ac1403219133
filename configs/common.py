"""What config files share."""

from ml_collections import ConfigDict

from vlmrl.rl import recipe as recipes

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

# Where a rehearsal finds its narrow models; `python -m tests.rehearsal` makes them.
REHEARSAL = "runs/rehearsal/models"

# The paper's augmentation: 10 % each, 60 % clean (arXiv 2602.12506).
MIX = {
    "correct_think": 0.1,
    "wrong_think": 0.1,
    "correct_caption": 0.1,
    "wrong_caption": 0.1,
}


class Config(ConfigDict):
    """A ConfigDict whose mappings may have dots in their keys, as path/to/file.py:name
    in `mix` and `reward.shaping`."""

    def __init__(self, fields=None, type_safe: bool = True, **options):
        options["allow_dotted_keys"] = True
        super().__init__(None, type_safe=type_safe, **options)
        for name, value in dict(fields or {}).items():
            self[name] = value

    def __setitem__(self, name, value):
        mapping = isinstance(value, dict | ConfigDict)
        super().__setitem__(name, Config(value) if mapping else value)


def training(seeds: int = 1):
    """Every field of a config of `vlmrl train`, at its default: those of the recipe
    (vlmrl/rl/recipe.py), then what a run is. Where a field names a function of ours,
    'path/to/file.py:name' names your own (vlmrl/user_code.py)."""
    c = Config(recipes.as_dict())  # every choice of the recipe at its default
    c.algorithm = "grpo"  # run by `vlmrl train`
    c.recipe = "grpo"  # its name in records, tables and figures
    c.model = "tiny"  # 'tiny', a hub id, or a directory in Hugging Face format
    c.style = "tiny"  # prompt style (vlmrl/prompts/styles.py: STYLES), or a file's
    c.tags = "auto"  # <think> and its like: 'added' tokens, 'plain' text, or 'auto'
    c.quantize = ""  # 'int8': a base in 8 bits, which takes lora.rank and 'quant'
    c.dtype = "float32"  # of the parameters that learn, and their moments
    c.compute = ""  # 'bfloat16': of activations, and weights as they are read
    c.pixels = ()  # least and most pixels of an image; () as the checkpoint says
    c.seeds = tuple(range(seeds))  # one run each, under WORKDIR/seed-N
    c.steps = 50  # updates
    c.prompts = 16  # groups per step
    c.mix = Config()  # augmentation: share of prompts per condition, yours too

    # Arguments of rl/losses/objective.py: policy_objective, and of its surrogate.
    c.loss = ConfigDict()
    c.loss.clip_low = 0.2
    c.loss.clip_high = 0.2
    c.loss.aggregation = "token"  # 'token', 'sequence' or 'constant'
    c.loss.kl_weight = 0.0  # KL to the starting policy, per nat
    c.loss.entropy_weight = 0.0  # bonus per nat

    c.data = ConfigDict()
    c.data.source = (
        "scenes"  # or a prepared set, a file's, or several: 'sat,geometry3k'
    )
    c.data.weights = ()  # share of each of several sources; equal if empty
    c.data.split = "train"
    c.data.size = 0  # examples of each source; 0: all it has
    c.data.texts = ""  # file of misleading texts instead of the sources' own

    c.eval = ConfigDict()  # during training, on a held-out split
    c.eval.source = ""  # of what is held out; '': data.source
    c.eval.texts = ""  # as data.texts
    c.eval.split = "validation"
    c.eval.size = 0  # examples; 0: all it has
    c.eval.every = 25  # steps; 0 for never
    c.eval.start = True  # also before the first step
    c.eval.conditions = ("base",)
    c.eval.max_tokens = 512

    c.save_every = 25  # steps between checkpoints
    c.save_minutes = 0.0  # and minutes without one after which there is one; 0: never
    c.keep = 2  # checkpoints kept
    c.keep_best = ""  # and the best by a column of records: 'correct/base'; '': none

    c.lora = ConfigDict()  # train a low-rank adapter instead of all parameters
    c.lora.rank = 0  # 0: no adapter
    c.lora.alpha = 32.0  # its product is scaled by alpha / rank
    c.lora.targets = ("text.*",)  # patterns of adapted parameters
    c.save_rollouts = 0  # steps between sample rollouts (rollouts/*.parquet); 0: none
    c.tensorboard = True  # event files beside metrics.jsonl
    c.wandb = ""  # Weights & Biases project; '': none

    c.mesh = ConfigDict()  # devices: data × fsdp × tensor; one may be −1, what is left
    c.mesh.data = -1  # copies of the parameters
    c.mesh.fsdp = 1  # shares of parameters and optimizer, gathered layer by layer
    c.mesh.tensor = 1  # shares of heads, MLPs and vocabulary
    return c


def parse_arg(arg: str | None, **defaults) -> ConfigDict:
    """Reads what follows the colon in `--config configs/x.py:arg`.

    `arg` is a list of words parted by commas: `name=value` sets an option, `name` alone
    switches it on, and `noname` off. A value has the type of its default; a default
    that is a tuple lists the values there are, its first being the default. Every
    config knows two modes, off by default: `runlocal`, the smallest run that goes
    through every step, and `rehearse`, a run in which all is real but the width of the
    network, where the config says what that is (an option of its own), else the same
    as `runlocal`.

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
    options = {"runlocal": False, "rehearse": False, **defaults}
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
    if options["rehearse"] and "rehearse" not in defaults:
        options["runlocal"] = True
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
