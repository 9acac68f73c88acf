"""What the benchmarks of tools/bench_*.py share: rates, pairs of them, records."""
