"""Evaluate a model of the tiny family on scenes under every condition.

Options after ':' — runlocal (a handful of examples).
"""

from ml_collections import ConfigDict

from configs.common import parse_arg
from configs.tiny import grpo


def get_config(arg=None):
    small = parse_arg(arg).runlocal
    c = ConfigDict()
    c.model = "tiny"  # 'tiny' or a directory in Hugging Face format
    c.style = "tiny"  # prompt style, or path/to/file.py:name
    c.tags = "auto"  # <think> and its like: 'added' tokens, 'plain' text, or 'auto'
    c.quantize = ""  # 'int8': linear layers in 8 bits, with the extra 'quant'
    c.dtype = ""  # of the parameters: 'float32', 'bfloat16'; '' as they are stored
    c.compute = ""  # of activations; '' as the parameters
    c.pixels = ()  # least and most pixels of an image; () as the checkpoint says
    c.recipe = "warm-start"  # its name in records, tables and figures
    c.seed = 0  # of the sampler (and, in records, of the training behind the model)
    c.step = 0  # updates behind the model, for the records
    c.source = "scenes"  # or a set that `vlmrl data prepare` has left
    c.texts = ""  # file of misleading texts (`vlmrl data texts`) instead of its own
    c.split = "validation"  # 'test' is read once, at the end
    c.size = 8 if small else 192  # examples; 0: all of a prepared set
    c.conditions = grpo.CONDITIONS
    c.reading = "strict"  # of an answer, what accuracy is of: strict, lenient, forced

    c.mesh = ConfigDict()  # devices: data × fsdp × tensor; one may be −1, what is left
    c.mesh.data = -1  # copies of the parameters
    c.mesh.fsdp = 1  # shares of parameters, gathered before sampling
    c.mesh.tensor = 1  # shares of heads, MLPs and vocabulary

    c.kernel = ConfigDict()  # loops/evaluate.py: EvalSettings
    c.kernel.samples = 1  # per condition
    c.kernel.temperature = 0.0  # 0 is greedy
    c.kernel.max_tokens = 72
    c.kernel.probe_every = 16  # think tokens between sighted probes
    c.kernel.probes = 4  # at most
    c.kernel.slots = 0  # samples decoded side by side, for unlike lengths; 0: all
    c.kernel.gather_params = True  # over fsdp once per pass, not token by token
    c.kernel.batch = 8 if small else 16  # examples per pass
    c.kernel.max_prompt = 0  # tokens, images included; longer items are skipped; 0: all
    c.kernel.max_images = 0  # of an item; with more it is skipped; 0: any number
    return c
