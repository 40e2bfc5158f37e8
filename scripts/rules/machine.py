"""Rules on what the machine can do, and on what should not leave it."""

import json
import re

KERNELS = ("lora_qkv_kernel", "lora_mlp_kernel", "lora_o_kernel")
LOSSES = ("liger_fused_linear_cross_entropy", "liger_cross_entropy", "cut_cross_entropy", "chunked_cross_entropy")
SECRET = re.compile(
    r"\b(hf_[A-Za-z0-9]{16,}|sk-[A-Za-z0-9_-]{20,}|gh[pousr]_[A-Za-z0-9]{30,}|AKIA[0-9A-Z]{16}|eyJ[\w-]{20,}\.[\w-]{20,}|(?<=://)[^/\s:@]+:[^/\s@]+(?=@))"
)


def is_secret(at, value):
    """Whether a value is a secret by its form, or by its key: an api_key, a password, a token that is no special token."""
    if not isinstance(value, str):
        return False
    named = at and re.search(r"(token|api_key|secret|password)$", str(at[-1])) and not re.search(r"tokens", str(at[0]))
    return bool(SECRET.search(value) or named and len(value) > 15 and not re.search(r"^[<$\[]|\s", value))


def hidden(text, secrets=()):
    """A text as it may be shown."""
    for secret in secrets:
        text = text.replace(secret, "(hidden)").replace(json.dumps(secret, ensure_ascii=False)[1:-1], "(hidden)")
    return SECRET.sub("(hidden)", text)


def packing_without_flash(c):
    """error | `sample_packing` without an attention that keeps packed rows apart | a conversation reads its neighbour, and learns from it
    | axolotl/utils/schemas/config.py, attn_decontaminates_packing | `attn_implementation: flash_attention_2`, or `sample_packing: false`"""
    apart = {*c.schema["x-attention-that-packs"], "sdpa", "eager"}
    diffusion = isinstance(c.cfg.get("diffusion_lm"), dict) and not c.cfg["diffusion_lm"].get("from_causal_lm")  # packs by itself
    other = "/" in (c.attention or "") and "flash" in c.attention  # a flash-attention kernel from the hub, of which Axolotl knows nothing
    if c.cfg.get("sample_packing") and c.attention not in apart and not diffusion and not other:
        what = (
            f"{c.attention} does not keep packed rows apart"
            if c.attention
            else "no attn_implementation is set, so packed rows see each other"
        )
        yield "sample_packing", what, "attn_implementation: flash_attention_2, or sample_packing: false"


def packing_slow(c):
    """warning | `sample_packing` with sdpa or eager attention
    | they keep packed rows apart by a full mask: right, but slow, and its memory grows with the square of sequence_len
    | axolotl/utils/schemas/config.py, attn_decontaminates_packing | `attn_implementation: flash_attention_2`, or `sample_packing: false`"""
    if c.cfg.get("sample_packing") and c.attention in ("sdpa", "eager") and not c.cfg.get("sdpa_varlen"):
        todo = "attn_implementation: flash_attention_2, or sample_packing: false"
        yield "attn_implementation", f"{c.attention} masks packed rows with a full matrix", todo


def zero3_qlora(c):
    """warning | ZeRO-3 with 4-bit weights | it shards frozen weights that mostly fit anyway, and gathers them in every layer of every pass
    | DeepSpeed on ZeRO stage 3 | ZeRO-1 or 2, which shard what grows; for a model that does not fit, waive it"""
    if c.stage == 3 and (c.cfg.get("load_in_4bit") or c.cfg.get("adapter") == "qlora"):
        todo = "recipes/deepspeed/zero1.json; where the model does not fit, x_waive: {zero3-qlora: why}"
        yield "deepspeed", "ZeRO-3 gathers the frozen NF4 weights in every layer of every pass", todo


def kernels_conflict(c):
    """error | a LoRA kernel with what it refuses, or two kernels for the loss | Axolotl stops after its 20 s of imports
    | axolotl/utils/schemas/validation.py | keep one of the two"""
    on = [k for k in KERNELS if c.cfg.get(k)]
    refused = {"load_in_8bit": c.cfg.get("adapter") == "lora", "trust_remote_code": True}
    for key in (k for k, where in refused.items() if on and c.cfg.get(k) and where):
        yield on[0], f"{', '.join(on)} with {key}", f"{key}: false, or the LoRA kernels false"
    losses = [k for k in LOSSES if c.cfg.get(k)]
    if len(losses) > 1:
        yield losses[1], f"{' and '.join(losses)} replace the same loss", f"keep {losses[0]}"


def kernels_twice(c):
    """warning | a Liger kernel and a LoRA kernel for the MLP | the second patch silently wins: what was measured with one is not what runs
    | axolotl/integrations/liger, axolotl/monkeypatch/lora_kernels.py | `liger_glu_activation: false`; `lora_mlp_kernel` fuses the adapter too"""
    for key in ("liger_glu_activation", "liger_swiglu"):
        if c.cfg.get("lora_mlp_kernel") and c.lora and c.cfg.get(key):
            yield key, f"lora_mlp_kernel and {key} both replace the MLP, and the first wins", f"{key}: false", ("set", key, False)


def bf16_unsupported(c):
    """error | `bf16: true` on a GPU without it | emulated in fp32, several times slower, or refused
    | NVIDIA: compute capability 8.0 (Ampere) and later | `bf16: false` and `fp16: true`"""
    for key in ("bf16", "bfloat16"):
        if c.gpu.get("bf16") is False and c.cfg.get(key) is True:
            yield key, f"{c.gpu['name']} has no bfloat16", f"{key}: false, and fp16: true"


def cpu_kernels(c):
    """error | a recipe for a machine without a GPU that leaves GPU kernels on, or the LoRA kernels unset
    | Axolotl switches the LoRA kernels on by itself: `invalid argument to getCurrentStream` | tried with Axolotl 0.21
    | set them to false; `attn_implementation: sdpa`"""
    if not c.cpu:
        return
    cfg, unset = c.cfg, all(c.cfg.get(k) is None for k in (*KERNELS, "lora_embedding_kernel"))
    chosen = (
        c.lora and unset and not (cfg.get("rl") or cfg.get("trust_remote_code") or cfg.get("adapter") == "lora" and cfg.get("load_in_8bit"))
    )
    for key in KERNELS:
        if chosen or cfg.get(key):
            yield key, f"{key} needs a GPU{', and is on unless it is set' if chosen else ''}", f"{key}: false", ("set", key, False)
    for key in (k for k, value in cfg.items() if k.startswith("liger_") and value is True):
        yield key, f"{key} needs a GPU", f"{key}: false", ("set", key, False)
    if c.attention and c.attention not in ("sdpa", "eager", "flex_attention"):
        named = "attn_implementation" if cfg.get("attn_implementation") else None
        key = named or next((flag for flag, name in c.schema["x-attention-flags"].items() if cfg.get(flag)), "gemma4_hybrid_attn_impl")
        yield key, f"{c.attention} needs a GPU", "attn_implementation: sdpa", ("set", key, "sdpa") if named else None


def cpu_eval_gradients(c):
    """error | 4-bit training with evaluations on a CPU without the plug-in scripts.cpu.CpuPlugin
    | bitsandbytes repacks the weights at the first evaluation; from then on no gradient flows through them, and the loss still falls
    | measured: eval loss 4.94 instead of 2.94 | add `scripts.cpu.CpuPlugin` to `plugins`"""
    four = c.cfg.get("load_in_4bit") or c.cfg.get("adapter") == "qlora"
    if c.cpu and four and c.evaluates and "scripts.cpu.CpuPlugin" not in c.plugins:
        yield "plugins", "evaluating breaks 4-bit training on CPUs with AVX512-BF16", "add scripts.cpu.CpuPlugin to plugins"


def trust_remote_code(c):
    """error | `trust_remote_code: true`, of the model or of a dataset | loading it runs whatever its repository holds
    | transformers' own warning | delete it; the usual bases need none"""
    for at, value in c.leaves:
        if at[-1:] == ("trust_remote_code",) and value is True:
            what = "code from the dataset's repository" if len(at) > 1 else "code from the model's repository"
            yield at, f"runs {what} on this machine", "delete it; the usual bases need none"


def unsafe_weights(c):
    """error | `save_safetensors: false` | weights in pickle form run code when they are loaded | safetensors' README
    | `save_safetensors: true`"""
    if c.cfg.get("save_safetensors") is False:
        yield "save_safetensors", "saves the weights as pickle", "save_safetensors: true", ("set", "save_safetensors", True)


def telemetry(c):
    """warning | a tracker or the hub is sent losses, config, rows or weights | what leaves the machine should be meant
    | the trackers' documentation | delete it, or waive it where it is meant"""
    cfg, local = c.cfg, ("disabled", "offline", "local")
    wandb = cfg.get("use_wandb") or (cfg.get("use_wandb") is None and cfg.get("wandb_project"))
    sent = {
        "use_wandb" if cfg.get("use_wandb") else "wandb_project": wandb and cfg.get("wandb_mode") not in local,
        "mlflow_tracking_uri": "://" in (cfg.get("mlflow_tracking_uri") or "") and not cfg["mlflow_tracking_uri"].startswith("file:"),
        "use_comet": cfg.get("use_comet") and cfg.get("comet_online") is not False,
        "trackio_space_id": cfg.get("trackio_space_id"),
        "use_swanlab": cfg.get("use_swanlab") and cfg.get("swanlab_mode") not in local,
        "hub_model_id": cfg.get("hub_model_id"),
        "push_dataset_to_hub": cfg.get("push_dataset_to_hub"),
    }
    what = {"hub_model_id": "the weights", "push_dataset_to_hub": "the rows"}
    for key in (k for k, yes in sent.items() if yes):
        yield key, f"{key} sends {what.get(key, 'config and losses')} elsewhere", "delete it, or waive it: x_waive: {telemetry: why}"


def secret_in_recipe(c):
    """error | a token, key or password in the recipe, also in a comment | it ends in git, in logs and in every checkpoint
    | Axolotl writes the config beside the weights | delete it, revoke it, and give it in the environment (`HF_TOKEN`, `WANDB_API_KEY`)"""
    places = set(c.secrets) | {n for n, line in enumerate(c.text.split("\n"), 1) if SECRET.search(line)}
    lines = {c.at.get(p, 1) if isinstance(p, tuple) else p for p in places}
    for line in sorted(lines):
        yield line, "holds what looks like a secret", "delete it, revoke it, and give it in the environment (HF_TOKEN, WANDB_API_KEY)"
