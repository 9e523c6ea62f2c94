"""What `benchmarks/serve.py` is made from: the models, the rival servers, and the load."""
