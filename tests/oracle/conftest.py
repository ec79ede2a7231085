import pytest
import torch

import prepared_data
import reference
from graft_program import GOLDENS, Golden, data_folder

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def bfloat16_steps():
    """name -> the reference's records with a bfloat16 backbone, computed once each."""
    records = {}

    def get(name):
        if name not in records:
            golden = Golden(name)
            case = golden.numbers["case"]
            model = reference.load_model(golden.model, torch.bfloat16, case["task"])
            model = reference.load_adapter(model, golden.folder / "initial", trainable=True)
            samples = prepared_data.read(data_folder(case["task"], "train"))
            records[name] = list(reference.train(model, samples, case["optim"], case["steps"]))
        return records[name]

    return get


@pytest.fixture(scope="session")
def evaluation_samples():
    return prepared_data.read(GOLDENS / "data" / "eval")
