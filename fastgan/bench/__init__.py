"""Benchmarks: ``fastgan bench``, and the basis of all recorders in ``benchmarks/``.

==============  ===================================================================================
module          what it holds
==============  ===================================================================================
``timing``      providers in turns, ratios within a round
``memory``      peak memory of a call
``counting``    kernel launches, convolution passes and shares of time, from torch's profiler
``work``        operations and bytes, counted from shapes
``floors``      measured copy bandwidth and matmul rate, and the time they bound
``machine``     the machine of a figure: processor, versions, commit, disturbance
``schema``      the format of results, JSON and CSV; comparing two results
``cases``       the definition of a case
``suites``      the cases: ops, models, training, style
``goals``       the target ratios, and whether a result reaches them
``runner``      runs cases
``plots``       pictures of a result
``page``        an HTML page
==============  ===================================================================================

``docs/performance.md`` explains the figures.
"""
