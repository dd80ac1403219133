"""What two processes tell each other: run as a program by `test_hosts.py`.

python tests/plumbing.py DIRECTORY PORT PROCESS CONFIG
"""

import sys

import numpy as np


def main(directory, port, process, config):
    import jax
    import jax.numpy as jnp

    from vlmrl import checkpoint, hosts, sharding
    from vlmrl.phases import Phases, Stopped
    from vlmrl.types import Mean

    here = int(process)
    assert hosts.start(f"127.0.0.1:{port}", 2, here) == "arguments"
    print(hosts.check(config, 4), flush=True)
    assert hosts.first() == (here == 0)
    assert hosts.agree(here == 1) and not hosts.agree(False)
    assert hosts.most([here, 5 - here]).tolist() == [1, 5]
    said = hosts.gather({"host": here, "text": "x" * (1 + 100 * here)})
    assert [len(s["text"]) for s in said] == [1, 101]
    assert hosts.total({"n": Mean(np.float32(here + 1), np.float32(2))}) == {
        "n": Mean(3, 4)
    }

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
        np.testing.assert_array_equal(sharding.rows(tree)["x"], mine)
        np.testing.assert_array_equal(sharding.fetch(tree)["x"], whole)

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


if __name__ == "__main__":
    main(*sys.argv[1:])
