"""DeepSpeed's ZeRO: what it is given in the place of an optimizer, and where it keeps weights.

``client`` is the optimizer that ZeRO flattens, ``anchor`` the Parameter that it holds;
``partition`` is a weight under ZeRO-3; ``configuration`` reads the optimizer's entry in a JSON;
``limits`` says what is refused. Of the boosting they know ``optimizer.boosting``, and
``torch_xgb.integrations.deepspeed`` puts it to work.
"""
