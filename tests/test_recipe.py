import pytest
import yaml

from scripts import recipe


def test_the_pirates_have_the_same_keys_in_the_same_order():
    keys = [[k for k in recipe.read(f"recipes/{name}.yml") if k != "x_waive"] for name in ("pirate", "pirate-nano")]
    assert keys[0] == keys[1]


RUNS = {
    "1b-r16": ("1B", 16, 10_000, 600),
    "1b-r64": ("1B", 64, 10_000, 600),
    "1b-r64-30k": ("1B", 64, 30_000, 600),
    "3b-r64-30k": ("3B", 64, 30_000, 400),
}


@pytest.mark.parametrize("run", RUNS)
def test_the_finetome_recipes_are_the_study_and_its_proportions(run):
    """What sets the runs apart is base, rank, rows and steps; the nano twin has the same keys, and a quarter of the steps on rows in the ratio 1 to 3."""
    full, nano = (recipe.read(f"recipes/finetome-{run}{kind}.yml") for kind in ("", "-nano"))
    assert [k for k in full if k != "x_waive"] == [k for k in nano if k != "x_waive"]
    size, rank, rows, steps = RUNS[run]
    assert full["base_model"] == f"unsloth/Llama-3.2-{size}-Instruct"
    assert nano["base_model"] == "outputs/nano/finetome" + "-large" * (size == "3B")
    for cfg, scale in ((full, 1), (nano, 25)):
        assert (cfg["lora_r"], cfg["lora_alpha"]) == (rank, rank) and cfg["datasets"][0]["split"] == f"train[:{rows // scale}]"
        assert (cfg["micro_batch_size"], cfg["gradient_accumulation_steps"]) == (2, 4) and cfg["export"]["quantize"][0] == "Q8_0"
    assert (full["max_steps"], nano["max_steps"]) == (steps, steps // 4)
    first = recipe.read("recipes/finetome-1b-r16.yml")
    apart = {
        "base_model",
        "lora_r",
        "lora_alpha",
        "datasets",
        "dataset_prepared_path",
        "output_dir",
        "max_steps",
        "eval_steps",
        "save_steps",
    }
    assert {k for k in full if full[k] != first[k]} <= apart


def test_the_recipe_is_what_the_run_it_is_modelled_on_was():
    r = recipe.read("recipes/pirate.yml")
    assert (r["adapter"], r["lora_r"], r["lora_alpha"], r["lora_dropout"], r["num_epochs"], float(r["learning_rate"])) == (
        "qlora",
        64,
        32,
        0.05,
        2,
        2e-4,
    )
    assert r["special_tokens"]["pad_token"] not in r["eot_tokens"]


def test_every_key_is_one_that_axolotl_knows():
    """Axolotl drops unknown keys without a word."""
    from axolotl.integrations.liger.args import LigerArgs
    from axolotl.utils.schemas.config import AxolotlInputConfig

    legal = set(AxolotlInputConfig.model_fields) | set(LigerArgs.model_fields)
    for name in recipe.names():
        assert {k for k in recipe.read(f"recipes/{name}.yml") if not k.startswith("x_")} <= legal


def test_a_variant_changes_its_keys_and_its_folder():
    r = recipe.load("pirate-nano+lora_r=16+learning_rate=1e-4")
    assert r["lora_r"] == 16 and float(r["learning_rate"]) == 1e-4
    assert r["output_dir"] == "outputs/pirate-nano+lora_r=16+learning_rate=1e-4/training"
    assert recipe.ollama_name("pirate+lora_r=16+seed=1") == "pirate:lora_r-16-seed-1"


@pytest.mark.parametrize(
    "name, words",
    [
        ("pirat", r"did you mean pirate\?\); there are: .*pirate, .*pirate-nano"),
        ("nothing-like-it", "there are: .*pirate, .*pirate-nano"),
        ("pirate+lora_rr=3", r"no key 'lora_rr' \(did you mean lora_r\?\)"),
        ("pirate+lora_r", "not key=value"),
        ("pirate+base_model=../x", "not key=value"),
    ],
)
def test_what_does_not_exist_is_named_with_what_does(name, words):
    with pytest.raises(ValueError, match=words):
        recipe.load(name)


@pytest.mark.parametrize(
    "text, line", [("a: 1\nb: [1,\nc: 2\n", ":4: .*in what line 2 begins"), ("a: 1\n\tb: 2\n", ":2:"), ("- a\n", ":1:"), ("", ":1:")]
)
def test_broken_yaml_names_the_line(tmp_path, text, line):
    (tmp_path / "x.yml").write_text(text)
    with pytest.raises(ValueError, match=f"x.yml{line}"):
        recipe.read(tmp_path / "x.yml")


def test_gpus_keep_the_global_batch():
    r = recipe.load("pirate")
    assert recipe.global_batch(r) == 8
    assert [recipe.accumulation(r, n) for n in (1, 2, 4, 8)] == [8, 4, 2, 1]
    assert recipe.accumulation(r, 2, nodes=2) == 2
    with pytest.raises(ValueError, match="do not divide the global batch of 8; GPUS can be 1, 2, 4, 8"):
        recipe.accumulation(r, 3)


def test_a_familys_modelfile_serves_its_twins():
    assert recipe.modelfile("pirate-nano+seed=1") == recipe.modelfile("pirate") and recipe.modelfile("pirate").name == "pirate.Modelfile"


def test_a_modelfile_is_read_as_ollama_writes_it(tmp_path):
    (tmp_path / "M").write_text(
        '# x\nFROM ./a.gguf\nTEMPLATE """a\n\n{{ .Content }}\n"""\nSYSTEM "be kind"\nPARAMETER stop <|a|>\nPARAMETER stop "<|b c|>"\nparameter num_ctx 10'
    )
    assert recipe.read_modelfile(tmp_path / "M") == {
        "from": "./a.gguf",
        "template": "a\n\n{{ .Content }}\n",
        "system": "be kind",
        "parameters": {"stop": ["<|a|>", "<|b c|>"], "num_ctx": ["10"]},
    }
    (tmp_path / "M").write_text("FROM x\nFRM y\n")
    with pytest.raises(ValueError, match="M:2: unknown instruction FRM"):
        recipe.read_modelfile(tmp_path / "M")


def test_deepspeed_config_is_deepspeeds_json():
    assert yaml.safe_load(open(recipe.read("recipes/pirate.yml")["deepspeed"]))["zero_optimization"]["stage"] == 1
