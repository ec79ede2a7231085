"""The tiny random models and the training cases that graft is proved on against HF transformers and PEFT.

Only data: what is built stands in make_goldens.py, what is compared in the tests.
"""

from dataclasses import dataclass, field

VOCAB_SIZE = 131
MAX_SAMPLE_LENGTH = 40
ALL_ROLES = ["attn.q", "attn.k", "attn.v", "attn.o", "ffn.gate", "ffn.up", "ffn.down"]
HF_MODULE = {
    "attn.q": "self_attn.q_proj",
    "attn.k": "self_attn.k_proj",
    "attn.v": "self_attn.v_proj",
    "attn.o": "self_attn.o_proj",
    "ffn.gate": "mlp.gate_proj",
    "ffn.up": "mlp.up_proj",
    "ffn.down": "mlp.down_proj",
}


@dataclass
class Model:
    """One model folder: the class of its HF config and the keys that differ from COMMON."""

    config_class: str
    keys: dict = field(default_factory=dict)
    # config.json is rewritten as transformers 4 wrote it (rope_theta + rope_scaling, torch_dtype).
    transformers4_config: bool = False
    # Weights go into several safetensors files with an index.
    sharded: bool = False


COMMON = dict(
    vocab_size=VOCAB_SIZE,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    rms_norm_eps=1e-5,
    tie_word_embeddings=False,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=0,
)


def _rope(**keys):
    return dict(rope_parameters=dict(rope_theta=10000.0, **keys))


MODELS = {
    "gqa": Model("LlamaConfig", dict(num_hidden_layers=4), sharded=True),
    "tied": Model("LlamaConfig", dict(num_hidden_layers=4, tie_word_embeddings=True)),
    "head_dim": Model("LlamaConfig", dict(hidden_size=48, head_dim=16, num_key_value_heads=4)),
    "biases": Model("LlamaConfig", dict(attention_bias=True, mlp_bias=True)),
    "rope_llama3": Model(
        "LlamaConfig",
        _rope(
            rope_type="llama3",
            factor=8.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=16,
        ),
    ),
    "rope_linear": Model(
        "LlamaConfig", _rope(rope_type="linear", factor=2.5), transformers4_config=True
    ),
    # Most samples are longer than the 16 positions of the config, so that the base really changes.
    "rope_dynamic": Model(
        "LlamaConfig", dict(max_position_embeddings=16) | _rope(rope_type="dynamic", factor=4.0)
    ),
    "rope_yarn": Model(
        "LlamaConfig",
        _rope(rope_type="yarn", factor=4.0, original_max_position_embeddings=16),
    ),
    "mistral": Model("MistralConfig", dict(sliding_window=8, num_key_value_heads=1)),
    "qwen2": Model("Qwen2Config", dict(tie_word_embeddings=True)),
}


@dataclass
class Case:
    """One training run: `adapter` and `optim` are the recipe's sections, word by word."""

    model: str
    adapter: dict
    optim: dict
    steps: int = 10


def _lora(**keys):
    return dict(method="lora", sites=ALL_ROLES, rank=4, alpha=8) | keys


def _optim(**keys):
    defaults = dict(
        lr=5e-3,
        betas=[0.9, 0.99],
        eps=1e-8,
        weight_decay=0.01,
        clip_norm=2.2,  # clips some steps and not others: AdamW hides a factor common to all
        schedule="linear",
        warmup_steps=2,
        global_batch=4,
    )
    return defaults | keys


NUM_TRAIN_SAMPLES = 14  # no multiple of the batch sizes: batches wrap at the end of an epoch

CASES = {f"{name}_lora": Case(name, _lora(), _optim()) for name in MODELS}
CASES |= {
    "gqa_lora_qv": Case(
        "gqa",
        _lora(sites=["attn.q", "attn.v"], rank=6, alpha=9, rslora=True),
        _optim(schedule="cosine", warmup_steps=0, weight_decay=0.0, clip_norm=0.0, lr=1e-2),
    ),
    # Nothing is trained below layer 2: stages without trained parameters, a frozen prefix.
    "gqa_lora_upper": Case("gqa", _lora(sites=["ffn.down", "attn.k"], layers="2-3"), _optim(clip_norm=0.54)),
    "gqa_lora_lower": Case("gqa", _lora(sites=["attn.o", "ffn.gate"], layers="0-1"), _optim(clip_norm=1.3)),
    # A batch is the whole data set: the same numbers for every packing of its samples.
    "gqa_lora_epoch": Case(
        "gqa",
        _lora(),
        _optim(schedule="constant", warmup_steps=0, global_batch=NUM_TRAIN_SAMPLES),
    ),
    "gqa_red": Case("gqa", dict(method="red"), _optim(weight_decay=0.0, clip_norm=0.36)),
    "biases_red": Case("biases", dict(method="red"), _optim(weight_decay=0.0, clip_norm=0.32)),
    "tied_red": Case("tied", dict(method="red"), _optim(schedule="constant", warmup_steps=0)),
}

# On a prepared folder of the real model; samples are these sentences.
REAL_CASES = {
    "smollm2_lora": Case("smollm2", _lora(rank=8, alpha=16), _optim(lr=2e-4, global_batch=2)),
    "smollm2_red": Case("smollm2", dict(method="red"), _optim(lr=2e-4, global_batch=2)),
}
REAL_SENTENCES = [
    "A graft is a shoot or bud that is set into the stem of another plant, where it goes on growing.",
    "The capital of France is Paris.",
    "Adapters are small: less than two percent of the parameters of the model are trained, and the rest stays as it is.",
    "In 1969 two people walked on the Moon; a third stayed in orbit and waited for them.",
    "Water boils at a lower temperature on a mountain, because the air presses less on its surface there.",
]
