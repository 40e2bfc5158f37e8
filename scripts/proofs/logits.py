"""A model in llama.cpp against what it was made from, by the whole next-token distribution after a few prompts."""

# llama.cpp's own model-conversion example calls a normalized mean squared error of logits below 1e-6 "essentially identical".
NMSE_BOUND = 1e-6
KLD_BOUND = 1.0  # nats; a quantized file further away than this is broken
PROMPTS = 8
EXACT = ["-c", 4096, "-np", 1, "-ctk", "f32", "-ctv", "f32", "-fa", "off"]  # llama-server without shortcuts of its own


def spread(prompts):
    """PROMPTS of them, evenly."""
    return prompts[:: max(1, len(prompts) // PROMPTS)][:PROMPTS]


def log_probabilities(url, ids, vocabulary, **more):
    """The whole next-token distribution after `ids`, as a vector of natural logarithms [vocabulary]; `more` goes into the request."""
    import httpx
    import numpy as np

    body = {"prompt": ids, "n_predict": 1, "n_probs": vocabulary, "cache_prompt": False}
    answer = httpx.post(f"{url}/completion", json=body | more, timeout=600).json()
    out = np.full(vocabulary, -np.inf)
    for entry in answer["completion_probabilities"][0]["top_logprobs"]:
        out[entry["id"]] = entry["logprob"]
    if not np.isfinite(out).all():
        raise ValueError(
            f"llama-server gave {np.isfinite(out).sum()} of {vocabulary} probabilities; the model overflows or the vocabulary differs"
        )
    return out


def nmse(got, wanted):
    """The largest normalized mean squared error over the prompts."""
    return max(float(((a - b) ** 2).mean() / (b**2).mean()) for a, b in zip(got, wanted))


def same(what, got, wanted, of):
    """`nmse`, if it is within the bound; else ValueError."""
    found = nmse(got, wanted)
    if not found <= NMSE_BOUND:
        raise ValueError(f"{what}: its logits differ from {of} by an NMSE of {found:.2e} (bound {NMSE_BOUND:.0e}); the conversion is wrong")
    return found


def near(what, got, wanted):
    """Mean KL divergence from `wanted`, in nats, if it is within the bound; else ValueError."""
    import numpy as np

    found = sum(float((np.exp(b) * (b - a)).sum()) for a, b in zip(got, wanted)) / len(got)
    if not found <= KLD_BOUND:
        raise ValueError(f"{what}: {found:.2f} nats from F16 (bound {KLD_BOUND}); the quantized file is broken")
    return found
