"""Measuring: what ``fastgan bench`` does, and what every recorder in ``benchmarks/`` builds on.

==============  ===================================================================================
module          what it holds
==============  ===================================================================================
``timing``      contenders by turns, ratios within a round
``memory``      peak memory of a call
``counting``    kernel launches, convolution passes and shares of time, from torch's profiler
``work``        operations and bytes, counted from shapes
``floors``      measured copy bandwidth and matmul rate, and the least time they allow
``machine``     where a figure was made: processor, versions, commit, disturbance
``schema``      the one format of results, JSON and CSV; comparing two of them
``cases``       what a case is
``suites``      the cases: ops, models, training, style
``goals``       the ratios we want to reach, and whether a result does
``runner``      from cases to a result
``plots``       pictures of a result
``page``        one HTML page of it all
==============  ===================================================================================

``docs/performance.md`` says how the figures are made and what they mean.
"""
