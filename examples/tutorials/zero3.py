"""ZeRO-3 with the JSON alone

    torchrun --standalone --nproc_per_node 2 examples/tutorials/zero3.py

DeepSpeed shares weights out among processes. One import registers the optimizer, and the JSON names it: the script has
no other line of this library. Under ZeRO-3 each process merges the rows of an update that its shard holds, so a merge
sends nothing.
"""

# %%
import deepspeed
import torch
import torch_xgb.integrations.deepspeed  # makes "BoostedLowRank" a type of optimizer
from transformers import LlamaConfig, LlamaForCausalLM

CONFIG = {
    "train_micro_batch_size_per_gpu": 4,
    "gradient_clipping": 1.0,
    "zero_optimization": {"stage": 3, "stage3_gather_16bit_weights_on_model_save": True},
    "optimizer": {
        "type": "BoostedLowRank",
        "params": {
            "base": "AdamW",
            "r": 1,
            "kappa": 8,
            "layers_per_booster": 2,
            "modules_to_save": ["lm_head", "embed_tokens"],
            "lr": 0.01,
        },
    },
    "steps_per_print": 1000,
}
VOCABULARY = 64

# %% [markdown]
# A small Llama learns to count on by three. Its weights are random, so its embeddings are trained in full beside the
# boosters, which a pretrained model does not need. Each process sees rows of its own.

# %%
deepspeed.init_distributed()
torch.manual_seed(0)  # the same weights in every process, then rows of its own
sizes = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4}
model = LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, num_hidden_layers=4, **sizes))
engine, *_ = deepspeed.initialize(model=model, config=CONFIG)
first = torch.distributed.get_rank() == 0
torch.manual_seed(torch.distributed.get_rank())

# %% [markdown]
# The loop is DeepSpeed's own. The engine's optimizer is wrapped by DeepSpeed; `boosted(engine)` is ours, for whoever
# wants to see the merges.

# %%
if first:
    torch_xgb.integrations.deepspeed.boosted(engine).on_merge(
        lambda report: print(f"booster {report.booster_index}: {', '.join(report.layers)}")
    )
for step in range(24):
    start = torch.randint(VOCABULARY, (4, 1))
    ids = (start + 3 * torch.arange(16)) % VOCABULARY
    loss = engine(input_ids=ids, labels=ids).loss
    engine.backward(loss)
    engine.step()
    if first and step % 6 == 5:
        print(f"step {step + 1}: loss {loss.item():.3f}")

# %% [markdown]
# ## Saving
#
# `save_checkpoint` and `load_checkpoint` resume, in the middle of a booster too. After `finalize()` the weights are
# the trained ones, and still shared out: `save_16bit_model` gathers and writes them.

# %%
engine.optimizer.finalize()
engine.save_16bit_model("out", "weights.bin")
if first:
    print(f"saved {len(torch.load('out/weights.bin', weights_only=True))} tensors")
torch.distributed.destroy_process_group()

# %% [markdown]
# Every stage, bfloat16, checkpoints and resuming: `examples/deepspeed_zero.py`. Every key of the JSON: [the reference
# of DeepSpeed keys](../reference/deepspeed-keys.md).
