"""Closed models behind an API. Hidden thinking can't be prefilled, so a started CoT
is quoted in the user turn; records say so.

Options after ':' — url (an OpenAI-compatible base URL), key_env (variable with its
key).
"""

from configs.paper import common

CONDITIONS = ("base", "wrong_think", "wrong_caption", "correct_caption")


def get_config(arg=None):
    options, c = common.study(
        arg,
        title="Closed models",
        tables=("conditions", "comparisons"),
        url="https://api.openai.com/v1",
        key_env="OPENAI_API_KEY",
    )
    c.kind = "ask"
    c.url = options.url
    c.key_env = options.key_env
    c.prefill = "user"  # 'continue', 'assistant' or 'user'
    c.shown = CONDITIONS
    if not options.runlocal:  # which shares every study's evaluation
        c.conditions = CONDITIONS
    if options.rehearse:
        c.key_env = ""
    if not (options.runlocal or options.model):
        c.models = tuple(
            dict(name=m, model=m, style="r1v", temperature=None, max_tokens=8192)
            for m in ("o3", "o4-mini", "gemini-2.5-pro", "gemini-3.1-pro")
        )
    return c
