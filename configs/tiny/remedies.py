"""Remedies side by side: each proposed repair of the drift from chain of thought to
answer, three seeds, from the same warm start and beside plain accuracy training.

    vlmrl study --config configs/tiny/remedies.py --workdir runs/remedies

Options after ':' — runlocal, seeds=N, only=A+B (some of them).
"""

from configs.tiny import accuracy, acre, blind, cora, dynamics, guided, lagrange, ranked

RECIPES = {
    "accuracy": accuracy,
    "guided": guided,
    "lagrange": lagrange,
    "cora": cora,
    "acre": acre,
    "blind": blind,
    "ranked": ranked,
}


def get_config(arg=None):
    return dynamics.study(
        arg,
        RECIPES,
        seeds=3,
        title="Remedies for unfaithful reasoning, at toy size",
        summary=(
            "Six remedies and plain accuracy training, three seeds each, from one "
            "warm start on procedural scenes."
        ),
    )
