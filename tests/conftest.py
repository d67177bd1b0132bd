"""JAX made strict, and four host devices, for every test."""

import os
import subprocess
import sys
import tempfile

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("MPLBACKEND", "agg")
# Tests check values and work, not seconds. Without XLA's expensive passes and its newer fusion code,
# programs compile in a third of the time, and the workers of a session share compiled programs.
# Tests that read the compiled program want what users get: `DYNEXIT_TEST_XLA=default`.
if os.environ.get("DYNEXIT_TEST_XLA") != "default":
    os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        faster = os.environ["XLA_FLAGS"] + " --xla_cpu_use_fusion_emitters=false"
        # XLA ends a process that has a flag which it does not know
        known = [sys.executable, "-c", "import jax; jax.devices()"]
        tried = subprocess.run(known, env=os.environ | {"XLA_FLAGS": faster}, capture_output=True)
        if tried.returncode == 0:
            os.environ["XLA_FLAGS"] = faster
        # removed when the process that made it ends
        programs = tempfile.TemporaryDirectory(prefix="dynexit-programs-")
        os.environ |= {
            "JAX_COMPILATION_CACHE_DIR": programs.name,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


# Long ones that others of the same test, or of the same file, stand for: `pytest -m slow` runs
# them.
SLOW_VARIANTS = (
    "test_bounded.py::test_saving_compute_changes_no_gradient[None-staged]",
    "test_bounded.py::test_saving_compute_changes_no_gradient[None-switched]",
    "test_bounded.py::test_saving_compute_changes_no_gradient[None-counting]",
    "test_bounded.py::test_saving_compute_changes_no_gradient[4-staged]",
    "test_bounded.py::test_values_equal_run_until[compacted-staged]",
    "test_run_until.py::test_stages_of_different_shapes[saturation]",
    "test_run_until.py::test_every_criterion_leaves_where_the_python_loop_leaves[patience]",
    "test_run_until.py::test_replay_on_stored_outputs_equals_the_live_run[staged]",
    "test_run_until.py::test_replay_on_stored_outputs_equals_the_live_run[homogeneous]",
    "test_tune.py::test_a_tuned_run_gives_what_the_oracle_gives[staged]",
    "test_sharded.py::test_run_sharded_equals_run_until[rebalance2-AxisType.Explicit-2]",
    "test_sharded.py::test_run_sharded_equals_run_until[rebalance2-AxisType.Auto-None]",
    "test_chunks.py::test_chunks_equal_the_python_loop_and_the_whole[tied]",
    "test_evaluation.py::test_tuned_tiles_change_no_answer",
    "test_sampled_depth.py::test_loss_and_gradient_are_the_loop[0]",
    "test_sampled_depth.py::test_loss_and_gradient_are_the_loop[3]",
    "test_sampled_depth.py::test_a_row_in_company_is_the_row_alone_and_a_nan_poisons_no_other[latent-0.05]",
    "test_progressive_loss.py::test_loss_and_gradient_are_the_loop[0.3-1]",
    "test_progressive_loss.py::test_loss_and_gradient_are_the_loop[0.0-2]",
    "test_sharded.py::test_run_sharded_equals_run_until[rebalance1-AxisType.Explicit-2]",
    "test_program.py::test_programs_do_not_grow_with_the_depth_and_never_call_the_host[gradient, masked]",
    "test_chomsky_networks.py::test_every_network_answers_where_the_task_asks[transformer]",
    "test_chomsky_networks.py::test_every_network_answers_where_the_task_asks[elman]",
    "test_raptor.py::test_a_block_recurrent_teacher_is_found_out_and_copied",
    "test_segment_slots.py::test_a_train_step_carries_the_slots[bfloat16]",
    "test_stochastic_depth.py::test_the_loss_is_the_method_s_on_the_blocks_that_were_kept[fixed_depth-row]",
    "test_stochastic_depth.py::test_the_loss_is_the_method_s_on_the_blocks_that_were_kept[confidence_exits-batch]",
    "test_bounded.py::test_saving_compute_changes_no_gradient[4-switched]",
    "test_bounded.py::test_saving_compute_changes_no_gradient[4-counting]",
    "test_sharded.py::test_run_sharded_equals_run_until[rebalance0-AxisType.Auto-None]",
    "test_run_until.py::test_every_criterion_leaves_where_the_python_loop_leaves[saturation]",
    "test_stream.py::test_untied_equals_the_python_loop_in_the_order_of_the_queue[patience-4]",
)


def pytest_collection_modifyitems(items):
    for item in items:
        if item.nodeid.endswith(SLOW_VARIANTS):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True, scope="module")
def _forget_compiled_programs():
    """Thousands of compiled programs in one process exhaust its memory maps and crash XLA; each
    test module starts afresh.
    """
    yield
    jax.clear_caches()
