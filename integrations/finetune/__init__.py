"""A whole fine-tuning run on a model of transformers: rows in, a plain model folder out.

``recipe`` is what a run is told, ``rows`` reads data, ``tasks`` makes of rows what a model learns,
by ``scores`` it is judged, ``folder`` is where a run lives and from which it goes on after a kill,
``run`` trains, ``progress`` says how far it is, ``card`` and ``picture`` tell what came of it.

    from torch_xgb.integrations.finetune.recipe import Recipe
    from torch_xgb.integrations.finetune.run import finetune

    finetune(Recipe(model="bert-base-uncased", task="classification", train="a.jsonl", out="run"))
"""
