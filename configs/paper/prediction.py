"""What predicts robustness: AUROC of P(correct) and of −H under base for staying
right under a condition. The paper: P(correct) up to 0.94 (SpaceR), −H 0.6 to 0.75."""

from configs.paper import common


def get_config(arg=None):
    _, c = common.study(
        arg, title="What predicts robustness", tables=("prediction", "calibration")
    )
    return c
