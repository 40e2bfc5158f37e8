"""How long rows are in tokens, and how many sequences they make: counted, packed, padded."""

import bisect
import random

from scripts import data

WRAPS = ("<|start_header_id|>{}<|end_header_id|>\n\n{}<|eot_id|>", "<|im_start|>{}\n{}<|im_end|>\n", "<start_of_turn>{}\n{}<end_of_turn>\n")


def counter(tokenizer=None, chars_per_token=None):
    """A function from a row's turns to its tokens: by a tokenizer.json under the family's usual chat template, else estimated."""
    if not tokenizer:
        return lambda turns: round(data.tokens(turns) * data.CHARS_PER_TOKEN / (chars_per_token or data.CHARS_PER_TOKEN))
    from tokenizers import Tokenizer

    words = Tokenizer.from_file(str(tokenizer))
    wrap = next((w for w in WRAPS if words.token_to_id(w.split("{")[0]) is not None), "{}\n\n{}\n\n")
    return lambda turns: 1 + sum(len(words.encode(wrap.format(role, text), add_special_tokens=False).ids) for role, text in turns)


def packed(sizes, capacity):
    """How many bins of `capacity` tokens hold these rows: best fit, longest first (Axolotl's is first fit; the two differ by a bin or two)."""
    room = []
    for n in sorted((s for s in sizes if s <= capacity), reverse=True):
        at = bisect.bisect_left(room, n)
        bisect.insort(room, (room.pop(at) if at < len(room) else capacity) - n)
    return len(room)


def batches(cfg, sizes):
    """(sequences an epoch or None, tokens computed an epoch, packing or padding efficiency) of the training rows."""
    micro, length = int(cfg.get("micro_batch_size") or 1), int(cfg.get("sequence_len") or 512)
    kept = [min(n, length) for n in sizes] if cfg.get("excess_length_strategy") == "truncate" else [n for n in sizes if n <= length]
    if not kept:
        raise ValueError(f"every row is longer than sequence_len {length}; raise it")
    if cfg.get("sample_packing"):
        sequences = packed(kept, micro * length) * micro
        return sequences, sequences * length, sum(kept) / (sequences * length)
    if cfg.get("pad_to_sequence_len"):
        return None, len(kept) * length, sum(kept) / (len(kept) * length)
    order = sorted(kept) if cfg.get("group_by_length") else random.Random(0).sample(kept, len(kept))
    computed = sum(max(order[i : i + micro]) * len(order[i : i + micro]) for i in range(0, len(order), micro))
    return None, computed, sum(kept) / computed
