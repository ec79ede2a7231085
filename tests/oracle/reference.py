"""The reference: HF transformers with HF PEFT (LoRA, IA3, prompt tuning), a plain RED or a method of plain_methods.py, one sample at a time, float32 unless said.

Samples are never padded or batched here, so that nothing of the reference depends on who else is in a batch.
"""

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from peft import IA3Config, LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    get_constant_schedule_with_warmup,
    get_cosine_schedule_with_warmup,
    get_linear_schedule_with_warmup,
)

from plain_methods import HEADS, METHODS, Plain
from variants import NUM_LABELS, layer_of, module_of, num_layers

PREFIX = "base_model.model."


def load_model(folder, dtype=torch.float32, task="causal_lm"):
    keys = dict(dtype=dtype, attn_implementation="sdpa")
    if task == "causal_lm":
        model = AutoModelForCausalLM.from_pretrained(folder, **keys)
    elif task == "seq2seq":
        keys["attn_implementation"] = "eager"
        model = AutoModelForSeq2SeqLM.from_pretrained(folder, **keys)
    else:
        torch.manual_seed(0)  # of a head that the folder has not
        labels = NUM_LABELS if task == "classification" else 1
        model = AutoModelForSequenceClassification.from_pretrained(
            folder, num_labels=labels, ignore_mismatched_sizes=True, **keys
        )
    model.config.use_cache = False
    return model.eval()


def layer_list(adapter, num_layers):
    layers = adapter.get("layers", "all")
    if layers == "all":
        return list(range(num_layers))
    first, last = layers.split("-")
    return list(range(int(first), int(last) + 1))


# Hidden states as the linears whose outputs they are.
HIDDEN_AS_LINEAR = {"ffn.out": "ffn.down", "attn.out": "attn.o"}


def task_type(model):
    if model.config.is_encoder_decoder:
        return "SEQ_2_SEQ_LM"
    return "SEQ_CLS" if "SequenceClassification" in type(model).__name__ else "CAUSAL_LM"


def adapted_modules(model, adapter):
    """HF path of every adapted module -> the roles that it stands for (several for a fused projection)."""
    modules = {}
    for layer in layer_list(adapter, num_layers(model.config)):
        for role in adapter.get("sites", ["ffn.out"]):
            if role == "layer.out":
                module = layer_of(model.config, layer)
            else:
                module = module_of(model.config, layer, HIDDEN_AS_LINEAR.get(role, role))
            if module is not None:
                modules.setdefault(module, []).append(role)
    return modules


FUSED_PARTS = {"attn.q": 0, "attn.k": 1, "attn.v": 2}


def fused_rows(module, roles, rows):
    """The outputs of a fused projection that these roles are, by role; empty for any other module."""
    if not module.endswith("c_attn"):
        return []
    part = rows // 3
    return [slice(FUSED_PARTS[r] * part, (FUSED_PARTS[r] + 1) * part) for r in sorted(roles, key=FUSED_PARTS.get)]


def train_only(parameter, mask):
    """Holds the elements where `mask` is 0 at their value."""
    parameter.trained_elements = mask
    parameter.register_hook(lambda gradient: gradient * mask)


class Red(torch.nn.Module):
    """RED (arXiv 2402.15179): the output h of a linear (default: the second FFN linear) becomes s (.) h + b, by hooks."""

    def __init__(self, model, adapter):
        super().__init__()
        self.model = model
        self.config = model.config
        self.adapter = adapter
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        self.vectors = {}
        what = adapter.get("what", "scale_and_bias")
        for module, roles in adapted_modules(model, adapter).items():
            linear = model.get_submodule(module)
            width = getattr(linear, "nf", None) or getattr(linear, "out_features", model.config.hidden_size)
            scale = torch.nn.Parameter(torch.ones(width)) if "scale" in what else torch.ones(width)
            bias = torch.nn.Parameter(torch.zeros(width)) if "bias" in what else torch.zeros(width)
            rows = fused_rows(module, roles, width)
            for name, vector in (("red_scale", scale), ("red_bias", bias)):
                if not vector.requires_grad:
                    continue
                if rows:
                    mask = torch.zeros(width)
                    for part in rows:
                        mask[part] = 1
                    train_only(vector, mask)
                self.vectors[f"{PREFIX}{module}.{name}"] = vector
            linear.register_forward_hook(
                lambda _, __, h, s=scale, b=bias: (h.float() * s + b).to(h.dtype)
            )

        for name, parameter in model.named_parameters():
            if name.split(".")[0] in HEADS:
                parameter.requires_grad_(True)
                self.vectors[f"{PREFIX}{name}"] = parameter

    def forward(self, **inputs):
        return self.model(**inputs)

    def save(self, folder):
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        config = {
            "auto_mapping": None,
            "base_model_name_or_path": "",
            "inference_mode": True,
            "layers": "all",
            "peft_type": self.adapter["method"].upper(),
            "revision": None,
            "sites": self.adapter.get("sites", ["ffn.out"]),
            "task_type": task_type(self.model),
            "what": self.adapter.get("what", "scale_and_bias"),
        }
        (folder / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True))
        tensors = {name: value.detach() for name, value in self.vectors.items()}
        save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})

    def load(self, folder):
        with torch.no_grad():
            for name, value in load_file(Path(folder) / "adapter_model.safetensors").items():
                self.vectors[name].copy_(value)


class Full(torch.nn.Module):
    """Every weight is trained, under its own name."""

    def __init__(self, model):
        super().__init__()
        self.model, self.config = model, model.config

    def forward(self, **inputs):
        return self.model(**inputs)


def new_adapter(model, adapter):
    """The model of `load_model` with a fresh adapter as the recipe section says."""
    if adapter["method"] == "full":
        return Full(model)
    if adapter["method"] == "none":
        return Red(model, dict(method="none", sites=[]))
    if adapter["method"] == "red":
        return Red(model, adapter)
    if adapter["method"] in METHODS:
        return METHODS[adapter["method"]](model, adapter)
    if adapter["method"] == "prompt_tuning":
        rows = adapter["prompt_length"]
        config = PromptTuningConfig(
            num_virtual_tokens=rows, task_type=task_type(model), num_transformer_submodules=1
        )
        return get_peft_model(model, config)
    if adapter["method"] == "ia3":
        return new_ia3(model, adapter)
    return new_lora(model, adapter)


def new_ia3(model, adapter):
    modules = adapted_modules(model, adapter)
    config = IA3Config(
        target_modules=list(modules),
        feedforward_modules=[m for m, roles in modules.items() if roles == ["ffn.down"]],
        fan_in_fan_out=model.config.model_type == "gpt2",
        task_type=task_type(model),
    )
    model = get_peft_model(model, config)
    for module, roles in modules.items():
        if module.endswith("c_attn"):
            vector = model.get_submodule(f"{PREFIX}{module}").ia3_l["default"]
            mask = torch.zeros_like(vector)
            for rows in fused_rows(module, roles, len(vector)):
                mask[rows] = 1
            train_only(vector, mask)
    return model


def lora_sizes(model, adapter):
    """Module -> (its roles, rank, alpha)."""
    if adapter["method"] == "lora":
        modules = adapted_modules(model, adapter)
        return {m: (roles, adapter["rank"], adapter["alpha"]) for m, roles in modules.items()}
    sizes = {}
    for kept in json.loads(Path(adapter["setting"]).read_text())["keep"]:
        for role in kept["roles"]:
            module = module_of(model.config, kept["layer"], role)
            sizes.setdefault(module, ([], kept["rank"], kept["alpha"]))[0].append(role)
    return sizes


def new_lora(model, adapter):
    sizes = lora_sizes(model, adapter)
    joint = adapter.get("fused") == "joint"
    rslora = adapter.get("rslora", False)
    # Roles of a fused projection that are adapted one by one: one LoRA of so many times the rank.
    parts = {m: 1 if joint else len(roles) for m, (roles, _, _) in sizes.items()}
    ranks = {m: parts[m] * rank for m, (_, rank, _) in sizes.items()}
    alphas = {
        m: alpha * (parts[m] ** 0.5 if rslora else parts[m]) for m, (_, _, alpha) in sizes.items()
    }
    _, rank, alpha = next(iter(sizes.values()))
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        use_rslora=rslora,
        rank_pattern={m: r for m, r in ranks.items() if r != rank},
        alpha_pattern={m: a for m, a in alphas.items() if a != alpha},
        target_modules=list(sizes),
        lora_dropout=0.0,
        bias="none",
        fan_in_fan_out=model.config.model_type == "gpt2",
        task_type=task_type(model),
    )
    model = get_peft_model(model, config)
    for module, (roles, rank, _) in sizes.items():
        if joint or not module.endswith("c_attn"):
            continue
        b = model.get_submodule(f"{PREFIX}{module}.lora_B.default").weight
        mask = torch.zeros_like(b)
        for i, rows in enumerate(fused_rows(module, roles, b.shape[0])):
            mask[rows, i * rank : (i + 1) * rank] = 1
        train_only(b, mask)
    return model


def load_adapter(model, folder, trainable=False):
    """Any adapter folder, graft's or HF PEFT's."""
    config = json.loads((Path(folder) / "adapter_config.json").read_text())
    if config["peft_type"] in ("RED", "NONE"):
        adapter = dict(method=config["peft_type"].lower(), sites=config.get("sites", []))
        red = Red(model, adapter | dict(what=config.get("what", "scale_and_bias")))
        red.load(folder)
        return red
    if config["peft_type"].lower() in METHODS:
        plain = METHODS[config["peft_type"].lower()](model, config)
        plain.load(folder)
        return plain
    return PeftModel.from_pretrained(model, folder, is_trainable=trainable)


def trained(model):
    """Trained tensors by their name in the adapter folder."""
    if isinstance(model, Full):
        return dict(model.model.named_parameters())
    if isinstance(model, Red):
        return dict(model.vectors)
    if isinstance(model, Plain):
        return dict(model.tensors)
    return {
        (
            "prompt_embeddings"
            if "prompt_encoder" in name
            else name.replace(".modules_to_save", "").replace(".default", "")
        ): value
        for name, value in model.named_parameters()
        if value.requires_grad
    }


def randomize_adapter(model, seed):
    """A start from which every trained tensor has a gradient: B of LoRA is not zero, RED's scales are not one."""
    if isinstance(model, Full):
        return  # the model's own start is one
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in sorted(trained(model).items()):
            if ".encoder.roberta." in name:
                continue  # a model's own start
            noise = torch.randn(value.shape, generator=generator)
            is_head = any(part in HEADS for part in name.split("."))
            if name.endswith("lora_A.weight") or is_head and value.dim() == 2:
                value.copy_(noise / value.shape[1] ** 0.5)
            elif name.endswith(("red_scale", "ia3_l")):
                value.copy_(1 + 0.1 * noise)
            elif name.endswith("act.a"):
                value.copy_(torch.tensor([0, 0.5, 0.41075, 0.113566, 0.011184, 0.000171]))
            elif name.endswith("act.b"):
                value.copy_(torch.tensor([0, 0.227132, 0, 0.000341]))
            else:
                value.copy_(0.1 * noise)
            if hasattr(value, "trained_elements"):
                frozen = 1.0 if name.endswith(("red_scale", "ia3_l")) else 0.0
                value[value.trained_elements == 0] = frozen


def save_adapter(model, folder):
    """Of `full`, weights only: it starts from a model folder."""
    if isinstance(model, Full):
        folder.mkdir(parents=True)
        tensors = {name: value.detach().clone() for name, value in trained(model).items()}
        save_file(tensors, folder / "model.safetensors")
        return
    if isinstance(model, Red):
        model.save(folder)
    elif isinstance(model, Plain):
        model.save(folder)
    else:
        model.save_pretrained(folder)


def decoder_inputs(config, target):
    """What a decoder reads to say `target`; nothing for a model without one."""
    if target is None:
        return {}
    return dict(decoder_input_ids=torch.tensor([[config.decoder_start_token_id, *target[:-1]]]))


def logits(model, ids, prompt_length=0, target=None, encoder_ids=None):
    """(T, V) float32 of one sample; the leading `prompt_length` tokens are its prompt. With a target: those of the decoder."""
    for module in model.modules():
        # Dynamic RoPE remembers the longest sample so far; a sample must not depend on those before it.
        if getattr(module, "rope_type", None) == "dynamic":
            module.inv_freq = module.original_inv_freq
            module.max_seq_len_cached = module.original_max_seq_len
    if isinstance(model, Plain):
        model.set_prompt(prompt_length, encoder_ids)
        return model.logits(ids, decoder_inputs(model.config, target))
    inputs = decoder_inputs(model.config, target)
    outputs = model(input_ids=torch.tensor([ids]), **inputs).logits[0].float()
    if target is not None:
        return outputs
    # (C) of a task head; else (T, V), where PEFT puts the rows of a soft prompt in front.
    return outputs if outputs.dim() == 1 else outputs[-len(ids) :]


def sample_logits(model, sample):
    return logits(model, sample.ids, sample.prompt_length, sample.target, sample.encoder_ids)


def label_loss(outputs, label):
    if isinstance(label, int):
        return F.cross_entropy(outputs[None], torch.tensor([label]))
    return (outputs[0] - label) ** 2


def loss_sum(model, sample):
    if sample.label is not None:
        return label_loss(sample_logits(model, sample), sample.label)
    targets = sample.targets()
    if not targets:
        return torch.zeros(())
    rows, ids = (torch.tensor(column) for column in zip(*targets))
    at_rows = sample_logits(model, sample)[rows]
    return F.cross_entropy(at_rows, ids, reduction="sum")


@torch.no_grad()
def evaluate(model, samples):
    count = sum(s.trained() for s in samples)
    return sum(loss_sum(model, s).double().item() for s in samples) / count


def next_logits(model, sample, said):
    """(V) behind what was said on a sample: by a decoder after the sample's prompt, or by one that reads an encoder of all of it."""
    if sample.target is None:
        prompt = sample.ids[: sample.prompt_length]
        return logits(model, prompt + said, len(prompt), encoder_ids=sample.encoder_ids)[-1]
    target = [*said, 0]
    return logits(model, sample.ids, sample.prompt_length, target, sample.encoder_ids)[-1]


@torch.no_grad()
def greedy(model, sample, max_new_tokens):
    """What a model says on a sample, without a cache; ends with the model's end token where that comes."""
    tokens = []
    while len(tokens) < max_new_tokens:
        tokens.append(int(next_logits(model, sample, tokens).argmax()))
        if tokens[-1] == model.config.eos_token_id:
            break
    return tokens


def backward(model, batch):
    """Loss of a global batch (sum over its trained tokens / their number); gradients are left in .grad."""
    count = sum(s.trained() for s in batch)
    total = 0.0
    for sample in batch:
        loss = loss_sum(model, sample)
        if loss.requires_grad:
            (loss / count).backward()
        total += loss.double().item()
    return total / count


def _scheduler(optimizer, optim, steps):
    warmup = optim["warmup_steps"]
    if optim["schedule"] == "constant":
        return get_constant_schedule_with_warmup(optimizer, warmup)
    if optim["schedule"] == "linear":
        return get_linear_schedule_with_warmup(optimizer, warmup, steps)
    return get_cosine_schedule_with_warmup(optimizer, warmup, steps)


def batches(samples, global_batch, steps):
    for k in range(steps):
        yield [samples[(k * global_batch + i) % len(samples)] for i in range(global_batch)]


def train(model, samples, optim, steps):
    """Yields one record a step, with the gradients before clipping under `gradients` in the first."""
    parameters = trained(model)
    optimizer = torch.optim.AdamW(
        parameters.values(),
        lr=optim["lr"],
        betas=tuple(optim["betas"]),
        eps=optim["eps"],
        weight_decay=optim["weight_decay"],
    )
    scheduler = _scheduler(optimizer, optim, steps)
    for step, batch in enumerate(batches(samples, optim["global_batch"], steps), start=1):
        optimizer.zero_grad()
        loss = backward(model, batch)
        record = dict(step=step, loss=loss, lr=scheduler.get_last_lr()[0])
        record["tokens"] = sum(len(s.ids) + len(s.target or ()) for s in batch)
        record["trained_tokens"] = sum(s.trained() for s in batch)
        if step == 1:
            record["gradients"] = {name: p.grad.clone() for name, p in parameters.items()}
        limit = optim["clip_norm"] or float("inf")
        record["grad_norm"] = torch.nn.utils.clip_grad_norm_(parameters.values(), limit).item()
        optimizer.step()
        scheduler.step()
        yield record
