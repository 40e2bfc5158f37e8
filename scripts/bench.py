"""Measure what the README claims, on this machine: a table on screen, JSON in reports/bench.json.

    python -m scripts.bench               # what needs no new training: minutes
    python -m scripts.bench demo          # also `make demo` from the tools in place, the recipe's outputs deleted first

Each line has its bound; the exit code is 1 if one is exceeded.
"""

import importlib
import json
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import yaml

from scripts import files, process, receipt, recipe

STAGES = ["preprocess", "train", "merge", "gguf", "modelfile"]
# Llama 3 8B's own shapes, 8 of its 32 layers: one shard of 5 GB, as its files on the hub have, and a small one.
SHAPE = {
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 8,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}


def seconds(*cmd, env=None):
    start = time.perf_counter()
    done = subprocess.run(cmd, capture_output=True, text=True, env=env)
    if done.returncode:
        raise ValueError(f"{' '.join(cmd)} failed: {(done.stdout + done.stderr).strip().splitlines()[-1]}")
    return time.perf_counter() - start


def nothing_to_do():
    """Seconds that `make ollama` takes when all stands: a private server holds the model, the second call is timed."""
    code = (
        "import subprocess, time; c = ['make', 'ollama', 'RECIPE=pirate-nano']; subprocess.run(c, check=True, capture_output=True); t = time.perf_counter(); "
        "subprocess.run(c, check=True, capture_output=True); print(time.perf_counter() - t)"
    )
    done = subprocess.run(
        [sys.executable, "-m", "scripts.serve", "outputs/ollama", sys.executable, "-c", code], capture_output=True, text=True
    )
    if done.returncode:
        raise ValueError(f"timing `make ollama` failed: {done.stderr.strip().splitlines()[-1]}")
    return float(done.stdout.split()[-1])


def big_adapter(folder):
    """A Llama of 2.8 B random bfloat16 weights with an r=64 adapter, as training would leave them."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    model = LlamaForCausalLM(LlamaConfig(**SHAPE))
    base = folder / "base"
    model.save_pretrained(base, max_shard_size="5GB")
    tuned = get_peft_model(model, LoraConfig(r=64, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"))
    for name, p in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.01)
    tuned.peft_config["default"].base_model_name_or_path = str(base)
    tuned.save_pretrained(folder / "adapter")
    for path in Path("outputs/pirate-nano/adapter").glob("*"):
        if path.name.startswith(("tokenizer", "chat_template")):
            shutil.copy2(path, base)
            shutil.copy2(path, folder / "adapter")
    (folder / "adapter/trainer_state.json").write_text('{"global_step": 1, "max_steps": 1}')
    cfg = recipe.read("outputs/pirate-nano/recipe.yml") | {"base_model": str(base), "output_dir": str(folder / "training")}
    (folder / "recipe.yml").write_text(yaml.safe_dump(cfg, sort_keys=False))


def merge_memory():
    """(peak memory of the merge stage in shards, seconds): made in a child, so that making the model does not count."""
    folder = Path("outputs/bench")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    seconds(sys.executable, "-c", "from pathlib import Path; from scripts import bench; bench.big_adapter(Path('outputs/bench'))")
    took = seconds(sys.executable, "-m", "scripts.merge", "bench")
    made = receipt.read(folder / "merge.json")
    shutil.rmtree(folder)
    return made["peak_memory_gib"] / made["figures"]["largest_shard_gib"], took


def plug_in_overhead(rounds=80):
    """Per cent that a training step takes longer with the CPU plug-in than without: the same model, steps by turns, medians."""
    import torch
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    never_repack = importlib.import_module("scripts.cpu").never_repack  # by its name, as Axolotl loads it

    model = AutoModelForCausalLM.from_pretrained(
        "outputs/nano/pirate",
        dtype=torch.float32,
        device_map={"": "cpu"},
        quantization_config=BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.float32
        ),
    )
    model = get_peft_model(
        prepare_model_for_kbit_training(model, use_gradient_checkpointing=False), LoraConfig(r=64, target_modules="all-linear")
    )
    flags = {m: m.support_avx512bf16_for_cpu for m in model.modules() if hasattr(m, "support_avx512bf16_for_cpu")}
    model.train()  # where the flag is never read: nothing by construction, and here is the measurement
    x, times = torch.randint(10, 4000, (4, 160)), {True: [], False: []}
    for n in range(2 * rounds + 2):
        with_it = n % 4 in (0, 3)  # with, without, without, with: a drift of the machine falls on both alike
        never_repack(model) if with_it else [setattr(m, "support_avx512bf16_for_cpu", v) for m, v in flags.items()]
        start = time.perf_counter()
        model(input_ids=x, labels=x).loss.backward()
        model.zero_grad()
        if n > 1:
            times[with_it].append(time.perf_counter() - start)
    return 100 * (statistics.median(times[True]) / statistics.median(times[False]) - 1)


def stage_rows():
    """Seconds and peak memory of each stage, from the receipts; of the base where it was trained here, not taken from the tool cache."""
    for stage, path in [("base", Path("outputs/nano/pirate.json")), *((s, Path(f"outputs/pirate-nano/{s}.json")) for s in STAGES)]:
        made = receipt.read(path)
        if stage == "base" and made["seconds"] < 1:
            continue
        yield f"stage {stage}", made["seconds"], None, f"s, {made['peak_memory_gib']:.1f} GiB at most"


def main(argv):
    if set(argv) - {"demo"}:
        print("usage: python -m scripts.bench [demo]", file=sys.stderr)
        return 2
    rows = []
    if argv:
        shutil.rmtree("outputs/pirate-nano", ignore_errors=True)
        rows.append(("make demo, tools in place", seconds("make", "demo") / 60, 6, "min"))
    else:
        seconds("make", "modelfile", "RECIPE=pirate-nano")
    rows += [
        ("make help", min(seconds("make", "help") for _ in range(3)), 1, "s"),
        ("make status", min(seconds("make", "status") for _ in range(3)), 1, "s"),
        ("make lint", min(seconds("make", "lint") for _ in range(3)), 1, "s"),
        ("make plan", min(seconds("make", "plan", "RECIPE=pirate") for _ in range(3)), 2, "s"),
        ("make doctor", min(seconds("make", "doctor") for _ in range(3)), 5, "s"),
        ("make ollama, nothing to do", nothing_to_do(), 1, "s"),
    ]
    peak, took = merge_memory()
    rows += [
        ("merge, peak memory", peak, 3, "× the largest shard (Llama 3 8B's shapes, 8 layers, a 5 GB shard)"),
        ("merge, 2.8 B parameters", took, None, "s"),
        ("plug-in, a training step", plug_in_overhead(), 1, "% longer"),
        *stage_rows(),
    ]
    for what, value, bound, unit in rows:
        verdict = "" if bound is None else f"  (≤ {bound}{'' if value <= bound else ': EXCEEDED'})"
        print(f"{what:<28}{value:>9.2f} {unit}{verdict}")
    files.write_if_changed(
        "reports/bench.json",
        json.dumps(
            {
                "machine": receipt.machine(),
                "commit": receipt.commit(),
                "rows": [{"what": w, "value": round(v, 3), "bound": b, "unit": u} for w, v, b, u in rows],
            },
            indent=2,
        )
        + "\n",
    )
    return int(any(b is not None and v > b for _, v, b, _ in rows))


if __name__ == "__main__":
    process.command(main)
