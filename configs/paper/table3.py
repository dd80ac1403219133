"""Table 3: how far judges agree on what a chain of thought concludes. The paper: strict
three-way agreement 89 to 94 %, Fleiss' κ 0.81 to 0.88."""

from configs.paper import common


def get_config(arg=None):
    options, c = common.study(
        arg,
        title="Agreement of judges",
        paper="Table 3",
        tables=("quadrants",),
    )
    small = options.runlocal
    c.kind = "judge"
    # as `vlmrl judge --judge` takes them; the rule is this project's own
    c.judges = (
        ("rule", "model:tiny")
        if small
        else (
            "rule",
            "http:Qwen/Qwen3-32B",
            "http:openai/gpt-oss-120b",
            "http:meta-llama/Llama-3.1-70B-Instruct",
        )
    )
    c.brief = small  # by the prompt's short part, which the tiny judge was taught on
    return c
