"""The tiny random models and the training cases that graft is proved on against HF transformers and PEFT.

Only data: what is built stands in make_goldens.py, what is compared in the tests.
"""

from dataclasses import dataclass, field

VOCAB_SIZE = 131
MAX_SAMPLE_LENGTH = 40
NUM_LABELS = 3
ALL_ROLES = ["attn.q", "attn.k", "attn.v", "attn.o", "ffn.gate", "ffn.up", "ffn.down"]
# By architecture: roles of the linears, in the fixed order, and their modules below the layer.
LLAMA_MODULE = {
    "attn.q": "self_attn.q_proj",
    "attn.k": "self_attn.k_proj",
    "attn.v": "self_attn.v_proj",
    "attn.o": "self_attn.o_proj",
    "ffn.gate": "mlp.gate_proj",
    "ffn.up": "mlp.up_proj",
    "ffn.down": "mlp.down_proj",
}
GPT2_MODULE = {
    "attn.q": "attn.c_attn",
    "attn.k": "attn.c_attn",
    "attn.v": "attn.c_attn",
    "attn.o": "attn.c_proj",
    "ffn.up": "mlp.c_fc",
    "ffn.down": "mlp.c_proj",
}
ROBERTA_MODULE = {
    "attn.q": "attention.self.query",
    "attn.k": "attention.self.key",
    "attn.v": "attention.self.value",
    "attn.o": "attention.output.dense",
    "ffn.up": "intermediate.dense",
    "ffn.down": "output.dense",
}
# Below the block; {ffn} is the number of the feed-forward sub-layer, 1 in the encoder and 2 in the decoder.
T5_MODULE = {
    "attn.q": "0.SelfAttention.q",
    "attn.k": "0.SelfAttention.k",
    "attn.v": "0.SelfAttention.v",
    "attn.o": "0.SelfAttention.o",
    "ffn.gate": "{ffn}.DenseReluDense.wi_0",
    "ffn.up": "{ffn}.DenseReluDense.wi",  # wi_1 where there is a gate
    "ffn.down": "{ffn}.DenseReluDense.wo",
    "cross.q": "1.EncDecAttention.q",
    "cross.k": "1.EncDecAttention.k",
    "cross.v": "1.EncDecAttention.v",
    "cross.o": "1.EncDecAttention.o",
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
    # The folder holds the base model alone: names without its prefix, as openly published GPT-2 folders have them.
    headless: bool = False
    # T5 v1.1: a head of its own, which HF's config class cannot ask for.
    untied_head: bool = False


COMMON = dict(
    vocab_size=VOCAB_SIZE,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=0,
)
LLAMA_COMMON = dict(
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    rms_norm_eps=1e-5,
    tie_word_embeddings=False,
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
LLAMA_MODELS = list(MODELS)

_GPT2 = dict(n_embd=48, n_head=4, n_layer=4, n_positions=64)
MODELS |= {
    "gpt2": Model("GPT2Config", _GPT2),
    "gpt2_headless": Model(
        "GPT2Config",
        _GPT2 | dict(n_layer=2, n_inner=80, activation_function="gelu", layer_norm_epsilon=1e-3),
        headless=True,
    ),
    "gpt2_untied": Model("GPT2Config", _GPT2 | dict(n_layer=2, tie_word_embeddings=False)),
}

_ROBERTA = dict(
    hidden_size=48,
    num_hidden_layers=4,
    num_attention_heads=4,
    intermediate_size=80,
    max_position_embeddings=66,
    pad_token_id=1,
    bos_token_id=0,
    layer_norm_eps=1e-5,
    num_labels=NUM_LABELS,
)
MODELS |= {
    # Its folder has a task head; the headless one has a pooler instead, which nothing here uses.
    "roberta": Model("RobertaConfig", _ROBERTA),
    "roberta_headless": Model("RobertaConfig", _ROBERTA | dict(type_vocab_size=1), headless=True),
}

_T5 = dict(
    d_model=48,
    d_kv=16,  # heads * d_kv is not d_model
    d_ff=80,
    num_layers=2,
    num_heads=4,
    # Small enough that samples reach the growing buckets and the last one.
    relative_attention_num_buckets=8,
    relative_attention_max_distance=20,
    pad_token_id=0,
    eos_token_id=1,
    decoder_start_token_id=0,
)
MODELS |= {
    "t5": Model("T5Config", _T5),
    "t5_v1_1": Model(
        "T5Config",
        _T5
        | dict(feed_forward_proj="gated-gelu", tie_word_embeddings=False, num_decoder_layers=1),
        untied_head=True,
    ),
}


def family(model):
    """"llama", "gpt2", "roberta" or "t5"."""
    name = MODELS[model].config_class
    return {"GPT2Config": "gpt2", "RobertaConfig": "roberta", "T5Config": "t5"}.get(name, "llama")


def layer_of(config, layer):
    """The HF path of a layer in the model of this HF config."""
    if config.model_type == "t5":
        decoder = layer >= config.num_layers
        return f"decoder.block.{layer - config.num_layers}" if decoder else f"encoder.block.{layer}"
    layers = {"roberta": "roberta.encoder.layer", "gpt2": "transformer.h"}
    return f"{layers.get(config.model_type, 'model.layers')}.{layer}"


def num_layers(config):
    """Of an HF config; an encoder-decoder model's layers are counted through both stacks."""
    decoder_layers = config.num_decoder_layers if config.model_type == "t5" else 0
    return config.num_hidden_layers + decoder_layers


def t5_module(config, layer, role):
    """Below the layer; None where the layer has no such role."""
    decoder = layer >= config.num_layers
    if role.startswith("cross.") and not decoder or role == "ffn.gate" and not config.is_gated_act:
        return None
    module = T5_MODULE[role].format(ffn=2 if decoder else 1)
    return f"layer.{module}_1" if role == "ffn.up" and config.is_gated_act else f"layer.{module}"


def module_of(config, layer, role):
    """The HF path of a role's module in the model of this HF config; None where it has none."""
    if config.model_type == "t5":
        module = t5_module(config, layer, role)
    else:
        modules = {"roberta": ROBERTA_MODULE, "gpt2": GPT2_MODULE}
        module = modules.get(config.model_type, LLAMA_MODULE)[role]
    return module and f"{layer_of(config, layer)}.{module}"


@dataclass
class Case:
    """One training run: `adapter` and `optim` are the recipe's sections, word by word."""

    model: str
    adapter: dict
    optim: dict
    steps: int = 10
    task: str = "causal_lm"  # or classification (NUM_LABELS classes), regression, seq2seq
    # fanlora: what setting.json keeps, (layer, roles, rank, alpha).
    keep: list = field(default_factory=list)


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


def _para(**keys):
    defaults = dict(
        method="para",
        sites=["attn.q", "attn.v", "ffn.up"],
        rank=6,
        pooling="mean",
        activation="gelu",
        input="layer_in",
        bias=False,
        dropout=0.0,
    )
    return defaults | keys


def _lopa(**keys):
    defaults = dict(method="lopa", prompt_length=5, rank=2, hidden=12, dropout=0.0, fusion="gated")
    return defaults | dict(encoder=dict(type="embedding_mean")) | keys


def _idpg(**keys):
    defaults = dict(method="idpg", prompt_length=4, hidden=12, dropout=0.0)
    return defaults | dict(encoder=dict(type="embedding_mean")) | keys


NUM_TRAIN_SAMPLES = 14  # no multiple of the batch sizes: batches wrap at the end of an epoch

CASES = {f"{name}_lora": Case(name, _lora(), _optim()) for name in LLAMA_MODELS}
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
    "gqa_ia3": Case("gqa", dict(method="ia3", sites=["attn.k", "attn.v", "ffn.down"]), _optim()),
    "biases_ia3": Case("biases", dict(method="ia3", sites=ALL_ROLES), _optim()),
    # Stages with another number of modules each, one layer with none.
    "gqa_fanlora": Case(
        "gqa",
        dict(method="fanlora"),
        _optim(),
        keep=[
            (1, ["attn.q", "attn.k", "ffn.up"], 5, 10.0),
            (2, ["ffn.down"], 3, 4.5),
            (3, ["attn.v", "attn.o"], 5, 8.0),
        ],
    ),
    "gqa_prompt_tuning": Case("gqa", dict(method="prompt_tuning", prompt_length=6), _optim()),
    "tied_prompt_tuning": Case("tied", dict(method="prompt_tuning", prompt_length=1), _optim()),
    "gqa_idpg": Case("gqa", _idpg(), _optim()),
    "gqa_lopa": Case("gqa", _lopa(), _optim()),
    "tied_lopa_concat": Case("tied", _lopa(fusion="concat", hidden=0), _optim()),
    "gqa_lopa_add": Case("gqa", _lopa(fusion="add"), _optim()),
    "gqa_lopa_max": Case("gqa", _lopa(fusion="max"), _optim()),
    "gqa_para": Case("gqa", _para(), _optim()),
    "tied_para_max_bias": Case("tied", _para(pooling="max", bias=True), _optim()),
    "biases_para_last_relu": Case("biases", _para(pooling="last", activation="relu"), _optim()),
    "gqa_para_attention_rational": Case(
        "gqa", _para(pooling="attention", activation="rational", input="normed"), _optim()
    ),
    "mistral_para_some": Case(
        "mistral", _para(sites=["attn.v", "ffn.up"], input="normed"), _optim()
    ),
}

_GPT2_ROLES = list(GPT2_MODULE)
CASES |= {
    # Three products for q, k and v: in HF PEFT one with three times the rank, of which the blocks are kept.
    "gpt2_lora": Case("gpt2", _lora(sites=_GPT2_ROLES), _optim(clip_norm=1.5)),
    "gpt2_lora_qv": Case("gpt2", _lora(sites=["attn.q", "attn.v"], rslora=True), _optim()),
    "gpt2_lora_v": Case("gpt2", _lora(sites=["attn.v"]), _optim()),
    # As HF PEFT trains c_attn.
    "gpt2_lora_joint": Case("gpt2", _lora(sites=_GPT2_ROLES, fused="joint"), _optim()),
    "gpt2_red": Case("gpt2", dict(method="red"), _optim(weight_decay=0.0)),
    "gpt2_red_fused": Case("gpt2", dict(method="red", sites=["attn.q", "attn.v"]), _optim(weight_decay=0.0)),
    "gpt2_headless_red": Case("gpt2_headless", dict(method="red", what="scale"), _optim()),
    "gpt2_headless_lora": Case("gpt2_headless", _lora(sites=["attn.k", "ffn.up"]), _optim()),
    # Entries of c_attn that no role has stay at one, in HF PEFT too: without decay.
    "gpt2_ia3": Case(
        "gpt2",
        dict(method="ia3", sites=["attn.k", "attn.v", "ffn.down"]),
        _optim(weight_decay=0.0),
    ),
    "gpt2_fanlora": Case(
        "gpt2",
        dict(method="fanlora", rslora=True),
        _optim(),
        keep=[(0, ["attn.q", "attn.v"], 3, 6.0), (2, ["attn.k", "ffn.up"], 4, 5.0)],
    ),
    "gpt2_prompt_tuning": Case("gpt2", dict(method="prompt_tuning", prompt_length=4), _optim()),
    "gpt2_lopa": Case("gpt2", _lopa(), _optim()),
    "gpt2_para": Case("gpt2", _para(bias=True), _optim()),
    "gpt2_para_normed": Case(
        "gpt2_headless", _para(sites=["attn.q", "ffn.up"], input="normed"), _optim()
    ),
    "gpt2_untied_red": Case("gpt2_untied", dict(method="red", what="bias"), _optim()),
}

_ROBERTA_ROLES = list(ROBERTA_MODULE)
_CLASSES = dict(task="classification")
CASES |= {
    "roberta_lora": Case("roberta", _lora(sites=_ROBERTA_ROLES), _optim(clip_norm=1.5), **_CLASSES),
    "roberta_lora_upper": Case("roberta", _lora(sites=["attn.v"], layers="2-3"), _optim(), **_CLASSES),
    "roberta_ia3": Case(
        "roberta",
        dict(method="ia3", sites=["attn.k", "attn.v", "ffn.down"]),
        _optim(),
        **_CLASSES,
    ),
    "roberta_red": Case("roberta", dict(method="red"), _optim(weight_decay=0.0), **_CLASSES),
    # Not attn.k: a shift of all keys changes no softmax, so the gradient of its bias is zero but for rounding.
    "roberta_red_plus": Case(
        "roberta",
        dict(method="red", sites=["attn.q", "attn.v", "attn.out", "ffn.out"]),
        _optim(weight_decay=0.0),
        **_CLASSES,
    ),
    "roberta_head_alone": Case("roberta", dict(method="none"), _optim(), **_CLASSES),
    "roberta_headless_red": Case(
        "roberta_headless", dict(method="red"), _optim(weight_decay=0.0), task="regression"
    ),
    "gpt2_lora_score": Case("gpt2", _lora(sites=["attn.q", "attn.v"]), _optim(), **_CLASSES),
    "tied_lora_score": Case("tied", _lora(), _optim(), **_CLASSES),
    "roberta_fanlora": Case(
        "roberta",
        dict(method="fanlora"),
        _optim(),
        keep=[(0, ["attn.q", "ffn.down"], 3, 6.0), (2, ["attn.v"], 4, 5.0)],
        **_CLASSES,
    ),
    "roberta_idpg": Case("roberta", _idpg(), _optim(), **_CLASSES),
    "roberta_lopa": Case("roberta", _lopa(), _optim(), **_CLASSES),
    "tied_lopa_score": Case("tied", _lopa(fusion="max"), _optim(), **_CLASSES),
    "roberta_para": Case("roberta", _para(bias=True), _optim(), **_CLASSES),
    "roberta_para_attention_rational": Case(
        "roberta_headless",
        _para(pooling="attention", activation="rational", input="normed"),
        _optim(),
        task="regression",
    ),
    "gpt2_para_score": Case("gpt2", _para(pooling="last"), _optim(), **_CLASSES),
    "gpt2_idpg": Case("gpt2", _idpg(), _optim()),
    "gqa_red_states": Case(
        "gqa",
        dict(method="red", sites=["attn.out", "layer.out"], layers="1-2"),
        _optim(weight_decay=0.0),
    ),
    # HF PEFT's head reads the first row, which is one of the prompt.
    "roberta_prompt_tuning": Case(
        "roberta", dict(method="prompt_tuning", prompt_length=4), _optim(), **_CLASSES
    ),
    "gpt2_prompt_tuning_score": Case(
        "gpt2", dict(method="prompt_tuning", prompt_length=3), _optim(), **_CLASSES
    ),
    "roberta_lopa_first": Case(
        "roberta_headless",
        _lopa(fusion="concat", read_at="first"),
        _optim(),
        task="regression",
    ),
}

_T5_ROLES = list(T5_MODULE)
_SEQ2SEQ = dict(task="seq2seq")
CASES |= {
    # At 5e-3 a step passes so close to a kink of the relu that HF itself differs by 3e-3 between float32 and float64.
    "t5_lora": Case(
        "t5", _lora(sites=[r for r in _T5_ROLES if r != "ffn.gate"]), _optim(lr=3e-3), **_SEQ2SEQ
    ),
    "t5_v1_1_lora": Case("t5_v1_1", _lora(sites=_T5_ROLES), _optim(), **_SEQ2SEQ),
    # The encoder is a frozen prefix; and its gradient comes from the decoder alone.
    "t5_lora_decoder": Case("t5", _lora(sites=["attn.q", "cross.v"], layers="2-3"), _optim(), **_SEQ2SEQ),
    "t5_lora_encoder": Case("t5", _lora(sites=["attn.q", "ffn.up"], layers="0-1"), _optim(), **_SEQ2SEQ),
    "t5_ia3": Case(
        "t5",
        dict(method="ia3", sites=["attn.k", "attn.v", "ffn.down", "cross.k", "cross.v"]),
        _optim(),
        **_SEQ2SEQ,
    ),
    "t5_red": Case("t5", dict(method="red"), _optim(weight_decay=0.0), **_SEQ2SEQ),
    "t5_v1_1_red": Case(
        "t5_v1_1",
        dict(method="red", what="scale", sites=["attn.out", "ffn.out"]),
        _optim(weight_decay=0.0),
        **_SEQ2SEQ,
    ),
    "t5_para": Case("t5", _para(), _optim(), **_SEQ2SEQ),
    "t5_v1_1_para_attention": Case(
        "t5_v1_1", _para(pooling="attention", input="normed", bias=True), _optim(), **_SEQ2SEQ
    ),
    "t5_prompt_tuning": Case(
        "t5", dict(method="prompt_tuning", prompt_length=5), _optim(), **_SEQ2SEQ
    ),
    "t5_idpg": Case(
        "t5",
        dict(
            method="idpg",
            prompt_length=4,
            hidden=12,
            dropout=0.0,
            encoder=dict(type="embedding_mean"),
        ),
        _optim(),
        **_SEQ2SEQ,
    ),
    "t5_v1_1_lopa": Case("t5_v1_1", _lopa(), _optim(), **_SEQ2SEQ),
}

_encoder = lambda pool="first", **keys: dict(type="model", path="roberta", pool=pool, **keys)  # noqa: E731
CASES |= {
    "gqa_lopa_encoder": Case("gqa", _lopa(encoder=_encoder()), _optim()),
    "gqa_lopa_encoder_trained": Case("gqa", _lopa(encoder=_encoder(pool="last", train=True)), _optim(eps=1e-3)),
    "gpt2_idpg_encoder": Case("gpt2", _idpg(hidden=0, encoder=dict(type="model", path="roberta_headless", pool="mean")), _optim()),
    "roberta_idpg_encoder_trained": Case("roberta", _idpg(encoder=_encoder(pool="mean", train=True)), _optim(eps=1e-3), **_CLASSES),
    "t5_lopa_encoder": Case("t5_v1_1", _lopa(encoder=_encoder(pool="mean")), _optim(), **_SEQ2SEQ),
}

# Elements whose gradient is rounding noise would move by noise: AdamW's epsilon is above it.
_full = dict(method="full")
_full_optim = _optim(lr=2e-3, eps=1e-3)
CASES |= {f"{model}_full": Case(model, _full, _full_optim) for model in ("gqa", "tied", "biases", "qwen2", "gpt2", "gpt2_untied")}
CASES |= {
    "roberta_full": Case("roberta", _full, _full_optim, **_CLASSES),
    "gpt2_full_score": Case("gpt2", _full, _full_optim, **_CLASSES),
    "t5_full": Case("t5", _full, _full_optim, **_SEQ2SEQ),
    "t5_v1_1_full": Case("t5_v1_1", _full, _full_optim, **_SEQ2SEQ),
}
# New cases come last: a case's start is drawn from its place here, and those of T5 were chosen to keep off the kinks of its relu.
CASES |= {
    "gpt2_red_attention": Case(
        "gpt2", dict(method="red", sites=["attn.out"]), _optim(weight_decay=0.0)
    ),
}
