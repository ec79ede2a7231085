"""Adapter folders against huggingface/peft itself: ours load there, theirs load here.

Usage: peft_roundtrip_test.py ADAPTER_FOLDER_TOOL
"""

import json
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, safe_open, save_file
from transformers import LlamaConfig, LlamaForCausalLM

TOOL = ""
LAYERS, HIDDEN, KV, FFN = 2, 32, 16, 64
MODULES = {
    "attn.q": "self_attn.q_proj",
    "attn.v": "self_attn.v_proj",
    "ffn.down": "mlp.down_proj",
}
SITES = f"[{', '.join(MODULES)}]"


def tiny_model():
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=FFN,
        vocab_size=50,
    )
    return LlamaForCausalLM(config).eval()


def tool(action, source, target, *fields, method="lora"):
    sizes = [str(n) for n in (LAYERS, HIDDEN, KV, FFN)]
    command = [TOOL, action, str(source), str(target), method, *sizes, *fields]
    return subprocess.run(command, capture_output=True, text=True)


class PeftRoundTrip(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.dir = Path(folder.name)
        self.ids = torch.arange(12).reshape(1, 12)

    def write_ours(self, *fields, method="lora"):
        result = tool("write", "-", self.dir / "ours", *fields, method=method)
        self.assertEqual(result.returncode, 0, result.stderr)
        return load_file(self.dir / "ours" / "adapter_model.safetensors")

    def write_theirs(self, dtype=torch.float32, **changes):
        settings = dict(r=4, lora_alpha=8, target_modules=list(MODULES.values()))
        settings.update(changes)
        settings["target_modules"] = [m.split(".")[-1] for m in settings["target_modules"]]
        model = get_peft_model(tiny_model(), LoraConfig(task_type="CAUSAL_LM", **settings))
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, std=0.2)
        model.to(dtype).save_pretrained(self.dir / "theirs")
        return load_file(self.dir / "theirs" / "adapter_model.safetensors")

    def refused(self, *fields):
        result = tool("copy", self.dir / "theirs", self.dir / "copy", *fields)
        self.assertEqual(result.returncode, 65, result.stderr)
        self.assertFalse((self.dir / "copy").exists())
        return result.stderr

    def check_ours_in_peft(self, scale, *fields):
        tensors = self.write_ours(f"sites={SITES}", *fields)
        peft_model = PeftModel.from_pretrained(tiny_model(), self.dir / "ours").eval()
        loaded = {
            name.replace(".default", ""): value
            for name, value in peft_model.state_dict().items()
            if "lora_" in name
        }
        self.assertEqual(set(loaded), set(tensors))
        for name, value in tensors.items():
            self.assertTrue(torch.equal(loaded[name], value), name)

        base = tiny_model()
        before = base(self.ids).logits
        for name, weight in base.named_parameters():
            key = f"base_model.model.{name.removesuffix('.weight')}"
            if f"{key}.lora_A.weight" in tensors:
                a, b = tensors[f"{key}.lora_A.weight"], tensors[f"{key}.lora_B.weight"]
                weight.data += scale * b @ a
        expected = base(self.ids).logits
        self.assertGreater((expected - before).abs().max().item(), 1e-2)
        torch.testing.assert_close(peft_model(self.ids).logits, expected, atol=1e-4, rtol=0)

    def test_our_lora_loads_in_peft_and_means_the_same(self):
        self.check_ours_in_peft(2.0, "rank=4", "alpha=8")

    def test_our_rslora_loads_in_peft_and_means_the_same(self):
        self.check_ours_in_peft(1.5, "rank=4", "alpha=3", "rslora=true")

    def test_our_files_look_like_pefts(self):
        ours = self.write_ours(f"sites={SITES}", "rank=4", "alpha=8")
        theirs = self.write_theirs()
        self.assertEqual(
            {name: (value.shape, value.dtype) for name, value in ours.items()},
            {name: (value.shape, value.dtype) for name, value in theirs.items()},
        )
        with safe_open(self.dir / "ours" / "adapter_model.safetensors", "pt") as file:
            self.assertEqual(file.metadata(), {"format": "pt"})
        text = (self.dir / "ours" / "adapter_config.json").read_text()
        config = json.loads(text)
        self.assertEqual(text, json.dumps(config, indent=2, sort_keys=True))
        reference = json.loads((self.dir / "theirs" / "adapter_config.json").read_text())
        skip = {"target_modules", "base_model_name_or_path"}
        for key in set(config) - skip:
            self.assertEqual(config[key], reference[key], key)

    def test_pefts_lora_loads_here(self):
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            with self.subTest(dtype=dtype):
                theirs = self.write_theirs(dtype)
                result = tool(
                    "copy", self.dir / "theirs", self.dir / "copy",
                    f"sites={SITES}", "rank=4", "alpha=8",
                )  # fmt: skip
                self.assertEqual(result.returncode, 0, result.stderr)
                copied = load_file(self.dir / "copy" / "adapter_model.safetensors")
                self.assertEqual(set(copied), set(theirs))
                for name, value in theirs.items():
                    self.assertTrue(torch.equal(copied[name], value.float()), name)

    def test_another_rank_or_alpha_is_refused(self):
        self.write_theirs()
        self.assertIn("r is 4, but adapter.rank is 8", self.refused(f"sites={SITES}", "alpha=8"))
        message = self.refused(f"sites={SITES}", "rank=4", "alpha=16")
        self.assertIn("lora_alpha is 8.0, but adapter.alpha is 16.0", message)

    def test_rank_of_tensors_that_differs_from_the_config_is_refused(self):
        self.write_theirs()
        path = self.dir / "theirs" / "adapter_config.json"
        path.write_text(path.read_text().replace('"r": 4', '"r": 2'))
        message = self.refused(f"sites={SITES}", "rank=2", "alpha=8")
        self.assertIn("has shape (4, 32), the recipe and model give (2, 32)", message)

    def test_nan_is_refused(self):
        tensors = self.write_theirs()
        name = sorted(tensors)[2]
        tensors[name][0, 1] = float("nan")
        save_file(tensors, self.dir / "theirs" / "adapter_model.safetensors")
        self.assertIn(f"{name}: holds values that are not finite",
                      self.refused(f"sites={SITES}", "rank=4", "alpha=8"))  # fmt: skip

    def test_an_adapter_of_another_module_is_refused(self):
        self.write_theirs(target_modules=["self_attn.k_proj"])
        message = self.refused(f"sites={SITES}", "rank=4", "alpha=8")
        self.assertIn("of its tensors do not fit: missing base_model.model.model.layers.0", message)

    def test_red_folder_returns_and_replaces_an_older_one(self):
        first = self.write_ours(method="red")
        names = {f"model.layers.{i}.mlp.down_proj.red_{half}"
                 for i in range(LAYERS) for half in ("scale", "bias")}  # fmt: skip
        self.assertEqual({name.removeprefix("base_model.model.") for name in first}, names)
        lora = self.write_ours("rank=4")
        self.assertTrue(all("lora_" in name for name in lora))
        self.write_ours(method="red")
        result = tool("copy", self.dir / "ours", self.dir / "ours", method="red")
        self.assertEqual(result.returncode, 0, result.stderr)
        again = load_file(self.dir / "ours" / "adapter_model.safetensors")
        self.assertTrue(all(torch.equal(again[name], first[name]) for name in first))
        self.assertEqual([path.name for path in self.dir.iterdir()], ["ours"])

    def test_a_folder_that_is_no_adapter_is_not_replaced(self):
        (self.dir / "ours").mkdir()
        (self.dir / "ours" / "thesis.tex").write_text("years of work")
        result = tool("write", "-", self.dir / "ours")
        self.assertEqual(result.returncode, 74)
        self.assertIn("exists and is not an adapter folder", result.stderr)
        self.assertEqual((self.dir / "ours" / "thesis.tex").read_text(), "years of work")


if __name__ == "__main__":
    TOOL = sys.argv.pop(1)
    unittest.main()
