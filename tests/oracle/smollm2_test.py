"""SmolLM2-135M: ten steps equal HF transformers + PEFT's on one rank, two data ranks and two stages."""

import pytest

from compare import check_final_adapter, check_steps
from graft_program import Golden, metrics, recipe, run


@pytest.mark.parametrize(
    "name, data, pipeline",
    [
        ("smollm2_lora", 1, 1),
        ("smollm2_lora", 2, 1),
        ("smollm2_lora", 1, 2),
        ("smollm2_red", 1, 1),
        ("smollm2_red", 1, 2),
    ],
)
def test_ten_steps(name, data, pipeline, tmp_path):
    golden = Golden(name)
    parallel = dict(data=data, pipeline=pipeline)
    keys = recipe(golden, tmp_path, parallel=parallel, optim=dict(micro_batch=1))
    run("train", keys, tmp_path)
    check_steps(metrics(tmp_path, "train"), golden.numbers["steps"])
    check_final_adapter(tmp_path / "adapter", golden)
