"""Benchmarks of subinterp beside its rivals; ``python -m bench`` runs them.

==================  ========================================================
``contenders.py``   one adapter class for each thing that is measured
``race.py``         rounds that interleave the contenders, and their record
``bench_*.py``      the cases, one file for each subject
``work.py``         what runs inside the workers
``data_work.py``    the same, for NumPy and pandas
``soak.py``         the same work for a long time; ``python -m bench.soak``
``probe.py``        measurements that need a process to themselves
``machine.py``      what else the machine did meanwhile
``goals.py``        the figures that subinterp sets out to reach
``report.py``       recorded results -> tables in the terminal and Markdown
==================  ========================================================
"""
