"""One adapter per engine. Only these modules import torch, transformers and llama_cpp, and inside functions."""
