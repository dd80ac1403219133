"""One recipe of `training.py`; `vlmrl train --config configs/paper/recipe.py:name=iii`.

Options after ':' — name (a recipe), seeds=N, judge (of the recipes with a faithfulness
reward: the paper's, served at `url`, or the rule in its place), runlocal, rehearse.
"""

from configs.common import CONDITIONS, MIX, REHEARSAL, parse_arg, training

SETS = {  # source → examples the paper drew from it, and so its share of the stream
    "i": {"sat": 32_000, "pixmo_count": 15_000},
    "ii": {"sat": 32_000, "pixmo_count": 15_000, "geometry3k": 2_100},
}
# name → (sets, augmented, faithfulness reward)
RECIPES = {
    "i": ("i", False, False),
    "ii": ("ii", False, False),
    "iii": ("ii", True, False),
    "i-f": ("i", False, True),
    "ii-f": ("ii", False, True),
    "iii-f": ("ii", True, True),
}
JUDGES = {"qwen3-32b": "http:Qwen/Qwen3-32B", "rule": "rule"}
URL = "http://127.0.0.1:8000/v1"

# Where a value is from. 'paper': arXiv 2602.12506 states it. 'verl': examples/
# grpo_trainer/run_qwen2_5_vl-7b.sh of github.com/volcengine/verl and the defaults that
# it leaves (the paper trains with verl). 'EasyR1': examples/config.yaml of
# github.com/hiyouga/EasyR1. 'ViGoRL': arXiv 2505.23678, GRPO on SAT-2. 'choice': ours.
# 'off': a switch of this project that the paper doesn't have, at its default.
FIELDS = (
    ("model", "Qwen/Qwen2.5-VL-7B-Instruct", "paper"),
    ("style", "r1v", "choice: the common wording of think and answer tags"),
    ("tags", "auto", "choice: as the checkpoint's embedding knows the tags"),
    ("steps", 1200, "paper: more than 1,000"),
    ("prompts", 128, "ViGoRL; verl's 512 are 11 passes over the sets"),
    ("sampling.group_size", 8, "paper"),
    ("sampling.max_tokens", 2048, "verl, ViGoRL"),
    ("sampling.temperature", 1.0, "verl"),
    ("sampling.off_policy_steps", 0, "choice: on policy; verl makes 4 updates of 512"),
    ("sampling.resampling_rounds", 1, "off"),
    ("sampling.gather_params", True, "choice: speed alone"),
    ("reward.name", "grpo", "paper: 0.1 format + 1.0 correct, gated if faithful"),
    ("advantage.name", "grpo", "paper: GRPO"),
    ("loss.clip_low", 0.2, "verl"),
    ("loss.clip_high", 0.2, "verl"),
    ("loss.aggregation", "token", "verl: token-mean"),
    ("loss.kl_weight", 0.01, "verl, ViGoRL; the low-variance estimator"),
    ("loss.entropy_weight", 0.0, "verl"),
    ("optimizer.peak", 1e-6, "verl, ViGoRL"),
    ("optimizer.warmup", 0, "verl, EasyR1"),
    ("optimizer.decay", "constant", "verl"),
    ("optimizer.horizon", 0, "choice: without meaning where the rate is constant"),
    ("optimizer.weight_decay", 0.01, "verl, ViGoRL"),
    ("optimizer.clip", 1.0, "verl, ViGoRL"),
    ("optimizer.b1", 0.9, "verl"),
    ("optimizer.b2", 0.999, "verl"),
    ("optimizer.muon", 0.0, "off"),
    ("optimizer.embed", 1.0, "off"),
    ("optimizer.offload", False, "choice: speed and memory alone"),
    ("optimizer.freeze", ("vision.",), "ViGoRL"),
    ("dtype", "float32", "verl: parameters that learn"),
    ("compute", "bfloat16", "verl"),
    ("quantize", "", "off"),
    ("pixels", (200_704, 1_003_520), "choice: 256 to 1,280 tokens, as Qwen suggests"),
    ("learner.microbatches", 8, "choice: memory alone"),
    ("learner.token_budget", 0, "choice: memory alone"),
    ("learner.unroll", False, "choice: speed alone"),
    ("learner.remat", "nothing_saveable", "verl: gradient checkpointing"),
    ("learner.float32_residual", True, "choice: precision"),
    ("learner.ema", 0.0, "off"),
    ("mesh.data", 1, "choice: memory alone"),
    ("mesh.fsdp", -1, "choice: parameters and moments take 133 GB in all"),
    ("mesh.tensor", 1, "choice: memory alone"),
    ("seeds", (0, 1, 2), "paper: several"),
    ("data.source", "", "paper: the sets of the recipe"),
    ("data.weights", (), "paper: in proportion to what it drew from each"),
    ("data.split", "train", "paper"),
    ("data.size", 0, "choice: all of each; which examples the paper drew is unknown"),
    ("data.texts", "", "choice: misleading texts by template"),
    ("mix", {}, "paper: none, or 10 % of each kind if augmented"),
    ("eval.source", "cv_bench", "choice: outside the training sets"),
    ("eval.split", "2D", "choice"),
    ("eval.size", 200, "choice: 12 conditions take 2 % of the run's completions"),
    ("eval.every", 100, "choice"),
    ("eval.start", True, "choice: what the drift is measured from"),
    ("eval.conditions", CONDITIONS, "paper: its conditions, and their controls"),
    ("eval.max_tokens", 2048, "choice: as in training"),
    ("eval.texts", "", "choice: misleading texts by template"),
    ("save_every", 250, "paper: about every 250 steps"),
    ("save_minutes", 30.0, "choice: what an interruption may cost"),
    ("keep", 10, "choice"),
    ("keep_best", "", "off"),
    ("save_rollouts", 50, "choice"),
    ("tensorboard", True, "choice"),
    ("wandb", "", "choice"),
    ("judge.name", "rule", "paper: Qwen3-32B, of the recipes that are judged"),
    ("judge.url", "", "choice: a server beside the run"),
    ("judge.key_env", "", "choice"),
    ("judge.insecure", False, "choice"),
    ("judge.concurrency", 64, "choice"),
    ("judge.attempts", 3, "choice"),
    ("judge.max_tokens", 2048, "choice"),
    ("judge.budget_tokens", 0, "choice"),
    ("judge.seconds", 120.0, "choice"),
    ("judge.parts", 1, "choice"),
    ("algorithm", "grpo", "paper"),
    ("recipe", "", "choice: the name of the recipe"),
    *((f"{section}.*", None, "off") for section in (
        "noise", "distillation", "overlong", "kl_penalty", "ranking", "constraint",
        "replay", "adaptive_kl", "adaptive_entropy", "lora",
    )),
    ("reward.*", None, "off: shaping terms and their sizes"),
    ("advantage.*", None, "off: of decoupled advantages"),
    ("slots", 0, "choice: speed alone"),
)  # fmt: skip

SMALL = {
    "model": "tiny", "style": "tiny", "compute": "", "pixels": (), "steps": 2,
    "prompts": 8, "sampling.group_size": 2, "sampling.max_tokens": 16,
    "learner.microbatches": 1, "learner.unroll": True, "learner.remat": "",
    "mesh.data": -1, "mesh.fsdp": 1, "data.size": 16,
    "eval.source": "", "eval.split": "validation", "eval.size": 8, "eval.every": 2,
    "eval.conditions": ("base", "abstain+wrong_caption", "wrong_think"),
    "eval.max_tokens": 16, "save_every": 2, "save_minutes": 0.0, "save_rollouts": 0,
}  # fmt: skip


# All is real but the width of the network and how long it runs.
REHEARSED = {
    "model": f"{REHEARSAL}/qwen2_5_vl", "steps": 2, "prompts": 16,
    "learner.microbatches": 2, "eval.size": 4, "eval.every": 2, "save_every": 2,
    "save_rollouts": 1,
}  # fmt: skip


def get_config(arg=None):
    own = dict(name=tuple(RECIPES), seeds=3, judge=tuple(JUDGES), url=URL)
    options = parse_arg(arg, rehearse=False, **own)
    sets, augmented, faithful = RECIPES[options.name]
    small = options.runlocal
    c = training()
    for field, value, _ in FIELDS:
        if not field.endswith(".*"):
            _set(c, field, value)
    words = [options.name, "augmented" * augmented, "faithful" * faithful]
    c.recipe = " ".join(filter(None, words))
    c.seeds = tuple(range(options.seeds))
    c.data.source = "scenes" if small else ",".join(SETS[sets])
    c.data.weights = () if small else tuple(float(n) for n in SETS[sets].values())
    c.mix = MIX if augmented else {}
    if faithful:
        c.reward.name = "gated"
        c.judge.name = "rule" if small else JUDGES[options.judge]
        c.judge.url = options.url if c.judge.name.startswith("http:") else ""
    mode = SMALL if small else REHEARSED if options.rehearse else {}
    for field, value in mode.items():
        _set(c, field, value)
    return c


def _set(config, field: str, value):
    *sections, name = field.split(".")
    for section in sections:
        config = config[section]
    config[name] = value
