"""The TPU path compiles ahead of time, without a TPU: a scored group and its gradients
with splash attention, laid out over four chips of each kind."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

KINDS = {  # topology → what libtpu wants to be told of the machine it is not on
    "v5e:2x2": "v5litepod-4",
    "v5p:2x2x1": "v5p-8",
    "v6e:2x2": "v6e-4",
}

PROGRAM = """
import sys
import jax
import jax.numpy as jnp
from jax.experimental import topologies
from vlmrl import sharding
from vlmrl.engine import attention
from vlmrl.engine.score import score
from vlmrl.bench import workloads
from vlmrl.models import registry

topology = topologies.get_topology_desc(platform="tpu", topology_name=sys.argv[1])
mesh = sharding.make_mesh(data=2, tensor=2, devices=topology.devices)
look = workloads.vlm(width=256, layers=2, heads=2, kv_heads=2, mlp=256)
sizes = workloads.Sizes(look)
model = registry.build_model(look, "test")
places = sharding.param_shardings(mesh, model.table)
like = jax.ShapeDtypeStruct
params = {n: like(p.shape, jnp.bfloat16, sharding=places[n])
          for n, p in jax.eval_shape(model.init, jax.random.key(0)).items()}

def place(x):
    return like(x.shape, x.dtype, sharding=sharding.batch_sharding(mesh))

group = jax.tree.map(place, workloads.scored(sizes, 2))
attend = attention.choose("splash", mesh)

def loss(params, group):
    found, _ = score(model, params, group, attend=attend, dtype=jnp.bfloat16)
    return found.sum()

compiled = jax.jit(jax.grad(loss)).lower(params, group).compile()
print(topology.devices[0].device_kind, compiled.as_text().count("tpu_custom_call"))
"""


@pytest.mark.libtpu
@pytest.mark.slow
@pytest.mark.parametrize("topology", KINDS)
def test_scoring_with_gradients_compiles(topology):
    told = {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": KINDS[topology],
        "TPU_WORKER_HOSTNAMES": "localhost",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    words = [sys.executable, "-c", PROGRAM, topology]
    done = subprocess.run(
        words, env={**os.environ, **told}, cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout.split()[-1]) >= 3  # forward, and two kernels backward
