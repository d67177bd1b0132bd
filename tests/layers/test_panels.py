"""Products of matrices in panels, and of their parts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynexit.layers.panels import ROWS, in_panels, panels_are_fast, without_panels
from dynexit.layers.projection import for_decoding, project


def matrix(outputs, inputs=24):
    keys = jax.random.split(jax.random.key(0))
    weight = jax.random.normal(keys[0], (outputs, inputs))
    return {"weight": weight, "bias": jax.random.normal(keys[1], (outputs,))}


@pytest.mark.parametrize("rows", [1, 2, 5, ROWS, ROWS + 1])
@pytest.mark.parametrize(("outputs", "width"), [(48, 16), (50, 16), (7, 16), (40, 8)])
def test_panels_give_the_product_of_the_matrix(outputs, width, rows):
    p = matrix(outputs)
    x = jax.random.normal(jax.random.key(1), (rows, 24))
    wanted = np.asarray(x, np.float64) @ np.asarray(p["weight"], np.float64).T + np.asarray(
        p["bias"]
    )
    assert "weight" not in in_panels(p, width)
    np.testing.assert_allclose(project(x, in_panels(p, width)), wanted, atol=1e-5)
    np.testing.assert_allclose(project(x[None], in_panels(p, width))[0], wanted, atol=1e-5)


def test_sums_of_products_are_float32_for_bfloat16():
    p = {"weight": jnp.ones((16, 1024), jnp.bfloat16)}
    y = project(jnp.ones((2, 1024), jnp.bfloat16), in_panels(p))
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(y, np.float32), 1024)  # 256 if summed in bfloat16


@pytest.mark.parametrize("outputs", [48, 50, 7])
def test_panels_are_the_matrix_in_another_order(outputs):
    p = matrix(outputs)
    back = without_panels({"a": [in_panels(p)]})["a"][0]
    np.testing.assert_array_equal(back["transposed"], p["weight"].T)
    np.testing.assert_array_equal(back["bias"], p["bias"])


def test_the_layout_of_decoding_follows_the_answer_for_this_cpu(monkeypatch):
    p = matrix(48)
    monkeypatch.setattr("dynexit.layers.projection.panels_are_fast", lambda: True)
    assert "panels" in for_decoding(p)
    assert "panels" in for_decoding({"weight": np.ones((48, 24), np.float32)})
    assert "weight" in for_decoding({"weight": jnp.ones(3)})  # a norm's
    assert "transposed" in for_decoding({"weight": jnp.ones((1024, 257))})  # too large
    assert "transposed" in jax.eval_shape(for_decoding, p)  # for a device that is not known
    monkeypatch.setattr("dynexit.layers.projection.panels_are_fast", lambda: False)
    assert "transposed" in for_decoding(p)


def test_panels_are_not_used_where_a_product_has_many_cores(monkeypatch):
    monkeypatch.setattr("dynexit.layers.panels.cores", lambda: 64)
    panels_are_fast.cache_clear()
    assert not panels_are_fast()
    panels_are_fast.cache_clear()
