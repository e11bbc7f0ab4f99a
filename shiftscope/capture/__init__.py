"""Capturing: finding every linear map and activation of a model, and reducing what flows there.

A map of the modules, roughly from the bottom up:

* What an op is: ``linear_ops``, ``einsum``, ``activation_ops``; ``fused`` and ``recurrent`` take
  fused layers apart. Where its neurons lie: ``marks``, ``carry_rules``, ``carry``, ``trail``,
  ``neuron_dims``. Where its gradients pass: ``graph``, ``backward``.
* What a site is called: ``sites``, ``module_kinds``, ``choice``. What is known of it: ``events``,
  ``site_state``, ``site_states``, ``weights``, ``mean_inputs``, ``mean_images``, ``pictures``;
  ``bare_weights`` and ``bare_layouts`` where no data are run.
* How a tensor is read: ``readings``, ``recent``, ``compiled_reader``, ``device_reader``,
  ``kernel_reader``, ``readers``. What steps add up to: ``blocks``, ``totals``, ``kinds``.
* Who records: ``recorder`` all there is to know of one pass; at every step of a training run, at
  little cost, ``waiting``, ``ledger`` and ``sampling`` a step, ``window_ledger`` a window, ``lean``
  its ops. Records at the end: ``streams``, ``freezing``.
* What is put on a model: ``hooks``, ``mode``, ``calls``, ``tracing``, ``ops``, ``probe``; by
  ``plans``, ``linear_plans`` and ``activation_plans`` a call that is known costs little. What was
  seen, and what was not: ``seen``, ``coverage``.
* ``analyze``: one pass over data; ``arguments``, ``batches``, ``placement``, ``preserve``,
  ``norms``, ``visits``, ``distributed``. ``trial``: ``copies``, ``trial_run``.
* ``watch``: ``recording`` is its loop; ``steps``, ``schedule``, ``phases``, ``windows``,
  ``scaling``, ``stance``, ``conditions``, ``belonging``, ``boundary_moves``.
"""
