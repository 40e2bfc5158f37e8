"""The stages that are weights: base, adapter, merged, with transformers. Replies in batches of like length, and the likelihood of reference replies."""

from contextlib import contextmanager
from functools import partial

BATCH, ROOM = 32, 4096  # prompts in a batch; tokens in a batch whose logits are held: 2 GB of them with Llama 3's vocabulary in fp32


def tokenizer_of(folder, cfg):
    """The tokenizer and the chat template that training saved; before training, the base's, changed as the recipe says."""
    from transformers import AutoTokenizer

    if (folder / "adapter/tokenizer_config.json").is_file():
        return AutoTokenizer.from_pretrained(folder / "adapter")
    tokenizer = AutoTokenizer.from_pretrained(cfg.get("tokenizer_config") or cfg["base_model"])
    tokenizer.add_special_tokens(cfg.get("special_tokens") or {})
    tokenizer.add_tokens(cfg.get("tokens") or [])
    return tokenizer


def labelled(rows, tokenizer, cfg):
    """[(ids, labels)] of whole rows by Axolotl's own strategy with the recipe's options: what training learns from, -100 elsewhere."""
    from axolotl.prompt_strategies import chat_template
    from axolotl.utils.dict import DictDefault

    entry = next(iter(cfg.get("test_datasets") or cfg.get("datasets") or []), {})
    entry = entry | {"field_messages": "messages", "message_property_mappings": None}  # data.read's rows, whatever the recipe's look like
    strategy = chat_template.load(tokenizer, DictDefault({"sequence_len": 512} | cfg), entry)
    found = [strategy.tokenize_prompt({"messages": row["messages"]}) for row in rows]
    return [(list(f["input_ids"]), list(f["labels"])) for f in found]


def precision(stage, cfg):
    """(dtype, quantization or None): on a CPU fp32, on a GPU as stored; the adapter as it was trained."""
    import torch
    from transformers import BitsAndBytesConfig

    gpu = torch.cuda.is_available()
    if stage != "adapter":
        return "auto" if gpu else torch.float32, None
    dtype = torch.bfloat16 if gpu and cfg.get("bf16") else torch.float16 if gpu and cfg.get("fp16") else torch.float32
    if cfg.get("load_in_4bit"):  # NF4, double quantization: Axolotl's defaults
        rounding = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True, "bnb_4bit_compute_dtype": dtype}
        return dtype, BitsAndBytesConfig(load_in_4bit=True, **rounding | (cfg.get("bnb_config_kwargs") or {}))
    return dtype, BitsAndBytesConfig(load_in_8bit=True) if cfg.get("load_in_8bit") else None


def load(stage, folder, cfg):
    """(model, its own tokenizer)."""
    import torch
    from axolotl.utils.chat_templates import get_chat_template_from_config
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where, (dtype, quantization) = folder / "merged" if stage == "merged" else cfg["base_model"], precision(stage, cfg)
    gpu = torch.cuda.is_available()
    try:
        tokenizer = tokenizer_of(folder, cfg) if stage == "adapter" else AutoTokenizer.from_pretrained(where)
        model = AutoModelForCausalLM.from_pretrained(
            where, dtype=dtype, quantization_config=quantization, device_map="auto" if gpu else {"": "cpu"}
        )
    except OSError as error:
        raise ValueError(f"{where}: cannot be read ({' '.join(str(error).split())[:120]}); HF_HUB_OFFLINE=0 asks the hub") from None
    if stage == "adapter":
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, folder / "adapter")
        for module in model.modules():  # multiplied with as in training, not repacked (scripts/cpu.py)
            if not gpu and hasattr(module, "support_avx512bf16_for_cpu"):
                module.support_avx512bf16_for_cpu = False
    tokenizer.padding_side = "left"
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    tokenizer.chat_template = tokenizer.chat_template or get_chat_template_from_config(cfg, None, tokenizer)
    return model.eval(), tokenizer


def ends_of(tokenizer, cfg, more=None):
    """Ids of the tokens that end a reply."""
    more = more if isinstance(more, list) else [more]
    return sorted({*more, tokenizer.eos_token_id, *tokenizer.convert_tokens_to_ids(cfg.get("eot_tokens") or [])} - {None})


def spoken(tokenizer, ids, ends):
    """(text, ended, tokens) of generated ids: up to the first end, special tokens spelt out, for in a reply they are a fault."""
    stop = next((n for n, i in enumerate(ids) if i in ends), len(ids))
    return tokenizer.decode(ids[:stop], skip_special_tokens=False), stop < len(ids), min(stop + 1, len(ids))


def generate(model, tokenizer, ends, conversations, chosen, tick):
    import torch

    torch.manual_seed(chosen["seed"])
    sampling = {"do_sample": bool(chosen["temperature"]), "repetition_penalty": chosen["repeat_penalty"]}
    if chosen["temperature"]:
        sampling |= {k: chosen[k] for k in ("temperature", "top_k", "top_p", "min_p")}
    texts = [tokenizer.apply_chat_template(c, tokenize=False, add_generation_prompt=True) for c in conversations]
    order, found = sorted(range(len(texts)), key=lambda i: -len(texts[i])), {}
    for start in range(0, len(order), BATCH):
        batch = order[start : start + BATCH]
        x = tokenizer([texts[i] for i in batch], return_tensors="pt", padding=True, add_special_tokens=False).to(model.device)
        limits = {"max_new_tokens": chosen["num_predict"], "eos_token_id": ends, "pad_token_id": tokenizer.pad_token_id}
        with torch.inference_mode():
            y = model.generate(**x, **sampling, **limits)
        for i, ids in zip(batch, y[:, x["input_ids"].shape[1] :].tolist()):
            found[i] = spoken(tokenizer, ids, ends)
        tick(len(batch))
    return [found[i] for i in range(len(texts))]


def measure(model, items, tick):
    """[(nll in nats, tokens)] of the labelled tokens of [(ids, labels)]: each token given those before it, as training's loss."""
    import torch

    order, found = sorted(range(len(items)), key=lambda i: -len(items[i][0])), {}
    while order:
        longest = len(items[order[0]][0])
        batch, order = order[: max(1, ROOM // longest)], order[max(1, ROOM // longest) :]
        x = torch.tensor([items[i][0] + [0] * (longest - len(items[i][0])) for i in batch], device=model.device)
        mask = torch.tensor([[1] * len(items[i][0]) + [0] * (longest - len(items[i][0])) for i in batch], device=model.device)
        with torch.inference_mode():
            logits = model(input_ids=x, attention_mask=mask).logits
        for i, row in zip(batch, logits):
            labels = torch.tensor(items[i][1][1:], device=row.device)
            nll = torch.nn.functional.cross_entropy(row[: len(labels)].float(), labels, reduction="sum")
            found[i] = nll.item(), int((labels != -100).sum())
        tick(len(batch))
    return [found[i] for i in range(len(items))]


def speaker(model, tokenizer, folder, cfg):
    """(replies, likelihood) of a loaded model: see scripts/scoring/backends.py."""
    ends = ends_of(tokenizer, cfg, model.generation_config.eos_token_id)

    def likelihood(rows, tick):  # one tokenizer for all stages, training's, so that their perplexities are of the same tokens
        return measure(model, labelled(rows, tokenizer_of(folder, cfg), cfg), tick)

    return partial(generate, model, tokenizer, ends), likelihood


@contextmanager
def opened(stage, folder, cfg):
    yield speaker(*load(stage, folder, cfg), folder, cfg)
