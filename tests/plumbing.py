"""What two processes tell each other: run as a program by `test_hosts.py`.

python tests/plumbing.py DIRECTORY PORT PROCESS CONFIG
"""

import sys

import numpy as np


def main(directory, port, process, config):
    import jax
    import jax.numpy as jnp

    from vlmrl import sharding
    from vlmrl.run import checkpoint, hosts
    from vlmrl.run.phases import Phases, Stopped

    here = int(process)
    assert hosts.start(f"127.0.0.1:{port}", 2, here) == "arguments"
    print(hosts.check(config, 4), flush=True)
    assert hosts.first() == (here == 0)
    assert hosts.agree(here == 1) and not hosts.agree(False)
    assert hosts.most([here, 5 - here]).tolist() == [1, 5]
    said = hosts.gather({"host": here, "text": "x" * (1 + 100 * here)})
    assert [len(s["text"]) for s in said] == [1, 101]

    mesh = sharding.make_mesh()
    assert sharding.part(mesh) == (here, 2)
    assert sharding.part(sharding.make_mesh(data=1, tensor=4)) == (0, 1)
    assert sharding.part(sharding.make_mesh(data=2, tensor=2)) == (here, 2)
    whole = np.arange(24, dtype=np.int32).reshape(8, 3)
    placed = sharding.shard_batch(mesh, {"x": whole})
    assert sharding.shard_batch(mesh, placed)["x"] is placed["x"]
    mine = whole[4 * here : 4 * here + 4]
    joined = sharding.join_batch(mesh, {"x": mine})
    for tree in (placed, joined):
        np.testing.assert_array_equal(sharding.local_rows(tree)["x"], mine)
        np.testing.assert_array_equal(sharding.fetch(tree)["x"], whole)

    distributed_batches(mesh, here)

    # A checkpoint of arrays that neither process holds whole.
    carry = {"x": placed["x"], "step": 3}
    save = checkpoint.Saver(directory, keep=1, minutes=0, saved=0)
    save(1, carry, 0.5, now=True)
    save(2, {"x": jax.jit(lambda x: x + 1)(placed["x"]), "step": 4}, 0.2, now=True)
    save.finish()
    hosts.wait("saved")
    assert checkpoint.steps(directory) == [1, 2], "the newest and the best"
    found, _ = checkpoint.restore(directory, 2, carry)
    assert found["step"] == 4 and found["x"].sharding == placed["x"].sharding
    np.testing.assert_array_equal(sharding.fetch(found["x"]), whole + 1)

    # Only the second is asked; both stop at the same call.
    run = Phases()
    for step in range(5):
        if step == 3 and here == 1:
            run.ask()
        try:
            run("update", step)
        except Stopped:
            break
    assert step == 3
    assert float(jnp.ones(()) + 1) == 2  # a program of one's own still runs
    hosts.wait("end")
    print("done", flush=True)


def distributed_batches(mesh, here):
    """Each reads and cuts its half of every batch, and the groups are those of one
    process; groups that change places have their images read where they go."""
    from tests import kit
    from tests.data.test_distributed import Read
    from vlmrl import sharding
    from vlmrl.data import distort, distributed, images, loader
    from vlmrl.policy import Policy, prefixes
    from vlmrl.prompts import tokens
    from vlmrl.run import hosts

    buckets = tokens.Buckets(prefix=(160,), branch=(64,), windows=(4,))
    policy = Policy(None, None, kit.processor(), None, "tiny", (buckets,), mesh, "toy")
    source = Read(kit.examples(12, "train"))
    index, count = sharding.part(mesh)
    how = dict(seed=1, batch=8)
    share = loader.batches(source, **how, epochs=1, part=(index, count))
    at = loader.stream_of(kit.examples(12, "train"), seed=1).__getitem__
    asked = []
    whole = distributed.whole_batches(
        share, lambda p: asked.append(p) or at(p), index, hosts.whole
    )
    position, batch = next(whole)
    wanted = next(loader.batches(kit.examples(12, "train"), **how))
    assert position == wanted[0] == 8 and len(source.seen) == 4
    assert [e.id for e in batch] == [e.id for e in wanted[1]]

    def groups(examples):
        return sharding.fetch(prefixes(policy, policy.write(examples)))

    def same(found, wanted):
        for a, b in zip(*map(jax.tree.leaves, (found, wanted)), strict=True):
            np.testing.assert_array_equal(a, b)

    import jax

    decoded, decode = [], images.decode
    distort.images.decode = lambda *words: decoded.append(words) or decode(*words)
    masked = [distort.distort(e, "masked", 0) for e in batch]
    found = groups(batch), groups(masked)
    assert not asked and len(decoded) == 4, "only its own are read and cut"
    distort.images.decode = decode
    same(found[0], groups(wanted[1]))
    same(found[1], groups([distort.distort(e, "masked", 0) for e in wanted[1]]))
    same(groups(batch[::-1]), groups(wanted[1][::-1]))
    assert sorted(asked) == [4 * (1 - here) + i for i in range(4)]


if __name__ == "__main__":
    main(*sys.argv[1:])
