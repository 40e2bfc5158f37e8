"""The nano base: a Llama of 4.5 million parameters with its own tokenizer, made here from the plain twins of a family's dataset.

    python -m scripts.base pirate           # → outputs/nano/pirate/ and its receipt outputs/nano/pirate.json
    python -m scripts.base finetome-large   # the same data, another of SIZES

It stands in for Llama 3 8B where there is no GPU and no model hub: the same architecture, the same chat tokens, bfloat16 weights,
small enough to train in minutes on two cores. It makes every later step real; it is not a useful chatbot.
Deterministic from SEED, and kept in the tool cache under the hash of all that goes into it.
"""

import hashlib
import io
import json
import shutil
import sys
import time
from pathlib import Path

from scripts import data, files, process, receipt

SEED, EPOCHS, BATCH, LENGTH, PEAK_LR = 20, 8, 4, 256, 2e-3
TOKENS = 1_000_000  # at least; a small dataset is seen more than EPOCHS times
VOCAB, HEADS, KV_HEADS, CONTEXT = 4096, 4, 2, 2048
SIZES = {"": (256, 768, 3), "large": (384, 1152, 6)}  # hidden size, MLP, layers
TEMPLATE = Path("modelfiles/llama3.jinja")
BOS, EOS, PAD, UNK = "<|begin_of_text|>", "<|end_of_text|>", "<|finetune_right_pad_id|>", "<unk>"
CHAT = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>", "<|python_tag|>"]


def key(source, size):
    """What decides the result: the data, the size, this file, and the versions that do the arithmetic."""
    parts = [
        files.sha256(source),
        size,
        files.sha256(__file__),
        files.sha256(TEMPLATE),
        json.dumps({k: v for k, v in receipt.versions().items() if k in ("torch", "transformers", "sentencepiece")}, sort_keys=True),
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def sentencepiece_model(texts):
    """The serialized BPE model. llama.cpp converts sentencepiece exactly; a byte-level BPE of our own it would refuse, a bare tokenizer.json it would get wrong."""
    import sentencepiece

    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=out,
        model_type="bpe",
        vocab_size=VOCAB,
        num_threads=1,
        minloglevel=2,
        byte_fallback=True,
        character_coverage=1.0,
        split_digits=True,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        control_symbols=CHAT,
        max_sentence_length=100_000,
        bos_id=0,
        eos_id=1,
        pad_id=2,
        unk_id=3,
        bos_piece=BOS,
        eos_piece=EOS,
        pad_piece=PAD,
        unk_piece=UNK,
    )
    return out.getvalue()


def tokenizer_of(proto):
    """The same BPE for Hugging Face's `tokenizers`: its merges rebuilt from the sentencepiece scores (a higher score merges earlier)."""
    import sentencepiece
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

    sp = sentencepiece.SentencePieceProcessor(model_proto=proto)
    pieces = [sp.id_to_piece(i) for i in range(sp.vocab_size())]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    # Every way to build a piece from two others, best first: the order in which sentencepiece would merge them.
    merges = []
    for i, piece in enumerate(pieces):
        if sp.is_control(i) or sp.is_unknown(i) or sp.is_byte(i):
            continue
        splits = [(piece[:n], piece[n:]) for n in range(1, len(piece)) if piece[:n] in vocab and piece[n:] in vocab]
        merges += [(-sp.get_score(i), vocab[a], vocab[b], a, b) for a, b in splits]
    tok = Tokenizer(
        models.BPE(vocab=vocab, merges=[(a, b) for *_, a, b in sorted(merges)], unk_token=UNK, byte_fallback=True, fuse_unk=True)
    )
    tok.normalizer = normalizers.Replace(" ", "▁")
    tok.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tok.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in [BOS, EOS, PAD, UNK, *CHAT]])
    tok.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, vocab[BOS])])
    return tok


def save_tokenizer(proto, template, folder):
    from transformers import PreTrainedTokenizerFast

    tok = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer_of(proto),
        bos_token=BOS,
        eos_token="<|eot_id|>",
        pad_token=PAD,
        unk_token=UNK,
        additional_special_tokens=CHAT,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )
    tok.chat_template = template
    tok.save_pretrained(folder)
    (folder / "tokenizer.model").write_bytes(proto)  # the converter reads this one
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["add_prefix_space"] = False  # without it llama.cpp puts a blank before every text
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    return tok


def batches(tok, rows, steps, torch):
    """`steps` batches of shape [BATCH, LENGTH]: whole conversations in a new order each epoch, end to end."""
    texts = [tok(tok.apply_chat_template(r["messages"], tokenize=False), add_special_tokens=False)["input_ids"] for r in rows]
    generator, stream = torch.Generator().manual_seed(SEED), []
    for _ in range(steps):
        while len(stream) < BATCH * LENGTH:
            for i in torch.randperm(len(texts), generator=generator).tolist():
                stream += texts[i]
        yield torch.tensor(stream[: BATCH * LENGTH]).view(BATCH, LENGTH)
        del stream[: BATCH * LENGTH]


def train(tok, rows, folder, size=""):
    """Train from scratch, next-token loss on everything, one cosine; save bfloat16 weights. Returns the figures."""
    import torch
    from tqdm import tqdm
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(SEED)
    torch.use_deterministic_algorithms(True)
    ids = {name: tok.convert_tokens_to_ids(t) for name, t in [("bos_token_id", BOS), ("eos_token_id", "<|eot_id|>"), ("pad_token_id", PAD)]}
    hidden, mlp, layers = SIZES[size]
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCAB,
            hidden_size=hidden,
            intermediate_size=mlp,
            num_hidden_layers=layers,
            num_attention_heads=HEADS,
            num_key_value_heads=KV_HEADS,
            max_position_embeddings=CONTEXT,
            rope_theta=500000.0,
            tie_word_embeddings=False,
            **ids,
        )
    )
    tokens = sum(len(tok(tok.apply_chat_template(r["messages"], tokenize=False), add_special_tokens=False)["input_ids"]) for r in rows)
    steps = max(EPOCHS * tokens, TOKENS) // (BATCH * LENGTH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_LR, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_LR, total_steps=steps, pct_start=0.05)
    began = time.time()
    with tqdm(total=steps, desc=f"{'nano base':<28}", leave=False, disable=not sys.stderr.isatty()) as bar:
        for x in batches(tok, rows, steps, torch):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = model(input_ids=x, labels=x).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            bar.update()
            bar.set_postfix_str(f"loss {loss.item():.3f}")
    seconds = time.time() - began
    model.generation_config = GenerationConfig(**ids)
    model.to(torch.bfloat16).save_pretrained(folder)
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "tokens_per_epoch": tokens,
        "steps": steps,
        "final_loss": round(loss.item(), 4),
        "tokens_per_second": round(steps * BATCH * LENGTH / seconds),
    }


def main(argv):
    family, _, size = argv[0].partition("-") if len(argv) == 1 else ("", "", "")
    if not family or size not in SIZES:
        print(f"usage: python -m scripts.base FAMILY or FAMILY-SIZE, of the sizes {', '.join(filter(None, SIZES))}", file=sys.stderr)
        return 2
    source, target = Path("datasets", family, "train-plain.jsonl"), Path("outputs/nano", argv[0])
    rows, kept = data.read(source), files.CACHE / f"nano-{key(source, size)}"
    if not kept.exists():
        with files.fresh(kept) as tmp:
            tok = save_tokenizer(
                sentencepiece_model([m["content"] for r in rows for m in r["messages"]]), TEMPLATE.read_text(), tmp
            )
            (tmp / "figures.json").write_text(json.dumps(train(tok, rows, tmp, size)))
    with files.fresh(target) as tmp:
        shutil.copytree(kept, tmp, dirs_exist_ok=True, ignore=shutil.ignore_patterns("figures.json"))  # seconds are not part of the model
    figures = json.loads((kept / "figures.json").read_text())
    receipt.write(target.with_suffix(".json"), [source], [target], figures, files.sha256)
    print(f"base        {target}: {figures['parameters'] / 1e6:.1f} M parameters, loss {figures['final_loss']:.3f}")


if __name__ == "__main__":
    process.command(main)
