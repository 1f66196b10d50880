"""What an optimizer says of itself."""

import torch
from torch import nn
from torch.optim import SGD, AdamW
from transformers import BertConfig, BertForSequenceClassification

from torch_xgb import BoostedLowRankOptimizer
from torch_xgb.boosting.summary import shortened

HIDDEN, INNER, BLOCKS = 16, 24, 3
PAIR = 4 * (HIDDEN + HIDDEN) + 2 * (HIDDEN + INNER)  # of a block, at rank 1


def classifier() -> BertForSequenceClassification:
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=60,
            hidden_size=HIDDEN,
            num_hidden_layers=BLOCKS,
            num_attention_heads=2,
            intermediate_size=INNER,
            num_labels=3,
        )
    )


def rows(text: str) -> dict[str, str]:
    """The table's rows by name."""
    cells = (line.strip().partition("  ") for line in text.splitlines())
    return {name: text.strip() for name, _, text in cells}


def test_what_is_found_and_trained() -> None:
    model = classifier().bfloat16()
    total = sum(p.numel() for p in model.parameters())
    outside = {"bert.embeddings": model.bert.embeddings, "bert.pooler": model.bert.pooler}
    optimizer = BoostedLowRankOptimizer(AdamW, model, r=2, layers_per_booster=2, lr=1e-3, kappa=2)
    head = sum(p.numel() for p in model.classifier.parameters())
    summary = optimizer.summary()
    assert (summary.parameters, summary.blocks, summary.targets) == (total, BLOCKS, 6 * BLOCKS)
    assert summary.trained == 2 * 2 * PAIR + head and summary.in_full == {"classifier": head}
    assert summary.frozen == {
        name: sum(p.numel() for p in module.parameters()) for name, module in outside.items()
    }
    assert summary.memory["pairs"] == 4 * 2 * 2 * PAIR
    assert summary.most_residual == 2 * summary.designated
    assert "pairs" in rows(str(summary)) and "gradients" not in rows(str(summary))  # none so far
    model(input_ids=torch.ones(1, 4, dtype=torch.long)).logits.sum().backward()
    optimizer.step()
    # exp_avg and exp_avg_sq of each, and a step of 32 bits a tensor
    tensors = 2 * 2 * 6 + 2
    now = optimizer.summary().memory
    assert now["the base's state"] == 2 * (4 * 2 * 2 * PAIR + 2 * head) + 4 * tensors
    assert now["gradients"] == 4 * 2 * 2 * PAIR + 2 * head
    table = rows(str(optimizer.summary()))
    assert table["trained now"].startswith(f"{summary.trained:,} of {total:,} parameters (")
    assert table["lr, in full"] == "0.001" and table["layers_per_booster"] == "2"
    assert "gradients" in table


def test_repr_is_short_and_true_to_the_end() -> None:
    model = classifier()
    optimizer = BoostedLowRankOptimizer(SGD, model, lr=0.1, layers_per_booster=2)
    text = repr(optimizer)
    assert len(text.splitlines()) == 7 and text.startswith("BoostedLowRankOptimizer (\n")
    assert f"18 targets in {BLOCKS} blocks of BertForSequenceClassification" in text
    assert "booster 0, step 0: bert.encoder.layer: " in text
    optimizer.finalize()
    assert "nothing, the model is plain again" in repr(optimizer)
    assert "trained: 0 of" in repr(optimizer) and str(optimizer.summary())


def test_a_model_without_blocks_and_one_that_is_a_target_itself() -> None:
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
    optimizer = BoostedLowRankOptimizer(SGD, model, lr=0.1, exclude_modules=["3"])
    summary = optimizer.summary()
    assert summary.frozen == {"0": 20, "3": 8} and summary.drawn == ("1",)
    alone = BoostedLowRankOptimizer(SGD, nn.Linear(4, 3), lr=0.1)
    assert alone.summary().frozen == {} and "booster 0" in repr(alone)


def test_names_are_shortened_to_what_differs() -> None:
    assert shortened(["a.b.0", "a.b.3"]) == "a.b: 0, 3"
    assert shortened(["a.b.0", "a.c.3"]) == "a.b.0, a.c.3"
    assert shortened(["0", "3"]) == "0, 3" and shortened([]) == ""
