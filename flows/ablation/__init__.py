"""``vidbridge ablate``: the grid of ``params.yaml``, every variant with every seed.

:mod:`~flows.ablation.schedule` decides what runs next, :mod:`~flows.ablation.lanes` where,
:mod:`~flows.ablation.unit` runs it, :mod:`~flows.ablation.capacity` and
:mod:`~flows.ablation.pace` say how many and how long, :mod:`~flows.ablation.flow` is the Prefect
flow over them.
"""
