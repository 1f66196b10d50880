"""Tiny mixtures of experts, and one step of boosting spelled out for any Parameter of a model."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import transformers as hf
from torch import Tensor, nn
from torch.func import functional_call

SIZES: dict[str, Any] = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 20,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 32,
    "num_experts_per_tok": 2,
}
Weights = dict[str, Tensor]
EXPERTS = ["experts.gate_up_proj", "experts.down_proj"]


def mixtral() -> nn.Module:
    """Experts stored (E, out, in)."""
    return hf.MixtralForCausalLM(hf.MixtralConfig(**SIZES, num_local_experts=4))


def qwen() -> nn.Module:
    """The same, in blocks of another model."""
    config = hf.Qwen3MoeConfig(**SIZES, moe_intermediate_size=12, num_experts=4)
    return hf.Qwen3MoeForCausalLM(config)


def gpt_oss() -> nn.Module:
    """Experts stored (E, in, out), with biases."""
    config = hf.GptOssConfig(
        **SIZES, num_local_experts=4, rope_parameters={"rope_type": "default", "rope_theta": 1e4}
    )
    return hf.GptOssForCausalLM(config)


MIXTURES: dict[str, Callable[[], nn.Module]] = {
    "mixtral": mixtral,
    "qwen": qwen,
    "gpt_oss": gpt_oss,
}


def mixture(
    kind: str = "mixtral",
    experts: str = "eager",
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> nn.Module:
    """A mixture with weights that depend on the arguments alone; ``eager`` has float64 kernels."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = MIXTURES[kind]()
    model.config._experts_implementation = experts
    return model.to(dtype).train()


class Mixed(nn.Module):
    """Blocks of attention that reads bare matrices, and of a matrix of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(self.Block() for _ in range(2))

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
            self.up = nn.Linear(8, 8)
            self.weight = nn.Parameter(torch.randn(8, 8) / 4)
            self.bias = nn.Parameter(torch.randn(1, 6, 8))

        def forward(self, x: Tensor) -> Tensor:
            x = x + self.attention(x, x, x, need_weights=False)[0] + self.bias
            return x + self.up(torch.tanh(x @ self.weight))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


def sentences(count: int) -> list[Tensor]:
    """Token ids of shape (2, 6)."""
    generator = torch.Generator().manual_seed(0)
    return list(torch.randint(SIZES["vocab_size"], (count, 2, 6), generator=generator))


def loss_of(model: nn.Module, ids: Tensor) -> Tensor:
    """The loss of a batch."""
    return model(input_ids=ids, labels=ids).loss


def boost(
    model: nn.Module,
    data: Sequence[Tensor],
    init: Mapping[int, Weights],
    kappa: int,
    s: float,
    lr: float,
) -> tuple[list[float], Weights]:
    """Boost any Parameters of a plain model by AdamW, explicitly.

    Args:
        model: Not changed.
        data: A batch a step.
        init: The A of every booster by the names of its weights, (r, in) or (E, r, in).
        kappa: Steps a booster.
        s: The scaling.
        lr: The learning rate.

    Returns:
        The losses, and the weights after the last merge.
    """
    W = {name: p.detach().clone() for name, p in model.named_parameters()}
    losses = []
    for step, ids in enumerate(data):
        if step % kappa == 0:
            As = {n: A.clone().requires_grad_() for n, A in init[step // kappa].items()}
            Bs = {n: _zeros(A, W[n], _stored_in_out(model, n)) for n, A in As.items()}
            base = torch.optim.AdamW([*As.values(), *Bs.values()], lr=lr)
        now = {**W, **_merged(model, W, As, Bs, s)}
        loss = functional_call(model, now, kwargs={"input_ids": ids, "labels": ids}).loss
        base.zero_grad()
        loss.backward()
        base.step()
        losses.append(loss.item())
        if (step + 1) % kappa == 0:
            W |= {name: value.detach() for name, value in _merged(model, W, As, Bs, s).items()}
    return losses, W


def _merged(model: nn.Module, W: Weights, As: Weights, Bs: Weights, s: float) -> Weights:
    updates = {name: s * Bs[name] @ As[name] for name in As}
    return {n: W[n] + (dW.mT if _stored_in_out(model, n) else dW) for n, dW in updates.items()}


def _stored_in_out(model: nn.Module, name: str) -> bool:
    return "GptOss" in type(model).__name__ and ".experts." in name


def _zeros(A: Tensor, W: Tensor, stored_in_out: bool) -> Tensor:
    *stack, r, _ = A.shape
    return A.new_zeros(*stack, W.shape[-1 if stored_in_out else -2], r, requires_grad=True)
