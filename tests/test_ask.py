"""The router and the validator on odd forms; and for real: two adapters trained here for seconds on the nano base, one llama-server, every option."""

import contextlib
import random
import re
from pathlib import Path

import pytest
import yaml

from conftest import ROOT, clone, one_line, room, run
from scripts import ask, data, files, lint, lora, receipt, recipe
from scripts import ollama as room_ollama

FOUR = ["Paris", "Vitamin C", "a small B-flat", "A large city"]
SEA = "Which of these is a sea?"
CITY = "What is the capital of Norway?"


# --- the router ---
@pytest.mark.parametrize(
    "form",
    [
        *("\n{0}) {1}", "\n({0}) {1}", "\n[{0}] {1}", "\n{0}. {1}", "\n{0}: {1}", "\n{0} - {1}", "\n{0} – {1}", "\n  {0})  {1}  "),
        *("\n- {0}) {1}", "\n* {0}. {1}", "\n**{0})** {1}", "\n**{0}.** {1}", "\nOption {0}: {1}", "\r\n{0}) {1}", "\n\n{0}) {1}"),
        *(" {0}) {1}", " ({0}) {1}", " [{0}] {1}", " {0}. {1}", " {0}) {1},", " {0}) {1};", " {0}){1}", "  {0}) {1}\n", " ({0}) {1} or"),
    ],
)
@pytest.mark.parametrize("labels", ["ABCD", "abcd", "1234"])
def test_options_in_every_usual_form(form, labels):
    question = SEA + "".join(form.format(label, text) for label, text in zip(labels, FOUR))
    assert ask.options(question) == (SEA, list(labels), FOUR)
    prompt, choices = ask.asked(question)
    assert prompt == "\n".join([SEA, "A) Paris", "B) Vitamin C", "C) a small B-flat", "D) A large city"]), "the form of the training rows"
    assert [label for _, label, _ in choices] == list(labels)


@pytest.mark.parametrize(
    "question, stem, labels, texts",
    [
        ("Is it A) true\nB) false?", "Is it?", "AB", ["true", "false"]),
        ("Which is larger, A) the sun or B) the moon?", "Which is larger?", "AB", ["the sun", "the moon"]),
        ("What is mentioned in A) here?\nA) x\nB) y", "What is mentioned in A) here?", "AB", ["x", "y"]),
        ("Which? A) x B) y\nC) z D) w", "Which?", "ABCD", ["x", "y", "z", "w"]),
        ("Which?\nA) one that goes\nover two lines\nB) y", "Which?", "AB", ["one that goes over two lines", "y"]),
        ("Which?\nA) x\nB) y\nAnswer:", "Which?", "AB", ["x", "y"]),
        ("Which?\nA) x\nB) y\n\nReply with the letter only.", "Which?", "AB", ["x", "y"]),
        ("Which?\n" + "\n".join(f"{c}) {c}x" for c in "ABCDEFGH"), "Which?", "ABCDEFGH", [f"{c}x" for c in "ABCDEFGH"]),
        ("Two lines.\nWhich?\nA) 3.5\nB) 4", "Two lines.\nWhich?", "AB", ["3.5", "4"]),
        ("Choose the river\n1. Rhine\n2. Oslo", "Choose the river", "12", ["Rhine", "Oslo"]),
    ],
)
def test_odd_questions_with_options(question, stem, labels, texts):
    assert ask.options(question) == (stem, list(labels), texts)


@pytest.mark.parametrize(
    "question",
    [
        *(CITY, "What does A) mean in a list?", "What do A) and B) mean in a test?", "What is the difference between (a) and (b)?"),
        *("What is f(a) + f(b)?", "Did A. Lincoln know B. Disraeli?", "Which of these, A) B) or C), is right?", "Who was B.B. King?"),
        *("Explain these steps:\n1. Boil water\n2. Add salt", "In 1. Bundesliga and 2. Bundesliga, who won?", "A) x\nB) y", "Which?\nA) x"),
        *(
            "Which?\nB) x\nC) y",
            "Which?\nA) \nB) ",
            "What is vitamin A?",
            "Write a) in Greek.",
            "Which vitamins: A, B, C or D?",
            "What is the difference between (a) LoRA and (b) QLoRA?",
            "How do I do 1) wash 2) dry in order?",
            "Why?\nA: b",
        ),
    ],
)
def test_questions_that_merely_speak_of_letters(question):
    assert ask.options(question) is None and ask.asked(f" {question}\n") == (question.strip(), None)


def test_a_ninth_option_is_refused_and_not_read_into_the_eighth():
    for lines in ("\n", " "):
        with pytest.raises(ValueError, match="more than 8 options: Which.*ask with two to eight"):
            ask.options(f"Which?{lines}" + lines.join(f"{c}) {c}x" for c in "ABCDEFGHI"))


def test_every_question_of_the_projects_own_goes_to_its_adapter_as_it_was_trained():
    for family in ("mcq", "saq"):
        for row in data.read(f"datasets/{family}/train.jsonl") + data.read(f"datasets/{family}/eval.jsonl"):
            question = row["messages"][0]["content"]
            prompt, choices = ask.asked(question)
            assert prompt == question and (choices is not None) == (family == "mcq"), question
            assert ask.fault(data.reply(row), True, choices) is None and ask.shown(data.reply(row), choices) == data.reply(row), row


# --- the validator ---
OPTIONS = ask.asked(SEA + "".join(f"\n({label}) {text}" for label, text in zip("abcd", FOUR)))[1]


@pytest.mark.parametrize(
    "reply, shown",
    [
        *(
            (text, "b")
            for text in [
                "B",
                "b",
                "(b)",
                "B.",
                " B\n",
                "**B**",
                "The answer is B",
                "The correct option is (B).",
                "B) Vitamin C",
                "Option B",
            ]
        ),
        *((text, "d") for text in ["D", "D) A large city", "The answer is D: a large city", "D, a large city"]),
        *((text, "a") for text in ["A", "a)", "(A) Paris", "The answer is A."]),
        *((text, "c") for text in ["C", "C) a small B-flat", "It is C, because of the B-flat"]),
    ],
)
def test_a_reply_that_names_one_option(reply, shown):
    assert ask.fault(reply, True, OPTIONS) is None and ask.shown(reply, OPTIONS) == shown


@pytest.mark.parametrize(
    "reply, what",
    [
        *(
            (text, "several letters")
            for text in ["A or B", "A, B", "B because A is wrong", "B and C", "B\nC", "The answer is B, not C", "A/B"]
        ),
        *((text, "no single letter") for text in ["Paris", "A city", "Not B", "All of them", "It is C++", "?"]),
        *((text, "E is no option") for text in ["E", "(e)", "The answer is E"]),
        *((text, "empty") for text in ["", " \n"]),
        *((text, "shows the prompt's machinery") for text in ["B<|eot_id|>", "assistant\n\nB", "B [INST] C", "system\n\nB"]),
    ],
)
def test_a_reply_that_does_not(reply, what):
    found = ask.fault(reply, True, OPTIONS)
    assert found == what or what == "several letters" and found == "no single letter" and reply != "A or B", (reply, found)


@pytest.mark.parametrize(
    "reply",
    ["Oslo", "In 1989.", "White cloth reflects the heat.", "Mrs. Smith", "J. K. Rowling", "3.5", "B", "H2O", "Oslo!", "the U.S. Army"],
)
def test_a_short_answer(reply):
    assert ask.fault(reply, True) is None and ask.shown(f" {reply}\n", None) == reply
    assert ask.fault(reply, False) == "does not end" and ask.fault("B", False, OPTIONS) == "does not end"


@pytest.mark.parametrize(
    "reply, what",
    [
        *(("", "empty"), ("Oslo. It lies on a fjord.", "more than a sentence"), ("It fell in 1989. Then it rose.", "more than a sentence")),
        *(("Oslo\nBergen", "more than a sentence"), ("word " * 31, "31 words"), ("<|start_header_id|>", "shows the prompt's machinery")),
        *(("user\nWhat?", "shows the prompt's machinery"), ("### Response:\nOslo", "shows the prompt's machinery")),
        *(("D)", "an option's letter, and there are no options"), ("(b)", "an option's letter, and there are no options")),
    ],
)
def test_no_short_answer(reply, what):
    assert ask.fault(reply, True) == what


# --- recipes, their variants, their Modelfiles ---
SCENARIOS = re.findall(r'make train RECIPE=mcq SET="([^"]+)"', Path(ROOT, "recipes/README.md").read_text())


@pytest.mark.parametrize("name", ["mcq", "saq"])
@pytest.mark.parametrize("changes", SCENARIOS)
def test_the_common_scenarios_are_variants_that_lint_takes(copy, name, changes):
    cfg = recipe.load("+".join([name, *changes.split()]))
    wanted = dict(item.partition("=")[::2] for item in changes.split())
    assert {key: cfg[key] for key in wanted} == {key: yaml.safe_load(value) for key, value in wanted.items()}
    own = {"output_dir": f"outputs/{name}/training", "dataset_prepared_path": f"outputs/{name}/prepared"}
    Path(f"recipes/{name}.yml").write_text(yaml.safe_dump(cfg | own))
    assert [f for f in lint.check(f"recipes/{name}.yml")[0] if f["level"] != "note"] == []


def test_the_recipes_are_the_texts_and_the_twins_agree_key_for_key():
    assert len(SCENARIOS) >= 12
    text = dict(
        lora_r=16, lora_alpha=32, lora_dropout=0.05, num_epochs=3, micro_batch_size=4, gradient_accumulation_steps=4, lr_scheduler="cosine"
    )
    text |= dict(warmup_ratio=0.1, val_set_size=0.15, sequence_len=512, logging_steps=10, save_total_limit=2)
    text |= dict(lora_target_modules=["q_proj", "k_proj", "v_proj", "o_proj"], base_model="mistralai/Mistral-7B-Instruct-v0.2")
    for name in ("mcq", "saq"):
        big, small = recipe.load(name), recipe.load(f"{name}-nano")
        assert {key: big[key] for key in text} == text and float(big["learning_rate"]) == 1e-4
        assert list(big) == list(small) and small["base_model"] == "outputs/nano/qa"
        assert recipe.schedule(big, 357)["steps"] == 67


@pytest.mark.parametrize("key", ["eval_steps", "save_steps"])
def test_a_hundred_steps_lie_beyond_the_end(copy, key):
    """What the recipe says of the text's own figure."""
    path = Path("recipes/mcq.yml")
    path.write_text(path.read_text().replace(f"{key}: 22", f"{key}: 100"))
    assert [f["rule"] for f in lint.check(path)[0] if f["level"] == "error"] == ["eval-never"]


def test_lint_knows_the_template_of_the_recipes_own_base(copy):
    """`chat_template: tokenizer_default` names none; facts of the base do."""
    for name, old, new in [("mcq", "[/INST]", "[/inst]"), ("saq", "</s>", "<|eot_id|>"), ("mcq-nano", "<|end_header_id|>", "")]:
        path = Path(f"modelfiles/{name}.Modelfile")
        path.write_text(path.read_text().replace(old, new))
        assert {f["rule"] for f in lint.check(f"recipes/{name}.yml")[0]} == {"template-mismatch"}, name


def test_the_modelfile_of_mistral_says_what_its_template_says(ollama, chained):
    """In either generation of Ollama, for every conversation of the proof; the template in Axolotl's copy of it."""
    import axolotl.utils.chat_templates
    from transformers.utils.chat_template_utils import _compile_jinja_template

    jinja = Path(axolotl.utils.chat_templates.__file__).parent / "templates/mistral_v1.jinja"
    template = _compile_jinja_template(jinja.read_text())
    for name in ("mcq", "saq"):
        path = Path(f"outputs/pirate-nano/gguf/Modelfile-{name}")
        path.write_text(Path(f"modelfiles/{name}.Modelfile").read_text().replace(f"./{name}-Q4_K_M", "./pirate-nano-Q8_0"))
        room_ollama.create(ollama, f"{name}-form", path, Path("log"))
        for system, turns in room_ollama.MATRIX:
            said = room_ollama.messages(system, turns)
            wanted = template.render(messages=said, bos_token="", eos_token="</s>", add_generation_prompt=True)
            sent = {"model": f"{name}-form", "messages": said, "stream": False, "_debug_render_only": True}
            assert room_ollama.call(ollama, "/api/chat", sent)["_debug_info"]["rendered_template"] == wanted


# --- make ask ---
def test_make_ask_names_both_recipes_and_hands_the_question_on_as_it_is(copy):
    def last(*words):
        return run("make", "-n", "ask", "Q=x", *words).stdout.splitlines()[-1].replace('-- "$Q"', "").split()[2:]

    usual = ["--retries", "2", "--tokens", "64", "--seed", "1"]
    assert last() == ["scripts.ask", "mcq", "saq", *usual]
    for either in ("mcq-nano", "saq-nano"):
        assert last(f"RECIPE={either}", "SET=lora_r=8 lora_alpha=16")[1:3] == [
            "mcq-nano+lora_r=8+lora_alpha=16",
            "saq-nano+lora_r=8+lora_alpha=16",
        ]
    assert last("MCQ=mcq-nano+lora_r=8", "SAQ=saq-nano", "STOP=0", "VALIDATE=0", "SAMPLE=1", "RETRIES=5", "TOKENS=9", "SEED=3") == (
        ["scripts.ask", "mcq-nano+lora_r=8", "saq-nano", "--retries", "5", "--tokens", "9", "--seed", "3", "--sample", "--no-stop", "--raw"]
    )
    question = "Is it $5, $(shell echo x), `y` or \"A\"? #1\nA) x\nB) 'y'"
    assert run("make", "ask", f"Q={question}", "PY=printenv Q #").stdout.endswith(question + "\n")
    assert run("make", "ask", "RECIPE=mcq-nano", "Q= ").returncode == 2 and not Path("outputs/mcq-nano+x").exists()
    one_line(run("make", "ask", "RECIPE=mcq-nano"), 'make ask Q="')
    one_line(run("make", "ask", "Q=x"), "recipe mcq needs 1 × rtx4090", "`make train RECIPE=mcq-nano`")


def test_what_cannot_be_asked(copy):
    one_line(room("ask", "mcq-nano", "saq-nano", CITY), "outputs/mcq-nano: no lora.json", "`make ask RECIPE=mcq-nano` makes it")
    assert room("ask", "mcq-nano", CITY).returncode == 2 and room("ask", "mcq-nano", "saq-nano", " ").returncode == 2
    for name in ("mcq-nano", "saq-nano"):
        Path(f"outputs/{name}").mkdir(parents=True)
        Path(f"outputs/{name}/export.yml").write_text("quantize: [Q4_K_M]\n")
        receipt.write(Path(f"outputs/{name}/lora.json"), [], [], {"base": f"outputs/served/{name}"}, files.sha256)
    one_line(room("ask", "mcq-nano", "saq-nano", CITY), "stand on different bases: outputs/served/mcq-nano, outputs/served/saq-nano")
    one_line(room("ask", "mcq-nano", "mcq-nano", CITY), "outputs/served/mcq-nano/Q4_K_M.gguf: is not there", "QUANT=")


# --- for real ---
def train(folder, rows, steps):
    """A LoRA adapter of q, k, v, o on the 4-bit nano base: what Axolotl's stages leave in `folder`, in seconds."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    torch.manual_seed(1)
    base, draw = Path("outputs/nano/pirate"), random.Random(1)
    tokenizer = AutoTokenizer.from_pretrained(base)
    four_bit = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, quantization_config=four_bit, device_map={"": "cpu"})
    model = get_peft_model(
        model, LoraConfig(r=16, lora_alpha=32, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"], task_type="CAUSAL_LM")
    )
    optimizer, items = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3), []
    for row in rows:
        asked = tokenizer.apply_chat_template(data.prompt(row), add_generation_prompt=True, return_dict=True)["input_ids"]
        whole = tokenizer.apply_chat_template(row["messages"], return_dict=True)["input_ids"]
        items.append((whole, [-100] * len(asked) + whole[len(asked) :]))
    for _ in range(steps):
        batch = draw.sample(items, 8)
        size = max(len(ids) for ids, _ in batch)
        ids = torch.tensor([ids + [tokenizer.pad_token_id] * (size - len(ids)) for ids, _ in batch])
        labels = torch.tensor([labels + [-100] * (size - len(labels)) for _, labels in batch])
        model(input_ids=ids, attention_mask=(ids != tokenizer.pad_token_id).long(), labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder / "adapter")
    tokenizer.save_pretrained(folder / "adapter")
    receipt.write(folder / "train.json", [base], [folder / "adapter"], {}, files.sha256)


@pytest.fixture(scope="module")
def both(chain, tmp_path_factory):
    """A copy of the repository in which mcq-nano and saq-nano are trained and served, on the base that the chain has already made."""
    here = clone(tmp_path_factory.mktemp("both"), nano=True)
    with contextlib.chdir(here):
        for name, least in (("mcq", 1), ("saq", 4)):  # answers of a word need longer: at first the likeliest token is the end
            folder = Path(f"outputs/{name}-nano")
            assert room("snapshot", f"{name}-nano", BASE="outputs/nano/pirate").returncode == 0
            train(folder, [row for row in data.read(f"datasets/{name}/train.jsonl") if len(data.reply(row).split()) >= least], 60)
            assert lora.main([f"{name}-nano"]) == 0
    return here


@pytest.fixture
def served(both, monkeypatch):
    monkeypatch.chdir(both)
    return both


RIVER = "Which of these is a river?\n(a) Oslo\n(b) the Ganges\n(c) copper\n(d) a spoon"
BOTH = ("mcq-nano", "saq-nano")


def test_each_question_goes_to_its_adapter_and_gets_a_reply_of_its_form(served):
    made = [receipt.read(f"outputs/{name}/lora.json")["figures"] for name in BOTH]
    assert made[0]["base"] == made[1]["base"] and len(list(Path("outputs/served").glob("*.gguf"))) == 0
    assert [p.name for p in Path("outputs/served").iterdir() if p.is_dir()] == [Path(made[0]["base"]).name], "one base for both"
    asked = room("ask", *BOTH, RIVER, CITY, RIVER)
    assert asked.returncode == 0, asked.stderr
    river, city, again = asked.stdout.splitlines()
    assert river in "abcd" and river == again and city not in "abcd" and 1 <= len(city.split()) <= 30 and "<|" not in city
    told = [line for line in asked.stderr.splitlines() if re.search(r"\d (try|tries)$", line)]
    assert [line.split(",")[0] for line in told] == ["ask         mcq-nano", "ask         saq-nano", "ask         mcq-nano"]


def test_a_request_gets_the_adapter_that_it_names_and_no_other(served, monkeypatch):
    """Both adapters in one server against PEFT with each alone, reply for reply; by turns, so that nothing of one stays for the other."""
    from scripts.scoring import backends, weights

    monkeypatch.setenv("QUANT", "F16")
    chosen, questions = (
        backends.FIXED | backends.GREEDY | {"num_predict": 24},
        [row["messages"][0]["content"] for row in data.read("datasets/saq/eval.jsonl")[:6]],
    )
    wanted = []
    for name in BOTH:
        cfg = recipe.read(f"outputs/{name}/recipe.yml")
        model, tokenizer = weights.load("adapter", Path("outputs", name), cfg)
        said = weights.generate(
            model, tokenizer, weights.ends_of(tokenizer, cfg), [[{"role": "user", "content": q}] for q in questions], chosen, lambda n: None
        )
        wanted.append([(text.strip(), ended) for text, ended, _ in said])
    with ask.opened(BOTH, stop=True) as say:
        got = [[say(which, q, chosen) for which in (0, 1)] for q in questions]
        say(0, questions[0], chosen), say(1, CITY, chosen)  # llama-server keeps the first prompt as the first adapter read it …
        assert say(1, questions[0], chosen) == wanted[1][0], "… and must not give it to the second"
    assert [list(pair) for pair in zip(*got)] == wanted and wanted[0] != wanted[1]


def test_what_is_not_valid_is_asked_again_with_seeds_of_its_own(served):
    """The adapter for short answers is asked for a letter."""
    first = room("ask", "saq-nano", "saq-nano", RIVER)
    lines = first.stderr.splitlines()
    assert first.returncode == 1 and first.stdout == "" and len(lines) == 4, first.stderr
    assert [line.split(":")[0] for line in lines[:3]] == [f"ask         saq-nano, try {n}" for n in (1, 2, 3)]
    assert "no valid reply in 3" in lines[3] and "VALIDATE=0" in lines[3]
    assert room("ask", "saq-nano", "saq-nano", RIVER).stderr == first.stderr, "the same seeds, the same replies"
    assert len(room("ask", "saq-nano", "saq-nano", RIVER, "--retries", "0").stderr.splitlines()) == 2
    raw = room("ask", "saq-nano", "saq-nano", RIVER, "--raw")
    assert raw.returncode == 0 and repr(raw.stdout.strip()[:60]) in lines[0], "the first reply, as it is"
    cut = room("ask", *BOTH, CITY, "--tokens", "1", "--retries", "1")
    assert cut.returncode == 1 and "does not end" in cut.stderr


def test_stops_and_sampling(served):
    plain, path = room("ask", *BOTH, CITY, "--raw"), Path("modelfiles/saq-nano.Modelfile")
    letter, before = next(c for c in plain.stdout if c.isalpha()), path.read_text()
    path.write_text(before + f'\nPARAMETER stop "{letter}"\nPARAMETER temperature 1.5\n')
    try:
        on, off = (room("ask", *BOTH, CITY, "--raw", *flags).stdout for flags in ([], ["--no-stop"]))
        drawn = {room("ask", *BOTH, CITY, "--raw", "--no-stop", "--sample", "--seed", str(n)).stdout for n in range(4)}
    finally:
        path.write_text(before)
    assert letter not in on and off == plain.stdout and len(drawn) > 1
