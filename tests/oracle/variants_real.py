"""The cases of the real model, SmolLM2-135M, beside those of the tiny ones in variants.py."""

from variants import Case
from variants import _lora as lora
from variants import _optim as optim

# On a prepared folder of the real model; samples are these sentences.
REAL_CASES = {
    "smollm2_lora": Case("smollm2", lora(rank=8, alpha=16), optim(lr=2e-4, global_batch=2)),
    "smollm2_red": Case("smollm2", dict(method="red"), optim(lr=2e-4, global_batch=2)),
}
REAL_SENTENCES = [
    "A graft is a shoot or bud that is set into the stem of another plant, where it goes on growing.",
    "The capital of France is Paris.",
    "Adapters are small: less than two percent of the parameters of the model are trained, and the rest stays as it is.",
    "In 1969 two people walked on the Moon; a third stayed in orbit and waited for them.",
    "Water boils at a lower temperature on a mountain, because the air presses less on its surface there.",
]
