"""Several processes that train one model.

``sharding`` finds out what is shared out and by whom, ``replicas`` is ``DistributedDataParallel``
around the model, ``averaging`` averages the factors' gradients where nobody else does,
``tensors`` says what tensor parallelism does not go together with, ``agreement`` tells processes
apart that do not begin alike, ``standing`` has those compared that may have parted since.

May import boosters, targets, weights, processes. One more way of sharing out weights is a place in
``weights``; one more framework a module in ``integrations``.
"""
