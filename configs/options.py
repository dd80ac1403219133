"""Every switch of the training loop, off. A recipe turns on what it is about; what each
does in full: vlmrl/rl/recipe.py."""

from ml_collections import ConfigDict


def switch_off(c: ConfigDict) -> ConfigDict:
    """Adds the switches to a recipe's config."""
    # Verdicts: 'rule', 'blind' probe, 'shuffle'd options (ACRE), or as `vlmrl judge
    # --judge` takes them: 'rule,http:MODEL', 'model:DIR'.
    c.judge = "rule"
    c.judging = ConfigDict()  # how a judge by name is asked
    c.judging.url = ""  # base URL of an http judge, as http://127.0.0.1:8000/v1
    c.judging.key_env = ""  # environment variable that holds its key
    c.judging.insecure = False  # plain http to another machine
    c.judging.concurrency = 16  # requests in flight
    c.judging.attempts = 3  # per request
    c.judging.max_tokens = 2048  # of a reply
    c.judging.budget_tokens = 0  # that a seed may spend; 0: no limit
    c.judging.seconds = 60.0  # that a step waits at most, then: undecided; 0: no limit
    c.judging.parts = 1  # prompts sampled in so many, each judged beside the next
    c.verifier = ""  # of open answers: 'exact', 'math'; '' reads an option's text
    c.reward_options = ConfigDict()  # of the reward function: weight, alone
    c.shaping = ConfigDict()  # weight per measured term (rl/completion_terms.py: TERMS)
    c.least_evidence = 12  # distinct words the term 'evidence' wants in a think
    c.shortest = 8  # tokens: the term 'length' pays for shortest to longest
    c.longest = 64
    c.weights = (1.0, 1.0)  # of task and consistency, advantages 'decoupled', 'gdpo'
    c.ramp = 0  # steps over which consistency's weight grows from 0; 0: at once

    c.constraint = ConfigDict()  # consistent ratio ≥ threshold, by a multiplier λ
    c.constraint.threshold = 0.0  # 0: none
    c.constraint.rate = 0.1  # λ per step and unit of violation
    c.constraint.most = 10.0  # λ at most
    c.constraint.start = 0.0  # λ at first

    c.ranking = ConfigDict()  # zero-sum bonus among the right completions of a group
    c.ranking.by = "p_correct"  # a measured term
    c.ranking.weight = 0.0  # reward at stake; 0: none

    c.overlong = ConfigDict()  # DAPO
    c.overlong.limit = 0  # tokens at which the penalty is full; 0: none
    c.overlong.buffer = 0  # tokens over which it grows
    c.overlong.weight = 1.0  # of the penalty
    c.overlong.filter = False  # leave out what ran out of length

    c.rounds = 1  # dynamic sampling: draws at most until all groups are mixed
    c.noise = ConfigDict()  # NoisyRollout
    c.noise.share = 0.0  # of every group, sampled from a perturbed image
    c.noise.distortion = "noisy"  # data/distort.py: DISTORTIONS
    c.noise.sigma = 0.25  # of 'noisy', as a share of the range of values
    c.noise.anneal = 0  # steps until it has faded; 0: never
    c.guide = ConfigDict()  # learn from what is said without the misleading text
    c.guide.share = 0.0  # of every group, sampled without caption and open think
    c.replay_groups = ConfigDict()  # past groups stand in for those that teach nothing
    c.replay_groups.capacity = 0  # groups held; 0: none
    c.replay_groups.power = 1.0  # drawn in proportion to (mean |advantage|)^power

    c.kl_reward = ConfigDict()  # KL to the start, in the reward
    c.kl_reward.weight = 0.0  # per nat
    c.kl_reward.estimator = "k1"  # 'k1', 'k2' or 'k3'
    c.kl_reward.to_go = False  # token by token (REINFORCE++)
    c.kl_target = 0.0  # nats per token: adapts loss.kl_weight; 0: fixed
    c.kl_rule = "ppo"  # 'ppo' or 'proportional'
    c.entropy_target = 0.0  # nats per token: adapts loss.entropy_weight; 0: fixed
    c.entropy_change = 0.005  # of that weight, per step

    c.slots = 0  # completions decoded side by side, on one data shard; 0: all at once
    c.gather = True  # weights over fsdp before sampling; False: token by token
    c.lag = 0  # 1: rollouts are one update older than the parameters that learn
    c.ema = 0.0  # decay of averaged parameters, measured and exported; 0: none
    c.token_budget = 0  # tokens of a microbatch at most; 0: as `microbatches` says
    c.lora = ConfigDict()  # train a low-rank adapter instead of all parameters
    c.lora.rank = 0  # 0: no adapter
    c.lora.alpha = 32.0  # its sum is scaled by alpha / rank
    c.lora.targets = ("text.*",)  # patterns of adapted parameters
    c.save_rollouts = 0  # steps between kept rollouts (rollouts/*.parquet); 0: never
    c.tensorboard = True  # event files beside metrics.jsonl
    c.wandb = ""  # Weights & Biases project; '' for none
    return c
