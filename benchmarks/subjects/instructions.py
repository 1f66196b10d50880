"""Instructions with their answers, as a causal LM is trained on them."""

from typing import Any

import torch


def encoded(rows: list[dict[str, str]], tokenizer: Any) -> dict[str, torch.Tensor]:
    """Prompt and answer, padded to the right; the loss is over the answer alone."""
    prompts = [tokenizer(row["instruction"] + "\n\n")["input_ids"] for row in rows]
    answers = [tokenizer(row["output"])["input_ids"] for row in rows]
    length = max(len(p) + len(a) for p, a in zip(prompts, answers, strict=True))
    ids = torch.zeros(len(rows), length, dtype=torch.int64)
    labels, mask = torch.full_like(ids, -100), torch.zeros_like(ids)
    for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        end = len(prompt) + len(answer)
        ids[i, :end], mask[i, :end] = torch.tensor(prompt + answer), 1
        labels[i, len(prompt) : end] = torch.tensor(answer)
    return {"input_ids": ids, "labels": labels, "attention_mask": mask}
