"""The arrays of other methods as this folder reads them: the process, the network and a LoRA applied to it.

Everything else rests on this, so that a failure here is about reading and not about a method.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.golden.rivals import OUTPUT, assert_close

CASES = ["dpo_e2e", "dpo_e2e_sdxl"]


@pytest.mark.parametrize("name", CASES)
def test_network_process_and_lora(rivals, name):
    """The first step's noisy latents, and what the network with and without the LoRA predicts from them."""
    case = rivals.case(name)
    pipeline = rivals.pipeline_of(case)
    process = pipeline.process(20)
    np.testing.assert_allclose(process.alphas_cumprod, case["alphas_cumprod"], rtol=1e-6)
    latents = jnp.concatenate([case.images("latents_w")[0], case.images("latents_l")[0]])
    noise, t = (jnp.concatenate([x, x]) for x in (case.images("noise")[0], case["timesteps"][0]))
    condition = jax.tree.map(lambda x: jnp.concatenate([x, x]), case.condition(0))
    x = process.add_noise(latents, noise, t)
    assert_close(x, case.images("noisy_step1"), OUTPUT)
    predict = jax.jit(lambda params, lora: pipeline.predict(params, lora, x, t, condition))
    assert_close(predict(pipeline.params["unet"], case.lora("lora_init")), case.images("pred_step1"), OUTPUT)
    assert_close(predict(pipeline.params["unet"], None), case.images("ref_step1"), OUTPUT)
