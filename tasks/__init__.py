"""Benchmarks, one folder each: an lm-eval YAML, its functions, a README. ``--include_path tasks`` finds them.

``documents``, ``safety``, ``prefill``, ``gsm8k_scoring``, ``rouge`` and ``rewriting`` are shared.
"""
