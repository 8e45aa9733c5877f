"""Safetensors models in Hugging Face Transformers."""
