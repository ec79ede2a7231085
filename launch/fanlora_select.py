#!/usr/bin/env python3
"""Two ways to choose FanLoRA's modules that need several runs of graft.

    launch/fanlora_select.py screen --config my.yaml --screen taylor_sq --margin 1 --output runs/screen
    launch/fanlora_select.py rounds --config my.yaml --keep 5 4 3 --steps 50 --output runs/rounds

screen: a cheap score of all modules first; then score.method (exact ablation) of those alone whose choice is in dispute: the
ones around the k-th place of their layer, `margin` above and `margin` below. The others keep or lose their place by the screen.

rounds: each number of --keep is one round. `graft score` keeps that many modules of every layer, the pruned adapter (its
tensors as they are) trains on for --steps steps as method fanlora, and the next round scores what remains.

The recipe names model, data, the LORA folder to begin with (score.adapter or adapter.init_from) and score.select; its
parallel section says the ranks. The end is OUTPUT/setting.json, by graft's own rule for ranks: the number of trainable
parameters of the first adapter stays. What is there already is not run again, so a stopped script goes on.
"""

from project_python import use_project_venv

use_project_venv()

import itertools
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from graft_prepare.cli import Parser
from graft_prepare.errors import input_error, run_guarded, usage_error
from project_python import ROOT
from safetensors.numpy import load_file, save_file

PREFIX = "base_model.model."
CHEAP = ("taylor", "taylor_abs", "taylor_sq", "lora_drop", "lora_drop_relative", "magnitude")
Recipe = dict[str, Any]
Modules = list[dict[str, Any]]


def run_graft(command: str, recipe: Recipe, folder: Path) -> None:
    """graft <command> on the recipe's ranks; the recipe stays in `folder`. Its exit code is ours when it fails."""
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / f"{command}.yaml"
    config.write_text(yaml.safe_dump(recipe, sort_keys=False))
    parallel = recipe.get("parallel") or {}
    ranks = parallel.get("data", 1) * parallel.get("pipeline", 1)
    script = ROOT / "launch" / "mpirun" / "single_node.sh"
    done = subprocess.run([script, str(ranks), command, "--config", config], check=False)
    if done.returncode != 0:
        sys.exit(done.returncode)


def merged(recipe: Recipe, **sections: Recipe) -> Recipe:
    """A copy of the recipe with these keys set."""
    result = dict(recipe)
    for name, keys in sections.items():
        result[name] = {**(recipe.get(name) or {}), **keys}
    return result


def select_keys(recipe: Recipe) -> Recipe:
    """score.select, which must keep so many modules of each layer."""
    select = dict((recipe.get("score") or {}).get("select") or {})
    rule = select.setdefault("rule", "top_k_per_layer")
    if rule != "top_k_per_layer":
        raise usage_error(f"score.select.rule: found {rule}, allowed here: top_k_per_layer")
    return select


def scored(recipe: Recipe, output: Path, **keys: Any) -> Recipe:
    """importance.json of `graft score` with these keys of the score section."""
    if not (output / "setting.json").exists():
        run_graft("score", merged(recipe, score={**keys, "output": str(output)}), output)
    return json.loads((output / "importance.json").read_text())


def site(module: Recipe) -> tuple[int, str]:
    return module["layer"], module["role"]


def by_layer(modules: Modules) -> dict[int, Modules]:
    """The modules of each layer, highest score first; ties stay in role order, as graft's."""
    layers: dict[int, Modules] = {}
    for module in sorted(modules, key=lambda m: -m["score"]):
        layers.setdefault(module["layer"], []).append(module)
    return layers


def choose(
    recipe: Recipe, importance: Recipe, kept: set[tuple[int, str]], k: int, out: Path
) -> None:
    """OUT/setting.json with these modules. graft selects once more from scores that say so, which gives ranks by its rule."""
    for module in importance["modules"]:
        module["score"], module["stderr"] = float(site(module) in kept), None
    source = out / "chosen.json"
    source.write_text(json.dumps(importance, indent=2) + "\n")
    select = select_keys(recipe) | {"k": k}
    keys = {"from": str(source), "output": str(out), "select": select}
    run_graft("score", merged(recipe, score=keys, parallel={"data": 1, "pipeline": 1}), out)
    print(f"{out / 'setting.json'}: {len(kept)} of {len(importance['modules'])} modules")


def write_candidates(importance: Recipe, modules: Modules, path: Path) -> None:
    """A setting.json that names these modules, for score.only."""
    keep = [
        {"layer": layer, "roles": [m["role"] for m in members], "rank": 1, "alpha": 1.0}
        for layer, members in sorted(by_layer(modules).items())
    ]
    facts = {key: importance[key] for key in ("model_type", "num_layers")}
    text = {"format": "graft-setting", "version": 1, **facts, "selection": {}, "keep": keep}
    path.write_text(json.dumps(text, indent=2) + "\n")


def screen(recipe: Recipe, args: Any) -> None:
    k, margin, out = select_keys(recipe).get("k", 3), args.margin, args.output
    importance = scored(recipe, out / "screen", method=args.screen)
    layers = by_layer(importance["modules"])
    sure = {site(m) for members in layers.values() for m in members[: max(0, k - margin)]}
    disputed = [m for members in layers.values() for m in members[max(0, k - margin) : k + margin]]
    candidates = out / "candidates.json"
    write_candidates(importance, disputed, candidates)
    verified = scored(recipe, out / "verify", only=str(candidates))
    best = by_layer(verified["modules"])
    kept = sure | {site(m) for members in best.values() for m in members[: min(k, margin)]}
    choose(recipe, importance, kept, k, out)


def prune(adapter: Path, importance: Recipe, kept: set[tuple[int, str]], out: Path) -> None:
    """The adapter folder with the tensors of the kept modules alone."""
    config = json.loads((adapter / "adapter_config.json").read_text())
    modules = importance["modules"]
    if len(config["target_modules"]) != len(modules):
        raise input_error(
            f"{adapter}/adapter_config.json: target_modules: found {len(config['target_modules'])} for "
            f"{len(modules)} scored modules; rounds need a LORA folder of graft with linears of their own"
        )
    # graft writes target_modules in the order of importance.json.
    pairs = zip(config["target_modules"], modules, strict=True)
    config["target_modules"] = [name for name, module in pairs if site(module) in kept]
    wanted = {
        f"{PREFIX}{name}.lora_{part}.weight" for name in config["target_modules"] for part in "AB"
    }
    tensors = load_file(adapter / "adapter_model.safetensors")
    if not wanted <= tensors.keys():
        missing = min(wanted - tensors.keys())
        raise input_error(f"{adapter}/adapter_model.safetensors: lacks {missing}")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    kept_tensors = {name: tensors[name] for name in wanted}
    save_file(kept_tensors, out / "adapter_model.safetensors", metadata={"format": "pt"})
    (out / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True))


def one_round(
    recipe: Recipe, adapter: Path, keep: int, steps: int, out: Path
) -> tuple[Recipe, Path]:
    """Scores `adapter`, prunes it and lets it recover; the next round's recipe and adapter."""
    select = select_keys(recipe) | {"k": keep, "rescale": False}
    importance = scored(recipe, out / "score", adapter=str(adapter), select=select)
    setting = json.loads((out / "score" / "setting.json").read_text())
    kept = {(entry["layer"], role) for entry in setting["keep"] for role in entry["roles"]}
    trained, pruned = out / "train", out / "pruned"
    keys = recipe.get("adapter") or {}
    after = merged(recipe, run={"output": str(trained)}, optim={"steps": steps})
    after["adapter"] = {key: keys[key] for key in ("dropout", "rslora") if key in keys} | {
        "method": "fanlora",
        "setting": str(out / "score" / "setting.json"),
        "init_from": str(pruned),
    }
    if not (trained / "adapter" / "adapter_config.json").exists():
        prune(adapter, importance, kept, pruned)
        run_graft("train", after, trained)
    return after, trained / "adapter"


def rounds(recipe: Recipe, args: Any) -> None:
    keep, out = args.keep, args.output
    if min(keep) < 1 or any(b >= a for a, b in itertools.pairwise(keep)):
        raise usage_error(f"--keep: found {keep}, must fall from round to round and end above 0")
    adapter = (recipe.get("score") or {}).get("adapter") or (recipe.get("adapter") or {}).get(
        "init_from"
    )
    if not adapter:
        raise usage_error(f"{args.config}: score.adapter: missing, the first round scores it")
    current, source = recipe, Path(adapter)
    for number, k in enumerate(keep, start=1):
        print(f"== round {number}: {k} modules of each layer", flush=True)
        current, source = one_round(current, source, k, args.steps, out / f"round-{number}")
    first, last = (out / f"round-{number}" / "score" for number in (1, len(keep)))
    setting = json.loads((last / "setting.json").read_text())
    kept = {(entry["layer"], role) for entry in setting["keep"] for role in entry["roles"]}
    choose(recipe, json.loads((first / "importance.json").read_text()), kept, keep[-1], out)


def main() -> None:
    parser = Parser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("screen", "rounds"):
        command = commands.add_parser(name, help=f"see the top of {Path(__file__).name}")
        command.add_argument("--config", type=Path, required=True, help="recipe")
        command.add_argument("--output", type=Path, required=True, help="folder to write")
        if name == "screen":
            command.add_argument("--screen", choices=CHEAP, default="taylor_sq", help="cheap score")
            command.add_argument(
                "--margin", type=int, default=1, help="disputed places on each side of the k-th"
            )
        else:
            command.add_argument(
                "--keep",
                type=int,
                nargs="+",
                required=True,
                help="modules of each layer after each round, falling",
            )
            command.add_argument(
                "--steps", type=int, required=True, help="training steps of each recovery"
            )
    args = parser.parse_args()
    if args.command == "screen" and args.margin < 1:
        raise usage_error(f"--margin: found {args.margin}, must be at least 1")
    try:
        recipe = yaml.safe_load(args.config.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise input_error(f"{args.config}: {error}") from error
    if not isinstance(recipe, dict):
        raise input_error(f"{args.config}: must be a map of sections")
    args.output.mkdir(parents=True, exist_ok=True)
    (screen if args.command == "screen" else rounds)(recipe, args)


if __name__ == "__main__":
    run_guarded(main)
