import json
import shutil
from pathlib import Path

import pytest

from conftest import one_line, room, run
from scripts import files, merge, receipt, recipe

SOURCE, MODULES = (
    Path("outputs/pirate-nano"),
    ("base_model.model.model.layers.0.self_attn.q_proj", "base_model.model.model.layers.1.mlp.up_proj"),
)
FIGURES = {
    "steps": 281,
    "epochs": 2.0,
    "first_loss": 4.9,
    "last_loss": 4.4,
    "eval_losses": [5.8, 4.9],
    "ranks": 1,
    "global_batch": 8,
    "resumed_from_step": 0,
}


def keep(folder, tensors=None, **config):
    """An adapter with a receipt, as training leaves it."""
    import torch
    from safetensors.torch import save_file

    random = torch.Generator().manual_seed(1)
    if tensors is None:
        tensors = {f"{m}.lora_{x}.weight": torch.randn((4, 24) if x == "A" else (40, 4), generator=random) for m in MODULES for x in "AB"}
    (folder / "adapter").mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter/adapter_model.safetensors", metadata={"format": "pt"})
    about = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "bias": "none", "modules_to_save": None, "use_dora": False} | config
    (folder / "adapter/adapter_config.json").write_text(json.dumps(about))
    (folder / "adapter/trainer_state.json").write_text(json.dumps({"global_step": 281, "max_steps": 281}))
    (folder / "adapter/tokenizer.json").write_text("{}")
    receipt.write(folder / "train.json", [], [folder / "adapter"], FIGURES, files.sha256)
    return tensors


@pytest.fixture
def made(copy):
    """A copy of the repository with a small hand-made adapter in place of pirate-nano's; yields its tensors."""
    return keep(SOURCE)


def strength(by, **env):
    name = f"pirate-nano+x_strength={by}"
    assert room("snapshot", name).returncode == 0
    return Path("outputs", name), room("strength", name, **env)


def weights(folder):
    from safetensors.torch import load_file

    return load_file(folder / "adapter/adapter_model.safetensors")


def delta(tensors, module, a=1.0, b=1.0):
    return (b * tensors[f"{module}.lora_B.weight"]) @ (a * tensors[f"{module}.lora_A.weight"])


def test_twice_is_exactly_twice_and_the_usual_advice_four_times(made):
    import torch

    folder, done = strength("2.0")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "strength    2 matrices × 2, ‖ΔW‖ off by at most 0; A and B both × 2 would have made it × 4\n"
    after = weights(folder)
    for module in MODULES:
        assert torch.equal(after[f"{module}.lora_B.weight"], 2 * made[f"{module}.lora_B.weight"])
        assert torch.equal(after[f"{module}.lora_A.weight"], made[f"{module}.lora_A.weight"])
        assert torch.equal(delta(after, module), 2 * delta(made, module))
        assert torch.equal(delta(made, module, 2, 2), 4 * delta(made, module))
    others = {p.name for p in (SOURCE / "adapter").iterdir()} - {"adapter_model.safetensors"}
    assert all((folder / "adapter" / n).read_bytes() == (SOURCE / "adapter" / n).read_bytes() for n in others) and len(others) == 3
    one = receipt.read(folder / "train.json")
    assert (
        str(SOURCE / "adapter") in one["inputs"]
        and list(one["outputs"]) == [str(folder / "adapter")]
        and receipt.holds(folder / "train.json", files.sha256)
    )
    figures = one["figures"]
    assert (figures["strength"], figures["matrices"], figures["largest_relative_deviation"], figures["had_both_been_scaled"]) == (
        2.0,
        2,
        0.0,
        4.0,
    )
    assert figures["eval_losses"] == FIGURES["eval_losses"] and figures["resumed_from_step"] == 281  # its seconds are no training's
    assert figures["lora_B_norm_max"] == pytest.approx(2 * max(made[f"{m}.lora_B.weight"].norm().item() for m in MODULES), rel=1e-4)
    assert recipe.read(folder / "recipe.yml")["x_strength"] == 2.0  # another seed's must not pass for its repeat


def test_any_other_factor_rounds_each_element_once(made):
    folder, done = strength("0.3")
    assert done.returncode == 0, done.stderr
    figures, after = receipt.read(folder / "train.json")["figures"], weights(folder)
    assert 0 < figures["largest_relative_deviation"] < 2**-24 and figures["had_both_been_scaled"] == pytest.approx(0.09)
    for module in MODULES:
        exact = 0.3 * made[f"{module}.lora_B.weight"].double()
        assert ((after[f"{module}.lora_B.weight"].double() - exact).abs() <= 2**-24 * exact.abs() * (1 + 1e-6)).all()


def test_bfloat16_stays_bfloat16(copy):
    import torch

    before = keep(SOURCE, {k: v.bfloat16() for k, v in keep(SOURCE).items()})
    folder, done = strength("4")
    assert done.returncode == 0, done.stderr
    after = weights(folder)
    assert all(t.dtype == torch.bfloat16 and torch.equal(t, before[k] * (4 if "lora_B" in k else 1)) for k, t in after.items())


@pytest.mark.parametrize(
    "config, words",
    [
        ({"modules_to_save": ["embed_tokens"]}, "modules_to_save: ['embed_tokens']"),
        ({"use_dora": True}, "use_dora: True"),
        ({"bias": "lora_only"}, "bias: lora_only"),
        ({"peft_type": "IA3"}, "peft_type: IA3"),
    ],
)
def test_an_adapter_that_is_more_than_pairs_is_refused(made, config, words):
    keep(SOURCE, made, **config)
    folder, done = strength("2.0")
    one_line(done, "adapter_config.json", words, "only what LoRA adds to a weight can be scaled")
    assert not (folder / "train.json").exists() and not (folder / "adapter").exists()


def test_what_is_refused_leaves_the_earlier_one_alone(made):
    import torch

    folder, _ = strength("2.0")
    before = files.sha256(folder)
    keep(SOURCE, made | {"base_model.model.lm_head.weight": torch.ones(2, 2)})
    one_line(strength("2.0")[1], "holds base_model.model.lm_head.weight, which is no lora_A or lora_B")
    keep(SOURCE, made)
    (SOURCE / "adapter/tokenizer.json").write_text("{ }")
    one_line(strength("2.0")[1], "not what outputs/pirate-nano/train.json says", "`make train RECIPE=pirate-nano` make it anew")
    (SOURCE / "train.json").unlink()
    one_line(strength("2.0")[1], "no trained adapter to scale; `make train RECIPE=pirate-nano` makes it")
    assert files.sha256(folder) == before


def test_a_factor_is_one_positive_number(made):
    for by in ("0", "-1", "nan", ".inf", "two", "2,0", "1+x_strength=2", "true"):
        one_line(room("snapshot", f"pirate-nano+x_strength={by}"), "not one positive number; `make strength RECIPE=pirate-nano BY=2.0`")
    one_line(strength("1e39")[1], "x_strength=1e+39", "is then no finite torch.float32; take a smaller one")
    one_line(strength("1e-45")[1], "x_strength=1e-45", "lora_B underflows; take a larger one")
    assert room("strength", "pirate-nano").returncode == 2
    said = run("make", "strength", "RECIPE=pirate-nano")
    assert said.returncode == 2 and "say how much: make strength RECIPE=pirate-nano BY=2.0" in said.stderr
    with pytest.raises(ValueError, match="has no key 'x_hardwar' "):  # SET takes x_strength alone of what stands in no recipe
        recipe.load("pirate-nano+x_hardwar=2")


def test_names():
    assert (
        recipe.unscaled("pirate-nano+seed=1+x_strength=2.0+lora_r=8") == "pirate-nano+seed=1+lora_r=8"
        and recipe.unscaled("pirate") == "pirate"
    )
    assert recipe.strength("pirate+x_strength=1e-1") == 0.1 and recipe.strength("pirate+seed=1") is None
    assert recipe.load("pirate-nano+x_strength=2.0")["x_strength"] == 2.0 and "x_strength" not in recipe.load("pirate-nano")


def test_make_scales_and_does_not_train(copy):
    """What would be run, with the source trained and without; file times decide, so nothing of it is real here."""
    said = run("make", "-n", "strength", "RECIPE=pirate-nano", "SET=seed=1", "BY=2.0").stdout
    assert "scripts.train pirate-nano+seed=1\n" in said and said.index("scripts.train") < said.index(
        "scripts.strength pirate-nano+seed=1+x_strength=2.0"
    )
    assert "scripts.train pirate-nano+seed=1+" not in said
    assert "scripts.preprocess pirate-nano+seed=1+" not in said
    said = run("make", "-n", "merge", "RECIPE=pirate-nano", "SET=seed=1 x_strength=2.0").stdout
    assert said.index("scripts.strength pirate-nano+seed=1+x_strength=2.0") < said.index("scripts.merge pirate-nano+seed=1+x_strength=2.0")


def test_the_chain_goes_on_with_twice_the_adapter(chained):
    import torch

    name = "pirate-nano+x_strength=2.0"
    trained = receipt.read(SOURCE / "train.json")
    done = run("make", "strength", "RECIPE=pirate-nano", "BY=2.0")
    assert done.returncode == 0, done.stdout + done.stderr
    done = run("make", "merge", "RECIPE=pirate-nano", "SET=x_strength=2.0")
    assert done.returncode == 0 and "strength    21 matrices" not in done.stdout, done.stdout + done.stderr  # it stands
    assert receipt.read(SOURCE / "train.json") == trained
    before, after = weights(SOURCE), weights(Path("outputs", name))
    for module in (k.removesuffix(".lora_A.weight") for k in before if k.endswith(".lora_A.weight")):
        assert torch.equal(delta(after, module), 2 * delta(before, module)), module
        assert torch.equal(delta(before, module, 2, 2), 4 * delta(before, module)), module
    factor, where = (
        merge.scale(SOURCE / "adapter"),
        {p: merge.index(p) for p in (Path("outputs/nano/pirate"), SOURCE / "merged", Path("outputs", name, "merged"))},
    )
    module = "model.layers.1.self_attn.q_proj"
    base, once, twice = (merge.get(index, f"{module}.weight")[0] for index in where.values())
    base, expected = merge.bases.round_trip(base).float(), 2 * factor * delta(before, f"base_model.model.{module}")
    assert ((twice.float() - base - expected).norm() / expected.norm()).item() < 0.02  # bfloat16 of the merged weights
    assert ((twice.float() - base).norm() / (once.float() - base).norm()).item() == pytest.approx(2, abs=0.02)
    status = [line.split() for line in room("status").stdout.splitlines()]
    assert next(row for row in status if row[0] == name)[1:4] == ["-", "stands", "stands"]
    held = room("lineage", name)
    assert held.returncode == 0 and "strength    adapter" in held.stdout and "train       outputs/pirate-nano/adapter" in held.stdout, (
        held.stdout + held.stderr
    )
    report = room("report", name)
    assert report.returncode == 0 and "x_strength: 2.0" in Path("reports", name, "README.md").read_text(), report.stderr
    one_line(room("reproduce", name), "only scaled, exactly, from pirate-nano; `make reproduce RECIPE=pirate-nano` runs that one again")
    shutil.rmtree(SOURCE / "prepared")
    broken = room("lineage", name)
    assert broken.returncode == 1 and "`rm 'outputs/pirate-nano/preprocess.json'` and `make preprocess RECIPE=pirate-nano`" in broken.stderr
