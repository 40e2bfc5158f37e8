"""A model with its adapter and one micro batch, as Axolotl 0.21, transformers, PEFT and accelerate set them up: random weights in real shapes."""

from scripts import facts

SHAPE = ["hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size", "vocab_size"]
BASES = {
    name: tuple(facts.base(name)[key] for key in ("hidden", "layers", "heads", "kv_heads", "head_dim", "intermediate", "vocab"))
    for name in ("meta-llama/Llama-3.2-1B", "meta-llama/Llama-3.2-3B", "meta-llama/Llama-3.1-8B")
} | {"nano": (64, 2, 4, 2, 16, 128, 512)}  # for the tests
ACCUMULATION = 2  # the second micro batch finds the gradients of the first: the peak of every recipe that accumulates


def build(p):
    """The model with its adapter on the meta device: shapes and dtypes, no bytes."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig
    from transformers.integrations.bitsandbytes import replace_with_bnb_linear

    shape = dict(zip(SHAPE, BASES[p["base"]]))
    config = LlamaConfig(**shape, tie_word_embeddings="3.2" in p["base"], max_position_embeddings=p["sequence_len"])
    with torch.device("meta"):
        # Axolotl lets PEFT lift norms, embeddings and head to float32 and then takes them back to bfloat16: here they never leave it.
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa").requires_grad_(False)
        if p["adapter"] == "qlora":
            replace_with_bnb_linear(model, ["lm_head"], BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.bfloat16))
            model.is_loaded_in_4bit = True
        if p["checkpointing"]:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
        lora = LoraConfig(r=p["r"], lora_alpha=32, lora_dropout=p["dropout"], target_modules="all-linear", task_type="CAUSAL_LM")
        return get_peft_model(model, lora).train()  # PEFT makes the adapter float32, and Axolotl leaves it so


def fill(model, device):
    """Give every parameter its bytes, matrix by matrix, quantizing on the way: the whole is never there in bfloat16."""
    import bitsandbytes as bnb
    import torch

    torch.manual_seed(0)
    done = {}  # a tied head is the same parameter
    how = {"blocksize": 64, "compress_statistics": True, "quant_type": "nf4", "quant_storage": torch.bfloat16}
    for module in model.modules():
        nf4 = isinstance(module, bnb.nn.Linear4bit)
        for name, old in module.named_parameters(recurse=False):
            if id(old) not in done:
                weight = torch.empty(old.shape, dtype=torch.bfloat16 if nf4 else old.dtype, device=device).normal_(std=0.02)
                weight, state = bnb.functional.quantize_4bit(weight, **how) if nf4 else (weight, None)
                done[id(old)] = torch.nn.Parameter(weight, requires_grad=old.requires_grad)
                done[id(old)].quant_state = state
            module._parameters[name] = done[id(old)]
        for name, old in module.named_buffers(recurse=False):
            module._buffers[name] = torch.ones(old.shape, dtype=old.dtype, device=device)


def fuse(model, on):
    """Axolotl's LoRA kernels. Once they have patched the attention, every model of this process must be told whether to use them."""
    from transformers.models.llama.modeling_llama import LlamaAttention

    if on or hasattr(LlamaAttention, "_original_forward"):
        from axolotl.monkeypatch import lora_kernels
        from axolotl.utils.dict import DictDefault

        lora_kernels.get_attention_cls_from_config = lambda _: LlamaAttention  # it would ask the hub
        lora_kernels.patch_self_attn_lora(DictDefault())
        lora_kernels.apply_lora_kernel_patches(model, DictDefault(lora_qkv_kernel=on, lora_o_kernel=on, lora_mlp_kernel=on))


def fused_loss(hidden, weight, labels):
    """Liger's fused linear cross-entropy; without a GPU a stand-in that takes the same memory: the gradient, and one chunk of logits."""
    if hidden.is_cuda:
        from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

        return liger_fused_linear_cross_entropy(hidden, weight, labels)
    tokens, vocab, width = len(hidden), *weight.shape
    chunk = min(tokens, 1 << (-(-tokens // -(-vocab // width)) - 1).bit_length())
    _held = hidden.new_empty(tokens, width), hidden.new_empty(chunk, vocab)
    return hidden[0, 0].float()  # whose backward makes the gradient anew


def prepare(model, p, device):
    """(trainable weights, optimizer, a function that takes one micro batch through the model as Trainer and accelerate do)."""
    import torch
    from accelerate.utils.operations import convert_to_fp32

    fill(model, device)
    fuse(model, p["kernels"])
    llama, trainable = model.get_base_model(), [w for w in model.parameters() if w.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=1e-4, fused=True)
    ids = torch.ones(p["micro_batch"], p["sequence_len"], dtype=torch.long, device=device)

    def loss():
        # Traces run on fake CPU tensors, but PEFT and checkpointing ask for CUDA's autocast.
        with torch.autocast("cuda", torch.bfloat16), torch.autocast("cpu", torch.bfloat16):
            if p["fused_loss"]:
                hidden = llama.model(input_ids=ids, use_cache=False).last_hidden_state.flatten(0, 1)
                return fused_loss(hidden, llama.lm_head.weight, ids.flatten())
            out = model(input_ids=ids, labels=ids, use_cache=False)
        return convert_to_fp32(out)["loss"]

    return trainable, optimizer, lambda: (loss() / ACCUMULATION).backward()
