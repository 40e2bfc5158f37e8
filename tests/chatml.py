"""Stand-ins for SmolLM2-Instruct where the hub is out of reach: its architecture, its special tokens in their roles, a tokenizer of ours.

    python -m tests.chatml outputs/chatml/smollm2-360m      # the 360M's shape with random weights, for time and memory; it says nothing
    make gguf RECIPE=pirate-laptop BASE=outputs/chatml/smollm2-360m SET=num_epochs=0.04

What SmolLM2 has that the nano base has not: tied embeddings; 3 query heads to a key head, of a width that no K-quant divides; a BOS that
begins turns and that no tokenizer adds; <|im_end|> for both EOS and pad; a chat template of its own with a default system message. What it
has and these have not: a byte-level BPE. llama.cpp would refuse one of ours, so the BPE is sentencepiece's, as the nano base's is.
"""

import json
import sys
from pathlib import Path
from unittest import mock

from scripts import base, data, facts

BOS, EOS, SPARE, UNK = "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<unk>"
FULL = facts.base("HuggingFaceTB/SmolLM2-360M-Instruct")
NANO = FULL | {"hidden": 192, "layers": 3, "heads": 3, "kv_heads": 1, "intermediate": 512, "vocab": 2048, "max_position": 2048}
TEXT = "datasets/pirate/train-plain.jsonl"
# The base's own: training's, without the system message, must win over it all the way into the GGUF.
TEMPLATE = """{% if messages[0]['role'] != 'system' %}<|im_start|>system
You are the base model's own assistant.<|im_end|>
{% endif %}{% for m in messages %}<|im_start|>{{ m['role'] + '\n' + m['content'] }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def vocabulary(texts, size, learned):
    """A sentencepiece BPE of `learned` pieces, filled up to `size` with characters of their own, which neither side has to merge."""
    from sentencepiece import sentencepiece_model_pb2 as pb

    with mock.patch.multiple(base, BOS=BOS, EOS=EOS, PAD=SPARE, UNK=UNK, CHAT=[], VOCAB=learned):
        proto = pb.ModelProto.FromString(base.sentencepiece_model(texts))
    have, rare = {p.piece for p in proto.pieces}, (chr(n) for n in range(0x20000, 0x30000))
    while len(proto.pieces) < size:
        if (piece := next(rare)) not in have:
            proto.pieces.add(piece=piece, score=-float(len(proto.pieces)))
    proto.trainer_spec.vocab_size = size
    return proto.SerializeToString()


def tokenizer(proto, folder, context):
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    with mock.patch.multiple(base, BOS=BOS, EOS=EOS, PAD=SPARE, UNK=UNK, CHAT=[]):
        inner = base.tokenizer_of(proto)
    inner.post_processor = processors.ByteLevel(trim_offsets=False)  # SmolLM2's: it adds no BOS, and the converter reads that from it
    names = {"bos_token": BOS, "eos_token": EOS, "pad_token": EOS, "unk_token": UNK, "additional_special_tokens": [SPARE]}
    tok = PreTrainedTokenizerFast(tokenizer_object=inner, model_max_length=context, clean_up_tokenization_spaces=False, **names)
    tok.chat_template = TEMPLATE
    tok.save_pretrained(folder)
    (folder / "tokenizer.model").write_bytes(proto)
    config = folder / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"add_prefix_space": False}))
    return tok


def weights(tok, shape, folder, rows, steps):
    """A Llama of that shape, random, or trained for `steps` steps: enough of them that replies end."""
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(base.SEED)
    ids = {"bos_token_id": tok.bos_token_id, "eos_token_id": tok.eos_token_id, "pad_token_id": tok.pad_token_id}
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=shape["vocab"],
            hidden_size=shape["hidden"],
            intermediate_size=shape["intermediate"],
            num_hidden_layers=shape["layers"],
            num_attention_heads=shape["heads"],
            num_key_value_heads=shape["kv_heads"],
            max_position_embeddings=shape["max_position"],
            tie_word_embeddings=shape["tied"],
            rope_theta=100000.0,
            **ids,
        )
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=base.PEAK_LR)
    for x in base.batches(tok, rows, steps, torch):
        loss = model(input_ids=x, labels=x).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.generation_config = GenerationConfig(**ids)
    model.to(torch.bfloat16).save_pretrained(folder)


def make(folder, shape, learned=2048, steps=0):
    folder, rows = Path(folder), data.read(TEXT)
    folder.mkdir(parents=True)
    proto = vocabulary([m["content"] for r in rows for m in r["messages"]], shape["vocab"], learned)
    weights(tokenizer(proto, folder, shape["max_position"]), shape, folder, rows, steps)


if __name__ == "__main__":
    make(sys.argv[1], FULL, learned=16384)
