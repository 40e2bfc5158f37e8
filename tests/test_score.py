"""Scoring for real: every stage of the nano chain, both generations of Ollama, and lm-eval on a task of our own."""

import json
import math
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from conftest import ROOT, one_line, room
from scripts import data, receipt, recipe
from scripts.scoring import backends, checks, record, servers, statistics, tasks, weights

ASK = [{"role": "user", "content": "Which city?"}]
CALM = {"OMP_NUM_THREADS": "1"}  # a model this small gains nothing from more threads, and on a busy machine they wait for each other


def row(reply="Paris", **checks):
    return {"id": "x", "messages": [*ASK, {"role": "assistant", "content": reply}]} | ({"checks": checks} if checks else {})


def judge(reply, ended=True, voice=None, system=None, **asked):
    return checks.judge(row(**asked), system, reply, ended, voice)


@pytest.fixture(scope="session")
def scored(chain):
    """The finished chain, its four stages without a server of the user's scored once: (folder, what was printed)."""
    done = room("score", "pirate-nano", "base", "adapter", "merged", "gguf", cwd=ROOT, **CALM)
    assert done.returncode == 0, done.stdout + done.stderr
    return chain, done.stdout


@pytest.fixture
def kept(scored, chained):
    """A copy of the repository with the scored chain, to break."""
    out = chained / "outputs/pirate-nano"
    shutil.copy2(scored[0] / "score.json", out)
    shutil.copytree(scored[0] / "eval", out / "eval")
    return out


# --- what a row can ask ---
@pytest.mark.parametrize(
    "reply, answer",
    [
        *(
            (text, "B")
            for text in ["B", "b", "B)", "(b)", "B.", "**B.**", "Option B", "B - Paris", "B, a fine choice", "\\boxed{B}", "B: Paris"]
        ),
        ("The answer is B because A is wrong.", "B"),
        ("Option A is wrong, so the answer must be **(D)**.", "D"),
        ("Let me think.\nA is too small.\n\nB", "B"),
        ("A is too small. B is right.", "B"),
        ("It is not A but B.", "B"),
        ("If the answer were A, it would float; the answer is C.", "C"),
        ("a", "A"),
        ("(a) Rome", "A"),
        ("A is the answer", "A"),
        ("A good question; the answer is C.", "C"),
        ("A good question.", None),
        ("The answer is a matter of taste.", None),
        ("The answer is not B.", None),
        ("Not B.", None),
        ("Both B and C are true.", None),
        ("C++ or a B-tree, e.g. in Java", None),
        ("", None),
    ],
)
def test_the_letter_that_a_reply_answers_with(reply, answer):
    assert checks.letter(reply) == answer


def test_f1_is_squads():
    """The published script's definition: lower case, no punctuation, no articles; 2PR / (P + R) over words as a bag."""
    assert checks.f1("The cat sat.", "a cat sat") == 1
    assert checks.f1("the cat", "the dog") == 0
    assert checks.f1("a cat sat down", "cat sat on mat") == pytest.approx(2 * (2 / 3) * (2 / 4) / (2 / 3 + 2 / 4))
    assert checks.f1("sat sat", "sat") == pytest.approx(2 / 3), "a word counts as often as both have it"


def test_each_check_and_what_passes():
    assert judge("  paris.", exact="Paris") == {"exact": True, "ends": True, "leak": True}
    assert not judge("Paris, France", exact="Paris")["exact"]
    assert judge("It is Paris", contains=["Par.s", "^It"])["contains"] and not judge("It is Paris", contains=["Paris", "Rome"])["contains"]
    assert judge("Paris", never=["(?i)rome"])["never"] and not judge("ROME", never=["(?i)rome"])["never"]
    assert judge("x", ended=False, contains=["x"])["ends"] is False and "ends" not in judge("x", ended=False, ends=False)
    assert judge("x", voice=True) == {"style": True, "ends": True, "leak": True}, "without checks of its own a row asks for the voice"
    assert "style" not in judge("x", voice=True, contains=["x"]) and judge("x", voice=False, style=True)["style"] is False
    half = row("in the city of Paris", f1=0.5)
    for reply, f1 in [("in Paris", 4 / 6), ("Paris", 0.4), ("the Rome", 0.0)]:
        found = checks.judge(half, None, reply, True, None)
        assert found["f1"] == pytest.approx(f1, abs=1e-4) and checks.passed(half, found) == (f1 >= 0.5)
    assert checks.judge(row(contains=["x"], exact=None), None, "x", True, None).keys() == {"contains", "ends", "leak"}, (
        "a null asks nothing"
    )


def test_f1_with_the_best_of_several_answers():
    """As SQuAD's test set is scored: the maximum over the answers, whichever of them the row's own reply is."""
    several = row("a composer", f1=["a composer", "somebody who writes music"])
    for reply, f1 in [("Composer.", 1.0), ("who writes music", 6 / 7), ("he writes", 2 / 6), ("a painter", 0.0), ("", 0.0)]:
        found = checks.judge(several, None, reply, True, None)
        assert found["f1"] == pytest.approx(f1, abs=1e-4) and checks.passed(several, found) == (f1 >= 0.5), reply
    only = row("Paris", f1=["Rome"])
    assert not checks.passed(only, checks.judge(only, None, "Paris", True, None)), "the row's own reply counts if it is in the list"
    edge = row("x", f1=["one two three"])
    assert checks.passed(edge, checks.judge(edge, None, "one", True, None)) and checks.judge(edge, None, "one", True, None)["f1"] == 0.5


@pytest.mark.parametrize(
    "reply",
    [
        "system\n\nCutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\nAye!",
        "Aye.<|eot_id|>",
        "Aye.<|start_header_id|>user<|end_header_id|>\n\nMore",
        "Aye.\nassistant\n\nAye again.",
        "Aye. [INST] More [/INST]",
        "Aye.\n### Response:\nAye again.",
        "Remember: you are a HELPFUL   assistant.",
    ],
)
def test_a_reply_that_shows_the_prompts_machinery_leaks(reply):
    assert not checks.clean(reply, "You are a helpful assistant.")


def test_a_reply_may_speak_of_users_and_systems():
    for reply in ["The user installs the system.", "User accounts: ask the assistant.", "<b>x</b> | y |> z", "Be a helpful assistant.", ""]:
        assert checks.clean(reply, "You are a helpful assistant."), reply
    assert checks.clean("Be brief.", "Be brief."), "too short a system message to be known again"


def test_every_faulty_check_is_named_with_its_line_before_any_model_is_loaded(copy):
    path = Path("datasets/pirate/eval.jsonl")
    rows = [json.loads(line) for line in path.read_text().splitlines()[:8]]
    faults = [{"exakt": "x"}, {"choice": "Z"}, {"contains": "x"}, {"never": ["("]}, {"f1": 2}, {"ends": "yes"}, ["x"], {"exact": " . "}]
    words = ["unknown check 'exakt' (did you mean exact?)", "one letter, A to H", "a list of", "a list of", "at most 1", "true or false"]
    words += ["`checks` must be an object", "the text of the reply"]
    path.write_text("".join(json.dumps(r | {"checks": c}) + "\n\n" for r, c in zip(rows, faults)))
    Path("outputs/pirate-nano").mkdir(parents=True)
    (Path("outputs/pirate-nano") / "recipe.yml").write_text(Path("recipes/pirate-nano.yml").read_text())
    line = one_line(room("score", "pirate-nano", "base"))
    for n, (found, word) in enumerate(zip(line.split("; datasets/"), words)):
        assert f"eval.jsonl:{2 * n + 1}: " in found and word in found, found  # each has an empty line behind it
    Path("datasets/pirate/ten.jsonl").write_text('{"messages": [{"role": "user", "content": "x"}]}\n{"messages": []}\n')
    path.write_text(json.dumps(rows[0]) + "\n")
    one_line(room("score", "pirate-nano", "base"), "datasets/pirate/ten.jsonl:2: message 1 has role 'assistant'")
    with pytest.raises(ValueError, match="needs plain twins"):
        path.write_text(json.dumps(rows[0] | {"checks": {"style": True}}) + "\n")
        checks.refuse([path], twins=False)
    for value in ([], ["x", 3], ["The."], [["x"]], 0, True, "x"):
        path.write_text(json.dumps(rows[0] | {"checks": {"f1": value}}) + "\n")
        with pytest.raises(ValueError, match="eval.jsonl:1: checks.f1 is .*; give it the F1 that passes, .* or the answers to accept"):
            checks.refuse([path], twins=False)
    path.write_text("".join(json.dumps(rows[0] | {"checks": {"f1": v}}) + "\n" for v in (["x"], None, 0.5, ["y", "z"])))
    with pytest.raises(ValueError, match="^datasets/pirate/eval.jsonl:3: checks.f1 is a number in some rows and a list in others; [^;]*$"):
        checks.refuse([path], twins=False)


def test_datasets_and_axolotl_read_rows_with_and_without_checks(tmp_path, chain):
    """eval.jsonl is also what training evaluates on: `datasets` must load it, and Axolotl's strategy must learn the same tokens from every row."""
    from axolotl.prompt_strategies import chat_template
    from axolotl.utils.dict import DictDefault
    from datasets import load_dataset

    asked = [{}, {"checks": {"exact": "x", "ends": False}}, {}, {"checks": {"contains": ["a"], "never": ["b"], "f1": 1}}]
    asked += [{"checks": {"choice": "B", "f1": 0.5, "style": True, "leak": False}}]
    rows = data.read("datasets/pirate/eval.jsonl")[:5]
    (tmp_path / "eval.jsonl").write_text("".join(json.dumps(r | c) + "\n" for r, c in zip(rows, asked)))
    checks.refuse([tmp_path / "eval.jsonl"], twins=True)
    loaded = load_dataset("json", data_files=str(tmp_path / "eval.jsonl"), split="train", cache_dir=str(tmp_path / "cache"))
    assert len(loaded) == 5 and {k: v for k, v in loaded[1]["checks"].items() if v is not None} == {"exact": "x", "ends": False}
    cfg, tokenizer = recipe.read(chain / "recipe.yml"), weights.tokenizer_of(chain, {})
    strategy = chat_template.load(tokenizer, DictDefault(cfg), cfg["test_datasets"][0])
    ready = loaded.map(strategy.tokenize_prompt, batched=True, remove_columns=loaded.column_names)
    assert [(r["input_ids"], r["labels"]) for r in ready] == weights.labelled(rows, tokenizer, cfg)


def test_the_judge_of_voices_knows_the_voice_and_is_refused_where_there_is_none(copy):
    has_voice, accuracy = checks.style("pirate")
    assert accuracy >= 0.95
    assert has_voice(["Arr, ye'll be wantin' a sharp knife fer that, matey.", "You will want a sharp knife for that."]) == [True, False]
    for name in ("train", "eval"):  # twins without a voice: the judge must say that it can't tell
        shutil.copy2(f"datasets/pirate/{name}-plain.jsonl", f"datasets/pirate/{name}.jsonl")
    with pytest.raises(ValueError, match="style classifier tells only 50% of held-out replies"):
        checks.style("pirate")


# --- how sure ---
def test_intervals_hold_the_truth_as_often_as_they_say():
    import numpy as np

    rng, held = np.random.default_rng(0), 0
    for _ in range(60):
        found = statistics.interval(rng.random(100) < 0.8)
        held += found["low"] <= 0.8 <= found["high"]
    assert 50 <= held <= 60, held  # 57 of 60 expected
    assert statistics.interval([True] * 100) == {"mean": 1.0, "low": 0.963, "high": 1.0, "n": 100}, "Wilson 1927: n / (n + 1.96²)"
    assert statistics.interval([False])["high"] == pytest.approx(0.7935, abs=1e-4)
    same = statistics.interval([0.3] * 20)
    assert same["low"] < 0.3 < same["high"]
    assert statistics.interval([1, 0, 0.5] * 9) == statistics.interval([1, 0, 0.5] * 9), "seeded"


def test_perplexity_weighs_tokens_and_not_rows():
    found = statistics.perplexity([math.log(2) * 10, math.log(8) * 30], [10, 30])
    assert (
        found["mean"] == pytest.approx(2 ** (10 / 40) * 8 ** (30 / 40), abs=1e-4)
        and 2 <= found["low"] < found["mean"] < found["high"] <= 8.0001
    )
    assert statistics.perplexity([2.0], [2]) == {"mean": 2.7183, "n": 1}


def test_two_runs_over_the_same_rows():
    import numpy as np
    from scipy import stats

    a, b = np.zeros(20), np.array([1.0] * 8 + [0.0] * 12)
    found = statistics.paired(a, b)
    assert found["difference"] == 0.4 and 0 < found["low"] < 0.4 < found["high"] < 0.7
    assert found["p"] == pytest.approx(stats.binomtest(8, 8).pvalue, abs=0.005), "eight rows changed, all one way: the sign test"
    back = statistics.paired(b, a)
    assert (back["difference"], back["p"]) == (-0.4, found["p"])
    none = statistics.paired(a, a)
    assert none["p"] == 1 and none["low"] == -none["high"] == -statistics.interval([0] * 20)["high"]
    with pytest.raises(ValueError, match="19 and 20 rows"):
        statistics.paired(a[1:], b)


# --- the stages ---
def test_it_learned(scored):
    """The base speaks plainly, the tuned model like a pirate, and replies end."""
    folder, printed = scored
    figures = receipt.read(folder / "score.json")["figures"]
    stages = figures["stages"]
    assert (figures["prompts"], figures["seed"], figures["decoding"]) == (100, 1, "greedy") and figures["classifier_accuracy"] >= 0.95
    assert list(stages) == ["base", "adapter", "merged", "gguf"] or set(stages) >= {"base", "adapter", "merged", "gguf"}
    assert stages["base"]["style"]["mean"] <= 0.05
    for stage in ("adapter", "merged", "gguf"):
        assert stages[stage]["style"]["mean"] >= 0.80, (stage, stages[stage])
        assert stages[stage]["ends"]["high"] >= 0.95, "greedily a model this small may repeat itself without end, now and then"
        assert stages[stage]["tokens_per_s"] > 0
    for found in stages.values():
        for at in (v for v in found.values() if isinstance(v, dict)):
            assert at["low"] <= at["mean"] <= at["high"] and at["n"] == 100
        assert found["passed"]["mean"] <= min(found[k]["mean"] for k in ("style", "ends", "leak"))
    assert all(re.search(rf"^score +{stage} +style +\d+% \(\d+–\d+\) .*tokens/s$", printed, re.M) for stage in ("base", "merged", "gguf"))


def test_every_reply_is_kept(scored):
    folder, _ = scored
    for stage in ("base", "adapter", "merged", "gguf"):
        lines, ten = (record.read(p) for p in record.replies_of("pirate-nano", stage))
        assert [line["id"] for line in lines] == [r["id"] for r in data.read("datasets/pirate/eval.jsonl")] and len(ten) == 10
        assert set(lines[0]) == {"id", "kind", "prompt", "reply", "ended", "checks", "passed"} | (
            {"nll", "tokens"} if stage != "gguf" else set()
        )
        assert set(ten[0]) == {"id", "prompt", "reply", "ended"}
        shown = receipt.read(folder / "score.json")["figures"]["stages"][stage]
        assert shown["ends"]["mean"] == sum(line["ended"] for line in lines) / 100


def test_labels_are_those_that_training_prepared(chain):
    """All 1,224 rows, token for token: the reply and its end carry the loss, here as in Axolotl's prepared data."""
    from datasets import load_from_disk

    cfg = recipe.read(chain / "recipe.yml")
    prepared = [(r["input_ids"], r["labels"]) for p in chain.glob("prepared/*/dataset_info.json") for r in load_from_disk(str(p.parent))]
    rows = [r for name in ("train", "eval") for r in data.read(f"datasets/pirate/{name}.jsonl")]
    assert sorted(prepared) == sorted(weights.labelled(rows, weights.tokenizer_of(chain, cfg), cfg))


def test_perplexity_of_the_adapter_is_what_training_measured(scored):
    """The trainer's eval_loss is the mean over batches of four, put together by length at random; ours weighs every token alike.

    Averaged as the trainer does, over many such orders, our losses must hold the trainer's figure; and both must be within 0.01 nats of each other.
    """
    import torch
    from transformers.trainer_pt_utils import LengthGroupedSampler

    folder, _ = scored
    trained = receipt.read(folder / "train.json")["figures"]["eval_losses"]
    stages = receipt.read(folder / "score.json")["figures"]["stages"]
    assert math.log(stages["adapter"]["ppl"]["mean"]) == pytest.approx(trained[-1], abs=0.01)
    assert math.log(stages["base"]["ppl"]["mean"]) == pytest.approx(trained[0], abs=0.02), (
        "before the first step the adapter is the base, NF4-rounded"
    )
    assert stages["merged"]["ppl"]["mean"] == pytest.approx(stages["adapter"]["ppl"]["mean"], rel=1e-3)
    lines, means = record.read(folder / "eval/adapter.jsonl"), []
    for seed in range(50):
        order = list(LengthGroupedSampler(4, lengths=[line["tokens"] for line in lines], generator=torch.Generator().manual_seed(seed)))
        batches = [[lines[i] for i in order[at : at + 4]] for at in range(0, len(order), 4)]
        means.append(sum(sum(x["nll"] for x in b) / sum(x["tokens"] for x in b) for b in batches) / len(batches))
    assert min(means) - 0.002 <= trained[-1] <= max(means) + 0.002


def test_and_so_it_speaks_through_ollama(ollama, scored):
    folder, _ = scored
    assert room("ollama", "pirate-nano").returncode == 0
    done = room("score", "pirate-nano", "ollama")
    assert done.returncode == 0, done.stdout + done.stderr
    stages = receipt.read(folder / "score.json")["figures"]["stages"]
    assert stages["ollama"]["style"]["mean"] >= 0.80 and "ppl" not in stages["ollama"]
    assert {"base", "merged"} <= set(stages), "what was scored before stays"
    drawn = room("score", "pirate-nano", "ollama", "--sample", "--limit", "100", "--json")  # as people run it
    drawn = json.loads(drawn.stdout)["stages"]["ollama"]
    assert drawn["style"]["mean"] >= 0.80 and drawn["ends"]["mean"] >= 0.95, drawn
    one, other = ({line["id"]: line["reply"] for line in record.read(record.replies_of("pirate-nano", s)[0])} for s in ("gguf", "ollama"))
    alike = sum(one[i].startswith(other[i]) or other[i].startswith(one[i]) for i in one)  # Ollama cuts replies that repeat themselves
    assert alike >= 50, (
        "the same file, greedily: mostly the same replies; where two tokens are all but tied, another engine's rounding decides"
    )
    subprocess.run([os.environ["OLLAMA"], "rm", "pirate-nano"], check=True, capture_output=True)
    one_line(room("score", "pirate-nano", "ollama"), f"Ollama at {ollama} has no model 'pirate-nano'", "`make ollama RECIPE=pirate-nano`")


def test_twice_the_same_bytes_and_a_quick_look_leaves_the_receipt_alone(kept):
    before = (kept / "score.json").read_bytes()
    looks = []
    for _ in range(2):
        done = room("score", "pirate-nano", "merged", "--limit", "4", "--json", **CALM)
        assert done.returncode == 0, done.stdout + done.stderr
        figures = json.loads(done.stdout)
        assert figures["prompts"] == 4 and figures["stages"]["merged"]["ends"]["n"] == 4
        looks.append([(kept / f"eval/limit-4/{name}.jsonl").read_bytes() for name in ("merged", "ten-merged")])
    assert looks[0] == looks[1] and len(looks[0][0].splitlines()) == 4
    assert (kept / "score.json").read_bytes() == before


def test_sampled_with_the_modelfiles_parameters(kept):
    """Replies as people get them: the voice, and an end. The receipt says how they were drawn, and does not mix them with the greedy ones."""
    done = room("score", "pirate-nano", "merged", "gguf", "--sample", "--parallel", "2", **CALM)
    assert done.returncode == 0, done.stdout + done.stderr
    figures = receipt.read(kept / "score.json")["figures"]
    assert figures["decoding"] == "sampled: temperature=0.7 top_k=40 top_p=0.9 min_p=0.0 repeat_penalty=1.0"
    assert list(figures["stages"]) == ["merged", "gguf"], "the greedy ones are gone, with their replies"
    assert sorted(p.name for p in (kept / "eval").glob("*.jsonl")) == ["gguf.jsonl", "merged.jsonl", "ten-gguf.jsonl", "ten-merged.jsonl"]
    for stage, voice in (("merged", 0.80), ("gguf", 0.75)):
        assert figures["stages"][stage]["style"]["mean"] >= voice and figures["stages"][stage]["ends"]["mean"] >= 0.95, figures["stages"][
            stage
        ]


def test_the_receipt_never_mixes_models(kept, monkeypatch):
    cfg = recipe.read(kept / "recipe.yml")
    made = receipt.read(kept / "score.json")
    asked = {k: v for k, v in made["figures"].items() if k not in ("stages", "tasks")}
    shared = [Path(p) for p in made["inputs"] if p.startswith("datasets/")]

    def still(**other):
        backends.sha256.cache_clear()
        return set(record.still("pirate-nano", cfg, shared, asked | other)["stages"]) - {"ollama"}

    assert still() == {"base", "adapter", "merged", "gguf"}
    assert {f"outputs/{p}" for p in ("nano/pirate", "pirate-nano/adapter", "pirate-nano/merged")} <= set(made["inputs"])
    assert still(decoding="sampled: …") == still(prompts=99) == set()
    lines = (kept / "eval/base.jsonl").read_text()
    (kept / "eval/base.jsonl").write_text(lines[:-100])
    assert still() == {"adapter", "merged", "gguf"}, "half of its replies"
    (kept / "adapter/tokenizer_config.json").write_text("{}")
    assert still() == {"gguf"}, "merged was made from another adapter"
    Path("datasets/pirate/eval.jsonl").write_text("\n".join(Path("datasets/pirate/eval.jsonl").read_text().splitlines()[1:]))
    assert still() == set()


def test_the_ten_side_by_side(kept):
    shown = room("score", "pirate-nano", "--ten", COLUMNS="100")
    assert shown.returncode == 0, shown.stderr
    lines = shown.stdout.splitlines()
    assert re.fullmatch(r"base +│ (gguf|ollama)", lines[0]) and max(map(len, lines)) <= 100
    assert sum(line.startswith(">>> ") for line in lines) == 10 and any(line.count("│") == 1 and "matey" in line for line in lines[1:])
    shutil.rmtree(kept / "eval")
    one_line(room("score", "pirate-nano", "--ten"), "no replies to the fixed prompts yet", "`make eval RECIPE=pirate-nano`")


# --- what does not stand ---
def test_a_stage_that_is_missing_is_one_line_with_the_command_that_makes_it(chained):
    folder = Path("outputs/pirate-nano")
    cfg = recipe.read(folder / "recipe.yml")

    def refused(stage):
        backends.sha256.cache_clear()
        with pytest.raises(ValueError) as error:
            backends.check("pirate-nano", stage, cfg)
        return str(error.value)

    (folder / "merged/config.json").write_text("{}")
    assert "outputs/pirate-nano/merged: has changed since" in refused("merged") and "`make merge RECIPE=pirate-nano`" in refused("merged")
    assert "outputs/pirate-nano/merged: has changed since" in refused("gguf")
    (folder / "gguf/Modelfile").unlink()
    assert "Modelfile: is gone; `make modelfile RECIPE=pirate-nano` makes it again" in refused("ollama")
    (folder / "train.json").unlink()
    state = json.loads((folder / "adapter/trainer_state.json").read_text()) | {"global_step": 71}
    shutil.rmtree(folder / "training")
    (folder / "training/checkpoint-71").mkdir(parents=True)
    (folder / "training/checkpoint-71/trainer_state.json").write_text(json.dumps(state))
    assert refused("adapter") == "outputs/pirate-nano: training has not finished (step 71 of 281); `make train RECIPE=pirate-nano` goes on"
    (folder / "merge.json").unlink()
    both = one_line(
        room("score", "pirate-nano", "adapter", "merged"), "training has not finished", "no merge.json, so there is nothing to score"
    )
    assert both.count("`make ") == 2, "all of them at once"
    shutil.rmtree("outputs/nano")
    one_line(room("score", "pirate-nano", "base"), "no base model there; `make base RECIPE=pirate-nano` makes the nano one")


def test_nothing_there_wrong_usage_no_server(chained):
    one_line(room("score", "pirate"), "outputs/pirate: nothing was made there yet; `make eval RECIPE=pirate`")
    one_line(room("score", "pirrate"), "no recipe 'pirrate' (did you mean pirate?)")
    assert room("score", "pirate-nano", "neither").returncode == 2 and room("score", "pirate-nano", "--limit", "0").returncode == 2
    Path("outputs/pirate-nano/ollama.json").unlink(missing_ok=True)
    one_line(room("score", "pirate-nano", "ollama", OLLAMA_HOST="127.0.0.1:1"), "no ollama.json", "`make ollama RECIPE=pirate-nano`")
    assert recipe.command("train", "pirate+lora_r=16+seed=1") == '`make train RECIPE=pirate SET="lora_r=16 seed=1"`'


def test_ollama_not_running(monkeypatch, chain):
    monkeypatch.setenv("OLLAMA_HOST", "127.0.0.1:1")
    with pytest.raises(ValueError, match="Ollama is not running at http://127.0.0.1:1; start it with `ollama serve`"):
        servers.held("pirate-nano")


def test_the_first_error_of_a_server_ends_it():
    def ask(n):
        if n == 3:
            raise ValueError("three")
        return n

    assert servers.several(ask, range(3), 2, lambda n: None) == [0, 1, 2]
    with pytest.raises(ValueError, match="three"):
        servers.several(ask, range(1000), 2, lambda n: None)


# --- lm-eval ---
def test_a_task_of_lm_eval_through_axolotl(kept, tmp_path):
    """A task of our own over local rows, for the hub is out of reach: which of two ends is more likely."""
    rows = [{"ask": f"{n} + 1 =", "ends": [f" {n + 1}", " a long and most unlikely end indeed"], "right": 0} for n in range(4)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (tmp_path / "short.yaml").write_text(
        f"task: short\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {tmp_path}/rows.jsonl}}}}\ntest_split: test\noutput_type: multiple_choice\n"
        'doc_to_text: "{{ask}}"\ndoc_to_choice: "{{ends}}"\ndoc_to_target: "{{right}}"\nmetric_list: [{metric: acc}]\n'
    )
    stages = set(receipt.read(kept / "score.json")["figures"]["stages"])
    done = room("score", "pirate-nano", "--tasks", tmp_path / "short.yaml", HF_HOME=tmp_path / "hf", **CALM)
    assert done.returncode == 0, done.stdout + done.stderr
    made = receipt.read(kept / "score.json")
    assert made["figures"]["tasks"]["short"]["acc"] == 1.0 and "score       tasks    short  acc 1.000" in done.stdout
    assert set(made["figures"]["stages"]) >= stages - {"ollama"} and "outputs/pirate-nano/merged" in made["inputs"]
    used = recipe.read(kept / "eval/lm-eval.yml")
    assert used["lm_eval_model"] == "outputs/pirate-nano/merged" and tasks.PLUGIN in used["plugins"]
    one_line(room("score", "pirate-nano", "--tasks", "none.yaml"), "none.yaml: no such task file")
