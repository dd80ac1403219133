"""Evaluate a model behind an OpenAI-compatible endpoint under conditions.

Writes WORKDIR/records.parquet and what `vlmrl report` makes of it, as `vlmrl eval` does
for a model of this project. The endpoint's key is read from the environment variable
that --key_env names. Replies are kept in WORKDIR/replies.jsonl: the same command goes
on where it was killed, or where its budget ended, and asks nothing twice.

--prefill says source a started assistant turn (wrong_think, ...) reaches the model:
'continue' and 'assistant' as an assistant turn, for endpoints that allow it; 'user'
quotes it in the user turn. Records and report say which, and where letter probabilities
came from: token log-probs (--logprobs), the shares of --samples, or nowhere.
"""

from __future__ import annotations

import json
from collections import Counter

from vlmrl import perturb, user_code
from vlmrl.answers import reading
from vlmrl.client import http
from vlmrl.data import loader
from vlmrl.eval import records, served
from vlmrl.eval.record_builder import RunLabels
from vlmrl.main import args, endpoint
from vlmrl.main.progress import bar, say, show_report
from vlmrl.report import assemble
from vlmrl.run.directory import describe_run
from vlmrl.studies import claims
from vlmrl.types import UserError

HELP = "evaluate a model behind an API under every condition"
FLAGS = {
    "workdir": (None, "run directory to write into"),
    "url": ("http://127.0.0.1:8000/v1", "base URL of the endpoint"),
    "model": ("", "name of the model there"),
    "key_env": ("", "environment variable that holds the endpoint's key"),
    "insecure": (False, "allow plain http to another machine"),
    "source": ("scenes", "data source: scenes, or a prepared set"),
    "split": ("validation", "of the source"),
    "size": (192, "examples; 0: all of a prepared set"),
    "texts": ("", "file of misleading texts instead of the source's own"),
    "conditions": (["base", "wrong_think", "wrong_caption"], "to evaluate under"),
    "style": ("r1v", "prompt style"),
    "prefill": ("user", "continue, assistant or user"),
    "samples": (1, "per example and condition"),
    "temperature": (0.0, "of the endpoint's sampling; 0 is greedy"),
    "max_tokens": (2048, "of a completion"),
    "logprobs": (False, "ask for token log-probs"),
    "params": ("{}", "JSON of further parameters; null takes one away"),
    "recipe": ("", "name in records and tables; by default the model's"),
    "concurrency": (16, "requests in flight"),
    "attempts": (5, "per request"),
    "budget_tokens": (0, "tokens to spend at most; 0: no limit"),
    "budget_cost": (0.0, "money to spend at most; 0: no limit"),
    "prompt_price": (0.0, "per million prompt tokens"),
    "completion_price": (0.0, "per million completion tokens"),
    "again": (False, "ask again what failed before"),
}


def main(argv):
    _, workdir, f = args.parse(argv, FLAGS)
    if not f.model:
        raise UserError("--model: must be given, the model's name at the endpoint")
    try:
        params = json.loads(f.params)
    except json.JSONDecodeError as error:
        raise UserError(f"--params: not JSON ({error})") from None
    if not isinstance(params, dict):
        raise UserError(f"--params: expected a JSON object, got {f.params}")
    at, budget = endpoint.endpoint(f, f.model), endpoint.budget(f)
    http.check_url(f.url, f.insecure)
    perturb.check(*f.conditions)
    reading.check(f.style)
    if loader.is_procedural(f.source):
        loader.source_of(f.source)
    config = endpoint.config_of(f)
    for line in describe_run(workdir, config):
        say(line)
    examples = list(
        loader.examples_of(f.source, f.split, f.size, workdir / "data", f.texts)
    )
    recipe = f.recipe or f.model
    say("reasoning tags: as the server's template and tokenizer have them")
    names = served.ServedSettings._fields
    settings = served.ServedSettings(
        **{n: getattr(f, n) for n in names if n != "params"}, params=params
    )
    total = f.samples * served.asked(examples, f.conditions)
    with (
        http.Client(
            at, cache=workdir / "replies.jsonl", budget=budget, again=f.again
        ) as client,
        bar(f"ask {f.model}", total) as advance,
    ):
        rows = served.evaluate(
            client,
            examples,
            f.conditions,
            settings,
            labels=RunLabels(recipe, split=f.split, code=user_code.stamp(config)),
            progress=advance,
        )
        spent = client.spent
    records.write(workdir / "records.parquet", rows)
    assemble.write_images(workdir, examples)
    sources = Counter((r.letters_from, r.prefill_as or "none") for r in rows)
    if inside := sum(r.prefill_as == "template" for r in rows):
        say(
            f"{inside} of {len(rows)} replies are read from inside <think>, which the "
            "server's chat template opened: some closed it unopened"
        )
    failed = Counter(r.finish for r in rows if r.finish.startswith("error"))
    info = {
        "title": f"{recipe} on {f.source}",
        "Model": f"{f.model}, behind an API",
        "Data": f"{f.source}, {f.split} split, {len(examples)} examples",
        "Letter probabilities, prefill": "; ".join(
            f"{n} rows: letters from {letters}, prefill as {prefill}"
            for (letters, prefill), n in sources.most_common()
        ),
        "Failed": "; ".join(f"{n} {why}" for why, n in failed.items()) or "nothing",
        "Spent": f"{spent.prompt_tokens} + {spent.completion_tokens} tokens, "
        f"{spent.cost:.4f} by the given prices",
    }
    show_report(claims.build_report(workdir, info))
