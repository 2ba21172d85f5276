"""What `benchmarks/field.py` is made of: peers, their environments, rounds, results, tables, plots."""
