"""PARA, IDPG and LoPA in plain Python over HF transformers, written from the methods' formulas: the reference where HF PEFT has none.

One sample at a time: `set_prompt` says how many leading tokens are its prompt.
"""

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers import RobertaModel

PREFIX = "base_model.model."
HEADS = ("classifier", "score")  # of the classes for sequence classification


class Plain(torch.nn.Module):
    """A frozen model with trained `tensors` by their name in the adapter folder."""

    def __init__(self, model, adapter):
        super().__init__()
        self.model = model
        self.config = model.config
        self.keys = adapter
        self.prompt_length = 0
        self.tensors = {}
        for name, parameter in model.named_parameters():
            is_head = name.split(".")[0] in HEADS
            parameter.requires_grad_(is_head)
            if is_head:
                self.tensors[PREFIX + name] = parameter

    def new(self, name, *shape):
        self.tensors[name] = torch.nn.Parameter(torch.zeros(*shape))
        return self.tensors[name]

    def set_prompt(self, length, encoder_ids):
        self.prompt_length, self.encoder_ids = length, encoder_ids

    def save(self, folder):
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        classifies = "SequenceClassification" in type(self.model).__name__
        config = {"peft_type": self.keys["method"].upper()}
        config["task_type"] = "SEQ_CLS" if classifies else "CAUSAL_LM"
        config |= {k: v for k, v in self.keys.items() if k != "method"}
        (folder / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True))
        tensors = {name: value.detach() for name, value in self.tensors.items()}
        save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})

    def load(self, folder):
        with torch.no_grad():
            for name, value in load_file(Path(folder) / "adapter_model.safetensors").items():
                self.tensors[name].copy_(value)

    def logits(self, ids, decoder):
        """`decoder`: inputs of a decoder that reads an encoder, else empty."""
        outputs = self.model(input_ids=torch.tensor([ids]), use_cache=False, **decoder)
        return outputs.logits[0].float()


ACTIVATIONS = {"gelu": F.gelu, "relu": F.relu}


def rational(x, a, b):
    numerator = sum(a[j] * x**j for j in range(6))
    return numerator / (1 + sum(b[k - 1] * x**k for k in range(1, 5)).abs())


class Para(Plain):
    """arXiv 2502.01033: vectors made from the prompt's states of each layer scale q, v and the FFN's up states."""

    def __init__(self, model, adapter):
        super().__init__(model, adapter)
        rank, d = adapter["rank"], model.config.hidden_size
        for path, layer in layers_of(model):
            name = f"{PREFIX}{path}.para."
            widths = {role: layer.widths[role] for role in adapter["sites"]}
            outputs = sum(widths.values())
            t = {"down.weight": self.new(name + "down.weight", rank, d)}
            t["up.weight"] = self.new(name + "up.weight", outputs, rank)
            if adapter["bias"]:
                t["down.bias"] = self.new(name + "down.bias", rank)
                t["up.bias"] = self.new(name + "up.bias", outputs)
            if adapter["pooling"] == "attention":
                t["pool.weight"] = self.new(name + "pool.weight", d)
            if adapter["activation"] == "rational":
                t["act.a"] = self.new(name + "act.a", 6)
                t["act.b"] = self.new(name + "act.b", 4)
            self.hook(layer, t, widths)

    def pool(self, states, tensors):
        if self.keys["pooling"] == "mean":
            return states.mean(0)
        if self.keys["pooling"] == "last":
            return states[-1]
        if self.keys["pooling"] == "max":
            return states.max(0).values
        scores = states @ tensors["pool.weight"] / states.shape[1] ** 0.5
        return torch.softmax(scores, 0) @ states

    def vectors(self, states, tensors, widths):
        prompt = states[0, : self.prompt_length].float()
        pooled = self.pool(prompt, tensors) if len(prompt) else torch.zeros(states.shape[2])
        z = F.linear(pooled, tensors["down.weight"], tensors.get("down.bias"))
        if self.keys["activation"] == "rational":
            z = rational(z, tensors["act.a"], tensors["act.b"])
        else:
            z = ACTIVATIONS[self.keys["activation"]](z)
        made = 1 + F.linear(z, tensors["up.weight"], tensors.get("up.bias"))
        return dict(zip(widths, made.split(list(widths.values()))))

    def hook(self, layer, tensors, widths):
        made = {}

        def read(states):
            made.update(self.vectors(states, tensors, widths))

        def scale(role, y):
            if role not in widths:
                return y
            return (y.float() * made[role]).to(y.dtype)

        if layer.encoder is not None:
            # A decoder's layer: the encoder's final output over the source.
            layer.encoder.register_forward_hook(lambda _, __, y: read(y[0]))
        elif self.keys["input"] == "layer_in" or layer.norm is None:
            layer.block.register_forward_pre_hook(lambda _, inputs: read(inputs[0]))
        else:
            layer.norm.register_forward_hook(lambda _, __, y: read(y))
        layer.scale_outputs(scale)
        layer.down.register_forward_pre_hook(lambda _, inputs: (scale("ffn.up", inputs[0]),))


class LlamaLayer:
    encoder = None

    def __init__(self, block):
        self.block, self.norm, self.down = block, block.input_layernorm, block.mlp.down_proj
        self.projections = {"attn.q": block.self_attn.q_proj, "attn.v": block.self_attn.v_proj}
        self.widths = {role: linear.out_features for role, linear in self.projections.items()}
        self.widths["ffn.up"] = block.mlp.up_proj.out_features

    def scale_outputs(self, scale):
        for role, linear in self.projections.items():
            linear.register_forward_hook(lambda _, __, y, role=role: scale(role, y))


class Gpt2Layer:
    encoder = None

    def __init__(self, block):
        self.block, self.norm, self.down = block, block.ln_1, block.mlp.c_proj
        d = block.ln_1.normalized_shape[0]
        self.widths = {"attn.q": d, "attn.v": d, "ffn.up": block.mlp.c_fc.nf}

    def scale_outputs(self, scale):
        def parts(_, __, y):
            q, k, v = y.chunk(3, -1)
            return torch.cat([scale("attn.q", q), k, scale("attn.v", v)], -1)

        self.block.attn.c_attn.register_forward_hook(parts)


class RobertaLayer(LlamaLayer):
    """Its norms stand behind the sums: what enters the layer is normed."""

    def __init__(self, block):
        self.block, self.norm, self.down = block, None, block.output.dense
        attention = block.attention.self
        self.projections = {"attn.q": attention.query, "attn.v": attention.value}
        self.widths = {role: linear.out_features for role, linear in self.projections.items()}
        self.widths["ffn.up"] = block.intermediate.dense.out_features


class T5Layer:
    def __init__(self, block, encoder):
        """`encoder`: the stack that a decoder's block reads, else None."""
        self.block, self.encoder = block, encoder
        attention, ffn = block.layer[0].SelfAttention, block.layer[-1].DenseReluDense
        self.norm, self.down = block.layer[0].layer_norm, ffn.wo
        self.projections = {"attn.q": attention.q, "attn.v": attention.v}
        self.widths = {role: linear.out_features for role, linear in self.projections.items()}
        self.widths["ffn.up"] = ffn.wo.in_features

    scale_outputs = LlamaLayer.scale_outputs


def layers_of(model):
    """HF path and the places of every layer."""
    if model.config.model_type == "roberta":
        path = "roberta.encoder.layer"
        return [(f"{path}.{i}", RobertaLayer(b)) for i, b in enumerate(model.roberta.encoder.layer)]
    if model.config.model_type == "t5":
        encoder = [
            (f"encoder.block.{i}", T5Layer(b, None)) for i, b in enumerate(model.encoder.block)
        ]
        return encoder + [
            (f"decoder.block.{i}", T5Layer(b, model.encoder))
            for i, b in enumerate(model.decoder.block)
        ]
    if model.config.model_type == "gpt2":
        return [(f"transformer.h.{i}", Gpt2Layer(b)) for i, b in enumerate(model.transformer.h)]
    return [(f"model.layers.{i}", LlamaLayer(b)) for i, b in enumerate(model.model.layers)]


class SoftPrompt(Plain):
    """Rows in front of the word embeddings, made from the mean word embedding of the prompt's tokens or by a model that reads the prompt."""

    def add_encoder(self, method):
        """Behind the method's own tensors."""
        keys = self.keys["encoder"]
        if keys["type"] == "embedding_mean":
            self.encoder = None
            return
        self.encoder = load_encoder(keys["path"])
        for name, parameter in self.encoder.named_parameters():
            parameter.requires_grad_(keys.get("train", False))
            if keys.get("train", False):
                self.tensors[f"{method}.encoder.roberta.{name}"] = parameter

    def width_of_e(self):
        keys = self.keys["encoder"]
        if keys["type"] == "embedding_mean":
            return self.config.hidden_size
        return json.loads((Path(keys["path"]) / "config.json").read_text())["hidden_size"]

    def prompt_vector(self, words):
        if self.encoder is None:
            prompt = words[: self.prompt_length].float()
            return prompt.mean(0) if len(prompt) else torch.zeros(words.shape[1])
        if not self.encoder_ids:
            return torch.zeros(self.width_of_e())
        states = self.encoder(input_ids=torch.tensor([self.encoder_ids])).last_hidden_state[0]
        pool = self.keys["encoder"].get("pool", "first")
        return dict(first=states[0], last=states[-1], mean=states.mean(0))[pool]

    def head(self, prefix, inputs, hidden, outputs):
        shapes = {"0.weight": (hidden, inputs), "0.bias": (hidden,)}
        shapes |= {"2.weight": (outputs, hidden), "2.bias": (outputs,)}
        return {key: self.new(f"{prefix}.{key}", *shape) for key, shape in shapes.items()}

    @staticmethod
    def run_head(head, e):
        return F.linear(
            torch.tanh(F.linear(e, head["0.weight"], head["0.bias"])),
            head["2.weight"],
            head["2.bias"],
        )

    def logits(self, ids, decoder):
        words = self.model.get_input_embeddings()(torch.tensor(ids))
        rows = self.rows(self.prompt_vector(words))
        inputs = torch.cat([rows.to(words.dtype), words])[None]
        if self.config.model_type == "roberta":
            states = self.model.roberta(inputs_embeds=inputs).last_hidden_state
            # The head takes the first row of what it is given.
            first = 0 if self.keys.get("read_at") == "first" else len(rows)
            return self.model.classifier(states[:, first:])[0].float()
        outputs = self.model(inputs_embeds=inputs, use_cache=False, **decoder).logits[0].float()
        return outputs if decoder or outputs.dim() == 1 else outputs[len(rows) :]


class Idpg(SoftPrompt):
    def __init__(self, model, adapter):
        super().__init__(model, adapter)
        d, self.m, h = model.config.hidden_size, adapter["prompt_length"], self.width_of_e()
        self.generator = self.head("idpg", h, adapter["hidden"] or h, self.m * d)
        self.add_encoder("idpg")

    def rows(self, e):
        return self.run_head(self.generator, e).reshape(self.m, -1)


class Lopa(SoftPrompt):
    def __init__(self, model, adapter):
        super().__init__(model, adapter)
        d, self.m, self.r = model.config.hidden_size, adapter["prompt_length"], adapter["rank"]
        h = self.width_of_e()
        hidden = adapter["hidden"] or h
        self.shared = self.new("lopa.prompt", self.m, d)
        self.row = self.head("lopa.row", h, hidden, self.m * self.r)
        self.column = self.head("lopa.col", h, hidden, d * self.r)
        self.add_encoder("lopa")

    def rows(self, e):
        u = self.run_head(self.row, e).reshape(self.m, self.r)
        v = self.run_head(self.column, e).reshape(-1, self.r)
        made = u @ v.T
        return {
            "gated": lambda: self.shared * torch.sigmoid(made),
            "concat": lambda: torch.cat([self.shared, made]),
            "add": lambda: self.shared + made,
            "max": lambda: torch.maximum(self.shared, made),
        }[self.keys["fusion"]]()


def load_encoder(folder):
    return RobertaModel.from_pretrained(folder, add_pooling_layer=False, attn_implementation="eager").eval()


METHODS = {"para": Para, "idpg": Idpg, "lopa": Lopa}
