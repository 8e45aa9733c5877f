"""What the pack costs over the libraries it stands on. `python -m benchmarks [text] [memory] [startup]` prints tables
and how many targets were missed. It exits with 1 if one was.

Both sides of a comparison run in turns in one go, so that a busy machine slows both; the ratios are what counts.
"""
