"""`graft score` against HF PEFT: every module switched off or on by zeroing its B, the gate's derivative, the direct norms.

The reference runs in float64, one sample at a time; graft in float32, variants of a layer side by side in one batch.
"""

import json
import math

import prepared_data
import pytest
import reference
import torch
from graft_program import Golden, attempt, data_folder, recipe, run
from safetensors.torch import load_file
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.t5.modeling_t5 import T5LayerNorm
from variants import MAX_SAMPLE_LENGTH, NUM_LABELS, VOCAB_SIZE, module_of

RELATIVE, ABSOLUTE = 1e-4, 5e-7  # of a score; nat: a step of float32 at a loss between 4 and 8
SAMPLES = 21
SCORE = dict(max_samples=SAMPLES, shard_samples=8, micro_batch=3, layer_block=3, per_sample=True)
LLAMA, GPT2, ROBERTA, T5 = "gqa_lora", "gpt2_lora", "roberta_lora", "t5_lora"


@pytest.fixture(scope="module", autouse=True)
def float64_norm():
    """HF's RMSNorm rounds to float32 even in a float64 model."""

    def forward(self, h):
        return (
            self.weight * h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LlamaRMSNorm, "forward", forward)
        patch.setattr(T5LayerNorm, "forward", forward)
        yield


def samples_of(task):
    """So many trained tokens that the rounding of float32 is smaller than the tolerance of the mean."""
    if task == "seq2seq":
        return prepared_data.pairs(SAMPLES, VOCAB_SIZE, MAX_SAMPLE_LENGTH, 5)
    if task != "causal_lm":
        return prepared_data.labelled_samples(SAMPLES, VOCAB_SIZE, MAX_SAMPLE_LENGTH, 5, NUM_LABELS)
    samples = prepared_data.ragged_samples(SAMPLES, VOCAB_SIZE, MAX_SAMPLE_LENGTH, 5)
    for i, sample in enumerate(samples):
        if i not in (3, 4):  # one target, none
            sample.mask = [0] + [1] * (len(sample.ids) - 1)
    return samples


class Reference:
    """The case's model with its adapter in float64, and the linears' LoRA as (layer, role)."""

    def __init__(self, golden):
        case = golden.numbers["case"]
        model = reference.load_model(golden.model, task=case["task"])
        self.model = (
            reference.load_adapter(model, golden.folder / "initial", trainable=True).double().eval()
        )
        self.config = model.config
        self.samples = samples_of(case["task"])
        self.counts = [len(s.targets()) if s.label is None else 1 for s in self.samples]

    def module(self, layer, role):
        return self.model.get_submodule("base_model.model." + module_of(self.config, layer, role))

    def rows(self, layer, role):
        """Of lora_B: all, or those of the role in a fused projection."""
        name, rows = (
            module_of(self.config, layer, role),
            self.module(layer, role).lora_B["default"].weight.shape[0],
        )
        fused = reference.fused_rows(name, [role], rows)
        return fused[0] if fused else slice(None)

    def b(self, layer, role):
        return self.module(layer, role).lora_B["default"].weight

    def losses(self):
        with torch.no_grad():
            return torch.stack([reference.loss_sum(self.model, s) for s in self.samples]).double()

    def losses_with(self, on, sites):
        """l_n with the modules in `on` alone."""
        saved = {site: self.b(*site).detach().clone() for site in sites}
        with torch.no_grad():
            for site in sites:
                if site not in on:
                    self.b(*site)[self.rows(*site)] = 0
            losses = self.losses()
            for site in sites:
                self.b(*site).copy_(saved[site])
        return losses


def score(golden, folder, method, **keys):
    """importance.json and the per-sample values."""
    parallel, task = keys.pop("parallel", {}), golden.numbers["case"]["task"]
    data = folder / "data"
    labels = NUM_LABELS if task == "classification" else 0
    prepared_data.write(data, samples_of(task), VOCAB_SIZE, num_labels=labels)
    keys = dict(data=str(data)) | keys
    run(
        "score",
        recipe(golden, folder, score=SCORE | dict(method=method) | keys, parallel=parallel),
        folder,
    )
    output = folder / "score"
    importance = json.loads((output / "importance.json").read_text())
    return importance, load_file(output / "per_sample.safetensors")


def sites_of(importance):
    return [(m["layer"], m["role"]) for m in importance["modules"]]


def assert_near(ours, expected, what=""):
    assert abs(ours - expected) <= RELATIVE * abs(expected) + ABSOLUTE, (
        f"{what}: {ours!r}, reference {expected!r}"
    )


def standard_error(values, counts):
    """methods.md 16.1."""
    total, n = sum(counts), len(counts)
    mean = sum(values) / total
    return math.sqrt(n / (n - 1) * sum((v - mean * c) ** 2 for v, c in zip(values, counts))) / total


@pytest.mark.parametrize("name", [LLAMA, GPT2, "gpt2_lora_joint", ROBERTA, "gqa_fanlora", T5])
def test_ablation_is_zeroing_one_module_at_a_time(name, tmp_path):
    golden = Golden(name)
    size = dict(rank=4, alpha=8.0) if name == "gqa_fanlora" else {}  # its modules differ
    ab, values = score(golden, tmp_path / "ab", "ab", select=size)
    hf, sites = Reference(golden), sites_of(ab)
    tokens = sum(hf.counts)
    everything, nothing = hf.losses_with(sites, sites), hf.losses_with([], sites)
    assert_near(ab["base_loss"], everything.sum().item() / tokens, "base_loss")
    assert_near(ab["bare_loss"], nothing.sum().item() / tokens, "bare_loss")
    assert (ab["num_samples"], ab["num_trained_tokens"]) == (SAMPLES, tokens)
    assert ab["num_tokens"] == sum(len(s.ids) + len(s.target or []) for s in hf.samples)
    assert values["loo"].shape == values["keep_one"].shape == (len(sites), SAMPLES)
    # Of many modules every fifth: with six or seven in a layer all roles come up.
    step = 5 if len(sites) > 10 else 1
    for module, site in list(zip(ab["modules"], sites))[::step]:
        without = hf.losses_with([s for s in sites if s != site], sites)
        alone = hf.losses_with([site], sites)
        loo, keep_one = without - everything, nothing - alone
        assert_near(module["terms"]["loo"], loo.sum().item() / tokens, f"loo {site}")
        assert_near(module["terms"]["keep_one"], keep_one.sum().item() / tokens, f"keep_one {site}")
        difference = without - alone
        assert_near(module["score"], difference.sum().item() / tokens, f"ab {site}")
        assert_near(
            module["stderr"], standard_error(difference.tolist(), hf.counts), f"stderr {site}"
        )


def test_parts_of_ab_are_scores_of_their_own(tmp_path):
    golden = Golden(LLAMA)
    ab, _ = score(golden, tmp_path / "ab", "ab")
    for method in ("loo", "keep_one"):
        alone, _ = score(golden, tmp_path / method, method)
        assert [m["score"] for m in alone["modules"]] == [m["terms"][method] for m in ab["modules"]]
        assert alone["base_loss"] == pytest.approx(ab["base_loss"], rel=1e-6)


@pytest.mark.parametrize(
    "name", [LLAMA, "gqa_lora_qv", GPT2, "gpt2_lora_joint", ROBERTA, "t5_v1_1_lora"]
)
def test_taylor_is_the_derivative_of_the_gate(name, tmp_path):
    """-dl/da at a = 1 of B -> a B, which is -<B, dl/dB>; the unit of the absolute and squared forms is the sample."""
    golden = Golden(name)
    importance, values = score(golden, tmp_path, "taylor")
    hf = Reference(golden)
    tokens = sum(hf.counts)
    expected = []
    for sample in hf.samples:
        hf.model.zero_grad(set_to_none=False)
        loss = reference.loss_sum(hf.model, sample)
        if loss.requires_grad:  # else the sample has no target
            loss.backward()
        rows = [
            (hf.b(*s)[hf.rows(*s)] * hf.b(*s).grad[hf.rows(*s)]).sum().item()
            for s in sites_of(importance)
        ]
        expected.append([-value for value in rows])
    # Of a gradient's float32 rounding: what it is in proportion to is the largest term of the sample.
    size = max(abs(value) for row in expected for value in row)
    for m, module in enumerate(importance["modules"]):
        of_samples = [row[m] for row in expected]
        assert values["taylor"][m].tolist() == pytest.approx(of_samples, rel=1e-4, abs=1e-5 * size)
        forms = {
            "taylor": sum(of_samples),
            "taylor_abs": sum(map(abs, of_samples)),
            "taylor_sq": sum(v * v for v in of_samples),
        }
        scale = 1e-5 * size * max(1, size) * len(of_samples) / tokens
        for form, value in forms.items():
            assert module["terms"][form] == pytest.approx(value / tokens, rel=1e-4, abs=scale), form
        assert module["score"] == module["terms"]["taylor"]
        error = standard_error(of_samples, hf.counts)
        assert module["stderr"] == pytest.approx(error, rel=1e-4, abs=scale)
    assert_near(importance["base_loss"], hf.losses().sum().item() / tokens)


@pytest.mark.parametrize("name", [LLAMA, "biases_lora", GPT2, ROBERTA, T5])
def test_lora_drop_and_magnitude_are_the_direct_norms(name, tmp_path):
    golden = Golden(name)
    absolute, values = score(golden, tmp_path / "drop", "lora_drop")
    relative, _ = score(golden, tmp_path / "relative", "lora_drop_relative")
    magnitude, _ = score(golden, tmp_path / "magnitude", "magnitude")
    hf = Reference(golden)
    seen = {}

    def watch(site):
        def hook(layer, inputs, _):
            x = inputs[0].reshape(-1, inputs[0].shape[-1])
            a, b = layer.lora_A["default"].weight, hf.b(*site)[hf.rows(*site)]
            edit = layer.scaling["default"] * (x @ a.T @ b.T)
            bias = layer.base_layer.bias
            product = layer.base_layer(x) - (0 if bias is None else bias)
            seen[site].append(
                ((edit**2).sum().item(), (product[:, hf.rows(*site)] ** 2).sum().item())
            )

        return hook

    for site in sites_of(absolute):
        seen[site] = []
        hf.module(*site).register_forward_hook(watch(site))
    with torch.no_grad():
        for sample in hf.samples:  # those without a target too
            reference.sample_logits(hf.model, sample)
    tokens = absolute["num_tokens"]
    total = sum(edit for edits in seen.values() for edit, _ in edits)
    rows = zip(absolute["modules"], relative["modules"], magnitude["modules"], sites_of(absolute))
    for m, (drop, ratio, size, site) in enumerate(rows):
        edits, outputs = (sum(column) for column in zip(*seen[site]))
        assert_near(drop["score"], edits / tokens, f"lora_drop {site}")
        assert_near(ratio["score"], edits / outputs, f"lora_drop_relative {site}")
        assert_near(drop["terms"]["share"], edits / total, f"share {site}")
        assert values["lora_drop.outputs"][m].tolist() == pytest.approx(
            [o for _, o in seen[site]], rel=1e-5
        )
        module = hf.module(*site)
        product = (
            module.scaling["default"]
            * hf.b(*site)[hf.rows(*site)]
            @ module.lora_A["default"].weight
        )
        assert_near(size["score"], (product**2).sum().item(), f"magnitude {site}")
        assert drop["stderr"] is None and size["stderr"] is None
    assert magnitude["base_loss"] is None
    assert_near(absolute["base_loss"], hf.losses().sum().item() / sum(hf.counts))


def test_a_module_that_does_nothing_scores_exactly_zero(tmp_path):
    """Variant and clean copy run in the same shapes, so not even rounding tells them apart."""
    golden = Golden(LLAMA)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    for file in (golden.folder / "initial").iterdir():
        (adapter / file.name).write_bytes(file.read_bytes())
    tensors = load_file(adapter / "adapter_model.safetensors")
    tensors["base_model.model.model.layers.2.mlp.up_proj.lora_B.weight"].zero_()
    from safetensors.torch import save_file

    save_file(tensors, adapter / "adapter_model.safetensors", metadata={"format": "pt"})
    importance, _ = score(golden, tmp_path / "run", "ab", adapter=str(adapter))
    terms = {(m["layer"], m["role"]): m["terms"] for m in importance["modules"]}
    assert terms[2, "ffn.up"] == dict(loo=0.0, keep_one=0.0)
    assert all(abs(t["loo"]) > 0 for site, t in terms.items() if site != (2, "ffn.up"))


def test_the_setting_trains_and_selects_again_without_a_model(tmp_path):
    golden = Golden(LLAMA)
    importance, _ = score(golden, tmp_path, "taylor_sq", select=dict(k=2))
    setting = json.loads((tmp_path / "score" / "setting.json").read_text())
    best = {}
    for m in sorted(importance["modules"], key=lambda m: -m["score"]):
        best.setdefault(m["layer"], []).append(m["role"])
    for entry in setting["keep"]:
        assert sorted(entry["roles"]) == sorted(best[entry["layer"]][:2])
    keys = recipe(golden, tmp_path / "train", optim=dict(steps=1))
    keys["adapter"] = dict(method="fanlora", setting=str(tmp_path / "score" / "setting.json"))
    run("train", keys, tmp_path / "train")

    again = tmp_path / "again"
    select = dict(rule="top_k", k=5, rescale=False)
    source = str(tmp_path / "score" / "importance.json")
    keys = dict(score={"from": source, "output": str(again), "select": select}, parallel={})
    run("score", keys, again)
    kept = json.loads((again / "setting.json").read_text())["keep"]
    highest = sorted(importance["modules"], key=lambda m: -m["score"])[:5]
    assert sorted((k["layer"], r) for k in kept for r in k["roles"]) == sorted(
        (m["layer"], m["role"]) for m in highest
    )


@pytest.mark.parametrize(
    "change, code, parts",
    [
        (dict(score=dict(data="")), 78, ["score.data"]),
        (dict(adapter=dict(method="red", sites=["ffn.out"])), 78, ["adapter.method", "red"]),
        (dict(task=dict(type="seq2seq")), 78, ["score.data", "task.type is seq2seq"]),
        (dict(score=dict(adapter="/nowhere")), 65, ["/nowhere"]),
        (
            dict(
                score=dict(select=dict(rule="latency_budget", budget=1.0, latency_file="/nowhere"))
            ),
            65,
            ["/nowhere"],
        ),
        (dict(score=dict(select=dict(rule="parameter_budget"))), 78, ["score.select.budget"]),
        (
            dict(score=dict(method="sensitivity")),
            65,
            ["sensitivity.json", "adapter.track_sensitivity"],
        ),
    ],
)
def test_what_cannot_be_scored_is_refused(change, code, parts, tmp_path):
    keys = recipe(Golden(LLAMA), tmp_path, score=SCORE | dict(method="magnitude", per_sample=False))
    if change.get("score", {}).get("data") == "":
        keys["data"].pop("eval")
    for section, values in change.items():
        if "method" in values and section == "adapter":
            keys[section] = values
        else:
            keys[section] |= values
    found, errors = attempt("score", keys, tmp_path)
    last = errors.strip().splitlines()[-1]
    assert found == code, errors
    assert last.startswith("graft: error: "), errors
    for part in parts:
        assert part in last, last
    assert not (tmp_path / "score" / "setting.json").exists()


def expected_sensitivity(golden, steps):
    """By (layer, role): the averages of methods.md 16.1 beside HF PEFT's own training, in float32 as graft."""
    case = golden.numbers["case"]
    model = reference.load_model(golden.model, task=case["task"])
    peft = reference.load_adapter(model, golden.folder / "initial", trainable=True)
    parameters = reference.trained(peft)
    optim = case["optim"] | dict(schedule="constant", warmup_steps=0)
    optimizer = torch.optim.AdamW(
        parameters.values(),
        lr=optim["lr"],
        betas=optim["betas"],
        eps=optim["eps"],
        weight_decay=optim["weight_decay"],
    )
    average = {name: torch.zeros_like(p) for name, p in parameters.items()}
    spread = {name: torch.zeros_like(p) for name, p in parameters.items()}
    samples = prepared_data.read(data_folder(case["task"], "train"))
    for batch in reference.batches(samples, optim["global_batch"], steps):
        optimizer.zero_grad()
        reference.backward(peft, batch)
        for name, p in parameters.items():
            now = (p * p.grad).abs().detach()
            average[name] = 0.85 * average[name] + 0.15 * now
            spread[name] = 0.85 * spread[name] + 0.15 * (now - average[name]).abs()
        torch.nn.utils.clip_grad_norm_(parameters.values(), optim["clip_norm"])
        optimizer.step()
    q = {name: (average[name] * spread[name]).double() for name in parameters}
    scores = {}
    for layer in range(model.config.num_hidden_layers):
        for role in case["adapter"]["sites"]:
            name = module_of(model.config, layer, role)
            of_a = next(v for n, v in q.items() if f"{name}.lora_A" in n).mean(1)
            of_b = next(v for n, v in q.items() if f"{name}.lora_B" in n).mean(0)
            scores[layer, role] = (of_a + of_b).sum().item()
    return scores


def trained_with_sensitivity(golden, folder, steps, **sections):
    optim = dict(schedule="constant", warmup_steps=0, steps=steps)
    keys = recipe(golden, folder, optim=optim, adapter=dict(track_sensitivity=True), **sections)
    run("train", keys, folder)
    return (folder / "sensitivity.json").read_bytes()


def test_sensitivity_follows_training(tmp_path):
    golden, steps = Golden(LLAMA), 6
    whole = trained_with_sensitivity(golden, tmp_path / "whole", steps)
    trained_with_sensitivity(golden, tmp_path / "parts", 3)
    assert trained_with_sensitivity(golden, tmp_path / "parts", steps) == whole, (
        "continued from a checkpoint"
    )
    keys = recipe(
        golden,
        tmp_path / "score",
        score=dict(adapter=str(tmp_path / "whole" / "adapter"), method="sensitivity"),
    )
    keys["adapter"].pop("init_from")
    run("score", keys, tmp_path / "score")
    importance = json.loads((tmp_path / "score" / "score" / "importance.json").read_text())
    expected = expected_sensitivity(golden, steps)
    assert sites_of(importance) == list(expected)
    for module, site in zip(importance["modules"], expected):
        assert module["score"] == pytest.approx(expected[site], rel=2e-3), site
    for name, parallel in (("dp", dict(data=2)), ("pp", dict(pipeline=2))):
        other = json.loads(
            trained_with_sensitivity(golden, tmp_path / name, steps, parallel=parallel)
        )
        for ours, module in zip(other["modules"], importance["modules"]):
            assert ours["score"] == pytest.approx(module["score"], rel=2e-3), (name, ours)
    code, errors = attempt(
        "train",
        recipe(Golden("gqa_red"), tmp_path / "red", adapter=dict(track_sensitivity=True)),
        tmp_path / "red",
    )
    assert code == 78 and "adapter.track_sensitivity" in errors.strip().splitlines()[-1]


@pytest.mark.parametrize(
    "name, method",
    [(LLAMA, "ab"), (GPT2, "taylor"), (LLAMA, "lora_drop"), (ROBERTA, "ab"), (T5, "ab")],
)
def test_the_bytes_do_not_depend_on_ranks(name, method, tmp_path):
    def bytes_of(**parallel):
        folder = tmp_path / "-".join(f"{k}{v}" for k, v in parallel.items())
        score(Golden(name), folder, method, parallel=parallel)
        return [
            (folder / "score" / file).read_bytes() for file in ("importance.json", "setting.json")
        ]

    one = bytes_of(data=1)
    for parallel in (dict(data=2), dict(data=4), dict(pipeline=2), dict(data=2, pipeline=2)):
        assert bytes_of(**parallel) == one, parallel
