"""`vlmrl plan`: what is counted, what is compiled, and what is said of it."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import NamedSharding, PartitionSpec

from tests import kit
from vlmrl import sharding
from vlmrl.main import args
from vlmrl.models import registry
from vlmrl.plan import chips, compiled, estimate, programs

ROOT = Path(__file__).resolve().parents[2]
WORDS = ["plan", "--config", "configs/plan.py:runlocal"]


def job(name="configs/plan.py:runlocal", **changes):
    return estimate.read_job(args.load_config(name).to_dict())._replace(**changes)


# -- counting --------------------------------------------------------------------------


def test_flops_of_loops_and_branches_are_multiplied_out():
    x, w = jnp.ones((4, 8)), jnp.ones((3, 8, 8))

    def loops(x, w):
        y, _ = jax.lax.scan(lambda c, a: (c @ a, None), x, w)
        y = jax.lax.while_loop(lambda s: s[0, 0] < 9, lambda s: s @ w[0], y)
        y = jax.lax.cond(y[0, 0] > 0, lambda y: y @ w[0] @ w[0], lambda y: y, y)
        return jax.checkpoint(lambda y: jax.jit(lambda y: y @ w[1])(y))(y).sum()

    one = 2 * 4 * 8 * 8
    assert compiled.flops(loops, x, w, trips=5) == one * (3 + 5 + 2 + 1)
    grad = jax.grad(lambda w: (x @ w).sum())
    assert compiled.flops(grad, w[0]) == 2 * one  # the product itself, and dw
    image, kernel = jnp.ones((1, 3, 16, 16)), jnp.ones((5, 3, 2, 2))
    conv = jax.lax.conv_general_dilated
    actual = compiled.flops(lambda a, b: conv(a, b, (2, 2), "VALID"), image, kernel)
    assert actual == 2 * 3 * 2 * 2 * 5 * 8 * 8


def analytic(job, *, passes, head):
    """FLOPs of a forward over N prefixes and N·G completions, by hand, times `passes`;
    the head's times `head`."""
    c, v = job.model.config.text, job.model.config
    n, s = job.prompts, job.buckets["prefix"]
    b, t = n * job.group_size, job.max_tokens
    width, inner = c.heads * c.head_dim, c.kv_heads * c.head_dim
    linear = c.width * (2 * width + 2 * inner + 3 * c.mlp)
    seen = n * s * s + b * t * (s + t)
    text = c.layers * (2 * (n * s + b * t) * linear + 4 * width * seen)
    side = v.window // v.merge // v.patch
    patches = n * job.buckets["images"] * job.buckets["windows"] * (side * v.merge) ** 2
    e, one = v.vision_width, (side * v.merge) ** 2
    full = len(v.full_layers)
    spans = full * job.buckets["windows"] * one + (v.vision_layers - full) * one
    look = v.vision_layers * 2 * patches * (4 * e * e + 3 * e * v.vision_mlp)
    look += 4 * e * patches * spans
    wide = v.merge**2 * e
    look += 2 * patches * v.patch_dim * e
    look += 2 * patches / v.merge**2 * wide * (wide + c.width)
    return passes * (text + look) + head * 2 * b * t * c.vocab * c.width


def test_flops_of_the_update_are_those_of_the_formula():
    mesh = sharding.make_mesh()
    here = job()
    step = programs.step(here, mesh, unroll=True)
    actual = compiled.flops(step.function, *step.args)
    # Forward, and twice that backward; the head's chunks are computed once more.
    expected = analytic(here, passes=3, head=4)
    assert actual == pytest.approx(expected, rel=0.05)
    more = here._replace(prompts=16, group_size=4, max_tokens=32)
    step = programs.step(more, mesh, unroll=True)
    expected = analytic(more, passes=3, head=4)
    assert compiled.flops(step.function, *step.args) == pytest.approx(
        expected, rel=0.05
    )


def test_collectives_are_read_from_the_compiled_text():
    mesh = sharding.make_mesh(data=1, fsdp=4, tensor=2)

    def shape(dims, *spec):
        place = NamedSharding(mesh, PartitionSpec(*spec))
        return jax.ShapeDtypeStruct(dims, jnp.float32, sharding=place)

    def run(x, w):
        y, _ = jax.lax.scan(lambda c, a: (jnp.tanh(c @ a[0]) @ a[1], None), x, w)
        return y

    w = (
        shape((6, 256, 512), None, "fsdp", "tensor"),
        shape((6, 512, 256), None, "tensor", "fsdp"),
    )
    x = shape((2048, 256), "fsdp")
    built = jax.jit(run, out_shardings=x.sharding).lower(x, w).compile()
    sent = compiled.by_axis(compiled.collectives(built.as_text()), mesh)
    assert set(sent) == {"fsdp", "tensor"}
    weights = 6 * 2 * 256 * 512 * 4 / 2  # of a tensor shard, gathered over fsdp
    assert sent["fsdp"] == pytest.approx(weights * 3 / 4, rel=0.01)
    sums = 6 * 2 * (2048 // 4) * 256 * 4 / 2  # all-reduce of the products over tensor
    assert sent["tensor"] == pytest.approx(sums, rel=0.01)


@pytest.mark.parametrize(
    "line, group",
    [
        ("replica_groups={{0,2},{1,3}}, x", (0, 2)),
        ("replica_groups=[2,4]<=[8]", (0, 1, 2, 3)),
        ("replica_groups=[2,4]<=[4,2]T(1,0)", (0, 2, 4, 6)),
        ("replica_groups=mesh['a'=4,'b'=2] {'a'}, x", (0, 2, 4, 6)),
        ("no groups", ()),
    ],
)
def test_groups_of_devices(line, group):
    assert compiled._groups(line) == (group, max(1, len(group)))


# -- where things lie ------------------------------------------------------------------


def test_shapes_lie_like_the_arrays_of_a_run():
    mesh = sharding.make_mesh(data=1, fsdp=4, tensor=2)
    here = job()
    step = programs.step(here, mesh)
    state, batch = step.args
    assert state.params["text.embed"].sharding.spec == PartitionSpec("tensor", "fsdp")
    for path, leaf in jax.tree_util.tree_leaves_with_path(state.opt_state):
        owner = [k.key for k in path if getattr(k, "key", None) in state.params]
        spec = state.params[owner[0]].sharding.spec if owner else PartitionSpec()
        assert leaf.sharding.spec == spec
    assert batch.group.prefix.positions.sharding.spec[0] == ("data", "fsdp")
    assert batch.group.prefix.ids.shape == (8, 96)
    assert batch.group.branches.ids.shape == (16, 16)
    embed = math.prod(here.model.table["text.embed"].shape) * 4
    assert programs.device_bytes(state.params["text.embed"]) == embed / 8
    remaining = programs.cache(here, mesh, groups=8, length=16, rows=16)
    c = here.model.config.text
    assert (
        remaining == (8 * 96 + 16 * 16) / 4 * 2 * c.layers * c.kv_heads * c.head_dim * 2
    )


def test_what_a_run_holds_throughout():
    """Parameters and two moments in float32, and the start of a KL term as it is read;
    what samples, a copy in bfloat16 whole over fsdp."""
    mesh = sharding.make_mesh(data=1, fsdp=4, tensor=2)
    here = job(compute=jnp.dtype("bfloat16"))
    once = programs.device_bytes(programs.params(here, mesh, here.dtype))
    moments = programs.device_bytes(programs.step(here, mesh).args[0].opt_state)
    assert moments == pytest.approx(2 * once, rel=1e-3)
    alone = here._replace(loss={**here.loss, "kl_weight": 0.0})
    referring = here._replace(loss={**here.loss, "kl_weight": 0.1})
    assert programs.resident(alone, mesh) == once + moments + 4  # the step's number
    assert programs.resident(referring, mesh) == pytest.approx(
        1.5 * once + moments, rel=1e-2
    )
    shapes = programs.params(here, mesh, here.dtype)
    copy = programs.sampling_params(here, mesh).prepare(shapes)
    assert copy == pytest.approx(4 * once / 2, rel=0.05)
    lone = here._replace(gather_params=False)
    assert programs.sampling_params(lone, mesh).prepare(shapes) == pytest.approx(
        once / 2, rel=0.05
    )
    plain = lone._replace(compute=None)
    assert programs.sampling_params(plain, mesh).prepare(shapes) == 0


@pytest.mark.parametrize(
    "text, count, sizes",
    [
        ("", 64, {"data": 1, "fsdp": 16, "tensor": 4}),
        ("", 256, {"data": 1, "fsdp": 64, "tensor": 4}),
        ("", 4, {"data": 1, "fsdp": 4, "tensor": 1}),
        ("fsdp=8,tensor=1", 8, {"data": 1, "fsdp": 8, "tensor": 1}),
    ],
)
def test_meshes_that_suit_a_7b_model(text, count, sizes):
    here = job("configs/plan.py")
    assert here.model.config.text.kv_heads == 4
    place = chips.Topology("v5e", "", [jax.devices()[0]] * count, "")
    assert dict(estimate.make_mesh(here, place, text).shape) == sizes


def test_the_published_sizes_are_planned():
    for name, size in (("3b", 3.75e9), ("7b", 8.29e9), ("72b", 73.4e9)):
        here = job(f"configs/plan.py:model={name}")
        assert here.model.size == pytest.approx(size, rel=0.01)
        assert (here.prompts, here.group_size, here.max_tokens) == (128, 8, 2048)


def test_the_papers_recipe_is_planned_as_it_trains():
    """In bfloat16, on float32 parameters that all devices share."""
    config = args.load_config("configs/paper/recipe.py:name=iii").to_dict()
    here = estimate.read_job(config)
    assert (here.dtype, here.compute) == (jnp.float32, jnp.bfloat16)
    assert (
        here.remat == "nothing_saveable"
        and here.float32_residual
        and here.gather_params
    )
    place = chips.Topology("v5e", "", [jax.devices()[0]] * 64, "")
    sizes = dict(estimate.make_mesh(here, place, config["mesh"]).shape)
    assert sizes == {"data": 1, "fsdp": 64, "tensor": 1}


# -- the command -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "words, complaint",
    [
        (["--topology", "v5e"], "--topology is 'v5e', expected a chip and a slice"),
        (["--topology", "v7:8"], "chips: v5e, v5p, v6e"),
        (["--topology", "v5p:4x4"], "slices of v5p are 2x2x1, 2x2x2"),
        (["--topology", "h100:16"], "no compiler for it here, and there are 8 CPU"),
        (["--topology", "host:8", "--mesh", "fsdp"], "expected e.g. fsdp=16,tensor=4"),
        (["--topology", "host:8", "--mesh", "rows=8"], "--mesh: no axis rows"),
        (["--topology", "host:8", "--mesh", "fsdp=3"], "multiply to 8 devices"),
        (["--topology", "host:8", "--only", "sleep"], "--only: no program sleep"),
        (
            ["--topology=host:8", "--mesh=fsdp=8", "--config.learner.microbatches=3"],
            "config.prompts is 8, expected a multiple of 8 batch",
        ),
    ],
)
def test_bad_input_is_refused(words, complaint, refused):
    assert complaint in refused(*WORDS, *words)


def test_a_tpus_programs_are_compiled_anew_and_others_kept(tmp_path):
    cache = {"jax_compilation_cache_dir": str(tmp_path)}
    cache["jax_persistent_cache_min_compile_time_secs"] = 0
    before = {name: getattr(jax.config, name) for name in cache}

    def compiled(compiler, number):
        with estimate.without_libtpu_cache(chips.Topology("v5e", "2x2", [], compiler)):
            jax.jit(lambda x: jnp.sin(x) + number).lower(1.0).compile()
        return len([p for p in tmp_path.iterdir() if p.name.endswith("-cache")])

    try:
        for name, value in cache.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
        assert compiled("libtpu", 1) == 0
        assert compiled("cpu", 2) == 1
        assert compiled("libtpu", 3) == 1
        assert jax.config.jax_enable_compilation_cache
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()


# -- the plan against the machine ------------------------------------------------------


@pytest.mark.slow
def test_cost_per_device_as_devices_and_prompts_grow_together():
    """Weak scaling of the rollout and the update on 1, 2, 4 and 8 devices, each with
    its share of the parameters and two prompts: arithmetic per device, as XLA counts
    that of the partitioned program, stays. What a device sends follows its share of the
    others' weights, (n - 1) / n: once all of them to sample; to update, gathered for
    the forward and the backward pass, and gradients summed, which is two more."""
    counts = (1, 2, 4, 8)
    flops, sent = {}, {}
    for n in counts:
        mesh = sharding.make_mesh(data=1, fsdp=n, devices=jax.devices()[:n])
        here = job(model=kit.model(), raw=kit.config(), prompts=2 * n)
        for program in (
            programs.rollout(here, mesh),
            programs.step(here, mesh, unroll=True),
        ):
            built = jax.jit(
                program.function,
                donate_argnums=program.donated,
                out_shardings=program.out,
            )
            built = built.lower(*program.args).compile()
            actual = compiled.by_axis(compiled.collectives(built.as_text()), mesh)
            assert set(actual) <= {"fsdp"}
            sent[program.name, n] = sum(actual.values())
            flops[program.name, n] = built.cost_analysis()["flops"]
    weights = here.model.size * 4
    for name, times in (("rollout", 1.02), ("update", 4.0)):
        assert sent[name, 1] == 0
        for n in counts[1:]:
            assert flops[name, n] == pytest.approx(flops[name, 1], rel=0.02), n
            assert sent[name, n] <= times * weights * (n - 1) / n, (name, n)
            assert sent[name, n] >= 0.9 * weights * (n - 1) / n, (name, n)


GROWTH = """
import json, re
import jax
from vlmrl import sharding
from vlmrl.plan import chips, estimate, programs
from tests.main.test_plan import heavy

here = heavy()
mesh = sharding.make_mesh(devices=jax.devices()[:1])
step = programs.step(here, mesh)
planned = estimate.cost(here, mesh, chips.find("host:1"), step, here.prompts, step)

def resident(name):
    text = open("/proc/self/status").read()
    return int(re.search(name + r":\\s+(\\d+)", text)[1]) * 1024

made = jax.jit(step.function, donate_argnums=0, out_shardings=step.out)
made = made.lower(*step.args).compile()
before = resident("VmRSS")
open("/proc/self/clear_refs", "w").write("5")  # the peak starts anew

def small(x):  # nothing that is no number
    fill = jax.jit(lambda: jax.numpy.full(x.shape, 1e-3).astype(x.dtype),
                   out_shardings=x.sharding)
    return fill()

state, batch = jax.tree.map(small, step.args)
for _ in range(2):
    state, metrics = jax.block_until_ready(made(state, batch))
print(json.dumps({"planned": planned.total, "grown": resident("VmHWM") - before}))
"""


def heavy():
    """A job whose update takes more than 2 GiB and little arithmetic."""
    raw = json.loads((registry.TINY / "config.json").read_text())
    text = dict(raw["text_config"], vocab_size=65536, hidden_size=1024)
    text.update(intermediate_size=4096, num_hidden_layers=6, num_attention_heads=8)
    text["rope_parameters"] = dict(text["rope_parameters"], mrope_section=[16, 24, 24])
    vision = dict(raw["vision_config"], out_hidden_size=1024)
    raw = raw | {"text_config": text, "vision_config": vision}
    model = registry.build_model(raw, "heavy")
    return job(prompts=2, max_tokens=16, model=model, raw=raw)


@pytest.mark.slow
def test_planned_memory_is_what_a_run_takes():
    """Within 20 % of the growth of a process's resident memory, of an update of 2 GiB
    or more."""
    env = os.environ | {"XLA_FLAGS": "", "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-c", GROWTH]
    done = subprocess.run(words, env=env, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    actual = json.loads(done.stdout.splitlines()[-1])
    assert actual["planned"] > 2 * 2**30
    assert actual["planned"] == pytest.approx(actual["grown"], rel=0.2), actual
