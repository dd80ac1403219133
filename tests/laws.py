"""The tests that state a law of the system, and seeded faults that tests must catch.

A refactoring may move and rename everything here, but no law may be lost on the way and
every fault must still be caught: who moves a test or a formula updates its line.

    python -m tests.laws                     check that both lists are consistent
    python -m tests.laws --faults            seed every fault and run its test
    python -m tests.laws --faults NAME ...   the same for some of them

`tests/test_laws_listed.py` runs the first check with the quick tests.
"""

from __future__ import annotations

import argparse
import ast
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("vlmrl", "tests", "configs", "pyproject.toml")  # what a fault is seeded in

# Law → ids of the tests that state it. An id without [parameters] means all of them.
LAWS: dict[str, tuple[str, ...]] = {
    "cached decoding = full forward": (
        "tests/engine/test_generate.py::test_recorded_logprobs_and_entropies_are_those_of_score",
        "tests/engine/test_generate.py::test_decoding_is_a_full_forward_at_every_step",
        "tests/engine/test_generate.py::test_the_cache_continues_from_each_rows_own_end",
        "tests/engine/test_generate.py::test_a_token_after_a_prefix_has_the_next_position",
    ),
    "continuous batching = one batch": (
        "tests/engine/test_continuous_batching.py::test_every_branch_is_that_of_the_plain_loop",
        "tests/engine/test_continuous_batching.py::test_segments_behind_segments_and_attention",
        "tests/eval/test_kernel.py::test_samples_that_take_turns_are_the_same_samples",
        "tests/rl/test_loop.py::test_in_slots_the_same_completions_are_drawn",
    ),
    "group = rows": (
        "tests/engine/test_laws.py::test_a_group_is_its_branches_alone",
        "tests/engine/test_laws.py::test_longer_caches_are_ordinary_rows_too",
        "tests/rl/test_loop.py::test_grouped_equals_separate_rows_at_every_step",
        "tests/eval/test_kernel.py::test_scores_of_given_samples_against_plain_rows",
        "tests/eval/test_kernel.py::test_scores_of_its_own_samples_against_plain_rows",
        "tests/eval/test_kernel.py::test_one_condition_is_a_group_without_branches",
        "tests/engine/test_options.py::test_evaluation_and_training_are_plain_forward_passes",
    ),
    "a turn reads the same under every chat template": (
        "tests/prompts/test_openings.py::test_the_same_turn_reads_the_same_under_every_template",
        "tests/prompts/test_openings.py::test_a_turn_begins_once_and_is_marked_as_written",
        "tests/prompts/test_openings.py::test_an_evaluation_is_the_same_where_the_template_opens_the_tag",
    ),
    "plain tags = a tokenizer without the tokens": (
        "tests/prompts/test_tag_tokens.py::test_added_tags_are_one_token_and_plain_ones_are_text",
        "tests/prompts/test_tag_tokens.py::test_a_model_reads_plain_tags_as_it_was_trained_to",
    ),
    "packed = unpacked": (
        "tests/prompts/test_tokens.py::test_groups_rebuild_their_rows",
        "tests/prompts/test_tokens.py::test_windows_hold_every_patch_once",
        "tests/prompts/test_tokens.py::test_completions_are_branches_after_the_prompt",
        "tests/prompts/test_processor.py::test_several_images_are_cut_as_a_batch_of_them_is",
        "tests/prompts/test_processor.py::test_many_prompts_are_each_as_one",
    ),
    "the prefix is computed and stored once": (
        "tests/engine/test_laws.py::test_vision_and_prefix_are_paid_once",
        "tests/engine/test_laws.py::test_vision_and_prefix_are_paid_once_backward_too",
        "tests/engine/test_laws.py::test_the_prefix_is_held_once",
        "tests/engine/test_cost.py::test_a_policy_gradient_step_costs_a_third_of_replicated_rows",
        "tests/engine/test_cost.py::test_ten_conditions_cost_less_than_three_tenths_of_ten_prefills",
        "tests/engine/test_cost.py::test_a_prefix_is_held_once",
        "tests/rl/test_loop.py::test_images_are_held_once_per_example_not_once_per_rollout",
    ),
    "every attention back end = one dense softmax": (
        "tests/engine/test_attention.py::test_one_softmax_over_all_segments",
        "tests/engine/test_attention.py::test_a_window_counts_positions",
        "tests/engine/test_attention.py::test_keys_that_are_not_seen_do_not_count",
        "tests/engine/test_attention.py::test_a_merge_of_kernels_has_the_gradients_of_the_whole",
        "tests/engine/test_attention.py::test_splash_in_its_interpreter",
        "tests/models/test_layers.py::test_attention_in_blocks_is_attention",
        "tests/engine/test_generate.py::test_the_head_in_chunks_is_the_head",
    ),
    "how layers are run changes nothing": (
        "tests/engine/test_laws.py::test_how_layers_are_run_changes_nothing",
    ),
    "order of conditions and batch size change nothing": (
        "tests/engine/test_generate.py::test_samples_do_not_depend_on_their_batch",
        "tests/engine/test_generate.py::test_toy_samples_do_not_depend_on_their_order",
        "tests/eval/test_kernel.py::test_the_order_of_conditions_and_items_changes_nothing",
        "tests/eval/test_kernel.py::test_the_batch_changes_nothing",
        "tests/main/test_eval.py::test_batch_size_and_order_of_conditions_change_nothing",
        "tests/judges/test_model.py::test_batch_and_order_change_nothing",
        "tests/eval/test_stats.py::test_bootstrap_is_the_same_every_time_and_whatever_the_row_order",
    ),
    "keys depend on (seed, use, step, id, sample, token) alone": (
        "tests/engine/test_generate.py::test_keys_depend_on_what_they_name_and_nothing_else",
        "tests/engine/test_generate.py::test_what_is_recorded_is_what_was_sampled_from",
        "tests/rl/test_augment.py::test_same_in_another_process_and_in_any_order_of_the_mix",
    ),
    "one device = eight devices = two processes": (
        "tests/test_layouts.py::test_rollouts",
        "tests/test_layouts.py::test_records",
        "tests/test_layouts.py::test_ten_steps",
        "tests/engine/test_sharding.py::test_samples_and_scores_do_not_depend_on_the_mesh",
        "tests/engine/test_sharding.py::test_a_step_does_not_depend_on_the_mesh",
        "tests/engine/test_sharding.py::test_rows_of_a_group_stay_on_its_shard",
        "tests/engine/test_sharding.py::test_a_checkpoint_of_eight_devices_is_read_by_fewer",
        "tests/run/test_checkpoint.py::test_restores_onto_another_mesh",
        "tests/data/test_loader.py::test_processes_partition_every_batch",
        "tests/data/test_distributed.py::test_every_process_has_the_whole_batch_and_its_own_images",
        "tests/models/test_big.py::test_each_of_two_processes_reads_half",
    ),
    "a step does not depend on how its batch is split": (
        "tests/rl/test_update.py::test_the_step_is_the_gradient_of_the_global_mean",
        "tests/rl/test_update.py::test_microbatches_change_nothing",
        "tests/rl/test_update.py::test_split_keeps_groups_with_their_branches",
        "tests/rl/test_update.py::test_moments_on_the_host_change_nothing",
        "tests/rl/test_losses.py::test_sums_and_counts_add_over_microbatches",
        "tests/rl/test_losses.py::test_gradients_add_over_microbatches",
        "tests/rl/test_surrogates.py::test_halves_add_to_the_whole",
    ),
    "resumed = uninterrupted": (
        "tests/rl/test_loop.py::test_the_same_run_twice_is_the_same",
        "tests/rl/test_loop.py::test_resuming_is_exact",
        "tests/main/test_train.py::test_resuming_is_exact",
        "tests/main/test_train.py::test_a_finished_run_is_left_as_it_is",
        "tests/main/test_train.py::test_a_supervised_run_and_the_same_again",
        "tests/main/test_stopped.py::test_it_ends_as_a_run_that_was_never_stopped",
        "tests/main/test_stopped.py::test_no_example_is_skipped_or_repeated",
        "tests/main/test_eval.py::test_twice_gives_the_same_records",
        "tests/main/test_judge.py::test_an_evaluation_that_is_killed_goes_on_where_it_was",
        "tests/main/test_reproduce.py::test_a_second_run_does_nothing_again",
        "tests/data/test_loader.py::test_a_position_continues_the_stream",
        "tests/data/test_killed.py::test_killed_anywhere_and_started_again_it_leaves_the_same",
        "tests/run/test_checkpoint.py::test_round_trip_is_bit_exact_for_every_dtype",
        "tests/run/test_checkpoint.py::test_nested_records_and_optimizer_state_resume",
        "tests/run/test_checkpoint.py::test_prng_keys_go_on_with_the_same_stream",
        "tests/test_metrics.py::test_an_interrupted_run_leaves_the_same_file_as_an_uninterrupted_one",
    ),
    "jit = no jit": (
        "tests/rl/test_losses.py::test_jit_equals_no_jit",
        "tests/rl/test_advantages.py::test_centred_shift_invariant_and_jit",
        "tests/test_metrics.py::test_add_inside_jit_and_scan",
    ),
    "parity with transformers": (
        "tests/prompts/test_tokens.py::test_ids_and_positions_are_those_of_transformers",
        "tests/prompts/test_tokens.py::test_windows_are_those_of_transformers",
        "tests/prompts/test_processor.py::test_patches_are_those_of_transformers",
        "tests/prompts/test_processor.py::test_tiles_are_those_of_transformers",
        "tests/models/test_qwen2_5_vl.py::test_logits",
        "tests/models/test_qwen2_5_vl.py::test_gradients",
        "tests/models/test_qwen2_5_vl.py::test_greedy_generation",
        "tests/models/test_qwen2_5_vl.py::test_what_is_exported_transformers_reads",
        "tests/models/test_qwen3_vl.py::test_logits",
        "tests/models/test_qwen3_vl.py::test_gradients",
        "tests/models/test_qwen3_vl.py::test_greedy_generation",
        "tests/models/test_qwen3_vl.py::test_what_is_exported_transformers_reads",
        "tests/models/test_internvl.py::test_logits",
        "tests/models/test_internvl.py::test_gradients",
        "tests/models/test_internvl.py::test_greedy_generation",
        "tests/models/test_internvl.py::test_what_is_exported_transformers_reads",
        "tests/models/test_text.py::test_logits",
        "tests/models/test_text.py::test_gradients",
        "tests/models/test_text.py::test_greedy_generation",
        "tests/models/test_export.py::test_to_and_from_transformers",
    ),
    "parameters ⇄ files": (
        "tests/models/test_hf.py::test_load_save_load_is_bit_equal",
        "tests/models/test_hf.py::test_8_bits_are_rounded_per_output",
        "tests/models/test_lora.py::test_merged_equals_attached",
        "tests/models/test_lora.py::test_a_fresh_adapter_changes_nothing",
        "tests/models/test_lora.py::test_an_adapter_comes_back_bit_for_bit",
        "tests/main/test_convert.py::test_there_and_back_through_orbax",
    ),
    "a closed-form bandit is learned": (
        "tests/rl/test_bandit.py::test_expected_gradient_is_that_of_the_closed_form_objective",
        "tests/rl/test_bandit.py::test_every_context_learns_its_best_arm",
        "tests/rl/test_bandit.py::test_with_a_kl_the_policy_settles_at_the_closed_form",
    ),
    "losses are those of the published formulas": (
        "tests/rl/test_losses.py::test_clipped_by_hand",
        "tests/rl/test_losses.py::test_masked_tokens_change_nothing_and_have_zero_gradient",
        "tests/rl/test_losses.py::test_kl_values_are_estimates_of_the_kl",
        "tests/rl/test_surrogates.py::test_at_ratio_one_the_gradient_is_reinforce",
        "tests/rl/test_surrogates.py::test_masked_tokens_change_nothing_and_have_zero_gradient",
        "tests/rl/test_importance.py::test_corrected_expectations_are_those_of_the_trainer",
        "tests/rl/test_importance.py::test_k1_in_the_reward_has_the_gradient_of_the_kl",
        "tests/rl/test_advantages.py::test_masked_completions_take_no_part",
    ),
    "tokens = bytes": (
        "tests/prompts/test_tokens.py::test_automaton_finds_what_bytes_find",
        "tests/engine/test_generate.py::test_stop_strings_across_tokens_end_tokens_and_length",
        "tests/eval/test_tags.py::test_tags_of_the_shipped_tokenizer",
    ),
    "intervals cover": (
        "tests/eval/test_stats.py::test_coverage_of_intervals_under_clusters",
        "tests/eval/test_stats.py::test_coverage_of_the_paired_difference",
        "tests/eval/test_stats.py::test_samples_of_an_example_are_one_unit",
        "tests/eval/test_calibration.py::test_delong_covers",
    ),
    "imports go one way": ("tests/test_imports.py::test_imports_go_one_way",),
}  # fmt: skip


class Fault(NamedTuple):
    """A wrong formula, and the test that must fail with it."""

    name: str
    file: str  # below the root
    before: str  # occurs exactly once in the file
    after: str
    test: str  # pytest id; takes seconds


FAULTS = (
    Fault(
        "causal sign",
        "vlmrl/engine/attention.py",
        "steps[:, None] >= steps[None, :]",
        "steps[:, None] <= steps[None, :]",
        "tests/engine/test_attention.py::test_one_softmax_over_all_segments",
    ),
    Fault(
        "attention mask: one key beyond a limit",
        "vlmrl/engine/attention.py",
        "jnp.arange(size) < limit[:, None]",
        "jnp.arange(size) <= limit[:, None]",
        "tests/engine/test_attention.py::test_one_softmax_over_all_segments",
    ),
    Fault(
        "position after a prefix off by one",
        "vlmrl/engine/prefix_cache.py",
        "top.max(-1) + 1",
        "top.max(-1)",
        "tests/engine/test_generate.py::test_a_token_after_a_prefix_has_the_next_position",
    ),
    Fault(
        "position of a new token off by one",
        "vlmrl/engine/generate.py",
        "start + s.t",
        "start + s.t + 1",
        "tests/engine/test_generate.py::test_decoding_is_a_full_forward_at_every_step",
    ),
    Fault(
        "cache index off by one",
        "vlmrl/engine/generate.py",
        "jnp.arange(max_tokens) < s.t",
        "jnp.arange(max_tokens) <= s.t",
        "tests/engine/test_generate.py::test_decoding_is_a_full_forward_at_every_step",
    ),
    Fault(
        "scored against the state after the token",
        "vlmrl/engine/score.py",
        "[first[:, None], own[:, :-1]]",
        "[own[:, :1], own[:, 1:]]",
        "tests/engine/test_generate.py::test_recorded_logprobs_and_entropies_are_those_of_score",
    ),
    Fault(
        "stop token not part of the completion",
        "vlmrl/engine/generate.py",
        "put(r.mask, live)",
        "put(r.mask, live & ~ended)",
        "tests/engine/test_generate.py::test_stop_strings_across_tokens_end_tokens_and_length",
    ),
    Fault(
        "stop automaton forgets its state",
        "vlmrl/engine/generate.py",
        "stops.table[ids, s.automaton]",
        "stops.table[ids, 0]",
        "tests/engine/test_generate.py::test_stop_strings_across_tokens_end_tokens_and_length",
    ),
    Fault(
        "one key for all steps",
        "vlmrl/engine/generate.py",
        "jax.random.fold_in(base, step)",
        "jax.random.fold_in(base, 0)",
        "tests/engine/test_generate.py::test_keys_depend_on_what_they_name_and_nothing_else",
    ),
    Fault(
        "entropy in bits",
        "vlmrl/engine/logprobs.py",
        "-jnp.sum(jnp.exp(logp) * logp, axis=-1)",
        "-jnp.sum(jnp.exp(logp) * logp, axis=-1) / jnp.log(2.0)",
        "tests/engine/test_generate.py::test_what_is_recorded_is_what_was_sampled_from",
    ),
    Fault(
        "parameters split over the wrong mesh axis",
        "vlmrl/sharding.py",
        '"embed": "fsdp"',
        '"embed": "tensor"',
        "tests/engine/test_sharding.py::test_axes_that_do_not_divide_are_replicated",
    ),
    Fault(
        "image patches in the wrong order",
        "vlmrl/prompts/tokens.py",
        "cut.transpose(0, 1, 3, 2, 4)",
        "cut.transpose(0, 1, 2, 3, 4)",
        "tests/prompts/test_tokens.py::test_windows_hold_every_patch_once",
    ),
    Fault(
        "sign of the advantage",
        "vlmrl/rl/advantages.py",
        "shifted - shifted.sum(-1, keepdims=True) / n",
        "shifted.sum(-1, keepdims=True) / n - shifted",
        "tests/rl/test_bandit.py::test_every_context_learns_its_best_arm",
    ),
    Fault(
        "advantage normalised by n instead of n − ddof",
        "vlmrl/rl/advantages.py",
        "jnp.maximum(n - ddof, 1)",
        "jnp.maximum(n, 1)",
        "tests/rl/test_advantages.py::test_grpo_by_hand",
    ),
    Fault(
        "clip in the wrong direction",
        "vlmrl/rl/losses/surrogates.py",
        "(advantage > 0) & (ratio > 1 + clip_high)",
        "(advantage < 0) & (ratio > 1 + clip_high)",
        "tests/rl/test_losses.py::test_clipped_by_hand",
    ),
    Fault(
        "KL estimator of the other direction",
        "vlmrl/rl/losses/kl.py",
        "jnp.expm1(d) - d",
        "jnp.expm1(-d) + d",
        "tests/rl/test_losses.py::test_kl_estimators_by_hand",
    ),
    Fault(
        "loss without its mask",
        "vlmrl/rl/losses/terms.py",
        "values = jnp.where(mask, values, 0)",
        "values = jnp.where(mask, values, values)",
        "tests/rl/test_losses.py::test_aggregations_by_hand",
    ),
    Fault(
        "gradients of microbatches not divided by the count",
        "vlmrl/rl/update.py",
        "g / count.astype(g.dtype)",
        "g",
        "tests/rl/test_update.py::test_the_step_is_the_gradient_of_the_global_mean",
    ),
    Fault(
        "weight decay on norms",
        "vlmrl/rl/update.py",
        "table[name].decay",
        "True",
        "tests/rl/test_update.py::test_decay_leaves_out_norms_biases_and_vectors",
    ),
    Fault(
        "an unread answer is right",
        "vlmrl/rl/rewards.py",
        "float(completion.correct)",
        "float(completion.correct or completion.parsed.option < 0)",
        "tests/rl/test_rewards.py::test_no_answer_is_never_right",
    ),
    Fault(
        "texts of a wrong and a right think swapped",
        "vlmrl/perturb.py",
        '_think("wrong_think", "suggested")',
        '_think("wrong_think", "answer")',
        "tests/test_perturb.py::test_exact_texts",
    ),
    Fault(
        "letters in one spelling only",
        "vlmrl/engine/options.py",
        "jnp.logaddexp(direct, through)",
        "direct",
        "tests/eval/test_kernel.py::test_scores_of_given_samples_against_plain_rows",
    ),
    Fault(
        "probe one token early",
        "vlmrl/eval/kernel.py",
        "+ every * (1 + jnp.arange(count))",
        "+ every * (1 + jnp.arange(count)) - 1",
        "tests/eval/test_kernel.py::test_scores_of_given_samples_against_plain_rows",
    ),
    Fault(
        "rows resampled instead of clusters",
        "vlmrl/eval/stats.py",
        "np.unique(np.asarray(clusters), return_inverse=True)",
        "np.unique(np.arange(len(clusters)), return_inverse=True)",
        "tests/eval/test_stats.py::test_mean_equals_the_general_bootstrap",
    ),
    Fault(
        "resumed at the start of the stream",
        "vlmrl/data/loader.py",
        "first = start + process_index * size",
        "first = process_index * size",
        "tests/data/test_loader.py::test_a_position_continues_the_stream",
    ),
    Fault(
        "scale of LoRA without the rank",
        "vlmrl/models/lora.py",
        "adapter.alpha / adapter.rank",
        "adapter.alpha",
        "tests/models/test_lora.py::test_a_merge_by_hand",
    ),
    Fault(
        "weights in 8 bits without their scale",
        "vlmrl/models/quant.py",
        "self.values.astype(jnp.float32) * self.scale",
        "self.values.astype(jnp.float32)",
        "tests/models/test_hf.py::test_8_bits_are_rounded_per_output",
    ),
)  # fmt: skip


def problems(root: Path = ROOT) -> list[str]:
    """Return what is wrong with LAWS and FAULTS in the tree at `root`, a line each."""
    named: dict[Path, set[str]] = {}

    def exists(test: str) -> bool:
        file, _, name = test.partition("::")
        path = root / file
        if path not in named:
            tree = ast.parse(path.read_text()) if path.is_file() else ast.Module([], [])
            named[path] = {
                node.name for node in tree.body if isinstance(node, ast.FunctionDef)
            }
        return name.partition("[")[0] in named[path]

    tests = [(f"law '{law}'", test) for law, ids in LAWS.items() for test in ids]
    tests += [(f"fault '{fault.name}'", fault.test) for fault in FAULTS]
    out = [f"{what}: no test {test}" for what, test in tests if not exists(test)]
    ids = [test for group in LAWS.values() for test in group]
    out += [f"{test}: listed twice" for test in sorted(set(ids)) if ids.count(test) > 1]
    names = [fault.name for fault in FAULTS]
    out += [f"fault '{n}': twice" for n in sorted(set(names)) if names.count(n) > 1]
    for name, file, before, after, _ in FAULTS:
        path = root / file
        count = path.read_text().count(before) if path.is_file() else 0
        if count != 1 or before == after:
            out.append(
                f"fault '{name}': expected {before!r} once in {file}, got {count}"
            )
    return out


def copied(root: Path, target: Path) -> None:
    """Copy the part of the tree that the tests of FAULTS read."""
    for name in COPIED:
        if (root / name).is_dir():
            skip = shutil.ignore_patterns("__pycache__")
            shutil.copytree(root / name, target / name, ignore=skip)
        else:
            shutil.copy(root / name, target / name)


def run(tree: Path, tests: list[str]) -> tuple[int, str]:
    """Run tests in a copied tree; return pytest's exit status and what it printed.

    Programs that an earlier run compiled are read back from the checkout's cache, whose
    keys are the programs themselves.
    """
    environ = dict(os.environ, PYTHONPATH=str(tree), PYTHONDONTWRITEBYTECODE="1")
    environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax"))
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
    done = subprocess.run(words, cwd=tree, env=environ, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def seed(fault: Fault, tree: Path) -> tuple[bool, str]:
    """Seed a fault in a copied tree, run its test and undo it.

    Returns (caught, what the test run printed). Caught means that the test ran and
    failed: a tree that can't be imported or collected catches nothing.
    """
    path = tree / fault.file
    source = path.read_text()
    path.write_text(source.replace(fault.before, fault.after))
    try:
        status, said = run(tree, [fault.test, "-x"])
    finally:
        path.write_text(source)
    return status == 1, said


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.laws")
    parser.add_argument(
        "--faults", nargs="*", metavar="NAME", help="seed these faults; all if none"
    )
    asked = parser.parse_args(argv).faults
    if found := problems():
        print("\n".join(found))
        return 1
    count = sum(len(ids) for ids in LAWS.values())
    print(f"{len(LAWS)} laws in {count} tests, {len(FAULTS)} faults: consistent")
    if asked is None:
        return 0
    if unknown := set(asked) - {fault.name for fault in FAULTS}:
        parser.error(f"unknown faults: {', '.join(sorted(unknown))}")
    faults = [fault for fault in FAULTS if not asked or fault.name in asked]
    missed = 0
    with tempfile.TemporaryDirectory() as directory:
        tree = Path(directory)
        copied(ROOT, tree)
        status, said = run(tree, list(dict.fromkeys(f.test for f in faults)))
        if status:
            print(f"{said}\nthe tests must pass before a fault is seeded")
            return 1
        print("without a fault all tests pass", flush=True)
        for fault in faults:
            began = time.monotonic()
            caught, said = seed(fault, tree)
            missed += not caught
            word = "caught" if caught else "NOT caught"
            seconds = time.monotonic() - began
            print(f"{word} ({seconds:.0f} s): {fault.name}: {fault.test}", flush=True)
            reasons = [line for line in said.splitlines() if line.startswith("E  ")]
            print(f"  {reasons[0] if reasons else ''}" if caught else said[-2000:])
    print(f"{len(faults) - missed} of {len(faults)} caught")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
