"""Did it learn? The style of a recipe's replies to the held-out prompts, at the base, the merged model and Ollama.

    python -m scripts.score pirate-nano base merged ollama     # → outputs/pirate-nano/score.json, replies-STAGE.jsonl beside it

The style score is the share of replies that a logistic regression on character n-grams holds for the recipe's voice rather than for its plain twin.
It is trained on the training replies and their twins, and refused unless it tells at least 95 % of the held-out replies and twins apart.
"""

import json
import os
import sys
from pathlib import Path

from scripts import data, files, process, receipt, recipe

LIMIT, SEED = 300, 1  # tokens a reply may take; the seed of every backend
SOUND = 0.95  # held-out accuracy below which the classifier's word counts for nothing


def replies(rows):
    return [m["content"] for r in rows for m in r["messages"] if m["role"] == "assistant"]


def judge(family):
    """(classifier, its accuracy on held-out replies and twins). 1 is the voice, 0 its plain twin."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    voice, plain, held, held_plain = (
        replies(data.read(f"datasets/{family}/{n}.jsonl")) for n in ("train", "train-plain", "eval", "eval-plain")
    )
    model = make_pipeline(
        TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4), sublinear_tf=True, min_df=3), LogisticRegression(C=10, max_iter=1000)
    )
    model.fit(voice + plain, [1] * len(voice) + [0] * len(plain))
    accuracy = model.score(held + held_plain, [1] * len(held) + [0] * len(held_plain))
    if accuracy < SOUND:
        raise ValueError(
            f"datasets/{family}: the style classifier tells only {accuracy:.0%} of held-out replies from their twins (needs {SOUND:.0%}); the voice is not distinct enough in the data"
        )
    return model, accuracy


def from_weights(path, prompts, options):
    """[(reply, ended)] by transformers, batched, sampled as Ollama would with the Modelfile's options."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(path, dtype="auto" if device == "cuda" else torch.float32).to(device).eval()
    torch.manual_seed(SEED)
    out = []
    for start in range(0, len(prompts), 25):
        text = [tokenizer.apply_chat_template(p, tokenize=False, add_generation_prompt=True) for p in prompts[start : start + 25]]
        x = tokenizer(text, return_tensors="pt", padding=True, add_special_tokens=False).to(device)
        with torch.no_grad():
            y = model.generate(**x, max_new_tokens=LIMIT, do_sample=True, temperature=options["temperature"], top_k=40, top_p=0.9)[
                :, x["input_ids"].shape[1] :
            ]
        ends = (
            [model.generation_config.eos_token_id]
            if isinstance(model.generation_config.eos_token_id, int)
            else model.generation_config.eos_token_id
        )
        out += [(tokenizer.decode(ids, skip_special_tokens=True), any(e in ids.tolist() for e in ends)) for ids in y]
    return out


def from_ollama(model, prompts):
    """[(reply, ended)] by the running Ollama, with the options that its Modelfile gives."""
    import httpx

    out = []
    for messages in prompts:
        answer = httpx.post(
            f"{process.ollama_url()}/api/chat",
            timeout=600,
            json={"model": model, "messages": messages, "stream": False, "options": {"seed": SEED, "num_predict": LIMIT}},
        )
        if answer.status_code != 200:
            raise ValueError(f"Ollama at {process.ollama_url()}: {answer.text[:200]}; `make ollama` first")
        out.append((answer.json()["message"]["content"], answer.json()["done_reason"] == "stop"))
    return out


def prompts_of(rows, system):
    """The held-out prompts as Ollama would send them: the Modelfile's system message where the row has none."""
    prompts = [data.prompt(r) for r in rows]
    return [p if p[0]["role"] == "system" or not system else [{"role": "system", "content": system}, *p] for p in prompts]


def main(argv):
    stages = argv[1:]
    if not stages or set(stages) - {"base", "merged", "ollama"}:
        print("usage: python -m scripts.score NAME base|merged|ollama …", file=sys.stderr)
        return 2
    name, folder = argv[0], Path("outputs", argv[0])
    family, found = recipe.family(name), recipe.read_modelfile(recipe.modelfile(name))
    classifier, accuracy = judge(family)
    rows = data.read(f"datasets/{family}/eval.jsonl")
    prompts, options = prompts_of(rows, found.get("system")), {"temperature": float(found["parameters"]["temperature"][0])}
    figures = {**((receipt.read(folder / "score.json") or {}).get("figures") or {}), "classifier_accuracy": accuracy, "prompts": len(rows)}
    for stage in stages:
        paths = {"base": recipe.read(folder / "recipe.yml")["base_model"], "merged": folder / "merged"}
        said = from_ollama(recipe.ollama_name(name), prompts) if stage == "ollama" else from_weights(paths[stage], prompts, options)
        voices = classifier.predict_proba([text for text, _ in said])[:, 1]
        figures[stage] = {"style": round(float((voices > 0.5).mean()), 4), "ended": round(sum(e for _, e in said) / len(said), 4)}
        with open(folder / f"replies-{stage}.jsonl", "w", encoding="utf-8") as out:
            for row, (text, ended), voice in zip(rows, said, voices):
                out.write(
                    json.dumps(
                        {
                            "id": row["id"],
                            "prompt": row["messages"][-2]["content"],
                            "reply": text,
                            "ended": ended,
                            "voice": round(float(voice), 4),
                        },
                        ensure_ascii=False,
                    )
                    + "\n"
                )
        print(f"score       {stage:<8} {figures[stage]['style']:>5.0%} in the voice, {figures[stage]['ended']:>5.0%} end by themselves")
    receipt.write(
        folder / "score.json",
        [f"datasets/{family}/{n}.jsonl" for n in ("train", "train-plain", "eval", "eval-plain")],
        [folder / f"replies-{s}.jsonl" for s in stages],
        figures,
        files.sha256,
    )
    return 0


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    process.command(main)
